"""A report's frames from files: committed and published results go through the same path as those on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError, KdbenchError, nearest
from kdbench.report.frame import CIRCUMSTANCE, COST_KEYS, COSTS, IDENTITY, PARTS, WHOLE
from kdbench.report.images import Images
from kdbench.report.manifest import Manifest, checked

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
IMAGES = ("intervals", "predictions", "checkpoints", "per_class")
NEEDED = ("dataset", "student", "objective")
NUMBERS = ("train_s", "least_gradient")
PERCENT = {"top1": "top-1", "top5": "top-5", "acc": "accuracy", "accuracy": "accuracy"}
LOWER = ("nll", "loss", "error", "ece")
DEFAULT_BASELINES = ("ce", "kd")
ALPHA, MARGIN = 0.05, 0.002


@dataclass(frozen=True)
class FromFile:
    """What lies in and beside a frame file; None where there is no such file."""

    manifest: Manifest
    runs: pd.DataFrame
    costs: pd.DataFrame
    histories: pd.DataFrame | None
    terms: pd.DataFrame | None
    images: Images | None


def read(path: Path) -> FromFile:
    """A frame file (a row a run: .csv or .parquet), with `manifest.json`, `costs.csv`, `histories.csv` and `terms.csv` of its folder
    where they are there. Without a manifest, its facts are taken from the rows: objectives, blocks and repeats as they stand there,
    the baselines `ce` and `kd`, and every objective with every baseline in every block as the family.

    Raises:
        KdbenchError: the file cannot be read, lacks a column, or holds no student's run.
    """
    rows = read_rows(path)
    beside = path.parent / "manifest.json"
    terms = _beside(path, "terms.csv")
    manifest = _manifest_file(beside) if beside.is_file() else derived(rows, path.stem, terms)
    costs = _beside(path, "costs.csv")
    images = {name: _beside(path, f"images_{name}.csv") for name in IMAGES}
    return FromFile(
        manifest,
        _complete(rows, manifest),
        no_costs() if costs is None else costs,
        _beside(path, "histories.csv"),
        terms,
        Images(**images) if all(table is not None for table in images.values()) else None,  # type: ignore[arg-type]
    )


def of_rows(rows: pd.DataFrame, name: str) -> FromFile:
    """The same from rows that lie in no file, such as a published table's (`published.as_runs`)."""
    manifest = derived(rows, name)
    return FromFile(manifest, _complete(rows, manifest), no_costs(), None, None, None)


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a frame file, with ids and digests as text and empty boxes as null.

    Raises:
        KdbenchError: there is no such file, or it is no table.
    """
    import pandas as pd

    if not path.is_file():
        near = nearest(path.name, [one.name for one in path.parent.glob("*") if one.suffix in SUFFIXES]) if path.parent.is_dir() else ""
        raise KdbenchError(f"there is no file {path}{near}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        first = pd.read_csv(path, nrows=0, comment="#")
        # An id such as 123456789012 or 1234e5678901 is no number.
        words = {str(name): str for name in first if not _numeric(str(name))}
        return pd.read_csv(path, dtype=words, keep_default_na=False, na_values=[""], comment="#")
    except (ValueError, OSError) as error:
        raise KdbenchError(f"{path} is no frame: {error}") from error


def _numeric(name: str) -> bool:
    measured = name.endswith(("_last", "_best_val", "_best_test", "_ms", "_q1", "_q3")) or name.startswith(("test_", "val_"))
    history = ("epoch", "lr", "loss", "raw", "weighted", "gradient_ratio", "weight", "task")
    return measured or name in (*WHOLE, *NUMBERS, *COSTS, "others_at_work", "published_n", "published_sd") or name in history[:3]


def _beside(path: Path, name: str) -> pd.DataFrame | None:
    import pandas as pd

    other = path.parent / name
    if not other.is_file():
        return None
    try:
        found = pd.read_csv(other, dtype={"id": str, "teacher": str, "student": str, "objective": str}, comment="#")
    except ValueError as error:
        raise KdbenchError(f"{other} is no table: {error}") from error
    return found.astype(object).where(found.notna(), None).infer_objects() if name == "costs.csv" else found


def _manifest_file(path: Path) -> Manifest:
    try:
        return checked(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, DamagedError) as error:
        raise KdbenchError(f"{path} is no manifest: {error}") from error


def derived(rows: pd.DataFrame, name: str, terms: pd.DataFrame | None = None) -> Manifest:
    """The manifest that a frame implies.

    Raises:
        KdbenchError: a column is missing, or there is no student's run.
    """
    missing = [column for column in NEEDED if column not in rows]
    metrics = [str(column).removesuffix("_last") for column in rows if str(column).endswith("_last")]
    if not metrics:
        missing.append("<metric>_last (such as top1_last)")
    if missing:
        raise KdbenchError(f"the frame has no column {', '.join(missing)}; its columns are {', '.join(map(str, rows.columns))}")
    rows = _normal(rows)
    students = rows[rows["role"] == "student"]
    if not len(students):
        raise KdbenchError("the frame holds no student's run (role student)")
    objectives = students.drop_duplicates("objective")
    whose = {} if terms is None else dict(zip(terms["objective"], terms["weight_from"], strict=True))
    names = list(objectives["objective"])
    suites = [one for one in rows["suite"].dropna().unique()] if "suite" in rows else []
    teachers = rows[rows["role"] == "teacher"].to_dict(orient="records")
    taught = {(str(line["student"]), _null(line["teacher_seed"])): str(line["id"]) for line in teachers}
    raw: dict[str, Any] = {
        "schema": 1,
        "suite": suites[0] if len(suites) == 1 else name,
        "metrics": [_metric(metric, rows) for metric in metrics],
        "baselines": [one for one in DEFAULT_BASELINES if one in names],
        "repeats": int(students.groupby(["dataset", "student", "teacher", "objective"], dropna=False)["repeat"].size().max()),
        "teacher_seeds": int(max(1, students["teacher_seed"].nunique())),
        "alpha": ALPHA,
        "margin": MARGIN if _metric(metrics[0], rows)["percent"] else None,
        "objectives": [
            {"name": line.objective, "label": line.label, "weight_from": whose.get(line.objective)} for line in objectives.itertuples()
        ],
        "blocks": _blocks(students),
        "cells": [
            {**{key: _null(line[key]) for key in ("id", "role", "dataset", "student", "teacher", "objective", "repeat", "teacher_seed")}}
            | {"depends": _depends(line, taught)}
            for line in rows.to_dict(orient="records")
        ],
    }
    return checked(raw)


def _depends(line: dict[Any, Any], taught: dict[tuple[str, int | None], str]) -> dict[str, str]:
    """The teacher's run, by its name and seed, where it has a row."""
    found = taught.get((line["teacher"], _null(line["teacher_seed"])))
    return {} if found is None or line["role"] != "student" else {"teacher": found}


