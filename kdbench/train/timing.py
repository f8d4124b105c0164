"""What the parts of a training take on this device: for estimates of the time of a suite, not for comparisons of losses (`profile`)."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from kdbench.cell import Cell
from kdbench.isolation import isolated
from kdbench.losses._base import Batch
from kdbench.store import Store
from kdbench.store.step_times import StepTimes, stream_of, student_of
from kdbench.train.build import Setup
from kdbench.train.circumstance import device_name, installed
from kdbench.train.evaluate import predict_all
from kdbench.train.numerics import timed_s
from kdbench.train.stream import BatchPlan

LEAST_TURNS, MOST_TURNS = 2, 10
BUDGET_S = 0.2
"""After so many seconds of one measurement it has enough turns."""


def step_times(store: Store, device: torch.device) -> StepTimes:
    """What was measured in this results folder on this device with these libraries."""
    return StepTimes(store, {"device": device_name(device), "torch": torch.__version__, "timm": installed("timm")})


def once_s(device: torch.device, act: Callable[[], Any]) -> float:
    """On the CPU the seconds that its one thread computes: what other processes do meanwhile does not count."""
    if device.type != "cpu" or torch.get_num_threads() > 1:
        return timed_s(device, act)
    began_s = time.process_time()
    act()
    return time.process_time() - began_s


def usual_s(device: torch.device, act: Callable[[], Any]) -> float:
    """The median of a few turns."""
    turns: list[float] = []
    while len(turns) < LEAST_TURNS or (len(turns) < MOST_TURNS and sum(turns) < BUDGET_S):
        turns.append(once_s(device, act))
    return statistics.median(turns)


def time_worker(times: StepTimes) -> None:
    """How long a process that starts workers takes to import what they need: once on a machine."""
    if times.get("worker") is None:
        times.put("worker", import_s=_import_s())


@cache
def _import_s() -> float:
    before = os.times()
    subprocess.run([sys.executable, "-m", "kdbench.train.nursery"], input=b"", check=False)
    spent = os.times()
    return sum(getattr(spent, name) - getattr(before, name) for name in ("children_user", "children_system"))


def time_data(times: StepTimes, cell: Cell, data_folder: Path, device: torch.device) -> Setup:
    """Loading and batches of a cell's images, and how many there are. Returns the cell's setup, without its teacher."""
    found: list[Setup] = []
    load_s = once_s(device, lambda: found.append(Setup.of(cell, data_folder, device)))
    (setup,) = found
    data, plan = setup.data, BatchPlan.of(cell.config, setup.data)
    place = next(plan.epoch(0))

    def batch() -> None:
        with closing(data.batches("train", [place])) as batches, isolated(0):
            _, targets = plan.mixed(*next(batches), setup.task, 0)
        Batch(targets, torch.as_tensor(place[0], device=device), 0, 0)

    sizes = {"pool": data.size("train") + data.size("val"), "test": data.size("test")}
    times.put(
        "data", stream_of(cell.config), data_s=usual_s(setup.device, batch), load_s=load_s, from_files=float(data.from_files), **sizes
    )
    return setup


def time_teacher(times: StepTimes, cell: Cell, setup: Setup, inputs: Any) -> None:
    """The forward pass of the setup's teacher for a batch of a student's cell."""
    assert setup.teacher is not None
    forward_s = usual_s(setup.device, partial(setup.teacher.taps, inputs))
    times.put("teacher", stream_of(cell.config), setup.teacher.cell.config["student"], forward_s=forward_s)


def time_student(times: StepTimes, cell: Cell, setup: Setup, steps: Sequence[Any], **more: float) -> float:
    """The steps of a cell on a whole batch and on the last of an epoch, both with the teacher's outputs, and its evaluation. Returns the
    seconds of a whole step."""
    whole, last = steps
    data, device = setup.data, setup.device
    build_s = once_s(device, lambda: setup.member(cell))
    member = setup.member(cell)
    member.step(*whole)
    step_s = usual_s(device, lambda: member.step(*whole))
    images = min(data.evaluation_batch, data.size("test"))
    predict = partial(predict_all, setup.task, [member.deployed], data, "test", member.numerics, images)
    numbers = {
        "step_s": step_s,
        "first_s": once_s(device, lambda: member.step(*whole, first=True)),
        "last_s": usual_s(device, lambda: member.step(*last)),
        "predict_s": usual_s(device, predict) / images,
        "build_s": build_s,
    }
    teacher = setup.teacher and setup.teacher.cell.config["student"]
    times.put("student", stream_of(cell.config), student_of(cell.config, teacher), **numbers, **more)
    return step_s
