"""The only module that uses submitit: parameters of its executor, submission of arrays, the payload and the log of a job."""

from __future__ import annotations

import importlib
import io
import os
import re
import shutil
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from kdbench.errors import ClusterError, OwnLimitError, QueueFullError, RequestError

REPLACED = {"slurm_time": "timeout_min", "slurm_job_name": "name", "slurm_nodes": "nodes", "slurm_ntasks_per_node": "tasks_per_node"}
"""SLURM's names for parameters that submitit has for every kind of cluster."""

_FULL = (
    r"temporarily un(able to accept|available)|MaxJobCount|Invalid job array specification|"
    r"\b(QOS|Assoc)(Grp(Submit)?Jobs?|\w*JobPerAccount)"
)
"""Refusals because of the number of jobs, also of other users: `AssocGrpSubmitJobsLimit`, ..."""
_FULL_OF_OWN = r"\b(QOS|Assoc)Max(Submit)?Jobs?(PerUser)?Limit"
"""Refusals because of the number of this user's jobs: `QOSMaxSubmitJobPerUserLimit`, ..."""
_NAMED = r"\b(QOS|Assoc)[A-Z]\w+"
"""SLURM's names of its limits; the others are on what a job asks for: `QOSMaxWallDurationPerJobLimit`, ..."""
_LIMIT = r"(?i)limit|max|too many|exceed|quota|reached|accounting/QOS policy"
_OF_JOBS = r"(?i)\bjobs\b|submit|submission|queue"
_OF_ONE_JOB = r"(?i)time|wall|minutes|hours|size|node|cpu|core|processor|gpu|gres|memory|disk|space|licen[sc]e|priority"
"""What a limit that is told in other words is on; SLURM's own general message names both."""
_SILENT = (
    "timed out|Unable to contact|Connection refused|Zero Bytes were transmitted|Communication connection failure|Message receive failure|"
    "Message send failure|Protocol authentication error|standby mode|Communication shutdown failure|Rate limit exceeded"
)
"""Errors after which the job may nevertheless have been accepted."""
_BEGINS = "Starting with JobEnvironment"
"""Part of the first line of a job's log, each time that SLURM starts it."""
_LOG_BYTES = 20_000


def words() -> dict[str, Any]:
    """The parameters of submitit's AutoExecutor for SLURM, each with its type."""
    from submitit import AutoExecutor
    from submitit.slurm import slurm

    shared: dict[str, Any] = dict(AutoExecutor._typed_parameters())
    annotations = typing.get_type_hints(slurm._make_sbatch_string)
    own = {f"slurm_{name}": annotations[name] for name in slurm.SlurmExecutor._valid_parameters()}
    return {**shared, **{word: kind for word, kind in own.items() if word not in REPLACED and word.removeprefix("slurm_") not in shared}}


def defaults() -> dict[str, Any]:
    """The defaults of submitit's SLURM parameters."""
    from submitit.slurm import slurm

    return {f"slurm_{name}": value for name, value in slurm._get_default_parameters().items()}


def call(function: str, *payload: Any) -> Any:
    """What a job runs: `module:name` is imported only on the node."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*payload)


def submit(folder: Path, request: Mapping[str, Any], function: str, payloads: Sequence[tuple[Any, ...]]) -> list[str]:
    """Submit one job for each payload, as one array; returns their ids (`12`, or `12_0`, `12_1`, ... for several).

    `function` is `module:name`. srun starts a copy of the process for each task of a job: one, if the request has no `tasks_per_node`.
    When one of several fails, srun ends the others.

    Raises:
        QueueFullError: SLURM accepts no more jobs, or no array of this size; nothing was submitted. OwnLimitError: because of a limit for
            this user, or one that it does not name.
        RequestError: SLURM refuses the request; nothing was submitted.
        ClusterError: SLURM is missing, does not answer in time, or its answer cannot be read; jobs may have been submitted.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("srun") is None or shutil.which("sbatch") is None:
        raise ClusterError("SLURM is not available here: sbatch and srun are not on the PATH")
    nodes, on_each = request.get("nodes", 1), request.get("tasks_per_node", 1)
    tasks = {
        "nodes": nodes,
        "tasks_per_node": on_each,
        "slurm_additional_parameters": {**(request.get("slurm_additional_parameters") or {}), "ntasks": nodes * on_each},
        "slurm_srun_args": [
            *(request.get("slurm_srun_args") or ()),
            f"--ntasks={nodes * on_each}",
            *(["--kill-on-bad-exit=1"] if nodes * on_each > 1 else []),
        ],
    }
    # submitit prints all output of sbatch, hints included; what matters is in the error.
    with _outside_any_job(), redirect_stderr(io.StringIO()):
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
            # One log: SLURM's message about the end of a job follows the job's own output.
            executor.update_parameters(**{**request, **tasks, "stderr_to_stdout": True})
            return [job.job_id for job in executor.map_array(call, [function] * len(payloads), *zip(*payloads, strict=True))]
        except FailedJobError as error:
            raise _refusal(str(error)) from error
        except FailedSubmissionError as error:
            raise ClusterError(f"the answer of sbatch cannot be read: {' '.join(str(error).split())[:120]}") from error
        except OSError as error:
            raise ClusterError(f"jobs cannot be submitted: {error}") from error


def reason(text: str) -> str:
    """The errors in the output of a SLURM command, without the command's name and usage hints."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not re.search(r"--help|^usage:", line.strip(), re.IGNORECASE)]
    errors = [line for line in lines if re.match(r"\w+: (error|fatal): ", line)]
    return "; ".join(dict.fromkeys(re.sub(r"^s\w+: ((error|fatal): )?", "", line) for line in errors or lines[-3:]))


def _refusal(text: str) -> ClusterError:
    """The error for a message of sbatch."""
    why = reason(text) or "sbatch gave no reason"
    if re.search(_SILENT, why):
        return ClusterError(f"SLURM did not answer: {why}")
    if re.search(_FULL, why):
        return QueueFullError(why)
    told = why.replace("Batch job submission failed", "")
    unclear = re.search(_LIMIT, told) and (re.search(_OF_JOBS, told) or not re.search(_OF_ONE_JOB, told))
    if re.search(_FULL_OF_OWN, why) or (unclear and not re.search(_NAMED, why)):
        return OwnLimitError(why)
    return RequestError(f"SLURM refuses the job: {why}")


def put_payload(folder: Path, job: str, function: str, payload: tuple[Any, ...], timeout_min: int) -> None:
    """Write the payload of a job if it is missing: the submitting process may have been killed before it wrote it."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    path = JobPaths(folder, job_id=job).submitted_pickle
    if path.exists():
        return
    delayed = DelayedSubmission(call, function, *payload)
    delayed.set_timeout(timeout_min, 0)
    whole = path.with_suffix(".whole")
    delayed.dump(whole)
    os.replace(whole, path)


def output(folder: Path, job: str) -> Path:
    """The log of a job."""
    from submitit.core.utils import JobPaths

    return JobPaths(folder, job_id=job).stdout


def log(folder: Path, job: str) -> list[str]:
    """The last lines of a job's log since SLURM last started the job."""
    try:
        with output(folder, job).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[max((place for place, line in enumerate(lines) if _BEGINS in line), default=0) :]


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """An environment without the variables of the job that this process runs in, if any."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    # Kept: how to reach SLURM, and the user's defaults for sbatch.
    settings = {name: value for name, value in os.environ.items() if name in ("SLURM_CONF", "SLURM_JWT") or name.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(settings)
        yield
