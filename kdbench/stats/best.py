"""Which objective is best in a block, and which cannot be told from the best: with the selection counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.stats.paired import LEAST, ROUNDING, paired_differences
from kdbench.stats.repeats import BLOCK, run_counts, summarise

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

BEST, TIED = "best", "tied"


def standings(runs: pd.DataFrame, alpha: float = 0.05, higher_is_better: bool = True) -> pd.DataFrame:
    """The summaries of each block with what stands best and what is tied with it.

    Eligible is an objective with a complete repeat and no run that failed, diverged or is damaged. Best is the best mean of the
    eligible (equal means: all of them). An eligible objective is struck out when any eligible rival beats it in a one-sided t test
    (paired, or Welch's, as in `paired`) with p < alpha / (k - 1), k the eligible objectives of the block with three or more complete
    repeats. Tied is what is not struck out and has been set beside a best one over three repeats or more: with fewer, nothing can be
    said.

    Proof that the truly best of the k is struck out with a chance of at most alpha, whichever it is: each of its k - 1 rivals is no
    better, so it beats it with a chance of at most alpha / (k - 1); the chances add up (Bonferroni). Whose mean came out best is
    nowhere used, so selection is counted (the subset selection of Gupta 1965, Technometrics 7:225; multiple comparisons with the
    best of Hsu 1984, Annals of Statistics 12:1136; for paired and unequal variances). It holds block by block.

    Args:
        runs: as for `paired.paired_differences`.

    Returns:
        The columns of `repeats.summarise` (dataset, teacher, student, objective, n, n_asked, mean, sd) with standing: "best", "tied", or
        empty.
    """
    import numpy as np

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
    struck = _struck(one, other, sign * tested["t"].to_numpy(), tested, _level(found, block, eligible, alpha))
    beside = np.zeros(len(found), dtype=bool)
    known = (tested["n"] >= LEAST).to_numpy()
    for mine, rival in ((one, other), (other, one)):
        beside[mine[known & best[rival]]] = True
    return found.assign(standing=np.select([best, eligible & beside & ~struck], [BEST, TIED], ""))


def _pairs(runs: pd.DataFrame, found: pd.DataFrame, block: np.ndarray, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Every pair of eligible objectives of a block, as two arrays of rows of `found`, with its test (one minus other)."""
    import numpy as np
    import pandas as pd

    rows = pd.DataFrame({"block": block, "row": np.arange(len(found))})[eligible]
    both = rows.merge(rows, on="block", suffixes=("_one", "_other"))
    both = both[both["row_one"] < both["row_other"]]
    one, other = both["row_one"].to_numpy(dtype=int), both["row_other"].to_numpy(dtype=int)
    names = found["objective"].to_numpy()
    asked = found.iloc[one][list(BLOCK)].assign(objective=names[one], baseline=names[other])
    return one, other, paired_differences(runs, asked)


def _level(found: pd.DataFrame, block: np.ndarray, eligible: np.ndarray, alpha: float) -> np.ndarray:
    """The one-sided level of each row's block: alpha shared by the rivals of an objective."""
    import numpy as np

    counted = eligible & (found["n"] >= LEAST).to_numpy()
    k = np.bincount(block, weights=counted, minlength=block.max(initial=-1) + 1)[block]
    return alpha / np.maximum(k - 1, 1)


def _struck(one: np.ndarray, other: np.ndarray, t: np.ndarray, tested: pd.DataFrame, level: np.ndarray) -> np.ndarray:
    import numpy as np

    beaten = (tested["p"] / 2).to_numpy() < level[one]
    struck = np.zeros(len(level), dtype=bool)
    struck[other[beaten & (t > 0)]] = True
    struck[one[beaten & (t < 0)]] = True
    return struck
