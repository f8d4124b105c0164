"""The contract of a task: targets, loss, predictions and metrics. No other module knows what they mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from kdbench.datasets._base import Data, Dataset
from kdbench.errors import UsageError
from kdbench.losses._base import Taps
from kdbench.manifest import Metric


@dataclass(frozen=True)
class Mark:
    """Something that is true of an image, or said of it: a class, with its `score` where it is said, and with a `box` (left, top, right,
    bottom) in an image of this `size` (height, breadth) where it has a place."""

    label: int
    score: float | None = None
    box: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Usual:
    """What `kdbench init` writes for images of at most `side` pixels (None: larger ones): recipe, student and teacher. A net is a name and
    its options in YAML."""

    side: int | None
    recipe: str
    student: tuple[str, str]
    teacher: tuple[str, str]


class Task:
    """A task part. `metrics` are those of one evaluation; the first is the primary one.

    Its constructor takes the options of a recipe that change its loss, by their names (`label_smoothing`, `task_loss`, `target_threshold`),
    each with the recipe's neutral value as default. A recipe with an option that the task does not take is refused.
    """

    version: ClassVar[int] = 1
    metrics: ClassVar[tuple[Metric, ...]]
    alone: ClassVar[str] = "ce"
    """The name in a suite of the objective that is only the task's loss."""
    usual: ClassVar[tuple[Usual, ...]] = ()
    """For `kdbench init`, from small images to large ones."""
    usual_objectives: ClassVar[tuple[str, ...]] = ()
    usual_sd: ClassVar[float | None] = None
    """The standard deviation between repeats of one objective, in points, for the power that `plan` states; None: it differs too much."""
    small_batch: ClassVar[int] = 32
    """The batch of a small copy of a suite, beside `few_images`."""
    couples: ClassVar[Literal["sample", "batch"]] = "batch"
    """`sample`: the task's loss of a batch is the mean of its losses of the images alone, so that a batch can be divided."""

    has_classes: ClassVar[bool] = True
    """Whether each image has one class: batches can be uniform in classes (`class_uniform`), images shuffled within a class, and losses can
    have the `labels` of the training set."""

    @classmethod
    def primary(cls) -> Metric:
        return cls.metrics[0]

    @classmethod
    def few_images(cls, known: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
        """Options for a small copy of a dataset that has the options `known`, of which a suite has `given`."""
        return {}

    def outputs(self, dataset: Dataset) -> int:
        """The number of outputs of a model for this dataset."""
        raise NotImplementedError

    def step(self, student: nn.Module, inputs: Any, targets: Any) -> tuple[dict[str, Tensor], Taps]:
        """One training step's named task losses (scalars, whose sum is the task's loss) and the taps."""
        raise NotImplementedError

    def mix(self, targets: Any, partner: Tensor, share: float, data: Data) -> Any:
        """The targets of mixed images: image i is `share` of itself and 1 - `share` of the image at `partner[i]` in the batch. A task that
        does not define this method has no mixed images (mixup, CutMix)."""
        raise NotImplementedError

    def rows(self, inputs: Any, targets: Any, chosen: slice) -> tuple[Any, Any]:
        """The inputs and targets of some images of a batch."""
        return inputs[chosen], targets[chosen]

    def predict(self, model: nn.Module, inputs: Any) -> dict[str, Tensor]:
        """The predictions for a batch, in evaluation mode: columns with one row per image."""
        raise NotImplementedError

    def true_labels(self, targets: Any) -> Any:
        """`Data.targets` of a split as `measure`, `keep` and `per_image` get them."""
        return targets.cpu().numpy()

    def measure(self, predictions: dict[str, np.ndarray], targets: Any) -> dict[str, float]:
        """The metrics of a whole split, by name."""
        raise NotImplementedError

    def keep(self, predictions: dict[str, np.ndarray], targets: Any) -> dict[str, np.ndarray]:
        """The table of predictions that is saved beside the record."""
        return predictions

    def true_columns(self, targets: Any) -> dict[str, np.ndarray]:
        """What is saved of the true labels beside the predictions."""
        return {"target": targets}

    def per_image(self, predictions: dict[str, np.ndarray], targets: Any) -> dict[str, np.ndarray]:
        """Columns with one row per image, saved beside the predictions, from which a report estimates test-set sampling error
        (`stats.predictions.KINDS`). Empty if no metric follows from such columns."""
        return {}

    def marks(self, table: Mapping[str, np.ndarray], image: int, true: bool) -> list[Mark]:
        """What a saved table says of a test image, or what is true of it, for `kdbench pictures`; the highest scores first."""
        raise UsageError(f"{type(self).__name__} does not say what can be drawn of its predictions: define marks(table, image, true)")

    def bytes_per_image(self, outputs: int) -> int | None:
        """At most how many bytes are saved of an image's predictions; None: it is not known before."""
        return None

    def min_teacher_metric(self, data: Data) -> float | None:
        """The default of the smallest primary metric that a teacher must have; None: any value."""
        return None
