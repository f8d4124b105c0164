"""OFA: its loss against numbers of the released code, and the branches at the student's stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdbench import parts
from kdbench.losses._base import Batch, Loss, Pair, Taps
from kdbench.losses.ofa import _convolutions

from .toys import each
from .values._stored import CASES, NUMBERS

RELEASED = {
    ("n8", 1.0, 1.0): (3.843406856594312, 0.3291231508241436),
    ("n8", 1.5, 1.0): (3.9877532513915606, 0.4413874278555426),
    ("n8", 0.8, 2.0): (3.302691286335792, 0.11388962571638361),
    ("n13", 1.0, 1.0): (2.7371336176427006, 0.23956509656258004),
    ("n13", 1.5, 1.0): (2.7968716042199535, 0.3080466849919913),
    ("n13", 0.8, 2.0): (2.50096396132138, 0.08846904731411383),
}
"""(case, eps, T) -> the value of `ofa_loss` of github.com/Hao840/OFAKD, distillers/ofa.py at f7bb896, on the logits of golden/shelf.npz,
and the norm of its gradient."""


def built(**options: Any) -> Loss:
    part = parts.load("loss", "ofa")
    return part.build(part.options(options))


def taps(*shapes: tuple[int, int], logits: torch.Tensor | None = None) -> Taps:
    """Stages of these channels and heights."""
    draw = torch.Generator().manual_seed(0)
    stages = [torch.randn(4, width, side, side, generator=draw, dtype=torch.float64) for width, side in shapes]
    return Taps(logits=torch.zeros(4, 3, dtype=torch.float64) if logits is None else logits, stages=stages)


def bound(student: Taps, teacher: Taps, **options: Any) -> Loss:
    loss = built(**options)
    loss.prepare(Pair(student, teacher))
    return loss.double()


@each(RELEASED)
def test_the_loss_of_one_head_is_that_of_the_released_code(case: str, eps: float, temperature: float) -> None:
    assert case in CASES
    given = [torch.tensor(NUMBERS[f"{case}/input/{name}"]) for name in ("student_logits", "teacher_logits", "target")]
    logits, target = given[0].requires_grad_(), given[2]
    stage = torch.ones(len(logits), 2, 1, 1, dtype=torch.float64)
    sides = Taps(logits=logits, stages=[stage]), Taps(logits=given[1], stages=[stage])
    loss = bound(*sides, eps=[9.0, eps], temperature=temperature, first_stage=0)
    value = loss.parts(*sides, Batch(target))["logits"]
    value.backward()
    expected, gradient = RELEASED[case, eps, temperature]
    assert value.item() == pytest.approx(expected, rel=1e-12) and logits.grad.norm().item() == pytest.approx(gradient, rel=1e-12)
    # Of a mixed image the larger share is its class.
    shares = 0.7 * nn.functional.one_hot(target, logits.shape[1]) + 0.3 / logits.shape[1]
    assert loss.parts(*sides, Batch(shares))["logits"].item() == value.item()


def test_branches_of_convolutions_are_released_ones_with_a_width_that_doubles() -> None:
    student, teacher = taps((3, 16), (4, 16), (8, 8), (16, 4), (24, 2)), taps((5, 8), (40, 2))
    loss = bound(student, teacher)
    assert [len(head) for head in loss.heads] == [3 * 8 + 2, 2 * 8 + 2, 8 + 2, 1 + 2]
    layers = [type(one).__name__ for one in _convolutions(4, 1, 40)]
    assert layers == 2 * ["Conv2d", "Conv2d", "BatchNorm", "ReLU"]
    shapes = [tuple(one.weight.shape) for one in loss.heads[0] if isinstance(one, nn.Conv2d)]
    depthwise, widths = shapes[::2], [shape[:2] for shape in shapes[1::2]]
    assert depthwise == [(width, 1, 3, 3) for width in (4, 4, 8, 8, 16, 16)]
    assert widths == [(4, 4), (8, 4), (8, 8), (16, 8), (16, 16), (40, 16)]
    assert [one.stride[0] for one in loss.heads[0] if isinstance(one, nn.Conv2d) and one.kernel_size == (3, 3)] == [2, 1] * 3
    last = loss.heads[3]
    assert tuple(last[0].weight.shape) == (40, 24, 1, 1) and tuple(last[2].weight.shape) == (3, 40) and not last[2].bias.any()
    assert set(loss(student, teacher, Batch(torch.arange(4) % 3)).shape) == set()


def test_branches_of_blocks_merge_patches_to_seven_a_side_and_are_at_the_released_depths() -> None:
    vit = taps(*[(8, 14)] * 12)
    loss = bound(vit, vit, branches="blocks", first_stage=0)
    assert [place for place, one in enumerate(vit.stages) if any(one is chosen for chosen in loss._chosen(vit))] == [1, 3, 9, 11]
    names = [[type(one).__name__ for one in head] for head in loss.heads]
    assert names == [["_Merge", "_Patches", *["TransformerEncoderLayer"] * count, "_Mean", "Linear"] for count in (3, 2, 1, 1)]
    swin = taps((4, 56), (8, 28), (16, 14), (32, 7))
    loss = bound(swin, vit, branches="blocks", first_stage=0)
    merges = [[one.reduction.weight.shape for one in head if type(one).__name__ == "_Merge"] for head in loss.heads]
    assert merges == [[(32, 16), (32, 128), (32, 128)], [(32, 32), (32, 128)], [(32, 64)], []]
    assert [type(one.activation).__name__ for one in loss.heads[0] if type(one).__name__ == "_Merge"] == ["GELU", "GELU", "Identity"]
    assert all(part.isfinite() for part in loss.parts(swin, vit, Batch(torch.arange(4) % 3)).values())


@each(
    [
        ({"first_stage": 2}, "it needs a stage from `first_stage` 2 on"),
        ({"eps": [1.0, 2.0, 3.0]}, "`eps` has 3 values: give one for all, or one for each of 1 branches and one for the logits"),
        ({"branches": "blocks", "first_stage": 0}, "merge 2 x 2 patches 1 times, which a map of 15 x 15 does not allow"),
    ]
)
def test_what_its_branches_cannot_serve_is_refused(options: dict[str, Any], reason: str) -> None:
    student = taps((3, 15), (4, 15))
    assert reason in (built(**options).missing(Pair(student, student)) or "")


def test_the_branches_are_no_part_of_what_is_kept() -> None:
    student, net = taps((3, 4), (4, 2)), nn.Linear(2, 2)
    loss = bound(student, student)
    assert loss.deployed(net) is net and sum(weight.numel() for weight in loss.parameters() if weight.requires_grad) > 0
