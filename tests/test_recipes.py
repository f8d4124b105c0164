"""Learning rates and optimisers: what a suite asks for, what `plan` prints, and what training does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench import parts
from kdbench.errors import SuiteError
from kdbench.plan.matrix import Plan
from kdbench.plan.probe import probe
from kdbench.plan.suite import read
from kdbench.plan.summary import as_text
from kdbench.recipes._base import Recipe
from kdbench.store import Store
from kdbench.timm_adapter import learning_rate, make_optimizer, make_scheduler

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())["recipes"]


def rates(recipe: dict[str, Any], steps: int) -> list[float]:
    """The learning rate of every update of a training."""
    optimizer = make_optimizer(nn.Linear(1, 1), recipe)
    scheduler = make_scheduler(optimizer, recipe, steps)
    found = []
    for update in range(recipe["epochs"] * steps):
        found.append(learning_rate(optimizer))
        scheduler.step_update(update + 1)
    return found


@pytest.mark.parametrize("name", parts.names("recipe"))
def test_the_learning_rates_of_a_shipped_recipe_are_those_of_its_source(name: str) -> None:
    recipe = parts.load("recipe", name).options()
    optimizer = make_optimizer(nn.Linear(1, 1), recipe)
    scheduler = make_scheduler(optimizer, recipe, GOLDEN[name]["steps_per_epoch"])

    assert len(GOLDEN[name]["rates"]) == 10
    for update, rate in GOLDEN[name]["rates"]:
        scheduler.step_update(update)
        assert learning_rate(optimizer) == pytest.approx(rate, rel=1e-12), update


def recipes_of(plan: Plan) -> dict[str, dict[str, Any]]:
    return {row.student: row.cell.config["recipe"] for row in plan.rows}


@pytest.mark.parametrize(
    ("recipe", "milestones"),
    [
        ("{name: crd, epochs: 30}", [18.75, 22.5, 26.25]),
        ("{name: crd, epochs: 1}", [0.625, 0.75, 0.875]),
        ("{name: field200, epochs: 300}", [90, 180, 240]),
        ("{name: strong240, epochs: 480}", [300, 360, 420]),
        ("{name: strong240, epochs: 480, milestones: [150, 180, 210]}", [150, 180, 210]),
        ("{name: crd, epochs: 240}", [150, 180, 210]),
        ("{name: crd, epochs: 30, milestones: []}", []),
        # Not used, and so as before: the id must not change.
        ("{name: crd, epochs: 30, schedule: cosine}", [150, 180, 210]),
        ("{name: crd, epochs: 30, schedule: constant}", [150, 180, 210]),
        ("{name: 'own.py:Own', epochs: 5}", [2.5]),
    ],
)
def test_milestones_scale_with_the_epochs_unless_the_suite_gives_them(
    recipe: str, milestones: list[float], plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\nfrom kdbench.recipes._base import Recipe\n@dataclass(frozen=True, kw_only=True)\n"
        "class Own(Recipe):\n    epochs: int = 10\n    batch_size: int = 8\n    lr: float = 0.1\n    milestones: tuple[float, ...] = (5,)\n"
    )
    assert recipes_of(plan_of(recipe=recipe))["small"]["milestones"] == milestones


@pytest.mark.parametrize(
    ("recipe", "own", "milestones"),
    [
        # Written for 75 epochs, and trained for 150 here.
        ("{name: short, epochs: 75, milestones: [50, 68]}", "{epochs: 150}", [100, 136]),
        ("{name: short, epochs: 75, milestones: [50, 68]}", "{epochs: 150, milestones: [9]}", [9]),
        ("{name: short, epochs: 80}", "{epochs: 20}", [12, 17]),
        ("{name: short, epochs: 80}", "{lr: 0.1}", [48, 68]),
        ("{name: short, milestones: [20]}", "{epochs: 80}", [40]),
        ("{name: short, epochs: 80, schedule: cosine}", "{schedule: step}", [48, 68]),
        ("short", "{milestones: [39]}", [39]),
    ],
)
def test_milestones_of_a_net_scale_from_the_epochs_that_they_were_written_for(
    recipe: str, own: str, milestones: list[float], plan_of: Callable[..., Plan]
) -> None:
    plan = plan_of(recipe=recipe, teachers=f"{{big: {{model: small_mobile, min_top1: 0, recipe: {own}}}}}")

    assert recipes_of(plan)["big"]["milestones"] == milestones


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("{name: short, milestones: [24, 40]}", "the training has 40 epochs, and does not reach its milestones at 40"),
        (
            "{name: short, epochs: 3, milestones: [2, 3, 4.5]}",
            "does not reach its milestones at 3, 4.5: write lower `milestones`, or leave",
        ),
        ("{name: short, milestones: [0, 10]}", "milestones must come after the start and the warm-up of 0 epochs, unlike 0"),
        ("{name: short, milestones: [-1, 10]}", "unlike -1"),
        ("{name: short, warmup_epochs: 25}", "the warm-up of 25 epochs, unlike 24: write higher `milestones`, or fewer `warmup_epochs`"),
        ("{name: short, warmup_epochs: 24}", "unlike 24"),
        ("{name: short, warmup_epochs: 5, epochs: 8}", "unlike 4.8"),
        ("{name: short, warmup_epochs: 40}", "warmup_epochs must be less than the 40 epochs of the training, and is 40"),
        ("{name: crd, epochs: 5, warmup_epochs: 20, schedule: cosine}", "must be less than the 5 epochs"),
        ("{name: short, epochs: 1, warmup_epochs: 1, schedule: constant}", "must be less than the 1 epochs"),
        ("{name: a3, epochs: 4, batch_size: 8}", "must be less than the 4 epochs of the training, and is 5"),
        ("{name: short, schedule: cosine, lr_min: 0.05}", "lr_min must be at least 0 and below the learning rate 0.05, and is 0.05"),
        ("{name: short, warmup_epochs: 2, warmup_lr: 1}", "warmup_lr must be at least 0 and below the learning rate 0.05, and is 1"),
        ("{name: short, warmup_epochs: 2, warmup_lr: -0.1}", "warmup_lr must be at least 0"),
        ("{name: short, betas: [0.9, 0.99]}", "betas is not an option of the optimizer sgd, which has `momentum`"),
        ("{name: short, optimizer: nesterov, eps: 0.1}", "eps is not an option of the optimizer nesterov"),
        ("{name: short, optimizer: adamw, betas: [0.9, 1]}", "betas must be at least 0 and below 1, and are [0.9, 1.0]"),
        ("{name: short, optimizer: lamb, eps: 0}", "eps must be positive, not 0"),
        ("{name: short, layer_decay: 1.5}", "layer_decay must be above 0 and at most 1, and is 1.5"),
        ("{name: short, loss_lr_scale: 0}", "loss_lr_scale must be positive, not 0"),
        ("{name: short, optimizer: adamv}", "optimizer"),
    ],
)
def test_a_schedule_or_optimiser_that_cannot_be_meant_is_refused(recipe: str, message: str, write_suite: Callable[..., Path]) -> None:
    with pytest.raises(SuiteError, match=re.escape(message)):
        read(write_suite(recipe=recipe))


@pytest.mark.parametrize("warmup", [1, 3, 9])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_cosine_continues_at_the_full_rate_where_the_warm_up_ends_and_ends_at_its_minimum(
    warmup: int, optimizer: str, plan_of: Callable[..., Plan]
) -> None:
    recipe = f"{{name: crd, epochs: 10, schedule: cosine, warmup_epochs: {warmup}, lr_min: 0.001, warmup_lr: 0.01, optimizer: {optimizer}}}"
    found = rates(recipes_of(plan_of(recipe=recipe))["small"], 50)

    assert found[0] == 0.01 and found[warmup * 50] == max(found) == 0.05
    assert np.all(np.diff(found[: warmup * 50]) > 0) and np.all(np.diff(found[warmup * 50 :]) < 0)
    assert np.abs(np.diff(found)).max() < 0.0025
    assert found[-1] == pytest.approx(0.001, abs=1e-4)


def test_a_cosine_planned_before_keeps_its_rates_and_can_be_asked_for_by_its_id(plan_of: Callable[..., Plan]) -> None:
    changes = "epochs: 10, schedule: cosine, warmup_epochs: 4, milestones: []"
    before = recipes_of(plan_of(recipe=f"{{name: short, {changes}, cosine_after_warmup: false}}"))["small"]

    assert before == {key: value for key, value in parts.load("recipe", "short").options(before).items() if key not in Recipe.added}
    assert rates(before, 2)[6:10] == pytest.approx([0.0375, 0.04375, 0.025 * (1 + np.cos(0.4 * np.pi)), 0.025 * (1 + np.cos(0.45 * np.pi))])


def test_a_cosine_without_warm_up_has_no_new_option(plan_of: Callable[..., Plan]) -> None:
    recipe = recipes_of(plan_of(recipe="{name: short, epochs: 10, schedule: cosine}"))["small"]
    assert not set(recipe) & set(Recipe.added)


class Student(nn.Module):
    """A wrapped net, as a model of timm is."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        small = {"img_size": 32, "embed_dim": 12, "depth": 6, "num_heads": 3}
        self.plain = timm.create_model("vit_tiny_patch16_224", num_classes=3, **small)


