"""What p value a test can give at all: a rank test over few repeats cannot reach alpha, and then it should not speak."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

LEAST: dict[str, Callable[[int], float]] = {
    "wilcoxon": lambda n: 2 / 2**n,
    "sign-flip": lambda n: 2 / 2**n,
    "sign": lambda n: 2 / 2**n,
    "mann-whitney": lambda n: 2 / comb(2 * n, n),
    "paired t": lambda n: 0.0 if n > 1 else 1.0,
    "Welch t": lambda n: 0.0 if n > 1 else 1.0,
}
"""The least two-sided p of each exact test over n pairs (or n against n), for data without ties."""
NAMES = {"wilcoxon": "Wilcoxon's test", "sign-flip": "the sign-flip test", "sign": "the sign test", "mann-whitney": "the Mann-Whitney test"}


def least_p(test: str, n: int, m: int = 1) -> float:
    """The smallest two-sided p value that any data can give.

    Args:
        test: a key of LEAST.
        n: pairs, or values on each side for "mann-whitney" and "Welch t".
        m: the size of a Holm family; the p value is that of its first step.

    Raises:
        ValueError: an unknown test, n below 0, or m below 1.
    """
    if test not in LEAST:
        raise ValueError(f"no test is called {test!r}; there are {', '.join(LEAST)}")
    if n < 0 or m < 1:
        raise ValueError(f"the least p value over {n} values in a family of {m}: at least 0 and 1 are needed")
    return min(1.0, m * LEAST[test](n))


def speaks(test: str, n: int, alpha: float = 0.05, m: int = 1, over: str = "repeats") -> str:
    """Empty where the test can reach p < `alpha` at this n; else the sentence that says why it cannot.

    Args:
        over: what the n are: repeats, blocks, clusters.

    Raises:
        ValueError: as for `least_p`.
    """
    least = least_p(test, n, m)
    if least < alpha:
        return ""
    name = NAMES.get(test, f"the {test} test")
    adjusted = f" (after Holm over m = {m})" if m > 1 else ""
    return f"{name} over {n} {over} cannot give p < {alpha:g}: the least p that any data can give is {least:.3g}{adjusted}"
