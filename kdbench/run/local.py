"""Run a plan on this machine: one process a bundle, teachers first, `jobs` at a time. Idempotent: wanted - (done or alive)."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdbench import failure, parts
from kdbench.cell import Cell, depended
from kdbench.errors import KdbenchError, UsageError
from kdbench.failure import STOPPED
from kdbench.manifest import Manifest, ProfileRef
from kdbench.plan.bundle import SIDE_BY_SIDE, Bundle, bundles
from kdbench.plan.matrix import Plan
from kdbench.process_log import log
from kdbench.recipes._base import Recipe, why_not_shared
from kdbench.record import setting_of
from kdbench.run.progress import ProgressBar
from kdbench.run.workers import Nursery, Worker
from kdbench.store import Store, cell_state

POLL_S = 0.2
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
LEAST_SHARE = 4
"""So many students at least are worth a process of their own while others are still at work, or still to come: starting one takes
seconds."""


@dataclass(frozen=True)
class Machine:
    """Where and how the bundles of a plan are trained. `checkpoint_every_s` None: the worker's default; `tables` are
    the teachers whose outputs are kept in a table, `readers` the processes that read ahead for each job, where data lie in files. `ranks`
    processes train a bundle together; they count as one job."""

    results: Path
    data: Path
    device: str = "auto"
    jobs: int = 1
    gpus: int = 0
    checkpoint_every_s: float | None = None
    tables: frozenset[str] = frozenset()
    side_by_side: int = SIDE_BY_SIDE
    readers: int = 1
    ranks: int = 1

    @classmethod
    def here(
        cls, results: Path, data: Path = Path("data"), device: str = "auto", jobs: int | None = None, ranks: int = 1, **how: Any
    ) -> Machine:
        """This machine. By default it has as many jobs as its GPUs or, without one, its cores are enough for."""
        import torch

        gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = jobs or max(1, (gpus or cores) // ranks)
        return cls(results, data, device, jobs, gpus, readers=max(1, cores // (jobs * ranks)), ranks=ranks, **how)


@dataclass
class _Running:
    bundle: Bundle
    process: Worker
    log: Path
    slot: int
    started: float = field(default_factory=time.monotonic)


def wanted(store: Store, cells: Sequence[Cell], report: Callable[[str], None] = log) -> list[Cell]:
    """The cells that are neither done nor being trained. What a damaged cell has left is set aside: it is wanted again."""
    found = []
    for cell in cells:
        now = cell_state.of(store, cell.id).name
        if now == "damaged" and (why := store.set_aside_result(cell.id, store.sound_record)):
            report(f"{why}; it is renamed, and {cell.id} is trained again")
        if now not in (*cell_state.DONE, "running"):
            found.append(cell)
    return found


def check_ranks(cells: Iterable[Cell], ranks: int, asked_by: str = "--ranks") -> None:
    """Raises UsageError: so many ranks cannot share the batches of a cell that is to be trained."""
    for cell in cells:
        recipe, task = Recipe.complete(cell.config["recipe"]), {**cell.config["task"], "options": {}}
        if ranks > 1 and recipe["epochs"] and parts.from_config("task", task, cell.sources).couples == "batch":
            told = f"the loss of the task '{task['name']}' needs whole batches, which ranks cannot share"
            raise UsageError(f"{asked_by}: {told}: use 1 rank; several GPUs train several bundles side by side")
        if recipe["epochs"] and (why := why_not_shared(ranks, recipe["bn_groups"], cell.config["numerics"]["name"])):
            raise UsageError(f"{asked_by}: {why}")


def prepare(plan: Plan, store: Store) -> Manifest:
    """Write what is asked: the suite's manifest and every cell that is not done, or is a teacher. Returns the manifest."""
    store.check_writable()
    manifest = plan.manifest()
    with suppress(KdbenchError):  # there is none yet, or it is damaged, and is written anew
        manifest = replace(manifest, profiles=tuple(_still_valid(plan, store, store.manifest(plan.suite.name).profiles)))
    for cell in plan.cells.values():
        if cell.role == "teacher" or not store.is_done(cell.id):
            store.put_cell(cell)
    store.put_manifest(plan.suite.name, manifest)
    return manifest


