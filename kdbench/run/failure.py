"""Failures are data: a class, a message, a traceback and the last log lines, beside the cell, which stays wanted."""

from __future__ import annotations

import socket
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from kdbench.errors import DataError, GateError, PartError, RefusedError, StoreError
from kdbench.store import Store, slurm_job

CLASSES = {
    "blocked": "its teacher is not there or not good enough",
    "cancelled": "its job was cancelled",
    "data": "the dataset is missing or wrong",
    "device memory": "the device ran out of memory",
    "disk": "the results folder could not be written, or holds a damaged file",
    "host memory": "the machine ran out of memory",
    "import": "a part could not be found or imported",
    "killed": "the process was killed from outside",
    "lost": "SLURM does not know its job any more, and it left no result",
    "not begun": "its job ended before it could begin",
    "not granted": "SLURM refuses what is asked for it",
    "no progress": "its time limit is too short for a single epoch",
    "node failure": "the node failed",
    "preempted": "its job made room for another and was not put back into the queue",
    "raised": "a part raised an error",
    "refused": "a loss cannot serve this pair",
    "stopped": "it was stopped and could not be put back into the queue",
    "time limit": "its time was up; it had come further since it began",
}
"""Every class of failure, and what it means."""

CROWDED = ("device memory", "host memory")
"""Failures that a bundle may owe to its size: its students are tried again one by one."""

_DEVICE_FULL = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_HOST_FULL = ("can't allocate memory", "is killed by signal: Killed")
"""How torch's CPU allocator says it, and its loader of a process that the machine killed."""

STOPPED = 75
"""Exit status of a worker that was asked to stop and has saved: try again (EX_TEMPFAIL)."""

LAST_LINES = 15
log: deque[str] = deque(maxlen=LAST_LINES)
"""The last lines of this process's log: a failure takes them along."""


def note(line: str) -> None:
    """Print a line of the log, and keep it for a failure to come."""
    log.append(line)
    print(line, flush=True)


def describe(error: BaseException, traceback: str) -> dict[str, Any]:
    kind = classify(error)
    advice = "; choose a smaller net or a device with more memory: the batch is never made smaller" if kind in CROWDED else ""
    return _failure(kind, f"{type(error).__name__}: {error}{advice}", traceback, log)


def killed(signal: str, lines: Iterable[str]) -> dict[str, Any]:
    """The failure of a process that left nothing behind."""
    return _failure("killed", f"the training process ended with {signal} and left no error", "", deque(lines, maxlen=LAST_LINES))


def stopped() -> dict[str, Any]:
    """The failure of a process that somebody else asked to stop."""
    return _failure("killed", "the training process was asked to stop from outside; it saved, and the next run goes on from there", "", ())


def ended(kind: str, message: str, lines: Iterable[str], node: str, job: str) -> dict[str, Any]:
    """The failure of a SLURM job, told by whoever looks at it from outside."""
    return {**_failure(kind, message, "", deque(lines, maxlen=LAST_LINES)), "node": node, "job": job}


def blocked(message: str) -> dict[str, Any]:
    return _failure("blocked", message, "", ())


def classify(error: BaseException) -> str:
    by_type = (
        (GateError, "blocked"),
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


def put(store: Store, cell_id: str, failure: dict[str, Any]) -> None:
    """Keep a failure. A full disk must not turn one failure into another: then it is told in the log alone."""
    try:
        store.put_failure(cell_id, failure)
    except StoreError as error:
        print(f"{cell_id}: {failure['class']}: {failure['message']} (not written down: {error})", file=sys.stderr, flush=True)


def _failure(kind: str, message: str, traceback: str, lines: Iterable[str]) -> dict[str, Any]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    found = {"class": kind, "message": message, "traceback": traceback, "last_lines": list(lines), "at_utc": at}
    job = slurm_job()
    return {**found, "node": socket.gethostname(), **({"job": job["id"]} if job else {})}
