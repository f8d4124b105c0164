"""What a recipe freezes (`batch_norm`, `frozen_stages`), what a student inherits from its teacher, and warm-ups in updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.errors import SuiteError
from kdbench.plan.matrix import Plan
from kdbench.plan.probe import probe
from kdbench.plan.recipe_limits import frozen_at_random
from kdbench.store import Store
from kdbench.train.build import Setup, make_task
from kdbench.train.teacher import load_weights

SHORT = "{{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1]{more}}}"
STAGED = """
from kdbench.models.small_mobile import SmallMobile


class Staged(SmallMobile):
    '''The small net, which states its stages.'''

    def stages_in_order(self):
        return [[one] for one in list(self.children())[:2]]
"""


def weights_of(store: Store, plan: Plan, objective: str) -> dict[str, Tensor]:
    row = next(row for row in plan.rows if row.objective == objective)
    return load_weights(store, store.record(row.cell.id))


def initial(plan: Plan, objective: str, data: Path) -> dict[str, Tensor]:
    row = next(row for row in plan.rows if row.objective == objective)
    setup = Setup.of(row.cell, data, torch.device("cpu"))
    return setup.student(row.cell).state_dict()


def small(plan_of: Callable[..., Plan], more: str = "", **changes: Any) -> Plan:
    given = {"dataset": "{name: digits, per_class: 6}", "objectives": "{ce: , kd: }", "repeats": "1", "recipe": SHORT.format(more=more)}
    return plan_of(**(given | changes))


def test_frozen_batch_norms_keep_every_number_through_training_and_evaluation_and_all_else_is_trained(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = small(plan_of, ", batch_norm: frozen", teachers="{big: {model: small_mobile, widths: [8, 12], min_top1: 0}}")
    assert train(plan) == 0

    for objective in ("ce", "kd"):
        before, after = initial(plan, objective, tmp_path), weights_of(store, plan, objective)
        norms = {name.rpartition(".")[0] for name in before if name.endswith("running_mean")}
        of_norms = [name for name in before if name.rpartition(".")[0] in norms]
        assert len(of_norms) >= 5 * len(norms) > 0
        assert all(torch.equal(before[name], after[name]) for name in of_norms)
        trained = [name for name in before if name not in of_norms]
        assert trained and not any(torch.equal(before[name], after[name]) for name in trained)


def test_frozen_stages_are_not_trained_and_the_others_are(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "staged.py").write_text(STAGED)
    plan = small(plan_of, students="{small: {model: 'staged.py:Staged', widths: [4, 6], recipe: {frozen_stages: 2}}}")
    probe(plan)
    assert train(plan) == 0

    before, after = initial(plan, "kd", tmp_path), weights_of(store, plan, "kd")
    row = next(row for row in plan.rows if row.objective == "kd")
    net = Setup.of(row.cell, tmp_path, torch.device("cpu")).student(row.cell)
    frozen = tuple(f"{name}." for name, module in net.named_modules() if [module] in net.stages_in_order())
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert frozen and {name for name in before if name.startswith(frozen)} <= same
    assert not {name for name, _ in net.named_parameters() if not name.startswith(frozen)} & same


def test_stages_that_a_model_does_not_have_cannot_be_frozen(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "staged.py").write_text(STAGED)
    for model, count, answer in (
        ("small_mobile", 1, "`frozen_stages: 1`, and the model does not state its stages (`stages_in_order`): write a smaller number"),
        ("'staged.py:Staged'", 3, "`frozen_stages: 3`, and the model has 2 stages: write a smaller number"),
    ):
        with pytest.raises(SuiteError) as error:
            probe(small(plan_of, students=f"{{small: {{model: {model}, widths: [4, 6], recipe: {{frozen_stages: {count}}}}}}}"))
        assert f"students.small: {answer}" in str(error.value)


def test_a_frozen_training_that_was_killed_and_resumed_is_the_same(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = small(plan_of, ", batch_norm: frozen", objectives="[ce, kd]")
    assert train(plan) == 0
    whole = weights_of(store, plan, "kd")
    other = Store(tmp_path / "other")
    left = iter([False] * 5 + [True])
    train(plan, store=other, stop=lambda: next(left, True))
    assert any(not other.is_done(cell_id) for cell_id in plan.cells)
    assert train(plan, store=other) == 0
    again = weights_of(other, plan, "kd")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_student_begins_with_the_teachers_part_that_it_inherits_and_with_its_own_draws_elsewhere(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = small(
        plan_of,
        objectives="{ce: , kd: , kd-given: {loss: kd, inherits: [head]}}",
        teachers="{big: {model: small_mobile, widths: [8, 6], min_top1: 0}}",
    )
    probe(plan)
    objectives = plan.suite.objectives
    assert objectives["kd-given"].label == "kd-given, inherits head"
    alone = objectives["ce-inherits-head"]
    assert alone.config == {"task": 1.0, "terms": [], "inherits": ["head"]} and alone.control, "the weight is that of `ce`"
    assert objectives["kd-given"].config["task"] < 1 and objectives["kd-given"].reference == "ce-inherits-head"
    rows = {row.objective: row.cell for row in plan.rows if row.role == "student"}
    assert "teacher" in rows["ce-inherits-head"].depends and "teacher" not in rows["ce"].depends
    assert train(plan) == 0

    cell = rows["kd-given"]
    setup = Setup.of(cell, tmp_path, torch.device("cpu")).with_teacher(store, cell)
    begun, own = setup.member(cell).student, setup.member(rows["kd"]).student
    theirs, head = setup.teacher.model.state_dict(), begun.head_name
    for name, value in begun.state_dict().items():
        inherited = name.startswith(f"{head}.")
        assert torch.equal(value, theirs[name] if inherited else own.state_dict()[name]), name
    assert not torch.equal(own.head.weight, begun.head.weight)
    assert {store.record(rows[name].id).result["weights_digest"] for name in ("ce", "kd", "kd-given", "ce-inherits-head")}.__len__() == 4


def test_a_part_that_does_not_fit_or_does_not_exist_cannot_be_inherited(plan_of: Callable[..., Plan], refusal: Callable[..., str]) -> None:
    for names, answer in (
        ("[head]", "the student's part 'head' differs from the teacher's in 1 tensors (of weight (10, 6) and (10, 12))"),
        ("[hed]", "the student has no part 'hed' that can be inherited; did you mean 'head'?"),
    ):
        with pytest.raises(SuiteError) as error:
            probe(small(plan_of, objectives=f"{{ce: , kd: {{inherits: {names}}}}}"))
        assert "small <- big" in str(error.value)
        assert answer in str(error.value)
    text = refusal(objectives="{ce: , ce-inherits-head: {loss: sp}, kd: {inherits: [head]}}")
    assert "`inherits` adds an objective 'ce-inherits-head', and the suite has one of that name: rename it" in text
    text = refusal(objectives="{ce: , kd: {inherits: [head], two_stages: {epochs: 1}}}")
    assert "the first of `two_stages` already decides where the student begins" in text


def test_the_weight_zero_of_an_inheriting_objective_is_the_tasks_loss_with_the_same_parts(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = small(
        plan_of,
        objectives="{ce: , sp: {inherits: [head], controls: [zero]}}",
        teachers="{big: {model: small_mobile, widths: [8, 6], min_top1: 0}}",
        baselines="[ce]",
    )
    assert train(plan) == 0
    assert plan.suite.objectives["sp-zero"].reference == "ce-inherits-head"
    digests = {row.objective: store.record(row.cell.id).result["weights_digest"] for row in plan.rows if row.role == "student"}
    assert digests["sp-zero"] == digests["ce-inherits-head"] != digests["ce"]

    both = small(plan_of, objectives="{ce: , kd: {controls: [zero]}, kd-given: {loss: kd, inherits: [head], controls: [zero]}}")
    for name, inherited in (("kd-zero", {}), ("kd-given-zero", {"inherits": ["head"]})):
        reference = both.suite.objectives[both.suite.objectives[name].reference]
        assert reference.config == {"task": 0.1, "terms": [], **inherited}, "at the weight of the task's loss beside the term"


def test_a_warm_up_in_updates_is_that_in_epochs_of_as_many_updates(refusal: Callable[..., str], plan_of: Callable[..., Plan]) -> None:
    from kdbench.timm_adapter import learning_rates

    base = {"name": "x", "epochs": 10, "batch_size": 8, "lr": 1.0, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0}
    base |= {"decay_norms_and_biases": True, "schedule": "cosine", "milestones": [], "decay_rate": 0.1, "cosine_after_warmup": True}
    at = [step / 6 for step in range(60)]
    by_epochs, by_steps = base | {"warmup_epochs": 3}, base | {"warmup_epochs": 0, "warmup_steps": 18}
    assert learning_rates(by_epochs, 6, at) == learning_rates(by_steps, 6, at)
    assert learning_rates(by_steps | {"warmup_steps": 7}, 6, at)[7] == 1.0 > learning_rates(by_steps | {"warmup_steps": 7}, 6, at)[6] > 0.8

    text = refusal(recipe=SHORT.format(more=", warmup_epochs: 1, warmup_steps: 3"))
    assert "warmup_epochs 1 and warmup_steps 3 both say how long the warm-up is" in text
    with pytest.raises(SuiteError) as error:
        probe(small(plan_of, ", warmup_steps: 8"))
    assert "the training has 8 updates, and the warm-up of 8 must be shorter" in str(error.value)
    with pytest.raises(SuiteError) as error:
        probe(small(plan_of, ", schedule: step, warmup_steps: 5"))
    assert "the warm-up of 5 updates ends after epoch 1, the first of `milestones`" in str(error.value)


def test_what_no_recipe_sets_is_not_in_the_id_of_a_cell(plan_of: Callable[..., Plan]) -> None:
    for row in small(plan_of).rows:
        assert not {"warmup_steps", "batch_norm", "frozen_stages"} & set(row.cell.config["recipe"])
        assert "inherits" not in row.cell.config["objective"]
        assert make_task(row.cell).has_classes


def test_a_plan_warns_of_nets_that_begin_at_random_and_are_partly_frozen(plan_of: Callable[..., Plan]) -> None:
    found = frozen_at_random(small(plan_of, ", batch_norm: frozen"))
    assert found == [
        f"warning: {name} begins at random, and part of it is never trained (`batch_norm: frozen`): give it `weights`"
        for name in ("small", "big")
    ]
    assert frozen_at_random(small(plan_of)) == []


def test_an_untrained_teacher_has_no_parts_to_inherit_and_kd_beside_keeps_the_label(
    plan_of: Callable[..., Plan], refusal: Callable[..., str]
) -> None:
    text = refusal(objectives="{ce: , sp: {inherits: [head], controls: [untrained]}}")
    assert "the student would begin with parts of an untrained teacher, which no other row has: leave it out" in text
    labels = [one.label for one in small(plan_of, objectives="{ce: , sp: {inherits: [head], +kd: true}}").suite.objectives.values()]
    assert labels == ["ce", "sp, inherits head", "sp+kd, inherits head", "ce, inherits head"]
