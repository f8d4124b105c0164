"""The verb `status` with what SLURM's queue adds to it."""

from __future__ import annotations

from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.plan.yaml import suite_name
from kdbench.run import status
from kdbench.slurm.reconcile import SubmittedJob, queue_state
from kdbench.slurm.scheduler import Scheduler
from kdbench.slurm.submissions import Submissions
from kdbench.store import Store
from kdbench.submitit_adapter import output


def queue_of(results: Path, suite: str) -> status.Queue | None:
    """What the queue says about a suite's jobs; ends that are not recorded yet are. None when no job of these results is open."""
    store, name = Store(results), suite_name(suite)
    submissions, damaged = Submissions(store).read()
    measured = next((one for one in reversed(submissions) if (one.kind, one.suite) == ("profile", name)), None)
    if not damaged and measured is None and not any(one.unfinished() for one in submissions):
        return None
    scheduler = Scheduler()
    try:
        with store.submitting(patience_s=1.0):
            state = queue_state(store, scheduler, scheduler.limits().cluster)
    except (KdbenchError, OSError) as error:  # another process submits, the folder belongs to somebody else, or SLURM is silent
        state = queue_state(store, scheduler, write=False)
        state.why = state.why or str(error)
    notes = list(state.problems)
    if not state.answered:
        notes.append(f"SLURM does not answer ({state.why}): the states below are from the results folder only")
    for one in state.submissions:
        if measured and one.token == measured.token and (end := one.ended.get(0)) and end.kind != "done":
            log = output(Submissions(store).folder(one), one.job_of(0))
            notes.append(f"costs: job {one.job} ended without a result ({end.state}, {end.kind}); its log is {log}")
    notes += [f"costs: {_in_words(job)}" for job in state.jobs if (job.submission.kind, job.submission.suite) == ("profile", name)]
    jobs = {cell_id: (job.info is not None and job.info.state == "RUNNING", _in_words(job)) for cell_id, job in state.alive.items()}
    return status.Queue(jobs, notes)


def _in_words(job: SubmittedJob) -> str:
    if job.info is None:
        return f"{job}: {job.why}"
    if job.info.state == "RUNNING":
        return f"{job} on {job.info.node}{f', {job.info.left} left' if job.info.left else ''}"
    reason = f" ({job.info.reason})" if job.info.reason not in ("", "None") else ""
    return f"{job} {job.info.state.lower()}{reason}"
