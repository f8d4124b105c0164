"""From runs to verdicts: every comparison of a family, tested, adjusted for the family's size, and judged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from kdbench.stats.paired import paired_differences
from kdbench.stats.repeats import BLOCK, run_counts

BETTER, WORSE, EQUAL, UNDECIDED, UNSTABLE = "better", "worse", "equal", "undecided", "unstable"
BELOW = " but below the margin"
VERDICTS = (BETTER, BETTER + BELOW, EQUAL, WORSE + BELOW, WORSE, UNDECIDED, UNSTABLE)


def compare(
    runs: pd.DataFrame,
    asked: pd.DataFrame,
    alpha: float = 0.05,
    margin: float | None = None,
    higher_is_better: bool = True,
    collapsed: Collection[str] = frozenset(),
) -> pd.DataFrame:
    """Every comparison of a family with its test, its adjusted p values, its intervals and its verdict.

    Args:
        runs: as for `paired.paired_differences`; where there is a column `state`, its failed runs are counted.
        asked: the whole family (`paired.family`), one row a comparison; its length is what the p values are adjusted for. Select rows
            only afterwards.
        alpha: the chance of a wrong better or worse anywhere in the family, and again of a wrong equal.
        margin: differences within it count as equal, in the unit of `value`; None: nothing is called equal.
        collapsed: objectives with runs that collapse (`collapse.collapsed_runs`).

    Returns:
        The rows of `asked` in their order with the columns of `paired.paired_differences`, failed_objective, failed_baseline (runs that
        failed), runs_objective, runs_baseline (all runs) and the columns of `judge`.

    Raises:
        ValueError: a run or a comparison occurs twice; alpha is no probability, or the margin no positive number.
    """
    twice = asked.duplicated([*BLOCK, "baseline", "objective"])
    if twice.any():
        raise ValueError(f"{int(twice.sum())} comparisons occur twice in the family, the first: {asked[twice].iloc[0].to_dict()}")
    found = paired_differences(runs, asked, alpha)
    for role in ("objective", "baseline"):
        found[f"failed_{role}"], found[f"runs_{role}"] = run_counts(runs, found, role)
    return judge(found, alpha, margin, higher_is_better, collapsed)


def judge(
    tested: pd.DataFrame, alpha: float, margin: float | None, higher_is_better: bool, collapsed: Collection[str] = frozenset()
) -> pd.DataFrame:
    """Adjust the tests of a family for its size, and judge them.

    Equivalence is two one-sided t tests (Schuirmann 1987); its p value is the larger of the two. Its family is separate: a wrong
    "equal" and a wrong "better" or "worse" have a chance of alpha each.

    Args:
        tested: the whole family, with the columns of `paired.paired_differences` and the counts of runs that `compare` adds.

    Returns:
        `tested` with p_holm; low_all, high_all (Bonferroni: the t interval at alpha / family size, so all of them hold together with the
        confidence 1 - alpha); p_equal, p_equal_holm (that the difference lies within the margin; NaN without a margin); verdict (one of
        VERDICTS), verdict_why (why it is undecided or unstable; empty where the test found nothing).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}: it must be a probability between 0 and 1")
    if margin is not None and not 0 < margin < np.inf:
        raise ValueError(f"the margin is {margin}: equivalence needs a positive number in the unit of the metric, or none")
    m = len(tested)
    difference, sd, n, df, p = (tested[name].to_numpy(dtype=float) for name in ("difference", "sd", "n", "df", "p"))
    error = np.where(np.isnan(p), np.nan, sd / np.sqrt(np.maximum(n, 1)))
    half = -special.stdtrit(df, alpha / 2 / max(m, 1)) * error
    p_equal = np.full(m, np.nan) if margin is None else special.stdtr(df, (np.abs(difference) - margin) / error)
    found = tested.assign(p_holm=holm(p, m), low_all=difference - half, high_all=difference + half)
    found = found.assign(p_equal=p_equal, p_equal_holm=holm(p_equal, m))
    judged = [_verdict(row, alpha, higher_is_better, collapsed) for row in found.to_dict(orient="records")]
    return found.assign(verdict=[verdict for verdict, _ in judged], verdict_why=[why for _, why in judged])


def holm(p: Sequence[float] | np.ndarray, m: int) -> np.ndarray:
    """Two-sided p values adjusted by Holm for the `m` comparisons of a family: the k-th smallest is multiplied by m + 1 - k, and is at
    least the one before.

    Comparisons that are NaN in `p`, or not in it, could not be tested and count as p = 1: a failed run never makes the others easier.

    Raises:
        ValueError: more p values than the family has comparisons, or one outside [0, 1].
    """
    values = np.asarray(p, dtype=float)
    if len(values) > m:
        raise ValueError(f"{len(values)} p values in a family of {m} comparisons")
    if ((values < 0) | (values > 1)).any():
        raise ValueError("a p value lies outside [0, 1]")
    if np.isnan(values).all():
        return values
    full = np.concatenate([np.where(np.isnan(values), 1.0, values), np.ones(m - len(values))])
    order, adjusted = np.argsort(full), np.empty(m)
    adjusted[order] = np.maximum.accumulate(full[order] * np.arange(m, 0, -1)).clip(max=1.0)
    return np.where(np.isnan(values), np.nan, adjusted[: len(values)])


def _verdict(row: dict[Any, Any], alpha: float, higher_is_better: bool, collapsed: Collection[str]) -> tuple[str, str]:
    """Better and worse need p_holm < alpha, equal needs p_equal_holm < alpha; both together are "better (worse) but below the margin".

    A mean over the runs that did not fail flatters. So an objective with failed runs is never better, a baseline with failed runs never
    makes the objective worse, and with either nothing is equal or below the margin. The p values stay as they are.
    """
    unstable = [row[role] for role in ("objective", "baseline") if row[role] in collapsed]
    if unstable:
        return UNSTABLE, f"runs of {' and '.join(unstable)} collapse: no t test is valid"
    differs, close = row["p_holm"] < alpha, row["p_equal_holm"] < alpha
    if row["why"] or not (differs or close):
        return UNDECIDED, row["why"]
    survivors = [
        f"{row[f'failed_{role}']} of {row[f'runs_{role}']} runs{whose} failed: the mean is over survivors" if row[f"failed_{role}"] else ""
        for role, whose in (("objective", ""), ("baseline", " of the baseline"))
    ]
    if not differs:
        forbidden = "; ".join(filter(None, survivors))
        return (UNDECIDED, forbidden) if forbidden else (EQUAL, "")
    gains = (row["difference"] > 0) == higher_is_better
    forbidden = survivors[0 if gains else 1]
    if forbidden:
        return UNDECIDED, forbidden
    return (BETTER if gains else WORSE) + (BELOW if close and not any(survivors) else ""), ""
