"""What the page tells of each run: its place in the matrix, configuration, curve and failure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError, KdbenchError
from kdbench.report.frame import IDENTITY
from kdbench.report.manifest import Manifest

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.store import Store

KINDS = ("_last", "_best_val", "_best_test")
"""Ends of the columns that hold metrics."""
WITH_FAILURE = ("failed", "blocked", "damaged")
"""States that a failure file explains; that of a run which goes on, or has finished since, is of an earlier attempt."""


@dataclass(frozen=True)
class Curve:
    """A quantity of one run over its epochs. `epochs` are epochs trained: 1 is the end of the first, 0 before any. `values` are as
    stored; `percent`: printed in per cent."""

    label: str
    percent: bool
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class RunDetails:
    """One run. `metrics` holds the metric columns of its row as stored, those in `percent` are printed in per cent; `circumstance`
    whatever else its row says (images, device, code version, seconds); `no_config` why there is no configuration."""

    id: str
    role: str
    dataset: str
    teacher: str | None
    student: str
    objective: str | None
    label: str | None
    repeat: int | None
    teacher_seed: int | None
    state: str
    why: str
    metrics: Mapping[str, float | None]
    percent: frozenset[str]
    circumstance: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    no_config: str = ""
    curve: Curve | None = None
    failure: Mapping[str, Any] | None = None


def run_details(
    store: Store | None, manifest: Manifest | None, table: pd.DataFrame, histories: pd.DataFrame | None = None
) -> list[RunDetails]:
    """Everything known of each run, in the order of the rows.

    Args:
        store: where configurations, failures and, unless `histories` is given, histories are read; None where there are only frames.
        manifest: names and units of the metrics; None: the first metric column is the primary one, printed as stored.
        table: one row a run, as `frame.frame` makes it or as it was read from a file.
        histories: as `history.histories` makes it.
    """
    metrics = [str(name) for name in table.columns if str(name).endswith(KINDS)]
    percent = frozenset(f"{one['name']}{kind}" for one in (manifest["metrics"] if manifest else []) if one["percent"] for kind in KINDS)
    shown = _shown(manifest, metrics)
    curves = {} if histories is None else _curves(histories, shown)
    found = []
    for raw in table.to_dict(orient="records"):
        row = {str(name): _plain(value) for name, value in raw.items()}
        run_id = str(row.get("id") or "")
        config, no_config = _config(store, run_id)
        curve = _curve_of_record(store, run_id, shown) if store and histories is None else curves.get(run_id)
        found.append(
            RunDetails(
                **_identity(row, run_id),
                metrics={name: row[name] for name in metrics},
                percent=percent,
                circumstance={name: value for name, value in row.items() if name not in (*IDENTITY, *metrics, "why") and value is not None},
                config=config,
                no_config=no_config,
                curve=curve,
                failure=store.failure(run_id) if store and row.get("state") in WITH_FAILURE else None,
            )
        )
    return found


def _identity(row: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    words = {name: str(row.get(name) or "") for name in ("role", "dataset", "student", "state", "why")}
    names = {name: None if row.get(name) is None else str(row[name]) for name in ("teacher", "objective", "label")}
    # A file's column of whole numbers with gaps comes back as floats.
    numbers = {name: None if row.get(name) is None else int(row[name]) for name in ("repeat", "teacher_seed")}
    return {"id": run_id, **words, **names, **numbers}


def _plain(value: Any) -> Any:
    """A value of a frame as JSON knows it; None for whatever is null."""
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


def _config(store: Store | None, run_id: str) -> tuple[Mapping[str, Any] | None, str]:
    if store is None:
        return None, "the report was made from a file of rows, which holds none"
    try:
        return store.cell(run_id).config, ""
    except KdbenchError as error:
        return None, str(error)


def _shown(manifest: Manifest | None, metrics: list[str]) -> tuple[str, str, bool]:
    """Name, label and unit of the metric whose curve is drawn."""
    if manifest:
        first = manifest["metrics"][0]
        return first["name"], first["label"], first["percent"]
    name = next((name.removesuffix("_last") for name in metrics if name.endswith("_last")), "")
    return name, name, False


def _curve_of_record(store: Store, run_id: str, shown: tuple[str, str, bool]) -> Curve | None:
    try:
        record = store.record(run_id)
    except DamagedError:
        return None  # the row says so
    history = (record.result.get("history") or []) if record else []
    name, label, percent = shown
    tested = _curve(f"test {label}", percent, ((entry.get("epoch"), entry.get("test", {}).get(name)) for entry in history))
    return tested or _curve("training loss", False, ((entry.get("epoch"), entry.get("loss")) for entry in history))


def _curves(histories: pd.DataFrame, shown: tuple[str, str, bool]) -> dict[str, Curve]:
    """The curve of each run that has epochs: the primary metric on the test set, or the loss where none was evaluated."""
    name, label, percent = shown
    epochs = histories[histories["term"] == "task"]
    found: dict[str, Curve] = {}
    for column, said, scaled in (("loss", "training loss", False), (f"test_{name}", f"test {label}", percent)):
        if column not in epochs:
            continue
        kept = epochs[epochs[column].notna()]
        for run_id, mine in kept.groupby("id", sort=False):
            curve = _curve(said, scaled, zip(mine["epoch"].tolist(), mine[column].tolist(), strict=True))
            found |= {str(run_id): curve} if curve else {}
    return found


def _curve(label: str, percent: bool, points: Iterable[tuple[Any, Any]]) -> Curve | None:
    kept = sorted((int(epoch) + 1, float(value)) for epoch, value in points if epoch is not None and value is not None)
    kept = [(epoch, value) for epoch, value in kept if math.isfinite(value)]
    return Curve(label, percent, tuple(epoch for epoch, _ in kept), tuple(value for _, value in kept)) if kept else None
