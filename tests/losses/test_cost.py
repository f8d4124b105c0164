"""What a call of a loss costs, counted instead of timed: operations, Python calls, the largest tensor."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench import parts
from kdbench.losses import _base
from kdbench.losses._base import Batch, Loss, Taps

from . import toys
from .toys import each


class Operations(TorchDispatchMode):
    """The operations below autograd, and the elements of the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.names.append(str(func.overloadpacket).removeprefix("aten."))
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.numel())
        return made


def built(name: str, **options: Any) -> Loss:
    part = parts.load("loss", name)
    return part.build(part.options(options))


def counted(loss: Loss, student: Taps, teacher: Taps, given: Batch) -> Operations:
    """Of one call with its gradient."""
    with Operations() as found:
        loss(student, teacher, given).backward()
    return found


class Nothing(Loss):
    needs = frozenset({"pooled"})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return student.pooled[0, 0]


def test_a_loss_that_computes_nothing_costs_three_operations_and_few_calls() -> None:
    student, teacher, calls = Taps(pooled=torch.ones(2, 3, requires_grad=True)), Taps(pooled=torch.ones(2, 3)), 0
    with Operations() as found:
        Nothing().parts(student, teacher, Batch())
    assert found.names == ["_lazy_clone", "detach", "_lazy_clone", "select", "select"]

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename == _base.__file__  # not those of the tests' own type checks

    loss, batch, before = Nothing(), Batch(), sys.getprofile()
    sys.setprofile(count)
    try:
        loss.parts(student, teacher, batch)
    finally:
        sys.setprofile(before)
    assert calls < 60


WAYS: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda x: x.detach().zero_(),
    "data": lambda x: x.data.mul_(0),
    "a view": lambda x: x.detach().view(-1)[3:].zero_(),
    "out=": lambda x: torch.mul(x.detach(), 0, out=x.detach()),
    "its storage": lambda x: x.untyped_storage().fill_(0),
    "NumPy": lambda x: x.detach().numpy().fill(0),
    "DLPack": lambda x: torch.from_dlpack(x.detach()).zero_(),
    "its address": lambda x: ctypes.memset(x.data_ptr(), 0, x.nbytes),
}


class Spoils(Nothing):
    def __init__(self, way: Callable[[Tensor], Any]):
        super().__init__()
        self.way = way

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        value = student.pooled.sum()
        for side in (student, teacher):
            self.way(side.pooled)
            assert side.pooled.view(-1)[-1] == 0
        return value


@each(WAYS.items())
def test_a_loss_that_writes_to_its_inputs_by_any_way_changes_no_others(name: str, way: Callable[[Tensor], Any]) -> None:
    plain, foreign = torch.ones(4, 5), torch.from_numpy(np.ones((4, 5), dtype=np.float32))
    part = torch.ones(8, 5)[2:6]
    for given in (plain, foreign, part):
        whole = given.clone()
        student, teacher = Taps(pooled=given.requires_grad_() * 1), Taps(pooled=given)
        saved = student.pooled.exp()  # its derivative is kept by the graph of the student
        Spoils(way)(student, teacher).backward(retain_graph=True)
        saved.sum().backward()
        assert torch.equal(student.pooled, whole) and torch.equal(teacher.pooled, whole)
        assert torch.allclose(given.grad, 1 + whole.exp())
        given.grad = None


def test_a_batch_of_triplets_is_never_in_memory_at_once() -> None:
    n = 320
    given = [Taps(pooled=toys.random(n, 4, seed=seed, dtype=torch.float32)) for seed in (1, 2)]
    given[0].pooled.requires_grad_()
    found = counted(built("rkd"), *given, Batch())
    assert found.largest < n**3 / 50


def test_the_matrices_of_cc_are_never_in_memory_at_once() -> None:
    n = 1024
    given = [Taps(pooled=toys.random(n, 4, seed=seed, dtype=torch.float32)) for seed in (1, 2)]
    given[0].pooled.requires_grad_()
    assert counted(built("cc"), *given, Batch()).largest <= n**2 / 8


@each((name,) for name in ("cc", "cka", "ickd", "nst", "pcka", "pkt", "sp", "wkd_f", "wkd_l"))
def test_a_larger_batch_takes_no_more_operations(name: str) -> None:
    preset = next(iter(parts.load("loss", name).make.presets))
    loss, given = toys.bound(name, preset)
    widths = given.student.last.shape[1], given.teacher.last.shape[1]
    counts = []
    for n in (6, 12):
        student, teacher = toys.leaves(toys.taps(n, widths[0], 1)), toys.taps(n, widths[1], 2)
        counts.append(len(counted(loss, student, teacher, toys.batch(n)).names))
    assert counts[0] == counts[1]
