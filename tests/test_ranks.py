"""Several ranks: what they compute of a batch in groups against one process, how they fail together, and how they meet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.cell import Cell
from kdbench.losses._base import TAPS, Batch, Loss, Taps
from kdbench.parts import load
from kdbench.plan.schema import NUMERICS
from kdbench.tasks.classification import Classification
from kdbench.train.feed import counts_of, taps_of, tensors_of
from kdbench.train.grouped import GroupedMember
from kdbench.train.member import Member
from kdbench.train.objective import Objective
from kdbench.train.ranks import ALONE, Ranks, in_pairs, why_not

from .losses import toys
from .ranks import in_ranks

TIGHT = {torch.float64: 1e-12, torch.float32: 1e-6}
DRAWS = {"sdd"}
"""Losses of single images that draw in each call: each group has draws of its own."""


class Table(nn.Module):
    """A student whose outputs are its weights, so that its gradients are those of its outputs. An image is the number of its row; those of
    the second view are numbered behind the others."""

    def __init__(self, some: Taps):
        super().__init__()
        first, second = (tensors_of(view, set(TAPS)) for view in (some, some.second_view or some))
        self.names = list(first)
        self.n = len(first[("logits",)])
        self.rows = nn.ParameterList([torch.cat([first[name], second[name]]) for name in self.names])
        weight, bias = some.classifier
        self.head = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
        self.head.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, images: Tensor) -> Taps:
        return taps_of({name: rows[images] for name, rows in zip(self.names, self.rows, strict=True)})


def member_of(loss: Loss, name: str, student: Taps, groups: int, numerics: str = "exact", **recipe: Any) -> Member:
    term = {"loss": name, "version": 1, "options": {}, "weight": 1.0, "pairing": "matched"}
    given = load("recipe", "short").options({"epochs": 1, "batch_size": 12, "lr": 0.1, "milestones": [], "bn_groups": groups, **recipe})
    config = {"recipe": given, "numerics": NUMERICS[numerics], "objective": {"task": 1.0, "terms": [term]}}
    config |= {"role": "student", "seed": 0, "dataset": {}, "repeat": 0, "student": {}}
    objective = Objective({"task": 1.0, "terms": []}, {})
    objective.terms, objective.names, objective.losses = [term], [name], nn.ModuleList([copy.deepcopy(loss)])
    if "second_view" in loss.needs:
        objective.augmentation, objective.task_of_both_views = loss.augmentation, loss.task_of_both_views
    kind = GroupedMember if groups > 1 else Member
    return kind(Cell(config), Table(student), objective, Classification(), steps_per_epoch=1)


def stepped(member: Member, n: int, teacher: Taps, loss: Loss) -> tuple[Tensor, list[Tensor | None]]:
    """The value and the gradients of a step."""
    rows = torch.arange(n)
    seconds = {("matched", loss.augmentation): (rows + n, teacher.second_view)} if "second_view" in loss.needs else {}
    batch = replace(toys.batch(n), second_views=seconds)
    member.step(rows, batch.target, batch, replace(teacher, second_view=None))
    gradients = [weight.grad for weight in member.trained.parameters()]
    return member.sums[""][0], [None if one is None else one.clone() for one in gradients]


def apart(one: Any, other: Any) -> float:
    """How far values or gradients are apart, relative to the largest of them all."""
    (value, mine), (wanted, theirs) = one, other
    assert [gradient is None for gradient in mine] == [gradient is None for gradient in theirs]
    largest = max((float(gradient.abs().max()) for gradient in theirs if gradient is not None and gradient.numel()), default=1.0)
    pairs = [(value / wanted.abs(), wanted / wanted.abs())] + [
        (a / largest, b / largest) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None and a.numel()
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


def differences(ranks: Ranks, dtype: torch.dtype, change: Callable[[GroupedMember], None] = lambda member: None) -> dict[Any, float]:
    """For each loss and option: how far a step of several ranks is from that of one process without groups."""
    torch.set_num_threads(1)
    found = {}
    for name, case in toys.cases():
        loss, pair = toys.bound(name, case, dtype=dtype)
        widths = [len(side.pooled[0]) for side in (pair.student, pair.teacher)]
        for n in (3 * ranks.world, 3 * ranks.world - 1):
            student, teacher = (toys.taps(n, width, seed, dtype) for width, seed in zip(widths, (50, 60), strict=True))
            whole, grouped = (member_of(loss, name, student, groups) for groups in (1, ranks.world))
            grouped.ranks = ranks
            change(grouped)
            expected = stepped(whole, n, teacher, loss)
            found[name, case, n] = apart(stepped(grouped, n, teacher, loss), expected)
    return found


@pytest.mark.parametrize("dtype", TIGHT, ids=["float64", "float32"])
@pytest.mark.parametrize("world", [2, 3])
def test_every_loss_has_the_value_and_the_gradients_of_one_process(world: int, dtype: torch.dtype) -> None:
    for found in in_ranks(world, lambda ranks: differences(ranks, dtype)):
        far = {what: off for what, off in found.items() if off > TIGHT[dtype] and what[0] not in DRAWS}
        assert far == {}
