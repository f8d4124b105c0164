"""A trained teacher: found, checked, and run on the student's own view of each batch, in evaluation mode."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.cell import Cell
from kdbench.datasets._base import Data
from kdbench.errors import DamagedError, StoreError, TeacherError
from kdbench.isolation import isolated, private
from kdbench.losses._base import Taps
from kdbench.record import Record, same_images
from kdbench.store import Store
from kdbench.tasks._base import Task
from kdbench.train.circumstance import device_name, installed
from kdbench.train.evaluate import evaluate
from kdbench.train.numerics import autocast, laid_out
from kdbench.train.result import digest_of
from kdbench.train.stream import Place

SAME = 1e-3
SAME_IMAGES = 3
"""How far a re-evaluated teacher may be from its record on another device: a few images, or relative if the metric is no fraction."""


class LiveTeacher:
    """A teacher that makes a forward pass without gradient for each batch. `numerics` are those of its students."""

    provider = "live"

    def __init__(self, model: nn.Module, cell: Cell, numerics: Mapping[str, Any]):
        self.model, self.cell, self.numerics = model.eval().requires_grad_(False), cell, numerics
        self._features: Tensor | None = None

    def begin_epoch(self, places: Sequence[Place], step: int) -> None:
        """Called by the loop before the batches of an epoch, with all of them and the number of the first, counted over all epochs."""

    def taps(self, inputs: Any, place: Place | None = None) -> Taps:
        """The outputs for a batch; `place` says which views of which training images these are, where that determines the inputs."""
        with isolated(0), torch.no_grad(), autocast(self.numerics, inputs):
            return self.model(private(inputs)).with_classifier(self.model)

    def features(self, data: Data) -> Tensor:
        """`pooled` of the training images without augmentation, in canonical order, on the CPU (n_train x width)."""
        if self._features is None:
            found = [self.taps(inputs).pooled for inputs, _ in data.batches("train", data.in_order(data.size("train")))]
            self._features = torch.cat([one.float().cpu() for one in found if one is not None])
        return self._features


def load_teacher(
    store: Store, model: nn.Module, cell: Cell, student: Cell, data: Data, task: Task, device: torch.device, is_checked: bool = False
) -> LiveTeacher:
    """The trained teacher of a student. `model` is the teacher's, untrained; `is_checked`: another rank has compared it with its record.
    Raises TeacherError if the teacher is not trained, does not
    match its record, or is below the required metric, and DamagedError if its weights are damaged."""
    record = store.record(cell.id)
    if record is None or record.outcome != "finished":
        raise TeacherError(f"blocked by teacher {cell.id}: it is {'not trained' if record is None else record.outcome}")
    primary = f"{task.primary().name}_last"
    lacking = [name for name in ("data_fingerprint", "weights_digest", "n_test") if record.result.get(name) is None]
    lacking += [primary] if record.result["metrics"].get(primary) is None else []
    if lacking:
        raise TeacherError(f"the record of teacher {cell.id} has no {', '.join(lacking)}")
    if not same_images(record.result["data_fingerprint"], data.fingerprint):
        there = record.result["data_fingerprint"]
        raise TeacherError(f"teacher {cell.id} was trained on other images ({there}) than these ({data.fingerprint})")
    model.load_state_dict(load_weights(store, record))
    model = laid_out(model, cell.config["numerics"], device)
    if not is_checked:
        measured = _measured(store, record, task, model, data, student, device)
        check_teacher(record, task, measured, student, task.min_teacher_metric(data))
    return LiveTeacher(model, cell, student.config["numerics"])


def _measured(store: Store, record: Record, task: Task, model: nn.Module, data: Data, student: Cell, device: torch.device) -> float | None:
    """The teacher's primary metric on the test set with this device and these libraries: measured once, and saved beside its record."""
    path = store.file(record.id, "verified.json")
    setting = [
        device_name(device),
        {name: installed(name) for name in ("torch", "timm", "torchvision")},
        {name: record.result[name] for name in ("weights_digest", "data_fingerprint")},
        student.config["numerics"],
        student.config["task"],
    ]
    key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
    noted = store.json(path)
    noted = noted if isinstance(noted, dict) else {}
    primary = task.primary().name
    if isinstance(value := noted.get(key), float) and _is_same(value, record, task):  # else it is measured again before it is judged
        return value
    measured = evaluate(task, model, data, "test", student.config["numerics"])[primary]
    with suppress(StoreError):  # a results folder of another user's
        store.write_json(path, {**noted, key: measured})
    return measured


def check_teacher(record: Record, task: Task, now: float | None, student: Cell, default: float | None) -> None:
    """Raises TeacherError if `now`, the measured primary metric, differs from the record or the declaration, or is below the minimum."""
    asked = student.min_teacher_metric
    primary = task.primary()
    if now is None or not _is_same(now, record, task):
        then = record.result["metrics"][f"{primary.name}_last"]
        raise TeacherError(f"teacher {record.id} does not match its record: {primary.label} is {now} now, and {then} in the record")
    least = default if asked is None else asked
    if least is not None and (now < least if primary.higher_is_better else now > least):
        whose = "the suite requires" if asked is not None else f"without min_{primary.name} the suite requires"
        raise TeacherError(f"teacher {record.id} is not good enough: {primary.label} is {now:.4g}, and {whose} {least:.4g}")
    declared, tolerance = student.declared_teacher_metric or (now, 0.0)
    if abs(now - declared) > tolerance:
        raise TeacherError(f"teacher {record.id}: {primary.label} {now:.4g}, and {declared:.4g} was declared for it (within {tolerance:g})")


def _is_same(value: float, record: Record, task: Task) -> bool:
    """Whether the primary metric is the recorded one, within the tolerance."""
    primary = task.primary()
    then = record.result["metrics"][f"{primary.name}_last"]
    return abs(value - then) <= (max(SAME, SAME_IMAGES / record.result["n_test"]) if primary.percent else SAME * abs(then))


def load_weights(store: Store, record: Record) -> dict[str, Any]:
    """The weights of a record. Raises DamagedError if they are missing or changed."""
    path = store.file(record.id, "weights.bin")
    raw = store.read_sealed(path)
    if raw is None:
        raise DamagedError(f"{path} is missing, but its record exists")
    try:
        weights = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        same = digest_of(weights) == record.result["weights_digest"]
    except Exception as error:  # torch raises anything for what holds no weights
        raise DamagedError(f"{path} is damaged: it holds no weights ({type(error).__name__}: {error})") from error
    if not same:
        raise DamagedError(f"{path} does not hold the weights of its record")
    return weights
