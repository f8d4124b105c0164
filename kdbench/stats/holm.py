"""Holm's adjustment over a family whose size was fixed before anybody looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def holm(p: Sequence[float] | np.ndarray, m: int) -> np.ndarray:
    """Adjust p values for the `m` comparisons of a family.

    Comparisons of the family that are not in `p`, or are NaN there, could not be tested: they count as p = 1, so a run that failed
    never makes the others easier. Adjust the whole family first and choose rows afterwards.

    Args:
        p: two-sided p values, at most `m`, in any order.
        m: the size of the family.

    Returns:
        Adjusted p values in the order of `p`, NaN where `p` is NaN.

    Raises:
        ValueError: more p values than the family has comparisons, or one outside [0, 1].
    """
    import numpy as np

    values = _checked(p, m)
    tested = np.isfinite(values)
    # Step down by hand: statsmodels' multipletests, which the tests hold this to, collects garbage at every call (0.1 s).
    order = np.argsort(values, kind="stable")  # NaN last, beside the p = 1 of what is not listed at all
    stepped = np.maximum.accumulate(np.where(tested, values, 1.0)[order] * (m - np.arange(len(values))))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(stepped, 1.0)
    return np.where(tested, adjusted, np.nan)


def _checked(p: Sequence[float] | np.ndarray, m: int) -> np.ndarray:
    import numpy as np

    values = np.asarray(p, dtype=float)
    if len(values) > m:
        raise ValueError(f"{len(values)} p values in a family of {m} comparisons")
    if ((values < 0) | (values > 1)).any():
        raise ValueError("a p value lies outside [0, 1]")
    return values


def holm_by_direction(p: Sequence[float] | np.ndarray, difference: Sequence[float] | np.ndarray, m: int) -> np.ndarray:
    """Adjust two-sided p values by Holm in each direction: greater and less are two families of `m` one-sided tests at alpha / 2.

    A verdict says better or worse, so it must not err in its direction either, and it needs an interval beside it. Holm over
    two-sided p values is not proven to keep to directions when the comparisons depend on each other, and no finite simultaneous
    intervals agree with it: where all but one of the comparisons differ, the last is tested at the whole alpha, and nothing is left
    for the far ends of the others (intervals that try cover 92 to 94 % instead of 95 %, simulated). In each direction at alpha / 2
    both hold under any dependence: the chance of a false or wrong-way claim anywhere is at most alpha, and
    `simultaneous.simultaneous` has the intervals.

    Where all differences have one sign, and for the least p value always, this is Holm's two-sided adjustment; where both signs are
    claimed it is larger, as the claims in one direction do not make the other's easier.

    Args:
        p: two-sided p values of symmetric tests, at most `m`, NaN where nothing was tested (it counts as p = 1).
        difference: the estimates, whose signs are the directions, in the order of `p`.
        m: the size of the family.

    Returns:
        Adjusted two-sided p values in the order of `p`, NaN where `p` is NaN.

    Raises:
        ValueError: more p values than the family has comparisons, one outside [0, 1], or not one difference a p value.
    """
    import numpy as np

    values, signs = _checked(p, m), np.asarray(difference, dtype=float)
    if values.shape != signs.shape:
        raise ValueError(f"{len(values)} p values, but {len(signs)} differences")
    positive = signs > 0
    with np.errstate(invalid="ignore"):
        greater, less = (2 * holm(np.where(toward, values / 2, 1 - values / 2), m) for toward in (positive, ~positive))
    return np.minimum(np.where(positive, greater, less), 1.0)
