"""`python -m kdbench.train.profile RESULTS CELL...` measures the cost of each cell's objective, one student alone with its teacher:
once per (pair, objective, recipe, numerics, device)."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdbench.cell import Cell
from kdbench.errors import DamagedError
from kdbench.isolation import isolated
from kdbench.losses._base import Batch, Taps
from kdbench.process_log import log
from kdbench.record import Profile, setting_of
from kdbench.store import Store
from kdbench.train.build import Setup
from kdbench.train.circumstance import choose_device, circumstance, device_name
from kdbench.train.member import Member
from kdbench.train.numerics import settle, timed_s
from kdbench.train.stream import BatchPlan
from kdbench.train.teacher import LiveTeacher

WARM_UP_STEPS = 3
MEASURED_STEPS = 20
LISTEN_S = 0.5
READ_IMAGES = 64
"""Images of a batch that are decoded and transformed to measure how fast one process reads."""


def main(arguments: Sequence[str] | None = None) -> int:
    reader = argparse.ArgumentParser(prog="kdbench.train.profile", description=__doc__)
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
            if not _is_measured(store, name):
                store.put_profile(name, measure(store, cell, asked.data, device))
            print(json.dumps({"cell": cell_id, "profile": name}), flush=True)
        except Exception as error:
            log(f"cost of {cell_id} not measured: {type(error).__name__}: {error}")
            status = 1
    return status


def profile_id(store: Store, cell: Cell, device: torch.device) -> str:
    """A hash of the setting, which does not depend on the repeat."""
    return hashlib.sha256(json.dumps([setting_of_cell(store, cell), device_name(device)], sort_keys=True).encode()).hexdigest()[:12]


def setting_of_cell(store: Store, cell: Cell) -> dict[str, Any]:
    return setting_of(cell.config, store.cell(cell.depends["teacher"]).config["student"] if cell.depends else None)


def _is_measured(store: Store, name: str) -> bool:
    """Whether the profile exists, with all parts. A damaged one is set aside with a message."""
    try:
        profile = store.profile(name)
        return profile is not None and "forward_ms" in profile.result
    except DamagedError as error:
        log(f"{error}; it is set aside as {store.set_aside(store.profile_file(name)).name}")
        return False


def measure(store: Store, cell: Cell, data_folder: Path, device: torch.device) -> Profile:
    """The profile of a cell's setting: milliseconds (median and quartiles), images per second, peak memory, and what the loss adds."""
    settle(cell.config["numerics"], device)
    setup = Setup.of(cell, data_folder, device).with_teacher(store, cell)
    setup.data.read_with(os.cpu_count() or 1)
    member = setup.member(cell)
    work = _Step(member, BatchPlan.of(cell.config, setup.data), setup.teacher)
    beside = psutil.cpu_percent(LISTEN_S) / 100  # the share of the processors that other processes use while this one waits
    clocks: dict[str, list[float]] = {}
    for turn in range(WARM_UP_STEPS + MEASURED_STEPS):
        spent = {name: timed_s(device, act) * 1e3 for name, act in work.parts().items()}
        spent["student"] = spent["forward"] + spent["backward"]
        for name, milliseconds in spent.items() if turn >= WARM_UP_STEPS else ():
            clocks.setdefault(name, []).append(milliseconds)
    times = {f"{name}_ms": _quartiles(values) for name, values in clocks.items()}
    images = len(work.index)
    peak_gib = _peak_gib(work, device)
    with FlopCounterMode(display=False) as counter:  # of the matrix products in the distillation terms, forward and backward
        if member.objective.terms:
            work._loss()
    result = {
        **times,
        "images_per_s": images / times["step_ms"]["median"] * 1e3,
        "peak_mem_gib": peak_gib,
        "added_parameters": sum(weight.numel() for weight in member.objective.parameters() if weight.requires_grad),
        "added_flops": counter.get_total_flops(),
        "batch_size": images,
        "steps": MEASURED_STEPS,
        **setup.data.reading_rates(work.index[:READ_IMAGES], work.views[:READ_IMAGES]),
        "readers": os.cpu_count() or 1,
    }
    return Profile(setting_of_cell(store, cell), device_name(device), result, {**circumstance(device, 1), "others_at_work": beside})


