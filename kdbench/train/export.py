"""The verb `export`: a trained net that works without kdbench: weights, and one file that builds the net."""

from __future__ import annotations

import ast
import inspect
import io
import json
import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdbench import timm_stems
from kdbench.cell import Cell
from kdbench.errors import KdbenchError
from kdbench.models import _base, _detector
from kdbench.models import _torchvision as tv
from kdbench.models._base import Model
from kdbench.models._detector import Detector
from kdbench.models.timm import Timm
from kdbench.store import Store
from kdbench.train.build import make_dataset, make_model, make_task
from kdbench.train.teacher import load_weights
from kdbench.version import VERSION

HEAD = '''"""The net {name} of kdbench's cell {cell}; needs {libraries}, and no kdbench. Written by kdbench {version}.

    net = load()                    # with the weights beside this file, in evaluation mode
    {call}

Images are {inputs}.{average}
Recorded on the test set: {metrics}.
"""

from __future__ import annotations

from pathlib import Path
'''

FOOT = """

def load(folder=Path(__file__).parent):
    net = make()
    net.load_state_dict(torch.load(Path(folder) / "weights.pth", map_location="cpu", weights_only=True))
    return net.eval()
"""

SCENES = """3 x height x breadth, {pixels}, as large as the dataset makes them (`dataset` in about.json); the net
normalises them, does not resize them, and pads those of a call to the largest, which may change what is found in them. Boxes (left, top,
right, bottom) are in their pixels. Labels are torchvision's: {first} to {last} are the classes in the order of the dataset, which for the
layout of COCO is that of the ids{background}. The net is not made for further training"""

IMPORTS = ["import torch", "import torch.nn.functional as F", "from torch import Tensor, nn"]

MADE = "    return net  # as kdbench made it"

PYRAMID = """def make_pyramid(architecture, inputs, strides, given):
    body = timm.create_model(architecture, features_only=True, in_chans=inputs[0], out_indices={places}, **given)
    return body, body.feature_info.channels()"""

TRANSFORM = """class Transform(GeneralizedRCNNTransform):
    adapter = None

    def resize(self, image, target=None):  # after `normalize`, before the images are padded
        return (image if self.adapter is None else self.adapter(self, (image,))[0]), target"""


def _source(*made: Any) -> str:
    return "\n\n\n".join(inspect.getsource(one).rstrip() for one in made)


STANDS_IN = {
    "RefusedError": "class RefusedError(ValueError): ...",
    "Model": "class Model(nn.Module): ...",
    "Taps": "class Taps(SimpleNamespace): ...",
    **{name: _source(getattr(_base, name)) for name in ("conv_norm", "image_channels", "kaiming", "staged")},
    **{name: _source(getattr(_detector, name)) for name in ("Backbone", "at_least", "shares")},
    "tv": f"""EXTRA_LEVELS = {tv.EXTRA_LEVELS}


{_source(tv.norm_layer, tv.groups_of, tv.pyramid_network, tv.region_pool)}


tv = SimpleNamespace(**globals())  # before a class below takes the name of one of torchvision's""",
    "Detector": f"class Detector(nn.Module):\n{_source(Detector.__init__)}\n\n{_source(Detector.build)}",
    "DenseDetector": "class DenseDetector(Detector): ...",
}
"""What a model's file may import from kdbench, and the text that replaces the import in an exported file."""


