"""What a training step and its surroundings cost, counted instead of timed."""

from __future__ import annotations

import gc
import itertools
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.overhead import planning
from benchmarks.training import NOISE, Bench, Quiet
from kdbench import parts
from kdbench.datasets._base import to_device
from kdbench.errors import StoppedError
from kdbench.plan.matrix import Plan
from kdbench.plan.schema import NUMERICS
from kdbench.store import Store
from kdbench.train.checkpoint import Saver
from kdbench.train.loop import train
from kdbench.train.numerics import settle
from tests.losses.toys import for_classifiers
from tests.test_every_loss import SUITE, every_form

CPU = torch.device("cpu")
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "unique_consecutive", "bincount"}
"""Operations whose result, or its size, the host has to know: on a GPU it waits until all work is done."""
METHODS = {"item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__"}
"""What reads a tensor in Python; on the CPU some of it is no operation."""
FROM_HOST = {"tensor", "as_tensor", "asarray", "array"}
"""With a device, PyTorch copies host numbers there and waits. `kdbench.datasets._base.to_device` does not wait."""
UNAVOIDABLE = {"mlkd": "the second view of each image is augmented by Pillow, on the host"}
"""Losses with which a step has to wait, with the reason."""


class Steps(TorchDispatchMode):
    """What the operations of a training are, step by step: it is the `stop` of the loop, which asks it before each step."""

    def __init__(self, steps: int):
        super().__init__()
        self.left = steps
        self.operations: list[list[str]] = [[]]
        self.waits: list[list[str]] = [[]]
        self.kept: list[tuple[int, int]] = []
        """(tensors, bytes) made since the start that are still there when a step begins."""
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.calls = _Calls(self)

    def __enter__(self) -> Steps:
        self.calls.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        self.calls.__exit__(*how)

    def __call__(self) -> bool:
        if len(self.kept) in (2, 10):
            gc.collect()
        self.made = {place: one for place, one in self.made.items() if not one[0].expired()}
        self.kept.append((len(self.made), sum(size for _, size in self.made.values())))
        self.operations.append([])
        self.waits.append([])
        self.left -= 1
        return self.left < 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made, name = func(*args, **(kwargs or {})), str(func.overloadpacket).removeprefix("aten.")
        self.operations[-1].append(name)
        places = args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else ()
        if name in READS or any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in places):
            self.waits[-1].append(name)
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, Tensor):
                ref = StorageWeakRef(one.untyped_storage())
                self.made.setdefault(ref.cdata, (ref, one.untyped_storage().nbytes()))
        return made


class _Calls(TorchFunctionMode):
    def __init__(self, steps: Steps):
        super().__init__()
        self.steps = steps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in METHODS or (name in FROM_HOST and (kwargs or {}).get("device") is not None):
            self.steps.waits[-1].append(name)
        return func(*args, **(kwargs or {}))


def counted(bench: Bench, steps: int) -> Steps:
    """The first steps of a training; entry i of its lists is step i, and entry 0 what came before the first."""
    with Steps(steps) as found, pytest.raises(StoppedError):
        train(bench.members, bench.plan, bench.teacher, Quiet(), stop=found)
    return found


