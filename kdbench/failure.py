"""Failures are data: a kind, a message, a traceback and the last log lines, beside the cell, which stays wanted."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kdbench.errors import DataError, KdbenchError, PartError, RankError, RefusedError, StoreError, TeacherError
from kdbench.process import slurm_job
from kdbench.process_log import LAST_LINES, last_lines
from kdbench.validation import Schema1, Strict, from_json

CLASSES = {
    "blocked": "its teacher is missing or below the required metric",
    "cancelled": "its job was cancelled",
    "data": "a dataset or checkpoint is missing or wrong",
    "device memory": "the device ran out of memory",
    "disk": "the results folder could not be written, or holds a damaged file",
    "host memory": "the machine ran out of memory",
    "import": "a part could not be found or imported",
    "killed": "the process was killed from outside",
    "lost": "SLURM no longer lists its job, and there is no result",
    "not begun": "its job ended before training started",
    "not granted": "SLURM refused the requested resources",
    "no progress": "the time limit is too short for one epoch",
    "node failure": "the node failed",
    "preempted": "its job was preempted and not requeued",
    "raised": "a part raised an error",
    "refused": "the loss does not support this pair",
    "stopped": "its job was stopped and could not be requeued",
    "time limit": "the time limit was reached after new epochs",
}
"""Every class of failure, and what it means."""

CROWDED = ("device memory", "host memory")
"""Failures that the size of a bundle may cause: its students are tried again one by one."""

_DEVICE_FULL = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_HOST_FULL = ("can't allocate memory", "is killed by signal: Killed")
"""From torch's CPU allocator, and from its loader about a process that the machine killed."""

STOPPED = 75
"""Exit status of a worker that was asked to stop and has saved: try again (EX_TEMPFAIL)."""


@dataclass(frozen=True)
class Failure(Strict):
    """`kind` is one of `CLASSES` (`class` in the file); `job` is the SLURM job, if it was one."""

    kind: str
    message: str
    traceback: str = ""
    last_lines: tuple[str, ...] = ()
    at_utc: str = ""
    node: str = ""
    job: str | None = None
    schema: Schema1 = 1

    def to_json(self) -> dict[str, Any]:
        fields = {**vars(self), "last_lines": list(self.last_lines)}
        return {"schema": self.schema, "class": fields.pop("kind"), **fields}

    @classmethod
    def from_json(cls, data: Any) -> Failure:
        """Raises ValueError, naming field and value, for anything that `to_json` does not write."""
        named = {"kind" if name == "class" else name: value for name, value in data.items()} if isinstance(data, dict) else data
        found: Failure = from_json(cls, named)
        if found.kind not in CLASSES:
            raise ValueError(f"class: {found.kind!r}: expected one of {', '.join(CLASSES)}")
        return found


class FailureStore(Protocol):
    def put_failure(self, cell_id: str, failure: Failure) -> None: ...


def describe(error: BaseException, traceback: str) -> Failure:
    kind = classify(error)
    advice = "; use a smaller net or a device with more memory (kdbench never reduces the batch size)" if kind in CROWDED else ""
    there = f"{error.text}\n{traceback}" if isinstance(error, RankError) else traceback
    return _here(kind, f"{described(error)}{advice}", there, last_lines)


def described(error: BaseException) -> str:
    """`ValueError: too few`; kdbench's own errors say enough without their name."""
    return str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"


def killed(signal: str, lines: Iterable[str]) -> Failure:
    """The failure of a process that left nothing behind."""
    return _here("killed", f"the training process ended with {signal} and without an error message", "", lines)


def stopped() -> Failure:
    """The failure of a process that was stopped from outside."""
    return _here("killed", "the training process was stopped from outside; progress is saved, and the next run continues")


def ended(kind: str, message: str, lines: Iterable[str], node: str, job: str | None) -> Failure:
    """The failure of a SLURM job, as seen from outside."""
    at_utc = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    return Failure(kind, message, last_lines=tuple(lines)[-LAST_LINES:], at_utc=at_utc, node=node, job=job)


def blocked(message: str) -> Failure:
    return _here("blocked", message)


def classify(error: BaseException) -> str:
    if isinstance(error, RankError):
        return error.kind
    by_type = (
        (TeacherError, "blocked"),
        (RefusedError, "refused"),
        (DataError, "data"),
        (StoreError, "disk"),
        ((PartError, ImportError), "import"),
        (MemoryError, "host memory"),
    )
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(words in text for words in _DEVICE_FULL):
        return "device memory"
    if any(words in text for words in _HOST_FULL):
        return "host memory"
    return next((name for kinds, name in by_type if isinstance(error, kinds)), "raised")


def put(store: FailureStore, cell_id: str, failure: Failure) -> None:
    """Write a failure. Where that is impossible (a full disk) it is printed instead of becoming another failure."""
    try:
        store.put_failure(cell_id, failure)
    except StoreError as error:
        print(f"{cell_id}: {failure.kind}: {failure.message} (not written: {error})", file=sys.stderr, flush=True)


def _here(kind: str, message: str, traceback: str = "", lines: Iterable[str] = ()) -> Failure:
    job = slurm_job()
    return replace(ended(kind, message, lines, socket.gethostname(), job["id"] if job else None), traceback=traceback)
