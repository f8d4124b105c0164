from __future__ import annotations

from typing import Any

from ._stored import Stored

LOGITS = {"student": {"logits": "student_logits"}, "teacher": {"logits": "teacher_logits"}}

GOLDEN = [Stored(f"wsld_T{temperature:g}", {"temperature": temperature}, **LOGITS) for temperature in (4.0, 2.0)]
FURTHER: list[dict[str, Any]] = []
HELD = ("_weights",)
