"""Signs and ranks: exact tests over independent values, mean ranks, Friedman."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from operator import add
from typing import TYPE_CHECKING

from kdbench.stats.clusters import clusters
from kdbench.stats.repeats import BLOCK

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ENUMERATED = 32
"""Signs of more values than this are not enumerated."""

EXACT_FRIEDMAN = {3: 40, 4: 12}
"""Friedman's p is exact for so many objectives and at most so many rows."""

DIGITS = 11
"""Values are ranked after rounding to so many digits, so that the rounding of floating point breaks no tie."""


def rounded(values: np.ndarray, largest: float) -> np.ndarray:
    """`values` on a grid of 1e-11 of `largest`'s power of ten: differences of equal decimals become equal."""
    import numpy as np

    if not (np.isfinite(largest) and largest > 0):
        return values
    step = 10.0 ** (np.floor(np.log10(largest)) - DIGITS)
    return np.asarray(np.round(values / step) * step)


def sign_flip_p(values: Sequence[float] | np.ndarray) -> float:
    """Exact two-sided p of the mean under all 2^n changes of sign; NaN without values, where all are zero, and beyond `ENUMERATED`.

    The values must be independent and, under the null, symmetric about zero.
    """
    import numpy as np

    x = np.asarray(values, dtype=float)
    if not 0 < len(x) <= ENUMERATED or not np.any(x):
        return float("nan")
    # Sums of either half are enumerated, and pairs of them counted: 2^(n/2) numbers stand for 2^n.
    one, other = _signed_sums(x[: len(x) // 2]), np.sort(_signed_sums(x[len(x) // 2 :]))
    least = abs(x.sum()) - 1e-9 * np.abs(x).sum()
    count = len(other) - np.searchsorted(other, least - one, side="left")
    return float(min(1.0, 2 * count.sum() / 2.0 ** len(x)))


def _signed_sums(x: np.ndarray) -> np.ndarray:
    import numpy as np

    sums = np.zeros(1)
    for value in x:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def wilcoxon_p(values: Sequence[float] | np.ndarray) -> float:
    """Exact two-sided p of Wilcoxon's signed ranks; NaN without a value that differs from zero.

    Zeros are dropped; ties get their mean rank, and the distribution is that of these ranks under all changes of sign, so it is exact
    with ties as well (SciPy's `exact` takes the ranks to be 1..n).
    """
    import numpy as np

    x = np.asarray(values, dtype=float)
    x = x[x != 0]
    if not len(x):
        return float("nan")
    ranks = np.rint(2 * ranked(np.abs(x)[None])[0]).astype(int)
    chance = np.ones(1)
    for rank in ranks:
        longer = np.zeros(len(chance) + rank)
        longer[: len(chance)] += chance / 2
        longer[rank:] += chance / 2
        chance = longer
    smaller = min(ranks[x > 0].sum(), ranks[x < 0].sum())
    return float(min(1.0, 2 * chance[: smaller + 1].sum()))


def block_values(values: pd.DataFrame, blocks: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean over the repeats that have a value, of each objective in each block.

    Args:
        values: dataset, teacher, student, objective, repeat, value, as `repeats.repeat_means` returns.
        blocks: dataset, teacher, student; only these blocks (None: all).

    Returns:
        dataset, teacher, student and a column an objective; one row a block where every objective has a value.
    """
    import pandas as pd

    keys = [*BLOCK, "objective"]
    found = values.assign(teacher=values["teacher"].astype(object).where(values["teacher"].notna(), None))
    wide = found.groupby(keys, dropna=False)["value"].mean().unstack("objective").reset_index()
    wide["teacher"] = wide["teacher"].astype(object).where(wide["teacher"].notna(), None)
    if blocks is not None:
        wanted = {(row[0], row[1] if isinstance(row[1], str) else None, row[2]) for row in blocks[list(BLOCK)].itertuples(index=False)}
        wide = wide[[key in wanted for key in zip(*(wide[name] for name in BLOCK), strict=True)]]
    wide.columns = pd.Index(list(wide.columns))
    return wide.dropna(subset=[name for name in wide.columns if name not in BLOCK]).reset_index(drop=True)


def mean_ranks(values: pd.DataFrame, higher_is_better: bool = True) -> pd.DataFrame:
    """The mean rank of each objective over the blocks where all of them have a value; rank 1 is the best, ties share their mean rank.

    A mean rank depends on which objectives are ranked with it: never a test between two of them.

    Args:
        values: as for `block_values`.

    Returns:
        objective, mean_rank (NaN without a block), n_blocks; the best first, then by name.
    """
    import pandas as pd

    wide = block_values(values)
    names = [name for name in wide.columns if name not in BLOCK]
    table = wide[names].to_numpy(dtype=float)
    if len(table):
        table = rounded(table, abs(table).max())
        ranks = ranked(-table if higher_is_better else table).mean(axis=0)
        found = pd.DataFrame({"objective": names, "mean_rank": ranks, "n_blocks": len(table)})
    else:
        found = pd.DataFrame({"objective": sorted(values["objective"].unique()), "mean_rank": float("nan"), "n_blocks": 0})
    return found.sort_values(["mean_rank", "objective"], ignore_index=True)


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that all objectives are alike.

    statistic, p: over the means of independent clusters; NaN where refused (`why`). The p is exact for three or four objectives, else
        by chi-squared, which is too large rather than too small there.
    n: clusters. n_objectives: columns.
    statistic_blocks, p_blocks, n_blocks: as if the blocks were independent, by chi-squared, as the literature does it: a
        description and no test where blocks share a student or a teacher.
    """

    statistic: float
    p: float
    n: int
    n_objectives: int
    why: str
    statistic_blocks: float
    p_blocks: float
    n_blocks: int


def friedman(values: pd.DataFrame, blocks: pd.DataFrame | None = None, alpha: float = 0.05) -> Friedman:
    """Friedman's test over independent clusters of the blocks where all objectives have a value.

    Args:
        values: as for `block_values`; every objective there is a column of the test.
        blocks: dataset, teacher, student; only these (None: all).

    Returns:
        Refused, with the reason in `why`: fewer than three objectives, fewer than three clusters, crossed students and teachers, and
        fewer clusters than could give p < `alpha` if all ranked alike.
    """
    import numpy as np

    wide = block_values(values, blocks)
    names = [name for name in wide.columns if name not in BLOCK]
    table, k = wide[names].to_numpy(dtype=float), len(names)
    nothing = float("nan")
    if k < 3 or not len(table):
        why = f"{k} objectives: Friedman's test needs three" if k < 3 else "no block has a value of every objective"
        return Friedman(nothing, nothing, 0, k, why, nothing, nothing, len(table))
    largest = abs(table).max()
    every = friedman_over_rows(rounded(table, largest), exact=False)
    shared = clusters(wide)
    why = shared.refusal
    if not why and shared.n < 3:
        why = f"{shared.n} independent clusters: Friedman's test needs three"
    least = 0.0 if why else friedman_over_rows(np.tile(np.arange(float(k)), (shared.n, 1)))[1]
    if least >= alpha:
        why = f"{shared.n} independent clusters and {k} objectives: even the same order in all gives p = {least:.2g}"
    means = wide.groupby(list(shared.label))[names].mean().to_numpy(dtype=float)
    one = (nothing, nothing) if why else friedman_over_rows(rounded(means, largest))
    if not why and one[0] != one[0]:
        why = "all objectives are tied in every cluster"
    return Friedman(*one, shared.n, k, why, *every, len(table))


def friedman_over_rows(table: np.ndarray, exact: bool = True) -> tuple[float, float]:
    """Statistic and p over the rows of `table` [row, objective]; NaN where every row is one tie, or there is one row.

    The chi-squared p is too small for few objectives (4 rows of 3: P(p <= .05) is .069), so up to four the p is exact, given the ties.
    """
    from scipy import special  # scipy.stats, which the tests hold this to, takes two seconds to load

    n, k = table.shape
    if n < 2 or not (table != table[:, :1]).any():
        return float("nan"), float("nan")
    ranks = ranked(table)
    # Without ties the variance of a row's ranks is (k^2 - 1) / 12: taking it as it is corrects for ties.
    apart = ((ranks.sum(axis=0) - n * (k + 1) / 2) ** 2).sum()
    statistic = float(apart * (k - 1) / ((ranks - (k + 1) / 2) ** 2).sum())
    enumerated = exact and n <= EXACT_FRIEDMAN.get(k, 0)
    return statistic, _exact_friedman_p(ranks) if enumerated else float(special.chdtrc(k - 1, statistic))


def ranked(table: np.ndarray) -> np.ndarray:
    """The ranks within each row, from 1; ties get their mean rank."""
    import pandas as pd

    return pd.DataFrame(table).rank(axis=1).to_numpy()


def _exact_friedman_p(ranks: np.ndarray) -> float:
    """The chance of rank sums at least as far apart when each row's ranks fall on the objectives in any order."""
    import numpy as np

    doubled = np.rint(2 * ranks).astype(int)
    squares, chances = _rank_sums(tuple(sorted(tuple(sorted(row)) for row in doubled.tolist())))
    return float(min(1.0, chances[squares >= int((doubled.sum(axis=0) ** 2).sum())].sum()))


@lru_cache(maxsize=64)
def _rank_sums(rows: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """The sum of squares of the rank sums, and the chance of each: row by row over the possible rank sums in sorted order, since it does
    not matter which objective has which sum. Ranks are doubled, so whole."""
    import numpy as np

    chances: dict[tuple[int, ...], float] = {(0,) * len(rows[0]): 1.0}
    for row in rows:
        orders = list(permutations(row))
        later: dict[tuple[int, ...], float] = {}
        for sums, chance in chances.items():
            for order in orders:
                key = tuple(sorted(map(add, sums, order)))
                later[key] = later.get(key, 0.0) + chance / len(orders)
        chances = later
    return np.array([sum(one * one for one in sums) for sums in chances]), np.array(list(chances.values()))
