from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdbench.losses._base import Loss

from ._stored import Stored


def with_distances(loss: Loss, inputs: Mapping[str, Tensor]) -> None:
    loss.distance = inputs["wkd_distance"]


# The stored losses have the target term beside the transport: tests/losses/test_wkd_l.py compares their gradients with those of two terms.
GOLDEN = [
    Stored(
        f"wkd_l_T{temperature}_w{weight}_sharpen{sharpen}",
        {"temperature": float(temperature), "sharpen": float(sharpen)},
        student={"logits": "student_logits"},
        teacher={"logits": "teacher_logits", "pooled": "teacher_pooled"},
        pair=lambda inputs: {"labels": inputs["target"], "teacher_features": inputs["teacher_pooled"]},
        prepare=with_distances,
        value="part/transport",
    )
    for temperature, weight, sharpen in ((8, 600, 1), (2, 30, 2))
]
FURTHER: list[dict[str, Any]] = [{"temperature": 2.0, "regularisation": 0.1, "iterations": 3}]
