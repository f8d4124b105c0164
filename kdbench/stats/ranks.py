"""Mean ranks of objectives over blocks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdbench.stats.repeats import block_keys

DIGITS = 11
"""Values are ranked after rounding to so many digits, so that the rounding of floating point breaks no tie."""


def rounded(values: np.ndarray, largest: float) -> np.ndarray:
    """`values` on a grid of 1e-11 of `largest`'s power of ten: differences of equal decimals become equal."""
    if not (np.isfinite(largest) and largest > 0):
        return values
    step = 10.0 ** (np.floor(np.log10(largest)) - DIGITS)
    return np.asarray(np.round(values / step) * step)


def mean_ranks(values: pd.DataFrame, higher_is_better: bool = True) -> pd.DataFrame:
    """The mean rank of each objective over the blocks where all of them have a value; rank 1 is the best, ties share their mean rank.

    A mean rank depends on which objectives are ranked with it: never a test between two of them.

    Args:
        values: dataset, teacher, student, objective, repeat, value, as `repeats.repeat_means` returns.

    Returns:
        objective, mean_rank (NaN without a block), n_blocks; the best first, then by name.
    """
    keys = [key[:-1] for key in block_keys(values, "objective")]
    # A column an objective and nothing besides: an objective may have any name.
    means = values["value"].groupby([pd.Index(keys, tupleize_cols=False), values["objective"]]).mean().unstack()
    table = means.dropna().to_numpy(dtype=float)
    if len(table):
        table = rounded(table, abs(table).max())
    ranks = pd.DataFrame(-table if higher_is_better else table).rank(axis=1).mean().to_numpy()
    found = pd.DataFrame({"objective": means.columns, "mean_rank": ranks, "n_blocks": len(table)})
    return found.sort_values(["mean_rank", "objective"], ignore_index=True)