class _Step:
    """One batch and the parts of its training step. The loss is timed on detached taps, since a backward pass cannot be divided."""

    def __init__(self, member: Member, plan: BatchPlan, teacher: LiveTeacher | None):
        self.member, self.plan, self.teacher = member, plan, teacher if member.objective.terms else None
        self.index, self.views = next(plan.epoch(0))
        self.second = None if (asked := member.objective.augmentation) is None else plan.second_views(asked)
        self.place = None if self.second is None else next(self.second.epoch(0))
        self.inputs, self.targets, self.seen = self._data()
        self.batch = Batch(self.targets, torch.as_tensor(self.index, device=member.device), 0, 0)
        self.divided = list(member.parts(self.inputs, self.targets, *self._teacher()))
        member.set_modes()
        self.outputs: list[tuple[Any, Taps]] = []
        for _, _, inputs, targets, batch, _ in self.divided:
            with isolated(0), torch.no_grad():
                self.outputs.append(member.forward(inputs, targets, batch))

    def parts(self) -> dict[str, Callable[[], Any]]:
        teacher = {"teacher": self._teacher} if self.teacher else {}
        loss = {"loss": self._loss} if self.member.objective.terms else {}
        first, last = {"step": self._whole, "data": self._data}, {"optimizer": self.member.optimizer.step}
        return {**first, **teacher, "forward": self._forward, "backward": self._backward, **loss, **last}

    def _data(self) -> tuple[Any, Any, Any]:
        """Images, targets, and the images in their second view (None: there is none)."""
        first = self.plan.mixed(*self.plan.data.batch("train", self.index, self.views), self.member.task, 0)
        if self.second is None or self.place is None:
            return *first, None
        return *first, self.second.mixed(*self.second.data.batch("train", *self.place), self.member.task, 0)[0]

    def _teacher(self) -> tuple[Batch, Taps | None]:
        """The batch, with the teacher's outputs of the second view where there is one, and those of the images."""
        if self.teacher is None:
            return self.batch, None
        asked = ("matched", self.member.objective.augmentation or "")
        views = {} if self.second is None else {asked: (self.seen, self.teacher.taps(self.seen))}
        return replace(self.batch, second_views=views), self.teacher.taps(self.inputs)

    def _whole(self) -> None:
        # Readers load images from files ahead of training, so that loading is not part of a step.
        inputs, targets, _ = (self.inputs, self.targets, self.seen) if self.plan.data.from_files else self._data()
        self.member.step(inputs, targets, *self._teacher())

    def _forward(self) -> None:
        self.losses: list[Tensor] = []
        for _, _, inputs, targets, batch, _ in self.divided:
            with isolated(0):
                losses, _ = self.member.forward(inputs, targets, batch)
            self.losses.append(torch.stack(list(losses.values())).sum())

    def _backward(self) -> None:
        torch.stack(self.losses).sum().backward()

    def _loss(self) -> None:
        for (_, _, _, _, batch, teacher), (task_losses, taps) in zip(self.divided, self.outputs, strict=True):
            free = taps.map(lambda tensor: tensor.detach().requires_grad_(tensor.is_floating_point()))
            values = self.member.objective(task_losses, free, teacher, batch)
            terms: list[Tensor] = [weighted for name, (_, weighted) in values.items() if name != "task"]
            torch.stack(terms).sum().backward()


def _quartiles(values: Sequence[float]) -> Mapping[str, float]:
    q1, median, q3 = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return {"median": median, "q1": q1, "q3": q3}


def _peak_gib(work: _Step, device: torch.device) -> float | None:
    """The peak memory of a step, without what was allocated before it (weights, optimiser state, data)."""
    work.member.optimizer.zero_grad(set_to_none=True)  # gradients are part of the step
    peak = peak_bytes(device, work._whole)
    return None if peak is None else peak / 2**30


def peak_bytes(device: torch.device, act: Callable[[], Any]) -> int | None:
    """The most memory that a call holds at once, without what was allocated before it; None where that is not known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        act()
    held = peak = 0
    for _, size in sorted(_allocations(seen)):
        held += size
        peak = max(peak, held)
    return peak or None


def _allocations(profiled: Any) -> list[tuple[int, int]]:
    """(time, bytes, negative when freed) of every CPU allocation, from the profiler's event tree, since its public events do not contain
    what operators allocate. The tree is private: the list is empty if it has changed."""
    found: list[tuple[int, int]] = []
    try:
        waiting = list(profiled.profiler.kineto_results.experimental_event_tree())
        while waiting:
            event = waiting.pop()
            waiting += event.children
            if (size := getattr(event.extra_fields, "alloc_size", None)) is not None:
                found.append((event.start_time_ns, size))
    except AttributeError:
        return []
    return found


if __name__ == "__main__":
    sys.exit(main())
