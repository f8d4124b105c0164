from __future__ import annotations

from typing import Any

from ._stored import Stored

STATE = {"log_scale": "log_scales.0", "regressor.": "regressors.0."}
SIZES = {
    "same": ("student_map", "teacher_map"),
    "pool_student": ("student_map_double", "teacher_map"),
    "pool_teacher": ("student_map", "teacher_map_double"),
}
GOLDEN = [
    Stored(f"vid_{size}", {"first_stage": 0}, {"stages": (student,)}, {"stages": (teacher,)}, state=STATE)
    for size, (student, teacher) in SIZES.items()
]
FURTHER: list[dict[str, Any]] = [{"first_stage": 0, "variance": 1.0}]
