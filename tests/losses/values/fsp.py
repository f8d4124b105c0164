from __future__ import annotations

from typing import Any

from ._stored import Stored

STUDENT = {"stages": tuple(f"student_stage{stage}_same" for stage in (1, 2, 3))}
TEACHER = {"stages": tuple(f"teacher_stage{stage}_same" for stage in (1, 2, 3))}
GOLDEN = [Stored("fsp", {}, STUDENT, TEACHER), Stored("fsp_torchdistill", {"pool": "max", "distance": "column_norms"}, STUDENT, TEACHER)]
FURTHER: list[dict[str, Any]] = [{"first_stage": 1}]
