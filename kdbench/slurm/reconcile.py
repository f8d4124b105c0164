"""What became of every job that was submitted: the submissions and the results on disk first, then SLURM. Each end is recorded once."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kdbench import failure
from kdbench.failure import LAST_LINES
from kdbench.slurm.cluster import memory
from kdbench.slurm.scheduler import JobInfo, QueueSnapshot, Scheduler
from kdbench.slurm.submissions import JobEnd, Json, Submission, Submissions, elements_of
from kdbench.store import Store
from kdbench.submitit_adapter import log, put_payload

SETTLE_S = 5.0
"""A process that was killed while it submitted may leave an sbatch behind that is still sending its request."""

FUNCTIONS = {"train": "kdbench.slurm.job:train", "profile": "kdbench.slurm.job:profile"}
"""What a job of each kind runs, by name: this module is imported where torch is not."""

_BY_STATE = {
    **dict.fromkeys(("CANCELLED", "REVOKED"), "cancelled"),
    **dict.fromkeys(("TIMEOUT", "DEADLINE"), "time limit"),
    **dict.fromkeys(("NODE_FAIL", "BOOT_FAIL"), "node failure"),
    "OUT_OF_MEMORY": "host memory",
    "PREEMPTED": "preempted",
}
_BY_LOG = (
    (r"oom.kill|exceeded (job |step )?memory limit|out of memory handler|Out Of Memory", "host memory"),
    (r"CANCELLED AT \S+ DUE TO TIME LIMIT", "time limit"),
    (r"CANCELLED AT \S+ DUE TO PREEMPTION", "preempted"),
    (r"CANCELLED AT \S+ DUE TO NODE FAILURE", "node failure"),
    (r"CANCELLED AT \S+ \*\*\*", "cancelled"),
)
"""SLURM's own lines in a job's log: a controller forgets a job after minutes, and many clusters have no accounting."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job that has not ended: an element of a submission. `info` is None while SLURM does not list it, and `why` says more."""

    submission: Submission
    index: int
    info: JobInfo | None
    why: str = ""

    @property
    def id(self) -> str:
        return self.submission.job_of(self.index)

    @property
    def is_live(self) -> bool:
        return self.info is not None and self.info.is_live

    def __str__(self) -> str:
        return f"job {self.id}" if self.id else "a job whose number is not known yet"


@dataclass
class QueueState:
    """`answered` whether SLURM did, else `why` it did not; `queued` all jobs of this user that have not ended; `jobs` those of
    these submissions, `alive` by the cells that they train; `lost` live jobs whose submission is damaged, each with its suite;
    `problems` are sentences about damaged files."""

    answered: bool
    why: str = ""
    queued: int = 0
    jobs: list[SubmittedJob] = field(default_factory=list)
    alive: dict[str, SubmittedJob] = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def queue_state(
    store: Store, scheduler: Scheduler, cluster: str | None = None, lost_after_s: float | None = None, write: bool = True
) -> QueueState:
    """The state of everything that was submitted and has no recorded end. `cluster` is SLURM's name of the cluster that is asked (jobs of
    another cluster are not judged); `lost_after_s` None: as each submission says. With `write`, for which the right to submit must be
    held, ends are recorded, failures written beside their cells, and submissions that were interrupted are completed."""
    submissions, damaged = Submissions(store).read()
    here = [one for one in submissions if one.unfinished() and (not cluster or one.slurm in ("", cluster))]
    wanted = [job for one in here for job in ([one.job_of(index) for index in one.unfinished()] if one.job else [one.name])]
    users = [one.user for one in here]
    snapshot = scheduler.snapshot(wanted, users)
    if write and any(one.job is None and time.time() - one.at < SETTLE_S for one in here):
        time.sleep(SETTLE_S)
        snapshot = scheduler.snapshot(wanted, users)
    state = QueueState(snapshot.answered, snapshot.why, sum(info.is_live for info in snapshot.jobs.values()))
    for one in damaged:  # their jobs are known by their name alone
        jobs = [info.job for info in snapshot.named(one.name) if info.is_live]
        state.lost |= dict.fromkeys(jobs, one.suite)
        state.problems.append(one.why + (f"; its jobs {', '.join(jobs)} are in the queue: `kdbench cancel` ends them" if jobs else ""))
    reconciler = _Reconciler(Submissions(store), snapshot, cluster, lost_after_s, write, state, submissions)
    state.submissions = [reconciler.submission(one) if one.unfinished() else one for one in submissions]
    return state


