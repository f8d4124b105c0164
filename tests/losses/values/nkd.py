from __future__ import annotations

from typing import Any

from ._stored import Stored

LOGITS = {"student": {"logits": "student_logits"}, "teacher": {"logits": "teacher_logits"}}

GOLDEN = [
    Stored(f"nkd_gamma{gamma:g}_T{temperature:g}", {"gamma": gamma, "temperature": temperature}, **LOGITS)
    for gamma, temperature in ((3.5, 3.0), (1.5, 1.0))
]
FIRST: list[tuple[str, dict[str, Any]]] = [("logits/nkd/gamma1.5_T1", {})]
FURTHER: list[dict[str, Any]] = [{"gamma": 0.0}]