def trained(student: nn.Module | None = None) -> nn.ModuleDict:
    loss = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return nn.ModuleDict({"student": student or nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "objective": loss})


def optimizer_of(module: nn.Module, **options: Any) -> torch.optim.Optimizer:
    recipe = parts.load("recipe", "short").options(options)
    optimizer = make_optimizer(module, recipe)
    make_scheduler(optimizer, recipe, 10)
    every = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(every) == sorted(id(one) for one in module.parameters() if one.requires_grad)
    return optimizer


@pytest.mark.parametrize(
    ("name", "kind", "own"), [("adam", "Adam", True), ("adamw", "AdamW", True), ("lamb", "Lamb", True), ("lion", "Lion", False)]
)
def test_an_optimiser_is_timms_of_this_name_with_the_options_that_are_given(name: str, kind: str, own: bool) -> None:
    eps = {"eps": 1e-5} if own else {}
    optimizer = optimizer_of(nn.Linear(2, 2), optimizer=name, betas=[0.8, 0.95], weight_decay=0.1, **eps)

    assert type(optimizer).__name__ == kind
    (group,) = optimizer.param_groups
    assert tuple(group["betas"]) == (0.8, 0.95) and group["weight_decay"] == 0.1
    assert not own or group["eps"] == 1e-5
    spared = optimizer_of(nn.Linear(2, 2), optimizer=name, decay_norms_and_biases=False)
    assert sorted(group["weight_decay"] for group in spared.param_groups) == [0.0, 5e-4]