def export(store: Store, cell_id: str, folder: Path) -> list[Path]:
    """Write `weights.pth`, `net.py` and `about.json` of a cell; returns their paths. Raises KdbenchError if it is not finished, or its net
    cannot be written as one file."""
    record, cell = store.record(cell_id), store.cell(cell_id)
    if record is None or record.outcome != "finished":
        raise KdbenchError(f"cell {cell_id} is {'not finished' if record is None else record.outcome}: there is nothing to export")
    if "stage" in cell.config["objective"]:
        raise KdbenchError(f"cell {cell_id} is a first stage, whose classifier is not trained: export its second stage")
    dataset, task, config = make_dataset(cell), make_task(cell), cell.config["student"]
    model, outputs = make_model(cell, dataset, task), task.outputs(dataset)
    try:
        model.load_state_dict(load_weights(store, record))
    except RuntimeError as error:
        raise KdbenchError(f"cell {cell_id}: what was evaluated is no plain {config['name']}: {error}") from error
    normalisation = dataset.normalisation
    about = {
        "cell": cell.id,
        **{name: record.result[name] for name in ("metrics", "data_fingerprint", "weights_digest")},
        "input_shape": list(dataset.input_shape),
        "normalisation": normalisation and {"pixels": "between 0 and 1", "mean": normalisation[0], "std": normalisation[1]},
        **({"normalised_by": "the net", "label_of_first_class": _first_label(model)} if isinstance(model, Detector) else {}),
        "config": cell.config,
    }
    buffer = io.BytesIO()
    torch.save(dict(model.plain.state_dict()), buffer)
    text = _net(model, cell, dataset, outputs, about)
    written = {"weights.pth": buffer.getvalue(), "net.py": text.encode(), "about.json": (json.dumps(about, indent=1) + "\n").encode()}
    for name, content in written.items():
        store.write_bytes(folder / name, content)
    return [folder / name for name in written]


def _net(model: Model, cell: Cell, dataset: Any, outputs: int, about: Mapping[str, Any]) -> str:
    """The text of `net.py`."""
    config = cell.config["student"]
    wrapped, finds = model.plain is not model, isinstance(model, Detector)
    normalisation = about["normalisation"]
    libraries, call = ("PyTorch and timm", "logits = net(images)") if wrapped else ("PyTorch", "logits = net(images).logits")
    inputs, decay = "as the dataset gives them", cell.config["recipe"].get("ema")
    if normalisation:
        inputs = f"pixels between 0 and 1,\nless {list(normalisation['mean'])}, over {list(normalisation['std'])}"
    inputs = f"n x {' x '.join(map(str, dataset.input_shape))}: {inputs}"
    if finds:
        libraries, call = "PyTorch, torchvision and timm", "found = net([image, ...])       # of each image: boxes, scores, labels"
        first, background = about["label_of_first_class"], "; 0 is the background, which is never found"
        ends = {"first": first, "last": first + outputs - 1, "background": background if first else ""}
        inputs = SCENES.format(pixels="pixels between 0 and 1" if normalisation else "as the dataset gives them", **ends)
    head = HEAD.format(
        name=config["name"],
        version=VERSION,
        cell=cell.id,
        libraries=libraries,
        call=call,
        inputs=inputs,
        average=f"\nThe weights are an exponential moving average, decay {decay:g}." if decay else "",
        metrics=", ".join(f"{name} {value:.6g}" for name, value in about["metrics"].items() if value is not None),
    )
    body = _from_timm(model, dataset, outputs) if isinstance(model, Timm) else _from_its_file(model, config, dataset, outputs)
    if "inputs" in config:
        seen = ", ".join(f"{key}={value!r}" for key, value in config["inputs"].items())
        body = body.replace("\n\ndef make():", f"\n\n{inspect.getsource(_base.InputAdapter).rstrip()}\n\n\ndef make():")
        adapter = f"InputAdapter({dataset.normalisation!r}, {seen})"
        hook = f"    net.transform.adapter = {adapter}" if finds else f"    net.register_forward_pre_hook({adapter})"
        body = body.replace(MADE, f"{hook}\n{MADE}")
    return head + body + FOOT


def _from_timm(model: Timm, dataset: Any, outputs: int) -> str:
    asked = "".join(f", {name}={value!r}" for name, value in model.built_with.items())
    small = model.stem == "small"
    lines = ["from typing import Any", "", "import timm", *IMPORTS, "", ""]
    if small:
        lines += [inspect.getsource(timm_stems).rstrip(), "", ""]
    made = f"timm.create_model({model.architecture!r}, num_classes={outputs}, in_chans={dataset.input_shape[0]}{asked})"
    lines += ["def make():", f"    net = {made}", *(["    small_stem(net)"] if small else []), MADE, ""]
    return "\n".join(lines)


