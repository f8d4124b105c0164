"""submitit's one door: the words of its executor, submitting arrays, and the payload that a job will look for."""

from __future__ import annotations

import os
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdbench.errors import ClusterError

REPLACED = {"slurm_time": "timeout_min", "slurm_job_name": "name", "slurm_nodes": "nodes", "slurm_ntasks_per_node": "tasks_per_node"}
"""SLURM's own spelling of words that submitit has for every kind of cluster."""

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
        ClusterError: there is no SLURM here, or it refuses; nothing was submitted then.
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
            raise ClusterError(f"SLURM refuses the job: {str(error).strip().splitlines()[-1]}") from error


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

    configured = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(configured)
        yield
