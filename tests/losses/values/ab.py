from __future__ import annotations

from typing import Any

from ._stored import Stored

STATE = {f"connectors.{place}.{theirs}.": f"connectors.{place}.{ours}." for place in range(3) for theirs, ours in (("conv", 0), ("bn", 1))}
GOLDEN = [
    Stored(
        "ab",
        {"first_stage": 0},
        {"preact": tuple(f"student_stage{stage}" for stage in (1, 2, 3))},
        {"preact": tuple(f"teacher_stage{stage}" for stage in (1, 2, 3))},
        state=STATE,
        factor=1000 / 3,
    ),
    Stored(
        "ab_zoo_margin2",
        {"margin": 2.0, "reduction": "mean", "connect": False, "first_stage": 0},
        {"preact": ("student_map",)},
        {"preact": ("teacher_map_same_channels",)},
    ),
]
FURTHER: list[dict[str, Any]] = [{"first_stage": 0}]
