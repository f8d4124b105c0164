"""submitit's one door: the words of its executor, submitting arrays, and the payload that a job will look for."""

from __future__ import annotations

import os
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdbench.errors import ClusterError, FullError, RequestError

REPLACED = {"slurm_time": "timeout_min", "slurm_job_name": "name", "slurm_nodes": "nodes", "slurm_ntasks_per_node": "tasks_per_node"}
"""SLURM's own spelling of words that submitit has for every kind of cluster."""

_FULL = ("SubmitJob", "temporarily unable to accept", "MaxJobCount", "Invalid job array specification")
"""In refusals that are of how many jobs there are: `QOSMaxSubmitJobPerUserLimit`, `AssocGrpSubmitJobsLimit`, ..."""
_SILENT = ("timed out", "Unable to contact", "Connection refused", "Zero Bytes were transmitted", "Communication connection failure") + (
    ("Message receive failure", "Message send failure", "Protocol authentication error", "standby mode", "Communication shutdown failure")
)
"""In errors after which a job may be there all the same."""
BEGINS = "Starting with JobEnvironment"
"""In the first line of a job's log, each time that SLURM starts it."""


def words() -> dict[str, Any]:
    """The words that submitit's AutoExecutor takes for SLURM, each with its type."""
    from submitit import AutoExecutor
    from submitit.slurm import slurm

    shared: dict[str, Any] = dict(AutoExecutor._typed_parameters())
    annotations = typing.get_type_hints(slurm._make_sbatch_string)
    own = {f"slurm_{name}": annotations[name] for name in slurm.SlurmExecutor._valid_parameters()}
    return {**shared, **{word: kind for word, kind in own.items() if word not in REPLACED and word.removeprefix("slurm_") not in shared}}


def defaults() -> dict[str, Any]:
    """What submitit asks of SLURM for each of its words that is not said."""
    from submitit.slurm import slurm

    return {f"slurm_{name}": value for name, value in slurm._get_default_parameters().items()}


def submit(folder: Path, request: Mapping[str, Any], function: Callable[..., Any], payloads: Sequence[tuple[Any, ...]]) -> list[str]:
    """Submit one job for each payload, as one array; returns their ids (`12`, or `12_0`, `12_1`, ... for several).

    Raises:
        FullError: SLURM takes no more jobs, or none in so large an array; nothing was submitted.
        RequestError: it refuses what is asked for; nothing was submitted.
        ClusterError: it is not there, or did not answer in time: whether it took the jobs is not known.
    """
    import submitit

    if shutil.which("srun") is None or shutil.which("sbatch") is None:
        raise ClusterError("there is no SLURM here: sbatch and srun are not on the PATH")
    with _outside_any_job():
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        # One log, in its order: what SLURM says of an end stands behind what the job said.
        executor.update_parameters(**{**request, "stderr_to_stdout": True})
        try:
            return [job.job_id for job in executor.map_array(function, *zip(*payloads, strict=True))]
        except submitit.core.utils.FailedJobError as error:
            raise _refusal(str(error)) from error


def _refusal(text: str) -> ClusterError:
    """What sbatch's words mean."""
    said = [line.partition("sbatch: error: ")[2] for line in text.splitlines() if "sbatch: error: " in line] or text.strip().splitlines()[
        -1:
    ]
    why = "; ".join(said) or "sbatch gave no reason"
    if any(word in why for word in _SILENT):
        return ClusterError(f"SLURM did not answer: {why}")
    return FullError(why) if any(word in why for word in _FULL) else RequestError(f"SLURM refuses the job: {why}")


def put_payload(folder: Path, job: str, function: Callable[..., Any], payload: tuple[Any, ...], timeout_min: int) -> bool:
    """Put a payload where its job looks for it, if it is not there: its submitter may have died before. Returns whether it did."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    path = JobPaths(folder, job_id=job).submitted_pickle
    if path.exists():
        return False
    delayed = DelayedSubmission(function, *payload)
    delayed.set_timeout(timeout_min, 0)
    whole = path.with_suffix(".whole")
    delayed.dump(whole)
    os.replace(whole, path)
    return True


def output(folder: Path, job: str) -> list[Path]:
    """Where a job's standard output and error lie."""
    from submitit.core.utils import JobPaths

    paths = JobPaths(folder, job_id=job)
    return [paths.stdout, paths.stderr]


def discard(folder: Path) -> None:
    """Remove the folder of a submission that came to nothing."""
    with suppress(OSError):
        shutil.rmtree(folder)


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """An environment without the variables of the job that submits, if one does; where SLURM is configured stays known."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    # How SLURM is reached, and what its user always asks for, stays.
    kept = {name: value for name, value in os.environ.items() if name in ("SLURM_CONF", "SLURM_JWT") or name.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(kept)
        yield
