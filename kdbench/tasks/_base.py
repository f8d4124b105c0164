"""The contract of a task: what a batch is, one step, predictions as a table, metrics and which of them is the primary one.

Nothing outside a task's own file knows what its targets are, how its loss is computed, or what its metrics mean.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from kdbench.datasets._base import Data, Dataset
from kdbench.losses._base import Taps


@dataclass(frozen=True)
class Metric:
    """`percent`: a fraction that tables show per cent, with differences in points; `per_image`: the column of `Task.per_image` whose
    mean over the images is this metric (None: it is no mean over images)."""

    name: str
    label: str
    percent: bool = True
    higher_is_better: bool = True
    per_image: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Task:
    """A task part. `metrics` are those of one evaluation; the first is the primary one."""

    version: ClassVar[int] = 1
    metrics: ClassVar[tuple[Metric, ...]]
    alone: ClassVar[str] = "ce"
    """What a suite calls the objective that is the task's loss alone."""

    @classmethod
    def primary(cls) -> Metric:
        return cls.metrics[0]

    def outputs(self, dataset: Dataset) -> int:
        """How many outputs a model for this dataset has."""
        raise NotImplementedError

    def step(self, student: nn.Module, inputs: Any, targets: Any) -> tuple[dict[str, Tensor], Taps]:
        """One training step's named task losses (scalars, whose sum is the task's loss) and the taps."""
        raise NotImplementedError

    def predict(self, model: nn.Module, inputs: Any) -> dict[str, Tensor]:
        """What the model says of a batch, in evaluation mode: columns of one row an image."""
        raise NotImplementedError

    def measure(self, predictions: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, float]:
        """The metrics, each by its name, over a whole split."""
        raise NotImplementedError

    def keep(self, predictions: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, np.ndarray]:
        """The table of predictions that is kept beside the record."""
        return predictions

    def per_image(self, predictions: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of one number an image, kept beside the predictions: what a report needs to tell the luck of the test images from
        that of the seeds. Empty where the task has no such thing (a metric that is no mean over images)."""
        return {}

    def gate(self, data: Data) -> float | None:
        """The least value of the primary metric that a teacher must have where the suite says none; None: no gate."""
        return None
