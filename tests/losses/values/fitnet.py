from __future__ import annotations

from typing import Any

from ._stored import Stored

STATE = {"conv.": "conv.", "bn.": "bn."}
SIZES = {
    "same": ("student_map", "teacher_map"),
    "halve": ("student_map_double", "teacher_map"),
    "double": ("student_map", "teacher_map_double"),
    "crop": ("student_map_crop", "teacher_map"),
}
GOLDEN = [
    Stored(f"fitnet_{size}", {"hint": 0}, {"stages": (student,)}, {"stages": (teacher,)}, state=STATE)
    for size, (student, teacher) in SIZES.items()
]
FURTHER: list[dict[str, Any]] = []
