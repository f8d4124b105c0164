"""What others published: named tables of printed numbers, each with the variant of the loss, the selection rule and the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

from kdbench.errors import KdbenchError, nearest

TEACHER = ("Teacher (CE)", "Teacher", "teacher_alone")
ALONE = ("Student (CE)", "Student", "student_alone")
UNKNOWN, OTHER, NONE = "unknown", "other", "none"
"""Variants that are no name of ours: the source does not say; documented, and no preset of ours; a loss that we do not have."""
SELECTIONS = ("last epoch", "best test epoch", "best val", UNKNOWN)
NUMBERS = ("top1", "std", "n_runs", "n_train", "n_test", "delta", "AP", "AP50", "AP75", "APS", "APM", "APL")
WHOLE = ("n_runs", "n_train", "n_test")
OPTIONAL = ("delta", "delta_to", "std", "n_runs")
DETAILS = ("schedule", "inherits", "flag")
"""Of detection alone."""
COLUMNS = ("source", "dataset", "teacher", "student", "method", "role", "loss", "variant", "selection")


@dataclass(frozen=True)
class Measure:
    """What a table holds: a column of per cents with so many decimals, of a metric (its `label`, and `values` for several); and the name of
    the objective without a teacher, with its loss in words."""

    column: str
    label: str
    values: str
    decimals: int
    alone: str
    loss: str


MEASURES = {
    "top1": Measure("top1", "top-1", "top-1 accuracies", 2, "ce", "cross-entropy"),
    "ap": Measure("AP", "AP", "AP", 1, "detection", "the detector's own loss"),
}
"""By the name of the metric."""


def tables() -> list[tuple[str, str]]:
    """Every published table by name, with a line that says what it is."""
    listed = _stored("_tables")
    return list(zip(listed["table"], listed["description"], strict=True))


def table(name: str) -> pd.DataFrame:
    """A published table: one row a printed cell, numbers as they were printed (accuracies in per cent).

    Returns:
        source, dataset, teacher (null: trained without one), student, method (the source's own name), role (teacher, alone:
        cross-entropy; or distilled), loss (ours that it is a variant of, else null), variant (the name of our preset, `ce`,
        `other`, `none` or `unknown`), selection (last epoch, best test epoch, best val, unknown), top1, std, n_runs, n_train,
        n_test, delta (as printed), delta_to (the method that it is printed against). Of detection: AP to APL in place of top1, schedule,
        inherits (what the student has from its teacher when it begins: none, neck+head, unknown) and flag (what to know of the number).

    Raises:
        KdbenchError: there is no table of that name.
    """
    names = [known for known, _ in tables()]
    if name not in names:
        raise KdbenchError(f"there is no published table '{name}'{nearest(name, names)}")
    return _table(name).copy()


@cache
def _table(name: str) -> pd.DataFrame:
    found = _stored(name).rename(columns={"top1_percent": "top1"})
    found["role"] = ["teacher" if method in TEACHER else "alone" if method in ALONE else "distilled" for method in found["method"]]
    columns = [one for one in (*COLUMNS, *NUMBERS, "delta_to", *DETAILS) if one in found or "top1" in found and one in OPTIONAL]
    types = {one: "Int64" if one in WHOLE else "float64" for one in NUMBERS if one in columns}
    return found.reindex(columns=columns).astype(types)


def variants() -> pd.DataFrame:
    """The presets of the losses, one row a term, a loss's default first: variant, task (the weight of the task's loss), loss, weight
    (null: never published), options (JSON, every default written out)."""
    return _stored("_variants").astype({"task": float, "weight": float})


def variant_of(objective: str, terms: pd.DataFrame | None = None) -> tuple[str, str]:
    """(variant, loss) of an objective of a suite: the name of the preset that it is in every weight and option, `ce`, `other` or
    `unknown`; and the loss of its first term.

    Args:
        terms: as `histories.terms` makes it. None: a preset's name is taken at its word, and a loss's name for its default preset.
    """
    known = lines(variants())
    if terms is None or objective not in set(terms["objective"]):
        names = ["ce", *(line["variant"] for line in known)]
        name = next((one for one in names if one.partition(":")[0] == objective), objective)
        named = name in names
        return (name if named else UNKNOWN), (name.partition(":")[0] if named else "")
    mine = lines(terms[terms["objective"] == objective])
    if mine[0]["loss"] is None:
        return ("ce" if mine[0]["task"] == 1 else OTHER), "ce"
    if any(line["options"] is None for line in mine):
        return UNKNOWN, ""
    # Those with a weight first: one without has any.
    presets = dict.fromkeys(line["variant"] for line in sorted(known, key=lambda line: line["weight"] is None))
    same = (name for name in presets if _same_terms(mine, [line for line in known if line["variant"] == name]))
    return next(same, OTHER), str(mine[0]["loss"])


def _same_terms(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the terms are the same, in whatever order; without a published weight, any weight is that variant's."""
    left = list(theirs)
    for line in mine:
        try:
            weight, task, options = float(line["weight"]), float(line["task"]), json.loads(line["options"])
        except (TypeError, ValueError):  # a schedule of weights, or none that was read
            return False
        for other in left if line["pairing"] in (None, "matched") else ():
            same = (line["loss"], task, options) == (other["loss"], other["task"], json.loads(other["options"]))
            if same and other["weight"] in (None, weight):
                left.remove(other)
                break
        else:
            return False
    return not left


