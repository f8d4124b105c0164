"""Image by image: the interval over new images, McNemar, calibration, agreement; by hand, against statsmodels, at the edges."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference

from kdbench.stats.calibration import agreement, class_accuracy, expected_calibration_error
from kdbench.stats.per_image import mcnemar, repeat_values, resampled_means, seed_by_image

BLOCK = {"dataset": "digits", "teacher": "big", "student": "small"}
ASKED = pd.DataFrame([{**BLOCK, "baseline": "kd", "objective": "cc"}])


def rows_of(tables, teacher_seeds=False):
    """(scores, runs) of {objective: [repeat, images]}, or of {objective: [repeat, teacher seed, images]}."""
    scores, runs = [], []
    for objective, table in tables.items():
        for repeat, found in enumerate(table):
            for seed, row in enumerate(found if teacher_seeds else [found]):
                runs.append({**BLOCK, "objective": objective, "repeat": repeat, "teacher_seed": seed, "row": len(scores)})
                scores.append(row)
    return np.array(scores), pd.DataFrame(runs)


def only(scores, runs, asked=ASKED, **options):
    found = seed_by_image(scores, runs, asked, **options)
    assert len(found) == 1
    return found.iloc[0]


def crossed(seed=0, n=4, images=60, shares=(1.0, 1.0, 1.0)):
    """Scores of an objective and a baseline whose difference has an effect of seeds, of images and of both."""
    draw = np.random.default_rng(seed)
    by_seed, by_image, by_both = (
        np.sqrt(share) * draw.normal(size=shape) for share, shape in zip(shares, ((n, 1), (1, images), (n, images)), strict=True)
    )
    base = draw.normal(size=(n, images))
    return rows_of({"cc": base + by_seed + by_image + by_both, "kd": base})


def components(table):
    """The variances of the mean of [seeds, images] by seeds, by images and by both, each with the interaction in it, by hand."""
    n, m = table.shape
    mean, by_seed, by_image = table.mean(), table.mean(axis=1), table.mean(axis=0)
    rest = table - by_seed[:, None] - by_image[None, :] + mean
    return (
        ((by_seed - mean) ** 2).sum() / (n * (n - 1)),
        ((by_image - mean) ** 2).sum() / (m * (m - 1)),
        (rest**2).sum() / (n * m * (n - 1) * (m - 1)),
    )


@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (0.1, 2.0, 1.0), (1.0, 0.0, 0.0)])
def test_the_standard_errors_are_those_that_the_bootstrap_converges_to(shares):
    scores, runs = crossed(1, shares=shares)
    by_seeds, by_images, by_both = components(scores[:4] - scores[4:])
    found = only(scores, runs, draws=20_000)
    assert found["se_seeds"] == pytest.approx(np.sqrt(by_seeds), rel=1e-9)
    assert found["se_images"] == pytest.approx(np.sqrt(max(by_images - by_both, 0)), rel=0.03, abs=1e-9)
    assert found["difference"] == pytest.approx((scores[:4] - scores[4:]).mean())


def test_the_parts_add_up_to_the_pigeonhole_bootstrap_done_by_its_definition():
    scores, runs = crossed(2, n=5, images=40)
    table = scores[:5] - scores[5:]
    draw = np.random.default_rng(5)
    resampled = [table[np.ix_(draw.integers(0, 5, 5), draw.integers(0, 40, 40))].mean() for _ in range(20_000)]
    found = only(scores, runs, draws=20_000)
    by_both = components(table)[2]
    # The biased parts, as the plain bootstrap has them; the interaction stands in all three.
    plain = 0.8 * found["se_seeds"] ** 2 + 39 / 40 * (found["se_images"] ** 2 + by_both) + 0.8 * 39 / 40 * by_both
    assert np.var(resampled) == pytest.approx(plain, rel=0.04)


def test_every_run_is_averaged_over_the_same_resampled_images():
    scores = np.random.default_rng(0).random((3, 50)) < 0.7
    means = resampled_means(np.vstack([scores, scores[:1]]), draws=300)
    assert means.shape == (4, 301)
    np.testing.assert_array_equal(means[0], means[3])
    np.testing.assert_allclose(means[:3, 0], scores.mean(axis=1))
    assert means[0, 1:].std() == pytest.approx(scores[0].std() / np.sqrt(50), rel=0.15)
    np.testing.assert_allclose(means[0, 1:].mean(), scores[0].mean(), atol=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_the_part_by_seeds_is_the_paired_t_test_and_the_interval_is_never_narrower_than_its_own(seed):
    scores, runs = crossed(seed, n=3 + seed)
    half = len(scores) // 2
    delta = (scores[:half] - scores[half:]).mean(axis=1)
    found = only(scores, runs, alpha=0.1)
    paired = stats.ttest_1samp(delta, 0).confidence_interval(0.9)
    assert found["se_seeds"] == pytest.approx(delta.std(ddof=1) / np.sqrt(half), rel=1e-9)
    assert found["low_images"] <= paired.low + 1e-12 and found["high_images"] >= paired.high - 1e-12
    assert half - 1 <= found["df"] <= 60
    # The degrees of freedom are those whose quantile gives the interval.
    whole = np.hypot(found["se_seeds"], found["se_images"])
    assert stats.t.ppf(0.95, found["df"]) * whole == pytest.approx(found["high_images"] - found["difference"])


def test_where_images_add_nothing_the_interval_is_that_of_the_paired_t_test():
    base = np.random.default_rng(0).normal(size=(4, 30))
    scores, runs = rows_of({"cc": base + np.array([[0.1], [0.2], [0.4], [0.3]]), "kd": base})
    found = only(scores, runs)
    paired = stats.ttest_1samp([0.1, 0.2, 0.4, 0.3], 0).confidence_interval(0.95)
    assert [found["low_images"], found["high_images"]] == pytest.approx([paired.low, paired.high], rel=1e-6)
    assert found["se_images"] == pytest.approx(0, abs=1e-7)
    assert found["df"] == pytest.approx(3, rel=1e-3)


def test_neither_the_order_of_the_rows_nor_that_of_the_scores_matters():
    scores, runs = crossed(3)
    found = only(scores, runs)
    order = np.random.default_rng(0).permutation(len(scores))
    moved = runs.assign(row=np.argsort(order)[runs["row"]]).sample(frac=1, random_state=2)
    pd.testing.assert_series_equal(only(scores[order], moved.assign(repeat=10 + 3 * moved["repeat"])), found, rtol=1e-6)
    assert only(scores, runs, seed=1)["se_images"] != found["se_images"]


def test_comparisons_keep_their_order_and_each_block_has_its_own_runs():
    scores, runs = crossed(4)
    other = runs.assign(student="tiny", row=runs["row"][::-1].to_numpy())
    asked = pd.concat([ASKED.assign(student="tiny"), ASKED])
    found = seed_by_image(scores, pd.concat([runs, other]), asked)
    assert found["student"].tolist() == ["tiny", "small"]
    assert found["difference"].iloc[0] == pytest.approx(-found["difference"].iloc[1])


def test_the_mirrored_comparison_has_the_mirrored_interval():
    scores, runs = crossed(5)
    found, mirrored = only(scores, runs), only(scores, runs, ASKED.assign(baseline="cc", objective="kd"))
    assert [mirrored["low_images"], mirrored["high_images"]] == pytest.approx([-found["high_images"], -found["low_images"]])


def test_teacher_seeds_are_averaged_and_a_repeat_without_one_of_them_does_not_count():
    draw = np.random.default_rng(0)
    tables = {"cc": draw.random((4, 2, 50)) < 0.8, "kd": draw.random((4, 2, 50)) < 0.7}
    scores, runs = rows_of(tables, teacher_seeds=True)
    averaged = rows_of({name: table.mean(axis=1) for name, table in tables.items()})
    pd.testing.assert_series_equal(only(scores, runs), only(*averaged), rtol=1e-4)

    lacking = runs.assign(row=runs["row"].where((runs["repeat"] != 1) | (runs["teacher_seed"] != 1) | (runs["objective"] != "cc"), -1))
    three = rows_of({name: table[[0, 2, 3]].mean(axis=1) for name, table in tables.items()})
    found = only(scores, lacking)
    assert found["n"] == 3
    pd.testing.assert_series_equal(found, only(*three), rtol=1e-4)


def test_a_run_whose_repeat_has_no_number_pairs_with_nothing():
    scores, runs = crossed(6)
    unnamed = runs.astype({"repeat": "Int64"})
    unnamed.loc[unnamed["repeat"] == 0, "repeat"] = pd.NA
    assert only(scores, unnamed)["n"] == 3
    assert len(mcnemar(scores > 0, unnamed, ASKED)) == 3


@pytest.mark.parametrize(("n", "why"), [(0, "no repeat has the predictions of both"), (1, "one repeat only: no spread to test against")])
def test_too_few_repeats_have_a_reason_and_no_interval(n, why):
    scores, runs = crossed(7)
    found = only(scores, runs.assign(row=runs["row"].where(runs["repeat"] < n, -1)))
    assert (found["n"], found["why"]) == (n, why)
    assert np.isnan([found["low_images"], found["high_images"], found["df"], found["se_seeds"]]).all()
    assert np.isfinite(found["difference"]) == np.isfinite(found["se_images"]) == (n == 1)


def test_without_a_spread_over_the_seeds_there_is_no_interval():
    right = np.random.default_rng(0).random((2, 40)) < 0.6
    scores, runs = rows_of({"cc": np.repeat(right[:1], 3, 0), "kd": np.repeat(right[1:], 3, 0)})
    found = only(scores, runs)
    assert found["why"] == "the same difference in all 3 repeats: no spread to test against"
    assert found["se_seeds"] == 0 and found["se_images"] > 0 and np.isnan(found["low_images"])


def test_nothing_at_all_is_an_answer_too():
    _, runs = crossed(8)
    found = only(np.zeros((0, 0), dtype=bool), runs.assign(row=-1))
    assert (found["n"], found["n_images"]) == (0, 0)
    scores, runs = crossed(8)
    empty = seed_by_image(scores, runs, ASKED.iloc[:0])
    assert len(empty) == 0 and empty["low_images"].dtype == float


@pytest.mark.parametrize("scores", [np.zeros((3, 1)), np.zeros(5)])
def test_scores_without_two_images_are_refused(scores):
    with pytest.raises(ValueError, match="two images at least"):
        resampled_means(scores)


def test_a_row_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="row 9, and there are 4 rows"):
        repeat_values(np.zeros((4, 2)), pd.DataFrame([{**BLOCK, "objective": "cc", "repeat": 0, "teacher_seed": 0, "row": 9}]))


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_is_that_of_statsmodels(seed):
    draw = np.random.default_rng(seed)
    scores, runs = rows_of({name: draw.random((3, 80)) < share for name, share in (("cc", 0.8), ("kd", draw.uniform(0.5, 0.9)))})
    found = mcnemar(scores, runs, ASKED)
    assert found["repeat"].tolist() == [0, 1, 2] and found["teacher_seed"].tolist() == [0, 0, 0]
    for repeat, line in enumerate(found.to_dict(orient="records")):
        one, other = scores[repeat], scores[3 + repeat]
        table = pd.crosstab(pd.Categorical(one, [True, False]), pd.Categorical(other, [True, False]), dropna=False).to_numpy()
        assert [[line["n_both"], line["n_objective_only"]], [line["n_baseline_only"], line["n_neither"]]] == table.tolist()
        assert line["p"] == pytest.approx(reference(table, exact=True).pvalue, rel=1e-12)


def test_checkpoints_that_are_right_on_the_same_images_do_not_differ():
    scores, runs = rows_of({"cc": np.ones((1, 5), dtype=bool), "kd": np.ones((1, 5), dtype=bool)})
    (line,) = mcnemar(scores, runs, ASKED).to_dict(orient="records")
    assert (line["n_both"], line["n_neither"], line["p"]) == (5, 0, 1.0)


def test_a_checkpoint_without_teacher_pairs_with_each_teacher_seed_and_a_missing_one_with_none():
    scores, runs = rows_of({"cc": np.random.default_rng(0).random((2, 2, 30)) < 0.7}, teacher_seeds=True)
    alone = runs[runs["teacher_seed"] == 0].assign(objective="kd", teacher_seed=pd.NA)
    lacking = runs.assign(row=runs["row"].where(runs["row"] != 3, -1))
    found = mcnemar(scores, pd.concat([lacking, alone]).astype({"teacher_seed": "Int64"}), ASKED)
    assert list(zip(found["repeat"], found["teacher_seed"], strict=True)) == [(0, 0), (0, 1), (1, 0)]
    both = mcnemar(scores, pd.concat([alone.assign(objective="cc"), alone]), ASKED)
    assert both["teacher_seed"].isna().all() and (both["p"] == 1).all() and len(both) == 2


def test_mcnemar_refuses_what_is_not_right_or_wrong():
    scores, runs = crossed(0)
    with pytest.raises(ValueError, match="right and wrong"):
        mcnemar(scores, runs, ASKED)


def test_the_calibration_error_is_that_of_a_loop_over_bins():
    draw = np.random.default_rng(0)
    confidence, correct = draw.random(500).astype(np.float32), draw.random(500) < 0.6
    expected = 0.0
    for place in range(15):
        held = (confidence > place / 15) & (confidence <= (place + 1) / 15)
        if held.any():
            expected += held.mean() * abs(confidence[held].mean(dtype=float) - correct[held].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, rel=1e-6)


def test_worked_calibration_errors():
    # Bins of width .1: .95 .95 hold one right of two, .05 none of one: (|1.9 - 1| + |.05 - 0|) / 3.
    found = expected_calibration_error(np.array([0.95, 0.95, 0.05]), np.array([True, False, False]), bins=10)
    assert found == pytest.approx(0.95 / 3)
    # A bin is closed on its right, so .5 and .4 share one of two; 0 and 1 lie in the outer ones.
    assert expected_calibration_error(np.array([0.5, 0.4, 1.0, 0.0]), np.array([True, False, True, False]), bins=2) == pytest.approx(
        0.1 / 4
    )


@pytest.mark.parametrize(
    ("confidence", "correct", "told"),
    [
        ([0.5, 1.2], [True, True], "outside of 0 to 1"),
        ([0.5, np.nan], [True, True], "outside of 0 to 1"),
        ([0.5], [True, True], "two columns"),
        ([], [], "two columns"),
    ],
)
def test_the_calibration_error_refuses_what_is_no_confidence(confidence, correct, told):
    with pytest.raises(ValueError, match=told):
        expected_calibration_error(np.array(confidence), np.array(correct, dtype=bool))


def test_accuracy_by_class_leaves_an_absent_class_open():
    found = class_accuracy(np.array([True, False, True, True]), np.array([0, 0, 2, 2]), 4)
    np.testing.assert_array_equal(found, [0.5, np.nan, 1.0, np.nan])
    with pytest.raises(ValueError, match="do not fit 2 classes"):
        class_accuracy(np.array([True]), np.array([2]), 2)
    with pytest.raises(ValueError, match="two columns"):
        class_accuracy(np.array([True]), np.array([2, 1]), 3)


def test_agreement_counts_the_same_class_whether_right_or_wrong():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75
    with pytest.raises(ValueError, match="same images"):
        agreement(np.array([1]), np.array([1, 2]))
