"""Models on a whole split: every image exactly once, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench.datasets._base import Data
from kdbench.isolation import isolated, private
from kdbench.tasks._base import Task
from kdbench.train.numerics import autocast
from kdbench.train.ranks import ALONE, Ranks

Predictions = tuple[dict[str, np.ndarray], Any]
"""(columns of predictions, true labels as the task has them), one row per image, in canonical order."""


def predict_all(
    task: Task,
    models: Sequence[nn.Module],
    data: Data,
    split: str,
    numerics: Mapping[str, Any],
    first: int | None = None,
    ranks: Ranks = ALONE,
) -> list[Predictions | Exception]:
    """The predictions of each model, or its error, from one pass over the images, or over the `first` of them. Leaves the models in
    evaluation mode; draws are fixed. Each rank has its share of the batches; the first rank gets all predictions, the others none."""
    columns: list[dict[str, list[np.ndarray]]] = [{} for _ in models]
    errors: dict[int, Exception] = {}
    size = data.size(split) if first is None else min(first, data.size(split))
    wanted = data.in_order(size)
    share = ranks.share(len(wanted))

    def predict() -> None:
        with closing(data.batches(split, wanted[share.start : share.stop])) as batches:
            for place in share:
                with isolated(place):
                    inputs, _ = next(batches)
                for number, model in enumerate(models):
                    try:
                        if number not in errors:
                            _add(columns[number], task, model, inputs, numerics, place)
                    except Exception as error:
                        errors[number] = error

    ranks.tried(predict)
    agreed = [ranks.agreed(errors.get(number)) for number in range(len(models))]
    targets = task.true_labels(data.targets(split)[:size])
    gathered = [{} if error else ranks.gathered(mine) for error, mine in zip(agreed, columns, strict=True)]
    for mine in gathered:
        if ranks.rank == 0 and any(len(values) != size for values in mine.values()):
            raise AssertionError(f"{[len(values) for values in mine.values()]} predictions of {size} images")
    return [error or (mine, targets) for error, mine in zip(agreed, gathered, strict=True)]


def _add(columns: dict[str, list[np.ndarray]], task: Task, model: nn.Module, inputs: Any, numerics: Mapping[str, Any], seed: int) -> None:
    """Add a model's predictions for a batch, with the draws that it would have alone."""
    model.eval()
    with isolated(seed), torch.no_grad():
        with autocast(numerics, inputs):
            said = task.predict(model, private(inputs))
        for name, value in said.items():
            columns.setdefault(name, []).append(value.cpu().numpy())


def measured(task: Task, predictions: Predictions) -> dict[str, float | None]:
    """The task's metrics; None where one is not finite."""
    return {name: finite_or_none(value) for name, value in task.measure(*predictions).items()}


def evaluate(task: Task, model: nn.Module, data: Data, split: str, numerics: Mapping[str, Any]) -> dict[str, float | None]:
    """The task's metrics on a split; None where one is not finite."""
    (found,) = predict_all(task, [model], data, split, numerics)
    if isinstance(found, Exception):
        raise found
    return measured(task, found)


def finite_or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
