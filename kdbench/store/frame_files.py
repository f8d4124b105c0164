"""Frames in files that a user names: read strictly, with the columns and the kinds of values that ours have."""

from __future__ import annotations

import hashlib
import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.errors import KdbenchError, shown
from kdbench.store import Store
from kdbench.store.frame import KINDS, STATES, WHOLE, frame
from kdbench.store.tables import EMPTY, SUFFIXES, about, number, read_table, refuse, text, typed

NUMBERS = ("train_s", "least_gradient", "published_n", "published_sd")
NAMES = ("role", "dataset", "teacher", "student", "objective", "label", "id", "state")
FILLED = ("role", "dataset", "student", "id", "state", "objective")
RUN = ("id", "role", "dataset", "student", "teacher", "objective", "repeat", "teacher_seed")
OTHER_NAMES = {
    "repeat": ("seed", "run", "trial", "fold", "rep", "replicate", "random_seed"),
    "objective": ("method", "loss", "algorithm", "distiller"),
    "student": ("model", "net", "student_model"),
    "teacher": ("teacher_model", "teacher_net"),
    "dataset": ("data",),
    "top1_last": ("top1", "top_1", "acc", "acc1", "accuracy", "top1_acc", "test_acc", "val_acc", "test_top1"),
}


def load_frame(path: Path | str) -> pd.DataFrame:
    """One row a cell, as `frame.frame` describes them.

    Args:
        path: a suite's folder (`results/suites/<name>`), read from its records as they are now; or a frame file (.parquet, .csv), or
            a folder that holds one.

    Raises:
        KdbenchError: it is neither.
    """
    path = Path(path).resolve()
    if path.parent.name == "suites" and (path / "manifest.json").is_file():
        store = Store(path.parents[1])
        return frame(store, store.manifest(path.name))
    found = next((one for one in (path, path / "frame.parquet", path / "frame.csv") if one.suffix in SUFFIXES and one.is_file()), None)
    if found is None:
        raise KdbenchError(f"{path} is neither a suite's folder (results/suites/<name>) nor a frame file (.parquet, .csv)")
    return read_rows(found).reset_index(drop=True)


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a frame file: names, ids and digests as text, numbers as numbers, nothing as null; the index holds the lines.

    Raises:
        KdbenchError: there is no such file, it is no table, or a value is none that its column can hold.
    """
    rows = read_table(path)
    with about(path):
        return normal(rows)


def kind(column: str) -> str:
    """The kind of a frame's column, as `tables.typed` has them."""
    measured = column.endswith(KINDS) or column in NUMBERS
    return "whole" if column in WHOLE else "number" if measured else "name" if column in NAMES else "text"


def normal(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns that say what a run is, names as clean text and numbers as numbers: an absent role is a student's, an
    absent id is made from its place."""
    _check_columns([str(name) for name in rows])
    rows = rows.rename(columns=str).drop(columns="", errors="ignore")  # an index that was written along has no name
    if not len(rows):
        raise KdbenchError("it has no rows")
    if rows.index.name != "line":
        rows = rows.set_axis(pd.RangeIndex(1, len(rows) + 1, name="row"))
    absent: dict[str, Any] = {"role": "student", "teacher": None, "state": "finished", "repeat": None, "teacher_seed": None}
    absent |= {"label": rows["objective"], "id": [made_id(place) for place in range(len(rows))]}
    rows = rows.assign(**{name: value for name, value in absent.items() if name not in rows})
    rows = typed(rows.assign(repeat=_numbered(rows["repeat"])), kind)
    labels = rows.groupby("objective")["label"].transform("first")
    labels = rows["label"].where(rows["label"].notna(), labels)
    rows = rows.assign(
        teacher=rows["teacher"].where(~rows["teacher"].isin(EMPTY), None), label=labels.where(labels.notna(), rows["objective"])
    )
    for name in FILLED:
        refuse(rows[name], rows[name].isna() & ((name != "objective") | (rows["role"] == "student")), "be filled")
    for name, known in (("role", ("student", "teacher")), ("state", ("finished", *STATES))):
        refuse(rows[name], ~rows[name].isin(known), f"be one of {', '.join(known)}")
    refuse(rows["id"], rows["id"].duplicated(), "name one run only, and another row has it")
    return rows


def _check_columns(names: list[str]) -> None:
    """Raises KdbenchError for a column that is there twice, is lacking, or has another name than ours."""
    if twice := next((name for place, name in enumerate(names) if name and name in names[:place]), ""):
        raise KdbenchError(f"the column '{twice}' is there twice: rename one of them")
    metric = [] if any(name.endswith("_last") for name in names) else ["top1_last"]
    lacking = [name for name in ("dataset", "student", "objective", "teacher", "repeat", *metric) if name not in names]
    for other in names:
        plain = other.lower().replace(" ", "_").replace("-", "_")
        if name := next((one for one in lacking if plain in OTHER_NAMES[one] or get_close_matches(plain, [one], cutoff=0.8)), ""):
            raise KdbenchError(f"the column '{other}' has an unknown name; rename it to '{name}'")
    required = [name.replace("top1_last", "<metric>_last (such as top1_last)") for name in lacking if name not in ("teacher", "repeat")]
    if required:
        separator = next((one for one in (";", "\t", "|") if any(one in name for name in names)), "")
        hint = f". The columns seem to be separated by {separator!r}: separate them by commas" if separator else ""
        raise KdbenchError(f"it has no column {', '.join(required)}; its columns are {shown(', '.join(names))}{hint}")


def _numbered(cells: pd.Series) -> pd.Series:
    """Repeats in words (s0, s1) as numbers, in the order in which they first appear."""
    named = cells[[(text(value) or "") not in EMPTY for value in cells]].map(text)
    numeric = [number(name) is not None for name in named]
    if all(numeric):
        return cells
    refuse(named, numeric, "be a name, as in other rows, or all rows must have numbers")
    return named.map({label: place for place, label in enumerate(named.unique())}).reindex(cells.index)


def made_id(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
