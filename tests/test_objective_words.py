"""What an objective says beside its terms: warm-up and decay of a weight, and distillation-oriented training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.errors import SuiteError
from kdbench.plan import probe
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read
from kdbench.store import Store
from kdbench.train.dot import Dot
from kdbench.train.objective import schedule_at

STORED = np.load(Path(__file__).parent / "golden" / "shelf.npz")


def test_a_weight_decays_as_in_the_released_code_and_warms_up_linearly() -> None:
    epochs, factors = STORED["n8/wkd_decay/epoch"], STORED["n8/wkd_decay/factor"]
    ours = [schedule_at({"decay": [150, 240]}, int(epoch) - 1, 240) for epoch in epochs]
    np.testing.assert_allclose(ours, factors, atol=1e-8)
    assert [schedule_at({"warm_up": 4}, epoch, 10) for epoch in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    # A preset's schedule is of a training of so many epochs, and scales.
    assert [schedule_at({"warm_up": 20, "of_epochs": 240}, epoch, 24) for epoch in range(3)] == [0.5, 1, 1]
    assert schedule_at({}, 3, 10) == 1


@pytest.mark.parametrize("case", ["n8", "n13"])
def test_dot_updates_as_the_released_optimiser(case: str) -> None:
    stem = f"{case}/dot/"
    weights = {
        key.removeprefix(f"{stem}initial/"): torch.tensor(STORED[key]).requires_grad_()
        for key in STORED.files
        if key.startswith(f"{stem}initial/")
    }
    option = {name: float(STORED[f"{stem}option/{name}"]) for name in ("lr", "lr_step4", "weight_decay", "momentum", "delta")}
    group = {"params": list(weights.values()), "lr": option["lr"], "weight_decay": option["weight_decay"]}
    optimizer = Dot([group], option["momentum"], option["delta"])
    for step in (1, 2, 3, 4):
        optimizer.param_groups[0]["lr"] = option["lr_step4" if step == 4 else "lr"]
        given = {kind: {name: STORED.get(f"{stem}step{step}/{kind}_grad/{name}") for name in weights} for kind in ("task", "kd")}
        for name, weight in weights.items():
            weight.grad = None if given["task"][name] is None else torch.tensor(given["task"][name])
        optimizer.add({weights[name]: torch.tensor(value) for name, value in given["kd"].items() if value is not None})
        optimizer.step()
        for name, weight in weights.items():
            np.testing.assert_allclose(
                weight.detach().numpy(), STORED[f"{stem}step{step}/after/{name}"], rtol=1e-12, err_msg=f"{step} {name}"
            )
            for kind, own in (("momentum_buffer", "task"), ("momentum_kd_buffer", "distilled")):
                if (key := f"{stem}step{step}/{kind}/{name}") in STORED:
                    np.testing.assert_allclose(optimizer.state[weight][own].numpy(), STORED[key], rtol=1e-12, err_msg=key)


DOT = {"objectives": "{kd: , kd:dot: , mine: {loss: cc, preset: crd, dot: 0.05}}", "repeats": "1", "baselines": "[kd]"}


def test_dot_trains_in_a_bundle_as_alone_and_goes_on_where_it_stopped(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    plan = plan_of(**DOT)
    together, alone, stopped = (Store(tmp_path / name) for name in ("together", "alone", "stopped"))
    assert train(plan, store=together) == 0
    for cell_id in plan.cells:
        train(plan, [cell_id], store=alone)
    train(plan, [plan.teachers[0].cell.id], store=stopped)
    students = [row.cell.id for row in plan.rows if row.role == "student"]
    for steps in (2, 3):
        asked = iter([False] * steps + [True])
        train(plan, students, store=stopped, stop=lambda asked=asked: next(asked))
    train(plan, students, store=stopped)
    results = [[store.record(cell_id) for cell_id in students] for store in (together, alone, stopped)]
    assert [[record and record.result for record in one] for one in results[1:]] == [
        [record and record.result for record in results[0]]
    ] * 2
    plain, dot, _ = results[0]
    assert plain and dot and plain.result["weights_digest"] != dot.result["weights_digest"]


def test_a_suite_says_schedules_and_dot_and_what_it_cannot_mean_is_refused(
    write_suite: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    suite = read(
        write_suite(
            objectives="{kd: {warm_up: 2, decay: [1, 3]}, kd:dot: , rkd: {dot: 0.05}, sp: {weight: {0: 0, 2: 1}}}", baselines="[kd]"
        )
    )
    configs = {name: one.config for name, one in suite.objectives.items()}
    assert configs["kd"]["terms"][0] | {"warm_up": 2.0, "decay": [1.0, 3.0]} == configs["kd"]["terms"][0]
    assert (
        configs["kd:dot"]["dot"] == 0.075
        and "dot" not in configs["sp"]
        and set(configs["sp"]["terms"][0]) == {"loss", "version", "options", "weight", "pairing"}
    )
    assert suite.objectives["rkd"].label == "rkd, DOT"
    wrong = {
        "{kd: {decay: [3, 1]}}": "decay is the epochs (from 1) of its start and its end",
        "{kd: {warm_up: -1}}": "objectives.kd.warm_up",
        "{kd: {dot: 1.5}}": "objectives.kd.dot",
        "{mine: {terms: [{loss: kd, dot: 0.1}]}}": "'dot' belongs to the objective",
        "{mine: {terms: [{loss: kd, preset: dot, weight: 1}]}}": "this preset is trained with DOT: write `dot: 0.075` next to `terms`",
        "{mine: {terms: [{loss: kd}]}}": "this preset weights the loss of the task by 0.1: write `task: 0.1` next to `terms`",
        "{mine: {weight: 2, terms: [{loss: kd, weight: 1}]}}": "'weight' has no effect here, since the objective is made of `terms`",
        "{mine: {pairing: shuffled, terms: [{loss: kd, weight: 1}]}}": "'pairing' has no effect here",
        "{ce: {dot: 0.1}}": "'dot' has no effect here, since the objective has no distillation term",
        "{ce: {warm_up: 3}}": "'warm_up' has no effect here",
    }
    for objectives, message in wrong.items():
        assert message in refusal(objectives=objectives, baselines="[]"), objectives


def test_what_a_suite_says_of_a_weight_is_instead_of_the_presets_schedule(write_suite: Callable[..., Path]) -> None:
    suite = read(write_suite(objectives="{dkd: , a: {loss: dkd, warm_up: 2}, b: {loss: dkd, weight: {0: 0, 2: 1}}}", baselines="[dkd]"))
    (preset,), (own,), (schedule,) = ([*suite.objectives[name].config["terms"]] for name in ("dkd", "a", "b"))
    assert (preset["warm_up"], preset["of_epochs"]) == (20.0, 240)
    assert own["warm_up"] == 2.0 and "of_epochs" not in own
    assert "warm_up" not in schedule and schedule["weight"] == [[0, 0.0], [2, 1.0]]


def test_a_weight_is_published_for_what_its_source_says_alone(write_suite: Callable[..., Path]) -> None:
    objectives = "{kd: , hot: {loss: kd, temperature: 20}, own: {loss: kd, task: 1}, dkd: , warm: {loss: dkd, warm_up: 2}, same: {loss: kd, temperature: 4}}"
    suite = read(write_suite(objectives=objectives.replace("same: {loss: kd, ", "same: {loss: kd, preset: crd, "), baselines="[kd]"))
    whose = {name: one.weight_from for name, one in suite.objectives.items()}
    assert whose == {
        "kd": "published",
        "hot": "the suite",
        "own": "the suite",
        "dkd": "published",
        "warm": "the suite",
        "same": "published",
    }


def test_dot_is_refused_with_another_optimiser(plan_of: Callable[..., Plan]) -> None:
    for recipe in (
        "{name: short, optimizer: adamw, lr: 0.001, epochs: 3, milestones: [2]}",
        "{name: short, clip_grad: 1.0, epochs: 3, milestones: [2]}",
    ):
        with pytest.raises(SuiteError, match="`dot` is a form of `optimizer: sgd` without `clip_grad`"):
            probe.probe(plan_of(**DOT, recipe=recipe))
    with pytest.raises(SuiteError, match="`dot` and the recipe's momentum 0.95 must be less than 1 in all"):
        probe.probe(plan_of(**DOT, recipe="{name: short, momentum: 0.95, epochs: 3, milestones: [2]}"))
