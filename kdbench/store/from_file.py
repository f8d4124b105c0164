"""A report's frames from files: committed and published results go through the same path as those on disk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.manifest import COMMON_METRICS, Block, Manifest, ManifestCell, ManifestObjective, Metric
from kdbench.stats.predictions import FRAMES as IMAGE_FRAMES
from kdbench.stats.predictions import ImageStatistics
from kdbench.stats.repeats import BLOCK, spread_over_blocks
from kdbench.store import features
from kdbench.store import histories as history
from kdbench.store.frame import CIRCUMSTANCE, COST_COLUMNS, IDENTITY, KINDS, cost_frame
from kdbench.store.frame_files import NAMES, RUN, kind, made_id, normal, read_rows
from kdbench.store.tables import MOST, about, null, read_csv, refuse, typed
from kdbench.store.trials import COLUMNS

BESIDE = {
    "costs": COST_COLUMNS,
    "histories": (*history.NAMES, *history.EPOCH),
    "terms": history.TERMS,
    "trials": COLUMNS,
    **{f"images_{name}": columns for name, columns in IMAGE_FRAMES.items()},
    **{f"features_{name}": columns for name, columns in features.FRAMES.items()},
}
"""The files that may lie beside a frame, and what they must hold."""
TEXTS = (*NAMES, "baseline", "term", "why", "device", "options", "edge", "teacher_id", "teacher_layer", "student_layer", "probe")
NAMED = 3
"""So many strange runs are named."""
ALPHA, MARGIN = 0.05, 0.002


@dataclass(frozen=True)
class FromFile:
    """What lies in and beside a frame file; None where there is no such file."""

    manifest: Manifest
    runs: pd.DataFrame
    costs: pd.DataFrame
    histories: pd.DataFrame | None = None
    terms: pd.DataFrame | None = None
    images: ImageStatistics | None = None
    trials: pd.DataFrame | None = None
    features: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def read(path: Path, metric: str | None = None) -> FromFile:
    """A frame file (a row a run: .csv or .parquet), with `manifest.json`, `costs.csv`, `histories.csv` and `terms.csv` of its folder
    where they are there. Without a manifest, its facts are taken from the rows (`derived`). `metric` is compared instead of the file's.

    Raises:
        KdbenchError: a file cannot be read or lacks a column, or the frame holds no student's run, a value that its column cannot
            hold, one run twice, or runs that contradict the manifest beside it.
    """
    rows = read_rows(path)
    with about(path):
        found = {name: held for name in BESIDE if (held := _beside(path.with_name(f"{name}.csv"), name)) is not None}
        beside = path.with_name("manifest.json")
        manifest = _manifest_file(beside, rows) if beside.is_file() else derived(rows, path.stem, found.get("terms"))
        primary, manifest = manifest.primary, manifest.compared_by(metric) if metric else manifest
        names = [*manifest.labels, None, "teacher"]
        known = {name: table if name == "terms" else table[table["objective"].isin(names)] for name, table in found.items()}
        images = {name: known.pop(f"images_{name}", pd.DataFrame(columns=columns)) for name, columns in IMAGE_FRAMES.items()}
        measured = {name: known.pop(f"features_{name}") for name in features.FRAMES if f"features_{name}" in known}
        whole = ImageStatistics(**images) if len(images["predictions"]) else None
        if whole and manifest.primary != primary:
            whole = replace(whole, intervals=whole.intervals[:0], checkpoints=whole.checkpoints[:0])
        return FromFile(manifest, _complete(rows, manifest), **{"costs": cost_frame(), **known}, images=whole, features=measured)


def of_rows(rows: pd.DataFrame, name: str, metric: str | None = None) -> FromFile:
    """The same from rows that lie in no file, such as a published table's (`published.as_runs`)."""
    rows = normal(rows)
    manifest = derived(rows, name)
    manifest = manifest.compared_by(metric) if metric else manifest
    return FromFile(manifest, _complete(rows, manifest), cost_frame())


