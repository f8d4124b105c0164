"""Submit the cells of a suite that are neither done nor in a job; `wait` repeats this until nothing is left that may be tried."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kdbench import failure
from kdbench.cell import Cell
from kdbench.errors import ClusterError, KdbenchError
from kdbench.failure import CROWDED
from kdbench.manifest import ManifestCell
from kdbench.plan.bundle import Bundle
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.slurm import launch
from kdbench.slurm.cluster import Cluster, memory
from kdbench.slurm.launch import JobRequest, Launched, Launcher
from kdbench.slurm.reconcile import QueueState, queue_state
from kdbench.slurm.scheduler import JobInfo, Scheduler
from kdbench.slurm.submissions import Json, Settings
from kdbench.store import Store

POLL_S = (2.0, 20.0)
"""Seconds between two looks at the queue: at first, and after some minutes. A controller serves hundreds of users."""
POLL_GROWS = 0.05
ASKS = 10
"""After so many looks a queue that was full is tried again."""
TRIES = 3
"""Tries of a cell that left no failure, or was blocked by a teacher that is good enough now; unexpected errors until `wait` ends."""


@dataclass
class Follower:
    """One call of `run --on`. `work` estimates a bundle's work."""

    plan: Plan
    store: Store
    cluster: Cluster
    settings: Settings
    work: Callable[[Bundle], float]
    log: Callable[[str], None]
    scheduler: Scheduler = field(default_factory=Scheduler)
    tries: Counter[tuple[str, str]] = field(default_factory=Counter)
    deferred: set[str] = field(default_factory=set)
    full: int | None = None
    asks: int = 0
    waits_for_room: bool = False
    logged: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.manifest = self.store.manifest(self.plan.suite.name)
        self.kinds: dict[str, str] = {}
        self.rows: dict[str, ManifestCell] = {row.id: row for row in self.manifest.cells}
        self.cells = list(self.plan.cells.values())
        self.left = self.cells

    def once(self, dry: bool = False) -> tuple[QueueState, Launched]:
        """Submit what is wanted and not alive. `dry`: only log it. Raises ClusterError: SLURM is not there, or does not answer."""
        self.limits = self.scheduler.limits(self.cluster.request.get("slurm_account"))
        if dry:
            now = self._look(write=False)
            for job in self._jobs(self._wanted(now), now, dry):
                asked = ", ".join(f"{word} {value}" for word, value in job.request.items())
                self.log(f"would submit {len(job.ids)} cells in {len(job.bundles)} bundles: {' '.join(job.ids)}  ({asked})")
            return now, Launched()
        with self.store.submitting():
            now = self._look()
            return now, self._launch(self._wanted(now), now)

    def wait(self) -> None:
        """Submit and look until there is nothing to wait for. Raises ClusterError: as `once` does, or after repeated unexpected errors."""
        began, logged, unexpected = time.monotonic(), "", 0
        now, launched = self.once()
        line, busy = self._line(now), self._busy(now, launched)
        while True:
            if line != logged:
                self.log(line)
                logged = line
            if not busy:
                return
            time.sleep(min(POLL_S[1], POLL_S[0] + POLL_GROWS * (time.monotonic() - began)))
            busy = True
            try:
                with self.store.submitting():
                    now = self._look()
                    launched = self._launch(self._again(self._wanted(now), now), now)
                line, busy, unexpected = self._line(now), self._busy(now, launched), 0
            except (KdbenchError, OSError) as error:  # a controller or a disk comes back; jobs run on meanwhile
                line = f"{error}; retrying"
            except Exception as error:
                line, unexpected = f"{type(error).__name__}: {error}; retrying", unexpected + 1
                if unexpected == TRIES:
                    advice = "the jobs continue; run the same command to follow them again"
                    raise ClusterError(f"{type(error).__name__}: {error} ({advice})") from error

    def _look(self, write: bool = True) -> QueueState:
        now = queue_state(self.store, self.scheduler, self.limits.cluster, self.cluster.lost_after_s, write)
        if not now.answered:
            raise ClusterError(f"SLURM does not answer ({now.why})")
        for problem in now.problems:
            if problem not in self.logged:
                self.log(problem)
        self.logged |= set(now.problems)
        return now

    def _wanted(self, now: QueueState) -> list[Cell]:
        """The first look reads every record; after that, only those of cells that were not done are read again."""
        needed = {other for cell in self.left for other in cell.depends.values()} - {cell.id for cell in self.left}
        # A teacher or a trial that was done and was found damaged is trained again.
        self.left = [*(cell for cell in self.cells if cell.id in needed and not self.store.is_done(cell.id)), *self.left]
        found = [cell for cell in local.wanted(self.store, self.left) if cell.id not in now.alive]
        self.left = [cell for cell in self.left if not self.store.is_done(cell.id)]
        return found

    def _busy(self, now: QueueState, launched: Launched) -> bool:
        here = {cell_id for cell_id, job in now.alive.items() if job.submission.slurm in ("", self.limits.cluster)}
        return bool(launched.submissions or launched.deferred) or any(
            not self.store.is_done(cell.id) and (cell.id in here or self.store.is_alive(cell.id)) for cell in self.left
        )

    def _again(self, wanted: list[Cell], now: QueueState) -> list[Cell]:
        """Of the cells that are wanted, those that may be tried again by the rules of `retry`."""
        failed = launch.oom_requests(now.submissions, self.cluster)
        chosen: dict[str, Cell] = {}
        for cell in sorted(wanted, key=lambda cell: len(cell.depends)):  # what others depend on comes first
            if self._may(cell, chosen, now, failed):
                chosen[cell.id] = cell
        return list(chosen.values())

    def _may(self, cell: Cell, chosen: Mapping[str, Cell], now: QueueState, failed: Mapping[str, list[Json]]) -> bool:
        found = self.store.failure(cell.id)
        kind = self.kinds[cell.id] = found.kind if found else ""
        if cell.id in self.deferred:
            return True
        if kind in CROWDED and cell.id in failed:
            spent = self.cluster.is_spent(self.rows[cell.id], failed[cell.id])
            if spent:
                self._advise(cell, failed[cell.id])
            return not spent
        if kind in ("", "blocked"):
            if undone := [other for other in cell.depends.values() if not self.store.is_done(other)]:
                # Their own tries are counted; what depends on them follows.
                return all(other in chosen or other in now.alive or self.store.is_alive(other) for other in undone)
            return self.tries[cell.id, kind] < TRIES
        return self.tries[cell.id, kind] < self.cluster.retry.get(kind, 0)

    def _advise(self, cell: Cell, failed: list[Json]) -> None:
        """No bigger request is left: say so in the failure itself, once."""
        found = self.store.failure(cell.id)
        advice = (
            f"; tried alone {len(failed)} time{'s' * (len(failed) > 1)}, the last time with {memory(failed[-1])}: "
            "add a larger request to the cluster file (`bigger:`), or choose a smaller net; the batch size is never reduced"
        )
        if found and advice not in found.message:
            failure.put(self.store, cell.id, replace(found, message=found.message + advice))

    def _launch(self, wanted: list[Cell], now: QueueState) -> Launched:
        chosen = self._jobs(wanted, now)
        if not chosen:
            self.deferred, self.waits_for_room = set(), False
            return Launched()
        limits = self.limits
        if self.full is not None:  # SLURM refused more before: it is not asked again at each look
            limits = replace(limits, jobs=min(self.full, self.full if limits.jobs is None else limits.jobs))
        launched = Launcher(self.store, self.cluster, self.plan.suite.name, self.settings, limits, now).launch(chosen)
        self.deferred, self.asks = set(launched.deferred), self.asks + 1
        if launched.full:
            self.full, self.asks = max(1, now.queued + launched.jobs), 0
        elif self.asks >= ASKS:  # others' jobs may have left the queue meanwhile
            self.full, self.asks = None, 0
        for one in launched.submissions:
            many = len(one.elements)
            self.tries.update((cell_id, self.kinds.get(cell_id, "")) for index in range(many) for cell_id in one.cells(index))
            after = f" after {', '.join(one.after)}" if one.after else ""
            cells = sum(len(one.cells(index)) for index in range(many))
            self.log(f"submitted {one.job} ({one.name}): {many} job{'s' * (many > 1)}, {cells} cell{'s' * (cells > 1)}{after}")
        if launched.refused:
            self.log(f"{len(launched.refused)} cells were not submitted: {launched.why}")
        if launched.deferred and (launched.submissions or not self.waits_for_room):
            self.log(f"{len(launched.deferred)} cells wait for room in the queue: {launched.why}")
        self.waits_for_room = bool(launched.deferred)
        return launched

    def _jobs(self, wanted: list[Cell], now: QueueState, dry: bool = False) -> list[JobRequest]:
        """Jobs for these cells, without those whose teacher failed or is not good enough, or whose trials failed: these get a failure."""
        mine = {cell.id for cell in wanted}
        unable: dict[str, str | None] = {}
        able = []
        for cell in wanted:
            for other in cell.depends.values():
                if other not in unable:
                    unable[other] = local.why_unable(self.store, self.manifest, other, other in mine or other in now.alive)
            if not (why := local.hindered(cell, unable)):
                able.append(cell)
            elif not dry:
                failure.put(self.store, cell.id, failure.blocked(why))
        return launch.jobs(able, self.rows, self.cluster, self.work, launch.oom_requests(now.submissions, self.cluster))

    def _line(self, now: QueueState) -> str:
        done = len(self.cells) - sum(not self.store.is_done(cell.id) for cell in self.left)
        states = Counter(_state_in_words(job.info) for job in now.jobs)
        jobs = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
        return f"{done} of {len(self.cells)} cells done; jobs: {jobs}"


def _state_in_words(info: JobInfo | None) -> str:
    """A job's state, with the reason for which it waits: some jobs wait for ever."""
    if info is None:
        return "not listed by SLURM"
    reason = "" if info.reason in ("", "None", "BeginTime") or info.state != "PENDING" else f" ({info.reason})"
    return f"{info.state.lower()}{reason}"
