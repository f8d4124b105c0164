"""Records without their configurations and histories. Parsing ten thousand whole ones takes longer than all the rest of a report, so
what was read is kept beside the suite, and read again only of records that changed since."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from kdbench.errors import DamagedError, StoreError
from kdbench.store import Store

if TYPE_CHECKING:
    Found = dict[str, "Lean | DamagedError"]

SCHEMA = 1
"""Of the index: raised whenever `Lean` holds something else."""
WORTH_KEEPING = 500
"""So many records are parsed in a fraction of a second: with fewer new ones the index is not written."""
WORTH_SHARING_BYTES = 200_000_000
"""More than a second of parsing: from here on a second process takes half of it, where a processor is idle."""


class Lean(NamedTuple):
    """`result` lacks the history; of it, `largest` keeps each term's largest gradient over the epochs, relative to the task's."""

    outcome: str
    result: Mapping[str, Any]
    circumstance: Mapping[str, Any]
    largest: Mapping[str, float]


def lean_records(store: Store, suite: str, ids: Iterable[str]) -> Found:
    """The records of these cells by id; without those that have none, and with the error of those that cannot be trusted.

    An index in the suite's folder is written where it saves time and can be written. What it holds of a record counts while the file's
    inode, size and times are as they were; a damaged index counts for nothing.
    """
    index = store.index(suite)
    kept = index.get("records", {}) if index.get("schema") == SCHEMA else {}
    found: Found = {}
    lines: dict[str, Any] = {}
    unread: dict[str, list[int] | None] = {}
    for cell_id in ids:
        # Before the reading: of a record that is replaced in between, the old stamp is kept, which will not fit.
        stamp = store.stamp(cell_id)
        line = kept.get(cell_id)
        if line is not None and stamp is not None and line[0] == stamp:
            found[cell_id], lines[cell_id] = Lean(*line[1]), line
        else:
            unread[cell_id] = stamp
    n_bytes = sum(stamp[1] for stamp in unread.values() if stamp)
    read = _shared(store, list(unread)) if n_bytes >= WORTH_SHARING_BYTES and _spare_processors() > 0.5 else _read(store, unread)
    new = {cell_id: [unread[cell_id], tuple(lean)] for cell_id, lean in read.items() if unread[cell_id] and isinstance(lean, Lean)}
    if len(new) >= WORTH_KEEPING:
        with suppress(StoreError):  # a results folder that is only read is reported all the same
            store.put_index(suite, {"schema": SCHEMA, "records": {**lines, **new}})
    return {**found, **read}


def _read(store: Store, ids: Iterable[str]) -> Found:
    found: Found = {}
    for cell_id in ids:
        try:
            record = store.record(cell_id)
        except DamagedError as error:
            found[cell_id] = error
            continue
        if record is not None:
            result = {name: value for name, value in record.result.items() if name != "history"}
            found[cell_id] = Lean(record.outcome, result, record.circumstance, _largest_gradients(record.result.get("history") or []))
    return found


def _largest_gradients(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for entry in history:
        for name, term in entry.get("terms", {}).items():
            ratio = term.get("gradient_ratio")
            if ratio is not None and ratio > largest.get(name, -1.0):
                largest[name] = ratio
    return largest


def _spare_processors() -> float:
    """How many processors, besides this process's own, nothing else keeps busy: beside other work, two readers are slower than one."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return min(mine - 1, (os.cpu_count() or 1) - busy)


def _shared(store: Store, ids: Sequence[str]) -> Found:
    """As `_read`, with a second process for every other record; what that cannot do is done here.

    A plain process: threads would wait for each other, and a pool would run a caller's script again.
    """
    command = [sys.executable, "-m", "kdbench.report.records", str(store.root)]
    try:
        helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return _read(store, ids)
    with helper:
        try:
            assert helper.stdin is not None and helper.stdout is not None
            with suppress(BrokenPipeError):
                helper.stdin.write(json.dumps(ids[1::2]).encode())
            with suppress(BrokenPipeError):
                helper.stdin.close()
            mine = _read(store, ids[::2])
            told = helper.stdout.read()
        except BaseException:
            helper.kill()
            raise
    if helper.returncode:
        return {**mine, **_read(store, ids[1::2])}
    theirs = json.loads(told).items()
    return {**mine, **{cell_id: DamagedError(one) if isinstance(one, str) else Lean(*one) for cell_id, one in theirs}}


def help_reading(root: str) -> None:
    """The second process: ids on standard input; on standard output their records, of a damaged one the message."""
    found = _read(Store(root), json.load(sys.stdin))
    json.dump({cell_id: str(one) if isinstance(one, DamagedError) else one for cell_id, one in found.items()}, sys.stdout)


if __name__ == "__main__":
    help_reading(sys.argv[1])
