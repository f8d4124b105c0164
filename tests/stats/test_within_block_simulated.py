"""How often the tests, intervals, verdicts and indistinguishable_from_best of a block err, by simulation through the frames that a report uses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.stats.compare import judge
from kdbench.stats.paired import family, paired_differences
from kdbench.stats.selection import indistinguishable_from_best
from tests.stats.simulation import holm

ALPHA = 0.05


def suites(values, unpaired=False):
    """One dataset a suite, from values [suite, objective, repeat]; `unpaired`: no objective shares a repeat with another."""
    count, objectives, n = values.shape
    suite, objective, repeat = (axis.ravel() for axis in np.indices(values.shape))
    datasets, names = np.array([f"d{one}" for one in range(count)]), np.array([f"o{one:02}" for one in range(objectives)])
    columns = {"dataset": datasets[suite], "teacher": "big", "student": "small", "objective": names[objective]}
    numbered = repeat + n * objective if unpaired else repeat
    runs = pd.DataFrame({**columns, "repeat": numbered, "teacher_seed": 0, "value": values.ravel()})
    return runs, family(pd.DataFrame({"dataset": datasets, "teacher": "big", "student": "small"}), list(names), [names[0]])


def drawn(draw, count, shift, n, ratio=1.0, shared=0.0):
    """Values [suite, objective, repeat]: standard deviations from 1 to `ratio`, and a repeat's luck that all objectives share."""
    sd = np.linspace(1, ratio, len(shift))
    own = draw.normal(size=(count, len(shift), n)) * sd[:, None]
    return np.asarray(shift, dtype=float)[:, None] + own + shared * draw.normal(size=(count, 1, n))


def differences(values, unpaired=False):
    return paired_differences(*suites(values, unpaired), ALPHA)


def most(count, rate=ALPHA):
    """The share of errors that three standard errors of a simulation allow."""
    return rate + 3 * np.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_p_of_the_paired_t_is_uniform_and_its_interval_covers(n):
    # One wild and one steady objective, sharing luck: the differences are normal all the same.
    draw = np.random.default_rng(n)
    found = differences(drawn(draw, 5000, [0.0, 0.0], n, ratio=3, shared=2))
    assert stats.kstest(found["p"], "uniform").pvalue > 0.01
    for level in (0.01, 0.05, 0.2):
        assert (found["p"] <= level).mean() <= most(5000, level)
    covered = (found["low"] <= 0) & (found["high"] >= 0)
    assert covered.mean() == pytest.approx(1 - ALPHA, abs=most(5000) - ALPHA)


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(("ratio", "known"), [(1, {3: 0.035, 5: 0.045, 10: 0.048}), (3, {3: 0.052, 5: 0.053, 10: 0.051})])
def test_p_of_welchs_t_is_as_small_as_the_documentation_says(n, ratio, known):
    found = differences(drawn(np.random.default_rng(n), 5000, [0.0, 0.0], n, ratio), unpaired=True)
    assert set(found["test"]) == {"Welch t"}
    assert (found["p"] <= ALPHA).mean() == pytest.approx(known[n], abs=most(5000) - ALPHA)
    covered = (found["low"] <= 0) & (found["high"] >= 0)
    assert covered.mean() == pytest.approx(1 - known[n], abs=most(5000) - ALPHA)


def test_welchs_t_errs_more_where_the_smaller_side_is_the_noisier_as_documented():
    values = drawn(np.random.default_rng(4), 5000, [0.0, 0.0], 10, 1)
    values[:, 1] *= 3
    values[:, 1, 3:] = np.nan
    found = differences(values, unpaired=True)
    assert (found["p"] <= ALPHA).mean() == pytest.approx(0.068, abs=0.011)
    assert (found["p"] <= 0.01).mean() == pytest.approx(0.028, abs=0.008)


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("unpaired", [False, True])
@pytest.mark.parametrize("margin", [1.0, 5.0])
def test_equal_at_the_edge_of_the_margin_is_wrong_in_at_most_alpha(n, unpaired, margin):
    draw = np.random.default_rng(n)
    tested = differences(drawn(draw, 4000, [0.0, margin], n, shared=1), unpaired)
    found = judge(tested.assign(**NONE_FAILED), ALPHA, margin, True)
    assert (found["p_equal"] <= ALPHA).mean() <= most(4000)


NONE_FAILED = {"failed_objective": 0, "failed_baseline": 0, "runs_objective": 5, "runs_baseline": 5}


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("effect", [1.0, 3.0, 100.0])
def test_a_family_calls_something_wrongly_different_or_wrongly_equal_in_at_most_alpha_of_the_suites(n, effect):
    # Half the nulls false, a shared baseline, standard deviations 1:3; the false ones lie at the edge of the margin.
    truth, count = effect * np.array([0, 0, 0, 1, -1, 1]), 1000
    tested = differences(drawn(np.random.default_rng(n), count, [0.0, *truth], n, ratio=3, shared=1))
    # `judge` takes one family: the p values are those of all suites together, and the families are adjusted here.
    found = judge(tested.assign(**NONE_FAILED), ALPHA, effect, True)
    p, p_equal, difference = (found[name].to_numpy().reshape(count, len(truth)) for name in ("p", "p_equal", "difference"))
    first = judge(tested[: len(truth)].assign(**NONE_FAILED), ALPHA, effect, True)
    assert [first["p_holm"].tolist(), first["p_equal_holm"].tolist()] == [pytest.approx(holm(one)[0].tolist()) for one in (p, p_equal)]
    claimed = (holm(p) < ALPHA) & (np.sign(difference) != np.sign(truth))
    assert claimed.any(axis=1).mean() <= most(count)
    assert ((holm(p_equal) < ALPHA) & (np.abs(truth) >= effect)).any(axis=1).mean() <= most(count)


def best_struck_out(shift, n, count, ratio=1.0, shared=1.0, unpaired=False, seed=0):
    """How often the truly best objective (of equals, the one that fares worst) is neither best nor tied."""
    # With one more that is always struck out: where all are tied, none is marked.
    values = drawn(np.random.default_rng([seed, n]), count, [*shift, -1e6], n, ratio, shared)
    standing = indistinguishable_from_best(suites(values, unpaired)[0], ALPHA)["among_best"].to_numpy().reshape(count, -1)
    assert (standing[:, -1] == "").all()
    standing = standing[:, :-1]
    best = np.flatnonzero(np.asarray(shift) == np.max(shift))
    return (standing[:, best] == "").mean(axis=0).max(), (standing == "best").sum(axis=1), standing


@pytest.mark.parametrize("shift", [[0.0] * 5, [0.0, 0.5, 1.0, 1.5, 2.0], [-9.0, -9.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("ratio", [1, 3])
def test_the_truly_best_is_marked_best_or_tied(shift, ratio):
    struck, bests, _ = best_struck_out(shift, 5, 600, ratio)
    assert struck <= most(600)
    assert (bests == 1).all()


def test_a_loss_far_behind_is_struck_out():
    # The standing says something: at a distance of ten standard deviations the worse are told apart.
    _, _, standing = best_struck_out([0.0, 10.0, 10.0], 5, 300)
    assert (standing[:, 0] == "").mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("k", [5, 10])
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("ratio", [3, 1 / 3])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("unpaired", [False, True])
def test_the_truly_best_is_marked_best_or_tied_everywhere(k, n, ratio, spread, unpaired):
    struck, _, _ = best_struck_out(np.arange(k) * spread, n, 600, ratio, unpaired=unpaired)
    assert struck <= most(600)