def test_a_loss_has_its_own_learning_rate_and_the_same_weight_decay() -> None:
    module = trained()
    for decays, expected in ((True, {5e-4}), (False, {0.0, 5e-4})):
        optimizer = optimizer_of(module, loss_lr_scale=10.0, decay_norms_and_biases=decays)
        of_loss = {id(one) for one in module["objective"].parameters()}
        for group in optimizer.param_groups:
            inside = {id(one) in of_loss for one in group["params"]}
            assert len(inside) == 1 and group["lr"] == pytest.approx(0.5 if True in inside else 0.05)
            assert decays or (group["weight_decay"] == 0.0) == all(one.ndim == 1 for one in group["params"])
        assert {group["weight_decay"] for group in optimizer.param_groups} == expected
        assert learning_rate(optimizer) == 0.05


def test_without_these_options_all_parameters_are_in_one_group_as_before() -> None:
    (group,) = optimizer_of(trained()).param_groups
    assert "lr_scale" not in group


def test_layers_below_the_head_have_lower_rates_and_losses_do_not() -> None:
    module = trained(Student())
    module["student"].plain.pos_embed.requires_grad_(False)
    optimizer = optimizer_of(module, layer_decay=0.5, loss_lr_scale=3.0, warmup_epochs=2, warmup_lr=0.01, decay_norms_and_biases=False)
    names = {id(one): name for name, one in module.named_parameters()}
    scale = {names[id(one)]: group["lr_scale"] for group in optimizer.param_groups for one in group["params"]}

    assert scale["student.plain.head.weight"] == 1.0 and scale["objective.0.weight"] == 3.0
    blocks = [scale[f"student.plain.blocks.{place}.mlp.fc1.weight"] for place in range(6)]
    assert [later / earlier for earlier, later in zip(blocks, blocks[1:], strict=False)] == [2.0] * 5
    assert scale["student.plain.patch_embed.proj.weight"] < blocks[0] and "student.plain.pos_embed" not in scale
    rates = [group["lr"] for group in optimizer.param_groups]
    assert learning_rate(optimizer) == 0.01 and min(rates) < 0.001 and max(rates) == pytest.approx(0.03)


