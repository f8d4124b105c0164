"""What the differences in some pairs say about other pairs: pairs that share a student or a teacher are not independent.

Half-widths of independent sources are added in squares, each with its own t quantile: h^2 = sum t_i^2 V_i. This keeps the confidence
for normal effects whatever the sizes of the sources (Banerjee 1960, Sankhya 22, 359-376), where Satterthwaite's one number of degrees
of freedom falls to 90 % on 2 students x 4 teachers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

LEAST_NAMES = 3
"""With fewer students and fewer teachers than this, an interval for new ones has one degree of freedom and is too wide to be of use."""
NAN = float("nan")


class NewPairs(NamedTuple):
    """new: the mean over the measured pairs. new_low, new_high: for the mean over new pairs. pair_low, pair_high: for the true
    difference in one new pair. new_why: why there is no interval, or what it leaves out. new_scope: what a new pair is."""

    new: float = NAN
    new_low: float = NAN
    new_high: float = NAN
    pair_low: float = NAN
    pair_high: float = NAN
    new_why: str = ""
    new_scope: str = ""


def new_pairs(pairs: pd.DataFrame, half: float, alpha: float) -> NewPairs:
    """Intervals for pairs of which the measured ones are a sample: students and teachers are random, as well as repeats.

    Where a student has several teachers and a teacher several students, the variance between students and that between teachers are
    added. A student or teacher with one name on several datasets is one. With one student (teacher) the claim is for this one.

    Args:
        pairs: dataset, teacher, student, difference (not NaN), one row a pair.
        half: half the interval over the repeats of the mean over pairs, which holds the error that all pairs share; NaN: unknown.
    """
    means = pairs["difference"].to_numpy(dtype=float)
    students, teachers = (pd.factorize(pairs[name], use_na_sentinel=False)[0] for name in ("student", "teacher"))
    counts = [len(set(side)) for side in (students, teachers)]
    if not len(pairs) or max(counts) < LEAST_NAMES:
        return NewPairs(new_why=f"an interval for new pairs needs {LEAST_NAMES} students or {LEAST_NAMES} teachers")
    scope = _scope(pairs, *counts)
    if counts[0] == 1 and not np.isfinite(half):
        return NewPairs(new_why="one student: the error that its pairs share through their repeats is not known", new_scope=scope)
    sides = _sources(students, teachers)
    parts = [(side.max() + 1, *_jackknife(side, means)) for side in sides]
    if all(variance <= (1e-12 * np.abs(means).max()) ** 2 for _, variance, _ in parts):
        return NewPairs(new_why=f"the same difference in all {len(means)} pairs", new_scope=scope)
    shared = half**2 if np.isfinite(half) else 0.0
    mean_half = np.sqrt(shared + sum(_quantile(df, alpha) ** 2 * variance for _, variance, df in parts))
    # One pair varies by its student, its teacher and what only the two together do: the rest of the variance between pairs.
    rest, df = _rest(sides, means)
    rest *= max(0.0, 1 - sum(levels for levels, *_ in parts) / len(means))
    one = shared + sum(_quantile(df, alpha) ** 2 * (levels + 1) * variance for levels, variance, df in parts)
    one_half = np.sqrt(one + (_quantile(df, alpha) ** 2 * rest if rest else 0.0))
    mean = float(means.mean())
    why = "" if np.isfinite(half) else "the error that pairs share through their repeats is left out"
    return NewPairs(mean, mean - mean_half, mean + mean_half, mean - one_half, mean + one_half, why, scope)


def _scope(pairs: pd.DataFrame, n_students: int, n_teachers: int) -> str:
    n_datasets, teacher = pairs["dataset"].nunique(), pairs["teacher"].iloc[0]
    here = f", on these {n_datasets} datasets" if n_datasets > 1 else ""
    if n_students == 1:
        return f"a new teacher, for the student {pairs['student'].iloc[0]}{here}"
    if n_teachers == 1:
        return f"a new student, {f'for the teacher {teacher}' if isinstance(teacher, str) else 'without a teacher'}{here}"
    return f"a new pair{here}"


def _sources(students: np.ndarray, teachers: np.ndarray) -> list[np.ndarray]:
    """The sides that make pairs dependent. Where each student has one teacher only, the pairs of different teachers are independent,
    and the teachers alone are enough; likewise the other way round."""
    both, n_students, n_teachers = len(set(zip(students, teachers, strict=True))), len(set(students)), len(set(teachers))
    if n_students == 1 or both == n_students > n_teachers > 1 or both == n_students == n_teachers:
        return [teachers]
    if n_teachers == 1 or both == n_teachers:
        return [students]
    return [students, teachers]


def _quantile(df: float, alpha: float) -> float:
    return -float(special.stdtrit(df, alpha / 2))


def _jackknife(side: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """The variance of the mean over pairs through one side (students, or teachers), and its degrees of freedom.

    Delete-one-cluster jackknife: s^2 / n where the layout is balanced, too large rather than too small elsewhere. Degrees of freedom by
    Bell and McCaffrey (2002, Survey Methodology 28, 169-181): n - 1 where balanced, near 1 where one name dominates.
    """
    inside = side == np.arange(side.max() + 1)[:, None]
    n, outside = len(inside), ~inside
    root = np.sqrt((n - 1) / n) * (outside / outside.sum(axis=1, keepdims=True) - 1 / len(side))
    shares = np.linalg.eigvalsh((root @ inside.T) @ (root @ inside.T).T)
    return float(((root @ means) ** 2).sum()), float(shares.sum() ** 2 / (shares**2).sum())


def _rest(sides: list[np.ndarray], means: np.ndarray) -> tuple[float, float]:
    """The variance between pairs that an additive model of the sides leaves, and its degrees of freedom."""
    dummies = np.hstack([side[:, None] == np.arange(side.max() + 1) for side in sides]).astype(float)
    fit, _, rank, _ = np.linalg.lstsq(dummies, means, rcond=None)
    df = len(means) - int(rank)
    return (float(((means - dummies @ fit) ** 2).sum() / df), float(df)) if df else (0.0, 1.0)
