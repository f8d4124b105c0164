"""Reconcile a suite with a cluster: wanted - (done or alive) is submitted; with patience, until nothing is left that may be tried."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kdbench.cell import Cell
from kdbench.errors import ClusterError, KdbenchError
from kdbench.plan.bundle import Bundle
from kdbench.plan.matrix import Plan
from kdbench.run import failure, local
from kdbench.run.failure import CROWDED
from kdbench.slurm import launch
from kdbench.slurm.cluster import Cluster, Row
from kdbench.slurm.launch import Job, Launched, Launcher
from kdbench.slurm.ledger import Json
from kdbench.slurm.reconcile import Standing, standing
from kdbench.slurm.scheduler import Scheduler, Seen
from kdbench.store import Store

POLL_S = (2.0, 20.0)
"""How often the queue is looked at: at first, and after some minutes. A controller serves hundreds of users."""
POLL_GROWS = 0.05
ASKS = 10
"""After so many looks a queue that was full is taken to have room again."""
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
    full: int | None = None
    asks: int = 0
    waits_for_room: bool = False

    def __post_init__(self) -> None:
        self.manifest = self.store.manifest(self.plan.suite.name)
        self.kinds: dict[str, str] = {}
        self.rows: dict[str, Row] = {row["id"]: row for row in self.manifest["cells"]}
        self.cells = list(self.plan.cells.values())
        self.left = self.cells

    def once(self, dry: bool = False) -> tuple[Standing, Launched]:
        """Submit whatever is wanted and not alive. `dry`: only say what that would be.

        Raises:
            ClusterError: SLURM is not there, or does not answer.
        """
        self.limits = self.scheduler.limits(self.cluster.request.get("slurm_account"))
        if dry:
            now = self._look(write=False)
            self._tell_jobs(self._jobs(self._wanted(now), now, dry))
            return now, Launched()
        with self.store.submitting():
            now = self._look()
            return now, self._launch(self._wanted(now), now)

    def wait(self) -> None:
        """Submit, look, submit again what may be tried again, until there is nothing to wait for.

        Raises:
            ClusterError: SLURM is not there, or does not answer at first.
        """
        began, said = time.monotonic(), ""
        now, launched = self.once()
        line, in_trouble = self._line(now), False
        while True:
            if line != said:
                self.told(line)
                said = line
            if not in_trouble and not self._busy(now, launched):
                return
            time.sleep(min(POLL_S[1], POLL_S[0] + POLL_GROWS * (time.monotonic() - began)))
            try:
                with self.store.submitting():
                    now = self._look()
                    launched = self._launch(self._again(self._wanted(now), now), now)
                line, in_trouble = self._line(now), False
            except (KdbenchError, OSError) as error:  # a controller or a disk comes back; jobs run on meanwhile
                line, in_trouble = f"{error}; tried again until it goes", True

    def _look(self, write: bool = True) -> Standing:
        now = standing(self.store, self.scheduler, self.limits.cluster, self.cluster.lost_after_s, write)
        if not now.answered:
            raise ClusterError(f"SLURM does not answer ({now.why})")
        return now

    # What is wanted, and what of it may be tried

    def _wanted(self, now: Standing) -> list[Cell]:
        """The first look reads every record whole; after that, only cells that were not done are looked at again."""
        found = [cell for cell in local.wanted(self.store, self.left) if cell.id not in now.alive]
        self.left = [cell for cell in self.left if not self.store.is_done(cell.id)]
        return found

    def _busy(self, now: Standing, launched: Launched) -> bool:
        here = {cell_id for cell_id, place in now.alive.items() if place.note.slurm in ("", self.limits.cluster)}
        return bool(launched.notes or launched.deferred) or any(
            not self.store.is_done(cell.id) and (cell.id in here or self.store.is_alive(cell.id)) for cell in self.left
        )

    def _again(self, wanted: list[Cell], now: Standing) -> list[Cell]:
        """Of the cells that are wanted, those that the rules of retrying let try again without being asked."""
        failed = launch.ladder(now.notes, self.cluster)
        chosen: dict[str, Cell] = {}
        for cell in sorted(wanted, key=lambda cell: cell.role != "teacher"):
            if self._may(cell, chosen, now, failed):
                chosen[cell.id] = cell
        return list(chosen.values())

    def _may(self, cell: Cell, chosen: Mapping[str, Cell], now: Standing, failed: Mapping[str, list[Json]]) -> bool:
        found = self.store.failure(cell.id)
        kind = self.kinds[cell.id] = found["class"] if found else ""
        if cell.id in self.deferred:
            return True
        if kind in CROWDED and cell.id in failed:
            spent = self.cluster.is_spent(self.rows[cell.id], failed[cell.id])
            if spent:
                self._advise(cell, failed[cell.id])
            return not spent
        if kind in ("", "blocked"):
            teacher = cell.depends.get("teacher")
            if teacher is not None and not self.store.is_done(teacher):
                # The teacher's own tries are counted; its students follow it.
                return teacher in chosen or teacher in now.alive or self.store.is_alive(teacher)
            return self.tries[cell.id, kind] < TRIES
        return self.tries[cell.id, kind] < self.cluster.retry.get(kind, 0)

    def _advise(self, cell: Cell, failed: list[Json]) -> None:
        """The end of the ladder: say so in the failure itself, once."""
        found = self.store.failure(cell.id)
        advice = (
            f"; tried alone {len(failed)} time{'s' * (len(failed) > 1)}, at last with {launch.memory(failed[-1])}: "
            "give the cluster file a bigger request (`bigger:`), or choose a smaller net; the batch is never made smaller"
        )
        if found and advice not in found["message"]:
            failure.put(self.store, cell.id, {**found, "message": found["message"] + advice})

    # Submitting

    def _launch(self, wanted: list[Cell], now: Standing) -> Launched:
        chosen = self._jobs(wanted, now)
        if not chosen:
            self.deferred, self.waits_for_room = set(), False
            return Launched()
        limits = self.limits
        if self.full is not None:  # SLURM said before how many it takes: it is not asked again at each look
            limits = replace(limits, jobs=min(self.full, self.full if limits.jobs is None else limits.jobs))
        launched = Launcher(self.store, self.cluster, self.plan.suite.name, self.settings, limits, now).launch(chosen)
        self._note_room(launched, now)
        for note in launched.notes:
            many = len(note.elements)
            self.tries.update((cell_id, self.kinds.get(cell_id, "")) for index in range(many) for cell_id in note.cells(index))
            after = f" after {', '.join(note.after)}" if note.after else ""
            cells = sum(len(note.cells(index)) for index in range(many))
            self.told(f"submitted {note.job} ({note.name}): {many} job{'s' * (many > 1)}, {cells} cell{'s' * (cells > 1)}{after}")
        if launched.refused:
            self.told(f"{len(launched.refused)} cells were not submitted: {launched.why}")
        if launched.deferred and (launched.notes or not self.waits_for_room):
            self.told(f"{len(launched.deferred)} cells wait for room in the queue: {launched.why}")
        self.waits_for_room = bool(launched.deferred)
        return launched

    def _note_room(self, launched: Launched, now: Standing) -> None:
        self.deferred = set(launched.deferred)
        self.asks += 1
        if launched.full:
            self.full, self.asks = max(1, now.queued + launched.jobs), 0
        elif self.asks >= ASKS:  # others' jobs may have left the queue meanwhile
            self.full, self.asks = None, 0

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
        return launch.jobs(able, self.rows, self.cluster, self.work, launch.ladder(now.notes, self.cluster))

    def _tell_jobs(self, chosen: list[Job]) -> None:
        for job in chosen:
            asked = ", ".join(f"{word} {value}" for word, value in job.request.items())
            self.told(f"would submit {len(job.ids)} cells in {len(job.bundles)} bundles: {' '.join(job.ids)}  ({asked})")

    def _line(self, now: Standing) -> str:
        done = len(self.cells) - sum(not self.store.is_done(cell.id) for cell in self.left)
        states = Counter(_told(place.seen) for place in now.live_jobs().values())
        jobs = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
        return f"{done} of {len(self.cells)} cells done; jobs: {jobs}"


def _told(seen: Seen | None) -> str:
    """A job's state, with the reason for which it waits: some wait for ever."""
    if seen is None:
        return "out of sight"
    reason = "" if seen.reason in ("", "None", "BeginTime") or seen.state != "PENDING" else f" ({seen.reason})"
    return f"{seen.state.lower()}{reason}"
