"""Repeats are the unit: runs become one value a repeat, and repeats become mean and standard deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

BLOCK = ("dataset", "teacher", "student")


def spread_over_blocks(runs: pd.DataFrame, blocks: pd.DataFrame) -> pd.DataFrame:
    """Give each row without a teacher to every block of its dataset and student.

    Args:
        runs: one row a run or profile, with the columns dataset, teacher (null: trained without one), student, and any others.
        blocks: one row a block, with the columns dataset, teacher, student.

    Returns:
        The columns of `runs`; a row without teacher stands once in each of its blocks, and nowhere if it has none.
    """
    import pandas as pd

    alone = runs["teacher"].isna()
    if not alone.any():
        return runs.reset_index(drop=True)
    shared = runs[alone].drop(columns="teacher").merge(blocks[list(BLOCK)].drop_duplicates(), on=["dataset", "student"])
    parts = [part[list(runs.columns)] for part in (runs[~alone], shared) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else runs.iloc[:0]


def repeat_means(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over teacher seeds, so that one value a repeat is left.

    A repeat counts only when each of its runs has a value: a mean over fewer teachers would be a mean over other teachers.

    Args:
        runs: dataset, teacher, student, objective, repeat, teacher_seed, value; where there is a column `state`, only rows with
            the state `finished` have a value.

    Returns:
        dataset, teacher, student, objective, repeat, value (NaN for an incomplete repeat).

    Raises:
        ValueError: a run stands there twice.
    """
    import numpy as np

    keys = [*BLOCK, "objective", "repeat"]
    twice = runs.duplicated([*keys, "teacher_seed"])
    if twice.any():
        raise ValueError(f"{int(twice.sum())} runs stand there twice, the first: {runs.loc[twice, keys].iloc[0].to_dict()}")
    value = runs["value"].astype(float)
    usable = np.isfinite(value)
    if "state" in runs:
        usable &= runs["state"] == "finished"
    grouped = runs[keys].assign(value=value.where(usable)).groupby(keys, dropna=False)["value"]
    means = grouped.agg(["mean", "count", "size"]).reset_index()
    means["value"] = means["mean"].where(means["count"] == means["size"])
    return means[[*keys, "value"]]


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of each objective in each block.

    Args:
        runs: as for `repeat_means`.

    Returns:
        dataset, teacher, student, objective, n (complete repeats), n_asked (repeats), mean, sd (ddof = 1; NaN for n < 2), in the
        unit of `value`.
    """
    keys = [*BLOCK, "objective"]
    grouped = repeat_means(runs).groupby(keys, dropna=False)["value"]
    summary = grouped.agg(n="count", n_asked="size", mean="mean", sd="std")
    return summary.reset_index()
