"""What runs on a node: `train` is the function that submitit calls. It looks after its own signals, time limit and teacher."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.run import failure, watch
from kdbench.run.failure import STOPPED
from kdbench.run.worker import Stop, work
from kdbench.slurm import launch
from kdbench.slurm.ledger import Ledger, Note
from kdbench.slurm.reconcile import new_epoch, standing
from kdbench.slurm.scheduler import Scheduler
from kdbench.store import HEARTBEAT_S, STALE_S, Store, slurm_job

EARLY_S = 65.0
"""SLURM may signal the end of a job's time up to a minute early."""


def train(root: str, ids: Sequence[str], name: str, index: int) -> int:
    """Train cells in this job. `name` (`suite/token`) and `index` say which element of which submission this is.

    Returns the exit status; raises SystemExit where SLURM is about to end the job, or has put it back into the queue.
    """
    return Job(Store(root), ids, name, index, Stop()).train()


class Job:
    """One element of a submission, on its node. To be made after submitit has set its signal handlers: `stop` sets others."""

    def __init__(self, store: Store, ids: Sequence[str], name: str, index: int, stop: Stop, scheduler: Scheduler | None = None):
        self.store, self.ids, self.index, self.stop = store, list(ids), index, stop
        self.ledger, self.scheduler = Ledger(store), scheduler or Scheduler()
        suite, _, token = name.partition("/")
        found = self.ledger.note(suite, token)
        if found is None:
            raise KdbenchError(f"there is no submission {name} under {store.root}: its folder was removed while the job waited")
        self.note: Note = found
        self.lines = {cell_id: len(store.epochs_seen(cell_id)) for cell_id in self.ids if not store.is_done(cell_id)}

    def say(self, event: str, **more: Any) -> None:
        self.store.append_line(self.ledger.journal(self.note, self.index), {"event": event, "at": round(time.time(), 3), **more})

    def train(self) -> int:
        here = slurm_job() or {}
        gpus = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_GPUS_ON_NODE")
        self.say("began", node=socket.gethostname(), job=here.get("id"), restart=here.get("restart"), gpus=gpus, lines=self.lines)
        ready = self._ready(list(self.lines))
        status = self._work(ready)
        if status == STOPPED:
            return self._put_back()
        held = self._await_stale(ready)
        if self.stop.asked and self._unsettled(ready):
            return self._put_back()
        if held:
            status |= self._work(held)
            if status == STOPPED:
                return self._put_back()
        self.say("left" if self._unsettled(ready) else "ended", status=status)
        return status

    def _unsettled(self, ids: Sequence[str]) -> list[str]:
        """Cells with neither a record nor a failure."""
        return [cell_id for cell_id in ids if not self.store.is_done(cell_id) and not self.store.failure(cell_id)]

    def _work(self, ids: Sequence[str]) -> int:
        if not ids:
            return 0
        says = self.note.settings
        return work(
            self.store,
            ids,
            Path(says["data"]),
            says["device"],
            says["checkpoint_every_s"],
            says["side_by_side"],
            self.stop,
            says["readers"],
        )

    # Teachers: their record first

    def _ready(self, ids: Sequence[str]) -> list[str]:
        """Those of the cells that can be trained now. What waits for a teacher is submitted again behind it, what waits in vain is told."""
        ready: list[str] = []
        waiting: dict[str, list[str]] = {}
        for cell_id in ids:
            try:
                teacher = self.store.cell(cell_id).depends.get("teacher")
            except KdbenchError:  # the worker tells of it
                teacher = None
            if teacher is None or self.store.is_done(teacher):
                ready.append(cell_id)
            else:
                waiting.setdefault(teacher, []).append(cell_id)
        for teacher, cells in waiting.items():
            self._behind(teacher, cells)
        return ready

    def _behind(self, teacher: str, cells: Sequence[str]) -> None:
        now = watch.state(self.store, teacher)
        queue = standing(self.store, self.scheduler, self.note.slurm, write=False)
        place = queue.alive.get(teacher)
        why = f"it is {now.name}{' (' + now.why + ')' if now.why else ''}"
        if place is None and now.name != "running":
            unasked = "" if queue.answered else f", and SLURM cannot be asked for its job ({queue.why})"
            self._block(teacher, cells, why + unasked)
            return
        try:
            # A teacher that is trained outside SLURM has no job to wait behind.
            live = place is not None and place.seen is not None and place.seen.is_live
            moved = launch.again(self.store, self.note, self.index, cells, after=[place.job] if live and place else [], later=not live)
            self.say("moved", to=moved.job, cells=list(cells), why=f"its teacher {teacher} is still being trained")
        except KdbenchError as error:
            self._block(teacher, cells, f"{why}, and no job could be put behind it: {error}")

    def _block(self, teacher: str, cells: Sequence[str], why: str) -> None:
        failure.note(f"blocked by teacher {teacher}: {why}")
        for cell_id in cells:
            failure.put(self.store, cell_id, failure.blocked(f"blocked by teacher {teacher}: {why}"))

    # The end of a job's time

    def _put_back(self) -> int:
        """Everything is saved: back into the queue, unless SLURM ends the job itself or another try would not come further."""
        job = self.note.job_of(self.index)  # and not SLURM_JOB_ID: an array's last element has the number of the array
        detail = self.scheduler.detail(job)
        state = detail.get("JobState", "")
        if state not in ("RUNNING", ""):
            # Cancelled, or preempted and about to be queued again: what SLURM has begun is not ours to change.
            self.say("ending", state=state)
            raise SystemExit(STOPPED)
        timed_out = self._time_is_up(detail)
        if timed_out and not any(new_epoch(self.store, cell_id, lines) for cell_id, lines in self.lines.items()):
            self._no_progress(job)
            return 1
        cause = "time limit" if timed_out else "asked to make room"
        self.say("requeued", cause=cause)
        refused = self.scheduler.requeue(job)
        if not refused:
            raise SystemExit(STOPPED)
        failure.note(f"SLURM does not put this job back into the queue ({refused}): it submits another in its place")
        try:
            undone = [cell_id for cell_id in self.ids if not self.store.is_done(cell_id)]
            moved = launch.again(self.store, self.note, self.index, undone, after=[job])
            self.say("moved", to=moved.job, cells=undone, why=f"{cause}; requeue was refused: {refused}")
        except KdbenchError as error:
            failure.note(str(error))
            self.say("stopped", cause=cause, why=f"{refused}; {error}")
        raise SystemExit(STOPPED)

    def _time_is_up(self, detail: dict[str, str]) -> bool:
        if detail.get("PreemptTime", "None") not in ("None", ""):
            return False
        try:
            end = datetime.fromisoformat(detail["EndTime"]).timestamp()
        except (KeyError, ValueError):
            return False
        return time.time() > end - EARLY_S - self.note.request["slurm_signal_delay_s"]

    def _no_progress(self, job: str) -> None:
        self.say("no progress")
        limit = self.note.request["timeout_min"]
        message = f"the limit of {limit} min brought no new epoch: ask for more time (timeout_min), or put fewer students side by side"
        for cell_id in self._unsettled(self.ids):
            failure.put(self.store, cell_id, failure.ended("no progress", message, failure.log, socket.gethostname(), job))

    def _await_stale(self, ids: Sequence[str]) -> list[str]:
        """Cells whose claim outlived its holder on another host: a claim that nobody refreshes is given up, and waited for until then."""
        held = self._unsettled(ids)
        end = time.monotonic() + STALE_S + 2 * HEARTBEAT_S
        while held and not self.stop.asked and time.monotonic() < end:
            holders = [self.store.claim_holder(cell_id) for cell_id in held]
            if not any(holder and holder["host"] != socket.gethostname() for holder in holders):
                break
            time.sleep(1.0)
        return [cell_id for cell_id in held if not self.store.is_alive(cell_id)]