def _from_its_file(model: Model, config: Mapping[str, Any], dataset: Any, outputs: int) -> str:
    """The model's own file, with `STANDS_IN` instead of imports from kdbench; of a detector what makes its net."""
    source = inspect.getsource(inspect.getmodule(type(model)))  # type: ignore[arg-type]
    lines = source.splitlines()
    imported: list[str] = []
    left_out: set[int] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("kdbench", "__future__"):
            imported += [one.asname or one.name for one in node.names] if node.module != "__future__" else []
            left_out.update(range(node.lineno - 1, node.end_lineno or node.lineno))
        elif isinstance(model, Detector) and isinstance(node, ast.ClassDef) and node.name == type(model).__name__:
            for one in _beside(node.body, {"", "__init__", "build", "detector"}):
                start = min(each.lineno for each in (one, *getattr(one, "decorator_list", ())))
                left_out.update(range(start - 1 - (not lines[start - 2]), one.end_lineno or start))  # with the empty line above
    own = "\n".join(line for place, line in enumerate(lines) if place not in left_out).strip()
    needed = [name for name in imported if name in _names(ast.parse(own))]
    if unknown := [name for name in needed if name not in STANDS_IN]:
        may = f"an exported file cannot: it can take {', '.join(STANDS_IN)}"
        raise KdbenchError(f"the file of the model '{config['name']}' takes {', '.join(unknown)} from kdbench, which {may}")
    needed += ["RefusedError"] + ["image_channels", "Backbone", "at_least", "tv", "Detector"] * isinstance(model, Detector)
    stand_ins = [text for name, text in STANDS_IN.items() if name in needed]
    imports, last = IMPORTS, [f"    net.build({tuple(dataset.input_shape)!r}, {outputs})"]
    if isinstance(model, Detector):
        stand_ins += [TRANSFORM, PYRAMID.format(places=tuple(model.net.backbone.body.feature_info.out_indices))]
        mean, std = map(list, dataset.normalisation or ([0.0], [1.0]))
        last += ["    net = net.net", f"    net.transform = Transform(None, None, {mean}, {std})"]
        used = _names(ast.parse("\n".join([*stand_ins, own])))
        made = {name: str(getattr(one, "__module__", "")) for name, one in vars(tv).items() if name in used}
        made["GeneralizedRCNNTransform"] = "torchvision.models.detection.transform"
        imports = ["import timm", *IMPORTS, *(f"from {of} import {name}" for name, of in made.items() if of.startswith("torchvision."))]
    header = "\n".join(["from types import SimpleNamespace", "from typing import Any", "", *imports])
    options = pprint.pformat(config["options"], width=120, sort_dicts=False)
    make = "\n".join(["def make():", f"    net = {type(model).__name__}(**{options})", *last, MADE, ""])
    return "\n\n\n".join([header, *stand_ins, own, make])


def _beside(members: Sequence[ast.stmt], used: set[str]) -> list[ast.stmt]:
    """The members of a class that those named in `used` do not use, nor what these use."""
    assigned = [getattr(one, "targets", [getattr(one, "target", None)])[0] for one in members]
    named = [(getattr(one, "name", None) or getattr(target, "id", ""), one) for one, target in zip(members, assigned, strict=True)]
    while more := {each for name, one in named if name in used for each in _names(one)} - used:
        used = used | more
    return [one for name, one in named if name not in used]


def _names(tree: ast.AST) -> set[str]:
    return {getattr(tree, "attr", None) or getattr(tree, "id", "")}.union(*map(_names, ast.iter_child_nodes(tree)))


def _first_label(model: Detector) -> int:
    """The label of the first class, as torchvision numbers them. Raises KdbenchError if the model does not say it."""
    if not (rows := model.rows_of_classes()):
        raise KdbenchError(f"{type(model).__name__} does not define `rows_of_classes`, which says whether 0 is a label of the background")
    return int(any(background for _, background, _ in rows.values()))