@pytest.fixture
def bench_of(plan_of: Callable[..., Plan], tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    def bench(**changes: str) -> Bench:
        plan = plan_of(**changes)
        teacher = plan.teachers[0].cell
        return Bench.of([cell for cell in plan.cells.values() if cell.id != teacher.id], teacher, CPU, tmp_path)

    yield bench
    settle(NUMERICS["exact"], CPU)  # as other tests expect


def default_presets() -> str:
    first: dict[str, str] = {}
    for line in every_form(smallest_map=2).splitlines():
        first.setdefault(line.split(":")[0].strip('"'), line)
    return "\n".join(first.values())


@pytest.mark.slow
def test_no_step_of_any_loss_waits_for_the_device_or_costs_more_than_the_one_before(bench_of: Callable[..., Bench]) -> None:
    noise = f"{{name: '{NOISE}', images: 200, classes: 10, channels: 1, side: 8, padding: 1}}"
    bench = bench_of(**SUITE, dataset=noise, objectives=default_presets())
    shelf = {place: {term["loss"] for term in member.objective.terms} for place, member in enumerate(bench.members)}
    assert set().union(*shelf.values()) == set(filter(for_classifiers, parts.names("loss")))
    waiting = [place for place, losses in shelf.items() if losses & set(UNAVOIDABLE)]

    found = counted(bench, 10)
    assert len(set(map(len, found.operations[2:-1]))) == 1
    assert found.kept[10] == found.kept[2]
    members = [member for place, member in enumerate(bench.members) if place not in waiting]
    assert counted(replace(bench, members=tuple(members)), 4).waits[2:] == [[]] * 4
    for place in waiting:  # else its reason is no longer one
        assert counted(replace(bench, members=(bench.members[place],)), 2).waits[2]


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: (x > 0).nonzero(), "nonzero"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), "tensor"),
    ],
)
def test_what_waits_for_a_device_is_noticed_on_the_cpu(read: Callable[[Tensor], Any], name: str) -> None:
    x = torch.ones(3)
    with Steps(1) as found:
        to_device([1.0, 2.0], x.device).mul_(2)
        torch.where(x > 0, x, 0.0)
        assert found.waits == [[]]
        read(x)
    assert name in found.waits[0]


def test_the_fiftieth_step_makes_the_operations_of_the_fifth(bench_of: Callable[..., Bench]) -> None:
    recipe = "{name: short, epochs: 1, batch_size: 4, lr: 0.02, milestones: [], ema: 0.9, clip_grad: 1.0}"
    bench = bench_of(dataset="{name: digits, per_class: 25}", recipe=recipe, objectives="[ce, kd, sp]", repeats="1")
    found = counted(bench, 50)
    assert found.operations[50] == found.operations[5]


def test_the_loop_adds_a_fixed_number_of_small_operations_to_a_bare_step(bench_of: Callable[..., Bench]) -> None:
    more = []
    for depth in (8, 20):
        bench = bench_of(students=f"{{s: {{model: cifar_resnet, depth: {depth}, widths: [4, 4, 8, 8]}}}}", objectives="[kd]", repeats="1")
        (member,), counts = bench.members, []
        for act in (partial(bench.bare, member), partial(bench.epoch, bench.members, bench.teacher)):
            act()  # the optimiser makes its state
            with Steps(sys.maxsize) as found:
                act()
            counts.append(len(found.operations[0]) / bench.steps)
        more.append(counts[1] - counts[0])
    assert more[0] == more[1] <= 30


def test_no_option_of_a_recipe_makes_a_step_wait(bench_of: Callable[..., Bench]) -> None:
    """What remains is on the host: with `ema` and Adam PyTorch reads the number of updates, which is there; of mixed images its `one_hot`
    checks the labels on the CPU alone."""
    base = "name: short, epochs: 2, batch_size: 8, lr: 0.02, milestones: []"
    for options in (
        "clip_grad: 1.0, accumulate: 2, warmup_epochs: 1",
        "optimizer: nesterov, schedule: cosine, decay_norms_and_biases: false, label_smoothing: 0.1",
    ):
        bench = bench_of(recipe=f"{{{base}, {options}}}", objectives="[ce, kd]", repeats="1")
        assert counted(bench, 3).waits[2:] == [[]] * 3, options
    bench = bench_of(recipe=f"{{{base}, ema: 0.9}}", repeats="1")
    counted(bench, 1)
    assert all(member.average and member.average.n_averaged.device == CPU for member in bench.members)


