"""The paired protocol: objectives share their repeats (weights, images, order), so they are compared repeat by repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdbench.stats.repeats import BLOCK, repeat_means

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROUNDING = 1e-12
"""Differences that vary by less than this share of the values themselves vary by the rounding of floating point only."""


def family(blocks: pd.DataFrame, objectives: Sequence[str], baselines: Sequence[str]) -> pd.DataFrame:
    """Every comparison that a suite asks: each objective with each baseline in each block.

    Two baselines are compared once, the later as the objective: the mirrored comparison is the same test. A baseline that is not
    among the objectives is in no comparison.

    Args:
        blocks: dataset, teacher, student.

    Returns:
        dataset, teacher, student, baseline, objective; its length is the size of the family.
    """
    import pandas as pd

    baselines = list(dict.fromkeys(baselines))
    pairs = [(baseline, objective) for baseline in baselines if baseline in objectives for objective in objectives]
    order = {baseline: place for place, baseline in enumerate(baselines)}
    kept = [(baseline, objective) for baseline, objective in pairs if order.get(objective, len(order)) > order[baseline]]
    return blocks[list(BLOCK)].merge(pd.DataFrame(kept, columns=["baseline", "objective"], dtype=object), how="cross")


def paired_differences(runs: pd.DataFrame, comparisons: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """The paired difference of each comparison with its t interval and p value (not adjusted).

    Args:
        runs: dataset, teacher, student, objective, repeat, teacher_seed, value (and `state`: only finished runs pair). A run
            without teacher must stand in each of its blocks (`repeats.spread_over_blocks`).
        comparisons: dataset, teacher, student, baseline, objective, one row a comparison.
        alpha: the interval has the confidence 1 - alpha.

    Returns:
        The rows of `comparisons` in their order, with n_asked (repeats that either has), n_objective, n_baseline (complete
        repeats of each), n (pairs), difference (mean of objective minus baseline), sd (of the differences, ddof = 1), low, high, t,
        p (two-sided), d_z (difference / sd), correlation (of the paired values), why (the reason where there is no p value, else
        empty).
        Differences are in the unit of `value`.
    """
    wide, asked, places = _values_by_repeat(repeat_means(runs))
    found = comparisons.reset_index(drop=True)
    keys = list(zip(*(found[name] for name in BLOCK), strict=True))
    rows = {
        role: [places.get(_key(key, name), -1) for key, name in zip(keys, found[role], strict=True)] for role in ("objective", "baseline")
    }
    one, other = wide[rows["objective"]], wide[rows["baseline"]]
    columns: dict[str, Any] = {
        "n_asked": (asked[rows["objective"]] | asked[rows["baseline"]]).sum(axis=1),
        "n_objective": (one == one).sum(axis=1),
        "n_baseline": (other == other).sum(axis=1),
        **_tested(one, other, alpha),
    }
    found = found.assign(**columns)
    found["why"] = [_reason(*row) for row in zip(*(found[name] for name in REASON_FROM), strict=True)]
    return found


def _values_by_repeat(means: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, dict[tuple[str, ...], int]]:
    """Values [block and objective, repeat] and which were asked, each with an empty last row; and the row of each block and
    objective."""
    import numpy as np

    keys = [_key(key, name) for *key, name in zip(*(means[name] for name in (*BLOCK, "objective")), strict=True)]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    repeats = {repeat: place for place, repeat in enumerate(sorted(means["repeat"].unique()))}
    wide = np.full((len(places) + 1, len(repeats)), np.nan)
    asked = np.zeros(wide.shape, dtype=bool)
    at = [places[key] for key in keys], [repeats[repeat] for repeat in means["repeat"]]
    wide[at] = means["value"].to_numpy()
    asked[at] = True
    return wide, asked, places


def _key(block: Sequence[Any], objective: str) -> tuple[str, ...]:
    # A null teacher is None or NaN, by way of where the frame comes from.
    return (*(name if isinstance(name, str) else "" for name in block), objective)


def _tested(one: np.ndarray, other: np.ndarray, alpha: float) -> dict[str, np.ndarray]:
    """Paired t of every row at once: `one` and `other` are [comparison, repeat], NaN where there is no value."""
    import numpy as np
    from scipy import special

    both = np.isfinite(one) & np.isfinite(other)
    one, other = np.where(both, one, np.nan), np.where(both, other, np.nan)
    n = both.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        delta = one - other
        mean = np.nansum(delta, axis=1) / n
        sd = np.sqrt(np.nansum((delta - mean[:, None]) ** 2, axis=1) / np.where(n > 1, n - 1, np.nan))
        largest = np.fmax(np.abs(one), np.abs(other)).max(axis=1, initial=0, where=both)
        sd = np.where(sd <= ROUNDING * largest, 0.0, sd)
        spread = np.where(sd > 0, sd, np.nan)
        error = spread / np.sqrt(n)
        t = mean / error
        half = -special.stdtrit(n - 1, alpha / 2) * error
        p = np.minimum(2 * special.stdtr(n - 1, -np.abs(t)), 1.0)
    low, high = mean - half, mean + half
    found = {"n": n, "difference": mean, "sd": sd, "low": low, "high": high, "t": t, "p": p, "d_z": mean / spread}
    return {**found, "correlation": _correlation(one, other, n)}


def _correlation(one: np.ndarray, other: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row over its pairs; NaN for fewer than three pairs, where it says nothing."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        x = one - (np.nansum(one, axis=1) / n)[:, None]
        y = other - (np.nansum(other, axis=1) / n)[:, None]
        r = np.nansum(x * y, axis=1) / np.sqrt(np.nansum(x * x, axis=1) * np.nansum(y * y, axis=1))
    return np.where(n >= 3, r, np.nan)


REASON_FROM = ("n", "n_objective", "n_baseline", "sd", "difference")


def _reason(n: int, n_objective: int, n_baseline: int, sd: float, difference: float) -> str:
    if n == 0:
        empty = [name for name, count in (("the objective", n_objective), ("the baseline", n_baseline)) if count == 0]
        return f"no complete repeat of {' and '.join(empty)}" if empty else "no repeat is complete in both"
    if n == 1:
        return "one pair only: no spread to test against"
    if sd == 0 and difference == 0:
        return f"the same value in all {n} repeats: no spread to test against"
    if sd == 0:
        return f"the same difference in all {n} repeats: no spread to test against"
    return ""
