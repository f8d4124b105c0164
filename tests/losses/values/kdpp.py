from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.losses._base import Loss

from ._stored import Stored


def with_means(loss: Loss, inputs: Mapping[str, Tensor]) -> None:
    loss.class_means = inputs["nd_class_means"]


def pair(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"labels": torch.arange(len(inputs["nd_class_means"])), "teacher_features": inputs["nd_class_means"]}


GOLDEN = [
    Stored(
        "kdpp_nd",
        student={"pooled": "nd_student", "logits": "student_logits"},
        teacher={"pooled": "nd_teacher"},
        pair=pair,
        prepare=with_means,
    )
]
FURTHER: list[dict[str, Any]] = []
