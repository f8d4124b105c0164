"""The second source of error: a test set is finite, and other images would have given other accuracies.

The runs of one test set predict the same images, so a difference of two objectives is a table [seeds, images] with both dimensions
drawn by chance. An interval over the seeds alone holds for these images; `seed_by_image` holds for new ones too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from kdbench.stats.repeats import BLOCK, block_key, block_keys

DRAWS = 2000
CHUNK = 250
"""So many resampled test sets are held at once."""
AT_ONCE = 500
"""Of so many comparisons the resampled means are held at once: those of a hundred thousand runs would take gigabytes."""
ROUNDING = 1e-12
"""Differences that vary by less than this share of the values themselves vary by the rounding of floating point only."""
RESULTS = ("n", "n_images", "difference", "se_seeds", "se_images", "low_images", "high_images", "df", "why")
COUNTS = ("n_both", "n_objective_only", "n_baseline_only", "n_neither")

Key = tuple[str, ...]
Checkpoints = dict[tuple[Any, int | None], int]
"""The row of a run by repeat and teacher seed (None: trained without a teacher)."""


def seed_by_image(
    scores: np.ndarray, runs: pd.DataFrame, comparisons: pd.DataFrame, alpha: float = 0.05, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Intervals for objective minus baseline over new seeds and new test images, by the pigeonhole bootstrap (Owen 2007).

    Seeds and images are resampled independently; each resampled test set serves all runs. A resampled mean is the observed one plus
    a part by the seeds, a part by the images and a part by both (the interaction), and a standard error is taken from each part, free
    of the bootstrap's bias: n / (n - 1) for n seeds, likewise for images. The parts by seeds and by images each hold the interaction
    once, so the plain bootstrap counts it three times; here it counts once. Where every seed errs on other images, it is the largest of
    the three, and the plain bootstrap's standard error is up to 1.7 times too large.

    Few seeds make any percentile interval too narrow. The interval is difference ± sqrt((t_s se_seeds)² + (t_i se_images)²) with the
    t quantiles of n - 1 and images - 1 degrees of freedom. For normal errors it covers at least 1 - alpha whatever their proportion
    (the chance to cover is concave in the squared width), it is never narrower than the paired t interval over the seeds, and without
    an error by the images it is that interval. One quantile with Satterthwaite's degrees of freedom covers only 92 % with n = 3.

    Args:
        scores: [rows, images], one row a run, all of one test set in one order: right or wrong, or any number whose mean is the
            metric.
        runs: dataset, teacher, student, objective, repeat, teacher_seed, row (the run's row in `scores`; negative: it has none). A
            run may stand in several blocks. Teacher seeds are averaged within their repeat, which counts only when it has them all.
        comparisons: dataset, teacher, student, baseline, objective, one row a comparison; other columns are dropped.
        draws: resampled sets of seeds and images; 2000 leave an error of 2 % in a standard error.

    Returns:
        dataset, teacher, student, baseline, objective and, in the unit of the scores, n (paired repeats), n_images, difference,
        se_seeds (as in the paired t test: by new seeds on these images), se_images (what new images add to it in squares), low_images,
        high_images, df (whose t quantile times the whole standard error gives the interval), why (the reason where there is no
        interval, else empty).

    Raises:
        ValueError: the scores are no table of at least two images, or `runs` names rows that they do not have.
    """
    rows = _rows_by_repeat(runs, len(scores))
    weights: dict[int, np.ndarray] = {}
    found: list[dict[str, Any]] = []
    sides = list(zip(*(block_keys(comparisons, name) for name in ("objective", "baseline")), strict=True))
    values: dict[Key, dict[Any, np.ndarray]] = {}
    for place, (mine, its) in enumerate(sides):
        if place % AT_ONCE == 0:
            wanted = {key: rows[key] for pair in sides[place : place + AT_ONCE] for key in pair if key in rows}
            used = np.unique([row for repeats in wanted.values() for some in repeats.values() for row in some]).astype(int)
            values = _means(resampled_means(scores[used], draws, seed), wanted, {row: at for at, row in enumerate(used.tolist())})
        one, other = values.get(mine, {}), values.get(its, {})
        both = sorted(set(one) & set(other))
        n = len(both)
        if n > 1 and n not in weights:
            weights[n] = _seed_weights(n, draws, seed)
        table = np.array([one[repeat] - other[repeat] for repeat in both]).reshape(n, 1 + draws)
        largest = max((abs(side[repeat][0]) for side in (one, other) for repeat in both), default=0.0)
        found.append(_interval(table, weights.get(n), scores.shape[1], ROUNDING * largest, alpha))
    keys = comparisons[[*BLOCK, "baseline", "objective"]].reset_index(drop=True)
    results = pd.DataFrame(found, columns=list(RESULTS)).astype(
        {"n": "int64", "n_images": "int64", **dict.fromkeys(RESULTS[2:-1], "float64")}
    )
    return pd.concat([keys, results], axis=1)


