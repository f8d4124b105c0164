"""What has become of every job that was submitted: our notes and the disk first, then SLURM. Ends are written down once, with a class."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.run import failure
from kdbench.run.failure import LAST_LINES
from kdbench.slurm.ledger import Json, Ledger, Note, elements_of
from kdbench.slurm.scheduler import Scheduler, Seen, Sight
from kdbench.store import Store
from kdbench.through_submitit import BEGINS, discard, output, put_payload

SETTLE_S = 5.0
"""A submitter that was killed may leave an sbatch behind that still speaks with the controller."""

_BY_STATE = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "OUT_OF_MEMORY": "host memory",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "PREEMPTED": "preempted",
    "REVOKED": "cancelled",
}
_BY_LOG = (
    (r"oom.kill|exceeded (job |step )?memory limit|out of memory handler|Out Of Memory", "host memory"),
    (r"CANCELLED AT \S+ DUE TO TIME LIMIT", "time limit"),
    (r"CANCELLED AT \S+ DUE TO PREEMPTION", "preempted"),
    (r"CANCELLED AT \S+ DUE TO NODE FAILURE", "node failure"),
    (r"CANCELLED AT \S+ \*\*\*", "cancelled"),
)
"""How SLURM's own lines in a job's log tell why it ended: a controller forgets a job after minutes, and many clusters keep no books."""


@dataclass(frozen=True)
class Place:
    """Where a cell that is not done is at this moment: an element of a submission. `seen` is None while SLURM does not tell."""

    note: Note
    index: int
    seen: Seen | None
    why: str = ""

    @property
    def job(self) -> str:
        return self.note.job_of(self.index)

    def __str__(self) -> str:
        return f"job {self.job}" if self.note.job else "a job whose number is not known yet"


@dataclass
class Standing:
    """`alive` by cell id; `answered` whether SLURM did, else `why` it did not; `queued` all jobs of this user that are not over."""

    answered: bool
    why: str = ""
    queued: int = 0
    alive: dict[str, Place] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def live_jobs(self) -> dict[str, Place]:
        return {place.job: place for place in self.alive.values()}


def standing(
    store: Store, scheduler: Scheduler, cluster: str | None = None, lost_after_s: float | None = None, write: bool = True
) -> Standing:
    """Look at everything that was submitted and not seen to end.

    `cluster` is SLURM's name of the cluster that is asked (jobs of another cannot be judged here); `lost_after_s` None: as each
    submission says. With `write`, for which the right to submit must be held, ends are noted, failures put beside their cells, and
    half-made submissions mended.
    """
    ledger = Ledger(store)
    notes = ledger.notes()
    waiting = [note for note in notes if note.open()]
    asked = [note.job_of(index) for note in waiting if note.job for index in note.open()], [note.user for note in waiting if note.user]
    sight = scheduler.look(*asked)
    if write and any(note.job is None and time.time() - note.at < SETTLE_S for note in waiting):
        time.sleep(SETTLE_S)
        sight = scheduler.look(*asked)
    mine = sum(seen.is_live for seen in sight.jobs.values())
    judge = _Judge(store, ledger, sight, cluster, lost_after_s, write, Standing(sight.answered, sight.why, mine, notes=notes))
    for note in waiting:
        judge.note(note)
    return judge.found


def payload(ledger: Ledger, note: Note, index: int) -> tuple[str, list[str], str, int]:
    """All that a job is given: the results folder, cell ids, and which line of which note it is."""
    return str(ledger.store.root.resolve()), note.cells(index), f"{note.suite}/{note.token}", index


def look(store: Store) -> Standing | None:
    """What the queue says at this moment; ends that nobody has seen yet are written down. None when no job of these results is open."""
    if not any(note.open() for note in Ledger(store).notes()):
        return None
    scheduler = Scheduler()
    try:
        with store.submitting(patience_s=1.0):
            return standing(store, scheduler, scheduler.limits().cluster)
    except KdbenchError as error:  # somebody submits, the folder is somebody else's, or SLURM is silent: then it is only looked at
        now = standing(store, scheduler, write=False)
        return now if now.answered else Standing(False, now.why or str(error), alive=now.alive)


@dataclass
class _Judge:
    """One look at the queue, held against the notes and the disk."""

    store: Store
    ledger: Ledger
    sight: Sight
    cluster: str | None
    lost_after_s: float | None
    write: bool
    found: Standing

    def __post_init__(self) -> None:
        self.owners = {cell_id: (note.token, index) for note, index in elements_of(self.found.notes) for cell_id in note.cells(index)}

    def note(self, note: Note) -> None:
        """Judge every open element of a submission, and write its note once."""
        if self.cluster and note.slurm and note.slurm != self.cluster:
            for index in note.open():
                self._alive(note, index, None, f"it was submitted on another cluster, {note.slurm}: ask there")
            return
        before = (note.job, len(note.ended))
        if note.job is None and not self._found_again(note):
            return
        for index in note.open():
            self._element(note, index)
        if self.write and before != (note.job, len(note.ended)):
            self.ledger.write(note)

    def _found_again(self, note: Note) -> bool:
        """A submission whose number was never noted: by its name it is found again, or it never came to be. Whether to judge it."""
        seen = self.sight.named(note.name)
        if not seen:
            if not self.sight.answered:
                for index in note.open():
                    self._alive(note, index, None, f"SLURM does not answer: {self.sight.why}")
            elif self.write:
                discard(self.ledger.folder(note))
            return False
        note.job = seen[0].job.split("_")[0]
        if self.write:
            from kdbench.slurm.job import train

            for index in range(len(note.elements)):
                found = payload(self.ledger, note, index)
                put_payload(self.ledger.folder(note), note.job_of(index), train, found, note.request["timeout_min"])
                for cell_id in note.cells(index):
                    former = self.store.failure(cell_id)
                    if former and former.get("job") != note.job_of(index):
                        self.store.clear_failure(cell_id)
        return True

    def _element(self, note: Note, index: int) -> None:
        said = _since_begun(self.ledger.said(note, index))
        left = [cell_id for cell_id in note.cells(index) if not self.store.is_done(cell_id)]
        undone = [cell_id for cell_id in left if self.owners[cell_id] == (note.token, index)]  # the others moved to a later submission
        job = note.job_of(index)
        seen = self.sight.jobs.get(job)
        if seen is not None and seen.name != note.name:
            seen = None  # a number that was given twice: this is another job, of a cluster that was set up anew
        if seen is not None and seen.is_live:
            self._alive(note, index, seen, "", undone)
            return
        if not undone:
            if seen is not None or self.sight.answered:
                self._end(note, index, seen, "moved" if left else "done", ())
            return
        told = _by_log(self.ledger.folder(note), job)
        if any(self.store.is_alive(cell_id) for cell_id in undone):  # about to save, or out of SLURM's sight for a moment
            self._alive(note, index, seen, "its process is alive", undone)
            return
        if seen is None and (why := self._not_yet_lost(note, index, 0.0 if told else self.lost_after_s)):
            self._alive(note, index, None, why, undone)
            return
        if self.write:
            kind = _class(self.store, said, undone, seen, told, _log(self.ledger.folder(note), job))
            _tell(self.store, self.ledger, note, index, undone, kind, seen)
            self._end(note, index, seen, kind, undone)

    def _alive(self, note: Note, index: int, seen: Seen | None, why: str, undone: Sequence[str] | None = None) -> None:
        mine = (note.token, index)
        cells = [one for one in note.cells(index) if self.owners[one] == mine and not self.store.is_done(one)] if undone is None else undone
        self.found.alive |= dict.fromkeys(cells, Place(note, index, seen, why))

    def _end(self, note: Note, index: int, seen: Seen | None, kind: str, undone: Sequence[str]) -> None:
        if not self.write:
            return
        classes = {cell_id: own["class"] for cell_id in undone if (own := self.store.failure(cell_id))}
        state, node = (seen.state, seen.node) if seen else ("LOST" if undone else "", "")
        note.ended[str(index)] = {"state": state, "class": kind, "node": node, "cells": classes, "at": time.time()}

    def _not_yet_lost(self, note: Note, index: int, lost_after_s: float | None) -> str:
        """Why a job that SLURM does not name may still be there; empty when it is lost."""
        if not self.sight.answered:
            return f"SLURM does not answer: {self.sight.why}"
        patience = note.settings.get("lost_after_s", 60.0) if lost_after_s is None else lost_after_s
        silent = time.time() - self.ledger.last_sign_s(note, index)
        return f"SLURM does not know it; given up in {patience - silent:.0f} s" if silent < patience else ""


def _since_begun(said: Sequence[Json]) -> list[Json]:
    """A job's journal since SLURM last started it."""
    begun = max((place for place, one in enumerate(said) if one["event"] == "began"), default=0)
    return list(said[begun:])


