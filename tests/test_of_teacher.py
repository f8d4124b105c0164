"""What a relational loss needs of the teacher is computed once a step, and none of it can change another student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench import parts
from kdbench.errors import LossError, RefusedError
from kdbench.losses._base import Batch, Loss, Taps
from kdbench.losses.sp import SP
from kdbench.plan.matrix import Plan
from kdbench.store import Store

OWN = """
import torch
from kdbench.losses._base import Loss

class Own(Loss):
    needs = frozenset({"last"})
    laws = frozenset({"permutation"})

    def __init__(self, *, draws: bool = False):
        super().__init__()
        self.draws = draws

    def of_teacher(self, teacher):
        if self.draws:
            torch.rand(3)
        return [teacher.last.mean((1, 2, 3)).mul_(2)]

    def forward(self, student, teacher, batch):
        (wanted,) = teacher.known
        wanted.add_(1)  # its own copy
        return (student.last.mean((1, 2, 3)) - wanted).square().mean() * (1 + torch.rand(()))
"""


def taps(seed: int, grad: bool = False) -> Taps:
    draws = torch.Generator().manual_seed(seed)
    maps = torch.rand(6, 4, 3, 3, generator=draws, requires_grad=grad)
    return Taps(logits=torch.rand(6, 5, generator=draws, requires_grad=grad), pooled=torch.rand(6, 4, generator=draws), last=maps)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    real = SP.of_teacher
    monkeypatch.setattr(SP, "of_teacher", lambda self, teacher: seen.append(len(teacher.last)) or real(self, teacher))
    return seen


def test_it_is_computed_once_for_the_taps_of_a_step_and_again_for_others_or_other_options(counted: list[int]) -> None:
    student, teacher = taps(1, grad=True), taps(2)
    values = [float(SP()(student, teacher).detach()) for _ in range(3)]
    assert counted == [6] and len(set(values)) == 1
    SP(norm="frobenius")(student, teacher)
    SP()(student, taps(3))
    SP()(student, teacher.map(lambda tensor: tensor.flip(0)))
    assert counted == [6] * 4


def test_a_step_of_a_bundle_computes_it_once_and_of_shuffled_rows_once_more(
    plan_of: Callable[..., Plan], train: Callable[..., int], counted: list[int]
) -> None:
    students = "{small: {model: small_mobile, widths: [4, 6]}, other: {model: small_mobile, widths: [4, 8]}}"
    plan = plan_of(objectives="{sp: , light: {loss: sp, weight: 1, weight_from: assumed}}", repeats="1", students=students)
    assert train(plan) == 0
    assert counted == [16, 16, 8] * 3


def test_values_from_what_is_known_need_no_taps_of_the_teacher() -> None:
    student, teacher = taps(1, grad=True), taps(2)
    for name, options in (("sp", {}), ("cka", {}), ("cka", {"norms": "teacher"}), ("rcka", {}), ("pkt", {"tap": "last"})):
        part = parts.load("loss", name)
        loss = part.build(part.options(options))
        whole = loss(student, teacher)
        bare = Taps(relations={loss.relation: loss.known(teacher)})
        assert torch.equal(loss(student, bare), whole)
        with pytest.raises(RefusedError, match="needs the teacher's"):
            loss(student, Taps(pooled=torch.ones(6, 4)))


def test_a_loss_that_reads_a_tap_of_the_teacher_beside_what_it_computed_is_told_so() -> None:
    class Reads(SP):
        def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
            return teacher.last.mean() * student.last.mean()

    with pytest.raises(LossError, match="reads the teacher's 'last'"):
        Reads()(taps(1, grad=True), taps(2))


def test_a_users_loss_that_writes_or_draws_gives_the_same_alone_and_beside_others(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    objectives = (
        "{a: {loss: 'own.py:Own', weight: 1}, b: {loss: 'own.py:Own', draws: true, weight: 1}, c: {loss: 'own.py:Own', weight: 2}, sp: }"
    )
    plan = plan_of(objectives=objectives, repeats="1")
    stores = [Store(tmp_path / name) for name in ("together", "alone", "table")]
    assert train(plan, store=stores[0]) == train(plan, store=stores[1], side_by_side=1) == 0
    assert train(plan, store=stores[2], provider="table") == 0

    def results(store: Store) -> dict[str, Any]:
        return {cell_id: record.result for cell_id in plan.cells if (record := store.record(cell_id))}

    assert results(stores[0]) == results(stores[1]) == results(stores[2]) and len(results(stores[0])) == len(plan.cells)
    assert {record.circumstance["teacher"] for cell_id in plan.cells if (record := stores[2].record(cell_id))} == {None, "live"}


def test_a_loss_without_it_has_no_relation() -> None:
    assert not any(parts.load("loss", name).make.of_teacher is not Loss.of_teacher for name in ("kd", "at", "rkd", "cc"))
    assert SP().relation == SP(norm="row_l2").relation != SP(norm="frobenius").relation
