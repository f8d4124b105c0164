from __future__ import annotations

from typing import Any

from ._stored import Stored

LOGITS = {"student": {"logits": "student_logits"}, "teacher": {"logits": "teacher_logits"}}

GOLDEN = [Stored("logits_mse", **LOGITS, target=None)]
FURTHER: list[dict[str, Any]] = []