def _by_log(folder: Path, job: str) -> str | None:
    """The class of an end that SLURM wrote into the job's log since the job last began."""
    lines = [line for line in _log(folder, job) if "slurmstepd" in line or "srun: error" in line]
    return next((kind for pattern, kind in _BY_LOG if any(re.search(pattern, line, re.IGNORECASE) for line in lines)), None)


def _log(folder: Path, job: str) -> list[str]:
    """The end of a job's log, as far as it is of its last beginning."""
    found: list[str] = []
    for path in output(folder, job):
        if path.exists():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 20_000))
                found += file.read().decode(errors="replace").splitlines()
    begun = max((place for place, line in enumerate(found) if BEGINS in line), default=0)
    return found[begun:]


def _class(store: Store, said: Sequence[Json], undone: Sequence[str], seen: Seen | None, told: str | None, log: Sequence[str]) -> str:
    """Why a job ended without its cells: in SLURM's words, in those of its log, in its own, by what it left."""
    events = {one["event"] for one in said}
    if "left" in events:
        return "left"
    kind = _BY_STATE.get(seen.state) if seen else None
    if told == "host memory" or kind is None:
        kind = told or kind
    if kind == "time limit":
        before: dict[str, int] = said[0].get("lines", {}) if said else {}
        return "time limit" if any(new_epoch(store, cell_id, before[cell_id]) for cell_id in before) else "no progress"
    if kind is not None:
        return kind
    if "stopped" in events:
        return "stopped"
    own = [store.failure(cell_id) for cell_id in undone]
    if own[0] and all(own):
        return own[0]["class"]
    if seen is None:
        return "lost"
    if "began" not in events:
        return "import" if any(re.search(r"ModuleNotFoundError|ImportError", line) for line in log) else "not begun"
    return "killed"


