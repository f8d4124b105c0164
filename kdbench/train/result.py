"""From a trained student to its record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from kdbench.tasks._base import Task


def digest_of(arrays: Mapping[str, Tensor | np.ndarray]) -> str:
    """A hash of named arrays: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        values = array.detach().cpu().contiguous().numpy() if isinstance(array, Tensor) else np.ascontiguousarray(array)
        digest.update(f"{name} {values.dtype} {values.shape};".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def metrics(task: Task, history: list[dict[str, Any]]) -> dict[str, float | None]:
    """Columns of the record: every metric at the last epoch (what tables show by default), and the primary one at the best epoch on the
    validation split (None without one) and on the test set (for comparison with papers that report it)."""
    evaluated = [entry for entry in history if "test" in entry]
    last = evaluated[-1]["test"]
    found = {f"{metric.name}_last": last[metric.name] for metric in task.metrics}
    primary = task.primary()
    sign = 1 if primary.higher_is_better else -1

    def best(split: str) -> float | None:
        rated = [entry for entry in evaluated if entry.get(split, {}).get(primary.name) is not None]
        # The first of equals.
        return max(rated, key=lambda entry: sign * entry[split][primary.name])["test"][primary.name] if rated else None

    return {**found, f"{primary.name}_best_val": best("val"), f"{primary.name}_best_test": best("test")}
