"""A report's frames from files: committed and published results go through the same path as those on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.errors import KdbenchError, shown
from kdbench.manifest import COMMON_METRICS, Block, Manifest, ManifestCell, ManifestObjective, Metric
from kdbench.report.frame import CIRCUMSTANCE, COST_COLUMNS, IDENTITY, KINDS, WHOLE, cost_frame, frame
from kdbench.report.notes import NAMED, STATES
from kdbench.stats.predictions import FRAMES as IMAGE_FRAMES
from kdbench.stats.predictions import ImageStatistics
from kdbench.stats.repeats import BLOCK, spread_over_blocks
from kdbench.store import Store
from kdbench.store import histories as history
from kdbench.store.tables import EMPTY, MOST, SUFFIXES, about, null, number, read_csv, read_table, refuse, text, typed

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
BESIDE = {
    "costs": COST_COLUMNS,
    "histories": (*history.NAMES, *history.EPOCH),
    "terms": history.TERMS,
    **{f"images_{name}": columns for name, columns in IMAGE_FRAMES.items()},
}
"""The files that may lie beside a frame, and what they must hold."""
TEXTS = (*NAMES, "baseline", "term", "why", "device")
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
        whole = ImageStatistics(**images) if len(images["predictions"]) else None
        if whole and manifest.primary != primary:
            whole = replace(whole, intervals=whole.intervals[:0], checkpoints=whole.checkpoints[:0])
        return FromFile(manifest, _complete(rows, manifest), **{"costs": cost_frame(), **known}, images=whole)


def of_rows(rows: pd.DataFrame, name: str, metric: str | None = None) -> FromFile:
    """The same from rows that lie in no file, such as a published table's (`published.as_runs`)."""
    rows = _normal(rows)
    manifest = derived(rows, name)
    manifest = manifest.compared_by(metric) if metric else manifest
    return FromFile(manifest, _complete(rows, manifest), cost_frame())


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
        return _normal(rows)


def _beside(path: Path, name: str) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        found = read_csv(path)
        if lacking := [column for column in BESIDE[name] if column not in found]:
            raise KdbenchError(f"it has no column {', '.join(lacking)}")
        found = typed(found, lambda column: "text" if column in TEXTS or (name == "terms" and column != "task") else "number")
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
                cells.append({"id": _made_id(named), "role": "student", **named, "teacher_seed": None})
    taught = {(cell["dataset"], cell["student"], cell["teacher_seed"]): cell["id"] for cell in cells if cell["role"] == "teacher"}
    found = []
    for cell in cells:
        teacher = taught.get((cell["dataset"], cell["teacher"], cell["teacher_seed"])) if cell["role"] == "student" else None
        found.append(ManifestCell(**cell, depends={"teacher": teacher} if teacher else {}))
    return tuple(found)


def _made_id(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def _kind(column: str) -> str:
    """The kind of a frame's column, as `tables.typed` has them."""
    measured = column.endswith(KINDS) or column in NUMBERS
    return "whole" if column in WHOLE else "number" if measured else "name" if column in NAMES else "text"


def _normal(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns that say what a run is, names as clean text and numbers as numbers: an absent role is a student's, an
    absent id is made from its place."""
    _check_columns([str(name) for name in rows])
    rows = rows.rename(columns=str).drop(columns="", errors="ignore")  # an index that was written along has no name
    if not len(rows):
        raise KdbenchError("it has no rows")
    if rows.index.name != "line":
        rows = rows.set_axis(pd.RangeIndex(1, len(rows) + 1, name="row"))
    absent: dict[str, Any] = {"role": "student", "teacher": None, "state": "finished", "repeat": None, "teacher_seed": None}
    absent |= {"label": rows["objective"], "id": [_made_id(place) for place in range(len(rows))]}
    rows = rows.assign(**{name: value for name, value in absent.items() if name not in rows})
    rows = typed(rows.assign(repeat=_numbered(rows["repeat"])), _kind)
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
    gone = [{**vars(cell), "label": cell.objective, "state": "missing"} for cell in manifest.cells if cell.id not in held]
    types = {name: {"whole": "Int64", "number": "float64"}.get(_kind(name), "object") for name in columns}
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
