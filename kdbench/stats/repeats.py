"""Repeats are the unit: runs become one value a repeat, and repeats become mean and standard deviation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

BLOCK = ("dataset", "teacher", "student")
FAILED = ("failed", "diverged", "damaged")
"""States of a run that was tried and left no result: what remains of its objective are survivors."""


def block_key(block: Sequence[Any], objective: str) -> tuple[str, ...]:
    """One key for a block and objective: a null teacher is None or NaN, by way of where the frame comes from."""
    return (*(name if isinstance(name, str) else "" for name in block), objective)


def block_keys(table: pd.DataFrame, last: str) -> list[tuple[str, ...]]:
    """`block_key` of each row, with the column `last` as its objective."""
    blocks = [[name if isinstance(name, str) else "" for name in table[column].to_numpy(object)] for column in BLOCK]
    return list(zip(*blocks, table[last].to_numpy(object), strict=True))


def spread_over_blocks(runs: pd.DataFrame, blocks: pd.DataFrame) -> pd.DataFrame:
    """Give each row without a teacher to every block of its dataset and student.

    Args:
        runs: one row a run or profile, with the columns dataset, teacher (null: trained without one), student, and any others.
        blocks: one row a block, with the columns dataset, teacher, student.

    Returns:
        The columns of `runs`; a row without teacher occurs once for each of its blocks, and is left out if it has none.
    """
    alone = runs["teacher"].isna()
    if not alone.any():
        return runs.reset_index(drop=True)
    shared = runs[alone].drop(columns="teacher").merge(blocks[list(BLOCK)].drop_duplicates(), on=["dataset", "student"])
    parts = [part[list(runs.columns)] for part in (runs[~alone], shared) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else runs.iloc[:0]


def repeat_means(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over teacher seeds, so that one value a repeat is left.

    A repeat counts only when each of its runs has a value: a mean over fewer teachers would be a mean over other teachers. A run
    whose `repeat` is null is a repeat of its own, which pairs with nothing.

    Args:
        runs: dataset, teacher, student, objective, repeat, teacher_seed, value; where there is a column `state`, only rows with
            the state `finished` have a value.

    Returns:
        dataset, teacher, student, objective, repeat, value (NaN for an incomplete repeat); the runs with a null repeat in the order
        of their values.

    Raises:
        ValueError: a run occurs twice (where the repeat is null, by the column `id`, if there is one).
    """
    keys = [*BLOCK, "objective", "repeat"]
    unnamed = runs["repeat"].isna()
    twice = runs.duplicated([*keys, "teacher_seed"]) & ~unnamed
    if "id" in runs:  # without a repeat's number only the id distinguishes two runs from one run that occurs twice
        twice |= unnamed & runs["id"].notna() & runs.duplicated([*keys[:-1], "id"])
    if twice.any():
        raise ValueError(f"{int(twice.sum())} runs occur twice, the first: {runs.loc[twice, keys].iloc[0].to_dict()}")
    value = runs["value"].astype(float)
    usable = np.isfinite(value)
    if "state" in runs:
        usable &= runs["state"] == "finished"
    value = value.where(usable)
    # Numbered by value, not by place: the order of the rows must not reach the sums.
    own = np.where(runs["repeat"].isna(), np.argsort(np.argsort(value.to_numpy())), -1)
    grouped = runs[keys].assign(value=value, own=own).groupby([*keys, "own"], dropna=False)["value"]
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
    return grouped.agg(n="count", n_asked="size", mean="mean", sd="std").reset_index()


def run_counts(runs: pd.DataFrame, comparisons: pd.DataFrame, role: str) -> tuple[np.ndarray, np.ndarray]:
    """How many runs of one side of each comparison failed, and how many there are.

    A run failed where its state is one of FAILED, and where it finished without a value of the metric.

    Args:
        runs: dataset, teacher, student, objective, value, and `state`, without which nothing is known to have failed.
        comparisons: dataset, teacher, student, and the column `role`.
        role: "objective" or "baseline".

    Returns:
        Two arrays of counts, one number a comparison.
    """
    lost: Any = False
    if "state" in runs:
        lost = runs["state"].isin(FAILED) | (runs["state"] == "finished") & ~np.isfinite(runs["value"].astype(float))
    counts = runs.assign(lost=lost).groupby([*BLOCK, "objective"], dropna=False)["lost"].agg(["sum", "size"]).reset_index()
    failed, every = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for key, some, whole in zip(block_keys(counts, "objective"), counts["sum"], counts["size"], strict=True):
        failed[key], every[key] = int(some), int(whole)
    keys = block_keys(comparisons, role)
    return np.array([failed[key] for key in keys], dtype=int), np.array([every[key] for key in keys], dtype=int)
