"""The paired protocol: objectives share their repeats (weights, images, order), so they are compared repeat by repeat.

Where they share none (a frame of other people's runs), Welch's t compares the means, and the column `test` names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from kdbench.stats.repeats import BLOCK, block_keys, repeat_means

ROUNDING = 1e-12
"""Differences that vary by less than this share of the values themselves vary by the rounding of floating point only."""
LEAST = 3
"""Fewer repeats than this are not tested: with two, one degree of freedom is left, and the test has almost no power."""


def family(blocks: pd.DataFrame, objectives: Sequence[str], baselines: Sequence[str]) -> pd.DataFrame:
    """Every comparison that a suite asks: each objective with each baseline in each block.

    Two baselines are compared once, the later as the objective: the mirrored comparison is the same test. A baseline that is not
    among the objectives is in no comparison.

    Args:
        blocks: dataset, teacher, student.

    Returns:
        dataset, teacher, student, baseline, objective; its length is the size of the family.
    """
    baselines = list(dict.fromkeys(baselines))
    pairs = [(baseline, objective) for baseline in baselines if baseline in objectives for objective in objectives]
    order = {baseline: place for place, baseline in enumerate(baselines)}
    kept = [(baseline, objective) for baseline, objective in pairs if order.get(objective, len(order)) > order[baseline]]
    return blocks[list(BLOCK)].merge(pd.DataFrame(kept, columns=["baseline", "objective"], dtype=object), how="cross")


def paired_differences(runs: pd.DataFrame, comparisons: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """The difference of each comparison with its t interval and p value (not adjusted).

    The test is the paired t over the repeats that both have complete, from three on. Where fewer than two are common but each side
    has three or more (seeds that do not pair), it is Welch's t with Satterthwaite's degrees of freedom over all repeats of each.
    Welch's t is approximate: over normal values at n = 3, 5, 10 on each side, P(p <= 5 %) is 3.5, 4.5, 4.8 % for equal spreads and
    5.2, 5.3, 5.1 % for spreads of 1:3 (400,000 simulations each). With unequal counts it is worse where the smaller side is the
    noisier: 6.7 % for 3 against 5 and 6.8 % for 3 against 10 (2.8 % at the level 1 %), spreads 3:1.

    Args:
        runs: dataset, teacher, student, objective, repeat, teacher_seed, value (and `state`: only finished runs pair). A run
            without teacher must stand in each of its blocks (`repeats.spread_over_blocks`). A null repeat pairs with nothing.
        comparisons: dataset, teacher, student, baseline, objective, one row a comparison.
        alpha: the interval has the confidence 1 - alpha.

    Returns:
        The rows of `comparisons` in their order, with n_asked (repeats that either has), n_objective, n_baseline (complete
        repeats of each), n (pairs; for Welch's t the lesser of the two), difference (mean of objective minus baseline), sd (of the
        differences, ddof = 1; for Welch's t the standard error times sqrt(n), so that sd / sqrt(n) is always the standard error),
        low, high, t, df, p (two-sided), d_z (difference / sd; NaN for Welch's t), correlation (of the paired values; NaN for Welch's
        t), test ("paired t", "Welch t", or empty where nothing was tested), why (the reason where there is no p value, else empty).
        Differences are in the unit of `value`.

    Raises:
        ValueError: a run occurs twice.
    """
    values = _values_by_repeat(repeat_means(runs))
    found = comparisons.reset_index(drop=True)
    one, other = ([values.places.get(key, -1) for key in block_keys(found, role)] for role in ("objective", "baseline"))
    alone = [values.alone[rows] for rows in (one, other)]
    tested = _tested((values.wide[one], values.wide[other]), alone, alpha)
    unpaired = tested.pop("unpaired")
    columns: dict[str, Any] = {
        "n_asked": (values.asked[one] | values.asked[other]).sum(axis=1) + values.asked_alone[one] + values.asked_alone[other],
        "n_objective": _count(values.wide[one]) + _count(alone[0]),
        "n_baseline": _count(values.wide[other]) + _count(alone[1]),
        **tested,
    }
    found = found.assign(**columns)
    known = (found[name] for name in ("n", "n_objective", "n_baseline", "sd", "difference"))
    found["why"] = [_reason(*row) for row in zip(*known, unpaired, strict=True)]
    return found


class Values(NamedTuple):
    """Values by row, one row a block and objective, each with an empty last row for what never ran."""

    wide: np.ndarray
    """[row, repeat], NaN where there is none: columns pair."""
    alone: np.ndarray
    """[row, k], the repeats without a number: columns do not pair."""
    asked: np.ndarray
    """[row, repeat], which were asked."""
    asked_alone: np.ndarray
    """[row], how many repeats without a number were asked."""
    places: dict[tuple[str, ...], int]


def _values_by_repeat(means: pd.DataFrame) -> Values:
    keys = block_keys(means, "objective")
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    rows, value = np.array([places[key] for key in keys], dtype=int), means["value"].to_numpy()
    named = means["repeat"].notna().to_numpy()
    # Labels of a file may mix numbers and words.
    repeats = {one: at for at, one in enumerate(sorted(means["repeat"][named].unique(), key=lambda one: (isinstance(one, str), one)))}
    wide = np.full((len(places) + 1, len(repeats)), np.nan)
    asked = np.zeros(wide.shape, dtype=bool)
    at = rows[named], np.array([repeats[repeat] for repeat in means["repeat"][named]], dtype=int)
    wide[at], asked[at] = value[named], True
    asked_alone = np.bincount(rows[~named], minlength=len(places) + 1)
    alone = np.full((len(places) + 1, asked_alone.max(initial=0)), np.nan)
    order = means[~named].groupby(rows[~named]).cumcount().to_numpy()
    alone[rows[~named], order] = value[~named]
    return Values(wide, alone, asked, asked_alone, places)


def _count(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values).sum(axis=1)


def _tested(paired: Sequence[np.ndarray], alone: Sequence[np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """The t test of every row at once.

    Args:
        paired: objective and baseline, each [comparison, repeat], NaN where there is no value.
        alone: the same for repeats without a number, each [comparison, k].
    """
    found = _paired(*paired)
    one, other = (np.hstack(sides) for sides in zip(paired, alone, strict=True))
    unpaired = (found["n"] < 2) & (_count(one) >= LEAST) & (_count(other) >= LEAST)
    if unpaired.any():
        for name, column in _welch(one[unpaired], other[unpaired]).items():
            found[name][unpaired] = column
    n, difference, sd = found["n"], found["difference"], found["sd"]
    with np.errstate(invalid="ignore", divide="ignore"):
        tested = (n >= LEAST) & (sd > 0)
        spread, df = np.where(tested, sd, np.nan), np.where(tested, found["df"], np.nan)
        error = spread / np.sqrt(n)
        t = difference / error
        half = -special.stdtrit(df, alpha / 2) * error
        p = np.minimum(2 * special.stdtr(df, -np.abs(t)), 1.0)
    return {
        **found,
        "low": difference - half,
        "high": difference + half,
        "t": t,
        "df": df,
        "p": p,
        "d_z": np.where(unpaired, np.nan, difference / spread),
        "test": np.where(tested, np.where(unpaired, "Welch t", "paired t"), "").astype(object),
        "unpaired": unpaired,
    }


def _paired(one: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    both = np.isfinite(one) & np.isfinite(other)
    one, other = np.where(both, one, np.nan), np.where(both, other, np.nan)
    n = both.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        delta = one - other
        mean = np.nansum(delta, axis=1) / n
        sd = np.sqrt(np.nansum((delta - mean[:, None]) ** 2, axis=1) / np.where(n > 1, n - 1, np.nan))
        largest = np.fmax(np.abs(one), np.abs(other)).max(axis=1, initial=0, where=both)
        sd, mean = (np.where(np.abs(number) <= ROUNDING * largest, 0.0, number) for number in (sd, mean))
    return {"n": n, "difference": mean, "sd": sd, "df": n - 1.0, "correlation": _correlation(one, other, n)}


def _welch(one: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    """Welch's t: the sd is such that sd / sqrt(n) is the standard error, n the lesser count (for equal counts Welch's own pooling)."""
    counts = [_count(side) for side in (one, other)]
    means = [np.nansum(side, axis=1) / count for side, count in zip((one, other), counts, strict=True)]
    shares = []
    for side, count, mean in zip((one, other), counts, means, strict=True):
        variance = np.nansum((side - mean[:, None]) ** 2, axis=1) / (count - 1)
        largest = np.nanmax(np.abs(side), axis=1)
        shares.append(np.where(np.sqrt(variance) <= ROUNDING * largest, 0.0, variance) / count)
    squared, n = shares[0] + shares[1], np.minimum(*counts)
    with np.errstate(invalid="ignore"):
        df = squared**2 / sum(share**2 / (count - 1) for share, count in zip(shares, counts, strict=True))
    sd = np.sqrt(squared * n)
    return {"n": n, "difference": means[0] - means[1], "sd": sd, "df": df, "correlation": np.full(len(n), np.nan)}


def _correlation(one: np.ndarray, other: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row over its pairs; NaN for fewer than three pairs, where it is always 1 or -1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x = one - (np.nansum(one, axis=1) / n)[:, None]
        y = other - (np.nansum(other, axis=1) / n)[:, None]
        r = np.nansum(x * y, axis=1) / np.sqrt(np.nansum(x * x, axis=1) * np.nansum(y * y, axis=1))
    return np.where(n >= 3, r, np.nan)


def _reason(n: int, n_objective: int, n_baseline: int, sd: float, difference: float, unpaired: bool) -> str:
    if n == 0:
        empty = [name for name, count in (("the objective", n_objective), ("the baseline", n_baseline)) if count == 0]
        return f"no complete repeat of {' and '.join(empty)}" if empty else "no repeat is complete in both"
    if n == 1:
        return "one repeat only: no spread to test against"
    if n < LEAST:
        return "there are only two repeats, and a test needs three"
    if sd == 0 and unpaired:
        return "each has the same value in all its repeats: no spread to test against"
    if sd == 0:
        return f"{'the same difference' if difference else 'equal to the baseline'} in all {n} repeats: no spread to test against"
    return ""
