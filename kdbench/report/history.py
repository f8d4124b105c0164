"""What happened on the way, in long format: an epoch's terms, and the terms that each objective is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError, KdbenchError
from kdbench.report.manifest import CellLine, Manifest, labels

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.store import Store

NAMES = ("role", "teacher", "student", "objective", "repeat", "teacher_seed", "id")
EPOCH = ("epoch", "lr", "loss", "term", "raw", "weighted", "gradient_ratio")


def histories(store: Store, manifest: Manifest) -> pd.DataFrame:
    """One row an epoch and term of every run that has a record.

    Returns:
        role, teacher, student, objective, repeat, teacher_seed, id; epoch (from 0; -1: before any), lr, loss (the total); term
        (`task`, or a distillation term), raw, weighted, gradient_ratio (its gradient's norm over the task's, at the epoch's first
        step); `<split>_<metric>` of the epochs that were evaluated, in the row of the task.
    """
    import pandas as pd

    rows = [row for cell in manifest["cells"] for row in _epochs(store, cell)]
    metrics = dict.fromkeys(key for row in rows for key in row if key not in (*NAMES, *EPOCH))
    return pd.DataFrame(rows, columns=[*NAMES, *EPOCH, *metrics])


def _epochs(store: Store, cell: CellLine) -> Iterator[dict[str, Any]]:
    try:
        record = store.record(cell["id"])
    except DamagedError:
        return  # the frame says so
    named = {name: cell.get(name) for name in NAMES}
    for entry in (record.result["history"] or []) if record else []:
        shared = {**named, **{key: entry.get(key) for key in ("epoch", "lr", "loss")}}
        seen = {f"{split}_{name}": value for split in ("val", "test") for name, value in entry.get(split, {}).items()}
        for name, term in (entry["terms"] or {"task": {}}).items():
            yield {**shared, "term": name, **term, **(seen if name == "task" else {})}


def terms(store: Store, manifest: Manifest) -> pd.DataFrame:
    """One row a term of each objective: label, task (the weight of the task's loss), loss, weight, options (JSON), pairing, and
    weight_from: whose the weights are."""
    import pandas as pd

    first = {cell["objective"]: cell["id"] for cell in reversed(manifest["cells"]) if cell["role"] == "student"}
    names = labels(manifest)
    rows = []
    for one in manifest["objectives"]:
        if one["name"] not in first:
            continue
        try:
            config = store.cell(first[one["name"]]).config["objective"]
        except KdbenchError as error:
            config = {"task": None, "terms": [{"loss": f"unknown: {error}"}]}
        shared = {"objective": one["name"], "label": names[one["name"]], "task": config["task"], "weight_from": one["weight_from"]}
        for term in config["terms"] or [{}]:
            options = json.dumps(term["options"], sort_keys=True) if "options" in term else None
            said = {key: json.dumps(term[key]) if isinstance(term.get(key), list) else term.get(key) for key in ("weight", "pairing")}
            rows.append({**shared, "loss": term.get("loss"), "version": term.get("version"), "options": options, **said})
    columns = ["objective", "label", "task", "loss", "version", "weight", "weight_from", "pairing", "options"]
    return pd.DataFrame(rows, columns=columns)
