"""A model on a whole split: every image exactly once, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench.datasets._base import Data
from kdbench.isolation import isolated, private
from kdbench.tasks._base import Task
from kdbench.train.numerics import autocast

EVALUATION_BATCH = 256


def predict(task: Task, model: nn.Module, data: Data, split: str, numerics: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(columns of predictions, targets), one row per image, in canonical order. Leaves the model in evaluation mode; draws are fixed."""
    model.eval()
    columns: dict[str, list[np.ndarray]] = {}
    with isolated(0), torch.no_grad():
        starts = range(0, data.size(split), EVALUATION_BATCH)
        wanted = [(np.arange(start, min(start + EVALUATION_BATCH, data.size(split))), None) for start in starts]
        for inputs, _ in data.batches(split, wanted):
            with autocast(numerics, inputs):
                said = task.predict(model, private(inputs))
            for name, value in said.items():
                columns.setdefault(name, []).append(value.cpu().numpy())
    return {name: np.concatenate(values) for name, values in columns.items()}, data.targets(split).cpu().numpy()


def evaluate(task: Task, model: nn.Module, data: Data, split: str, numerics: Mapping[str, Any]) -> dict[str, float | None]:
    """The task's metrics on a split; None where one is not finite."""
    measured = task.measure(*predict(task, model, data, split, numerics))
    return {name: finite_or_none(value) for name, value in measured.items()}


def finite_or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
