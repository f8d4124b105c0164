"""Intervals that hold for all comparisons of a family at once, and that say what Holm says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.stats.holm import holm_by_direction

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def simultaneous(tested: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """The simultaneous confidence intervals of a family that agree with `holm.holm_by_direction`.

    Lower bounds belong to the m one-sided tests of "greater" by Holm at alpha / 2, upper bounds to those of "less". Let r of the m be
    rejected in one direction. A difference that is rejected has the bound 0 on that side: its sign is established and no more
    (the price of Holm's power). Every other bound of that side is the one-sided t bound at alpha / (2 (m - r)), so the far bound of
    a difference claimed as greater is at alpha / (2 (m - number claimed as less)). Only where all m are rejected in one direction
    are their near bounds max(0, the bound at alpha / (2 m)).

    Proof for the lower bounds (Strassburger & Bretz 2008, Statistics in Medicine 27:4914; Guilbaud 2008, Biometrical Journal 50:678).
    Let k > 0 true differences be <= 0. With the chance 1 - alpha / 2 their k bounds at alpha / (2 k) hold (Bonferroni). Then Holm
    rejects none of the k, so m - r >= k and their bounds hold; the others' bounds are <= 0, below their true differences. If k = 0,
    all bounds are <= 0 unless all are rejected, and then Bonferroni's hold. The upper bounds are the same with the signs turned.
    Together: coverage >= 1 - alpha, proven under any dependence between comparisons, as far as each t test keeps its level (paired
    t: for normal differences; Welch's: approximately).

    Args:
        tested: all comparisons of the family, with difference, sd, n, df, p as `paired.paired_differences` gives them. Those that
            were not tested (p is NaN) count in m.
        alpha: the confidence is 1 - alpha.

    Returns:
        `tested` with low_all and high_all, in the unit of `value`; NaN where nothing was tested. The interval excludes zero where
        low_all >= 0 or high_all <= 0, which is exactly where the adjusted p is below alpha: a bound of 0.0 is open, and an interval
        that contains zero has no such bound.
    """
    import numpy as np

    difference, sd, n, df, p = (tested[name].to_numpy(dtype=float) for name in ("difference", "sd", "n", "df", "p"))
    low, high = bounds(difference, sd / np.sqrt(np.maximum(n, 1)), df, p, alpha)
    return tested.assign(low_all=low, high_all=high)


def bounds(difference: np.ndarray, error: np.ndarray, df: np.ndarray, p: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper bounds of `simultaneous`, one of each a comparison of the family.

    Args:
        error: standard errors of the differences.
        df: degrees of freedom of their t tests.
        p: two-sided, NaN where nothing was tested.
    """
    import numpy as np

    claimed = holm_by_direction(p, difference, len(p)) < alpha
    low = _lower(difference, error, df, claimed & (difference > 0), alpha / 2)
    high = -_lower(-difference, error, df, claimed & (difference < 0), alpha / 2)
    untested = np.isnan(p)
    return np.where(untested, np.nan, low), np.where(untested, np.nan, high)


def _lower(difference: np.ndarray, error: np.ndarray, df: np.ndarray, rejected: np.ndarray, level: float) -> np.ndarray:
    """Lower bounds at the simultaneous one-sided `level`, given which of the family Holm rejects in favour of greater."""
    import numpy as np
    from scipy import special

    m, r = len(difference), int(rejected.sum())
    bound = difference + special.stdtrit(df, level / (m - r if r < m else max(m, 1))) * error
    # Just below zero where it is not excluded, whatever the rounding: 0.0 says excluded.
    return np.where(rejected, np.maximum(bound, 0.0) if r == m else 0.0, np.minimum(bound, np.nextafter(0.0, -1.0)))
