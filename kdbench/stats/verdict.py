"""What a comparison comes to, in one word, and why where it comes to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

BETTER, WORSE, EQUAL, UNDECIDED = "better", "worse", "equal", "undecided"
BELOW = " but below the margin"
VERDICTS = (BETTER, BETTER + BELOW, EQUAL, WORSE + BELOW, WORSE, UNDECIDED)
"""All of them, from good to bad."""


def verdicts(compared: pd.DataFrame, alpha: float = 0.05, higher_is_better: bool = True) -> pd.DataFrame:
    """The verdict of each comparison: about the objective, against its baseline.

    Better and worse need p_holm < alpha, equal needs p_equal_holm < alpha; both together are "better (worse) but below the margin".
    Where a run failed, diverged or is damaged, the mean is over survivors, which flatters: an objective with such runs is never
    better, a baseline with such runs never makes the objective worse, and with either nothing is equal or below the margin. The p
    values stay as they are.

    Args:
        compared: difference, p_holm, p_equal_holm, why (as `paired`, `holm`, `equivalence` give them), failed_objective,
            failed_baseline (runs that failed, diverged or are damaged), runs_objective, runs_baseline (all runs).

    Returns:
        `compared` with verdict (one of VERDICTS) and verdict_why (where undecided: why it was not tested, or whose failed runs forbid
        the verdict; else empty).
    """
    sign = 1 if higher_is_better else -1
    sides = [zip(compared[f"failed_{role}"], compared[f"runs_{role}"], strict=True) for role in ("objective", "baseline")]
    judged = zip(*(compared[name] for name in ("difference", "p_holm", "p_equal_holm", "why")), *sides, strict=True)
    told = [_verdict(sign * difference, p < alpha, p_equal < alpha, *rest) for difference, p, p_equal, *rest in judged]
    return compared.assign(verdict=[verdict for verdict, _ in told], verdict_why=[why for _, why in told])


def _verdict(gain: float, differs: bool, close: bool, why: str, objective: tuple[int, int], baseline: tuple[int, int]) -> tuple[str, str]:
    if why:
        return UNDECIDED, why
    if not differs and not close:
        return UNDECIDED, ""
    survivors = [_survivors(*objective, ""), _survivors(*baseline, " of the baseline")]
    if not differs:
        forbidden = "; ".join(filter(None, survivors))
        return (UNDECIDED, forbidden) if forbidden else (EQUAL, "")
    forbidden = survivors[0] if gain > 0 else survivors[1]
    if forbidden:
        return UNDECIDED, forbidden
    return (BETTER if gain > 0 else WORSE) + (BELOW if close and not any(survivors) else ""), ""


def _survivors(failed: int, runs: int, whose: str) -> str:
    return f"{failed} of {runs} runs{whose} failed: the mean is over survivors" if failed else ""