def resampled_means(scores: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The mean of each row over its images: first as they are, then over `draws` resampled test sets, the same ones for every row.

    Args:
        scores: [rows, images].

    Returns:
        [rows, 1 + draws].

    Raises:
        ValueError: `scores` has no two dimensions, or rows of fewer than two images.
    """
    if scores.ndim != 2 or (len(scores) and scores.shape[1] < 2):
        raise ValueError(f"scores must be [rows, images] with two images at least, and have the shape {scores.shape}")
    rows, images = scores.shape
    means = np.empty((rows, 1 + draws))
    if not rows:
        return means
    means[:, 0] = scores.mean(axis=1, dtype=np.float64)
    draw = np.random.default_rng(seed)
    single = scores.astype(np.float32)  # sums of right and wrong are exact up to 2^24 images
    for start in range(0, draws, CHUNK):
        held = min(CHUNK, draws - start)
        weights = np.empty((held, images), dtype=np.float32)
        for place in range(held):
            weights[place] = np.bincount(draw.integers(0, images, images), minlength=images)
        means[:, 1 + start : 1 + start + held] = (single @ weights.T).astype(np.float64) / images
    return means


def repeat_values(values: np.ndarray, runs: pd.DataFrame) -> dict[Key, dict[Any, np.ndarray]]:
    """Rows averaged over teacher seeds, by (dataset, teacher, student, objective) and repeat; incomplete repeats and runs without
    a repeat's number are left out.

    Args:
        values: [rows, numbers].
        runs: as for `seed_by_image`.

    Raises:
        ValueError: a run names a row that is not there.
    """
    return _means(values, _rows_by_repeat(runs, len(values)), range(len(values)))


def _rows_by_repeat(runs: pd.DataFrame, n_rows: int) -> dict[Key, dict[Any, list[int]]]:
    """The rows of each complete repeat, in their order."""
    if len(runs) and runs["row"].max() >= n_rows:
        raise ValueError(f"a run has the row {runs['row'].max()}, and there are {n_rows} rows")
    places: dict[tuple[Key, Any], list[int]] = defaultdict(list)
    for *block, objective, repeat, row in zip(*(runs[name] for name in (*BLOCK, "objective", "repeat", "row")), strict=True):
        if not pd.isna(repeat):
            places[block_key(block, objective), repeat].append(row)
    found: dict[Key, dict[Any, list[int]]] = defaultdict(dict)
    for (key, repeat), mine in places.items():
        if min(mine) >= 0:
            found[key][repeat] = sorted(mine)
    return dict(found)


def _means(
    values: np.ndarray, rows: Mapping[Key, Mapping[Any, list[int]]], at: Mapping[int, int] | range
) -> dict[Key, dict[Any, np.ndarray]]:
    """The mean over the rows of each repeat; `at` says where in `values` a row is."""
    return {key: {repeat: values[[at[row] for row in some]].mean(axis=0) for repeat, some in mine.items()} for key, mine in rows.items()}


def _seed_weights(n: int, draws: int, seed: int) -> np.ndarray:
    """Deviations of multinomial weights / n from 1 / n, [draws, n] for n > 1, turned so that mean and covariance are the multinomial's own.

    So the part by the seeds carries no error of drawing, and agrees with the paired t test in every digit.
    """
    drawn = np.random.default_rng([seed, n]).multinomial(n, [1 / n] * n, size=draws)
    left, _, right = np.linalg.svd(drawn - drawn.mean(axis=0, keepdims=True), full_matrices=False)
    return left[:, : n - 1] @ right[: n - 1] * np.sqrt(draws) / n


def _interval(table: np.ndarray, weights: np.ndarray | None, images: int, rounding: float, alpha: float) -> dict[str, Any]:
    """The results of one comparison from its differences [seeds, 1 + draws] and the weights [draws, seeds]."""
    n = len(table)
    found: dict[str, Any] = dict.fromkeys(RESULTS, float("nan")) | {"n": n, "n_images": images, "why": ""}
    if n == 0:
        return found | {"why": "no repeat has the predictions of both"}
    observed, drawn = table[:, 0], table[:, 1:]
    free = images / (images - 1)
    by_images = float(np.mean((drawn - observed[:, None]).mean(axis=0) ** 2)) * free
    found["difference"] = difference = float(observed.mean())
    if weights is None:
        return found | {"se_images": by_images**0.5, "why": "one repeat only: no spread to test against"}
    by_seeds = float(np.mean((weights @ observed) ** 2)) * n / (n - 1)
    by_both = float(np.mean(np.einsum("bi,ib->b", weights, drawn - observed[:, None]) ** 2)) * free * n / (n - 1)
    se_seeds, se_images = by_seeds**0.5, max(by_images - by_both, 0.0) ** 0.5
    found |= {"se_seeds": se_seeds, "se_images": se_images}
    if se_seeds * n**0.5 <= rounding:
        return found | {"se_seeds": 0.0, "why": f"the same difference in all {n} repeats: no spread to test against"}
    seeds, many = (-special.stdtrit(freedom, alpha / 2) for freedom in (n - 1, images - 1))
    half, whole = float(np.hypot(seeds * se_seeds, many * se_images)), float(np.hypot(se_seeds, se_images))
    freedom = float(special.stdtridf(1 - alpha / 2, half / whole)) if se_images else n - 1.0
    return found | {"low_images": difference - half, "high_images": difference + half, "df": freedom}


def mcnemar(scores: np.ndarray, runs: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """McNemar's exact test for each pair of checkpoints of each comparison.

    It answers: do these two checkpoints differ on these images, not: do these two losses differ. Two seeds of one loss differ too.

    Args:
        scores: [rows, images], bool: right or wrong.
        runs, comparisons: as for `seed_by_image`. Checkpoints pair by repeat and teacher seed; one trained without a teacher pairs
            with each teacher seed of the other.

    Returns:
        dataset, teacher, student, baseline, objective, repeat, teacher_seed (null: neither has one), n_both (images that both get
        right), n_objective_only, n_baseline_only, n_neither, p (two-sided, exact binomial, not adjusted), in the order of
        `comparisons`, then by repeat and teacher seed.

    Raises:
        ValueError: the scores are not right or wrong.
    """
    if scores.dtype != np.bool_ or scores.ndim != 2:
        raise ValueError(f"McNemar's test needs [rows, images] of right and wrong (bool), and has {scores.dtype} of shape {scores.shape}")
    rows = _rows_by_checkpoint(runs)
    found: list[dict[str, Any]] = []
    names = (*BLOCK, "baseline", "objective")
    for key in zip(*(comparisons[name] for name in names), strict=True):
        *block, baseline, objective = key
        one, other = rows.get(block_key(block, objective), {}), rows.get(block_key(block, baseline), {})
        for repeat, teacher_seed, mine, its in _pairs(one, other):
            a, b = scores[mine], scores[its]
            both, right, its_right = (int(np.count_nonzero(hit)) for hit in (a & b, a, b))
            mine_only, its_only = right - both, its_right - both
            p = min(1.0, 2 * float(special.bdtr(min(mine_only, its_only), mine_only + its_only, 0.5)))
            counts = {"n_both": both, "n_objective_only": mine_only, "n_baseline_only": its_only}
            counts["n_neither"] = scores.shape[1] - both - mine_only - its_only
            found.append({**dict(zip(names, key, strict=True)), "repeat": repeat, "teacher_seed": teacher_seed, **counts, "p": p})
    columns = [*names, "repeat", "teacher_seed", *COUNTS, "p"]
    return pd.DataFrame(found, columns=columns).astype({"teacher_seed": "Int64", **dict.fromkeys(COUNTS, "int64"), "p": "float64"})


def _rows_by_checkpoint(runs: pd.DataFrame) -> dict[Key, Checkpoints]:
    """The usable runs by block and objective."""
    rows: dict[Key, Checkpoints] = defaultdict(dict)
    wanted = (*BLOCK, "objective", "repeat", "teacher_seed", "row")
    for *block, objective, repeat, seed, row in zip(*(runs[name] for name in wanted), strict=True):
        if row >= 0 and not pd.isna(repeat):
            rows[block_key(block, objective)][repeat, None if pd.isna(seed) else int(seed)] = row
    return rows


def _pairs(one: Checkpoints, other: Checkpoints) -> list[tuple[Any, int | None, int, int]]:
    """(repeat, teacher seed, row of the one, row of the other) of every pair, in their order."""
    found, by_repeat = [], defaultdict(list)
    for (repeat, its), its_row in other.items():
        by_repeat[repeat].append((its, its_row))
    for (repeat, mine), row in one.items():
        for its, its_row in by_repeat.get(repeat, ()):
            if mine == its or mine is None or its is None:
                found.append((repeat, its if mine is None else mine, row, its_row))
    return sorted(found, key=lambda pair: (pair[0], -1 if pair[1] is None else pair[1]))