def _still_valid(plan: Plan, store: Store, profiles: Iterable[ProfileRef]) -> Iterator[ProfileRef]:
    """The profiles whose setting is what the suite still asks under the same names: after another batch size the old step times are
    no costs of it."""
    cells = {(row.student, row.teacher, row.objective): row.cell for row in plan.rows if row.role == "student"}
    for ref in profiles:
        cell = cells.get((ref.student, ref.teacher, ref.objective))
        with suppress(KdbenchError):  # a damaged profile is measured again
            profile = store.profile(ref.id)
            if cell and profile and ref.dataset == plan.suite.dataset["name"]:
                teacher = plan.cells[cell.depends["teacher"]].config["student"] if cell.depends else None
                if profile.setting == setting_of(cell.config, teacher):
                    yield ref


def nursery() -> Nursery:
    """What starts the workers of a run."""
    return Nursery({**os.environ, **ONE_THREAD})


def train(
    plan: Plan, store: Store, machine: Machine, progress: ProgressBar, fresh: Sequence[Cell] | None = None, workers: Nursery | None = None
) -> int:
    """Train whatever is wanted; returns how many cells were tried. `fresh` is what `wanted` has just found (None: it is asked). What fails
    stays wanted, and the rest goes on. Cells that another process is training are waited for: they are done when it is, and wanted again
    if it dies. `workers` are those of a nursery that was prepared before."""
    fresh = wanted(store, list(plan.cells.values())) if fresh is None else fresh
    for cell in fresh:
        store.clear_failure(cell.id)
    pending = [cell for cell in plan.cells.values() if not store.is_done(cell.id)]
    _Run(plan, store, machine, progress, pending).until_done(workers or nursery())
    return len(fresh)


