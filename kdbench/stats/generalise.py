"""Two intervals for a mean over blocks: for these blocks (only the repeats are random) and for new ones (students, teachers as well).

Half-widths of independent sources are added in squares, each with its own t quantile: h^2 = sum t_i^2 V_i. This keeps the confidence
for normal effects whatever the sizes of the sources (Banerjee 1960, Sankhya 22, 359-376), where Satterthwaite's one number of degrees
of freedom falls to 90 % on 2 students x 4 teachers, and is narrower than the smallest degrees of freedom for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from kdbench.stats.clusters import Clusters

if TYPE_CHECKING:
    import numpy as np

LEAST_COMPLETE = 3
"""With gaps, so many repeats must be complete in all blocks for a t over them."""


@dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    half is NaN where there is none and 0 where nothing varies. df is the least degrees of freedom among its sources (for `Satterthwaite`
    the effective number). by: what its spread was taken from. why: the reason where there is none, else what it takes for granted, else
    empty.
    """

    centre: float
    half: float
    df: float
    by: str
    why: str


def these_blocks(differences: np.ndarray, students: np.ndarray, weights: np.ndarray, alpha: float) -> Interval:
    """The mean over just these blocks: only the repeats are random.

    Blocks share images, order and often runs through their repeats, so their errors are correlated. The weighted mean over blocks, one
    value a repeat, has no such trouble: t over repeats. Where some block lacks a repeat and fewer than three are complete: the same within
    each student (whose blocks share initial weights and the runs without a teacher), and Satterthwaite over students.

    Args:
        differences: [block, repeat], NaN where a repeat is not complete in both objectives.
        students: which student a block is of, as a number.
        weights: of the blocks, with the sum 1.
    """
    import numpy as np

    there = np.isfinite(differences)
    differences = differences[:, there.any(axis=0)]
    there = np.isfinite(differences)
    unpaired = int((~there.any(axis=1)).sum())
    if unpaired:
        return _none(f"the repeats of {unpaired} of {len(there)} blocks do not pair")
    if differences.shape[1] == 1:
        return _none("one repeat: nothing shows how a repeat differs from the next")
    complete = there.all(axis=0)
    if complete.all() or complete.sum() >= LEAST_COMPLETE:
        return _over_repeats(weights @ differences[:, complete], alpha)
    parts = [_student(differences[students == one], weights[students == one]) for one in np.unique(students)]
    if any(part is None for part in parts):
        if complete.sum() >= 2:
            return _over_repeats(weights @ differences[:, complete], alpha)
        return _none("gaps: fewer than two repeats are complete in all blocks of a student")
    return _satterthwaite(np.array(parts), int(complete.sum()), alpha)


def _none(why: str) -> Interval:
    return Interval(float("nan"), float("nan"), float("nan"), "", why)


def _over_repeats(values: np.ndarray, alpha: float) -> Interval:
    import numpy as np
    from scipy import special

    n = len(values)
    half = -special.stdtrit(n - 1, alpha / 2) * _spread(values) / np.sqrt(n)
    return Interval(float(values.mean()), float(half), float(n - 1), "repeats", "" if half else f"the same difference in all {n} repeats")


def _spread(values: np.ndarray) -> float:
    """Standard deviation (ddof = 1); what only rounding makes differ has none."""
    import numpy as np

    spread = float(np.std(values, ddof=1))
    return spread if spread > 1e-12 * float(np.abs(values).max()) else 0.0


def _student(differences: np.ndarray, weights: np.ndarray) -> tuple[float, float, int] | None:
    """Weighted sum over one student's blocks, its variance and degrees of freedom; None for fewer than two complete repeats."""
    import numpy as np

    values = weights @ differences[:, np.isfinite(differences).all(axis=0)]
    return (float(values.mean()), _spread(values) ** 2 / len(values), len(values) - 1) if len(values) > 1 else None


def _satterthwaite(parts: np.ndarray, complete: int, alpha: float) -> Interval:
    import numpy as np
    from scipy import special

    total, variance, freedom = parts[:, 0].sum(), parts[:, 1].sum(), parts[:, 2]
    df = variance**2 / (parts[:, 1] ** 2 / freedom).sum() if variance > 0 else float("nan")
    half = -special.stdtrit(df, alpha / 2) * np.sqrt(variance) if variance > 0 else 0.0
    why = f"only {complete} repeats are complete in all blocks: students taken as independent, though all see one order of images"
    return Interval(float(total), float(half), float(df), "Satterthwaite", why)


