"""What runs on a node: submitit calls `train` or `profile`, by name. A job handles its own signals, time limit and teacher."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import failure
from kdbench.cell import depended
from kdbench.errors import KdbenchError
from kdbench.failure import STOPPED
from kdbench.process_log import last_lines, log
from kdbench.run.verbs import profile as measure
from kdbench.slurm import submit
from kdbench.slurm.reconcile import new_epoch, queue_state
from kdbench.slurm.scheduler import Scheduler
from kdbench.slurm.submissions import Submissions
from kdbench.store import HEARTBEAT_S, STALE_S, Store, cell_state, slurm_job
from kdbench.train.worker import Stop, work

if TYPE_CHECKING:
    from kdbench.train.meeting import Meeting

OVER = "over.json"
"""Beside the meetings of a job's ranks, when there will be no more."""
POLL_S = 0.2
EARLY_S = 65.0
"""SLURM may signal the end of a job's time up to a minute early."""


def train(root: str, ids: Sequence[str], name: str, index: int) -> int:
    """Train cells in this job. `name` (`suite/token`) and `index` say which element of which submission this is. Returns the exit status;
    raises SystemExit where SLURM is about to end the job, or has put it back into the queue."""
    run = ElementRun(Store(root), ids, name, index, Stop())
    return run.follow() if run.rank else run.train()


def profile(root: str, ids: Sequence[str], name: str, index: int) -> None:
    """Measure the costs of a suite in this job. Raises SystemExit when they could not all be measured."""
    run = ElementRun(Store(root), ids, name, index, Stop())
    run.add("began", node=socket.gethostname(), lines={})
    settings = run.submission.settings
    status = measure(Path(settings.suite), run.store.root, Path(settings.data), settings.device)
    if status:
        raise SystemExit(status)
    run.add("ended", status=status)


