"""Run a plan on this machine: one process a bundle, teachers first, `jobs` at a time. Idempotent: wanted - (done or alive)."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdbench.cell import Cell
from kdbench.errors import KdbenchError
from kdbench.plan.bundle import Bundle, bundles
from kdbench.plan.matrix import Plan
from kdbench.run import failure, watch
from kdbench.run.failure import STOPPED
from kdbench.store import Store

POLL_S = 0.2
LEAST_SHARE = 4
"""So many students at least are worth a process of their own while others are still at work: starting one takes seconds."""


@dataclass(frozen=True)
class Machine:
    """Where and how the bundles of a plan are trained. `checkpoint_every_s` None: the worker's default; `readers` are the
    processes that read ahead for each job, where data lie in files."""

    results: Path
    data: Path
    device: str = "auto"
    jobs: int = 1
    gpus: int = 0
    checkpoint_every_s: float | None = None
    side_by_side: int = 16
    readers: int = 1


class Told(Protocol):
    """Who hears how the run goes (a progress bar, or plain lines)."""

    def began(self, bundle: Bundle) -> None: ...
    def at(self, bundle: Bundle, epochs: int, of: int) -> None: ...
    def ended(self, bundle: Bundle, done: int, seconds: float) -> None: ...


@dataclass
class _Job:
    bundle: Bundle
    process: subprocess.Popen[bytes]
    log: Path
    slot: int
    started: float = field(default_factory=time.monotonic)


def wanted(store: Store, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are neither done nor being trained. A damaged record is set aside: its cell is wanted again."""
    found = []
    for cell in cells:
        now = watch.state(store, cell.id).name
        if now == "damaged":
            store.set_aside(store.file(cell.id, "record.json"))
        if now not in (*watch.DONE, "running"):
            found.append(cell)
    return found


def prepare(plan: Plan, store: Store) -> dict[str, Any]:
    """Write down what is asked: the suite's manifest and every cell that is not done. Returns the manifest."""
    store.check_writable()
    manifest = plan.manifest()
    with suppress(KdbenchError):  # there is none yet, or it is damaged, and is written anew
        manifest["profiles"] = store.manifest(plan.suite.name)["profiles"]
    for cell in plan.cells.values():
        if not store.is_done(cell.id):
            store.put_cell(cell)
    store.put_manifest(plan.suite.name, manifest)
    return manifest


def train(plan: Plan, store: Store, machine: Machine, told: Told) -> int:
    """Train whatever is wanted; returns how many cells were tried. What fails stays wanted, and the rest goes on.

    Cells that another process is training are waited for: they are done when it is, and wanted again if it dies.
    """
    manifest = store.manifest(plan.suite.name)
    fresh = wanted(store, list(plan.cells.values()))
    for cell in fresh:
        store.clear_failure(cell.id)
    pending = [cell for cell in plan.cells.values() if not store.is_done(cell.id)]
    waiting: list[Bundle] = []
    running: list[_Job] = []
    alone: set[str] = set()
    try:
        while pending or waiting or running:
            ready, pending = _ready(store, manifest, pending)
            waiting += bundles(ready, side_by_side=machine.side_by_side)
            free = [slot for slot in range(machine.jobs) if slot not in {job.slot for job in running}]
            if free and not pending:
                waiting = _shared_out(_shared_out(waiting, machine.jobs, LEAST_SHARE), len(free))
            for slot in free[: len(waiting)]:
                job = _start(waiting.pop(0), store, plan.suite.name, machine, slot)
                running.append(job)
                told.began(job.bundle)
            time.sleep(POLL_S)
            ended = [job for job in running if _over(job, store, told)]
            running = [job for job in running if job not in ended]
            for job in ended:
                pending += _left_over(job, store, waiting, alone)
    finally:
        _stop(running)
    return len(fresh)