def test_layer_decay_is_refused_for_a_net_that_does_not_state_its_layers(plan_of: Callable[..., Plan]) -> None:
    recipe = "{name: short, epochs: 3, milestones: [2], layer_decay: 0.7}"
    with pytest.raises(SuiteError, match=r"students.small: `layer_decay` needs a model that states its layers") as raised:
        probe(plan_of(recipe=recipe))
    assert len(raised.value.errors) == 2  # the teacher's as well
    net = "{r: {model: resnet10t, recipe: {layer_decay: 0.7}}}"
    probe(plan_of(students=net))


def told(text: str, name: str) -> list[tuple[float, float]]:
    """(epoch, rate) as `plan` prints them."""
    line = next(line for line in text.splitlines() if name in line.partition(":")[0].replace(",", "").split())
    return [(float(epoch), float(rate)) for rate, epoch in re.findall(r"([\d.e-]+) at ([\d.]+)", line)]


@pytest.mark.parametrize(
    "recipe",
    [
        "{name: crd, epochs: 8, batch_size: 16}",
        "{name: short, epochs: 5, batch_size: 12, drop_last: true, milestones: [1.5, 3]}",
        "{name: short, epochs: 8, batch_size: 16, schedule: cosine, warmup_epochs: 2, evaluate_every: 99}",
        "{name: short, epochs: 6, batch_size: 16, optimizer: lamb, schedule: constant, warmup_epochs: 2, accumulate: 2}",
    ],
)
def test_plan_prints_the_rates_that_training_uses(
    recipe: str, write_suite: Callable[..., Path], plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    options = {"recipe": recipe, "objectives": "[ce]", "repeats": "1"}
    text = as_text(write_suite(**options), tmp_path)
    plan = plan_of(**options)
    train(plan)
    cell = next(row.cell for row in plan.rows if row.role == "student")
    record = store.record(cell.id)
    assert record
    used = [entry["lr"] for entry in record.result["history"]]
    printed = told(text, "small")

    assert printed[0][0] == 0
    for epoch, rate in printed:
        if epoch.is_integer():
            assert f"{used[int(epoch)]:.3g}" == f"{rate:.3g}", epoch
    # Between the epochs that are printed, a stepped rate does not change.
    if cell.config["recipe"]["schedule"] == "step":
        assert [f"{rate:.3g}" for rate in used] == [
            f"{[rate for at, rate in printed if at <= epoch][-1]:.3g}" for epoch in range(len(used))
        ]


def test_plan_states_the_linear_rule_where_only_the_batch_was_changed(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    for recipe, note in (
        ("{name: crd, batch_size: 256}", "note: the learning rate 0.05 of crd is for batches of 64; for 256 the linear rule gives 0.2"),
        ("{name: crd, batch_size: 256, lr: 0.1}", None),
        ("crd", None),
    ):
        lines = [line for line in as_text(write_suite(recipe=recipe), tmp_path).splitlines() if "linear rule" in line]
        assert lines == ([note] if note else [])


def test_plan_prints_a_long_training_at_once(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    text = as_text(write_suite(recipe="{name: crd, epochs: 1000000000, schedule: cosine, warmup_epochs: 5}"), tmp_path)
    assert told(text, "small")[:2] == [(0, 0), (5, 0.05)]


@pytest.mark.parametrize("name", parts.names("recipe"))
def test_a_student_of_every_shipped_recipe_trains(name: str, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    warmup = ", warmup_epochs: 1" if parts.load("recipe", name).make.warmup_epochs else ""
    plan = plan_of(recipe=f"{{name: {name}, epochs: 2, batch_size: 16{warmup}}}", objectives="[ce]", repeats="1")
    assert train(plan) == 0
    (record,) = (store.record(cell) for cell in plan.cells)
    assert record and record.outcome == "finished"


def test_the_page_of_suites_has_every_recipe_and_every_option() -> None:
    text = (Path(__file__).parents[1] / "docs" / "suites.md").read_text()
    section = text[text.index("## Recipes") : text.index("## Losses")]
    for name in (*parts.names("recipe"), *(one.name for one in fields(Recipe))):
        assert any(f"`{name}`" in line.split("|")[1] for line in section.splitlines() if line.startswith("|")), name


NET = """
from torch import nn
from kdbench.losses._base import Taps
from kdbench.models._base import Model


class Net(Model):
    def build(self, inputs, outputs):
        self.first, self.second = nn.Conv2d(inputs[0], 6, 3), nn.Conv2d(6, 6, 3)
        self.last = nn.Linear(6, outputs)

    def group_matcher(self, coarse=False):
        return {"stem": "^first", "blocks": [("^second", None), ("^last", (9,))]}

    def forward(self, inputs):
        pooled = self.second(self.first(inputs).relu()).relu().mean((2, 3))
        return Taps(self.last(pooled), pooled)
"""
REGRESSOR = """
import torch.nn.functional as F
from torch import nn
from kdbench import Loss


class Regressor(Loss):
    needs = frozenset({"pooled"})

    def bind(self, pair):
        self.map = nn.Linear(pair.student.pooled.shape[1], pair.teacher.pooled.shape[1])

    def forward(self, student, teacher, batch):
        return F.mse_loss(self.map(student.pooled), teacher.pooled)
"""


def test_a_stopped_training_with_lamb_and_rates_of_its_own_ends_with_the_same_bits(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "regressor.py").write_text(REGRESSOR)
    (tmp_path / "net.py").write_text(NET)
    plan = plan_of(
        recipe="{name: short, epochs: 4, batch_size: 16, optimizer: lamb, schedule: cosine, warmup_epochs: 1, loss_lr_scale: 10}",
        objectives="{ce: , own: {loss: 'regressor.py:Regressor', weight: 1}}",
        students="{own: {model: 'net.py:Net', recipe: {layer_decay: 0.7}}, small: {model: small_mobile, widths: [4, 6]}}",
        repeats="1",
    )
    undisturbed = Store(tmp_path / "undisturbed")
    train(plan, store=undisturbed)
    train(plan, [plan.teachers[0].cell.id])
    ids = [row.cell.id for row in plan.rows if row.role == "student"]
    asked = iter([False] * 5 + [True])
    assert train(plan, ids, stop=lambda: next(asked)) == 75
    for cell_id in ids:
        train(plan, [cell_id])  # each alone, to its end
    for cell_id in ids:
        one, other = store.record(cell_id), undisturbed.record(cell_id)
        assert one and other and one.result == other.result
        assert [entry["lr"] for entry in one.result["history"]] == pytest.approx([0, 0.05, 0.0375, 0.0125])  # without the factors
