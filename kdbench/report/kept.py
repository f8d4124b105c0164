"""The predictions.npz of a cell: read, checked against the cell's record, and boiled down to what a report needs of it."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError
from kdbench.stats.calibration import class_accuracy, expected_calibration_error

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from kdbench.store import Store

COLUMNS = ("target", "correct", "nll", "predicted", "confidence")
UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""Whatever NumPy and zipfile raise for a file that is cut or altered."""


@dataclass(frozen=True)
class Kept:
    """The predictions of one cell, as far as they are needed.

    digest: of the targets; correct: [images], bool; predicted: [images], int32; by_class: [classes], accuracies; nll (nats),
    ece and confidence: over all images.
    """

    digest: bytes
    correct: np.ndarray
    predicted: np.ndarray
    by_class: np.ndarray
    nll: float
    ece: float
    confidence: float


def read_all(store: Store, runs: pd.DataFrame) -> tuple[dict[str, Kept], dict[str, str]]:
    """The predictions of each cell of one dataset that has them, and the reason of each that has not, by id; each is read once.

    Args:
        runs: id, state, value (the accuracy of the record, a fraction), n_test, mixed_data; a run may stand there several times.
    """
    kept: dict[str, Kept] = {}
    why: dict[str, str] = {}
    for run in runs.drop_duplicates("id").sort_values("id").to_dict(orient="records"):
        if run["state"] != "finished":
            why[run["id"]] = f"the run is {run['state']}"
            continue
        if run["value"] != run["value"]:
            why[run["id"]] = "the run is on different data" if run.get("mixed_data") else "the run has no value"
            continue
        try:
            kept[run["id"]] = _checked(columns(store, run["id"], COLUMNS), run)
        except DamagedError as error:
            why[run["id"]] = str(error)
    digests = Counter(one.digest for one in kept.values())
    for cell_id in [cell_id for cell_id, one in kept.items() if one.digest != digests.most_common(1)[0][0]]:
        del kept[cell_id]
        why[cell_id] = "its predictions are of other images than those of the other runs of this dataset"
    return kept, why


def columns(store: Store, cell_id: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a cell's predictions, all [images].

    Raises:
        DamagedError: they are not there, cannot be read, or do not fit each other.
    """
    import numpy as np

    try:
        # Opened here: NumPy leaves a file open that turns out to be no archive.
        with open(store.file(cell_id, "predictions.npz"), "rb") as raw, np.load(raw) as file:
            lacking = [name for name in names if name not in file.files]
            found = {name: file[name] for name in names if name not in lacking}
    except FileNotFoundError:
        raise DamagedError("its predictions are not there") from None
    except UNREADABLE as error:
        raise DamagedError(f"its predictions are damaged: {type(error).__name__}") from error
    if lacking:
        raise DamagedError(f"its predictions lack {', '.join(lacking)}: an earlier version of kdbench kept them")
    shapes = {column.shape for column in found.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise DamagedError("its predictions are damaged: the columns do not have one number an image")
    whole = all(np.issubdtype(found[name].dtype, np.integer) for name in ("target", "predicted"))
    if not whole or (found["target"].size and found["target"].min() < 0):
        raise DamagedError("its predictions are damaged: target and predicted are no classes")
    return found


def _checked(found: Mapping[str, np.ndarray], run: Mapping[Any, Any]) -> Kept:
    """Raises DamagedError when the columns are not those of the run's record, or hold no predictions."""
    import numpy as np
    import pandas as pd

    correct, target = found["correct"], found["target"].astype(np.int64)
    images = len(correct)
    if images < 2 or (not pd.isna(run["n_test"]) and images != run["n_test"]):
        raise DamagedError(f"its predictions are of {images} images, and its test set has {run['n_test']}")
    if correct.dtype != np.bool_ or not (np.isfinite(found["nll"]).all() and np.isfinite(found["confidence"]).all()):
        raise DamagedError("its predictions are damaged: correct is not right or wrong, or nll or confidence is not finite")
    # Half an image: a value out of a CSV file is rounded.
    if abs(correct.mean() - run["value"]) >= 0.5 / images:
        raise DamagedError(f"its predictions are right on {correct.mean():.6g} of the images, and its record says {run['value']:.6g}")
    try:
        ece = expected_calibration_error(found["confidence"], correct)
    except ValueError as error:
        raise DamagedError(f"its predictions are damaged: {error}") from error
    nll, confidence = (float(found[name].mean(dtype=np.float64)) for name in ("nll", "confidence"))
    by_class = class_accuracy(correct, target, int(target.max()) + 1)
    return Kept(digest_of(target), correct, found["predicted"].astype(np.int32), by_class, nll, ece, confidence)


def digest_of(target: np.ndarray) -> bytes:
    return hashlib.sha256(target.astype("int64").tobytes()).digest()