def test_a_bundle_makes_one_forward_of_its_teacher_a_step_and_one_for_each_further_pairing_or_view(bench_of: Callable[..., Bench]) -> None:
    bench, calls = bench_of(repeats="1"), list[int]()
    bench.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    counted(replace(bench, members=bench.members[:1]), 2)
    assert not bench.members[0].objective.terms and not calls
    cases = {
        "[ce, kd]": 1,
        "[ce, kd, sp, rkd, pkt]": 1,
        "{ce: , kd: , within: {loss: kd, pairing: shuffled}}": 1,
        "{ce: , kd: {}, other: {loss: kd, pairing: shuffled_globally}, sp: {pairing: shuffled_globally}}": 2,
        "{ce: , kd: {}, other: {loss: kd, pairing: shuffled_globally}, third: {loss: kd, pairing: shuffled_in_class}}": 3,
        "[ce, kd, mlkd]": 2,
    }
    for objectives, forwards in cases.items():
        bench, calls = bench_of(objectives=objectives, repeats="1", baselines="[ce]"), list[int]()
        bench.teacher.model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        counted(bench, 2)
        assert len(calls) == 2 * forwards, objectives


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told to keep memory")
def test_a_step_takes_its_memory_from_the_step_before_and_not_from_the_system(bench_of: Callable[..., Bench]) -> None:
    noise = f"{{name: '{NOISE}', images: 400, classes: 10}}"
    bench = bench_of(dataset=noise, recipe="{name: short, epochs: 1, batch_size: 64, milestones: []}", repeats="1")
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bench.epoch(bench.members, bench.teacher)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults) < 200 * bench.steps  # thousands, with the defaults of glibc


def test_fused_optimisers_are_those_of_fast_numerics_alone(bench_of: Callable[..., Bench]) -> None:
    for optimizer, can in {"sgd": True, "nesterov": True, "adam": True, "adamw": True, "lamb": False, "lion": False}.items():
        recipe = f"{{name: short, epochs: 1, batch_size: 16, milestones: [], optimizer: {optimizer}}}"
        for numerics in ("exact", "fast"):
            bench = bench_of(recipe=recipe, numerics=numerics, repeats="1")
            assert bool(bench.members[0].optimizer.defaults.get("fused")) == (can and numerics == "fast")
            counted(bench, 1)


class Clock:
    """Time that goes on when it is told, and while a file is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, write_s: float):
        self.now_s, self.saved_s, write = 1000.0, list[float](), Store.write_sealed

        def slow(store: Store, path: Path, data: bytes) -> None:
            self.saved_s.append(self.now_s)
            self.now_s += write_s
            write(store, path, data)

        monkeypatch.setattr("time.monotonic", lambda: self.now_s)
        monkeypatch.setattr(Store, "write_sealed", slow)


@pytest.mark.parametrize(("every_s", "write_s", "gap_s"), [(30.0, 0.01, 31.0), (30.0, 0.5, 101.0), (0.0, 0.5, 2.0)])
def test_checkpoints_take_at_most_a_hundredth_of_the_time_unless_each_is_asked_for(
    every_s: float, write_s: float, gap_s: float, bench_of: Callable[..., Bench], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(repeats="1")  # of two students
    clock = Clock(monkeypatch, write_s)
    saver = Saver(store, bench.setup.data, {}, every_s, log=lambda _: None)
    for epoch in range(600):
        clock.now_s += 1
        for member in bench.members:
            saver.save(member, (epoch, 0))
    firsts = clock.saved_s[:: len(bench.members)]
    assert len(firsts) > 3
    for before, after in itertools.pairwise(firsts):
        assert gap_s - 1.1 <= after - before <= gap_s + 1.1


def calls_of_planning(cells: int, folder: Path) -> Counter[str]:
    """How often each function is called, Python's and C's."""
    found: Counter[str] = Counter()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found[frame.f_code.co_name] += 1
        elif event == "c_call":
            found[argument.__name__] += 1

    plan, before = planning(cells, folder), sys.getprofile()
    sys.setprofile(count)
    try:
        plan()
    finally:
        sys.setprofile(before)
    return found


def test_planning_makes_the_same_calls_for_each_further_cell_and_no_further_reads_or_probes(tmp_path: Path) -> None:
    planning(40, tmp_path)()  # imports, and what is made once
    few, more, most = (calls_of_planning(cells, tmp_path) for cells in (400, 800, 1600))
    for name in ("open", "probe_model"):
        assert few[name] == most[name], name
    first, second = more.total() - few.total(), most.total() - more.total()
    assert second < 2.1 * first
    assert second / 800 < 300
