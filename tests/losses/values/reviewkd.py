from __future__ import annotations

from typing import Any

from ._stored import Stored


def taps(side: str) -> dict[str, Any]:
    return {"preact": tuple(f"review_{side}_stage{stage}" for stage in (1, 2, 3)), "pooled": f"review_{side}_pooled"}


GOLDEN = [
    # The stored order is deep to shallow: the pooled features, then stages 3 to 1.
    Stored(
        "reviewkd",
        {"maps": "preact", "first_stage": 0},
        taps("student"),
        taps("teacher"),
        state={f"abfs.{3 - level}.": f"fusions.{level}." for level in range(4)},
    )
]
FURTHER: list[dict[str, Any]] = [{"maps": "preact"}, {"maps": "stages", "first_stage": 0, "middle": 2}]
