"""A model on a whole split: every image exactly once, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench.datasets._base import Data
from kdbench.run.numerics import autocast
from kdbench.tasks._base import Task

EVALUATION_BATCH = 256

Table = dict[str, np.ndarray]


def predict(task: Task, model: nn.Module, data: Data, split: str, numerics: Mapping[str, Any]) -> tuple[Table, np.ndarray]:
    """(the task's columns of predictions, the targets), one row an image, in canonical order. Leaves the model in evaluation mode."""
    model.eval()
    columns: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        starts = range(0, data.size(split), EVALUATION_BATCH)
        wanted = [(np.arange(start, min(start + EVALUATION_BATCH, data.size(split))), None) for start in starts]
        for inputs, _ in data.batches(split, wanted):
            with autocast(numerics, inputs):
                said = task.predict(model, inputs)
            for name, value in said.items():
                columns.setdefault(name, []).append(value.cpu().numpy())
    return {name: np.concatenate(values) for name, values in columns.items()}, data.targets(split).cpu().numpy()


def evaluate(task: Task, model: nn.Module, data: Data, split: str, numerics: Mapping[str, Any]) -> dict[str, float | None]:
    """The task's metrics on a split; None where one is not a number."""
    return finite(task.measure(*predict(task, model, data, split, numerics)))


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in metrics.items()}
