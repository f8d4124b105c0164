"""What a paired t test over few repeats can see.

Differences are in standard deviations of the paired difference (d_z). The power is the noncentral t's, integrated over the
observed standard deviation: SciPy's `nct`, and with it statsmodels' `TTestPower`, gives NaN at the large differences that few repeats need.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special
from scipy.optimize import brentq

_nodes = lru_cache(maxsize=1)(np.polynomial.legendre.leggauss)
NODES = 400
TAIL = 1e-14


def paired_power(difference: float, n: int, alpha: float = 0.05) -> float:
    """The chance that a two-sided paired t test over `n` pairs gives p < `alpha` when the true difference is `difference` sd.

    NaN for n < 2.
    """
    if n < 2:
        return float("nan")
    freedom, half = n - 1, (n - 1) / 2
    critical, shift = -special.stdtrit(freedom, alpha / 2), difference * np.sqrt(n)
    # s is the observed sd relative to the true one; beyond the bounds nothing is left to integrate.
    low = np.sqrt(special.gammaincinv(half, TAIL) / half)
    high = min(np.sqrt(special.gammainccinv(half, TAIL) / half), (abs(shift) + 12) / critical)
    nodes, weights = _nodes(NODES)
    s = low + (high - low) * (nodes + 1) / 2
    # chi: freedom * s^2 is chi-squared.
    density = 2 * np.exp(half * np.log(half) + (freedom - 1) * np.log(s) - half * s**2 - special.gammaln(half))
    rejected = special.ndtr(shift - critical * s) + special.ndtr(-shift - critical * s)
    return float(np.sum(weights * density * rejected) * (high - low) / 2)


@lru_cache(maxsize=4096)
def detectable_difference(n: int, alpha: float = 0.05, comparisons: int = 1, power: float = 0.8) -> float:
    """The least difference, in sd of the paired difference, that `n` pairs find with the chance `power`.

    Args:
        comparisons: the size of a Holm family: the difference is the one found at its first step, alpha / comparisons.

    Returns:
        NaN for n < 2: nothing can be tested.
    """
    if n < 2:
        return float("nan")
    level = alpha / comparisons
    high = 1.0
    while paired_power(high, n, level) < power:
        high *= 2
    return float(brentq(lambda d: paired_power(d, n, level) - power, 0.0, high, xtol=1e-9))


@lru_cache(maxsize=4096)
def repeats_needed(difference: float, alpha: float = 0.05, comparisons: int = 1, power: float = 0.8) -> int:
    """The fewest pairs that find `difference` (in sd of the paired difference) with the chance `power`.

    Raises:
        ValueError: no number of repeats finds a difference of zero.
    """
    if not abs(difference) > 0:
        raise ValueError(f"no number of repeats finds a difference of {difference}")
    low, high = 1, 2
    while paired_power(difference, high, alpha / comparisons) < power:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if paired_power(difference, middle, alpha / comparisons) >= power else (middle, high)
    return high
