from __future__ import annotations

import math
from typing import Any

from .. import slow
from ._stored import Stored

GOLDEN = [
    Stored(
        "dist_plus_torchdistill",
        {"beta": 2.0, "gamma": 2.0, "tau": 1.0, "plus": "torchdistill"},
        student={"logits": "student_logits", "last": "student_map"},
        teacher={"logits": "teacher_logits", "last": "teacher_map_same_channels"},
        parts={"channel": "channel", "spatial": "spatial"},
    )
]


def corrected(loss: Any, s: Any, t: Any) -> float:
    """In loops: iota (1 - r) of the channels at each position, kappa (1 - r) of the samples at each position of the summed channels."""
    x, y = (one.last.tolist() for one in (s, t))
    n, channels, high, broad = s.last.shape
    places = [(i, j) for i in range(high) for j in range(broad)]
    pixels = [[[one[k][c][i][j] for c in range(channels)] for k in range(n) for i, j in places] for one in (x, y)]
    of_channels = [1 - pearson(a, b, 1e-8) for a, b in zip(*pixels, strict=True)]
    sums = [[[math.fsum(one[k][c][i][j] for c in range(channels)) for k in range(n)] for i, j in places] for one in (x, y)]
    of_samples = [1 - pearson(a, b) for a, b in zip(*sums, strict=True)]
    p, q = ([slow.soft(row, loss.tau) for row in one.logits.tolist()] for one in (s, t))
    inter = [1 - pearson(a, b) for a, b in zip(p, q, strict=True)]
    intra = [1 - pearson(a, b) for a, b in zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)]
    means = [math.fsum(one) / len(one) for one in (inter, intra, of_channels, of_samples)]
    return loss.tau**2 * (loss.beta * means[0] + loss.gamma * means[1]) + loss.iota * means[2] + loss.kappa * means[3]


def pearson(a: Any, b: Any, added: float = 0.0) -> float:
    a, b = ([one - math.fsum(side) / len(side) for one in side] for side in (a, b))
    both = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (both + added)


FIRST: list[tuple[str, dict[str, Any]]] = [
    ("logits/dist/beta1_gamma1_tau1", {"tau": 1.0}),
    ("logits/dist/beta2_gamma2_tau4", {"beta": 2.0, "gamma": 2.0}),
]
CORRECTED: dict[str, Any] = {"plus": "corrected", "iota": 0.5, "kappa": 2.0}
FURTHER: list[dict[str, Any]] = [
    {"beta": 0.0, "gamma": 2.0},
    {"gamma": 0.0, "tau": 2.0},
    CORRECTED,
    {"plus": "corrected", "gamma": 0.0, "kappa": 0.0},
    {"gamma": 0.0, "tap": "dense_logits"},
]
SLOW = {str(CORRECTED): corrected}
