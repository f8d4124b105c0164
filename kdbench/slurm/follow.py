"""Reconcile a suite with a cluster: wanted - (done or alive) is submitted; with patience, until nothing is left that may be tried."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kdbench.cell import Cell
from kdbench.errors import ClusterError
from kdbench.plan.bundle import Bundle
from kdbench.plan.matrix import Plan
from kdbench.run import failure, local
from kdbench.run.failure import CROWDED
from kdbench.slurm import launch
from kdbench.slurm.cluster import Cluster, Row
from kdbench.slurm.launch import Job, Launched, Launcher
from kdbench.slurm.ledger import Json
from kdbench.slurm.reconcile import Standing, standing
from kdbench.slurm.scheduler import Limits, Scheduler
from kdbench.store import Store

POLL_S = (2.0, 20.0)
"""How often the queue is looked at: at first, and after some minutes. A controller serves hundreds of users."""
POLL_GROWS = 0.05
TRIES = 3
"""How often a cell is tried that left no failure, or was blocked by a teacher that turned out to serve."""

Told = Callable[[str], None]


@dataclass
class Follower:
    """One call of `run --on`. `work` estimates a bundle's work."""

    plan: Plan
    store: Store
    cluster: Cluster
    settings: Json
    work: Callable[[Bundle], float]
    told: Told
    scheduler: Scheduler = field(default_factory=Scheduler)
    tries: Counter[tuple[str, str]] = field(default_factory=Counter)
    deferred: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.manifest = self.store.manifest(self.plan.suite.name)
        self.kinds: dict[str, str] = {}
        self.rows: dict[str, Row] = {row["id"]: row for row in self.manifest["cells"]}
        self.cells = list(self.plan.cells.values())

    def once(self, dry: bool = False) -> tuple[Standing, Launched]:
        """Submit whatever is wanted and not alive. `dry`: only say what that would be.

        Raises:
            ClusterError: SLURM is not there, does not answer, or refuses.
        """
        limits = self.scheduler.limits()
        if dry:
            now = standing(self.store, self.scheduler, limits.cluster, self.cluster.lost_after_s, write=False)
            self._tell_jobs(self._jobs(self._wanted(now), now, dry))
            return now, Launched()
        with self.store.submitting():
            now = standing(self.store, self.scheduler, limits.cluster, self.cluster.lost_after_s)
            return now, self._launch(self._wanted(now), now, limits)

    def wait(self) -> None:
        """Submit, look, submit again what may be tried again, until there is nothing to wait for.

        Raises:
            ClusterError: SLURM refused the first submission.
        """
        began, said = time.monotonic(), ""
        now, launched = self.once()
        while True:
            line = self._line(now)
            if line != said:
                self.told(line)
                said = line
            if not self._busy(now, launched):
                return
            time.sleep(min(POLL_S[1], POLL_S[0] + POLL_GROWS * (time.monotonic() - began)))
            try:
                limits = self.scheduler.limits()
                with self.store.submitting():
                    now = standing(self.store, self.scheduler, limits.cluster, self.cluster.lost_after_s)
                    wanted = self._wanted(now)
                    launched = self._launch(self._again(wanted, now), now, limits)
            except ClusterError as error:  # a controller comes back; jobs run on without it
                if (line := f"{error}; waiting for it") != said:
                    self.told(line)
                    said = line

    # What is wanted, and what of it may be tried

    def _wanted(self, now: Standing) -> list[Cell]:
        return [cell for cell in local.wanted(self.store, self.cells) if cell.id not in now.alive]

    def _busy(self, now: Standing, launched: Launched) -> bool:
        return bool(launched.notes or launched.deferred) or any(
            not self.store.is_done(cell.id) and (cell.id in now.alive or self.store.is_alive(cell.id)) for cell in self.cells
        )

    def _again(self, wanted: list[Cell], now: Standing) -> list[Cell]:
        """Of the cells that are wanted, those that the rules of retrying let try again without being asked."""
        rungs = launch.ladder(now.notes)
        chosen: dict[str, Cell] = {}
        for cell in sorted(wanted, key=lambda cell: cell.role != "teacher"):
            if self._may(cell, chosen, now, rungs):
                chosen[cell.id] = cell
        return list(chosen.values())

    def _may(self, cell: Cell, chosen: Mapping[str, Cell], now: Standing, rungs: Mapping[str, int]) -> bool:
        found = self.store.failure(cell.id)
        kind = self.kinds[cell.id] = found["class"] if found else ""
        if cell.id in self.deferred:
            return True
        if kind in CROWDED and cell.id in rungs:
            if rungs[cell.id] <= len(self.cluster.bigger):
                return True
            self._advise(cell, rungs[cell.id])
            return False
        if kind in ("", "blocked"):
            teacher = cell.depends.get("teacher")
            if teacher is not None and not self.store.is_done(teacher):
                # The teacher's own tries are counted; its students follow it.
                return teacher in chosen or teacher in now.alive or self.store.is_alive(teacher)
            return self.tries[cell.id, kind] < TRIES
        return self.tries[cell.id, kind] < self.cluster.retry.get(kind, 0)

    def _advise(self, cell: Cell, tries: int) -> None:
        """The end of the ladder: say so in the failure itself, once."""
        found = self.store.failure(cell.id)
        advice = (
            f"; tried alone {tries} times, at last with {launch.memory(self.cluster.request_of(self.rows[cell.id], tries - 1))}: "
            "give the cluster file a bigger request (`bigger:`), or choose a smaller net; the batch is never made smaller"
        )
        if found and advice not in found["message"]:
            failure.put(self.store, cell.id, {**found, "message": found["message"] + advice})

    # Submitting

    def _launch(self, wanted: list[Cell], now: Standing, limits: Limits) -> Launched:
        chosen = self._jobs(wanted, now)
        if not chosen:
            return Launched()
        launcher = Launcher(self.store, self.cluster, self.plan.suite.name, self.settings, limits, now)
        launched = launcher.launch(chosen)
        self.deferred = set(launched.deferred)
        for note in launched.notes:
            many = len(note.elements)
            self.tries.update((cell_id, self.kinds.get(cell_id, "")) for index in range(many) for cell_id in note.cells(index))
            after = f" after {', '.join(note.after)}" if note.after else ""
            cells = sum(len(note.cells(index)) for index in range(many))
            self.told(f"submitted {note.job} ({note.name}): {many} job{'s' * (many > 1)}, {cells} cell{'s' * (cells > 1)}{after}")
        if launched.deferred:
            self.told(f"{len(launched.deferred)} cells wait for room in the queue: {launched.why}")
        return launched

    def _jobs(self, wanted: list[Cell], now: Standing, dry: bool = False) -> list[Job]:
        """Jobs for these cells; those whose teacher is no good are told so, and left out."""
        mine = {cell.id for cell in wanted}
        unable: dict[str, str | None] = {}
        able = []
        for cell in wanted:
            teacher = cell.depends.get("teacher")
            if teacher is not None and teacher not in unable:
                unable[teacher] = local.why_unable(self.store, self.manifest, teacher, teacher in mine or teacher in now.alive)
            if teacher is not None and (why := unable[teacher]):
                if not dry:
                    failure.put(self.store, cell.id, failure.blocked(f"blocked by teacher {teacher}: {why}"))
            else:
                able.append(cell)
        return launch.jobs(able, self.rows, self.cluster, self.work, launch.ladder(now.notes))

    def _tell_jobs(self, chosen: list[Job]) -> None:
        for job in chosen:
            asked = ", ".join(f"{word} {value}" for word, value in job.request.items())
            self.told(f"would submit {len(job.ids)} cells in {len(job.bundles)} bundles: {' '.join(job.ids)}  ({asked})")

    def _line(self, now: Standing) -> str:
        done = sum(self.store.is_done(cell.id) for cell in self.cells)
        states = Counter(place.seen.state.lower() if place.seen else "out of sight" for place in now.live_jobs().values())
        jobs = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
        return f"{done} of {len(self.cells)} cells done; jobs: {jobs}"
