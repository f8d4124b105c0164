"""Records without their configurations and histories. Parsing ten thousand whole ones takes longer than all the rest of a report, so
what was read is kept beside the suite, and read again only of records that changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from kdbench.errors import DamagedError, StoreError

if TYPE_CHECKING:
    from kdbench.store import Store

    Found = dict[str, "Lean | DamagedError"]

SCHEMA = 1
"""Of the index: raised whenever `Lean` holds something else."""
WORTH_KEEPING = 500
"""So many records are parsed in a fraction of a second: with fewer new ones the index is not written."""


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
    read = _read(store, unread)
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
