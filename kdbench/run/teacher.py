"""The teacher behind one interface. `Live` is the reference: a forward pass on the student's own view, in evaluation mode."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn

from kdbench.cell import Cell
from kdbench.datasets._base import Data
from kdbench.errors import DamagedError, GateError
from kdbench.losses._base import Taps
from kdbench.record import Record
from kdbench.run.build import make_model
from kdbench.run.evaluate import evaluate
from kdbench.run.numerics import autocast, laid_out
from kdbench.run.result import digest_of
from kdbench.store import Store
from kdbench.tasks._base import Task

SAME = 1e-3
SAME_IMAGES = 3
"""How far a re-evaluated teacher may be from its record: another device may turn a few images, not more. A thousandth of the value for
a metric that is no fraction of images."""


class Live:
    """A forward pass without gradient for each batch."""

    def __init__(self, model: nn.Module, numerics: Any):
        self.model, self.numerics = model.eval().requires_grad_(False), numerics

    def taps(self, inputs: Any, index: Any, views: Any) -> Taps:
        with torch.no_grad(), autocast(self.numerics, inputs):
            return self.model(inputs)


def load_teacher(store: Store, teacher_id: str, student: Cell, data: Data, task: Task, device: torch.device) -> tuple[nn.Module, Cell]:
    """The trained teacher of a student, with its cell, checked: whole, still what its record says, and good enough.

    Raises:
        GateError: it is not finished, not the model that its record describes, or below the gate.
        DamagedError: its weights are damaged.
    """
    cell, record = store.cell(teacher_id), store.record(teacher_id)
    if record is None or record.outcome != "finished":
        raise GateError(f"blocked by teacher {teacher_id}: it is {'not trained' if record is None else record.outcome}")
    if record.result["data_fingerprint"] != data.fingerprint:
        raise GateError(
            f"teacher {teacher_id} was trained on other images ({record.result['data_fingerprint']}) than these ({data.fingerprint})"
        )
    model = make_model(cell.config["student"], cell, data, task)
    model.load_state_dict(load_weights(store, record))
    model = laid_out(model, cell.config["numerics"], device)
    check_gate(record, task, evaluate(task, model, data, "test", student.config["numerics"]), student, task.gate(data))
    return model, cell


def check_gate(record: Record, task: Task, measured: dict[str, float | None], student: Cell, default: float | None) -> None:
    """Raises GateError when the teacher is not what its record says, not what was declared, or not good enough for the suite."""
    asked = student.gate
    primary = task.primary()
    now, then = measured[primary.name], record.result["metrics"][f"{primary.name}_last"]
    within = max(SAME, SAME_IMAGES / record.result["n_test"]) if primary.percent else SAME * abs(then)
    if now is None or abs(now - then) > within:
        raise GateError(f"teacher {record.id} is not what its record says: {primary.label} {now} measured, {then} recorded")
    least = default if asked is None else asked
    if least is not None and (now < least if primary.higher_is_better else now > least):
        whose = "the suite asks" if asked is not None else "the default asks"
        raise GateError(f"teacher {record.id} is below its gate: {primary.label} {now:.4g}, and {whose} for {least:.4g}")
    declared, tolerance = student.declared or (now, 0.0)
    if abs(now - declared) > tolerance:
        raise GateError(f"teacher {record.id}: {primary.label} {now:.4g}, and {declared:.4g} was declared for it (within {tolerance:g})")


def load_weights(store: Store, record: Record) -> dict[str, Any]:
    """The weights that a record stands for. Raises DamagedError when they are missing or altered."""
    path = store.file(record.id, "weights.bin")
    raw = store.read_sealed(path)
    if raw is None:
        raise DamagedError(f"{path} is missing, and its record is there: remove {path.parent} to train it again")
    weights = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    if digest_of(weights) != record.result["weights_digest"]:
        raise DamagedError(f"{path} does not hold the weights of its record")
    return weights