def payload(submission: Submission, index: int, store: Store) -> tuple[str, list[str], str, int]:
    """What a job is given: the results folder, cell ids, and which element of which submission it is."""
    return str(store.root.resolve()), submission.cells(index), f"{submission.suite}/{submission.token}", index


@dataclass
class _Reconciler:
    """Compares one look at the queue with the submissions and results on disk."""

    submissions: Submissions
    snapshot: QueueSnapshot
    cluster: str | None
    lost_after_s: float | None
    write: bool
    state: QueueState
    known: Sequence[Submission]

    def __post_init__(self) -> None:
        self.store = self.submissions.store
        self.owners = {cell_id: (one.token, index) for one, index in elements_of(self.known) for cell_id in one.cells(index)}

    def submission(self, submission: Submission) -> Submission:
        """Judge every open element; returns the submission with its new ends, which is written once."""
        if self.cluster and submission.slurm and submission.slurm != self.cluster:
            for index in submission.unfinished():
                self._alive(submission, index, None, f"it was submitted on another cluster, {submission.slurm}: run `kdbench status` there")
            return submission
        current = submission if submission.job else self._found_again(submission)
        if current is None:
            return submission
        ends = {index: end for index in current.unfinished() if (end := self._element(current, index)) and self.write}
        current = replace(current, ended={**current.ended, **ends})
        if self.write and current != submission:
            self.submissions.write(current)
        return current

    def _found_again(self, submission: Submission) -> Submission | None:
        """A submission whose number was not recorded, with the number that its name has in the queue; None when it is not there."""
        infos = self.snapshot.named(submission.name)
        if not infos:
            if not self.snapshot.answered:
                for index in submission.unfinished():
                    self._alive(submission, index, None, f"SLURM does not answer: {self.snapshot.why}")
            elif self.write:
                self.store.remove_tree(self.submissions.folder(submission))
            return None
        found = replace(submission, job=infos[0].job.split("_")[0])
        for index in range(len(found.elements)) if self.write else ():
            given = payload(found, index, self.store)
            job, folder = found.job_of(index), self.submissions.folder(found)
            put_payload(folder, job, FUNCTIONS[found.kind], given, found.request["timeout_min"])
            for cell_id in found.cells(index):
                former = self.store.failure(cell_id)
                if former and former.job != job:
                    self.store.clear_failure(cell_id)
        return found

    def _element(self, submission: Submission, index: int) -> JobEnd | None:
        """How an element ended; None while it has not, or may not have."""
        job, folder = submission.job_of(index), self.submissions.folder(submission)
        events, problem = self.submissions.events(submission, index)
        self.state.problems += [problem] if problem else []
        events = events[max((place for place, one in enumerate(events) if one["event"] == "began"), default=0) :]  # since it last started
        left = [cell_id for cell_id in submission.cells(index) if not self.store.is_done(cell_id)]
        undone = [cell_id for cell_id in left if self.owners[cell_id] == (submission.token, index)]  # others were submitted again later
        info = self.snapshot.jobs.get(job)
        if info is not None and info.name != submission.name:
            info = None  # another job with the same number, of a cluster that was set up anew
        if info is not None and info.is_live:
            self._alive(submission, index, info, "", undone)
            return None
        ended = submission.kind == "profile" and any(one["event"] == "ended" for one in events)
        if ended or (submission.kind == "train" and not undone):
            return self._end(info, "moved" if left else "done", ()) if info is not None or self.snapshot.answered else None
        lines = log(folder, job)
        by_log = _class_by_log(lines)
        if any(self.store.is_alive(cell_id) for cell_id in undone):  # it is about to save, or SLURM does not list it for a moment
            self._alive(submission, index, info, "its process is alive", undone)
            return None
        if info is None and (why := self._may_be_there(submission, index, 0.0 if by_log else self.lost_after_s)):
            self._alive(submission, index, None, why, undone)
            return None
        kind = _class(self.store, events, undone, info, by_log, lines)
        if self.write:
            _put_failures(self.store, submission, index, undone, kind, info, lines[-LAST_LINES:])
        return self._end(info, kind, undone)

    def _alive(self, submission: Submission, index: int, info: JobInfo | None, why: str, undone: Sequence[str] | None = None) -> None:
        mine, job = (submission.token, index), SubmittedJob(submission, index, info, why)
        if undone is None:
            undone = [one for one in submission.cells(index) if self.owners[one] == mine and not self.store.is_done(one)]
        self.state.jobs.append(job)
        self.state.alive |= dict.fromkeys(undone, job)

    def _end(self, info: JobInfo | None, kind: str, undone: Sequence[str]) -> JobEnd:
        classes = {cell_id: own.kind for cell_id in undone if (own := self.store.failure(cell_id))}
        state, node = (info.state, info.node) if info else ("LOST" if undone else "", "")
        return JobEnd(state, kind, node, classes, time.time())

    def _may_be_there(self, submission: Submission, index: int, lost_after_s: float | None) -> str:
        """Why a job that SLURM does not list may still be there; empty when it is lost."""
        if not self.snapshot.answered:
            return f"SLURM does not answer: {self.snapshot.why}"
        patience_s = submission.settings.lost_after_s if lost_after_s is None else lost_after_s
        silent_s = self.submissions.silent_s(submission, index)
        return f"SLURM does not list it; it counts as lost in {patience_s - silent_s:.0f} s" if silent_s < patience_s else ""


