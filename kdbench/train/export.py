"""The verb `export`: a trained net that works without kdbench: weights, and one file that builds the net."""

from __future__ import annotations

import ast
import inspect
import io
import json
import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdbench import timm_stems
from kdbench.cell import Cell
from kdbench.errors import KdbenchError
from kdbench.models import _base
from kdbench.models._base import Model
from kdbench.models.timm import Timm
from kdbench.store import Store
from kdbench.train.build import make_dataset, make_model, make_task
from kdbench.train.teacher import load_weights
from kdbench.version import VERSION

HEAD = '''"""The net {name} of kdbench's cell {cell}; needs PyTorch{timm}, and no kdbench. Written by kdbench {version}.

    net = load()                    # with the weights beside this file, in evaluation mode
    logits = {call}

Images are n x {shape}: {inputs}.{average}
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

IMPORTS = ["import torch", "import torch.nn.functional as F", "from torch import Tensor, nn"]

MADE = "    return net  # as kdbench made it"

STANDS_IN = {
    "RefusedError": "class RefusedError(ValueError): ...",
    "Model": "class Model(nn.Module): ...",
    "Taps": "class Taps(SimpleNamespace): ...",
    **{name: inspect.getsource(getattr(_base, name)).rstrip() for name in ("conv_norm", "image_channels", "kaiming", "staged")},
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
    wrapped = model.plain is not model
    normalisation = about["normalisation"]
    inputs, decay = "as the dataset gives them", cell.config["recipe"].get("ema")
    if normalisation:
        inputs = f"pixels between 0 and 1,\nless {list(normalisation['mean'])}, over {list(normalisation['std'])}"
    head = HEAD.format(
        name=config["name"],
        version=VERSION,
        cell=cell.id,
        timm=" and timm" if wrapped else "",
        call="net(images)" if wrapped else "net(images).logits",
        shape=" x ".join(map(str, dataset.input_shape)),
        inputs=inputs,
        average=f"\nThe weights are an exponential moving average, decay {decay:g}." if decay else "",
        metrics=", ".join(f"{name} {value:.6g}" for name, value in about["metrics"].items() if value is not None),
    )
    body = _from_timm(model, dataset, outputs) if isinstance(model, Timm) else _from_its_file(model, config, dataset, outputs)
    if "inputs" in config:
        seen = ", ".join(f"{key}={value!r}" for key, value in config["inputs"].items())
        body = body.replace("\n\ndef make():", f"\n\n{inspect.getsource(_base.InputAdapter).rstrip()}\n\n\ndef make():")
        hook = f"    net.register_forward_pre_hook(InputAdapter({dataset.normalisation!r}, {seen}))"
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
    """The model's own file, with `STANDS_IN` instead of imports from kdbench."""
    source = inspect.getsource(inspect.getmodule(type(model)))  # type: ignore[arg-type]
    lines = source.splitlines()
    needed: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("kdbench", "__future__"):
            needed += [one.name for one in node.names] if node.module != "__future__" else []
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    if unknown := [name for name in needed if name not in STANDS_IN]:
        may = f"an exported file cannot: it can take {', '.join(STANDS_IN)}"
        raise KdbenchError(f"the file of the model '{config['name']}' takes {', '.join(unknown)} from kdbench, which {may}")
    stand_ins = "\n\n\n".join(STANDS_IN[name] for name in sorted({*needed, "RefusedError"}))
    header = "\n".join(["from types import SimpleNamespace", "from typing import Any", "", *IMPORTS, ""])
    options = pprint.pformat(config["options"], width=120, sort_dicts=False)
    built = f"net.build({tuple(dataset.input_shape)!r}, {outputs})"
    make = f"def make():\n    net = {type(model).__name__}(**{options})\n    {built}\n{MADE}\n"
    own = "\n".join(lines).strip()
    return f"{header}\n\n{stand_ins}\n\n\n{own}\n\n\n{make}"
