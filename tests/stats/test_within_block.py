"""Tests, intervals, equivalence, verdicts and indistinguishable_from_best within a block: against SciPy and statsmodels, by hand, and at the edges."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from kdbench.stats.compare import VERDICTS, compare, holm, judge
from kdbench.stats.paired import family, paired_differences
from kdbench.stats.repeats import summarise
from kdbench.stats.selection import indistinguishable_from_best

BLOCK = {"dataset": "digits", "teacher": "big", "student": "small"}
BLOCKS = pd.DataFrame([BLOCK])


def long(values, first=0, unnamed=False, **block):
    """A long frame of {objective: values by repeat}; `unnamed`: without the numbers of the repeats."""
    rows = [
        {**BLOCK, **block, "objective": objective, "repeat": None if unnamed else first + repeat, "teacher_seed": 0, "value": value}
        for objective, mine in values.items()
        for repeat, value in enumerate(mine)
    ]
    return pd.DataFrame(rows)


def only(runs, objective="cc", baseline="kd", **options):
    found = paired_differences(runs, BLOCKS.assign(baseline=baseline, objective=objective), **options)
    assert len(found) == 1
    return found.iloc[0]


def many(seed=0, objectives=8, n=5, gain=1.5):
    """A block with objectives of which some differ from the baseline `o0`, both ways."""
    draw = np.random.default_rng(seed)
    shift = draw.normal(0, gain, objectives) * (draw.uniform(size=objectives) < 0.7)
    shared = draw.normal(size=n)
    return long({f"o{k}": shared + shift[k] + draw.normal(0, 0.5, n) for k in range(objectives)})


def asked_of(runs, *baselines):
    return family(BLOCKS, list(dict.fromkeys(runs["objective"])), baselines or ("o0",))


def unpaired(one, other):
    return pd.concat([long({"cc": one}, first=0), long({"kd": other}, first=100)])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("labels", ["other", "none", "one in common"])
def test_where_seeds_do_not_pair_the_test_is_welchs_of_scipy(seed, labels):
    draw = np.random.default_rng(seed)
    one, other = draw.normal(0.9, 0.01, draw.integers(3, 9)), draw.normal(0.89, 0.03, draw.integers(3, 9))
    runs = unpaired(one, other)
    if labels == "none":
        runs["repeat"] = None
    if labels == "one in common":
        runs.loc[runs["repeat"] == 100, "repeat"] = 0
    alpha = float(draw.uniform(0.01, 0.2))
    found, expected = only(runs, alpha=alpha), stats.ttest_ind(one, other, equal_var=False)
    interval = expected.confidence_interval(1 - alpha)
    assert [found[name] for name in ("t", "p", "df", "low", "high")] == pytest.approx(
        [expected.statistic, expected.pvalue, expected.df, *interval], rel=1e-9
    )
    assert (found["test"], found["why"]) == ("Welch t", "")
    assert (found["n"], found["n_objective"], found["n_baseline"]) == (min(len(one), len(other)), len(one), len(other))
    assert found["n_asked"] == len(one) + len(other) - (labels == "one in common")
    assert np.isnan(found["d_z"]) and np.isnan(found["correlation"])
    assert found["difference"] == pytest.approx(one.mean() - other.mean())
    # Whatever the test, sd / sqrt(n) is the standard error.
    assert found["sd"] / np.sqrt(found["n"]) == pytest.approx(found["difference"] / found["t"])


def test_seeds_that_pair_are_paired_even_where_more_do_not():
    runs = long({"cc": [0.5, 0.7, 0.6, 0.8], "kd": [0.4, 0.45, 0.65, np.nan]})
    found = only(runs)
    assert (found["test"], found["n"]) == ("paired t", 3)
    assert found["p"] == pytest.approx(stats.ttest_rel([0.5, 0.7, 0.6], [0.4, 0.45, 0.65]).pvalue)


@pytest.mark.parametrize(
    ("one", "other", "n", "why"),
    [
        ([0.5, 0.6], [0.4, 0.5, 0.6], 0, "no repeat is complete in both"),
        ([0.5, 0.5, 0.5], [0.4, 0.4, 0.4], 3, "each has the same value in all its repeats: no spread to test against"),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], 3, "each has the same value in all its repeats: no spread to test against"),
        ([0.5, 0.6, 0.7], [np.nan] * 3, 0, "no complete repeat of the baseline"),
    ],
)
def test_welchs_test_also_says_why_it_cannot_be_made(one, other, n, why):
    found = only(unpaired(one, other))
    assert (found["n"], found["why"], found["test"]) == (n, why, "")
    assert np.isnan([found["p"], found["t"], found["df"], found["low"], found["high"]]).all()


def test_one_side_without_spread_is_still_tested_by_welch():
    one, other = [0.5, 0.5, 0.5, 0.5], [0.4, 0.42, 0.44]
    found = only(unpaired(one, other))
    assert found["df"] == pytest.approx(2)
    assert found["p"] == pytest.approx(stats.ttest_1samp(other, 0.5).pvalue)


def test_runs_without_a_repeat_are_repeats_of_their_own():
    runs = long({"cc": [0.3, 0.1, 0.2]}, unnamed=True)
    summary = summarise(runs).iloc[0]
    assert (summary["n"], summary["n_asked"]) == (3, 3)
    assert [summary["mean"], summary["sd"]] == pytest.approx([0.2, 0.1])
    named = long({"cc": [0.4, 0.5]})
    assert summarise(pd.concat([runs, named]).astype({"repeat": object})).iloc[0]["n"] == 5


def test_the_order_of_runs_without_a_repeat_reaches_no_number():
    draw = np.random.default_rng(8)
    runs = long({"cc": draw.normal(size=9), "kd": draw.normal(size=7)}, unnamed=True)
    for seed in range(5):
        pd.testing.assert_series_equal(only(runs.sample(frac=1, random_state=seed)), only(runs), check_exact=True)


def test_a_run_without_a_repeat_that_stands_there_twice_is_known_by_its_id():
    runs = long({"cc": [0.3, 0.1, 0.2]}, unnamed=True).assign(id=["a", "b", "b"])
    with pytest.raises(ValueError, match="1 runs occur twice"):
        summarise(runs)
    assert summarise(runs.assign(id=["a", "b", None]))["n"].tolist() == [3]


def test_words_and_numbers_may_label_repeats():
    runs = long({"cc": [0.5, 0.7, 0.6], "kd": [0.4, 0.45, 0.65]})
    runs["repeat"] = [1, "two", "three"] * 2
    assert only(runs)["p"] == pytest.approx(stats.ttest_rel([0.5, 0.7, 0.6], [0.4, 0.45, 0.65]).pvalue)


def test_p_holm_is_the_two_sided_holm_of_statsmodels_over_the_whole_family():
    for seed in range(10):
        runs = many(seed, n=3 + seed % 4, gain=2)
        found = compare(runs, asked_of(runs, "o0", "o1"))
        assert found["p_holm"].tolist() == pytest.approx(multipletests(found["p"], method="holm")[1])


def test_simultaneous_intervals_are_t_intervals_at_alpha_over_the_size_of_the_family():
    runs, alpha = many(4, n=6), 0.1
    asked = asked_of(runs, "o0", "o1")
    found = compare(runs[runs["objective"] != "o7"], asked, alpha)
    values = runs.pivot(index="repeat", columns="objective", values="value")
    for _, row in found.iterrows():
        if row["objective"] == "o7":  # never ran, and counts in the size
            assert np.isnan(row["low_all"]) and np.isnan(row["high_all"])
            continue
        delta = values[row["objective"]] - values[row["baseline"]]
        low, high = stats.t.interval(1 - alpha / len(asked), 5, delta.mean(), stats.sem(delta))
        assert (row["low_all"], row["high_all"]) == pytest.approx((low, high))
        assert row["low_all"] < row["low"] < row["high"] < row["high_all"]


@pytest.mark.slow
def test_better_and_worse_stand_exactly_where_the_adjusted_p_is_below_alpha():
    signs = set()
    for seed in range(40):
        runs = many(seed, n=3 + seed % 4, gain=3)
        alpha = (0.05, 0.2)[seed % 2]
        found = compare(runs, asked_of(runs, "o0", "o1"), alpha)
        assert found["verdict"].isin(["better", "worse"]).tolist() == (found["p_holm"] < alpha).tolist()
        signs |= set(found["verdict"])
    assert signs == {"better", "worse", "undecided"}


def test_nothing_is_claimed_of_an_objective_that_collapses_nor_against_it():
    runs = many(7, gain=3)
    plain = compare(runs, asked_of(runs, "o0", "o1"), margin=3.0)
    found = compare(runs, asked_of(runs, "o0", "o1"), margin=3.0, collapsed={"o1"})
    touched = (found["objective"] == "o1") | (found["baseline"] == "o1")
    assert (found["verdict"] == "unstable").tolist() == touched.tolist() and 0 < touched.sum() < len(found)
    assert set(found[touched]["verdict_why"]) == {"runs of o1 collapse: no t test is valid"}
    # The numbers stay as they are, and so do the other verdicts.
    pd.testing.assert_frame_equal(found[~touched], plain[~touched])
    pd.testing.assert_frame_equal(found.drop(columns=["verdict", "verdict_why"]), plain.drop(columns=["verdict", "verdict_why"]))
    both = compare(runs, asked_of(runs, "o0", "o1"), collapsed={"o0", "o1"}).iloc[0]
    assert both["verdict_why"] == "runs of o1 and o0 collapse: no t test is valid"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_equivalence_is_the_paired_tost_of_statsmodels(seed, margin):
    draw = np.random.default_rng(seed)
    one, other = draw.normal(0, 1, 6), draw.normal(0.2, 1, 6)
    runs = long({"cc": one, "kd": other})
    found = compare(runs, BLOCKS.assign(baseline="kd", objective="cc"), margin=margin).iloc[0]
    assert found["p_equal"] == pytest.approx(ttost_paired(one, other, -margin, margin)[0], rel=1e-9)
    assert found["p_equal_holm"] == found["p_equal"]


def test_equivalence_of_unpaired_seeds_is_two_one_sided_welch_tests_of_scipy():
    one, other = np.array([0.5, 0.52, 0.51, 0.49]), np.array([0.5, 0.53, 0.49])
    found = compare(unpaired(one, other), BLOCKS.assign(baseline="kd", objective="cc"), margin=0.03).iloc[0]
    above = stats.ttest_ind(one + 0.03, other, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(one - 0.03, other, equal_var=False, alternative="less").pvalue
    assert found["p_equal"] == pytest.approx(max(above, below))


def test_equivalence_is_adjusted_over_the_family_and_leaves_the_untested_untested():
    runs = pd.concat([many(3, objectives=5), long({"flat": many(3, objectives=5).query("objective == 'o0'")["value"]})])
    found = compare(runs, asked_of(runs), margin=1.0)
    assert found["p_equal"].isna().tolist() == (found["objective"] == "flat").tolist()
    assert found["p_equal_holm"].tolist() == pytest.approx(holm(found["p_equal"], 5).tolist(), nan_ok=True)
    flat = found[found["objective"] == "flat"].iloc[0]
    assert (flat["verdict"], flat["verdict_why"]) == ("undecided", "equal to the baseline in all 5 repeats: no spread to test against")


def test_without_a_margin_nothing_is_equal_and_a_margin_that_is_no_size_is_refused():
    runs = many(1)
    found = compare(runs, asked_of(runs))
    assert found["p_equal"].isna().all() and found["p_equal_holm"].isna().all()
    assert not found["verdict"].str.contains("equal|margin").any()
    for wrong in (0, -0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive number"):
            compare(runs, asked_of(runs), margin=wrong)
    with pytest.raises(ValueError, match="alpha is 5"):
        compare(runs, asked_of(runs), alpha=5)


def judged(difference=0.1, p=0.5, p_equal=0.5, why="", failed=(0, 0), higher_is_better=True):
    """The verdict on a comparison alone in its family, its p values as given: the margin is such that `p_equal` comes out."""
    n, df = 5, 4.0
    error = abs(difference) / stats.t.isf(p / 2, df) if np.isfinite(p) else np.nan
    line = {"objective": "cc", "baseline": "kd", "difference": difference, "n": n, "df": df, "sd": error * np.sqrt(n), "p": p, "why": why}
    line |= {"failed_objective": failed[0], "failed_baseline": failed[1], "runs_objective": 5, "runs_baseline": 5}
    margin = None if np.isnan(p_equal) else abs(difference) + stats.t.isf(p_equal, df) * error
    found = judge(pd.DataFrame([line]), 0.05, margin, higher_is_better).iloc[0]
    if margin is not None:
        assert found["p_equal_holm"] == pytest.approx(p_equal)
    assert found["verdict"] in VERDICTS
    return found["verdict"], found["verdict_why"]


@pytest.mark.parametrize(
    ("difference", "p", "p_equal", "verdict"),
    [
        (0.1, 0.01, 0.5, "better"),
        (-0.1, 0.01, 0.5, "worse"),
        (0.1, 0.01, 0.01, "better but below the margin"),
        (-0.1, 0.01, 0.01, "worse but below the margin"),
        (0.1, 0.5, 0.01, "equal"),
        (0.1, 0.5, 0.5, "undecided"),
        (0.1, 0.0501, 0.0501, "undecided"),
        (0.1, 0.01, np.nan, "better"),
    ],
)
def test_the_verdict_follows_from_the_two_adjusted_p_values(difference, p, p_equal, verdict):
    assert judged(difference, p, p_equal) == (verdict, "")
    assert judged(-difference, p, p_equal, higher_is_better=False) == (verdict, "")


OBJECTIVE, BASELINE = "1 of 5 runs failed: the mean is over survivors", "1 of 5 runs of the baseline failed: the mean is over survivors"


@pytest.mark.parametrize(
    ("difference", "p", "p_equal", "failed", "expected"),
    [
        (0.1, 0.01, 0.5, (1, 0), ("undecided", OBJECTIVE)),
        (0.1, 0.01, 0.01, (1, 0), ("undecided", OBJECTIVE)),
        (-0.1, 0.01, 0.5, (1, 0), ("worse", "")),
        (-0.1, 0.01, 0.01, (1, 0), ("worse", "")),
        (0.1, 0.5, 0.01, (1, 0), ("undecided", OBJECTIVE)),
        (-0.1, 0.01, 0.5, (0, 1), ("undecided", BASELINE)),
        (0.1, 0.01, 0.5, (0, 1), ("better", "")),
        (0.1, 0.01, 0.01, (0, 1), ("better", "")),
        (0.1, 0.5, 0.01, (0, 1), ("undecided", BASELINE)),
        (0.1, 0.5, 0.01, (1, 1), ("undecided", f"{OBJECTIVE}; {BASELINE}")),
        (0.1, 0.5, 0.5, (1, 1), ("undecided", "")),
    ],
)
def test_survivors_are_never_called_better_nor_equal(difference, p, p_equal, failed, expected):
    assert judged(difference, p, p_equal, failed=failed) == expected


def test_what_was_not_tested_is_undecided_with_its_reason():
    assert judged(p=np.nan, p_equal=np.nan, why="one repeat only", failed=(1, 0)) == ("undecided", "one repeat only")


@pytest.mark.parametrize("state", ["failed", "diverged", "damaged", "finished"])
def test_a_failed_run_or_one_without_a_value_forbids_better_and_keeps_the_p_value(state):
    runs = long({"cc": [1.0, 1.1, 1.2, 1.05, 9.9], "kd": [0.1, 0.15, 0.3, 0.2, 0.1]}).assign(state="finished")
    kept = runs[(runs["objective"] != "cc") | (runs["repeat"] != 4)]
    asked = BLOCKS.assign(baseline="kd", objective="cc")
    assert compare(kept, asked).iloc[0]["verdict"] == "better"
    runs.loc[4, ["state", "value"]] = [state, np.nan]
    found = compare(runs, asked).iloc[0]
    assert (found["verdict"], found["verdict_why"]) == ("undecided", OBJECTIVE)
    assert (found["failed_objective"], found["failed_baseline"], found["runs_objective"]) == (1, 0, 5)
    assert found["p_holm"] == compare(kept, asked).iloc[0]["p_holm"] < 0.05
    mirrored = compare(runs, BLOCKS.assign(baseline="cc", objective="kd")).iloc[0]
    assert (mirrored["verdict"], mirrored["verdict_why"]) == ("undecided", BASELINE)
    missing = runs.copy()
    missing.loc[4, "state"] = "missing"
    assert compare(missing, asked).iloc[0]["verdict"] == "better"


def test_what_never_ran_counts_in_the_family_and_a_smaller_family_would_flatter():
    runs = many(7, gain=3)
    found = compare(runs, asked_of(runs)).set_index("objective")
    kept = runs[runs["objective"].isin(["o0", "o5", "o6"])]
    partly = compare(kept, asked_of(runs)).set_index("objective")
    smaller = compare(kept, asked_of(kept)).set_index("objective")
    assert len(found) == len(partly) == 7 and len(smaller) == 2
    for name in ("o5", "o6"):
        assert partly.loc[name, "p"] == found.loc[name, "p"] == smaller.loc[name, "p"]
    first = partly["p"].idxmin()
    assert partly.loc[first, "p_holm"] == pytest.approx(7 * partly.loc[first, "p"])
    assert smaller.loc[first, "p_holm"] == pytest.approx(2 * partly.loc[first, "p"])


def test_neither_row_order_nor_labels_change_a_verdict():
    runs = many(6, gain=3)
    found = compare(runs, asked_of(runs), margin=0.5)
    shuffled = runs.sample(frac=1, random_state=2).assign(repeat=lambda table: 50 - 3 * table["repeat"])
    pd.testing.assert_frame_equal(compare(shuffled, asked_of(runs), margin=0.5), found, rtol=1e-12)
    order = np.random.default_rng(0).permutation(len(found))
    turned = compare(runs, asked_of(runs).iloc[order], margin=0.5)
    pd.testing.assert_frame_equal(turned, found.iloc[order].reset_index(drop=True))
    named = runs.assign(objective="x" + runs["objective"].str[::-1])
    renamed = compare(named, asked_of(runs).assign(baseline="x0o", objective=lambda table: "x" + table["objective"].str[::-1]), margin=0.5)
    kept = [name for name in found.columns if name not in ("objective", "baseline")]
    pd.testing.assert_frame_equal(renamed[kept], found[kept])
    standing = indistinguishable_from_best(runs).set_index("objective")["among_best"]
    assert indistinguishable_from_best(shuffled).set_index("objective")["among_best"].to_dict() == standing.to_dict()
    assert (
        indistinguishable_from_best(named).set_index("objective")["among_best"].rename(lambda name: name[:0:-1]).to_dict()
        == standing.to_dict()
    )


def test_a_lower_metric_that_is_better_mirrors_every_verdict_and_standing():
    runs = many(6, gain=3)
    found = compare(runs, asked_of(runs), margin=0.5)
    mirrored = compare(runs.assign(value=-runs["value"]), asked_of(runs), margin=0.5, higher_is_better=False)
    assert mirrored["verdict"].tolist() == found["verdict"].tolist()
    assert {"better", "worse"} <= set(found["verdict"])
    assert (
        indistinguishable_from_best(runs.assign(value=-runs["value"]), higher_is_better=False)["among_best"].tolist()
        == indistinguishable_from_best(runs)["among_best"].tolist()
    )


def test_missing_cells_and_one_seed_leave_a_row_with_a_reason():
    runs = long({"ce": [0.1], "kd": [0.2]})
    found = compare(runs, family(BLOCKS, ["ce", "kd", "cc"], ["ce"]), margin=0.1)
    assert found["why"].tolist() == ["one repeat only: no spread to test against", "no complete repeat of the objective"]
    assert found["verdict_why"].tolist() == found["why"].tolist()
    numbers = ["p", "p_holm", "low", "high", "low_all", "high_all", "p_equal", "p_equal_holm"]
    assert found[numbers].isna().all(axis=None)
    assert found["runs_objective"].tolist() == [1, 0]


def test_a_family_of_nothing_is_a_frame_of_nothing_with_its_columns():
    runs = many(0)
    found = compare(runs, asked_of(runs).iloc[:0], margin=0.1)
    assert len(found) == 0
    assert {"p_holm", "low_all", "high_all", "p_equal_holm", "verdict", "verdict_why"} <= set(found.columns)


def test_a_run_or_a_comparison_that_stands_there_twice_is_refused():
    runs = many(0)
    with pytest.raises(ValueError, match="1 runs occur twice"):
        compare(pd.concat([runs, runs.iloc[:1]]), asked_of(runs))
    with pytest.raises(ValueError, match="1 comparisons occur twice in the family"):
        compare(runs, pd.concat([asked_of(runs), asked_of(runs).iloc[:1]]))


def standing_of(values, **options):
    return indistinguishable_from_best(long(values), **options).set_index("objective")["among_best"].to_dict()


def test_what_a_rival_beats_is_struck_out_and_what_none_beats_is_tied():
    base = np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    values = {"far": base, "near": base + 1.0 + [0.01, -0.02, 0.01, 0.0, 0.02], "top": base + 1.01 + [0.02, 0.01, -0.03, 0.0, 0.01]}
    assert standing_of(values) == {"far": "", "near": "tied", "top": "best"}
    assert standing_of(values, higher_is_better=False) == {"far": "best", "near": "", "top": ""}


def test_the_level_counts_the_rivals():
    # t = 2.9 with 4 degrees of freedom, one-sided p = .022: below .05 and below .05 / 2, not below .05 / 3.
    noise = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    shift = 2.9 * noise.std(ddof=1) / np.sqrt(5)
    values = {"low": np.zeros(5), "top": noise + shift}
    assert stats.t.sf(2.9, 4) == pytest.approx(0.022, abs=5e-4)
    assert standing_of(values) == {"low": "", "top": "best"}
    wild, far = np.random.default_rng(0).normal(0, 40, 5) - 10, np.zeros(5) - 1000
    assert standing_of({**values, "far": far})["low"] == ""
    assert standing_of({**values, "far": far, "wild": wild}) == {"low": "tied", "top": "best", "far": "", "wild": "tied"}
    # What has too few repeats is no rival.
    assert standing_of({**values, "far": far, "wild": [*wild[:2], np.nan, np.nan, np.nan]})["low"] == ""


def test_a_rival_that_is_not_the_best_mean_strikes_out_too():
    draw = np.random.default_rng(3)
    base = draw.normal(size=6)
    steady, low = base + 1.0 + draw.normal(0, 0.01, 6), base + draw.normal(0, 0.01, 6)
    wild = base + 1.5 + np.array([9.0, -9.0, 8.0, -8.0, 7.0, -7.0])
    assert standing_of({"low": low, "steady": steady, "wild": wild}) == {"low": "", "steady": "tied", "wild": "best"}


def test_equal_means_are_all_best_and_a_tie_needs_three_pairs():
    two = {"a": [0.1, 0.3, 0.2], "b": [0.3, 0.2, 0.1]}
    assert standing_of({**two, "c": [0.0, 0.1, 0.3], "d": [-9.0, -9.1, -9.3]}) == {"a": "best", "b": "best", "c": "tied", "d": ""}
    assert standing_of({"a": [0.1, 0.3], "b": [0.2, 0.1]}) == {"a": "best", "b": ""}
    assert standing_of({"a": [0.1]}) == {"a": "best"}
    assert standing_of({"a": [np.nan], "b": [np.nan, np.nan]}) == {"a": "", "b": ""}


def test_an_objective_with_a_failed_run_is_neither_best_nor_tied_nor_a_rival():
    values = {"a": [0.9, 0.91, 0.92, 0.9], "b": [0.5, 0.52, 0.51, 0.53], "c": [0.51, 0.5, 0.53, 0.5], "d": [0.1, 0.13, 0.1, 0.12]}
    runs = long(values).assign(state="finished")
    assert indistinguishable_from_best(runs)["among_best"].tolist() == ["best", "", "", ""]
    runs.loc[3, "value"] = np.nan
    for state in ("diverged", "failed", "damaged", "finished"):
        runs.loc[3, "state"] = state
        assert indistinguishable_from_best(runs)["among_best"].tolist() == ["", "best", "tied", ""], state
    # A missing run is no failure: the objective stays eligible.
    runs.loc[3, "state"] = "missing"
    assert indistinguishable_from_best(runs)["among_best"].tolist() == ["best", "", "", ""]


def test_where_everything_is_tied_with_the_best_nothing_is_marked():
    base = np.array([0.1, 0.3, 0.2])
    near = {"a": base, "b": base + [0.01, -0.01, 0.02], "c": base + [0.0, 0.02, -0.01]}
    assert standing_of(near) == {"a": "", "b": "best", "c": ""}
    assert standing_of({**near, "far": base - [9.0, 9.1, 9.0]}) == {"a": "tied", "b": "best", "c": "tied", "far": ""}
    # Block by block: another block's struck objective changes nothing.
    runs = pd.concat([long(near), long({**near, "far": base - [9.0, 9.1, 9.0]}, teacher="other")])
    assert indistinguishable_from_best(runs)["among_best"].tolist() == ["", "best", "", "tied", "best", "tied", ""]


def test_each_block_has_its_own_best_with_or_without_a_teacher():
    parts = [long({"a": [1.0, 1.1, 1.3], "b": [0.1, 0.3, 0.2]}, teacher=teacher) for teacher in ("big", "other")]
    alone = long({"a": [0.1, 0.3, 0.2], "b": [1.0, 1.1, 1.3]}, teacher=None)
    found = indistinguishable_from_best(pd.concat([*parts, alone]))
    assert found[found["among_best"] == "best"]["objective"].tolist() == ["a", "a", "b"]
    assert list(found.columns) == ["dataset", "teacher", "student", "objective", "n", "n_asked", "mean", "sd", "among_best"]


def test_seeds_that_do_not_pair_are_told_apart_by_welch():
    runs = pd.concat([long({"a": [1.0, 1.1, 1.3]}), long({"b": [-2.1, -2.3, -2.2]}, first=10), long({"c": [0.9, 1.3, 1.1]}, first=20)])
    assert indistinguishable_from_best(runs)["among_best"].tolist() == ["best", "", "tied"]
