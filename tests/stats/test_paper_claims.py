"""Claims: which tests support and contradict them, what is said of one that cannot be tested, and how often a verdict is wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.stats.paper_claims import CONTRADICTED, SUPPORTED, UNDECIDED, corrected, p_values, paper_claims
from tests.stats.simulation import CLAIM_RELATIONS, CLAIM_TRUTHS, claim_errors

NOBODY = pd.DataFrame(
    columns=["dataset", "teacher", "student", "objective", "device", "step_ms", "step_ms_q1", "step_ms_q3", "peak_mem_gib"]
)
PAIRS = (("d", "t", "s0"), ("d", "t", "s1"))
OFF = (-0.3, -0.1, 0.0, 0.1, 0.3)


def runs_of(means: dict[str, float], scale: float = 1.0, pairs=PAIRS, state=lambda name, repeat: "finished") -> pd.DataFrame:
    """Five repeats around these means; each objective's deviations are in an order of its own."""
    order = dict(zip(means, itertools.permutations(OFF), strict=False))
    rows = [
        (*pair, name, repeat, 0, state(name, repeat), mean + scale * order[name][repeat])
        for pair in pairs
        for name, mean in means.items()
        for repeat in range(5)
    ]
    found = pd.DataFrame(rows, columns=["dataset", "teacher", "student", "objective", "repeat", "teacher_seed", "state", "value"])
    return found.assign(value=found["value"].where(found["state"] == "finished"))


