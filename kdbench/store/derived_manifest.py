"""The manifest that the rows of a frame imply, where none lies beside it."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.manifest import COMMON_METRICS, Block, Manifest, ManifestCell, ManifestObjective, Metric
from kdbench.stats.repeats import BLOCK, spread_over_blocks
from kdbench.store.frame import KINDS
from kdbench.store.frame_files import RUN, made_id
from kdbench.store.tables import MOST, null, refuse

ALPHA, MARGIN = 0.05, 0.002


def derived(rows: pd.DataFrame, name: str, terms: pd.DataFrame | None = None) -> Manifest:
    """The manifest that rows imply: objectives, pairs and repeats as they are there; the baselines `ce` and `kd`; every objective with
    every baseline in every pair as the family; metrics by their names (`COMMON_METRICS`). A repeat that others of its dataset and student
    have is missing where it has no row.

    Args:
        rows: as `read_rows` makes them.

    Raises:
        KdbenchError: there is no finished run of a student, a run is there twice, a metric is not known, or losses and labels are not one
            to one.
    """
    names = [str(column).removesuffix("_last") for column in rows if str(column).endswith("_last")]
    if unknown := next((one for one in names if one not in COMMON_METRICS), ""):
        known = ", ".join(f"{one}_last" for one in COMMON_METRICS)
        raise KdbenchError(
            f"unit and direction of the metric '{unknown}' (column {unknown}_last) are not known; rename the column to one of {known}; "
            "or put a manifest.json beside the file that describes it"
        )
    metrics = tuple(COMMON_METRICS[one] for one in names)
    students = rows[rows["role"] == "student"]
    if not (students["state"] == "finished").any():
        raise KdbenchError("no run of a student is finished: there is nothing to report")
    check_values(rows, metrics)
    for same, other, must in (("objective", "label", "be the same in all rows of a loss"), ("label", "objective", "have its own label")):
        refuse(students[other], students.groupby(same)[other].transform("first") != students[other], must)
    labels = dict(zip(students["objective"], students["label"], strict=True))
    whose = {} if terms is None else dict(zip(terms["objective"], terms["weight_from"], strict=True))
    suites = list(rows["suite"].dropna().unique()) if "suite" in rows else []
    return Manifest(
        suite=str(suites[0]) if len(suites) == 1 else name,
        metrics=metrics,
        baselines=_baselines(labels),
        **_counts(students),
        alpha=ALPHA,
        margin=MARGIN if metrics[0].percent else None,
        derived=True,
        objectives=tuple(ManifestObjective(one, labels[one], whose.get(one)) for one in students["objective"].unique()),
        blocks=_blocks(students),
        cells=_cells(rows, students),
    )


def _baselines(names: Collection[str]) -> tuple[str, ...]:
    """`ce` and `kd` in whatever case, in small letters before others; the one variant of kd where there is no plain one."""
    found = [max((name for name in names if name.lower() == wanted), default="") for wanted in ("ce", "kd")]
    variants = [name for name in names if name.lower().startswith("kd:")]
    return tuple(filter(None, (found[0], found[1] or "".join(variants[: len(variants) == 1]))))


def _counts(students: pd.DataFrame) -> dict[str, Any]:
    """How many repeats a loss has at most, and how many teachers most of the repeats have. A run whose repeat is null is a repeat of
    its own, with one teacher."""
    numbered = students["repeat"].notna()
    own = students[~numbered].groupby([*BLOCK, "objective"], dropna=False).size()
    repeats = students[numbered].groupby([*BLOCK, "objective"], dropna=False)["repeat"].nunique()
    taught = students[numbered & students["teacher"].notna()].groupby([*BLOCK, "objective", "repeat"])
    counts = taught["teacher_seed"].nunique().clip(lower=1).value_counts().sort_values(ascending=False, kind="stable")
    varied = ", ".join(f"{n} with {seeds}" for seeds, n in counts.items())
    assumed = (f"each repeat is the mean over its own teacher seeds, whose number differs (repeats: {varied})",)
    seeds = int(counts.index[0]) if len(counts) else 1
    return {"repeats": int(max([*repeats, *own])), "teacher_seeds": seeds, "assumed": assumed if len(counts) > 1 else ()}


def _blocks(students: pd.DataFrame) -> tuple[Block, ...]:
    """The pairs. A student alone is one only where none of its runs has a teacher. Raises KdbenchError for two runs where there is one:
    the statistics would have to choose."""
    found = students[[*BLOCK]].drop_duplicates()
    taught = found.groupby(["dataset", "student"])["teacher"].transform("count") > 0
    blocks = found[found["teacher"].notna() | ~taught]
    key = [*BLOCK, "objective", "repeat", "teacher_seed"]
    spread = spread_over_blocks(students[students["repeat"].notna()].rename_axis("place").reset_index()[[*key, "place"]], blocks)
    for same in (held for _, held in spread[spread.duplicated(key, keep=False)].groupby(key, dropna=False, sort=False)):
        (first, later), names = same["place"].iloc[:2], same[key].iloc[1]
        named = ", ".join(f"{column} {value}" for column, value in names.items() if null(value) is not None)
        lines = f"{students.index.name} {first} and {students.index.name} {later}"
        raise KdbenchError(f"{lines} are the same run ({named}): keep one of them, or give them different repeats or teacher seeds")
    return tuple(Block(*map(null, block)) for block in blocks.itertuples(index=False))


def _cells(rows: pd.DataFrame, students: pd.DataFrame) -> tuple[ManifestCell, ...]:
    """A cell for each row, and for each repeat that an objective lacks and another one has that shares repeats with it on its dataset and
    student. Runs without a repeat's number may be those that seem to be missing: then nothing is."""
    cells = [{key: null(line[key]) for key in RUN} for line in rows[[*RUN]].to_dict(orient="records")]
    for (dataset, student), mine in students.groupby(["dataset", "student"], sort=False):
        every = {key: {*map(null, held)} for key, held in mine.groupby(["teacher", "objective"], dropna=False, sort=False)["repeat"]}
        for (teacher, objective), held in every.items():
            asked = {int(repeat) for other in every.values() if other & held for repeat in other - held if repeat is not None}
            for repeat in sorted(asked) if None not in held else ():
                named = {"dataset": dataset, "student": student, "teacher": null(teacher), "objective": objective, "repeat": repeat}
                cells.append({"id": made_id(named), "role": "student", **named, "teacher_seed": None})
    taught = {(cell["dataset"], cell["student"], cell["teacher_seed"]): cell["id"] for cell in cells if cell["role"] == "teacher"}
    found = []
    for cell in cells:
        teacher = taught.get((cell["dataset"], cell["teacher"], cell["teacher_seed"])) if cell["role"] == "student" else None
        found.append(ManifestCell(**cell, depends={"teacher": teacher} if teacher else {}))
    return tuple(found)


def check_values(rows: pd.DataFrame, metrics: tuple[Metric, ...]) -> None:
    """Raises KdbenchError for a value of a finished run that its metric cannot have. One that diverged may have an infinite loss."""
    for metric, column in itertools.product(metrics, KINDS):
        if (column := f"{metric.name}{column}") in rows:
            values = rows[column].where(rows["state"] == "finished")
            if metric.percent:
                per_cent = "; is it in per cent? Divide the column by 100" if values.between(1, 100, inclusive="right").any() else ""
                refuse(values, values.notna() & ~values.between(0, 1), f"be a fraction between 0 and 1{per_cent}")
            refuse(values, values.abs() > MOST, f"be a finite number of at most {MOST:g}")