def _class_by_log(lines: Sequence[str]) -> str | None:
    """The class of an end that SLURM wrote into a job's log."""
    own = [line for line in lines if "slurmstepd" in line or "srun: error" in line]
    return next((kind for pattern, kind in _BY_LOG if any(re.search(pattern, line, re.IGNORECASE) for line in own)), None)


def _class(
    store: Store, events: Sequence[Json], undone: Sequence[str], info: JobInfo | None, by_log: str | None, lines: Sequence[str]
) -> str:
    """Why a job ended without its cells: by SLURM's state, by the job's log, by its journal, by the failures that it wrote."""
    names = {one["event"] for one in events}
    if "left" in names:
        return "left"
    kind = _BY_STATE.get(info.state) if info else None
    if by_log == "host memory" or kind is None:
        kind = by_log or kind
    if kind == "time limit":
        before = events[0].get("lines") if events else None  # by cell, how many lines of progress there were when the job began
        lines_by_cell = before.items() if isinstance(before, dict) else ()
        return kind if any(type(count) is int and new_epoch(store, one, count) for one, count in lines_by_cell) else "no progress"
    if kind is not None:
        return kind
    if "stopped" in names:
        return "stopped"
    own = [store.failure(cell_id) for cell_id in undone]
    if own and own[0] and all(own):
        return own[0].kind
    if info is None:
        return "lost"
    if "began" not in names:
        return "import" if any(re.search(r"ModuleNotFoundError|ImportError", line) for line in lines) else "not begun"
    return "killed"


def new_epoch(store: Store, cell_id: str, lines: int) -> bool:
    """Whether a cell has completed an epoch since its progress had so many lines."""
    since = [one["epoch"] for one in store.epochs_seen(cell_id)[lines:]]
    return store.is_done(cell_id) or bool(since) and max(since) > since[0]


_MESSAGES = {
    "cancelled": "job {job} was cancelled ({state}); what it saved is kept, and the next run continues from there",
    "import": "job {job} could not import a module: {last}",
    "not begun": "job {job} ended ({state}) before the training began: {last}",
    "host memory": "job {job} used more memory than it requested ({asked}){company}",
    "killed": "the process of job {job} was killed ({state}): by a user, or by the system when memory ran out",
    "lost": "SLURM no longer lists job {job}, and there is no result: it was cancelled while it waited, or SLURM lost its records",
    "no progress": "job {job} reached its limit of {timeout_min} min without a new epoch: increase timeout_min",
    "node failure": "the node {node} of job {job} failed",
    "preempted": "job {job} was preempted and not requeued",
    "stopped": "job {job} saved its progress and ended: SLURM neither requeued it nor accepted another job",
    "time limit": "job {job} reached its limit of {timeout_min} min after new epochs; the next job continues from there",
}


def _put_failures(
    store: Store, submission: Submission, index: int, undone: Sequence[str], kind: str, info: JobInfo | None, lines: Sequence[str]
) -> None:
    """Write the failure beside every cell of a job that ended without it, unless the job itself did."""
    if kind not in _MESSAGES:
        return
    job, node = submission.job_of(index), info.node if info else ""
    message = _MESSAGES[kind].format(
        job=job,
        node=node,
        state=info.state if info else "LOST",
        asked=memory(submission.request),
        company=f" with {len(undone)} students side by side" if len(undone) > 1 else "",
        last=next((line.strip() for line in reversed(lines) if line.strip() and "srun: error" not in line), "its log is empty"),
        timeout_min=submission.request["timeout_min"],
    )
    for cell_id in undone:
        if store.failure(cell_id) is None:
            failure.put(store, cell_id, failure.ended(kind, message, lines, node, job))