def new_epoch(store: Store, cell_id: str, lines: int) -> bool:
    """Whether a cell came an epoch further than where it took up its work after so many lines of its progress."""
    since = [one["epoch"] for one in store.epochs_seen(cell_id)[lines:]]
    return store.is_done(cell_id) or bool(since) and max(since) > since[0]


_TELLS = {
    "cancelled": "job {job} was cancelled ({state}); what was saved stays, and the next run goes on from there",
    "import": "job {job} could not import what it needs: {last}",
    "not begun": "job {job} ended ({state}) before it could begin: {last}",
    "host memory": "job {job} took more memory than it had asked for ({asked}){company}",
    "killed": "the process of job {job} was killed ({state}): by hand, or by the machine's guard against running out of memory",
    "lost": "job {job} is not known to SLURM any more and left no result: it was cancelled while it waited, or its books are gone",
    "no progress": "job {job} ran out of its {timeout_min} min without one new epoch: ask for more time (timeout_min)",
    "node failure": "the node {node} of job {job} failed",
    "preempted": "job {job} was preempted and not put back into the queue",
    "stopped": "job {job} saved and ended: SLURM would neither put it back into the queue nor take another in its place",
    "time limit": "job {job} ran out of its {timeout_min} min; it came further, and the next one goes on from there",
}


def _tell(store: Store, ledger: Ledger, note: Note, index: int, undone: Sequence[str], kind: str, seen: Seen | None) -> None:
    """Write the failure beside every cell of a job that ended without it, unless the job itself did."""
    if kind not in _TELLS:
        return
    job, node = note.job_of(index), seen.node if seen else ""
    asked = next((f"{word} {note.request[word]}" for word in note.request if "mem" in word), "the cluster's default")
    company = " with " + str(len(undone)) + " students side by side" if len(undone) > 1 else ""
    lines = _log(ledger.folder(note), job)[-LAST_LINES:]
    last = next((line.strip() for line in reversed(lines) if line.strip() and "srun: error" not in line), "its log is empty")
    state = seen.state if seen else "LOST"
    message = _TELLS[kind].format(
        job=job, node=node, state=state, asked=asked, company=company, last=last, timeout_min=note.request["timeout_min"]
    )
    for cell_id in undone:
        if store.failure(cell_id) is None:
            failure.put(store, cell_id, failure.ended(kind, message, lines, node, job))
