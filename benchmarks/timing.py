"""Times of several calls, taken in turns in one process, so that whatever slows the machine for a while slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch

from kdbench.train.numerics import timed_s

LEAST_TURN_S = 0.01
"""A call that is shorter is repeated within its turn."""


@dataclass(frozen=True)
class Arm:
    """A call that is timed, with its number of threads."""

    name: str
    act: Callable[[], Any]
    threads: int = 1

    @property
    def label(self) -> str:
        return f"{self.name}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Budget:
    """Rounds are made until `seconds` are over, at least `least` and at most `most`. Each arm has its turn in every round."""

    seconds: float = 5.0
    least: int = 5
    most: int = 50


QUICK = Budget(0.0, 2, 2)


def interleaved(arms: Sequence[Arm], budget: Budget, device: torch.device) -> pd.DataFrame:
    """A row for each turn, in order: place, round, arm, threads, calls, seconds (of one call). Each arm is warmed up before."""
    before, repeats = torch.get_num_threads(), {}
    try:
        for arm in arms:
            torch.set_num_threads(arm.threads)
            arm.act()
            repeats[arm.label] = min(max(round(LEAST_TURN_S / max(timed_s(device, arm.act), 1e-6)), 1), 1000)
        rows: list[dict[str, Any]] = []
        gc.freeze()  # else each collection between two rounds goes through all imported modules
        gc.disable()
        began_s = time.perf_counter()
        for turn in range(budget.most):
            if turn >= budget.least and time.perf_counter() - began_s > budget.seconds:
                break
            gc.collect()
            for arm in arms:
                torch.set_num_threads(arm.threads)
                calls = repeats[arm.label]
                seconds = timed_s(device, partial(_repeated, arm.act, calls)) / calls
                facts = {"arm": arm.name, "threads": arm.threads, "calls": calls, "seconds": seconds}
                rows.append({"place": len(rows), "round": turn, **facts})
        return pd.DataFrame(rows)
    finally:
        gc.enable()
        gc.unfreeze()
        torch.set_num_threads(before)


def _repeated(act: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        act()


def best(times: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The turns of an arm with the number of threads of which its median is least."""
    own = times[times["arm"] == arm]
    return own[own["threads"] == own.groupby("threads")["seconds"].median().idxmin()]


def quartiles(seconds: pd.Series, unit: str = "ms", scale: float = 1e3) -> dict[str, float]:
    """Median and interquartile range."""
    q1, median, q3 = (float(seconds.quantile(share)) * scale for share in (0.25, 0.5, 0.75))
    return {f"median_{unit}": median, f"iqr_{unit}": q3 - q1}


def ratio(own: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """The median over the rounds of the time of `own` divided by that of `other` in the same round, with its quartiles."""
    ratios = own.set_index("round")["seconds"] / other.set_index("round")["seconds"]
    return {"ratio": float(ratios.median()), "ratio_q1": float(ratios.quantile(0.25)), "ratio_q3": float(ratios.quantile(0.75))}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a line through the points on logarithmic axes, by least squares."""
    x, y = (torch.tensor(one, dtype=torch.float64).log() for one in (list(sizes), list(values)))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def named(times: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """The turns, with columns before them that say of what they are."""
    return pd.concat([pd.DataFrame(columns, index=times.index), times], axis=1)