def _metric(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    values = rows[f"{name}_last"].dropna()
    percent = name in PERCENT and (not len(values) or bool(values.between(0, 1).all()))
    return {"name": name, "label": PERCENT.get(name, name), "percent": percent, "higher_is_better": not name.startswith(LOWER)}


def _blocks(students: pd.DataFrame) -> list[dict[str, Any]]:
    found = students.drop_duplicates(["dataset", "teacher", "student"])
    taught = {(line.dataset, line.student) for line in found.itertuples() if line.teacher is not None}
    return [
        {"dataset": line.dataset, "teacher": line.teacher, "student": line.student}
        for line in found.itertuples()
        if line.teacher is not None or (line.dataset, line.student) not in taught
    ]


def _null(value: Any) -> Any:
    """A missing value of pandas' as None; numbers as Python has them."""
    if value is None or value != value or str(value) == "<NA>":
        return None
    return int(value) if hasattr(value, "item") and float(value).is_integer() else value


def _normal(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns that say what a run is: an absent role is a student's, an absent id is made from its place."""
    import pandas as pd

    rows = rows.reset_index(drop=True)
    given: dict[str, Any] = {"role": "student", "teacher": None, "state": "finished", "repeat": pd.NA, "teacher_seed": pd.NA}
    rows = rows.assign(**{name: value for name, value in given.items() if name not in rows})
    if "label" not in rows:
        rows = rows.assign(label=rows["objective"])
    if "id" not in rows:
        rows = rows.assign(id=[hashlib.sha256(f"row {place}".encode()).hexdigest()[:12] for place in rows.index])
    texts = ("role", "dataset", "teacher", "student", "objective", "label", "id", "state")
    plain = {name: rows[name].astype(object).where(rows[name].notna(), None) for name in texts}
    twice = rows["id"].duplicated()
    if twice.any():
        raise KdbenchError(f"run {rows.loc[twice, 'id'].iloc[0]} stands in {int(twice.sum()) + 1} rows of the frame: each run has one")
    return rows.assign(**plain).astype(dict.fromkeys(("repeat", "teacher_seed"), "Int64"))


def _complete(rows: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Every column that `frame.frame` makes, and a row for each cell of the manifest: one that the file lacks is missing."""
    import pandas as pd

    rows = _normal(rows)
    metrics = [f"{metric['name']}_last" for metric in manifest["metrics"]]
    absent = [name for name in (*IDENTITY, *metrics, *CIRCUMSTANCE) if name not in rows]
    rows = rows.assign(**dict.fromkeys(map(str, absent)))
    wanted = pd.DataFrame([{key: value for key, value in cell.items() if key != "depends"} for cell in manifest["cells"]])
    gone = wanted[~wanted["id"].isin(rows["id"])]
    if len(gone):
        gone = gone.assign(suite=manifest["suite"], label=gone["objective"], state="missing", why="")
        rows = pd.concat([rows.astype(object), gone.reindex(columns=rows.columns).astype(object)], ignore_index=True)
    rows = rows.assign(why=rows["why"].fillna(""), suite=rows["suite"].fillna(manifest["suite"]))
    numeric = [name for name in rows if str(name).endswith(("_last", "_best_val", "_best_test")) or name in NUMBERS]
    rows = rows.astype({**dict.fromkeys(WHOLE, "Int64"), **dict.fromkeys(numeric, "float64")})
    words = [name for name in rows if rows[name].dtype != "Int64" and name not in numeric]
    return rows.assign(**{str(name): rows[name].astype(object).where(rows[name].notna(), None) for name in words})


def no_costs() -> pd.DataFrame:
    """The frame of costs with no row."""
    import pandas as pd

    times = [f"{part}_ms{suffix}" for part in PARTS for suffix in ("", "_q1", "_q3")]
    return pd.DataFrame(columns=[*COST_KEYS, *times, *COSTS, "others_at_work", "device"])