@dataclass
class _Run:
    """`alone` are cells that get a try by themselves, `repeated` teachers and first stages that were found damaged by those that need them,
    `chosen_from` trials that are done, which are not looked at again: there may be thousands. `look_at` is when the next look at the disk
    is due."""

    plan: Plan
    store: Store
    machine: Machine
    progress: ProgressBar
    pending: list[Cell]
    waiting: list[Bundle] = field(default_factory=list)
    running: list[_Running] = field(default_factory=list)
    alone: set[str] = field(default_factory=set)
    repeated: set[str] = field(default_factory=set)
    chosen_from: set[str] = field(default_factory=set)
    look_at: float = 0.0

    def __post_init__(self) -> None:
        self.awaited = awaited(self.plan.cells.values())

    def until_done(self, nursery: Nursery) -> None:
        machine = self.machine
        manifest = self.store.manifest(self.plan.suite.name)
        try:
            while self.pending or self.waiting or self.running:
                free = [slot for slot in range(machine.jobs) if slot not in {job.slot for job in self.running}]
                if free:
                    self._look(manifest)
                    self.waiting = for_slots(self.waiting, len(free), machine.jobs, bool(self.pending))
                for slot in free[: len(self.waiting)]:
                    job = _start(self.waiting.pop(0), self.store, self.plan.suite.name, machine, slot, nursery)
                    self.running.append(job)
                    self.progress.began(job.bundle)
                time.sleep(POLL_S)
                ended = [job for job in self.running if self._is_over(job)]
                self.running = [job for job in self.running if job not in ended]
                for job in ended:
                    self._settle(job)
                    self.look_at = 0.0
        finally:
            _stop(self.running)
            nursery.close()

    def _look(self, manifest: Manifest) -> None:
        """Bundle what can be trained now, with what was ready before: first what others wait for, then the largest. Thousands of cells may
        wait on a far disk: unless a job has ended, the next look is due after ten times what this one took."""
        began = time.monotonic()
        if began >= self.look_at:
            single = [bundle for bundle in self.waiting if self.alone.intersection(bundle.ids)]
            together = [cell for bundle in self.waiting if bundle not in single for cell in bundle.cells]
            together += self._ready(manifest)
            self.waiting = in_order([*bundles(together, side_by_side=self.machine.side_by_side), *single], self.awaited)
            ended = time.monotonic()
            self.look_at = ended + 10 * (ended - began)

    def _ready(self, manifest: Manifest) -> list[Cell]:
        """Takes the cells that can be trained now from `pending`; what waits in vain is written down as blocked."""
        ready, waiting, under_way = list[Cell](), list[Cell](), self._under_way()
        unable: dict[str, str | None] = {}
        there: dict[str, bool] = {}
        for cell in self.pending:
            # What it depends on first, once: ten thousand cells may wait for a teacher, and the disk may be far away.
            for role, other in cell.depends.items():
                if other not in unable and other not in self.chosen_from:
                    # Whether it is done is asked first: one that ends between the two questions is then judged, never taken as it is.
                    there[other] = self.store.is_done(other)
                    awaited = other in under_way and not there[other]
                    unable[other] = None if awaited else why_unable(self.store, manifest, other, other in under_way)
                    if there[other] and not unable[other] and role != "teacher":
                        self.chosen_from.add(other)
            why = hindered(cell, unable)
            if not why and not all(there.get(other, True) for other in cell.depends.values()):
                waiting.append(cell)
            elif self.store.is_done(cell.id):
                continue
            elif why:
                failure.put(self.store, cell.id, failure.blocked(why))
            elif self.store.is_alive(cell.id):
                waiting.append(cell)
            else:
                ready.append(cell)
        self.pending = waiting
        return ready

    def _under_way(self) -> set[str]:
        """Ids of the cells that this run has yet to end."""
        bundled = [*self.waiting, *(job.bundle for job in self.running)]
        return {*(cell.id for cell in self.pending), *(cell_id for bundle in bundled for cell_id in bundle.ids)}

    def _is_over(self, job: _Running) -> bool:
        """Whether the job has ended; either way, its progress is shown."""
        if job.process.poll() is None:
            if epochs := cell_state.progress(self.store, job.bundle.ids[0]):
                self.progress.at(job.bundle, epochs[0])
            return False
        done = sum(self.store.is_done(cell_id) for cell_id in job.bundle.ids)
        self.progress.ended(job.bundle, done, time.monotonic() - job.started)
        return True

    def _settle(self, job: _Running) -> None:
        """Look at the cells of a job that ended without all of them: a failure was written beside a cell that raised; one that another
        process has, or whose teacher was found damaged, is waited for; one whose process died gets a try by itself, then a failure."""
        status = job.process.returncode or 0
        for cell in job.bundle.cells:
            failed = self.store.failure(cell.id)
            crowded = len(job.bundle.cells) > 1 and cell.id not in self.alone
            if self.store.is_done(cell.id) or (failed and not (crowded and failed.kind in failure.CROWDED)):
                continue
            if not failed and (self.store.is_alive(cell.id) or status == 0):
                self._wait_for(cell)
            elif status == STOPPED:
                failure.put(self.store, cell.id, failure.stopped())
            elif crowded:
                # One student may have brought the others down, or taken their memory: the batch is never made smaller, the bundle is.
                self.alone.add(cell.id)
                self.store.clear_failure(cell.id)
                self.waiting.append(Bundle((cell,)))
            else:
                how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                failure.put(self.store, cell.id, failure.killed(how, self.store.last_lines(job.log)))

    def _wait_for(self, cell: Cell) -> None:
        """Leave a cell to the process that has it. A teacher or a first stage that was found damaged is trained again before, once in a
        run."""
        for role in ("teacher", "start"):
            other = cell.depends.get(role)
            if other is not None and not self.store.is_done(other):
                under_way = self._under_way()
                if other in self.repeated - under_way:
                    why = f"blocked by {depended(role)} {other}: it was damaged twice: check the disk"
                    failure.put(self.store, cell.id, failure.blocked(why))
                    return
                if other not in under_way:
                    self.repeated.add(other)
                    self.chosen_from.discard(other)
                    self.pending.append(self.plan.cells[other])
        self.pending.append(cell)


def hindered(cell: Cell, unable: Mapping[str, str | None]) -> str:
    """`blocked by teacher 1f…: it failed`, by the first cell that it depends on and that cannot be used; empty without one."""
    found = ((role, other) for role, other in cell.depends.items() if unable.get(other))
    return next((f"blocked by {depended(role)} {other}: {unable[other]}" for role, other in found), "")


