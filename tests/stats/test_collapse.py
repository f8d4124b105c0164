"""Runs that collapse are found, and runs of losses that merely vary more are not."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdbench.stats.collapse import collapsed_runs
from tests.stats.simulation import Suite, collapsed, draw, frames

COLUMNS = ["dataset", "teacher", "student", "objective", "repeat", "value", "centre", "deviation"]


def runs_of(values, dataset="d"):
    """A pair's runs from {objective: values by repeat}."""
    rows = [(dataset, "t", "s", name, repeat, 0, value, "finished") for name, mine in values.items() for repeat, value in enumerate(mine)]
    return pd.DataFrame(rows, columns=["dataset", "teacher", "student", "objective", "repeat", "teacher_seed", "value", "state"])


STEADY = {"ce": [0.70, 0.71, 0.69, 0.705, 0.695], "kd": [0.72, 0.725, 0.71, 0.73, 0.715]}


def test_a_run_far_from_the_others_of_its_loss_is_found_with_its_distance():
    found = collapsed_runs(runs_of({**STEADY, "cc": [0.71, 0.70, 0.10, 0.72, 0.705]}))
    assert list(found.columns) == COLUMNS
    assert found[["objective", "repeat", "value", "centre"]].to_numpy().tolist() == [["cc", 2, 0.10, 0.705]]
    assert found["deviation"].iloc[0] < -30
    assert len(collapsed_runs(runs_of(STEADY))) == 0


def test_the_baseline_the_higher_side_three_repeats_and_two_losses_are_no_exceptions():
    assert set(collapsed_runs(runs_of({**STEADY, "ce": [0.7, 0.1, 0.69, 0.7, 0.7]}))["objective"]) == {"ce"}
    assert set(collapsed_runs(runs_of({**STEADY, "kd": [0.1, 0.11, 0.7, 0.12, 0.11]}))["repeat"]) == {2}
    three = {"ce": [0.70, 0.71, 0.69], "kd": [0.72, 0.73, 0.3], "cc": [0.71, 0.72, 0.70]}
    assert collapsed_runs(runs_of(three))[["objective", "repeat"]].to_numpy().tolist() == [["kd", 2]]
    two = {"ce": STEADY["ce"], "kd": [0.72, 0.725, 0.2, 0.73, 0.3]}
    assert collapsed_runs(runs_of(two))["repeat"].tolist() == [2, 4]


def test_a_loss_that_spreads_many_times_more_than_the_others_is_found_too():
    wide = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    assert set(collapsed_runs(runs_of({**STEADY, "at": [0.7, 0.69, 0.71, 0.7, 0.705], "cc": 0.7 + wide}))["objective"]) == {"cc"}


def test_ties_equal_values_and_single_runs_collapse_nothing():
    assert len(collapsed_runs(runs_of({"ce": [0.7] * 5, "kd": [0.8] * 5}))) == 0
    assert len(collapsed_runs(runs_of({"ce": [0.9, 0.9, 0.9, 0.91, 0.9], "kd": [0.92, 0.92, 0.91, 0.92, 0.92]}))) == 0
    assert len(collapsed_runs(runs_of({"ce": [0.1 + 0.2, 0.3, 0.3], "kd": [0.7, 0.71, 0.69]}))) == 0
    assert len(collapsed_runs(runs_of({"ce": [0.1], "kd": [0.9]}))) == 0
    assert list(collapsed_runs(runs_of({})).columns) == COLUMNS
    # Most runs tie, and one lies far out.
    tied = {"ce": [1.0, 1.0, 0.99, 1.0, 1.0], "kd": [1.0, 1.0, 1.0, 0.99, 0.2], "cc": [0.99, 1.0, 1.0, 1.0, 1.0]}
    assert collapsed_runs(runs_of(tied))[["objective", "repeat"]].to_numpy().tolist() == [["kd", 4]]


def test_only_finished_runs_with_a_value_count_and_each_dataset_has_its_own_scale():
    runs = runs_of({**STEADY, "cc": [0.71, 0.70, 0.10, 0.72, 0.705]})
    for state, value in (("diverged", 0.1), ("finished", np.nan), ("finished", np.inf)):
        lost = runs.copy()
        lost.loc[12, ["state", "value"]] = [state, value]
        assert len(collapsed_runs(lost)) == 0
    noisy = runs_of({name: 100 * np.array(values) for name, values in STEADY.items()}, "noisy")
    assert collapsed_runs(pd.concat([noisy, runs]))["dataset"].tolist() == ["d"]
    assert collapsed_runs(runs.drop(columns="state").assign(teacher=None))["objective"].tolist() == ["cc"]


def test_neither_order_nor_labels_nor_a_shift_or_a_unit_matter():
    runs = runs_of({**STEADY, "cc": [0.71, 0.70, 0.10, 0.72, 0.705]})
    found = collapsed_runs(runs)["deviation"].tolist()
    other = runs.sample(frac=1, random_state=0).assign(
        repeat=lambda table: 50 - table["repeat"], value=lambda table: 100 * table["value"] - 7
    )
    assert np.allclose(collapsed_runs(other)["deviation"], found)


def test_simulated_suites_are_marked_as_by_the_public_function():
    suite = Suite(collapse=0.1)
    values, _, _ = draw(np.random.default_rng(5), suite, 10)
    for one, marked in zip(values, collapsed(values), strict=True):
        assert set(collapsed_runs(frames(one, suite)[0])["objective"]) == {f"o{k}" for k in np.flatnonzero(marked)}
