"""The training step against golden weights; a bundle against each of its students alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.cell import Cell
from kdbench.losses._base import Batch
from kdbench.models.cifar_resnet import CifarResnet
from kdbench.parts import load
from kdbench.plan.matrix import Plan
from kdbench.plan.schema import NUMERICS
from kdbench.store import Store
from kdbench.tasks.classification import Classification
from kdbench.train.member import Member
from kdbench.train.objective import Objective, weight_at
from kdbench.train.teacher import LiveTeacher

GOLDEN = Path(__file__).parent / "golden"


def term(name: str, weight: float, **options: Any) -> dict[str, Any]:
    part = load("loss", name)
    return {"loss": name, "version": part.version, "options": part.options(options), "weight": weight, "pairing": "matched"}


TRAJECTORIES = {
    "ce": {"task": 1.0, "terms": []},
    "kd": {"task": 0.1, "terms": [term("kd", 0.9, temperature=4)]},
    "sp": {"task": 1.0, "terms": [term("sp", 3000.0)]},
    "rkd": {"task": 1.0, "terms": [term("rkd", 1.0, distance=25, angle=50)]},
}


def net(golden: Any, prefix: str, depth: int) -> CifarResnet:
    model = CifarResnet(depth=depth)
    model.build((3, 32, 32), 10)
    model.double()
    model.load_state_dict({key.removeprefix(prefix): torch.tensor(golden[key]) for key in golden.files if key.startswith(prefix)})
    return model


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_thirty_steps_of_our_loop_end_at_the_golden_weights(name: str) -> None:
    golden = np.load(GOLDEN / "trajectory.npz")
    recipe = load("recipe", "short").options({"epochs": 3, "batch_size": 16, "lr": 0.05, "milestones": [1.5]})
    config = {"recipe": recipe, "numerics": NUMERICS["exact"], "objective": TRAJECTORIES[name]}
    config |= {"role": "student", "seed": 0, "dataset": {}, "repeat": 0, "student": {}}
    objective = Objective(TRAJECTORIES[name], {})
    student, teacher = net(golden, "student_initial/", 8), LiveTeacher(net(golden, "teacher/", 14), Cell(config), NUMERICS["exact"])
    member = Member(Cell(config), student, objective, Classification(), steps_per_epoch=10)
    draws = np.random.default_rng(102)
    losses = []
    for step in range(30):
        n = 7 if step % 10 == 9 else 16
        images, labels = torch.tensor(draws.standard_normal((n, 3, 32, 32))), torch.tensor(draws.integers(0, 10, n))
        member.begin_epoch()
        # With the gradient sizes measured at every step: looking must not change anything.
        member.step(images, labels, Batch(labels, torch.arange(n), 0, step), teacher.taps(images), first=True)
        losses.append(float(member.sums[""][0]) / n)

    np.testing.assert_allclose(losses, golden[f"{name}/losses"], rtol=0, atol=1e-8)
    for key, value in student.state_dict().items():
        np.testing.assert_allclose(value.numpy(), golden[f"{name}/student_final/{key}"], rtol=0, atol=1e-8, err_msg=key)


BUNDLE = {
    "dataset": "{name: digits, per_class: 5}",
    "recipe": "{name: short, epochs: 12, batch_size: 16, lr: 0.02, milestones: [8]}",
    "students": """
        drops: {model: cifar_resnet, depth: 8, widths: [8, 8, 8, 16], dropout: 0.3, drop_path: 0.2}
        mobile: {model: small_mobile, widths: [8, 12]}
        """,
    "objectives": """
        ce:
        kd:
        cc:crd:
        bad: {loss: bad.py:Bad, weight: 1}
        raises: {loss: bad.py:Raises, weight: 1}
        """,
    "repeats": "1",
}

BAD = '''
import torch
from kdbench.losses._base import Loss


class Bad(Loss):
    """Infinite from step 37 on."""

    needs = frozenset({"logits"})

    def forward(self, student, teacher, batch):
        value = (student.logits - teacher.logits).square().mean()
        return value * float("inf") if batch.step >= 37 else value


class Raises(Loss):
    """Fails in its third epoch."""

    needs = frozenset({"logits"})

    def forward(self, student, teacher, batch):
        if batch.step == 10:
            raise RuntimeError("the user's own mistake")
        return (student.logits - teacher.logits).square().mean()
'''


def test_a_bundle_gives_every_student_what_it_gets_alone_bit_for_bit(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    """Fifty images in batches of 16 (a ragged last one of 2), dropout, drop-path, a loss with learnable parts, two students, one
    objective that diverges at step 37 and one that raises: 12 epochs of 4 steps."""
    (tmp_path / "bad.py").write_text(BAD)
    plan = plan_of(**BUNDLE)
    together, alone = Store(tmp_path / "together"), Store(tmp_path / "alone")
    train(plan, store=together)
    train(plan, [plan.teachers[0].cell.id], store=alone)
    for row in plan.rows:
        if row.role == "student":
            train(plan, [row.cell.id], store=alone)

    outcomes = {}
    for row in plan.rows:
        one, other = together.record(row.cell.id), alone.record(row.cell.id)
        outcomes[row.student, row.objective] = one and one.outcome
        assert (one is None) == (other is None), row
        if one and other:
            assert one.result == other.result, row
            assert one.circumstance["side_by_side"] >= other.circumstance["side_by_side"]
    for student in ("drops", "mobile"):
        assert outcomes[student, "bad"] == "diverged"
        assert outcomes[student, "raises"] is None
        assert outcomes[student, "cc:crd"] == outcomes[student, "kd"] == outcomes[student, "ce"] == "finished"
    bad = next(row for row in plan.rows if row.objective == "bad")
    record = together.record(bad.cell.id)
    assert record and record.result["diverged_at_step"] == 37
    assert len(record.result["history"]) == 10
    raised = next(row for row in plan.rows if row.objective == "raises")
    failure = together.failure(raised.cell.id)
    assert failure and failure.kind == "raised" and "the user's own mistake" in failure.traceback


def test_each_epoch_records_every_terms_value_and_gradient_beside_the_tasks(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(objectives="[ce, rkd]", repeats="1")
    train(plan)

    record = store.record(next(row.cell.id for row in plan.rows if row.objective == "rkd"))
    assert record
    for entry in record.result["history"]:
        terms = entry["terms"]
        assert set(terms) == {"task", "rkd.distance", "rkd.angle"}
        assert entry["loss"] == pytest.approx(sum(one["weighted"] for one in terms.values()), rel=1e-5)
        assert terms["rkd.angle"]["gradient_ratio"] > 0


def test_a_bundle_is_evaluated_in_one_pass_over_the_images_and_the_last_one_is_what_is_kept(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three students of which one cannot be evaluated: it fails alone."""
    from kdbench.datasets._base import Data

    (tmp_path / "odd.py").write_text(
        "from kdbench.models.small_mobile import SmallMobile\n\n\nclass Odd(SmallMobile):\n    def forward(self, images):\n"
        "        if not self.training and len(images) == 256:\n            raise RuntimeError('in evaluation')\n"
        "        return super().forward(images)\n"
    )
    passes: list[str] = []
    real = Data.batches

    def batches(self: Data, split: str, wanted: Any) -> Any:
        passes.append(split)
        return real(self, split, wanted)

    plan = plan_of(
        repeats="1",
        objectives="[ce]",
        recipe="{name: short, epochs: 3, batch_size: 64, milestones: [2], evaluate_every: 2}",
        students="{a: {model: small_mobile, widths: [4, 4]}, b: {model: small_mobile, widths: [4, 8]}, odd: {model: 'odd.py:Odd', widths: [4, 4]}}",
    )
    ids = {row.student: row.cell.id for row in plan.rows if row.role == "student"}
    monkeypatch.setattr(Data, "batches", batches)
    train(plan, list(ids.values()))
    assert passes == ["train"] * 2 + ["test"] + ["train", "test"]
    assert store.record(ids["a"]) and store.record(ids["b"]) and not store.record(ids["odd"])
    failed = store.failure(ids["odd"])
    assert failed and "in evaluation" in failed.message