class ElementRun:
    """One element of a submission, on its node. Create it after submitit has set its signal handlers: `stop` replaces them."""

    def __init__(self, store: Store, ids: Sequence[str], name: str, index: int, stop: Stop, scheduler: Scheduler | None = None):
        self.store, self.ids, self.index, self.stop = store, list(ids), index, stop
        self.submissions, self.scheduler = Submissions(store), scheduler or Scheduler()
        suite, _, token = name.partition("/")
        self.submission = self.submissions.get(suite, token)
        self.rank, self.meetings = int(os.environ.get("SLURM_PROCID") or 0), 0
        self.lines = {cell_id: len(store.epochs_seen(cell_id)) for cell_id in self.ids if not store.is_done(cell_id)}

    @property
    def id(self) -> str:
        """SLURM's number of this job: from the submission or, where that was not completed yet, from the environment."""
        # In this order: SLURM_JOB_ID of an array's last element is the number of the whole array.
        return self.submission.job_of(self.index) or (slurm_job() or {"id": ""})["id"]

    def add(self, event: str, **more: Any) -> None:
        """One line of the journal."""
        self.store.append_line(self.submissions.journal(self.submission, self.index), {"event": event, "at": round(time.time(), 3), **more})

    def _meeting(self) -> Meeting | None:
        """The next meeting of the ranks of this job; None where it has one."""
        from kdbench.train.meeting import LOCAL, Meeting  # they load torch

        settings = self.submission.settings
        if settings.ranks == 1:
            return None
        self.meetings += 1
        folder = self._meetings_folder() / str(self.meetings)
        host = socket.gethostname() if self.submission.request.get("nodes", 1) > 1 else LOCAL
        return Meeting(self.store, folder, self.rank, settings.ranks, host, int(os.environ.get("SLURM_LOCALID") or self.rank))

    def _meetings_folder(self) -> Path:
        return self.submissions.folder(self.submission) / f"ranks-{self.index}-{os.environ.get('SLURM_RESTART_COUNT') or 0}"

    def follow(self) -> int:
        """Be another rank than the first: meet it each time that it trains, until it says that it does no more."""
        from kdbench.train.meeting import TELL_S

        status, parent = 0, os.getppid()
        while True:
            meeting = self._meeting()
            if meeting is None:
                return 0
            while not self.store.json(meeting.address):
                if self.store.json(meeting.folder.parent / OVER) or os.getppid() != parent:
                    return status
                time.sleep(POLL_S)
            its = self.submission.settings
            try:
                status |= work(self.store, (), Path(its.data), its.device, stop=self.stop, readers=its.readers, meeting=meeting)
            except Exception:
                # srun ends the others when this one ends: the first one is to write down what this one has told it.
                end = time.monotonic() + TELL_S
                while self.store.exists(meeting.folder) and time.monotonic() < end:
                    time.sleep(POLL_S)
                raise

    def train(self) -> int:
        try:
            return self._train()
        finally:
            if self.submission.settings.ranks > 1:
                self.store.write_json(self._meetings_folder() / OVER, True)

    def _train(self) -> int:
        here: Mapping[str, Any] = slurm_job() or {}
        gpus = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_GPUS_ON_NODE")
        self.add("began", node=socket.gethostname(), job=here.get("id"), restart=here.get("restart"), gpus=gpus, lines=self.lines)
        ready = self._ready(list(self.lines))
        status = self._work(ready)
        if status == STOPPED:
            return self._put_back()
        held = self._await_stale(ready)
        if self.stop.asked and self._unsettled(ready):
            return self._put_back()
        if held := self._ready(held):
            status |= self._work(held)
            if status == STOPPED:
                return self._put_back()
        self.add("left" if self._unsettled(ready) else "ended", status=status)
        return status

    def _unsettled(self, ids: Sequence[str]) -> list[str]:
        """Cells with neither a record nor a failure."""
        return [cell_id for cell_id in ids if not self.store.is_done(cell_id) and not self.store.failure(cell_id)]

    def _work(self, ids: Sequence[str]) -> int:
        its = self.submission.settings
        options = Path(its.data), its.device, its.checkpoint_every_s, its.side_by_side, self.stop, its.readers, its.tables
        return work(self.store, ids, *options, self._meeting()) if ids else 0

    def _ready(self, ids: Sequence[str]) -> list[str]:
        """Those of the cells that can be trained now. Others are submitted again behind what they depend on (their teacher, or a trial), or
        blocked if it will not finish."""
        ready: list[str] = []
        waiting: dict[tuple[str, str], list[str]] = {}
        for cell_id in ids:
            try:
                depends = self.store.cell(cell_id).depends.items()
            except KdbenchError:  # the worker reports it
                depends = {}.items()
            first = next(((depended(role), other) for role, other in depends if not self.store.is_done(other)), None)
            if first is None:
                ready.append(cell_id)
            else:
                waiting.setdefault(first, []).append(cell_id)
        for (role, other), cells in waiting.items():
            self._behind(role, other, cells)
        return ready

    def _behind(self, role: str, other: str, cells: Sequence[str]) -> None:
        now = cell_state.of(self.store, other)
        queue = queue_state(self.store, self.scheduler, self.submission.slurm, write=False)
        job = queue.alive.get(other)
        if job is None and now.name != "running":
            unasked = "" if queue.answered else f", and SLURM cannot be asked for its job ({queue.why})"
            self._block(role, other, cells, f"{now}{unasked}")
            return
        try:
            # One that is trained outside SLURM has no job to wait behind.
            after = [job.id] if job is not None and job.is_live else []
            moved = submit.again(self.store, self.submission, self.index, cells, after=after, later=not after)
            self.add("moved", to=moved.job, cells=list(cells), why=f"its {role} {other} is still being trained")
        except KdbenchError as error:
            self._block(role, other, cells, f"{now}, and no job could be submitted to wait for it: {error}")

    def _block(self, role: str, other: str, cells: Sequence[str], why: str) -> None:
        log(f"blocked by {role} {other}: {why}")
        for cell_id in cells:
            failure.put(self.store, cell_id, failure.blocked(f"blocked by {role} {other}: {why}"))

    def _put_back(self) -> int:
        """Put the job back into the queue after it has saved, unless SLURM ends it itself or another try would not get further."""
        detail = self.scheduler.detail(self.id)
        state = detail.get("JobState", "")
        if state not in ("RUNNING", ""):
            # Cancelled, or preempted and about to be queued again: SLURM finishes what it has begun.
            self.add("ending", state=state)
            raise SystemExit(STOPPED)
        timed_out = self._time_is_up(detail)
        if timed_out and not any(new_epoch(self.store, cell_id, lines) for cell_id, lines in self.lines.items()):
            self.add("no progress")
            limit = self.submission.request["timeout_min"]
            message = f"no epoch was completed within the limit of {limit} min: increase timeout_min, or reduce students_side_by_side"
            for cell_id in self._unsettled(self.ids):
                failure.put(self.store, cell_id, failure.ended("no progress", message, last_lines, socket.gethostname(), self.id))
            return 1
        cause = "time limit" if timed_out else "preempted"
        self.add("requeued", cause=cause)
        refused = self.scheduler.requeue(self.id)
        if not refused:
            raise SystemExit(STOPPED)
        log(f"SLURM does not requeue this job ({refused}): it submits another job instead")
        try:
            undone = [cell_id for cell_id in self.ids if not self.store.is_done(cell_id)]
            moved = submit.again(self.store, self.submission, self.index, undone, after=[self.id])
            self.add("moved", to=moved.job, cells=undone, why=f"{cause}; requeue was refused: {refused}")
        except KdbenchError as error:
            log(str(error))
            self.add("stopped", cause=cause, why=f"{refused}; {error}")
        raise SystemExit(STOPPED)

    def _time_is_up(self, detail: dict[str, str]) -> bool:
        if detail.get("PreemptTime", "None") not in ("None", ""):
            return False
        try:
            end = datetime.fromisoformat(detail["EndTime"]).timestamp()
        except (KeyError, ValueError):
            return False
        return time.time() > end - EARLY_S - self.submission.request.get("slurm_signal_delay_s", 0)

    def _await_stale(self, ids: Sequence[str]) -> list[str]:
        """Cells whose claim was left by a dead process on another host: it is waited for until it expires."""
        held = self._unsettled(ids)
        end = time.monotonic() + STALE_S + 2 * HEARTBEAT_S
        while held and not self.stop.asked and time.monotonic() < end:
            holders = [self.store.claim_holder(cell_id) for cell_id in held]
            if not any(holder and not holder.is_here for holder in holders):
                break
            time.sleep(1.0)
        return [cell_id for cell_id in held if not self.store.is_alive(cell_id)]
