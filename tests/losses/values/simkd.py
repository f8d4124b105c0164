from __future__ import annotations

from typing import Any

from ._stored import Stored
from .srrl import classifier


def stored(key: str, student: str = "student_map", teacher: str = "teacher_map") -> Stored:
    return Stored(key, student={"last": student}, teacher={"last": teacher}, state={"transfer.": "projector."}, pair=classifier("teacher"))


GOLDEN = [
    stored("simkd"),
    stored("simkd_pool_student", student="student_map_double"),
    stored("simkd_pool_teacher", teacher="teacher_map_double"),
]
FURTHER: list[dict[str, Any]] = [{"factor": 1}]
