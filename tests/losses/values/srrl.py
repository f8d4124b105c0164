from __future__ import annotations

from typing import Any

from ._stored import Stored, modules_of


def classifier(kind: str) -> Any:
    return lambda inputs: {"teacher_head": modules_of(inputs[f"{kind}_classifier_weight"], inputs[f"{kind}_classifier_bias"])}


PARTS = {"feature": "feature", "logits": "logits"}
GOLDEN = [
    Stored(
        "srrl",
        student={"last": "student_map"},
        teacher={"last": "teacher_map"},
        state={"Connectors.": "projector."},
        pair=classifier("teacher"),
        parts=PARTS,
    ),
    Stored(
        "srrl_simkd",
        {"tap": "pooled"},
        student={"pooled": "student_pooled"},
        teacher={"pooled": "teacher_pooled"},
        state={"transfer.": "projector."},
        pair=classifier("pooled"),
        parts=PARTS,
    ),
]
FURTHER: list[dict[str, Any]] = [{"feature": 0.0}, {"logits": 0.0}]