def _beside(path: Path, name: str) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        found = read_csv(path)
        if lacking := [column for column in BESIDE[name] if column not in found]:
            raise KdbenchError(f"it has no column {', '.join(lacking)}")
        found = typed(found, lambda column: "text" if column in TEXTS or (name == "terms" and column != "task") else "number")
        found = found.fillna({"edge": "", "options": ""}) if name == "trials" else found
        if name == "images_predictions":
            again = found.duplicated([*BLOCK, "objective", "repeat", "teacher_seed"]) & found["repeat"].notna()
            refuse(found["id"], again | found.duplicated([*BLOCK, "id"]), "be the only run of its repeat in the pair")
        return found
    except KdbenchError as error:
        raise KdbenchError(f"{path.name} beside it: {error}; write it again, or remove it") from error


def _manifest_file(path: Path, rows: pd.DataFrame) -> Manifest:
    """The manifest beside a frame, which knows the runs by their ids. Raises KdbenchError where the two contradict each other."""
    try:
        manifest = Manifest.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise KdbenchError(f"manifest.json beside it is damaged: {error}") from error
    if (column := f"{manifest.primary.name}_last") not in rows:
        raise KdbenchError(f"it has no column {column}, the primary metric by manifest.json beside it")
    planned = {cell.id: cell for cell in manifest.cells}
    if strange := [one for one in rows["id"] if one not in planned]:
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        named = f"{', '.join(strange[:NAMED])}{more} (column id)"
        raise KdbenchError(f"manifest.json beside it has no run with the id {named}: move the frame, or remove the manifest")
    for name in RUN:
        for place, run, role, value in zip(rows.index, rows["id"], rows["role"], map(null, rows[name]), strict=True):
            other = getattr(planned[run], name)
            if value != other and not (name == "objective" and role == "teacher"):
                where = f"{name} is {value} ({rows.index.name} {place}), and by manifest.json beside it run {run} has {other}"
                raise KdbenchError(f"{where}: correct the row, or remove the manifest")
    _check_values(rows, manifest.metrics)
    return manifest


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
    _check_values(rows, metrics)
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


def _check_values(rows: pd.DataFrame, metrics: tuple[Metric, ...]) -> None:
    """Raises KdbenchError for a value of a finished run that its metric cannot have. One that diverged may have an infinite loss."""
    for metric, column in itertools.product(metrics, KINDS):
        if (column := f"{metric.name}{column}") in rows:
            values = rows[column].where(rows["state"] == "finished")
            if metric.percent:
                per_cent = "; is it in per cent? Divide the column by 100" if values.between(1, 100, inclusive="right").any() else ""
                refuse(values, values.notna() & ~values.between(0, 1), f"be a fraction between 0 and 1{per_cent}")
            refuse(values, values.abs() > MOST, f"be a finite number of at most {MOST:g}")


def _complete(rows: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Every column that `frame.frame` makes, and a row for each cell of the manifest: one that the file lacks is missing. A student's
    run without a value of the primary metric counts as failed."""
    value, *others = (f"{metric.name}_last" for metric in manifest.metrics)
    columns = dict.fromkeys([*rows, *IDENTITY, value, *others, *CIRCUMSTANCE])
    held = set(rows["id"])
    gone = [{**vars(cell), "label": cell.objective, "state": "missing"} for cell in manifest.reported if cell.id not in held]
    types = {name: {"whole": "Int64", "number": "float64"}.get(kind(name), "object") for name in columns}
    tables = [
        one.reindex(columns=[*columns]).astype(types) for one in (rows, pd.DataFrame(gone).replace({"label": manifest.labels})) if len(one)
    ]
    rows = pd.concat(tables, ignore_index=True)
    empty = (rows["role"] == "student") & (rows["state"] == "finished") & rows[value].isna()
    rows = rows.assign(
        state=rows["state"].mask(empty, "failed"),
        why=rows["why"].where(rows["why"].notna(), "").mask(empty, f"{value} is empty"),
        suite=rows["suite"].where(rows["suite"].notna(), manifest.suite),
    )
    words = [name for name in columns if types[name] == "object"]
    return rows.assign(**{name: rows[name].where(rows[name].notna(), None) for name in words})