def why_unable(store: Store, manifest: Manifest, needed: str, pending: bool) -> str | None:
    """Why a teacher, a trial or a first stage cannot be used; None while it may be, or when it can. `pending`: it will be trained."""
    now = cell_state.of(store, needed)
    if now.name == "finished":
        return cell_state.shortfall(store, manifest, needed) or None
    if now.name == "diverged" and manifest.roles.get(needed) in ("trial", "first_stage"):
        return None  # it is the worst of its search, or its second stage has diverged with it
    finished_meanwhile = now.name == "waiting" and store.is_done(needed)
    return None if pending or now.name == "running" or finished_meanwhile else str(now)


def awaited(cells: Iterable[Cell]) -> set[str]:
    """Ids of what others depend on."""
    return {other for cell in cells for other in cell.depends.values()}


def in_order(waiting: Iterable[Bundle], awaited: Collection[str]) -> list[Bundle]:
    """First what others wait for, then the largest."""
    return sorted(waiting, key=lambda bundle: (not any(cell_id in awaited for cell_id in bundle.ids), -len(bundle.cells)))


def for_slots(waiting: list[Bundle], free: int, jobs: int, more_to_come: bool) -> list[Bundle]:
    """The bundles, divided so that no core idles, nor waits at the end for a bundle that is larger than its part of what is left. While
    there are cells to come, and for cores that are busy, only large ones are."""
    if more_to_come:
        return _shared_out(waiting, free, LEAST_SHARE)
    return _shared_out(_shared_out(waiting, jobs, LEAST_SHARE, evenly=True), free)


def _shared_out(waiting: list[Bundle], slots: int, least: int = 1, evenly: bool = False) -> list[Bundle]:
    """Split the largest bundles while cores would idle: grouping is the machine's matter, and no result depends on it. No share is smaller
    than `least` students. `evenly`: also while the largest has more students than each core would have in all."""
    students = sum(len(bundle.cells) for bundle in waiting)
    while waiting and (len(waiting) < slots or (evenly and max(len(bundle.cells) for bundle in waiting) * slots > students)):
        largest = max(waiting, key=lambda bundle: len(bundle.cells))
        half = len(largest.cells) // 2
        if half < least:
            break
        waiting.remove(largest)
        waiting += [Bundle(largest.cells[:half]), Bundle(largest.cells[half:])]
    return waiting


def _start(bundle: Bundle, store: Store, suite: str, machine: Machine, slot: int, nursery: Nursery) -> _Running:
    name = hashlib.sha256(" ".join(bundle.ids).encode()).hexdigest()[:12]
    path = store.suite_folder(suite) / "jobs" / f"{name}.log"
    arguments = [str(machine.results.resolve()), *bundle.ids, "--readers", str(machine.readers), "--data", str(machine.data.resolve())]
    arguments += ["--device", machine.device, "--side-by-side", str(machine.side_by_side)]
    arguments += ["--tables", bundle.teacher] if bundle.teacher in machine.tables else []
    arguments += ["--ranks", str(machine.ranks)] if machine.ranks > 1 else []
    if machine.checkpoint_every_s is not None:
        arguments += ["--checkpoint-every", str(machine.checkpoint_every_s)]
    with store.open_log(path) as log:
        return _Running(bundle, nursery.start(arguments, log, environment(machine, slot)), path, slot)


def environment(machine: Machine, slot: int) -> dict[str, str]:
    """One core a process; with several GPUs, as many of them each as it has ranks."""
    if machine.gpus < 2:
        return {**os.environ, **ONE_THREAD}
    # Of the GPUs that were given to this process: on a shared machine, the others belong to other people.
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    mine = given if len(given) == machine.gpus else [str(place) for place in range(machine.gpus)]
    own = [mine[(slot * machine.ranks + rank) % machine.gpus] for rank in range(machine.ranks)]
    return {**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}


def _stop(running: list[_Running]) -> None:
    """Ask every process to save and end, and wait for them."""
    for job in running:
        if job.process.poll() is None:
            job.process.send_signal(signal.SIGTERM)
    for job in running:
        try:
            job.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            job.process.send_signal(signal.SIGKILL)
            job.process.wait(timeout=60)