def test_a_schedule_of_weights_is_linear_between_its_points_and_constant_outside() -> None:
    schedule = [[2, 0.0], [12, 5.0]]

    assert [weight_at(schedule, epoch) for epoch in (0, 2, 4, 12, 99)] == [0.0, 0.0, 1.0, 5.0, 5.0]
    assert weight_at(3, 7) == 3.0


@pytest.mark.parametrize(("schedule", "milestones"), [("step", [2]), ("cosine", []), ("constant", [])])
def test_learning_rates_are_functions_of_the_update(schedule: str, milestones: list[float]) -> None:
    from torch import nn

    from kdbench.timm_adapter import make_optimizer, make_scheduler

    recipe = load("recipe", "short").options({"epochs": 4, "schedule": schedule, "milestones": milestones, "warmup_epochs": 1, "lr": 0.1})
    optimizer = make_optimizer(nn.Linear(2, 2), recipe)
    scheduler = make_scheduler(optimizer, recipe, steps_per_epoch=5)
    seen = []
    for update in range(20):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update + 1)

    np.testing.assert_allclose(seen[:5], [0, 0.02, 0.04, 0.06, 0.08])
    after = {
        "step": [0.1] * 5 + [0.01] * 10,
        "constant": [0.1] * 15,
        "cosine": [0.05 * (1 + np.cos(np.pi * update / 20)) for update in range(5, 20)],
    }
    np.testing.assert_allclose(seen[5:], after[schedule])


@pytest.mark.parametrize(("name", "nesterov"), [("sgd", False), ("nesterov", True)])
def test_sgd_is_not_nesterovs_and_decays_every_parameter(name: str, nesterov: bool) -> None:
    from torch import nn

    from kdbench.timm_adapter import make_optimizer

    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    groups = make_optimizer(module, load("recipe", "short").options({"optimizer": name})).param_groups

    assert [group["nesterov"] for group in groups] == [nesterov]
    assert groups[0]["weight_decay"] == 5e-4 and len(groups[0]["params"]) == 4
    spared = make_optimizer(module, load("recipe", "short").options({"decay_norms_and_biases": False})).param_groups
    assert sorted(group["weight_decay"] for group in spared) == [0.0, 5e-4]


@pytest.mark.parametrize("name", ["bad", "raises"])
def test_a_bundle_whose_last_student_has_left_ends(
    name: str, plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    loss = {"bad": "Bad", "raises": "Raises"}[name]
    plan = plan_of(
        **{**BUNDLE, "students": "{mobile: {model: small_mobile}}", "objectives": f"{{{name}: {{loss: 'bad.py:{loss}', weight: 1}}}}"}
    )
    train(plan, [plan.teachers[0].cell.id])
    seen: list[int] = []
    real = LiveTeacher.taps
    monkeypatch.setattr(LiveTeacher, "taps", lambda self, *arguments: (seen.append(1), real(self, *arguments))[1])
    train(plan)

    # Infinite at step 37, found at the end of the tenth epoch of four steps; raised at step 10, found at once.
    assert len(seen) == {"bad": 40, "raises": 11}[name]
