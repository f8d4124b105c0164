"""Batches in groups on one device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.cell import Cell
from kdbench.losses._base import Batch
from kdbench.models.cifar_resnet import CifarResnet
from kdbench.parts import load
from kdbench.plan.schema import NUMERICS
from kdbench.recipes._base import Recipe
from kdbench.tasks.classification import Classification
from kdbench.train.feed import counts_of
from kdbench.train.grouped import GroupedMember
from kdbench.train.objective import Objective

N, GROUPS = 14, 4


def member(net: nn.Module, groups: int = GROUPS) -> GroupedMember:
    recipe = load("recipe", "short").options({"epochs": 1, "batch_size": 16, "lr": 0.1, "milestones": [], "bn_groups": groups})
    config: dict[str, Any] = {"recipe": recipe, "numerics": NUMERICS["exact"], "objective": {"task": 1.0, "terms": []}}
    config |= {"role": "student", "seed": 0, "dataset": {}, "repeat": 0, "student": {}}
    return GroupedMember(Cell(config), net, Objective({"task": 1.0, "terms": []}, {}), Classification(), steps_per_epoch=1)


def net() -> CifarResnet:
    torch.manual_seed(0)
    model = CifarResnet(depth=8, widths=(4, 4, 4, 8))
    model.build((3, 8, 8), 5)
    return model


def data(n: int = N) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    images = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(n) % 5
    return images, targets, Batch(targets, torch.arange(n))


def test_each_group_has_its_own_statistics_and_the_running_ones_are_their_mean() -> None:
    model, (images, targets, batch) = net(), data()
    before = copy.deepcopy(model)
    member(model).step(images, targets, batch, None)

    copies = [copy.deepcopy(before).train() for _ in range(GROUPS)]
    for one, group in zip(copies, images.tensor_split(GROUPS), strict=True):
        one(group)
    for name, buffer in model.named_buffers():
        of_groups = [dict(one.named_buffers())[name] for one in copies]
        if not buffer.is_floating_point():
            assert buffer == of_groups[0] == 1
            continue
        # Added in pairs, then divided.
        assert torch.equal(buffer, (of_groups[0] + of_groups[1] + (of_groups[2] + of_groups[3])) / GROUPS)
        assert not torch.equal(buffer, dict(before.named_buffers())[name])


def test_the_gradient_is_that_of_the_mean_over_images_through_each_groups_own_norms() -> None:
    model, (images, targets, batch) = net().double(), data()
    images = images.double()
    alone = copy.deepcopy(model).train()
    logits = torch.cat([alone(group).logits for group in images.tensor_split(GROUPS)])
    nn.functional.cross_entropy(logits, targets).backward()
    member(model).step(images, targets, batch, None)
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-10, atol=1e-14)


def test_groups_without_an_image_are_left_out() -> None:
    model, (images, targets, batch) = net(), data(3)
    alone = copy.deepcopy(model)
    member(model).step(images, targets, batch, None)
    member(alone, groups=3).step(images, targets, batch, None)
    for one, other in zip(model.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "groups", "world", "expected"),
    [(143, 8, 1, (143,)), (143, 8, 8, (18,) * 7 + (17,)), (2, 4, 4, (1, 1, 0, 0)), (9, 6, 3, (4, 3, 2))],
)
def test_ranks_have_the_images_of_their_groups(n: int, groups: int, world: int, expected: tuple[int, ...]) -> None:
    assert counts_of(n, groups, world) == expected
    assert [len(one) for one in np.array_split(np.arange(n), groups)] == [len(one) for one in torch.arange(n).tensor_split(groups)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn_groups": 0}, "bn_groups must be at least 1"),
        ({"bn_groups": 32}, "bn_groups must be at most the batch of 16"),
        ({"bn_groups": 4, "accumulate": 2}, "already divides the batch: leave out accumulate"),
    ],
)
def test_groups_that_make_no_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 1, "batch_size": 16, "lr": 0.1, **options})


def test_one_group_is_no_part_of_an_identity(plan_of: Callable[..., Any]) -> None:
    recipe = "{name: short, epochs: 2, batch_size: 16, milestones: [1]%s}"
    plain, one, two = (set(plan_of(recipe=recipe % more).cells) for more in ("", ", bn_groups: 1", ", bn_groups: 2"))
    assert plain == one and not plain & two


def test_constants_of_a_net_stay_as_they_are() -> None:
    model, (images, targets, batch) = net(), data(9)
    for name, value in (("third", 1 / 3), ("mask", torch.finfo(torch.float32).min), ("long", 0.1)):
        model.register_buffer(name, torch.full((2,), value, dtype=torch.float64 if name == "long" else torch.float32))
    before = {name: getattr(model, name).clone() for name in ("third", "mask", "long")}
    member(model, groups=3).step(images, targets, batch, None)
    assert all(torch.equal(getattr(model, name), value) for name, value in before.items())


def test_a_task_whose_loss_needs_whole_batches_is_refused(tmp_path: Any) -> None:
    from kdbench.plan import matrix, probe
    from kdbench.plan.suite import read

    (tmp_path / "mine.py").write_text(
        'from kdbench.tasks.classification import Classification\n\n\nclass Mine(Classification):\n    """Mine."""\n\n    couples = \'batch\'\n'
    )
    path = tmp_path / "groups.yaml"
    path.write_text(
        "name: g\ntask: mine.py:Mine\ndataset: {name: digits, per_class: 4}\nrecipe: {name: short, epochs: 2, batch_size: 16, bn_groups: 2, milestones: [1]}\n"
        "teachers: {big: {model: small_mobile, min_top1: 0.0}}\nstudents: {small: {model: small_mobile}}\nobjectives: [ce, kd]\nrepeats: 1\n"
    )
    with pytest.raises(Exception, match="needs whole batches: leave bn_groups out of the recipe"):
        probe.probe(matrix.expand(read(path)))
