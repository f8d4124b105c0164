from __future__ import annotations

import math
from typing import Any

from .. import slow
from ._stored import Stored

LOGITS = {"student": {"logits": "student_logits"}, "teacher": {"logits": "teacher_logits"}}


def decoupled(x: slow.Rows, y: slow.Rows, targets: list[int], temperature: float) -> tuple[float, float]:
    """The two divergences of `dkd`, means over samples: logits of target and others together, then of the others."""

    def two(z: list[float], target: int) -> list[float]:
        e = [math.exp(a / temperature) for a in z]
        return [math.log(e[target]), math.log(math.fsum(a for c, a in enumerate(e) if c != target))]

    def rest(z: list[float], target: int) -> list[float]:
        return [a for c, a in enumerate(z) if c != target]

    first, second = ([[part(u, target) for u, target in zip(z, targets, strict=True)] for z in (x, y)] for part in (two, rest))
    return slow.kd(*first, 1.0), slow.kd(*second, temperature)


def zscored(loss: Any, s: Any, t: Any) -> float:
    from ..toys import batch

    x, y = (slow.standardised(slow.rows(z.logits)) for z in (s, t))
    target_class, non_target = decoupled(x, y, batch(len(x)).target.tolist(), loss.temperature)
    return loss.temperature**2 * (loss.alpha * target_class + loss.beta * non_target)


def of_regions(loss: Any, s: Any, t: Any) -> float:
    """The released formula: the target's logit less 1000 in the second part, and sums over all regions over their number."""
    from ..toys import logits_of_regions

    x, y = map(slow.rows, logits_of_regions(s, t))
    total, labels = 0.0, s.regions.labels.tolist()
    for a, b, label in zip(x, y, labels, strict=True):
        (p, q), without = (slow.soft(z, loss.temperature) for z in (a, b)), [1000.0 * (c == label) for c in range(len(a))]
        pairs = [(p[label], q[label]), (math.fsum(p[:label] + p[label + 1 :]), math.fsum(q[:label] + q[label + 1 :]))]
        of_target = math.fsum(v * math.log(v / u) for u, v in pairs)
        p, q = (slow.soft([i / loss.temperature - j for i, j in zip(z, without, strict=True)], 1.0) for z in (a, b))
        of_others = math.fsum(v * math.log(v / u) for c, (u, v) in enumerate(zip(p, q, strict=True)) if c != label)
        total += loss.temperature**2 * (loss.alpha * of_target + loss.beta * of_others)
    return total / len(labels)


ZSCORE: dict[str, Any] = {"alpha": 0.5, "beta": 2.0, "temperature": 2.0, "transform": "zscore"}

GOLDEN = [
    Stored(
        f"dkd_alpha1_beta{beta:g}_T{temperature:g}",
        {"alpha": 1.0, "beta": beta, "temperature": temperature},
        **LOGITS,
        parts={"target_class": "target_class"},
    )
    for beta, temperature in ((2.0, 4.0), (6.0, 4.0), (0.5, 1.0), (2.0, 1.0))
]
FIRST: list[tuple[str, dict[str, Any]]] = [("logits/dkd/alpha1_beta8_T4", {})]
OF_REGIONS: dict[str, Any] = {"alpha": 0.5, "beta": 2.0, "temperature": 2.0, "tap": "regions"}
FURTHER: list[dict[str, Any]] = [ZSCORE, OF_REGIONS]
SLOW = {str(ZSCORE): zscored, "detection": of_regions, str(OF_REGIONS): of_regions}
