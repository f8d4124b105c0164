"""What has become of every job that was submitted: our notes and the disk first, then SLURM. Ends are written down once, with a class."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.run import failure
from kdbench.run.failure import LAST_LINES, STOPPED
from kdbench.slurm.ledger import Json, Ledger, Note
from kdbench.slurm.scheduler import Scheduler, Seen, Sight
from kdbench.store import Store
from kdbench.through_submitit import BEGINS, discard, output, put_payload

SETTLE_S = 3.0
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
    sight = scheduler.look([note.job_of(index) for note in waiting if note.job for index in note.open()])
    if write and any(note.job is None and time.time() - note.at < SETTLE_S for note in waiting):
        time.sleep(SETTLE_S)
        sight = scheduler.look()
    found = Standing(sight.answered, sight.why, sum(seen.is_live for seen in sight.jobs.values()), notes=notes)
    for note in waiting:
        if note.job is None and not _found_again(ledger, note, sight, write):
            continue
        for index in note.open():
            _judge(store, ledger, note, index, sight, found, cluster, lost_after_s, write)
    return found


def _found_again(ledger: Ledger, note: Note, sight: Sight, write: bool) -> bool:
    """A submission whose number was never noted: by its name it is found again, or it never came to be. Returns whether to judge it."""
    seen = sight.named(note.name)
    if seen:
        note.job = seen[0].job.split("_")[0]
        if write:
            from kdbench.slurm.job import train

            for index in range(len(note.elements)):
                put_payload(ledger.folder(note), note.job_of(index), train, payload(ledger, note, index), note.request["timeout_min"])
            ledger.write(note)
        return True
    if sight.answered and write:
        discard(ledger.folder(note))
    return False


def payload(ledger: Ledger, note: Note, index: int) -> tuple[str, list[str], str, int]:
    """All that a job is given: the results folder, cell ids, and which line of which note it is."""
    return str(ledger.store.root.resolve()), note.cells(index), f"{note.suite}/{note.token}", index


def _judge(
    store: Store,
    ledger: Ledger,
    note: Note,
    index: int,
    sight: Sight,
    found: Standing,
    cluster: str | None,
    lost_after_s: float | None,
    write: bool,
) -> None:
    undone = [cell_id for cell_id in note.cells(index) if not store.is_done(cell_id)]
    job = note.job_of(index)
    seen = sight.jobs.get(job)
    if seen is not None and seen.name != note.name:
        seen = None  # a number that was given twice: this is another job, of a cluster that was set up anew
    if seen is not None and seen.is_live:
        found.alive |= dict.fromkeys(undone, Place(note, index, seen))
        return
    if not undone:
        if write:
            _end(ledger, note, index, {"state": seen.state if seen else "", "class": "done", "cells": {}})
        return
    told = _by_log(ledger.folder(note), job)
    if seen is None:
        why = _not_yet_lost(ledger, note, index, sight, cluster, 0.0 if told else lost_after_s)
        if why:
            found.alive |= dict.fromkeys(undone, Place(note, index, None, why))
            return
    elif any(store.is_alive(cell_id) for cell_id in undone):  # its process is still about to save
        found.alive |= dict.fromkeys(undone, Place(note, index, seen, "ending"))
        return
    if write:
        kind = _class(store, ledger, note, index, seen, told)
        _tell(store, ledger, note, index, undone, kind, seen)
        classes = {cell_id: own["class"] for cell_id in undone if (own := store.failure(cell_id))}
        state, node = (seen.state, seen.node) if seen else ("LOST", "")
        _end(ledger, note, index, {"state": state, "class": kind, "node": node, "cells": classes})


def _not_yet_lost(ledger: Ledger, note: Note, index: int, sight: Sight, cluster: str | None, lost_after_s: float | None) -> str:
    """Why a job that SLURM does not name may still be there; empty when it is lost."""
    if not sight.answered:
        return f"SLURM does not answer: {sight.why}"
    if cluster and note.slurm and note.slurm != cluster:
        return f"it was submitted on another cluster, {note.slurm}: ask there"
    patience = note.settings.get("lost_after_s", 60.0) if lost_after_s is None else lost_after_s
    silent = time.time() - ledger.last_sign_s(note, index)
    return f"SLURM does not know it; given up in {patience - silent:.0f} s" if silent < patience else ""


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


def _class(store: Store, ledger: Ledger, note: Note, index: int, seen: Seen | None, told: str | None) -> str:
    said = ledger.said(note, index)
    last = said[-1]["event"] if said else ""
    if last in ("moved", "left"):
        return last
    kind = _BY_STATE.get(seen.state) if seen else None
    if told == "host memory" or kind is None:
        kind = told or kind
    if kind == "time limit":
        return "time limit" if _brought_an_epoch(store, said, note.cells(index)) else "no progress"
    if kind is not None:
        return kind
    if seen is None:
        return "lost"
    if last == "stopped":
        return "stopped"
    own = [store.failure(one) for one in note.cells(index) if not store.is_done(one)]
    return own[0]["class"] if own[0] and all(own) else "killed"


def _brought_an_epoch(store: Store, said: Sequence[Json], cells: Sequence[str]) -> bool:
    """Whether, since the job last began, one of its cells came an epoch further."""
    began = [one for one in said if one["event"] == "began"]
    if not began:
        return False
    before: dict[str, int] = began[-1]["lines"]
    return any(new_epoch(store, cell_id, before.get(cell_id, 0)) for cell_id in cells)


def new_epoch(store: Store, cell_id: str, lines: int) -> bool:
    """Whether a cell came an epoch further than where it took up its work after so many lines of its progress."""
    since = [one["epoch"] for one in store.epochs_seen(cell_id)[lines:]]
    return store.is_done(cell_id) or bool(since) and max(since) > since[0]


def _end(ledger: Ledger, note: Note, index: int, how: Json) -> None:
    note.ended[str(index)] = {**how, "at": time.time()}
    ledger.write(note)


_TELLS = {
    "cancelled": "job {job} was cancelled ({state}); what was saved stays, and the next run goes on from there",
    "host memory": "job {job} took more memory than it had asked for ({asked}){company}",
    "killed": "the process of job {job} ended without a word ({state}); the machine's own guard against running out of memory does that",
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
    message = _TELLS[kind].format(
        job=job, node=node, state=seen.state if seen else "LOST", asked=asked, company=company, timeout_min=note.request["timeout_min"]
    )
    lines = _log(ledger.folder(note), job)[-LAST_LINES:]
    for cell_id in undone:
        if store.failure(cell_id) is None:
            failure.put(store, cell_id, failure.ended(kind, message, lines, node, job))


__all__ = ["STOPPED", "Place", "Standing", "new_epoch", "payload", "standing"]
