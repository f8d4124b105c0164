from __future__ import annotations

from typing import Any

from ._stored import Stored


def stored(key: str, options: dict[str, Any], state: dict[str, str]) -> Stored:
    return Stored(key, options, student={"last": "wkd_student_map"}, teacher={"last": "wkd_teacher_map"}, state=state)


PLAIN = {"conv_reg.conv.": "projector.0.", "conv_reg.bn.": "projector.1."}
BOTTLENECK = {**{f"conv_reg.conv{one}.": f"projector.{one - 1}." for one in (1, 2, 3)}, "conv_reg.bn.": "projector.3."}
GOLDEN = [
    stored("wkd_f_grid1_ratio4", {}, PLAIN),
    stored("wkd_f_grid4_ratio3", {"grid": 4, "ratio": 3.0}, PLAIN),
    stored("wkd_f_bottleneck_grid4_ratio2", {"grid": 4, "ratio": 2.0, "hidden": 6}, BOTTLENECK),
]
FURTHER: list[dict[str, Any]] = []
