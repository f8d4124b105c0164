"""Two one-sided tests: is a difference small enough to call the two equal?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.stats.holm import holm

if TYPE_CHECKING:
    import pandas as pd


def equivalence(tested: pd.DataFrame, margin: float | None) -> pd.DataFrame:
    """The p value of "the difference lies within -margin .. margin", alone and by Holm over the family.

    Two one-sided t tests (Schuirmann 1987): p is the larger of the two. With the standard error and the degrees of freedom of the
    difference it serves the paired t and Welch's t alike; paired, it is statsmodels' `ttost_paired`.

    Args:
        tested: all comparisons of the family, with difference, sd, n, df, p as `paired.paired_differences` gives them. Those that
            were not tested stay so here and count as p = 1.
        margin: in the unit of `value`, and fixed before the runs; None: nothing is tested.

    Returns:
        `tested` with p_equal and p_equal_holm, NaN where nothing was tested. The family is one of its own: a wrong "equal" and a
        wrong "better" have alpha each.

    Raises:
        ValueError: the margin is not a positive number.
    """
    import numpy as np
    from scipy import special

    if margin is None:
        return tested.assign(p_equal=np.nan, p_equal_holm=np.nan)
    if not 0 < margin < np.inf:
        raise ValueError(f"a margin of {margin}: equivalence needs a positive number in the unit of the metric, or none")
    difference, n, df = (tested[name].to_numpy(dtype=float) for name in ("difference", "n", "df"))
    error = tested["sd"].to_numpy(dtype=float) / np.sqrt(np.maximum(n, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = special.stdtr(df, (np.abs(difference) - margin) / error)
    p = np.where(tested["p"].isna(), np.nan, p)
    return tested.assign(p_equal=p, p_equal_holm=holm(p.tolist(), len(tested)))
