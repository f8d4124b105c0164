from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Taps

from ._stored import Stored


def task(weight: float) -> Callable[[Taps, Tensor], Tensor]:
    """The task's loss of both views, which the stored objective has beside the terms: our loss has weight 1 where theirs has `weight`."""
    return lambda student, target: sum(functional.cross_entropy(view.logits, target) for view in (student, student.second_view)) / weight


GOLDEN = [
    Stored(
        key,
        options,
        student={"logits": "student_logits", "second_view": {"logits": "student_logits_strong"}},
        teacher={"logits": "teacher_logits", "second_view": {"logits": "teacher_logits_strong"}},
        beside=task(ratio),
        factor=1 / weight,
        parts={"loss_kd": "kd", "loss_cc": "class", "loss_bc": "batch"},
    )
    for key, options, weight, ratio in (
        ("mlkd", {}, 0.9, 9.0),
        ("mlkd_logit_standardised", {"temperature": 2.0, "transform": "zscore"}, 9.0, 90.0),
    )
]
FURTHER: list[dict[str, Any]] = [{"augmentation": "rand-m10-n2"}]
