"""A report's frames from files: committed and published results go through the same path as those on disk."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError, KdbenchError, nearest
from kdbench.report.frame import CIRCUMSTANCE, COST_KEYS, COSTS, IDENTITY, PARTS, WHOLE
from kdbench.report.images import Images
from kdbench.report.manifest import Manifest, block_frame, checked
from kdbench.report.notes import NAMED, STATES
from kdbench.stats.repeats import BLOCK, spread_over_blocks

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
IMAGES = ("intervals", "predictions", "checkpoints", "per_class")
NEEDED = ("dataset", "student", "objective")
NUMBERS = ("train_s", "least_gradient")
MEASURED = ("_last", "_best_val", "_best_test")
TEXTS = ("role", "dataset", "teacher", "student", "objective", "label", "id", "state")
FILLED = ("role", "dataset", "student", "id")
KNOWN_STATES = ("finished", *STATES)
EMPTY = ("", "NA", "NaN", "nan")
LABELS = {"top1": "top-1", "top5": "top-5", "acc": "accuracy"}
ACCURACIES = frozenset(("top1", "top5", "top", "acc", "accuracy"))
HIGHER = ACCURACIES | {"f1", "auc", "auroc", "map", "ap", "iou", "miou", "precision", "recall", "bleu", "score"}
LOWER = frozenset(
    ("nll", "loss", "error", "err", "ece", "entropy", "perplexity", "ppl", "rmse", "mae", "mse", "fid", "brier", "wer", "cer")
)
"""Words of a metric's name that say which way is better. A name with words of both kinds (top1_error) is one of LOWER."""
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
        KdbenchError: the file cannot be read, lacks a column, or holds no student's run, a cell that its column cannot hold, one run
            twice, or runs that the manifest beside it does not know.
    """
    rows = read_rows(path)
    beside = path.parent / "manifest.json"
    terms = _beside(path, "terms.csv")
    if beside.is_file():
        manifest = _manifest_file(beside)
        _refuse_strangers(rows, manifest, path)
    else:
        manifest = derived(rows, path.stem, terms)
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
        first = pd.read_csv(_uncommented(path), nrows=0)
        # An id such as 123456789012 or 1234e5678901 is no number.
        words = {str(name): str for name in first if not _numeric(str(name))}
        return pd.read_csv(_uncommented(path), dtype=words, keep_default_na=False, na_values=[""], low_memory=False)
    except (ValueError, OSError) as error:
        raise KdbenchError(f"{path} is no frame: {error}") from error


def _uncommented(path: Path) -> io.StringIO:
    """A file from its first line that begins with no `#`. Further on, `#` is a character like any other: labels and reasons have it."""
    text = path.read_bytes().decode("utf-8-sig")
    while text.startswith("#"):
        text = text.partition("\n")[2]
    return io.StringIO(text, newline="")


def _numeric(name: str) -> bool:
    measured = name.endswith((*MEASURED, "_ms", "_q1", "_q3")) or name.startswith(("test_", "val_"))
    history = ("epoch", "lr", "loss", "raw", "weighted", "gradient_ratio", "weight", "task")
    return measured or name in (*WHOLE, *NUMBERS, *COSTS, "others_at_work", "published_n", "published_sd") or name in history[:3]


def _beside(path: Path, name: str) -> pd.DataFrame | None:
    import pandas as pd

    other = path.parent / name
    if not other.is_file():
        return None
    try:
        found = pd.read_csv(_uncommented(other), dtype={"id": str, "teacher": str, "student": str, "objective": str})
    except ValueError as error:
        raise KdbenchError(f"{other} is no table: {error}") from error
    return found.astype(object).where(found.notna(), None).infer_objects() if name == "costs.csv" else found


def _manifest_file(path: Path) -> Manifest:
    try:
        return checked(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, DamagedError) as error:
        raise KdbenchError(f"{path} is no manifest: {error}") from error


def _refuse_strangers(rows: pd.DataFrame, manifest: Manifest, path: Path) -> None:
    """A manifest tells of the runs of a file by their ids only."""
    if "id" not in rows:
        raise KdbenchError(f"{path} has no column id, so manifest.json beside it knows none of its runs: add the ids or take it away")
    known = {cell["id"] for cell in manifest["cells"]}
    strange = [one for one in _normal(rows)["id"] if one not in known]
    if strange:
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        raise KdbenchError(
            f"{path} holds runs that manifest.json beside it does not know: {', '.join(strange[:NAMED])}{more}; "
            "move the file or take the manifest away"
        )


def derived(rows: pd.DataFrame, name: str, terms: pd.DataFrame | None = None) -> Manifest:
    """The manifest that a frame implies.

    Raises:
        KdbenchError: a column is missing, there is no student's run, a cell is not what its column holds, a run stands there twice, or
            a metric's name does not tell whether higher is better.
    """
    metrics = [str(column).removesuffix("_last") for column in rows if str(column).endswith("_last")]
    rows = _normal(rows, () if metrics else ("<metric>_last (such as top1_last)",))
    students = rows[rows["role"] == "student"]
    if not len(students):
        raise KdbenchError("the frame holds no student's run (role student)")
    blocks = _blocks(students)
    _refuse_twice(rows, blocks, len(rows))
    objectives = students.drop_duplicates("objective")
    whose = {} if terms is None else dict(zip(terms["objective"], map(_null, terms["weight_from"]), strict=True))
    suites = [str(one) for one in rows["suite"].dropna().unique()] if "suite" in rows else []
    teachers = rows[rows["role"] == "teacher"].to_dict(orient="records")
    taught = {(str(line["dataset"]), str(line["student"]), _null(line["teacher_seed"])): str(line["id"]) for line in teachers}
    described = [_metric(metric, rows) for metric in metrics]
    raw: dict[str, Any] = {
        "schema": 1,
        "suite": suites[0] if len(suites) == 1 else name,
        "metrics": described,
        "baselines": _baselines(list(objectives["objective"])),
        **_counts(students),
        "alpha": ALPHA,
        "margin": MARGIN if described[0]["percent"] else None,
        "derived": True,
        "objectives": [
            {"name": line.objective, "label": line.label, "weight_from": whose.get(line.objective)} for line in objectives.itertuples()
        ],
        "blocks": blocks.to_dict(orient="records"),
        "cells": [
            {**{key: _null(line[key]) for key in ("id", "role", "dataset", "student", "teacher", "objective", "repeat", "teacher_seed")}}
            | {"depends": _depends(line, taught)}
            for line in rows.to_dict(orient="records")
        ],
    }
    return checked(raw)


def _counts(students: pd.DataFrame) -> dict[str, int]:
    """How many repeats an objective has in a block, and how many teacher seeds a repeat, where there are most. A run whose repeat is
    null is a repeat of its own, with one teacher."""
    repeats = students.groupby([*BLOCK, "objective"], dropna=False)["repeat"].agg(lambda of: of.nunique() + of.isna().sum())
    numbered = students[students["repeat"].notna()]
    seeds = numbered.groupby([*BLOCK, "objective", "repeat"], dropna=False)["teacher_seed"].nunique()
    return {"repeats": int(repeats.max()), "teacher_seeds": max(1, int(seeds.max()) if len(seeds) else 1)}


def _baselines(names: list[str]) -> list[str]:
    """`ce` and `kd` as the objectives are named here, in whatever case; the one variant of kd where there is no plain one."""
    found = [sorted((name for name in names if name.lower() == wanted), key=lambda name: name != name.lower()) for wanted in ("ce", "kd")]
    variants = [name for name in names if name.lower().startswith("kd:")]
    if not found[1] and len(variants) == 1:
        found[1] = variants
    return [several[0] for several in found if several]


def _depends(line: dict[Any, Any], taught: dict[tuple[str, str, int | None], str]) -> dict[str, str]:
    """The teacher's run, by its dataset, name and seed, where it has a row."""
    found = taught.get((line["dataset"], line["teacher"], _null(line["teacher_seed"])))
    return {} if found is None or line["role"] != "student" else {"teacher": found}


