"""Do the intervals over blocks cover what they promise, and do the rank tests keep their level, where blocks share students and teachers?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.stats.clusters import clusters
from kdbench.stats.generalise import new_blocks, these_blocks
from kdbench.stats.ranks import friedman_over_rows, sign_flip_p, wilcoxon_p

TABLE_1 = [f"t{t}>s{s}" for s in range(2) for t in range(4)]
CRD = [
    "wrn_40_2>wrn_16_2", "wrn_40_2>wrn_40_1", "resnet56>resnet20", "resnet110>resnet20", "resnet110>resnet32", "resnet32x4>resnet8x4",
    "vgg13>vgg8", "vgg13>MobileNetV2", "ResNet50>MobileNetV2", "ResNet50>vgg8", "resnet32x4>ShuffleV1", "resnet32x4>ShuffleV2",
    "wrn_40_2>ShuffleV1",
]  # fmt: skip
ONE_STUDENT = [f"t{t}>s" for t in range(4)]
ONE_NAME_RULES = [*(f"t{t}>s0" for t in range(10)), *(f"t0>s{s}" for s in range(1, 6))]
LAYOUTS = {"table 1": TABLE_1, "crd": CRD, "one student": ONE_STUDENT, "one name rules": ONE_NAME_RULES}

EFFECTS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0.3, 0), (0.3, 1, 0.5), (1, 1, 1), (0, 0, 1)]
"""Standard deviations of the student's, the teacher's and the pair's own effect on the difference."""
NOISE = [(0, 0, 0.5), (0.5, 0, 0), (0.3, 0.3, 0.3), (0, 0.5, 0.2), (2, 0, 0.5)]
"""Standard deviations of a repeat's error: common to all blocks, to a student's blocks, of the block alone."""


def layout(name):
    blocks = pd.DataFrame([("d", *pair.split(">")) for pair in LAYOUTS[name]], columns=["dataset", "teacher", "student"])
    return clusters(blocks), np.array([pd.factorize(blocks["student"])[0], pd.factorize(blocks["teacher"])[0]])


def experiments(rng, sides, n, effects, noise, draws):
    """Differences of mean zero [draws, block, repeat], and the true differences of these blocks [draws, block]."""
    (students, teachers), (student, teacher, pair), (common, by_student, own) = sides, effects, noise
    b = len(students)
    true = student * rng.standard_normal((draws, students.max() + 1))[:, students]
    true = true + teacher * rng.standard_normal((draws, teachers.max() + 1))[:, teachers] + pair * rng.standard_normal((draws, b))
    error = common * rng.standard_normal((draws, 1, n)) + own * rng.standard_normal((draws, b, n))
    return true[:, :, None] + error + by_student * rng.standard_normal((draws, students.max() + 1, n))[:, students], true


def new_coverage(name, n, effects, noise, draws, seed):
    """The share of experiments whose interval for new blocks has zero inside."""
    shared, sides = layout(name)
    found, _ = experiments(np.random.default_rng(seed), sides, n, effects, noise, draws)
    intervals = [new_blocks(one.mean(axis=1), shared, sides, one, sides[0], 0.05) for one in found]
    return np.mean([abs(interval.centre) <= interval.half for interval in intervals])


def these_coverage(name, n, noise, draws, seed):
    _, sides = layout(name)
    found, true = experiments(np.random.default_rng(seed), sides, n, (1, 1, 1), noise, draws)
    weights = np.full(true.shape[1], 1 / true.shape[1])
    intervals = [these_blocks(one, sides[0], weights, 0.05) for one in found]
    return np.mean([abs(interval.centre - mean) <= interval.half for interval, mean in zip(intervals, true.mean(axis=1), strict=True)])


@pytest.mark.parametrize("name", ["table 1", "crd"])
@pytest.mark.parametrize("effects", [(1, 0, 0), (0, 1, 0), (0.3, 1, 0.5)])
def test_the_interval_for_new_blocks_covers_with_crossed_students_and_teachers(name, effects):
    assert new_coverage(name, 3, effects, (0.1, 0.1, 0.3), 600, 1) >= 0.93


def test_the_interval_for_new_blocks_covers_what_repeats_do_to_all_blocks_at_once():
    assert new_coverage("one student", 5, (0, 0.1, 0), (0.3, 0.3, 0.3), 600, 2) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAYOUTS))
@pytest.mark.parametrize("n", [1, 3])
def test_the_interval_for_new_blocks_covers_over_the_whole_grid(name, n):
    if name == "one student" and n == 1:
        pytest.skip("refused: tests/stats/test_across.py")
    for effects in EFFECTS:
        for noise in NOISE if n > 1 else [(0, 0, 0.5), (0, 0.5, 0.2)]:
            known = effects if name != "one student" else (0, *effects[1:])
            if not any([*known, *noise[1:]]):
                continue  # Then blocks differ in nothing, and the interval is refused.
            assert new_coverage(name, n, known, noise, 2000, 3) >= 0.93, (effects, noise)


def test_clusters_of_students_alone_would_miss_what_a_teacher_does_to_all_students():
    _, sides = layout("table 1")
    found, _ = experiments(np.random.default_rng(4), sides, 1, (0.1, 1, 0), (0, 0, 0.1), 4000)
    means = found.mean(axis=2).reshape(-1, 2, 4).mean(axis=2)
    half = stats.t.ppf(0.975, 1) * means.std(axis=1, ddof=1) / np.sqrt(2)
    assert np.mean(abs(means.mean(axis=1)) <= half) < 0.75