def claims_of(*comparisons: tuple[int, str, str, str], margin: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(comparisons, columns=["claim", "relation", "objective", "baseline"]).assign(margin=margin)


def judged(
    runs: pd.DataFrame, *comparisons: tuple[int, str, str, str], costs: pd.DataFrame = NOBODY, margin: float = 0.5, **more
) -> pd.DataFrame:
    return paper_claims(runs, costs, claims_of(*comparisons, margin=margin), **more)


def test_the_p_values_are_those_of_scipys_t_tests():
    draw = np.random.default_rng(0)
    for shift, margin in itertools.product((-1.0, -0.2, 0.0, 0.2, 1.0), (0.3, np.nan)):
        d = draw.normal(shift, 0.4, 6)
        args = [np.array([one]) for one in (d.mean(), d.std(ddof=1) / 6**0.5, 5.0, margin)]
        found = {name: [p[0] for p in p_values(np.array([name]), *args)] for name in ("better", "not worse", "equal")}
        two_sided = stats.ttest_1samp(d, 0).pvalue
        assert math.isclose(found["better"][0], two_sided if d.mean() > 0 else 1.0)
        if np.isnan(margin):
            assert math.isclose(found["better"][1], two_sided if d.mean() < 0 else 1.0)
            assert np.isnan(found["equal"]).all() and np.isnan(found["not worse"]).all()
            continue

        def one_sided(at, alternative, d=d):
            return stats.ttest_1samp(d, at, alternative=alternative).pvalue

        assert math.isclose(found["better"][1], one_sided(margin, "less"))
        assert np.allclose(found["not worse"], [one_sided(-margin, "greater"), one_sided(-margin, "less")])
        assert math.isclose(found["equal"][0], max(one_sided(margin, "less"), one_sided(-margin, "greater")))
        outside = 2 * min(one_sided(margin, "greater"), one_sided(-margin, "less"))
        assert math.isclose(found["equal"][1], min(outside, 1.0))


def test_a_difference_whose_interval_at_the_corrected_level_is_outside_of_the_margin_contradicts_equality_and_no_other_does():
    for difference in (0.5, 0.6, 0.9, 1.2, 1.5):
        error, df, margin, level = 0.2, 6.0, 0.5, 0.05 / 3
        low = difference - stats.t.isf(level / 2, df) * error
        _, contradicts = p_values(np.array(["equal"]), *(np.array([one]) for one in (difference, error, df, margin)))
        assert (contradicts[0] < level) == (low > margin)


def test_p_values_are_multiplied_by_the_pairs_that_have_something_to_reject():
    one, other = corrected([0.001, 0.02, np.nan], [0.004, 0.9, 0.9])
    # Three pairs; both of the first are rejected before the second is reached.
    assert np.allclose(one, [0.003, 0.04, np.nan], equal_nan=True) and np.allclose(other, [0.012, 1.0, 1.0])
    # Never below that of a smaller one, and never below Bonferroni's on one side.
    one, other = corrected([0.01, 0.011, 0.012], [1.0, 1.0, 1.0])
    assert np.allclose(one, [0.03, 0.033, 0.036]) and (other == 1).all()
    assert corrected([], [])[0].size == 0


def test_a_claim_is_supported_if_each_of_its_comparisons_is_and_contradicted_if_any_is():
    runs = runs_of({"best": 8, "middle": 4, "low": 0, "other": 4.01}, scale=0.1)
    found = judged(
        runs,
        (0, "better", "best", "middle"),
        (0, "better", "best", "low"),
        (1, "better", "middle", "low"),
        (1, "better", "middle", "best"),
        (2, "equal", "middle", "other"),
        (3, "equal", "middle", "low"),
        (4, "better", "other", "middle"),
        (5, "not worse", "middle", "other"),
        (6, "not worse", "low", "middle"),
    )
    whole = dict(zip(found["claim"], found["claim_verdict"], strict=True))
    assert whole == {0: SUPPORTED, 1: CONTRADICTED, 2: SUPPORTED, 3: CONTRADICTED, 4: CONTRADICTED, 5: SUPPORTED, 6: CONTRADICTED}
    assert list(found["verdict"][2:4]) == [SUPPORTED, CONTRADICTED]
    assert (found["n"] == 5).all() and (found["n_pairs"] == 2).all()


def test_a_gain_that_is_shown_and_shown_to_be_below_the_margin_contradicts_better():
    runs = runs_of({"a": 0.3, "b": 0}, scale=0.1)
    found = judged(runs, (0, "better", "a", "b"), margin=2)
    assert found["p_supports"][0] < 0.05 and found["p_contradicts"][0] < 0.05 and found["verdict"][0] == CONTRADICTED
    assert judged(runs, (0, "better", "a", "b"), margin=0.1)["verdict"][0] == SUPPORTED
    # The same where a lower value is better.
    assert judged(runs, (0, "better", "b", "a"), margin=0.1, higher_is_better=False)["verdict"][0] == SUPPORTED
    assert judged(runs, (0, "not worse", "a", "b"), margin=0.1, higher_is_better=False)["verdict"][0] == CONTRADICTED


def test_one_comparison_too_uncertain_leaves_the_claim_undecided_and_says_so():
    runs = runs_of({"a": 0.1, "b": 0, "c": -9})
    found = judged(runs, (0, "better", "a", "b"), (0, "better", "a", "c"), (1, "equal", "a", "b"), margin=0.01)
    assert list(found["verdict"]) == [UNDECIDED, SUPPORTED, UNDECIDED] and set(found["claim_verdict"]) == {UNDECIDED}
    assert found["verdict_why"][0] == "the tests show neither"


def test_without_a_margin_worse_alone_contradicts_better_and_nothing_is_equal():
    runs = runs_of({"a": 9, "b": 0})
    found = judged(
        runs, (0, "better", "b", "a"), (1, "better", "a", "b"), (2, "equal", "a", "b"), (3, "not worse", "a", "b"), margin=np.nan
    )
    assert list(found["verdict"]) == [CONTRADICTED, SUPPORTED, UNDECIDED, UNDECIDED]
    assert set(found["verdict_why"][2:]) == {"the suite has no margin for this metric"}


def test_what_collapses_has_no_p_value_and_decides_nothing():
    runs = runs_of({"a": 9, "b": 0, "c": 0})
    found = judged(runs, (0, "better", "a", "b"), (1, "better", "a", "c"), collapsed={"b"})
    assert found["p_supports"].isna().tolist() == [True, False] and found["low"].isna().tolist() == [True, False]
    assert found["verdict"].tolist() == [UNDECIDED, SUPPORTED] and found["verdict_why"][0] == "some runs of the baseline collapse"


def test_while_a_run_is_neither_finished_nor_failed_nothing_is_decided_about_its_loss():
    for state in ("missing", "running", "blocked", "excluded"):
        runs = runs_of(
            {"a": 9, "b": 0, "c": -9}, state=lambda name, repeat, state=state: state if (name, repeat) == ("b", 4) else "finished"
        )
        found = judged(runs, (0, "better", "a", "b"), (1, "better", "a", "c"))
        assert found["verdict"].tolist() == [UNDECIDED, SUPPORTED], state
        assert found["verdict_why"][0] == "not all runs of the baseline are finished"


@pytest.mark.parametrize("state", ["failed", "diverged", "damaged"])
def test_a_failed_run_speaks_for_nobody(state):
    runs = runs_of({"a": 9, "b": 0, "c": 0}, state=lambda name, repeat: state if (name, repeat) == ("a", 4) else "finished")
    found = judged(
        runs,
        (0, "better", "a", "b"),
        (1, "better", "b", "a"),
        (2, "equal", "a", "b"),
        (3, "not worse", "a", "b"),
        (4, "better", "b", "c"),
        (5, "not worse", "b", "a"),
    )
    # A mean over the others is too good for a: it neither supports a nor contradicts b.
    assert found["verdict"].tolist()[:4] == [UNDECIDED] * 4 and found["verdict"][5] == UNDECIDED
    assert found["verdict_why"][0] == "2 of 10 runs of the objective failed, and a mean over the others is too good"
    # What is said against a holds all the more.
    low = runs_of({"a": -9, "b": 0}, state=lambda name, repeat: state if (name, repeat) == ("a", 4) else "finished")
    against = judged(low, (0, "better", "b", "a"), (1, "better", "a", "b"), (2, "equal", "a", "b"), (3, "not worse", "a", "b"))
    assert against["verdict"].tolist() == [SUPPORTED, CONTRADICTED, CONTRADICTED, CONTRADICTED]


def test_what_is_not_tested_says_why_and_still_counts_in_the_family():
    two = runs_of({"a": 9, "b": 0, "c": 0}).query("repeat < 2 or objective != 'c'")
    found = judged(two, (0, "better", "a", "c"), (1, "better", "a", "b"))
    assert found["why"][0] == "only 2 repeats are complete in all 2 pairs" and found["verdict"][0] == UNDECIDED
    assert math.isclose(found["p_supports"][1], 2 * judged(two, (1, "better", "a", "b"))["p_supports"][0])
    apart = pd.concat([runs_of({"a": 9}, pairs=PAIRS[:1]), runs_of({"b": 0}, pairs=PAIRS[1:])])
    assert judged(apart, (0, "better", "a", "b"))["why"][0] == "no pair of the suite has both"
    # A pair that the suite excludes for one of the two is not counted.
    some = pd.concat([runs_of({"a": 9, "b": 0}, pairs=PAIRS[:1]), runs_of({"b": 0}, pairs=PAIRS[1:])])
    assert judged(some, (0, "better", "a", "b"))["n_pairs_asked"][0] == 1


def costs_of(*lines: tuple[str, str, float, float, float], device: str = "cpu", memory: float = np.nan) -> pd.DataFrame:
    rows = [("d", "t", student, name, device, middle, low, high, memory) for student, name, middle, low, high in lines]
    return pd.DataFrame(rows, columns=list(NOBODY))


def test_costs_are_compared_in_every_pair_by_quartiles_that_do_not_overlap():
    runs = runs_of({"a": 0, "b": 0})
    apart = [("s0", "a", 1, 0.9, 1.1), ("s0", "b", 2, 1.9, 2.1), ("s1", "a", 1, 0.9, 1.1), ("s1", "b", 3, 2.9, 3.1)]
    found = judged(runs, (0, "time", "a", "b"), (1, "time", "b", "a"), costs=costs_of(*apart))
    assert found["verdict"].tolist() == [SUPPORTED, CONTRADICTED] and found["difference"].tolist() == [-1.5, 1.5]
    assert found["p_supports"].isna().all()
    overlap = costs_of(*apart[:3], ("s1", "b", 1.05, 1.0, 1.2))
    found = judged(runs, (0, "time", "a", "b"), (0, "better", "a", "b"), costs=overlap)
    assert found["verdict_why"][0] == "less in 1 and more in 0 of 2 pairs" and found["verdict"][0] == UNDECIDED
    assert judged(runs, (0, "memory", "a", "b"), costs=costs_of(*apart))["why"][0].startswith("in 2 of 2 pairs the memory of both was not")
    one = costs_of(("s0", "a", 1, 1, 1), ("s1", "a", 1, 1, 1), memory=1.0)
    other = costs_of(("s0", "b", 1, 1, 1), ("s1", "b", 1, 1, 1), memory=2.0)
    assert judged(runs, (0, "memory", "a", "b"), costs=pd.concat([one, other]))["verdict"][0] == SUPPORTED
    elsewhere = other.assign(device="another")
    assert "one device" in judged(runs, (0, "memory", "a", "b"), costs=pd.concat([one, elsewhere]))["why"][0]
    assert "one device" in judged(runs, (0, "time", "a", "b"), costs=costs_of(*apart[:2]))["why"][0]


@pytest.mark.slow
@pytest.mark.parametrize("truth", CLAIM_TRUTHS)
@pytest.mark.parametrize("relations", CLAIM_RELATIONS)
def test_any_wrong_verdict_has_a_probability_of_at_most_five_percent(truth, relations):
    assert claim_errors(*CLAIM_TRUTHS[truth], CLAIM_RELATIONS[relations], 2000) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
