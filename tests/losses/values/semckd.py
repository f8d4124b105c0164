from __future__ import annotations

from typing import Any

from ._stored import Stored

STATE = {
    **{f"query_weight{stage}.linear{layer}.": f"queries.{stage}.{place}." for stage in range(2) for layer, place in ((1, 0), (2, 2))},
    **{f"key_weight{stage}.linear{layer}.": f"keys.{stage}.{place}." for stage in range(3) for layer, place in ((1, 0), (2, 2))},
    **{f"regressor{own}{other}.regressor.": f"projectors.{own}.{other}." for own in range(2) for other in range(3)},
}
GOLDEN = [
    Stored(
        "semckd",
        {"batch_size": size, "first_stage": 0},
        student={"stages": ("semckd_student_stage1", "semckd_student_stage2")},
        teacher={"stages": ("semckd_teacher_stage1", "semckd_teacher_stage2", "semckd_teacher_stage3")},
        state=STATE,
        cases=(case,),
    )
    for case, size in (("n8", 8), ("n13", 13))
]
FURTHER: list[dict[str, Any]] = [{"batch_size": 8}]
