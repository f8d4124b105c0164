from __future__ import annotations

from typing import Any

from ._stored import Stored

STATE = {"embed.": "embed."}
GOLDEN = [
    Stored(
        "srd", {}, {"last": "student_map", "logits": "student_logits"}, {"last": "teacher_map", "logits": "teacher_logits"}, state=STATE
    ),
    Stored("srd_deit", {"form": "correlation"}, {"pooled": "student_pooled"}, {"pooled": "teacher_pooled"}, state=STATE),
]
FURTHER: list[dict[str, Any]] = []
