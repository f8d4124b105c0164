from __future__ import annotations

from typing import Any

from ._stored import Stored

MORE: dict[str, Any] = {"base": "dkd", "finest": 1, "alpha": 0.5, "apart": 1.0}
KEYS: list[tuple[str, dict[str, Any]]] = [
    ("sdd_kd_M124_T4", {}),
    ("sdd_kd_M12_T4", {"finest": 2}),
    ("sdd_dkd_M124_alpha1_beta8_T4", {"base": "dkd"}),
    ("sdd_nkd_M124_gamma1.5_T1", {"base": "nkd", "gamma": 1.5, "temperature": 1.0}),
]


GOLDEN = [
    Stored(
        key,
        options,
        student={"last": "sdd_student_map", "classifier": ("own_weight", "own_bias"), "logits": "student_logits"},
        teacher={"last": "sdd_teacher_map", "classifier": ("teacher_classifier_weight", "teacher_classifier_bias")},
        target="sdd_target",
        inputs={f"own_{name}": f"student_classifier.{name}" for name in ("weight", "bias")},
    )
    for key, options in KEYS
]
FURTHER: list[dict[str, Any]] = [MORE]
