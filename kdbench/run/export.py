"""The verb `export`: a trained net for those who have no kdbench: plain weights, and one file that makes the net they belong to."""

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

from kdbench import parts
from kdbench.cell import Cell
from kdbench.errors import KdbenchError
from kdbench.models import _base
from kdbench.models._base import Model
from kdbench.models.timm import Timm
from kdbench.record import Record
from kdbench.run.build import make_dataset, make_task
from kdbench.run.teacher import load_weights
from kdbench.store import Store
from kdbench.through_timm import small_stem

HEAD = '''"""The net {name} of kdbench's cell {cell}; needs PyTorch{timm}, and no kdbench. Written by kdbench {version}.

    net = load()                    # with the weights beside this file, in evaluation mode
    logits = {call}

Images are n x {shape}: {inputs}.
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
    **{name: inspect.getsource(getattr(_base, name)).rstrip() for name in ("kaiming", "staged")},
}
"""What a model's file may ask of the house, as it stands in an exported file."""


def export(store: Store, cell_id: str, folder: Path) -> list[Path]:
    """Write `weights.pth`, `net.py` and `about.json` of a finished cell into a folder; returns the three.

    Raises:
        KdbenchError: the cell is not finished, or its net cannot be written as one file.
    """
    record, cell = store.record(cell_id), store.cell(cell_id)
    if record is None or record.outcome != "finished":
        raise KdbenchError(f"cell {cell_id} is {'not finished' if record is None else record.outcome}: there is nothing to export")
    dataset, config = make_dataset(cell), cell.config["student"]
    model: Model = parts.from_config("model", config, cell.sources)
    outputs = make_task(cell).outputs(dataset)
    model.build(dataset.input_shape, outputs)
    try:
        model.load_state_dict(load_weights(store, record))
    except RuntimeError as error:
        raise KdbenchError(f"cell {cell_id}: what was evaluated is no plain {config['name']}: {error}") from error
    about = _about(cell, record, dataset)
    buffer = io.BytesIO()
    torch.save(dict(model.plain.state_dict()), buffer)
    text = _net(model, cell, dataset, outputs, about)
    written = {"weights.pth": buffer.getvalue(), "net.py": text.encode(), "about.json": (json.dumps(about, indent=1) + "\n").encode()}
    for name, content in written.items():
        store.write_bytes(folder / name, content)
    return [folder / name for name in written]


def _about(cell: Cell, record: Record, dataset: Any) -> dict[str, Any]:
    normalisation = dataset.normalisation
    return {
        "cell": cell.id,
        "metrics": record.result["metrics"],
        "data_fingerprint": record.result["data_fingerprint"],
        "weights_digest": record.result["weights_digest"],
        "input_shape": list(dataset.input_shape),
        "normalisation": normalisation and {"pixels": "between 0 and 1", "mean": normalisation[0], "std": normalisation[1]},
        "config": cell.config,
    }


def _net(model: Model, cell: Cell, dataset: Any, outputs: int, about: Mapping[str, Any]) -> str:
    """The text of `net.py`."""
    from kdbench import __version__

    config = cell.config["student"]
    wrapped = model.plain is not model
    normalisation = about["normalisation"]
    inputs = "as the dataset gives them"
    if normalisation:
        inputs = f"pixels between 0 and 1,\nless {list(normalisation['mean'])}, over {list(normalisation['std'])}"
    head = HEAD.format(
        name=config["name"],
        version=__version__,
        cell=cell.id,
        timm=" and timm" if wrapped else "",
        call="net(images)" if wrapped else "net(images).logits",
        shape=" x ".join(map(str, dataset.input_shape)),
        inputs=inputs,
        metrics=", ".join(f"{name} {value:.6g}" for name, value in about["metrics"].items() if value is not None),
    )
    body = _from_timm(model, dataset, outputs) if isinstance(model, Timm) else _from_its_file(model, config, dataset, outputs)
    if "inputs" in config:
        seen = ", ".join(f"{key}={value!r}" for key, value in config["inputs"].items())
        body = body.replace("\n\ndef make():", f"\n\n{inspect.getsource(_base.SeenAs).rstrip()}\n\n\ndef make():")
        hook = f"    net.register_forward_pre_hook(SeenAs({dataset.normalisation!r}, {seen}))"
        body = body.replace(MADE, f"{hook}\n{MADE}")
    return head + body + FOOT


def _from_timm(model: Timm, dataset: Any, outputs: int) -> str:
    asked = "".join(f", {name}={getattr(model, name)!r}" for name in ("drop_rate", "drop_path_rate") if getattr(model, name))
    small = model.stem == "small"
    lines = ["from typing import Any", "", "import timm", *IMPORTS, "", ""]
    if small:
        lines += [inspect.getsource(small_stem).rstrip(), "", ""]
    made = f"timm.create_model({model.architecture!r}, num_classes={outputs}, in_chans={dataset.input_shape[0]}{asked})"
    lines += ["def make():", f"    net = {made}", *(["    small_stem(net)"] if small else []), MADE, ""]
    return "\n".join(lines)


def _from_its_file(model: Model, config: Mapping[str, Any], dataset: Any, outputs: int) -> str:
    """The model's own file, with stand-ins for what it asks of the house."""
    source = inspect.getsource(inspect.getmodule(type(model)))  # type: ignore[arg-type]
    lines = source.splitlines()
    needed: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("kdbench", "__future__"):
            needed += [one.name for one in node.names] if node.module != "__future__" else []
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    if unknown := [name for name in needed if name not in STANDS_IN]:
        raise KdbenchError(
            f"the file of the model '{config['name']}' takes {', '.join(unknown)} from kdbench, which an exported file cannot: "
            f"it can take {', '.join(STANDS_IN)}"
        )
    stand_ins = "\n\n\n".join(STANDS_IN[name] for name in sorted(set(needed)))
    header = "\n".join(["from types import SimpleNamespace", "from typing import Any", "", *IMPORTS, ""])
    options = pprint.pformat(config["options"], width=120, sort_dicts=False)
    built = f"net.build({tuple(dataset.input_shape)!r}, {outputs})"
    make = f"def make():\n    net = {type(model).__name__}(**{options})\n    {built}\n{MADE}\n"
    own = "\n".join(lines).strip()
    return f"{header}\n\n{stand_ins}\n\n\n{own}\n\n\n{make}"
