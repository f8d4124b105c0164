"""Runs as TensorBoard events, for whoever wants to look at curves there."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError, KdbenchError

if TYPE_CHECKING:
    from pathlib import Path

    from kdbench.record import Record
    from kdbench.report.manifest import CellLine, Manifest
    from kdbench.store import Store

FILE = "events.out.tfevents.0.kdbench"
VERSION = "brain.Event:2"


def write_events(store: Store, manifest: Manifest, folder: Path) -> int:
    """One folder of events for each run that has a record (finished or diverged), `<student>/<teacher>/<objective>/<repeat>-<id>`, with
    the dataset in front where the suite has several. Written again, a run's file is replaced; equal records give equal files.

    Step n is the state after n epochs (0: before any). Scalars are stored by the format as float32: `train/lr`, `train/loss`;
    `raw/<term>`, `weighted/<term>`, `gradient_ratio/<term>` (gradient's norm over the task's, at the epoch's first step);
    `<split>/<metric>` of the epochs that were evaluated. What was not finite has no point. The text `objective` is the resolved
    objective. Wall times are when each epoch last began, and 0 where that is not known.

    Returns:
        the number of runs that were written.

    Raises:
        KdbenchError: the library tensorboard is not installed.
        StoreError: nothing can be written into `folder`.
    """
    library = _library()
    several = len({cell["dataset"] for cell in manifest["cells"]}) > 1
    n_written = 0
    for cell in manifest["cells"]:
        try:
            record = store.record(cell["id"])
        except DamagedError:
            continue  # the report says so
        if record is None:
            continue
        began = {line["epoch"]: line["at"] for line in store.epochs_seen(cell["id"]) if {"epoch", "at"} <= line.keys()}
        store.write_bytes(folder / run_name(cell, several) / FILE, _events(record, began, library))
        n_written += 1
    return n_written


def run_name(cell: CellLine, with_dataset: bool) -> PurePosixPath:
    """Where a run's events lie below the folder."""
    repeat = "" if cell["repeat"] is None else f"{cell['repeat']}-"
    names = [cell["student"], cell["teacher"] or "no teacher", cell["objective"] or cell["role"], f"{repeat}{cell['id']}"]
    # A part may be named by a path: whatever could mean a folder is replaced.
    kept = [re.sub(r"[^\w.=+,()-]+", "_", name).lstrip(".") or "_" for name in ([cell["dataset"]] if with_dataset else []) + names]
    return PurePosixPath(*kept)


def _library() -> SimpleNamespace:
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.plugins.text import metadata
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise KdbenchError(
            f"TensorBoard events need the library tensorboard, which cannot be imported ({error}): pip install 'kdbench[tensorboard]'"
        ) from error
    return SimpleNamespace(
        Event=event_pb2.Event,
        Summary=summary_pb2.Summary,
        Tensor=tensor_pb2.TensorProto,
        string=types_pb2.DT_STRING,
        text=metadata.create_summary_metadata,
        RecordWriter=RecordWriter,
    )


def _events(record: Record, began: Mapping[int, float], library: SimpleNamespace) -> bytes:
    """A whole event file. Not through the library's own file writer, which puts the host's name and the time of writing into it."""
    history = record.result.get("history") or []
    start = began.get(history[0]["epoch"], 0.0) if history else 0.0
    file = io.BytesIO()
    writer = library.RecordWriter(file)
    writer.write(library.Event(wall_time=start, file_version=VERSION).SerializeToString(deterministic=True))
    if "objective" in record.config:
        told = f"```json\n{json.dumps(record.config['objective'], indent=1)}\n```"
        tensor = library.Tensor(dtype=library.string, string_val=[told.encode()])
        value = library.Summary.Value(tag="objective", metadata=library.text("objective", ""), tensor=tensor)
        writer.write(library.Event(wall_time=start, summary=library.Summary(value=[value])).SerializeToString(deterministic=True))
    for entry in history:
        values = [library.Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(entry) if value is not None]
        event = library.Event(wall_time=began.get(entry["epoch"], 0.0), step=entry["epoch"] + 1, summary=library.Summary(value=values))
        writer.write(event.SerializeToString(deterministic=True))
    return file.getvalue()


def _scalars(entry: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name in ("lr", "loss"):
        yield f"train/{name}", entry.get(name)
    for name, term in entry.get("terms", {}).items():
        for kind in ("raw", "weighted", "gradient_ratio"):
            yield f"{kind}/{name}", term.get(kind)
    for split in ("val", "test"):
        for metric, value in entry.get(split, {}).items():
            yield f"{split}/{metric}", value
