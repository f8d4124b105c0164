"""What re-implementations of these losses get wrong, where no stored value would show it; TRAPS.md lists what holds each trap."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdbench import parts
from kdbench.errors import RefusedError
from kdbench.losses._base import Batch, Pair, Taps
from kdbench.tasks.classification import Classification

from .values import modules
from .values._stored import CASES, NUMBERS

ELSEWHERE = {"ce", "ce_label_smoothing0.1", "wkd_cost", *(f"hcl_h{height}" for height in (1, 2, 3, 4, 5, 8))}
"""Stored values that are no loss of ours: compared below, in test_wkd_l.py and in test_reviewkd.py."""


def maps(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)


def test_every_stored_loss_is_compared():
    stored = {key.split("/")[1] for key in NUMBERS if key.endswith("/value")}
    compared = {one.key for module in modules().values() for one in module.GOLDEN}
    assert stored == compared | ELSEWHERE and not compared & ELSEWHERE


@pytest.mark.parametrize(("key", "smoothing"), [("ce", 0.0), ("ce_label_smoothing0.1", 0.1)])
def test_the_loss_of_the_task_is_the_stored_one_with_and_without_smoothing(key: str, smoothing: float):
    for case in CASES:
        logits = torch.tensor(NUMBERS[f"{case}/input/student_logits"], requires_grad=True)
        target = torch.tensor(NUMBERS[f"{case}/input/target"])
        losses, _ = Classification(label_smoothing=smoothing).step(_Fixed(logits), torch.zeros(len(logits), 1), target)
        value = losses["cross_entropy"]
        value.backward()
        assert value.item() == pytest.approx(float(NUMBERS[f"{case}/{key}/value"]), rel=1e-9)
        assert torch.allclose(logits.grad, torch.tensor(NUMBERS[f"{case}/{key}/grad/student_logits"]), rtol=1e-9, atol=1e-15)


class _Fixed(nn.Module):
    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, inputs: torch.Tensor) -> Taps:
        return Taps(logits=self.logits)


def test_the_variance_of_vid_is_5_at_the_start():
    stages = maps((4, 2, 4, 4), (4, 3, 4, 4)), maps((4, 2, 4, 4), (4, 5, 4, 4))
    loss = parts.load("loss", "vid").build(parts.load("loss", "vid").options())
    loss.prepare(Pair(*(Taps(logits=torch.zeros(4, 3), stages=side) for side in stages)))
    for scale in loss.log_scales:
        assert torch.allclose(functional.softplus(scale.double()) + 1e-5, torch.full_like(scale.double(), 5.0), rtol=1e-6)


def test_the_sign_of_a_singular_vector_is_that_of_a_sum_above_zero():
    part = parts.load("loss", "kdsvd")
    loss = part.build(part.options())
    (vectors,) = maps((6, 5, 2))
    signed = loss._signed(vectors, 0)
    assert torch.equal(signed, loss._signed(-vectors, 0)) and (signed.sum(1) > 0).all()
    assert torch.equal(signed.abs(), vectors.abs())


def test_fitnet_refuses_a_smaller_map_that_is_not_half_as_high():
    part = parts.load("loss", "fitnet")
    for height, refused in ((2, False), (3, True), (1, True)):
        sides = [maps((2, 3, 4, 4), (2, 3, 4, 4), (2, 3, size, size)) for size in (height, 4)]
        loss = part.build(part.options())
        pair = Pair(*(Taps(logits=torch.zeros(2, 3), stages=side) for side in sides))
        if refused:
            with pytest.raises(RefusedError):
                loss.prepare(pair)
        else:
            loss.prepare(pair)


def test_a_teachers_zero_counts_as_inactive_for_ab():
    part = parts.load("loss", "ab")
    student, teacher = torch.full((1, 2, 2, 2), 0.5), torch.zeros(1, 2, 2, 2)

    def value(teacher: torch.Tensor) -> float:
        # Equal widths, so that there is no connector; the first stage is left out.
        sides = [Taps(logits=torch.zeros(1, 3), stages=(one, one), preact=(one, one)) for one in (student, teacher)]
        loss = part.build(part.options())
        loss.prepare(Pair(*sides))
        return loss(*sides, Batch()).item()

    assert value(teacher) == value(teacher - 1) != value(teacher + 1)


def test_the_projector_of_kdpp_is_a_norm_then_dropout_of_a_half_then_a_linear_layer():
    part = parts.load("loss", "kdpp")
    loss = part.build(part.options({"projector": True}))
    features = torch.randn(6, 5)
    sides = Taps(logits=torch.zeros(2, 3), pooled=torch.zeros(2, 4)), Taps(logits=torch.zeros(2, 3), pooled=torch.zeros(2, 5))
    loss.prepare(Pair(*sides, labels=torch.arange(6) % 3, teacher_features=features))
    kinds = [type(one).__name__ for one in loss.map if type(one).__name__ not in ("Unflatten", "Flatten")]
    assert kinds == ["BatchNorm", "Dropout", "Linear"] and next(one for one in loss.map if isinstance(one, nn.Dropout)).p == 0.5
