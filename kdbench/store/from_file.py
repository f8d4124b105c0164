"""A report's frames from files: committed and published results go through the same path as those on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.manifest import Manifest
from kdbench.stats.predictions import FRAMES as IMAGE_FRAMES
from kdbench.stats.predictions import ImageStatistics
from kdbench.stats.repeats import BLOCK
from kdbench.store import features
from kdbench.store import histories as history
from kdbench.store.derived_manifest import check_values, derived
from kdbench.store.frame import CIRCUMSTANCE, COST_COLUMNS, IDENTITY, cost_frame
from kdbench.store.frame_files import NAMES, RUN, kind, normal, read_rows
from kdbench.store.tables import about, null, read_csv, refuse, typed
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
    check_values(rows, manifest.metrics)
    return manifest


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
