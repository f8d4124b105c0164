"""What happened on the way, in long format: an epoch's terms, and the terms that each objective is made of."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError, KdbenchError
from kdbench.report.manifest import Manifest, labels

if TYPE_CHECKING:
    import numpy as np
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
    import numpy as np
    import pandas as pd

    runs, chunks = [], []
    names: dict[str, int] = {}
    for cell in manifest["cells"]:
        with suppress(DamagedError):  # the frame says so
            record = store.record(cell["id"])
            if record is not None and record.result["history"]:
                runs.append({name: cell.get(name) for name in NAMES})
                chunks.append(_columns(record.result["history"], names))
    if not runs:
        return pd.DataFrame(columns=[*NAMES, *EPOCH])
    whose = np.repeat(np.arange(len(runs)), [len(chunk["epoch"]) for chunk in chunks])
    epochs = {name: np.concatenate([_column(chunk, name) for chunk in chunks]) for name in dict.fromkeys(itertools.chain(EPOCH, *chunks))}
    term = pd.Series(list(names)).take(epochs["term"]).reset_index(drop=True)
    return pd.concat([pd.DataFrame(runs).take(whose).reset_index(drop=True), pd.DataFrame({**epochs, "term": term})], axis=1)


def _columns(history: list[dict[str, Any]], names: dict[str, int]) -> dict[str, np.ndarray]:
    """A run's columns, a row an epoch and term: plain arrays, for ten thousand runs have millions of rows. The term as its number in
    `names`, to which new ones are added."""
    import numpy as np

    terms = [entry["terms"] or {"task": {}} for entry in history]
    counts = [len(one) for one in terms]
    found = {
        "epoch": np.repeat([entry["epoch"] for entry in history], counts),
        **{key: np.repeat(np.array([entry.get(key) for entry in history], dtype=float), counts) for key in ("lr", "loss")},
        "term": np.array([names.setdefault(name, len(names)) for one in terms for name in one]),
        **{
            key: np.array([term.get(key) for one in terms for term in one.values()], dtype=float)
            for key in ("raw", "weighted", "gradient_ratio")
        },
    }
    of_task = found["term"] == names.get("task")
    evaluated = [entry for entry, one in zip(history, terms, strict=True) if "task" in one]
    for split in ("val", "test"):
        for metric in dict.fromkeys(metric for entry in evaluated for metric in entry.get(split, ())):
            found[f"{split}_{metric}"] = np.full(len(of_task), np.nan)
            found[f"{split}_{metric}"][of_task] = np.array([entry.get(split, {}).get(metric) for entry in evaluated], dtype=float)
    return found


def _column(chunk: dict[str, np.ndarray], name: str) -> np.ndarray:
    import numpy as np

    return chunk[name] if name in chunk else np.full(len(chunk["epoch"]), np.nan)


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
