from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.datasets._base import Data, Dataset
from kdbench.losses._base import Taps
from kdbench.manifest import Metric
from kdbench.tasks._base import Mark, Task, Usual

SMALL_CLASSES, SMALL_PER_CLASS, SMALL_SIZE = 3, 16, 32
"""Of a small copy of a suite. With its batches of 32 an epoch has a whole batch and a smaller one: with eight groups, four and two images
in each."""
FEW_CLASSES = 200
LARGEST = float(np.finfo(np.float16).max)


class Classification(Task):
    """Image classification with one label per image; loss: cross-entropy; primary metric: top-1.

    Balanced accuracy is the mean of the classes' recalls, macro-F1 the mean of their F1 scores, over the classes that have images in the
    split.
    The options are set by the recipe. The target of a mixed image is share * (one-hot label) + (1 - share) * (one-hot label of its
    partner). `label_smoothing` s changes each target t to (1 - s) t + s / classes. `task_loss: binary_cross_entropy` asks for each class
    whether the image shows it. It is a mean over images and classes, and so much smaller than cross-entropy where classes are many. With
    `target_threshold` each target (after smoothing) becomes 1 if it is larger, else 0: with 0.2, both classes of an image mixed 70:30 are
    present.
    Source: the field's usual protocol; the two means as in scikit-learn's `balanced_accuracy_score` and `f1_score`; label smoothing,
        Szegedy et al. 2016; binary cross-entropy as in timm.loss.BinaryCrossEntropy and "ResNet strikes back" (Wightman et al. 2021),
        whose training scripts set the threshold to 0.2.
    """

    couples = "sample"
    usual = (
        Usual(8, "short", ("small_mobile", ""), ("cifar_resnet20", "")),
        Usual(64, "crd", ("cifar_resnet20", ""), ("cifar_resnet56", "")),
        Usual(None, "field200", ("resnet18", ""), ("resnet34", "")),
    )
    usual_objectives = ("ce", "kd", "sp", "cc", "rkd")
    usual_sd = 0.3  # on the whole of CIFAR-100

    @classmethod
    def few_images(cls, known: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
        few: dict[str, Any] = {"size": SMALL_SIZE} if "size" in known else {}
        if "subset" in known:
            return {**few, "subset": {"classes": SMALL_CLASSES, "per_class": SMALL_PER_CLASS}}
        return {**few, **({"per_class": SMALL_PER_CLASS} if "per_class" in known else {})}

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        task_loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy",
        target_threshold: float | None = None,
    ):
        self.label_smoothing, self.task_loss, self.target_threshold = label_smoothing, task_loss, target_threshold

    metrics = (
        Metric("top1", "top-1", per_image="correct"),
        Metric("top5", "top-5"),
        Metric("nll", "NLL", percent=False, higher_is_better=False, per_image="nll"),
        Metric("balanced_accuracy", "balanced accuracy"),
        Metric("macro_f1", "macro-F1"),
    )

    def outputs(self, dataset: Dataset) -> int:
        return dataset.n_classes

    def step(self, student: nn.Module, inputs: Any, targets: Tensor) -> tuple[dict[str, Tensor], Taps]:
        taps: Taps = student(inputs)
        assert taps.logits is not None
        logits = taps.logits if taps.logits.dtype.itemsize > 2 else taps.logits.float()
        targets = targets.to(logits.dtype) if targets.is_floating_point() else targets  # the shares of the classes of mixed images
        if self.task_loss == "binary_cross_entropy":
            return {self.task_loss: self._binary(logits, targets)}, taps
        return {self.task_loss: F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)}, taps

    def _binary(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            targets = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets)

    def mix(self, targets: Tensor, partner: Tensor, share: float, data: Data) -> Tensor:
        present = F.one_hot(targets, data.n_classes).float()
        return present * share + present[partner] * (1 - share)

    def predict(self, model: nn.Module, inputs: Any) -> dict[str, Tensor]:
        return {"logits": model(inputs).logits.float()}

    def measure(self, predictions: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, float]:
        logits = predictions["logits"].astype(np.float64)
        rank = _rank(logits, targets)
        found = {"top1": float((rank <= 1).mean()), "top5": float((rank <= 5).mean()), "nll": float(_nll(logits, targets).mean())}
        return {**found, **_by_class(rank <= 1, logits.argmax(1), targets)}

    def keep(self, predictions: dict[str, np.ndarray], targets: Any) -> dict[str, np.ndarray]:
        logits = predictions["logits"]
        if logits.shape[1] <= FEW_CLASSES:
            return {"logits": np.clip(logits, -LARGEST, LARGEST).astype(np.float16)}
        return {"top5": np.argsort(-logits, 1)[:, :5].astype(np.int32), "nll": _nll(logits, targets).astype(np.float32)}

    def per_image(self, predictions: dict[str, np.ndarray], targets: Any) -> dict[str, np.ndarray]:
        """`correct` (its mean is top-1), `nll` (nats), `predicted` (a class), `confidence` (the probability of that class)."""
        logits = predictions["logits"].astype(np.float64)
        highest = logits.max(1)
        return {
            "correct": _rank(logits, targets) <= 1,
            "nll": _nll(logits, targets).astype(np.float32),
            "predicted": logits.argmax(1).astype(np.int32),
            "confidence": (1 / np.exp(logits - highest[:, None]).sum(1)).astype(np.float32),
        }

    def marks(self, table: Mapping[str, np.ndarray], image: int, true: bool) -> list[Mark]:
        if true:
            return [Mark(int(table["target"][image]))]
        return [Mark(int(table["predicted"][image]), float(table["confidence"][image]))]

    def bytes_per_image(self, outputs: int) -> int:
        one, target = {"logits": np.zeros((1, outputs), np.float32)}, np.zeros(1, np.int64)
        return sum(array.nbytes for array in {**self.keep(one, target), "target": target, **self.per_image(one, target)}.values())

    def min_teacher_metric(self, data: Data) -> float:
        return 2.0 / data.n_classes


def _rank(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The place of the true class, from 1. Ties count against the model, and so does what is no number: a constant output, or none, must
    not be right about everything."""
    return (~(logits < np.take_along_axis(logits, targets[:, None], 1))).sum(1)


def _nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - np.take_along_axis(shifted, targets[:, None], 1)[:, 0]


def _by_class(correct: np.ndarray, predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Means over the classes that have images. `correct` as in `_rank`: where the highest output is not alone, no class is predicted
    rightly."""
    n_classes = int(max(targets.max(), predicted.max())) + 1
    images, right, said = (
        np.bincount(one, minlength=n_classes) for one in (targets, targets[correct], predicted[correct | (predicted != targets)])
    )
    there = images > 0
    recall, f1 = right[there] / images[there], 2 * right[there] / (images + said)[there]
    return {"balanced_accuracy": float(recall.mean()), "macro_f1": float(f1.mean())}
