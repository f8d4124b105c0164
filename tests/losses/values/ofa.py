from __future__ import annotations

import math
from typing import Any

from .. import slow
from ._stored import Stored


def by_loops(loss: Any, s: Any, t: Any) -> float:
    """The formula over images and classes; the logits of a branch are those of its layers."""
    from ..toys import batch

    given = [head(stage).tolist() for head, stage in zip(loss.heads, loss._chosen(s), strict=True)]
    eps = loss.eps if isinstance(loss.eps, list) else [loss.eps] * (len(given) + 1)
    target = batch(len(s.logits)).target.tolist()
    certain = [slow.soft(row, loss.temperature) for row in t.logits.tolist()]

    def value(rows: list[list[float]], power: float) -> float:
        found = 0.0
        for row, q, label in zip(rows, certain, target, strict=True):
            p = slow.soft(row, loss.temperature)
            found -= math.fsum(((q[c] + (c == label)) ** power - (c == label)) * math.log(p[c]) for c in range(len(p)))
        return found / len(rows)

    of_stages = math.fsum(value(rows, power) for rows, power in zip(given, eps[:-1], strict=True))
    return loss.stages * of_stages + loss.logits * value(s.logits.tolist(), eps[-1])


GOLDEN: list[Stored] = []
OTHER: list[dict[str, Any]] = [
    {"eps": [1.5, 0.5, 2.0], "stages": 2.0, "logits": 0.5, "temperature": 2.0},
    {"branches": "blocks", "first_stage": 2, "eps": 1.2},
]
FURTHER = OTHER
SLOW = {"cnn": by_loops, "cnn_eps1.5": by_loops, "vit": by_loops} | {str(options): by_loops for options in OTHER}