def new_blocks(
    means: np.ndarray, shared: Clusters, sides: np.ndarray, differences: np.ndarray, students: np.ndarray, alpha: float
) -> Interval:
    """The mean over blocks of which these are a sample: students and teachers are random too, as far as `shared.scope` goes.

    Independent clusters: t over their means. Crossed students and teachers: the variance between students and that between teachers are
    added, not less their interaction. Where components of several crossed blocks are few, the second may be the better one: the layout
    decides, never the data. The error that all blocks have in common through their repeats shows in neither, and is added too.

    Args:
        means: difference of each block, in the unit of the metric.
        sides: [2, block], student and teacher of each block as numbers from 0.
        differences, students: as for `these_blocks`.
    """
    import numpy as np

    if shared.unit == "one":
        return _none(shared.sentence)
    crossed, weights, sources = _layout(*(tuple(side.tolist()) for side in sides), shared.label, shared.unit, alpha)
    parts = [(float(((root @ means) ** 2).sum()), df) for root, df in sources]
    if all(variance <= (1e-12 * np.abs(means).max()) ** 2 for variance, _ in parts):
        return _none(f"the same difference in all {shared.n if not crossed else len(means)} {'blocks' if crossed else 'clusters'}")
    repeats = these_blocks(differences, students, weights, alpha)
    blind = not np.isfinite(repeats.half)
    if blind and shared.unit == "teacher":
        return _none(f"one student, and the error that its blocks share through their repeats cannot be seen: {repeats.why}")
    squares = [_quantile(df, alpha) ** 2 * variance for variance, df in parts] + ([] if blind else [repeats.half**2])
    dfs = [df for _, df in parts] + ([] if blind or not repeats.half else [repeats.df])
    by = "students, teachers" if crossed else {"one": "", "block": "blocks", "component": "components"}.get(shared.unit, f"{shared.unit}s")
    why = f"the error that blocks share through their repeats is left out: {repeats.why}" if blind else ""
    return Interval(float(weights @ means), float(np.sqrt(sum(squares))), min(dfs), by if blind else f"{by}, repeats", why)


@lru_cache(maxsize=256)
def _layout(
    students: tuple[int, ...], teachers: tuple[int, ...], label: tuple[int, ...], unit: str, alpha: float
) -> tuple[bool, np.ndarray, list[tuple[np.ndarray, float]]]:
    """Whether the two sides are taken (else the clusters), the weights of the blocks, and the sources of variance with their df."""
    import numpy as np

    sides, by_cluster = np.array([students, teachers]), _cluster_weights(np.array(label))
    two = [_jackknife(side) for side in sides] if unit in ("crossed", "component") else []
    between = [] if unit == "crossed" else [_between(by_cluster)]
    if unit == "crossed" or (two and _expected(two, sides, alpha) < _expected(between, sides, alpha)):
        return True, np.full(len(label), 1 / len(label)), two
    return False, by_cluster.mean(axis=0), between


def _quantile(df: float, alpha: float) -> float:
    from scipy import special

    return -float(special.stdtrit(df, alpha / 2))


def _cluster_weights(label: np.ndarray) -> np.ndarray:
    """[cluster, block]: a row gives the mean of a cluster."""
    import numpy as np

    inside = label == np.arange(label.max() + 1)[:, None]
    return np.asarray(inside / inside.sum(axis=1, keepdims=True))


def _between(by_cluster: np.ndarray) -> tuple[np.ndarray, float]:
    """The variance of the mean of cluster means, s^2 / n, as the sum of squares of (root @ block values); and its df."""
    import numpy as np

    n = len(by_cluster)
    return (by_cluster - by_cluster.mean(axis=0)) / np.sqrt(n * (n - 1)), float(n - 1)


def _jackknife(side: np.ndarray) -> tuple[np.ndarray, float]:
    """The variance of the mean over blocks through one side (students, or teachers), as the sum of squares of (root @ block values).

    Delete-one-cluster jackknife: s^2 / n where the layout is balanced, too large rather than too small elsewhere. Degrees of freedom by
    Bell and McCaffrey (2002, Survey Methodology 28, 169-181): n - 1 where balanced, near 1 where one name dominates.
    """
    import numpy as np

    outside = side != np.arange(side.max() + 1)[:, None]
    n = len(outside)
    root = np.sqrt((n - 1) / n) * (outside / outside.sum(axis=1, keepdims=True) - 1 / len(side))
    shares = np.linalg.eigvalsh(root @ (side[:, None] == side) @ root.T)
    return root, float(shares.sum() ** 2 / (shares**2).sum())


def _expected(sources: list[tuple[np.ndarray, float]], sides: np.ndarray, alpha: float) -> float:
    """The expected square of the half-width if students, teachers and single blocks varied alike. A function of the layout only, so that
    choosing by it costs no confidence."""
    import numpy as np

    variation = sum((side[:, None] == side) * 1.0 for side in sides) + np.eye(sides.shape[1])
    return float(sum(_quantile(df, alpha) ** 2 * np.trace(root @ variation @ root.T) for root, df in sources))
