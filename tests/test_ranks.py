"""Several ranks: what they compute of a batch in groups against one process, how they fail together, and how they meet."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.cell import Cell
from kdbench.losses._base import TAPS, Loss, Taps
from kdbench.parts import load
from kdbench.plan.schema import NUMERICS
from kdbench.recipes._base import why_not_shared
from kdbench.scenes import Objects
from kdbench.tasks.classification import Classification
from kdbench.train.feed import taps_of, tensors_of
from kdbench.train.grouped import GroupedMember
from kdbench.train.member import Member
from kdbench.train.objective import Objective
from kdbench.train.ranks import ALONE, Ranks, in_pairs

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


class OfScenes(Classification):
    """Takes the number of objects in an image for its class, so that losses that need objects have them."""

    def step(self, student: nn.Module, inputs: Any, targets: Any) -> tuple[dict[str, Tensor], Taps]:
        classes = torch.tensor([len(one) for one in targets.boxes]) if isinstance(targets, Objects) else targets
        return super().step(student, inputs, classes)


def member_of(loss: Loss, name: str, student: Taps, groups: int, point: Any = None, pairing: str = "matched") -> Member:
    term = {"loss": name, "version": 1, "options": {}, "weight": 1.0, "pairing": pairing}
    given = load("recipe", "short").options({"epochs": 1, "batch_size": 12, "lr": 0.1, "milestones": [], "bn_groups": groups})
    config = {"recipe": given, "numerics": NUMERICS["exact"], "objective": {"task": 1.0, "terms": [term], "tuned": {"terms": 1}}}
    config |= {"role": "student", "seed": 0, "dataset": {}, "repeat": 0, "student": {}}
    objective = Objective({"task": 1.0, "terms": []}, {})
    objective.terms, objective.names, objective.losses = [term], [name], nn.ModuleList([copy.deepcopy(loss)])
    if "second_view" in loss.needs:
        objective.augmentation, objective.task_of_both_views = loss.augmentation, loss.task_of_both_views
    kind = GroupedMember if groups > 1 else Member
    return kind(Cell(config), Table(student), objective, OfScenes(), steps_per_epoch=1, point=point)


def stepped(member: Member, n: int, teacher: Taps, loss: Loss) -> tuple[Tensor, list[Tensor | None]]:
    """The values (of the task and of each part of the loss) and the gradients of a step."""
    rows = torch.arange(n)
    seconds = {("matched", loss.augmentation): (rows + n, teacher.second_view)} if "second_view" in loss.needs else {}
    batch = replace(toys.batch(n, loss), second_views=seconds)
    member.step(rows, batch.target, batch, replace(teacher, second_view=None))
    gradients = [weight.grad for weight in member.trained.parameters()]
    values = torch.stack([value for name, pair in member.sums.items() if name for value in pair])
    return values, [None if one is None else one.clone() for one in gradients]


def apart(one: Any, other: Any) -> float:
    """How far values are apart, relative to each, or gradients, relative to the largest of them all."""
    (value, mine), (wanted, theirs) = one, other
    assert [gradient is None for gradient in mine] == [gradient is None for gradient in theirs]
    largest = max((float(gradient.abs().max()) for gradient in theirs if gradient is not None and gradient.numel()), default=1.0)
    size = wanted.abs().clamp_min(1e-300)
    pairs = [(value / size, wanted / size)] + [
        (a / largest, b / largest) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None and a.numel()
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


SIZES = {2: (8, 7), 3: (6, 8)}
"""Images of a batch, by the number of ranks: in equal shares and in others."""


def differences(
    ranks: Ranks,
    cases: list[tuple[str, str]],
    dtype: torch.dtype = torch.float64,
    change: Callable[[GroupedMember], None] = lambda member: None,
    pairing: str = "matched",
) -> dict[Any, float]:
    """For each loss with its options: how far a step of several ranks is from that of one process without groups."""
    torch.set_num_threads(1)
    found = {}
    for name, case in cases:
        loss, pair = toys.bound(name, case, dtype=dtype)
        widths = [len(side.pooled[0]) for side in (pair.student, pair.teacher)]
        for n in SIZES[ranks.world]:
            student, teacher = (toys.taps(n, width, seed, dtype) for width, seed in zip(widths, (50, 60), strict=True))
            whole, grouped = (member_of(loss, name, student, groups, pairing=pairing) for groups in (1, ranks.world))
            grouped.ranks = ranks
            change(grouped)
            expected = stepped(whole, n, teacher, loss)
            found[name, case, n] = apart(stepped(grouped, n, teacher, loss), expected)
    return found


def presets() -> list[tuple[str, str]]:
    return [(name, case) for name, case in divided() if case in load("loss", name).make.presets]


def divided() -> list[tuple[str, str]]:
    """The losses of batches that can be divided: those on the regions of a detector are of whole batches, which the task asks for."""
    return [(name, case) for name, case in toys.cases() if "regions" not in toys.bound(name, case)[0].needs]


def check_all(world: int, cases: list[tuple[str, str]], dtype: torch.dtype) -> None:
    for found in in_ranks(world, lambda ranks: differences(ranks, cases, dtype), timeout_s=500):
        far = {what: off for what, off in found.items() if off > TIGHT[dtype] and what[0] not in DRAWS}
        assert far == {} and len(found) >= len(cases)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_loss_has_the_value_and_the_gradients_of_one_process(world: int) -> None:
    check_all(world, presets(), torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TIGHT, ids=["float64", "float32"])
@pytest.mark.parametrize("world", [2, 3])
def test_so_has_every_loss_with_every_option(world: int, dtype: torch.dtype) -> None:
    check_all(world, divided(), dtype)


def relational() -> list[tuple[str, str]]:
    first = {name: case for name, case in reversed(presets())}
    return [(name, first[name]) for name in ("sp", "rkd", "cka", "rcka", "cc", "pkt")]


@pytest.mark.slow
def test_a_loss_that_each_rank_computes_of_its_own_images_is_found_out() -> None:
    def of_own_images(member: GroupedMember) -> None:
        for loss in member.objective.losses:
            loss.couples = "sample"  # type: ignore[assignment,union-attr]

    (found, *_) = in_ranks(2, lambda ranks: differences(ranks, relational(), change=of_own_images))
    assert min(found.values()) > 1e-3, found


@pytest.mark.slow
def test_a_forgotten_factor_is_found_out() -> None:
    class Mean(type(ALONE)):  # type: ignore[misc]
        """Takes the mean over the ranks, as is right for losses that are means over the own images of each."""

        def __init__(self, ranks: Ranks):
            self.inner, self.rank, self.world = ranks, ranks.rank, ranks.world

        def total(self, vector: Tensor, exact: bool) -> Tensor:
            return self.inner.total(vector, exact) / self.world

        def __getattribute__(self, name: str) -> Any:
            own = ("inner", "rank", "world", "total", "share")
            return object.__getattribute__(self, name) if name in own else getattr(self.inner, name)

    def forgetful(member: GroupedMember) -> None:
        member.ranks = Mean(member.ranks)

    (found, *_) = in_ranks(2, lambda ranks: differences(ranks, [("kd", "crd"), *relational()], change=forgetful))
    assert min(found.values()) > 0.1, found


@pytest.mark.parametrize("world", [2, 3])
def test_rows_of_any_kind_and_number_come_in_order(world: int) -> None:
    def act(ranks: Ranks) -> dict[Any, Tensor]:
        counts = [ranks.world - 1 - rank for rank in range(ranks.world)]  # the last rank has none
        mine = counts[ranks.rank]
        rows = torch.arange(mine) + sum(counts[: ranks.rank])
        given = {
            "numbers": rows,
            "maps": (rows.double()[:, None, None] + torch.arange(6.0).view(2, 3)).transpose(1, 2),
            "low": rows.to(torch.bfloat16)[:, None],
            "flags": rows % 2 == 0,
        }
        return ranks.rows(given if mine else {}, counts)

    for found in in_ranks(world, act):
        n = world * (world - 1) // 2
        assert found["numbers"].tolist() == list(range(n))
        assert found["flags"].tolist() == [row % 2 == 0 for row in range(n)]
        assert found["low"].dtype == torch.bfloat16 and found["low"][:, 0].tolist() == list(range(n))
        assert torch.equal(found["maps"][:, 0, 1], torch.arange(n) + 3.0)


def test_parts_are_added_in_pairs_by_any_number_of_ranks_that_divides_them() -> None:
    parts = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    alone = in_pairs(parts.__getitem__, 0, 8)

    def act(ranks: Ranks) -> Tensor:
        share = ranks.share(8)
        return ranks.total(in_pairs(parts.__getitem__, share.start, share.stop), exact=True)

    for world in (2, 4):
        assert all(torch.equal(found, alone) for found in in_ranks(world, act))
    assert not torch.equal(parts.sum(0), alone)  # another order has other bits


def test_an_error_is_that_of_all_ranks_or_of_none() -> None:
    def act(ranks: Ranks) -> list[str]:
        said = []
        for failing in (None, 0, 1, 2):
            try:
                ranks.tried(lambda failing=failing: [].pop() if ranks.rank == failing else None)
                said.append("well")
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        return said

    found = in_ranks(3, act)
    for rank, said in enumerate(found):
        told = [f"RankError: rank {other}: IndexError: pop from empty list" for other in range(3)]
        told[rank] = "IndexError: pop from empty list"
        assert said == ["well", *told]


@pytest.mark.parametrize(
    ("ranks", "groups", "numerics", "advice"),
    [
        (1, 1, "exact", ""),
        (4, 8, "exact", ""),
        (3, 6, "fast", ""),
        (2, 1, "exact", "set `bn_groups` in the recipe, to 2 or a multiple of it"),
        (3, 6, "exact", "sums of another number have other bits: use 1 or 2 ranks"),
        (5, 8, "fast", "each rank needs as many groups as the others: use 1, 2, 4 or 8 ranks"),
    ],
)
def test_ranks_that_cannot_share_the_groups_are_told_which_can(ranks: int, groups: int, numerics: str, advice: str) -> None:
    why = why_not_shared(ranks, groups, numerics)
    assert (advice in why) if advice else not why


def test_a_plan_says_which_ranks_can_share_its_groups_and_what_they_send(write_suite: Callable[..., Any]) -> None:
    from kdbench.plan.summary import as_text

    path = write_suite(
        dataset="{name: cifar100}",
        recipe="{name: short, epochs: 2, batch_size: 256, milestones: [1], bn_groups: 8}",
        teachers="{big: {model: cifar_resnet, depth: 14, widths: [16, 16, 32, 64]}}",
        students="{small: {model: cifar_resnet, depth: 8, widths: [16, 16, 32, 64]}}",
        objectives="{kd: , at: , sp: , cka: {tap: stages, weight: 1, weight_from: assumed}}",
    )
    text = as_text(path, path.parent / "results")
    assert "each batch of 256 is divided into 8 (`bn_groups`), which 1, 2, 4 or 8 ranks can share (`--ranks`)" in text
    # Four stages of student and teacher: 16 x 32 x 32 twice, 32 x 16 x 16 and 64 x 8 x 8 floats.
    size = 256 * 2 * 4 * (2 * 16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8) / 1e6
    assert f"cka (small <- big): {size:.1f} MB of outputs go from each rank to all others in a step" in text
    assert "  kd (" not in text and "  at (" not in text


@pytest.mark.parametrize("name", ["sp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kd", "rkd"))])
def test_a_weight_that_is_found_from_gradients_is_that_of_one_process(name: str) -> None:
    case = dict(presets())[name]

    def weight(ranks: Ranks, groups: int) -> float:
        loss, pair = toys.bound(name, case)
        widths = [len(side.pooled[0]) for side in (pair.student, pair.teacher)]
        student, teacher = (toys.taps(8, width, seed) for width, seed in zip(widths, (50, 60), strict=True))
        member = member_of(loss, name, student, groups, {"gradient": 0.5})
        member.ranks = ranks
        stepped(member, 8, teacher, loss)
        assert member.point is not None
        return member.point["weight"]

    alone = weight(ALONE, 1)
    assert weight(ALONE, 4) == pytest.approx(alone, rel=1e-6)
    assert in_ranks(2, lambda ranks: weight(ranks, 4)) == pytest.approx([alone] * 2, rel=1e-6)


def test_gradient_sizes_are_those_of_one_process() -> None:
    loss, pair = toys.bound("sp", dict(presets())["sp"])
    widths = [len(side.pooled[0]) for side in (pair.student, pair.teacher)]
    student, teacher = (toys.taps(8, width, seed) for width, seed in zip(widths, (50, 60), strict=True))
    found = []
    for groups in (1, 4):
        member = member_of(loss, "sp", student, groups)
        batch = toys.batch(8)
        member.step(torch.arange(8), batch.target, batch, replace(teacher, second_view=None), first=True)
        found.append(member.gradients)
    assert found[0].keys() == {"sp"} and found[1] == pytest.approx(found[0])


@pytest.mark.slow
def test_a_control_with_the_rows_of_other_images_has_them_from_the_whole_batch() -> None:
    (found, *_) = in_ranks(2, lambda ranks: differences(ranks, presets(), pairing="shuffled"), timeout_s=300)
    assert {what: off for what, off in found.items() if off > 1e-12} == {}


def test_rows_have_one_layout_whoever_has_them() -> None:
    maps = torch.randn(6, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    (mine, _) = in_ranks(2, lambda ranks: ranks.rows({"maps": maps[ranks.rank * 3 : ranks.rank * 3 + 3]}, [3, 3])["maps"].stride())
    assert ALONE.rows({"maps": maps}, [6])["maps"].stride() == mine == (128, 16, 4, 1)


def test_an_error_that_all_ranks_have_is_one_of_the_student_alone() -> None:
    case = dict(presets())["sp"]

    def act(ranks: Ranks) -> str:
        loss, pair = toys.bound("sp", case)
        student, teacher = (toys.taps(8, len(side.pooled[0]), seed) for side, seed in ((pair.student, 50), (pair.teacher, 60)))
        member = member_of(loss, "sp", student, 4, {"gradient": 0.5})
        member.ranks = ranks
        member.objective.terms[0]["weight"] = 0.0  # so that there is no gradient
        try:
            stepped(member, 8, teacher, loss)
        except Exception as error:
            return f"{ranks.knows(error)} {type(error).__name__}"
        return "well"

    assert in_ranks(2, act) == ["True LossError", "True RankError"] or in_ranks(2, act) == ["True LossError"] * 2
