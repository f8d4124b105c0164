"""Runs as TensorBoard events."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kdbench.errors import DamagedError, KdbenchError
from kdbench.manifest import Manifest, ManifestCell
from kdbench.record import Record
from kdbench.store import Store

FILE = "events.out.tfevents.0.kdbench"
VERSION = "brain.Event:2"
STRING = 7
"""TensorFlow's DT_STRING."""


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
    several = len({cell.dataset for cell in manifest.cells}) > 1
    n_written = 0
    for cell in manifest.cells:
        try:
            if (record := store.record(cell.id)) is None:
                continue
            record.epochs()
        except (DamagedError, ValueError):
            continue  # the report names it
        began = {line["epoch"]: line["at"] for line in store.epochs_seen(cell.id) if {"epoch", "at"} <= line.keys()}
        store.write_bytes(folder / run_name(cell, several) / FILE, _events(record, began, library))
        n_written += 1
    return n_written


def run_name(cell: ManifestCell, with_dataset: bool) -> PurePosixPath:
    """Where a run's events lie below the folder."""
    repeat = "" if cell.repeat is None else f"{cell.repeat}-"
    names = [cell.student, cell.teacher or "no teacher", cell.objective or cell.role, f"{repeat}{cell.id}"]
    # A part may be named by a path: whatever could mean a folder is replaced.
    kept = [re.sub(r"[^\w.=+,()-]+", "_", name).lstrip(".") or "_" for name in ([cell.dataset] if with_dataset else []) + names]
    return PurePosixPath(*kept)


def _library() -> tuple[Any, Any, Any]:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise KdbenchError(
            f"TensorBoard events need the library tensorboard, which cannot be imported ({error}): pip install 'kdbench[tensorboard]'"
        ) from error
    return Event, create_summary_metadata, RecordWriter


def _events(record: Record, began: Mapping[int, float], library: tuple[Any, Any, Any]) -> bytes:
    """A whole event file. Not through the library's own file writer, which puts the host's name and the time of writing into it."""
    new_event, text_metadata, new_writer = library
    history = record.result["history"]
    start = began.get(history[0]["epoch"], 0.0) if history else 0.0
    events = [new_event(wall_time=start, file_version=VERSION)]
    if "objective" in record.config:
        events.append(new_event(wall_time=start))
        value = events[-1].summary.value.add(tag="objective", metadata=text_metadata("objective", ""))
        value.tensor.dtype = STRING
        value.tensor.string_val.append(f"```json\n{json.dumps(record.config['objective'], indent=1)}\n```".encode())
    for entry in history:
        events.append(new_event(wall_time=began.get(entry["epoch"], 0.0), step=entry["epoch"] + 1))
        scalars = {f"train/{name}": entry.get(name) for name in ("lr", "loss")}
        for name, term in entry["terms"].items():
            scalars |= {f"{kind}/{name}": term.get(kind) for kind in ("raw", "weighted", "gradient_ratio")}
        for split in ("val", "test"):
            scalars |= {f"{split}/{metric}": value for metric, value in entry.get(split, {}).items()}
        for tag, number in scalars.items():
            if number is not None:
                events[-1].summary.value.add(tag=tag, simple_value=number)
    file = io.BytesIO()
    writer = new_writer(file)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    return file.getvalue()
