"""Paired differences, Holm and power: against SciPy and statsmodels, by simulation, and at the edges."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from kdbench.stats.compare import holm
from kdbench.stats.paired import family, paired_differences
from kdbench.stats.power import detectable_difference, paired_power, repeats_needed
from kdbench.stats.repeats import spread_over_blocks, summarise

BLOCK = {"dataset": "digits", "teacher": "big", "student": "small"}
BLOCKS = pd.DataFrame([BLOCK])


def long(values, teacher_seeds=False, **block):
    """A long frame of {objective: values by repeat}, or of {objective: values by [repeat, teacher seed]}."""
    rows = []
    for objective, mine in values.items():
        for repeat, found in enumerate(mine):
            for seed, value in enumerate(found if teacher_seeds else [found]):
                rows.append({**BLOCK, **block, "objective": objective, "repeat": repeat, "teacher_seed": seed, "value": value})
    return pd.DataFrame(rows)


def only(runs, objective="cc", baseline="kd", **options):
    found = paired_differences(runs, BLOCKS.assign(baseline=baseline, objective=objective), **options)
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("seed", range(10))
def test_the_paired_difference_is_that_of_scipy(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(3, 12))
    one, other = draw.normal(0.9, 0.01, n), draw.normal(0.89, 0.02, n)
    alpha = float(draw.uniform(0.01, 0.2))
    found, expected = only(long({"cc": one, "kd": other}), alpha=alpha), stats.ttest_rel(one, other)
    interval = expected.confidence_interval(1 - alpha)
    assert [found["t"], found["p"], found["low"], found["high"]] == pytest.approx(
        [expected.statistic, expected.pvalue, *interval], rel=1e-9
    )
    delta = one - other
    assert [found["difference"], found["sd"]] == pytest.approx([delta.mean(), delta.std(ddof=1)])
    assert found["d_z"] == pytest.approx(delta.mean() / delta.std(ddof=1))
    assert found["n"] == found["n_asked"] == n and found["why"] == ""
    assert found["correlation"] == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert (found["test"], found["df"]) == ("paired t", n - 1)


def test_a_worked_example_comes_out_as_by_hand():
    # Differences .01 .02 .03: mean .02, sd .01, t = .02 / (.01 / sqrt 3) = 3.4641, p = .0742 with 2 degrees of freedom.
    found = only(long({"cc": [0.91, 0.93, 0.92], "kd": [0.90, 0.91, 0.89]}))
    assert [found["difference"], found["sd"], found["t"], found["p"]] == pytest.approx([0.02, 0.01, 3.4641, 0.07418], rel=1e-4)
    assert [found["low"], found["high"]] == pytest.approx([0.02 - 0.024841, 0.02 + 0.024841], rel=1e-3)


def test_neither_the_order_of_the_rows_nor_the_numbers_of_the_repeats_matter():
    draw = np.random.default_rng(3)
    runs = long({name: draw.normal(size=6) for name in ("cc", "kd", "ce")})
    found = only(runs)
    shuffled = runs.sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(only(shuffled), found)
    pd.testing.assert_series_equal(only(shuffled.assign(repeat=100 - 7 * shuffled["repeat"])), found, rtol=1e-12)


def test_repeats_pair_by_their_number_and_not_by_their_place():
    runs = long({"cc": [0.5, 0.6, 0.7], "kd": [0.4, 0.45, 0.65]})
    lacking = runs[~((runs["objective"] == "cc") & (runs["repeat"] == 0))]
    found = only(lacking)
    assert (found["n"], found["n_asked"], found["n_objective"], found["n_baseline"]) == (2, 3, 2, 3)
    assert found["difference"] == pytest.approx((0.15 + 0.05) / 2)


def test_a_value_that_is_not_a_number_does_not_pair():
    for bad in (np.nan, np.inf):
        found = only(long({"cc": [0.5, bad, 0.7, 0.6], "kd": [0.4, 0.45, 0.65, 0.6]}))
        assert (found["n"], found["n_objective"]) == (3, 3)
        assert np.isfinite(found["p"])


def test_only_finished_runs_pair():
    runs = long({"cc": [0.5, 0.6, 0.7], "kd": [0.4, 0.45, 0.65]})
    runs["state"] = ["finished", "diverged", "finished", "finished", "finished", "finished"]
    assert only(runs)["n"] == 2


@pytest.mark.parametrize(
    ("values", "n", "why"),
    [
        ({"cc": [0.5], "kd": [0.4]}, 1, "one repeat only: no spread to test against"),
        ({"cc": [0.5, 0.7], "kd": [0.4, 0.5]}, 2, "there are only two repeats, and a test needs three"),
        ({"cc": [np.nan, np.nan], "kd": [0.4, 0.5]}, 0, "no complete repeat of the objective"),
        ({"kd": [0.4, 0.5]}, 0, "no complete repeat of the objective"),
        ({"cc": [np.nan], "kd": [np.nan]}, 0, "no complete repeat of the objective and the baseline"),
        ({"cc": [0.5, np.nan], "kd": [np.nan, 0.5]}, 0, "no repeat is complete in both"),
        ({"cc": [0.93, 0.92, 0.94], "kd": [0.92, 0.91, 0.93]}, 3, "the same difference in all 3 repeats: no spread to test against"),
        ({"cc": [0.1, 0.2, 0.3], "kd": [0.1, 0.2, 0.3]}, 3, "equal to the baseline in all 3 repeats: no spread to test against"),
    ],
)
def test_what_cannot_be_tested_has_no_p_value_and_says_why(values, n, why):
    found = only(long(values))
    assert (found["n"], found["why"]) == (n, why)
    assert np.isnan([found["p"], found["t"], found["df"], found["low"], found["high"], found["d_z"]]).all()
    assert found["test"] == ""


def test_teacher_seeds_are_averaged_inside_their_repeats():
    draw = np.random.default_rng(5)
    one, other = draw.normal(size=(5, 2)), draw.normal(size=(5, 2))
    found = only(long({"cc": one, "kd": other}, teacher_seeds=True))
    assert found["n"] == 5
    assert found["p"] == pytest.approx(stats.ttest_rel(one.mean(axis=1), other.mean(axis=1)).pvalue)


def test_a_repeat_that_lacks_one_of_its_teachers_does_not_count():
    one, other = np.arange(8.0).reshape(4, 2), np.arange(8.0).reshape(4, 2) ** 2
    one[2, 1] = np.nan
    runs = long({"cc": one, "kd": other}, teacher_seeds=True)
    assert only(runs)["n"] == 3
    summary = summarise(runs).set_index("objective")
    assert summary.loc["cc", ["n", "n_asked"]].tolist() == [3, 4]
    assert summary.loc["cc", "sd"] == pytest.approx(one[[0, 1, 3]].mean(axis=1).std(ddof=1))


def test_a_run_that_stands_there_twice_is_refused():
    runs = long({"cc": [0.5, 0.6], "kd": [0.4, 0.45]})
    with pytest.raises(ValueError, match="1 runs occur twice"):
        only(pd.concat([runs, runs.iloc[:1]]))


def test_a_run_without_teacher_belongs_to_every_block_of_its_dataset_and_student():
    blocks = pd.DataFrame([BLOCK, {**BLOCK, "teacher": "other"}, {**BLOCK, "student": "tiny"}, {**BLOCK, "dataset": "faces"}])
    runs = pd.concat([long({"ce": [0.1, 0.2]}, teacher=None), long({"kd": [0.3, 0.5]}), long({"kd": [0.4, 0.7]}, teacher="other")])
    spread = spread_over_blocks(runs, blocks)
    assert spread[spread["objective"] == "ce"].groupby(["dataset", "teacher", "student"]).size().to_dict() == {
        ("digits", "big", "small"): 2,
        ("digits", "other", "small"): 2,
    }
    found = paired_differences(spread, family(blocks, ["ce", "kd"], ["ce"]))
    assert found["difference"].tolist()[:2] == pytest.approx([0.25, 0.4])
    assert found["n"].tolist() == [2, 2, 0, 0]


def test_the_family_holds_each_pair_once_and_nothing_against_itself():
    asked = family(pd.DataFrame([BLOCK, {**BLOCK, "teacher": "other"}]), ["ce", "kd", "cc", "cka"], ["ce", "kd"])
    assert len(asked) == 2 * 5
    first = asked[asked["teacher"] == "big"]
    assert list(zip(first["objective"], first["baseline"], strict=True)) == [
        ("kd", "ce"),
        ("cc", "ce"),
        ("cka", "ce"),
        ("cc", "kd"),
        ("cka", "kd"),
    ]
    assert len(family(BLOCKS, ["cc", "cka"], ["kd"])) == 0
    assert len(family(BLOCKS, ["ce", "cc"], ["ce", "kd"])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels_in_any_order(seed):
    draw = np.random.default_rng(seed)
    p = draw.uniform(size=12) ** 3
    assert holm(p, 12) == pytest.approx(multipletests(p, method="holm")[1])
    order = draw.permutation(12)
    assert holm(p[order], 12) == pytest.approx(holm(p, 12)[order])


def test_holm_counts_what_could_not_be_tested_as_one():
    assert holm([0.01, np.nan, 0.02], 5) == pytest.approx([0.05, np.nan, 0.08], nan_ok=True)
    assert np.isnan(holm([np.nan, np.nan], 2)).all()
    assert holm([], 0).tolist() == []


def test_a_family_that_is_too_small_or_a_p_value_out_of_bounds_is_refused():
    with pytest.raises(ValueError, match="3 p values in a family of 2"):
        holm([0.1, 0.2, 0.3], 2)
    for wrong in (-0.1, 1.1, np.inf):
        with pytest.raises(ValueError, match="outside"):
            holm([wrong], 1)


@pytest.mark.slow
def test_the_family_errs_as_often_as_alpha_says():
    # 1500 suites of 6 equal objectives, 4 repeats, a shared seed effect: at least one false claim in at most 5 % of them.
    draw = np.random.default_rng(11)
    suites, objectives, repeats = 1500, [f"o{number}" for number in range(6)], 4
    values = draw.normal(size=(suites, 6, repeats)) + draw.normal(size=(suites, 1, repeats))
    keys = [(f"d{suite}", "big", "small", name, repeat, 0) for suite in range(suites) for name in objectives for repeat in range(repeats)]
    runs = pd.DataFrame(keys, columns=["dataset", "teacher", "student", "objective", "repeat", "teacher_seed"]).assign(value=values.ravel())
    blocks = pd.DataFrame({"dataset": [f"d{suite}" for suite in range(suites)], "teacher": "big", "student": "small"})
    found = paired_differences(runs, family(blocks, objectives, ["o0"]))
    assert (found["p"] < 0.05).mean() == pytest.approx(0.05, abs=0.015)
    families = found["p"].to_numpy().reshape(suites, 5)
    # Holm claims anything exactly where its first step does; all suites are judged by that, and some by Holm itself.
    false_claims = families.min(axis=1) < 0.05 / 5
    assert false_claims.mean() <= 0.05 + 0.015
    assert [(holm(p, 5) < 0.05).any() for p in families[:40]] == false_claims[:40].tolist()
    covered = (found["low"] <= 0) & (found["high"] >= 0)
    assert covered.mean() == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("n", "alone", "among_19"), [(3, 3.3, 14), (4, 2.1, 5.9), (5, 1.7, 3.7), (10, 1.0, 1.6)])
def test_the_least_detectable_difference_is_the_known_one(n, alone, among_19):
    assert detectable_difference(n) == pytest.approx(alone, rel=0.03)
    assert detectable_difference(n, comparisons=19) == pytest.approx(among_19, rel=0.03)


def test_the_power_is_that_of_the_noncentral_t():
    for n in (2, 3, 5, 30):
        critical, shift = stats.t.isf(0.025, n - 1), 0.8 * np.sqrt(n)
        expected = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
        assert paired_power(0.8, n) == pytest.approx(expected, abs=1e-9)
        assert paired_power(0.0, n) == pytest.approx(0.05, abs=1e-9)
        assert paired_power(-0.8, n) == pytest.approx(expected, abs=1e-9)


def test_the_power_at_two_and_three_repeats_is_that_of_a_simulation():
    draw = np.random.default_rng(0)
    for n in (2, 3):
        samples = draw.normal(detectable_difference(n), 1, size=(40_000, n))
        assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_the_repeats_needed_are_the_fewest_with_that_power():
    # For 80 % power, alone and at the first Holm step of 19 comparisons.
    assert [repeats_needed(d) for d in (1, 1.5, 2, 3)] == [10, 6, 5, 4]
    assert [repeats_needed(d, comparisons=19) for d in (1, 1.5, 2)] == [20, 12, 9]
    n = repeats_needed(-0.37)
    assert paired_power(0.37, n) >= 0.8 > paired_power(0.37, n - 1)


def test_one_repeat_can_see_nothing_and_no_repeats_find_nothing():
    assert np.isnan(detectable_difference(1)) and np.isnan(paired_power(1.0, 1))
    with pytest.raises(ValueError, match="difference of 0"):
        repeats_needed(0)