def counterparts(name: str) -> Mapping[str, str]:
    """Our names of the models of a table where they are not the same but for case, `_` and `-`; empty: another net than any of ours."""
    named = _stored("_names")
    mine = named[named["table"] == name]
    return {published: ours if isinstance(ours, str) else "" for published, ours in zip(mine["published"], mine["ours"], strict=True)}


def plain(model: str) -> str:
    """A model's name without case, `_` and `-`."""
    return model.lower().replace("_", "").replace("-", "")


def as_runs(name: str) -> pd.DataFrame:
    """A published table as rows of a frame, for `from_file.of_rows`: one row a printed accuracy, as if each were one run.

    Returns:
        suite, role, dataset, teacher, student, objective, label, repeat (0), teacher_seed, id; top1_last (a fraction, by whichever rule
        it was selected; `selection` says which), top1_best_val and top1_best_test (the same where that was the rule), n_train, n_test,
        source, method, variant, selection, published_n, published_sd (a fraction). A student alone has the objective `ce` and no
        teacher; another's objective is its method in lower case. With n = 1 nothing can be tested.

    Raises:
        KdbenchError: there is no such table, it holds no accuracies, or it gives two values for one cell.
    """
    cells = table(name)
    if "top1" not in cells:
        raise KdbenchError(f"the published table '{name}' holds no accuracies: it cannot stand for runs of a classifier")
    teacher, alone, value = cells["role"] == "teacher", cells["role"] == "alone", cells["top1"] / 100
    preset = ~cells["variant"].isin((UNKNOWN, OTHER, NONE, "ce"))
    runs = pd.DataFrame(
        {
            "suite": f"published {name}",
            "role": teacher.map({True: "teacher", False: "student"}),
            "dataset": cells["dataset"],
            "teacher": cells["teacher"].where(cells["role"] == "distilled", None),
            "student": cells["student"].mask(teacher, cells["teacher"]),
            "objective": cells["method"].str.lower().mask(alone, "ce").mask(teacher, None),
            "label": cells["method"].mask(preset, cells["method"] + " (" + cells["variant"] + ")").mask(alone, "ce"),
            "repeat": pd.Series(0, cells.index, "Int64"),
            "teacher_seed": pd.Series(0, cells.index, "Int64").mask(alone),
            "state": "finished",
            "top1_last": value,
            "top1_best_val": value.where(cells["selection"] == "best val"),
            "top1_best_test": value.where(cells["selection"] == "best test epoch"),
            **{column: cells[column] for column in ("n_train", "n_test", "source", "method", "variant", "selection")},
            "published_n": cells["n_runs"],
            "published_sd": cells["std"] / 100,
        }
    )
    # Two variants of one method are two losses; names that differ only in capitals are one.
    spelt = runs["label"].str.lower()
    several = spelt.groupby(runs["objective"]).transform("nunique") > 1
    runs = runs.assign(objective=runs["objective"].mask(several, spelt))
    runs = runs.assign(label=runs.groupby("objective")["label"].transform("first").fillna(runs["label"]))
    # Accuracies of students and teachers alone are printed anew in every block.
    keys = ["dataset", "teacher", "student", "role", "objective"]
    first = runs.groupby(keys, dropna=False)["top1_last"].transform("first")
    for key, one, other in zip(runs[keys].itertuples(index=False, name=None), first, value, strict=True):
        if one != other:
            raise KdbenchError(f"the published table '{name}' gives {one:.4f} and {other:.4f} for {key}")
    runs = runs.drop_duplicates(keys, ignore_index=True)
    ids = [hashlib.sha256(json.dumps([name, *place]).encode()).hexdigest()[:12] for place in runs[keys].itertuples(index=False)]
    return runs.assign(id=ids)


def lines(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, with None for every null."""
    values = frame.astype(object).where(frame.notna(), None)
    return [{str(key): value for key, value in line.items()} for line in values.to_dict(orient="records")]


@cache
def _stored(name: str) -> pd.DataFrame:
    with (resources.files("kdbench") / "published" / f"{name}.csv").open(encoding="utf-8") as file:
        found = pd.read_csv(file, dtype=str, keep_default_na=False)
    return found.astype(object).where(found != "", None)
