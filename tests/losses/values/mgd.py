from __future__ import annotations

from typing import Any

from kdbench.losses._base import Loss

from ._stored import Stored


def stored(key: str, teacher: str, uniform: str) -> Stored:
    def draw(loss: Loss, inputs: Any) -> None:
        loss._uniform = lambda x: inputs[uniform]  # type: ignore[assignment,method-assign]

    return Stored(
        key,
        student={"last": "student_map"},
        teacher={"last": teacher},
        state={"align.": "align.0.", "generation.": "generation.0."},
        prepare=draw,
    )


GOLDEN = [
    stored("mgd", "teacher_map", "mgd_uniform"),
    stored("mgd_same_channels", "teacher_map_same_channels", "mgd_uniform_same_channels"),
]
FURTHER: list[dict[str, Any]] = [{"mask": 0.5}, {"mask": 0.5, "tap": "levels", "levels": [0, 2]}]
