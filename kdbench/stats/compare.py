"""From runs to verdicts: every comparison of a family, tested, adjusted and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.stats.equivalence import equivalence
from kdbench.stats.holm import holm_by_direction
from kdbench.stats.paired import paired_differences
from kdbench.stats.repeats import BLOCK, run_counts
from kdbench.stats.simultaneous import simultaneous
from kdbench.stats.verdict import verdicts

if TYPE_CHECKING:
    import pandas as pd


def compare(
    runs: pd.DataFrame, asked: pd.DataFrame, alpha: float = 0.05, margin: float | None = None, higher_is_better: bool = True
) -> pd.DataFrame:
    """Every comparison of a family with its test, its adjusted p values, its intervals and its verdict.

    Args:
        runs: as for `paired.paired_differences`; where there is a column `state`, its failed runs are counted.
        asked: the whole family (`paired.family`), one row a comparison: its length is what Holm adjusts for. Choose rows afterwards.
        alpha: the chance of a wrong better or worse anywhere in the family, and again of a wrong equal.
        margin: differences within it count as equal, in the unit of `value`; None: nothing is called equal.

    Returns:
        The rows of `asked` in their order with the columns of `paired.paired_differences`, p_holm (`holm.holm_by_direction`), low_all,
        high_all (`simultaneous`), p_equal, p_equal_holm (`equivalence`), failed_objective, failed_baseline (runs that failed, diverged
        or are damaged), runs_objective, runs_baseline (all runs), verdict, verdict_why (`verdict.verdicts`).

    Raises:
        ValueError: a run or a comparison stands there twice; alpha is no probability, or the margin no positive number.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}: a probability between 0 and 1 is needed")
    twice = asked.duplicated([*BLOCK, "baseline", "objective"])
    if twice.any():
        raise ValueError(f"{int(twice.sum())} comparisons stand in the family twice, the first: {asked[twice].iloc[0].to_dict()}")
    found = paired_differences(runs, asked, alpha)
    found["p_holm"] = holm_by_direction(found["p"].tolist(), found["difference"].tolist(), len(asked))
    found = equivalence(simultaneous(found, alpha), margin)
    for role in ("objective", "baseline"):
        counts = run_counts(runs, found, role)
        found[f"failed_{role}"], found[f"runs_{role}"] = counts
    return verdicts(found, alpha, higher_is_better)
