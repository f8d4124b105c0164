"""What an objective costs: measured once per (pair, objective, recipe, numerics, device), one student alone with a live teacher.

`python -m kdbench.run.cost RESULTS CELL...` measures each cell's setting, one after another, warmed up and synchronised.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdbench.cell import Cell
from kdbench.losses._base import Batch, Taps
from kdbench.run import failure
from kdbench.run.build import load_data, make_objective, make_student, make_task
from kdbench.run.member import Member
from kdbench.run.numerics import autocast, settle
from kdbench.run.stream import BatchPlan
from kdbench.run.teacher import Live, load_teacher
from kdbench.run.worker import choose_device, circumstance
from kdbench.store import Store

WARM_UP_STEPS = 3
MEASURED_STEPS = 20
LISTEN_S = 0.5
SETTING = ("task", "dataset", "student", "objective", "recipe", "numerics")
SCHEMA = 1


def main(arguments: Sequence[str] | None = None) -> int:
    reader = argparse.ArgumentParser(prog="kdbench.run.cost", description=__doc__)
    reader.add_argument("results", type=Path)
    reader.add_argument("cells", nargs="+")
    reader.add_argument("--data", type=Path, default=Path("data"))
    reader.add_argument("--device", default="auto")
    asked = reader.parse_args(arguments)
    store, device = Store(asked.results), torch.device(choose_device(asked.device))
    status = 0
    for cell_id in asked.cells:
        cell = store.cell(cell_id)
        name = profile_id(store, cell, device)
        try:
            if store.profile(name) is None:
                store.put_profile(name, measure(store, cell, asked.data, device))
            print(json.dumps({"cell": cell_id, "profile": name}), flush=True)
        except Exception as error:
            failure.note(f"cost of {cell_id} not measured: {type(error).__name__}: {error}")
            status = 1
    return status


def device_name(device: torch.device) -> str:
    return circumstance(device, 1)["device"]


def profile_id(store: Store, cell: Cell, device: torch.device) -> str:
    """A hash of what is measured: the same setting is measured once, whatever its repeat."""
    teacher = store.cell(cell.depends["teacher"]).config["student"] if cell.depends else None
    setting = [{name: cell.config[name] for name in SETTING}, teacher, device_name(device)]
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:12]


def measure(store: Store, cell: Cell, data_folder: Path, device: torch.device) -> dict[str, Any]:
    """The profile of a cell's setting: milliseconds as median and quartiles, images a second, peak memory, what the loss adds."""
    settle(cell.config["numerics"], device)
    task, data = make_task(cell), load_data(cell, data_folder, device)
    data.read_with(os.cpu_count() or 1)
    teacher = teacher_cell = provider = None
    if cell.depends:
        teacher, teacher_cell = load_teacher(store, cell.depends["teacher"], cell, data, task, device)
        provider = Live(teacher, cell.config["numerics"])
    objective = make_objective(cell, data, task, device, teacher, teacher_cell and teacher_cell.config["student"])
    plan = BatchPlan.of(cell.config, data)
    member = Member(cell, make_student(cell, data, task, device), objective, task, plan.steps)
    work = _Step(member, plan, provider)
    beside = others_at_work()
    clocks: dict[str, list[float]] = {}
    for turn in range(WARM_UP_STEPS + MEASURED_STEPS):
        for name, act in work.parts().items():
            milliseconds = _timed(act, device)
            if turn >= WARM_UP_STEPS:
                clocks.setdefault(name, []).append(milliseconds)
    times = {f"{name}_ms": _quartiles(values) for name, values in clocks.items()}
    images = len(work.index)
    own = sum(weight.numel() for weight in objective.parameters() if weight.requires_grad)
    result = {
        **times,
        "images_per_s": images / times["step_ms"]["median"] * 1e3,
        "peak_mem_gib": _peak_gib(work, device),
        "added_parameters": own,
        "added_flops": _loss_flops(work),
        "batch_size": images,
        "steps": MEASURED_STEPS,
    }
    setting = {name: cell.config[name] for name in SETTING}
    return {
        "schema": SCHEMA,
        "setting": setting,
        "device": device_name(device),
        "result": result,
        "circumstance": {**circumstance(device, 1), "others_at_work": beside},
    }