def _ready(store: Store, manifest: Mapping[str, Any], pending: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """(cells that can be trained now, cells that must wait); what waits for nothing any more is written down as blocked."""
    ready, waiting = [], []
    unable: dict[str, str | None] = {}
    there: dict[str, bool] = {}
    mine = {cell.id for cell in pending}
    for cell in pending:
        # The teacher first, once: ten thousand cells may wait for it, and the disk may be far away.
        teacher = cell.depends.get("teacher")
        if teacher is not None and teacher not in unable:
            unable[teacher] = why_unable(store, manifest, teacher, teacher in mine)
            there[teacher] = store.is_done(teacher)
        if teacher is not None and not unable[teacher] and not there[teacher]:
            waiting.append(cell)
        elif store.is_done(cell.id):
            continue
        elif teacher is not None and unable[teacher]:
            failure.put(store, cell.id, failure.blocked(f"blocked by teacher {teacher}: {unable[teacher]}"))
        elif store.is_alive(cell.id):
            waiting.append(cell)
        else:
            ready.append(cell)
    return ready, waiting


def why_unable(store: Store, manifest: Mapping[str, Any], teacher: str, pending: bool) -> str | None:
    """Why a teacher will not serve; None while it may, or when it does."""
    now = watch.state(store, teacher)
    if now.name == "finished":
        return watch.below_gate(store, manifest, teacher) or None
    if now.name in ("failed", "blocked", "diverged", "damaged") and not pending:
        return f"it is {now.name}{' (' + now.why + ')' if now.why else ''}"
    return None


def _shared_out(waiting: list[Bundle], slots: int, least: int = 1) -> list[Bundle]:
    """Split the largest bundles while cores would idle: grouping is the machine's matter, and no result depends on it.

    No share is smaller than `least` students.
    """
    while waiting and len(waiting) < slots:
        largest = max(waiting, key=lambda bundle: len(bundle.cells))
        half = len(largest.cells) // 2
        if half < least:
            break
        waiting.remove(largest)
        waiting += [Bundle(largest.cells[:half]), Bundle(largest.cells[half:])]
    return waiting


def _start(bundle: Bundle, store: Store, suite: str, machine: Machine, slot: int) -> _Job:
    name = hashlib.sha256(" ".join(bundle.ids).encode()).hexdigest()[:12]
    log = store.suite_folder(suite) / "jobs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "kdbench.run.worker", str(machine.results), *bundle.ids]
    command += ["--data", str(machine.data), "--device", machine.device, "--side-by-side", str(machine.side_by_side)]
    command += ["--readers", str(machine.readers)]
    if machine.checkpoint_every_s is not None:
        command += ["--checkpoint-every", str(machine.checkpoint_every_s)]
    with open(log, "ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment(machine, slot))
    return _Job(bundle, process, log, slot)


def environment(machine: Machine, slot: int) -> dict[str, str]:
    """One core a process; with several GPUs, one of them each."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    if machine.gpus < 2:
        return {**os.environ, **threads}
    # Of the GPUs that were given to this process: on a shared machine, the others are somebody else's.
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    mine = given if len(given) == machine.gpus else [str(place) for place in range(machine.gpus)]
    return {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": mine[slot % machine.gpus]}


def _over(job: _Job, store: Store, told: Told) -> bool:
    """Whether the job has ended; either way, it is told how far it is."""
    if job.process.poll() is None:
        if seen := watch.progress(store, job.bundle.ids[0]):
            told.at(job.bundle, *seen)
        return False
    done = sum(store.is_done(cell_id) for cell_id in job.bundle.ids)
    told.ended(job.bundle, done, time.monotonic() - job.started)
    return True


def _left_over(job: _Job, store: Store, waiting: list[Bundle], alone: set[str]) -> list[Cell]:
    """Look at the cells of a job that ended without all of them: a failure was written beside a cell that raised; one that another
    process has goes on being waited for (these are returned); one whose process died gets a try by itself, then a failure."""
    status = job.process.returncode
    elsewhere = []
    for cell in job.bundle.cells:
        failed = store.failure(cell.id)
        crowded = len(job.bundle.cells) > 1 and cell.id not in alone
        if store.is_done(cell.id) or (failed and not (crowded and failed["class"] in failure.CROWDED)):
            continue
        if not failed and (store.is_alive(cell.id) or status == 0):
            elsewhere.append(cell)
        elif status == STOPPED:
            failure.put(store, cell.id, failure.stopped())
        elif crowded:
            # One student may have brought the others down, or taken their memory: the batch is never made smaller, the bundle is.
            alone.add(cell.id)
            store.clear_failure(cell.id)
            waiting.append(Bundle((cell,)))
        else:
            lines = job.log.read_text(errors="replace").splitlines()
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            failure.put(store, cell.id, failure.killed(how, lines))
    return elsewhere


def _stop(running: list[_Job]) -> None:
    """Ask every process to save and end, and wait for them."""
    for job in running:
        if job.process.poll() is None:
            job.process.terminate()
    for job in running:
        try:
            job.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
