from __future__ import annotations

from typing import Any

from ._stored import Stored

LOGITS = {"student": {"logits": "student_logits"}, "teacher": {"logits": "teacher_logits"}}

GOLDEN = [Stored("kd_soft_ce_T4", {"form": "cross_entropy"}, **LOGITS, target=None)]
FURTHER: list[dict[str, Any]] = [{"form": "cross_entropy"}, {"form": "cross_entropy", "squared_temperature": False}]
