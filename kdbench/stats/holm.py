"""Holm's adjustment over a family whose size was fixed before anybody looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def holm(p: Sequence[float], m: int) -> np.ndarray:
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
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(p, dtype=float)
    if len(values) > m:
        raise ValueError(f"{len(values)} p values in a family of {m} comparisons")
    tested = np.isfinite(values)
    if ((values[tested] < 0) | (values[tested] > 1)).any() or np.isinf(values).any():
        raise ValueError("a p value lies outside [0, 1]")
    if not tested.any():
        return np.full(len(values), np.nan)
    whole = np.ones(m)
    whole[: len(values)] = np.where(tested, values, 1.0)
    adjusted = multipletests(whole, method="holm")[1][: len(values)]
    return np.where(tested, adjusted, np.nan)
