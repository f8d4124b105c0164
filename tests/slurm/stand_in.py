"""A scheduler that answers what a test says, and submissions without sbatch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.slurm.scheduler import JobInfo, Limits, QueueSnapshot, Scheduler
from kdbench.slurm.submissions import Settings, Submission, Submissions
from kdbench.store import Store


@dataclass
class StandIn(Scheduler):
    """Answers what it was given, and records what it was asked to do."""

    queue: QueueSnapshot = field(default_factory=lambda: QueueSnapshot(True))
    details: dict[str, str] = field(default_factory=dict)
    refuses: str = ""
    requeued: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    after_cancel: QueueSnapshot | None = None

    def snapshot(self, wanted: Iterable[str] = (), users: Iterable[str] = ()) -> QueueSnapshot:
        return self.queue

    def detail(self, job: str) -> dict[str, str]:
        return self.details

    def limits(self, account: str | None = None) -> Limits:
        return Limits("big", 1001, None)

    def requeue(self, job: str) -> str:
        self.requeued.append(job)
        return self.refuses

    def cancel(self, jobs: Sequence[str]) -> str:
        self.cancelled += jobs
        self.queue = self.queue if self.after_cancel is None else self.after_cancel
        return self.refuses

    def sees(self, submission: Submission, *states: str, node: str = "node7", name: str | None = None) -> StandIn:
        """The elements of a submission in these states ('' is absent)."""
        named = {submission.job_of(index): state for index, state in enumerate(states) if state}
        jobs = {job: JobInfo(job, name or submission.name, state, node) for job, state in named.items()}
        self.queue = QueueSnapshot(True, jobs)
        return self


def submitted(store: Store, *elements: list[list[str]], job: str | None = "12", at: float = 0.0, **more: Any) -> Submission:
    """A submission as it is on disk."""
    fields: dict[str, Any] = {
        "suite": "tiny",
        "token": Submissions.token(elements),
        "cluster": "cluster.yaml",
        "slurm": "big",
        "request": {"timeout_min": 60, "mem_gb": 4, "slurm_signal_delay_s": 90},
        "settings": Settings(data=str(store.root), readers=0),
        "elements": list(elements),
        "job": job,
        "at": float(at),
        **more,
    }
    submission = Submission(**fields)
    Submissions(store).write(submission)
    return submission
