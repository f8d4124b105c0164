from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from kdbench.losses._base import Taps

GOLDEN: list[Any] = []  # its stored values are those of detection.npz: test_pyramids.py
FURTHER: list[dict[str, Any]] = [{"tau": 4.0, "levels": [1, 3]}, {"tap": "last"}, {"tap": "stages", "tau": 2.0}]


def slowly(loss: Any, s: Taps, t: Taps) -> float:
    total = 0.0
    for x, y in zip(*(of(loss, side) for side in (s, t)), strict=True):
        channels = [z.reshape(-1, z.shape[2] * z.shape[3]).tolist() for z in (x, y)]
        total += sum(divergence(p, q, loss.tau) for p, q in zip(*channels, strict=True)) / len(channels[0]) * loss.tau**2
    return total


def of(loss: Any, side: Taps) -> list[Tensor]:
    if loss.tap == "levels":
        return [side.levels[place] for place in loss.levels or range(len(side.levels))]
    return [side.last] if loss.tap == "last" else list(side.stages)


def divergence(student: list[float], teacher: list[float], tau: float) -> float:
    sums = [math.fsum(math.exp(one / tau) for one in values) for values in (student, teacher)]
    pairs = [[math.exp(one / tau) / total for one in values] for values, total in zip((student, teacher), sums, strict=True)]
    return math.fsum(q * math.log(q / p) for p, q in zip(*pairs, strict=True))


SLOW = {case: slowly for case in ("mmrazor", *map(str, FURTHER))}