def others_at_work() -> float:
    """The share of this machine's processors that others keep busy while this process waits: times taken beside them are theirs, too."""
    return psutil.cpu_percent(LISTEN_S) / 100


class _Step:
    """One batch, and the parts of a step over it. The parts are timed one by one, and the whole step besides: a backward pass
    cannot be cut at the taps while it runs, so the loss is timed on taps of its own."""

    def __init__(self, member: Member, plan: BatchPlan, teacher: Live | None):
        self.member, self.plan, self.teacher = member, plan, teacher
        self.index, self.views = next(plan.epoch(0))
        self.inputs, self.targets = plan.data.batch("train", self.index, self.views)
        self.batch = Batch(self.targets, torch.as_tensor(self.index, device=member.device), 0, 0)
        self.teacher_taps = self._teacher()
        member.trained.train()
        with torch.no_grad(), autocast(member.numerics, self.inputs):
            task_losses, taps = member.task.step(member.student, self.inputs, self.targets)
        self.task_losses, self.taps = task_losses, taps

    def parts(self) -> dict[str, Callable[[], Any]]:
        teacher = {"teacher": self._teacher} if self.teacher else {}
        loss = {"loss": self._loss} if self.member.objective.terms else {}
        return {
            "step": self._whole,
            "data": self._data,
            **teacher,
            "student": self._student,
            **loss,
            "optimizer": self.member.optimizer.step,
        }

    def _data(self) -> Any:
        return self.plan.data.batch("train", self.index, self.views)

    def _teacher(self) -> Taps | None:
        return self.teacher.taps(self.inputs, self.index, self.views) if self.teacher else None

    def _whole(self) -> None:
        # Readers keep ahead of training: what one image after the other would take is no part of a step.
        inputs, targets = (self.inputs, self.targets) if self.plan.data.from_files else self._data()
        self.member.step(inputs, targets, self.batch, self._teacher())

    def _student(self) -> None:
        with autocast(self.member.numerics, self.inputs):
            losses, _ = self.member.task.step(self.member.student, self.inputs, self.targets)
        torch.stack(list(losses.values())).sum().backward()

    def _loss(self) -> None:
        free = self.taps.map(lambda tensor: tensor.detach().requires_grad_(tensor.is_floating_point()))
        values = self.member.objective(self.task_losses, free, self.teacher_taps, self.batch)
        terms: list[Tensor] = [weighted for name, (_, weighted) in values.items() if name != "task"]
        torch.stack(terms).sum().backward()


def _timed(act: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def _quartiles(values: Sequence[float]) -> Mapping[str, float]:
    q1, median, q3 = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return {"median": median, "q1": q1, "q3": q3}


def _loss_flops(work: _Step) -> int:
    """Floating-point operations of matrix products in the distillation terms of one step, forward and backward."""
    if not work.member.objective.terms:
        return 0
    with FlopCounterMode(display=False) as counter:
        work._loss()
    return counter.get_total_flops()


def _peak_gib(work: _Step, device: torch.device) -> float | None:
    """The most memory that a step held at once beyond what lay there before it (weights, optimiser state, data)."""
    work.member.optimizer.zero_grad(set_to_none=True)  # gradients count to the step, and the profiler does not see older ones go
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work._whole()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work._whole()
    held = peak = 0
    for _, size in sorted(_allocations(seen)):
        held += size
        peak = max(peak, held)
    return peak / 2**30 if peak else None


def _allocations(profiled: Any) -> list[tuple[int, int]]:
    """(time, bytes, negative when freed) of every CPU allocation. The profiler's public events leave out what operators allocate,
    so this reads its event tree, which is not public: where that has changed, nothing is told."""
    found: list[tuple[int, int]] = []

    def walk(events: Any) -> None:
        for event in events:
            size = getattr(event.extra_fields, "alloc_size", None)
            if size is not None:
                found.append((event.start_time_ns, size))
            walk(event.children)

    try:
        walk(profiled.profiler.kineto_results.experimental_event_tree())
    except AttributeError:
        return []
    return found


if __name__ == "__main__":
    sys.exit(main())