def _metric(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    import numpy as np

    words = set(re.split(r"[_.]", name.lower()))
    lower = bool(words & LOWER)
    if not lower and not words & HIGHER:
        raise KdbenchError(f"the frame does not tell whether a higher {name} is better; put a manifest.json beside it")
    values = rows[f"{name}_last"]
    # A run that diverged may well have an infinite loss: it is never averaged.
    _refuse(values, np.isinf(values) & (rows["state"] == "finished"), "a finite number")
    percent = not lower and bool(words & ACCURACIES)
    if percent:
        _refuse(values, np.isfinite(values) & ~values.between(0, 1), "a fraction between 0 and 1")
    return {"name": name, "label": LABELS.get(name, name), "percent": percent, "higher_is_better": not lower}


def _blocks(students: pd.DataFrame) -> pd.DataFrame:
    """One row a block: dataset, teacher, student. A student alone is a block only where none of its runs has a teacher."""
    import pandas as pd

    found = students.drop_duplicates(list(BLOCK))
    taught = {(line.dataset, line.student) for line in found.itertuples() if line.teacher is not None}
    kept = [line for line in found.itertuples() if line.teacher is not None or (line.dataset, line.student) not in taught]
    return pd.DataFrame([(line.dataset, line.teacher, line.student) for line in kept], columns=list(BLOCK), dtype=object)


def _refuse_twice(rows: pd.DataFrame, blocks: pd.DataFrame, held: int) -> None:
    """Two runs where there is one: the statistics would have to choose. The first `held` rows are the frame's, the others missing."""
    students = rows[(rows["role"] == "student") & rows["repeat"].notna()]
    key = [*BLOCK, "objective", "repeat", "teacher_seed"]
    spread = spread_over_blocks(students[[*key, "id"]].assign(place=students.index), blocks)
    again = spread.duplicated(key)
    if not again.any():
        return
    run_of = spread.groupby(key, dropna=False).ngroup()
    second = int(again.to_numpy().argmax())
    first, later = spread.iloc[int((run_of == run_of.iloc[second]).to_numpy().argmax())], spread.iloc[second]
    one, other = (f"row {run['place'] + 1}" if run["place"] < held else f"run {run['id']} of the manifest" for run in (first, later))
    said = ", ".join(f"{column} {later[column]}" for column in key if _null(later[column]) is not None)
    raise KdbenchError(f"{one} and {other} are runs of one {said}: keep one of them, or give them other repeats or teacher seeds")


def _null(value: Any) -> Any:
    """A missing value of pandas' as None; numbers as Python has them."""
    if value is None or str(value) == "<NA>" or value != value:
        return None
    number = isinstance(value, float) or (hasattr(value, "item") and not isinstance(value, str))
    return int(value) if number and float(value).is_integer() else value


def _text(value: Any) -> str | None:
    value = _null(value)
    return None if value is None or value == "" else str(value)


def _normal(rows: pd.DataFrame, lacking: tuple[str, ...] = ()) -> pd.DataFrame:
    """The rows with the columns that say what a run is, and numbers as numbers: an absent role is a student's, an absent id is made
    from its place."""
    import pandas as pd

    missing = [*(column for column in NEEDED if column not in rows), *lacking]
    if missing:
        raise KdbenchError(f"the frame has no column {', '.join(missing)}; its columns are {', '.join(map(str, rows.columns))}")
    rows = rows.reset_index(drop=True)
    given: dict[str, Any] = {"role": "student", "teacher": None, "state": "finished", "repeat": pd.NA, "teacher_seed": pd.NA}
    rows = rows.assign(**{name: value for name, value in given.items() if name not in rows})
    if "label" not in rows:
        rows = rows.assign(label=rows["objective"])
    if "id" not in rows:
        rows = rows.assign(id=[hashlib.sha256(f"row {place}".encode()).hexdigest()[:12] for place in rows.index])
    texts = {name: pd.Series([_text(value) for value in rows[name]], dtype=object, name=name) for name in TEXTS}
    rows = rows.assign(**(texts | {"label": texts["label"].where(texts["label"].notna(), texts["objective"])}))
    for name in (*FILLED, "objective"):
        _refuse(rows[name], rows[name].isna() & ((name in FILLED) | (rows["role"] == "student")), "filled")
    _refuse(rows["state"], ~rows["state"].isin(KNOWN_STATES), f"one of {', '.join(KNOWN_STATES)}")
    twice = rows["id"].duplicated()
    if twice.any():
        raise KdbenchError(f"run {rows.loc[twice, 'id'].iloc[0]} stands in {int(twice.sum()) + 1} rows of the frame: each run has one")
    whole = {name: _repeats(rows[name]) if name == "repeat" else _numbers(rows[name], True) for name in WHOLE if name in rows}
    numbers = {str(name): _numbers(rows[name]) for name in _measured(rows)}
    return rows.assign(**numbers, **whole)


def _measured(rows: pd.DataFrame) -> list[str]:
    return [str(name) for name in rows if str(name).endswith(MEASURED) or name in NUMBERS]


def _empty(cells: pd.Series) -> pd.Series:
    return cells.isna() | cells.astype(str).str.strip().isin(EMPTY)


def _numbers(cells: pd.Series, whole: bool = False) -> pd.Series:
    """A column as float64 (NaN where a cell is empty), or `whole` as Int64.

    Raises:
        KdbenchError: a cell holds something else.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
        numbers = cells.astype("float64")
    else:
        empty = _empty(cells)
        numbers = pd.to_numeric(cells.astype(str).mask(empty), errors="coerce").astype("float64")
        _refuse(cells, numbers.isna() & ~empty, "a number")
    if not whole:
        return numbers
    _refuse(cells, numbers.notna() & ~(numbers % 1 == 0), "a whole number")
    return numbers.astype("Int64")


def _repeats(cells: pd.Series) -> pd.Series:
    """Repeats as whole numbers. Words (s0, s1) are labels, which are numbered as they first appear."""
    import pandas as pd

    named = cells[~_empty(cells)].astype(str).str.strip()
    if not pd.to_numeric(named, errors="coerce").isna().any():
        return _numbers(cells, True)
    order = {label: number for number, label in enumerate(named.unique())}
    return named.map(order).reindex(cells.index).astype("Int64")


def _refuse(cells: pd.Series, wrong: pd.Series, wanted: str) -> None:
    """Raise with the first wrong cell of a column; rows are counted from 1, without the header."""
    if not wrong.any():
        return
    place = int(wrong.to_numpy().argmax())
    value = cells.iloc[place]
    held = "is empty" if _text(value) is None else f"holds '{value}'" if isinstance(value, str) else f"holds {value}"
    raise KdbenchError(f"{cells.name} is to be {wanted}, and {held} (row {place + 1})")


def _complete(rows: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Every column that `frame.frame` makes, and a row for each cell of the manifest: one that the file lacks is missing."""
    import pandas as pd

    rows = _normal(rows)
    held = len(rows)
    metrics = [f"{metric['name']}_last" for metric in manifest["metrics"]]
    absent = [name for name in (*IDENTITY, *metrics, *CIRCUMSTANCE) if name not in rows]
    rows = rows.assign(**dict.fromkeys(map(str, absent)))
    wanted = pd.DataFrame([{key: value for key, value in cell.items() if key != "depends"} for cell in manifest["cells"]])
    gone = wanted[~wanted["id"].isin(rows["id"])]
    if len(gone):
        gone = gone.assign(suite=manifest["suite"], label=gone["objective"], state="missing", why="")
        rows = pd.concat([rows.astype(object), gone.reindex(columns=rows.columns).astype(object)], ignore_index=True)
    rows = rows.assign(why=rows["why"].fillna(""), suite=rows["suite"].fillna(manifest["suite"]))
    numeric = _measured(rows)
    rows = rows.astype({**dict.fromkeys(WHOLE, "Int64"), **dict.fromkeys(numeric, "float64")})
    _refuse_twice(rows, block_frame(manifest), held)
    words = [name for name in rows if rows[name].dtype != "Int64" and name not in numeric]
    return rows.assign(**{str(name): rows[name].astype(object).where(rows[name].notna(), None) for name in words})


def no_costs() -> pd.DataFrame:
    """The frame of costs with no row."""
    import pandas as pd

    times = [f"{part}_ms{suffix}" for part in PARTS for suffix in ("", "_q1", "_q3")]
    return pd.DataFrame(columns=[*COST_KEYS, *times, *COSTS, "others_at_work", "device"])
