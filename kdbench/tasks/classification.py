from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.datasets._base import Data, Dataset
from kdbench.losses._base import Taps
from kdbench.tasks._base import Metric, Task

FEW_CLASSES = 200


class Classification(Task):
    """One label an image; cross-entropy; top-1 is what counts.

    Source: the field's usual protocol.
    """

    metrics = (
        Metric("top1", "top-1", per_image="correct"),
        Metric("top5", "top-5"),
        Metric("nll", "NLL", percent=False, higher_is_better=False, per_image="nll"),
    )

    def outputs(self, dataset: Dataset) -> int:
        return dataset.n_classes

    def step(self, student: nn.Module, inputs: Any, targets: Tensor) -> tuple[dict[str, Tensor], Taps]:
        taps: Taps = student(inputs)
        assert taps.logits is not None
        logits = taps.logits if taps.logits.dtype.itemsize > 2 else taps.logits.float()
        return {"cross_entropy": F.cross_entropy(logits, targets)}, taps

    def predict(self, model: nn.Module, inputs: Any) -> dict[str, Tensor]:
        return {"logits": model(inputs).logits.float()}

    def measure(self, predictions: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, float]:
        logits = predictions["logits"].astype(np.float64)
        rank = _rank(logits, targets)
        return {
            "top1": float((rank <= 1).mean()),
            "top5": float((rank <= 5).mean()),
            "nll": float(_nll(logits, targets).mean()),
        }

    def keep(self, predictions: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, np.ndarray]:
        logits = predictions["logits"]
        if logits.shape[1] <= FEW_CLASSES:
            return {"logits": logits.astype(np.float16)}
        return {"top5": np.argsort(-logits, 1)[:, :5].astype(np.int32), "nll": _nll(logits, targets).astype(np.float32)}

    def per_image(self, predictions: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, np.ndarray]:
        """`correct` (its mean is top-1), `nll` (nats), `predicted` (a class), `confidence` (the probability of that class)."""
        logits = predictions["logits"].astype(np.float64)
        highest = logits.max(1)
        return {
            "correct": _rank(logits, targets) <= 1,
            "nll": _nll(logits, targets).astype(np.float32),
            "predicted": logits.argmax(1).astype(np.int32),
            "confidence": (1 / np.exp(logits - highest[:, None]).sum(1)).astype(np.float32),
        }

    def gate(self, data: Data) -> float:
        return 2.0 / data.n_classes


def _rank(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The place of the true class, from 1. Ties count against the model, and so does what is no number: a constant output, or none, must
    not be right about everything."""
    return (~(logits < np.take_along_axis(logits, targets[:, None], 1))).sum(1)


def _nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - np.take_along_axis(shifted, targets[:, None], 1)[:, 0]
