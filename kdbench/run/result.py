"""From a trained student to its record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
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
    """Columns of the record from the evaluated epochs: every metric at the last epoch (the default that tables show), and the
    primary one at the epoch that was best on the validation split (None without one) and on the test set (only to compare with
    papers that report it)."""
    evaluated = [entry for entry in history if "test" in entry]
    last = evaluated[-1]["test"]
    found = {f"{metric.name}_last": last[metric.name] for metric in task.metrics}
    primary = task.primary()
    sign = 1 if primary.higher_is_better else -1

    def best(split: str) -> float | None:
        rated = [entry for entry in evaluated if entry.get(split, {}).get(primary.name) is not None]
        # The first of equals: an epoch must beat the earlier ones to be chosen.
        return max(rated, key=lambda entry: sign * entry[split][primary.name])["test"][primary.name] if rated else None

    found[f"{primary.name}_best_val"] = best("val")
    found[f"{primary.name}_best_test"] = best("test")
    return found


def cpu_state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
