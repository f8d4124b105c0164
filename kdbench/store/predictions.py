"""The predictions.npz of each cell: read once, checked by themselves and against the records, and reduced to what a report needs."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import DamagedError
from kdbench.manifest import Manifest
from kdbench.stats.average_precision import Matches
from kdbench.stats.calibration import log_probabilities, mean_divergence
from kdbench.stats.predictions import KINDS, Kept, Predictions, Read
from kdbench.store.store import Store

UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error)
"""Whatever NumPy and zipfile raise for a file that is cut or altered."""

Logits = np.ndarray | None


def read_predictions(store: Store, manifest: Manifest, runs: pd.DataFrame) -> tuple[pd.DataFrame, Read]:
    """Read the predictions of every run, once each. What is wrong with a file is never fatal.

    Args:
        runs: as `frame.frame` makes it.

    Returns:
        the runs, of which those that contradict their own predictions are damaged, with the metrics that their records lack (they may be
        older than the metric) and their predictions have; and the predictions of each run, or why it has none, by id (nothing for a task
        without a metric that follows from its predictions).
    """
    metric = next((one for one in manifest.metrics if one.per_image in KINDS), None)
    if metric is None:
        return runs, {}
    found: dict[str, Kept | str] = {}
    damaged: dict[str, str] = {}
    digests: dict[str, Counter[bytes]] = defaultdict(Counter)
    column = f"{metric.name}_last"
    needed = runs[["id", "dataset", "state", "n_test", column]].to_dict(orient="records")
    teachers, of_teacher = manifest.compared_teachers, lru_cache(maxsize=32)(partial(_logits_of, store))
    for run in sorted(needed, key=lambda run: run["id"] in teachers):  # what students are compared with comes first
        found[run["id"]] = f"the run is {run['state']}"
        if run["state"] == "finished":
            try:
                raw = store.read_bytes(store.file(run["id"], "predictions.npz"))
                found[run["id"]] = one = predictions(raw, KINDS[metric.per_image])
            except DamagedError as error:
                found[run["id"]] = str(error)
                continue
            if why := _contradiction(one, run["n_test"], run[column], column):
                found[run["id"]] = damaged[run["id"]] = why
                continue
            digests[run["dataset"]][one.digest] += 1
            if isinstance(one, Predictions):
                others = [(other, found.get(other)) for other in teachers.get(run["id"], ())]
                theirs = [other for other, its in others if isinstance(its, Predictions) and its.digest == one.digest]
                found[run["id"]] = _with_divergences(one, raw or b"", theirs, of_teacher)
    usual = {dataset: counts.most_common(1)[0][0] for dataset, counts in digests.items()}
    for run in needed:
        if isinstance(held := found[run["id"]], Kept) and held.digest != usual[run["dataset"]]:
            found[run["id"]] = "its predictions are of other images than those of the other runs of this dataset"
    wrong = runs["id"].isin(damaged)
    runs = runs.assign(**{name: runs[name].fillna(values) for name, values in _from_predictions(manifest, runs["id"], found).items()})
    return runs.assign(state=runs["state"].mask(wrong, "damaged"), why=runs["id"].map(damaged).where(wrong, runs["why"])), found


def _with_divergences(one: Predictions, raw: bytes, teachers: Sequence[str], of_teacher: Callable[[str, int], Logits]) -> Predictions:
    """A student's predictions with their KL from its teachers, where both files hold logits, a row an image."""
    try:
        mine, values = _logits(raw, len(one.correct)) if teachers else None, {}
        for other in teachers:
            theirs = of_teacher(other, len(one.correct))
            if mine is not None and theirs is not None:
                values[other] = mean_divergence(theirs, mine)
                if not np.isfinite(values[other]):
                    raise ValueError("it is not finite")
        return replace(one, kl=values)
    except UNREADABLE as error:
        return replace(one, kl_why=f"its logits, or its teacher's, cannot be used: {type(error).__name__}")


def _logits_of(store: Store, cell_id: str, images: int) -> Logits:
    return _logits(store.read_bytes(store.file(cell_id, "predictions.npz")) or b"", images)


def _logits(raw: bytes, images: int) -> Logits:
    """Log-probabilities; None where a file holds no logits of so many images."""
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        held = _array(file.read("logits.npy")) if "logits.npy" in file.NameToInfo else np.zeros(0)
    return log_probabilities(held) if held.ndim == 2 and len(held) == images else None


def _from_predictions(manifest: Manifest, ids: pd.Series, found: Read) -> dict[str, pd.Series]:
    """The columns of metrics at the last epoch that follow from predictions, with NaN for a run without them."""
    known = [one.metrics if isinstance(one := found[run], Kept) else {} for run in ids]
    return {
        f"{metric.name}_last": pd.Series([values.get(metric.per_image or metric.name, nan) for values in known], ids.index, dtype="float64")
        for metric in manifest.metrics
    }


def _contradiction(one: Kept, n_test: Any, value: float, column: str) -> str:
    """What of the record is not what its predictions show; empty where both agree."""
    why = one.contradiction(value, column)
    if not pd.isna(n_test) and one.n_images != n_test:
        why = f"n_test is {n_test}, and {one.n_images} images are predicted"
    return f"its record contradicts its predictions: {why}" if why else ""


def predictions(raw: bytes | None, kind: type[Predictions] | type[Matches] = Predictions) -> Kept:
    """What a file holds. Raises DamagedError where there is none, or it does not hold valid predictions of this kind."""
    if raw is None:
        raise DamagedError("its predictions are not there")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as file:
            lacking = [name for name in kind.columns if f"{name}.npy" not in file.NameToInfo]
            columns = {name: _array(file.read(f"{name}.npy")) for name in kind.columns if name not in lacking}
    except UNREADABLE as error:
        raise DamagedError(f"its predictions are damaged: {type(error).__name__}") from error
    if lacking:
        raise DamagedError(f"its predictions lack {', '.join(lacking)}")
    try:
        return kind.of(columns)
    except ValueError as error:
        raise DamagedError(f"its predictions are damaged: {error}") from error


def _array(raw: bytes) -> np.ndarray:
    """What np.load finds in a member of an archive. Ten thousand runs have the same headers: parsed once, they cost 2 s less."""
    start = 10 + int.from_bytes(raw[8:10], "little")
    shape, dtype = _form(raw[:start])
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=100)
def _form(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    from numpy.lib import format as npy

    file = io.BytesIO(header)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("no .npy file of version 1.0")
    shape, _, dtype = npy.read_array_header_1_0(file)
    return shape, dtype
