"""What happened on the way, in long format: an epoch's terms, and the terms that each objective is made of."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from kdbench.choice import applied
from kdbench.errors import DamagedError, KdbenchError
from kdbench.manifest import Manifest
from kdbench.store import Store

NAMES = ("role", "teacher", "student", "objective", "repeat", "teacher_seed", "id")
TERMS = ("objective", "label", "task", "loss", "version", "weight", "weight_from", "pairing", "options")
EPOCH = ("epoch", "lr", "loss", "term", "raw", "weighted", "gradient_ratio")


def histories(store: Store, manifest: Manifest) -> pd.DataFrame:
    """One row an epoch and term of every run that has a record.

    Returns:
        role, teacher, student, objective, repeat, teacher_seed, id; epoch (from 0; -1: before any), lr, loss (the total); term
        (`task`, or a distillation term), raw, weighted, gradient_ratio (its gradient's norm over the task's, at the epoch's first
        step); `<split>_<metric>` of the epochs that were evaluated, in the row of the task.
    """
    rows: list[tuple[Any, ...]] = []
    runs, lengths, evaluated = [], [], []
    for cell in manifest.cells:
        if cell.role in ("trial", "first_stage"):
            continue
        with suppress(DamagedError, ValueError):  # the frame reports it
            record, before = store.record(cell.id), len(rows)
            for entry in record.epochs() if record is not None else ():
                shared = (entry["epoch"], entry.get("lr"), entry.get("loss"))
                for term, values in (entry["terms"] or {"task": {}}).items():
                    rows.append((*shared, term, values.get("raw"), values.get("weighted"), values.get("gradient_ratio")))
                    evaluated.append({split: entry[split] for split in ("val", "test") if split in entry and term == "task"})
            runs.append([getattr(cell, name) for name in NAMES])
            lengths.append(len(rows) - before)
    metrics = dict.fromkeys((split, name) for entry in evaluated for split, values in entry.items() for name in values)
    epochs = pd.DataFrame(rows, columns=list(EPOCH)).assign(
        **{f"{split}_{name}": [entry.get(split, {}).get(name) for entry in evaluated] for split, name in metrics}
    )
    epochs = epochs.astype({name: "float64" for name in epochs if name not in ("epoch", "term")})
    named = pd.DataFrame(runs, columns=list(NAMES)).take(np.repeat(range(len(runs)), lengths)).reset_index(drop=True)
    return pd.concat([named, epochs], axis=1)


def _chosen(store: Store, cell_id: str) -> dict[str, Any]:
    """The objective of a cell; of a tuned one, with what was chosen for it, as soon as that is known."""
    objective: dict[str, Any] = store.cell(cell_id).config["objective"]
    record = store.record(cell_id) if "tuned" in objective else None
    return applied(objective, record.result["tuned"]) if record and "tuned" in record.result else objective


def _of_first_stage(store: Store, cell_id: str) -> list[dict[str, Any]]:
    """The terms of the first stage of a cell, if it has one."""
    start = store.cell(cell_id).depends.get("start")
    config = store.cell(start).config if start else {}
    return [{**term, "two_stages": {"epochs": config["recipe"]["epochs"]}} for term in config.get("objective", {}).get("terms", ())]


def terms(store: Store, manifest: Manifest) -> pd.DataFrame:
    """One row a term of each objective: label, task (the weight of the task's loss), loss, weight, options (JSON, with `warm_up`,
    `decay`, `of_epochs` and `dot` where there are any, and `two_stages` where it is a term of the first stage), pairing, and weight_from:
    whose the weights are."""
    first = {cell.objective: cell.id for cell in reversed(manifest.cells) if cell.role == "student"}
    rows = []
    for one in manifest.objectives:
        if one.name not in first:
            continue
        try:
            config = _chosen(store, first[one.name])
            earlier = _of_first_stage(store, first[one.name])
        except KdbenchError as error:
            config, earlier = {"task": None, "terms": [{"loss": f"unknown: {error}"}]}, []
        shared = {"objective": one.name, "label": one.label, "task": config["task"], "weight_from": one.weight_from}
        for term in [*config["terms"], *earlier] or [{}]:
            words = {key: term[key] for key in ("warm_up", "decay", "of_epochs", "two_stages") if key in term}
            words |= {"dot": config["dot"]} if "dot" in config else {}
            options = json.dumps({**term["options"], **words}, sort_keys=True) if "options" in term else None
            weights = {key: json.dumps(term[key]) if isinstance(term.get(key), list) else term.get(key) for key in ("weight", "pairing")}
            rows.append({**shared, "loss": term.get("loss"), "version": term.get("version"), "options": options, **weights})
    return pd.DataFrame(rows, columns=list(TERMS))