def test_blocks_taken_as_independent_would_cover_far_less():
    _, sides = layout("table 1")
    found, _ = experiments(np.random.default_rng(5), sides, 1, (1, 1, 0), (0, 0, 0.5), 4000)
    means = found.mean(axis=2)
    half = stats.t.ppf(0.975, 7) * means.std(axis=1, ddof=1) / np.sqrt(8)
    assert np.mean(abs(means.mean(axis=1)) <= half) < 0.75


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_for_these_blocks_covers_whatever_the_blocks_share(n):
    assert 0.93 <= these_coverage("table 1", n, (0.3, 0.3, 0.3), 2000, 6) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("name", ["table 1", "crd", "one student"])
@pytest.mark.parametrize("noise", NOISE)
def test_the_interval_for_these_blocks_covers_95_percent(name, n, noise):
    assert 0.942 <= these_coverage(name, n, noise, 10_000, 7) <= 0.958


def with_gaps(name, noise, draws, seed):
    """Coverage for these blocks when each of the first three of five repeats is missing in one block, each of another student."""
    _, sides = layout(name)
    found, true = experiments(np.random.default_rng(seed), sides, 5, (1, 1, 1), noise, draws)
    for repeat in range(3):
        found[:, np.flatnonzero(sides[0] == repeat % (sides[0].max() + 1))[0], repeat] = np.nan
    weights = np.full(true.shape[1], 1 / true.shape[1])
    intervals = [these_blocks(one, sides[0], weights, 0.05) for one in found]
    assert {interval.by for interval in intervals} == {"Satterthwaite"}
    return np.mean([abs(interval.centre - mean) <= interval.half for interval, mean in zip(intervals, true.mean(axis=1), strict=True)])


@pytest.mark.parametrize("name", ["table 1", "crd"])
def test_with_gaps_the_interval_covers_what_a_students_blocks_share(name):
    assert with_gaps(name, (0, 0.5, 0.3), 1000, 8) >= 0.93


def test_with_gaps_the_interval_does_not_cover_what_all_students_share_and_its_caveat_is_owed():
    assert with_gaps("crd", (0.5, 0.3, 0.3), 600, 9) < 0.85


SIZES = [6, 1, 3, 1, 2, 1, 1]


def cluster_means(rng, draws, sizes=SIZES):
    """Means of clusters whose blocks share an effect, none of it in the mean: [draws, cluster]."""
    between = rng.standard_normal((draws, len(sizes)))
    return between + rng.standard_normal((draws, len(sizes))) / np.sqrt(sizes)


@pytest.mark.parametrize("test", [sign_flip_p, wilcoxon_p])
def test_sign_flip_and_wilcoxon_over_clusters_keep_their_level(test):
    p = np.array([test(means) for means in cluster_means(np.random.default_rng(10), 3000)])
    for alpha in (0.02, 0.05, 0.1):
        assert np.mean(p <= alpha) <= alpha + 2.5 * np.sqrt(alpha / len(p))


@pytest.mark.slow
@pytest.mark.parametrize("test", [sign_flip_p, wilcoxon_p])
@pytest.mark.parametrize("sizes", [SIZES, [1] * 6, [1] * 12, [10, 1, 1, 1, 1, 1, 1, 1]])
def test_sign_flip_and_wilcoxon_over_clusters_keep_their_level_more_exactly(test, sizes):
    p = np.array([test(means) for means in cluster_means(np.random.default_rng(11), 30_000, sizes)])
    for alpha in (0.02, 0.05, 0.1):
        assert np.mean(p <= alpha) <= alpha + 2.5 * np.sqrt(alpha / len(p))


def test_over_the_blocks_of_shared_students_wilcoxon_would_lose_its_level():
    rng = np.random.default_rng(12)
    blocks = np.repeat(rng.standard_normal((1500, len(SIZES))), SIZES, axis=1)
    p = np.array([wilcoxon_p(values) for values in blocks + rng.standard_normal(blocks.shape)])
    assert np.mean(p <= 0.05) > 0.12


def test_over_the_teachers_of_one_student_a_sign_flip_would_lose_its_level():
    rng = np.random.default_rng(13)
    p = np.array([sign_flip_p(rng.standard_normal() + rng.standard_normal(8)) for _ in range(1500)])
    assert np.mean(p <= 0.05) > 0.3


def friedman_level(n, k, draws, seed):
    """How often Friedman over the means of `n` clusters of one to three blocks says p <= .05 when the objectives are alike."""
    rng = np.random.default_rng(seed)
    sizes = 1 + np.arange(n)[:, None] % 3
    means = rng.standard_normal((draws, n, k)) + 0.5 * rng.standard_normal((draws, n, k)) / np.sqrt(sizes)
    return np.mean([friedman_over_rows(table)[1] <= 0.05 for table in means])


@pytest.mark.parametrize(("n", "k"), [(4, 3), (4, 5)])
def test_friedman_over_clusters_keeps_its_level(n, k):
    assert friedman_level(n, k, 1500, 14) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), [(3, 10), (4, 3), (6, 4), (6, 5), (8, 10)])
def test_friedman_over_clusters_keeps_its_level_more_exactly(n, k):
    assert friedman_level(n, k, 5000, 15) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 5000)


def test_friedmans_chi_squared_loses_its_level_over_four_clusters_of_three_objectives():
    tables = np.random.default_rng(16).standard_normal((2000, 4, 3))
    assert np.mean([friedman_over_rows(table, exact=False)[1] <= 0.05 for table in tables]) > 0.06
