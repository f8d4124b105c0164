"""Which objective is best in a block, and which is not distinguishable from it: with the selection counted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdbench.stats.paired import LEAST, ROUNDING, paired_differences
from kdbench.stats.repeats import BLOCK, run_counts, summarise

BEST, TIED = "best", "tied"


def indistinguishable_from_best(runs: pd.DataFrame, alpha: float = 0.05, higher_is_better: bool = True) -> pd.DataFrame:
    """The summaries of each block, with which objective is best and which are tied with it.

    Eligible is an objective with a complete repeat and no run that failed, diverged or is damaged. Best is the best mean of the
    eligible (equal means: all of them). An eligible objective is struck out when any eligible rival beats it in a one-sided t test
    (paired, or Welch's, as in `paired`) with p < alpha / (k - 1), k the eligible objectives of the block with three or more complete
    repeats. Tied is what is not struck out and has been compared with a best one over three repeats or more: with fewer, nothing can be
    said. Where every other eligible objective of a block would be tied, none is: the mark would distinguish nothing.

    Proof that the truly best of the k is struck out with a chance of at most alpha, whichever it is: each of its k - 1 rivals is no
    better, so it beats it with a chance of at most alpha / (k - 1); the chances add up (Bonferroni). Whose mean came out best is
    nowhere used, so selection is counted (the subset selection of Gupta 1965, Technometrics 7:225; multiple comparisons with the
    best of Hsu 1984, Annals of Statistics 12:1136; for paired and unequal variances). It holds block by block.

    Args:
        runs: as for `paired.paired_differences`.

    Returns:
        The columns of `repeats.summarise` (dataset, teacher, student, objective, n, n_asked, mean, sd) with among_best: "best", "tied", or
        empty.
    """
    found = summarise(runs)
    failed, _ = run_counts(runs, found, "objective")
    eligible = (found["n"] >= 1).to_numpy() & (failed == 0)
    sign = 1.0 if higher_is_better else -1.0
    block = found.groupby(list(BLOCK), dropna=False).ngroup().to_numpy()
    score = np.where(eligible, sign * found["mean"].to_numpy(dtype=float), -np.inf)
    top = np.full(len(found), -np.inf)
    np.maximum.at(top, block, score)
    best = eligible & (score >= top[block] - ROUNDING * np.abs(np.where(eligible, top[block], 0.0)))
    one, other, tested = _pairs(runs, found, block, eligible)
    rivals = np.bincount(block, weights=eligible & (found["n"] >= LEAST).to_numpy(), minlength=len(top))[block] - 1
    # One-sided: alpha is shared by the rivals of an objective.
    beaten = (tested["p"] / 2).to_numpy() < (alpha / np.maximum(rivals, 1))[one]
    better = sign * tested["t"].to_numpy() > 0
    struck = np.zeros(len(found), dtype=bool)
    struck[other[beaten & better]] = True
    struck[one[beaten & ~better]] = True
    beside = np.zeros(len(found), dtype=bool)
    known = (tested["n"] >= LEAST).to_numpy()
    for mine, rival in ((one, other), (other, one)):
        beside[mine[known & best[rival]]] = True
    tied = eligible & beside & ~struck & ~best
    apart = np.bincount(block, weights=eligible & ~best & ~tied, minlength=len(top)) > 0
    return found.assign(among_best=np.select([best, tied & apart[block]], [BEST, TIED], ""))


def _pairs(runs: pd.DataFrame, found: pd.DataFrame, block: np.ndarray, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Every pair of eligible objectives of a block, as two arrays of rows of `found`, with its test (one minus other)."""
    rows = pd.DataFrame({"block": block, "row": np.arange(len(found))})[eligible]
    both = rows.merge(rows, on="block", suffixes=("_one", "_other"))
    both = both[both["row_one"] < both["row_other"]]
    one, other = both["row_one"].to_numpy(dtype=int), both["row_other"].to_numpy(dtype=int)
    names = found["objective"].to_numpy()
    asked = found.iloc[one][list(BLOCK)].assign(objective=names[one], baseline=names[other])
    return one, other, paired_differences(runs, asked)
