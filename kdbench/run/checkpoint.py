"""What is kept of a student: checkpoints on the way, weights, predictions and the record at the end, a failure beside the cell."""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kdbench.cell import Cell
from kdbench.errors import DamagedError
from kdbench.record import Record
from kdbench.run import failure
from kdbench.run.evaluate import predict
from kdbench.run.loop import Position
from kdbench.run.member import NEVER, Member
from kdbench.run.result import cpu_state, digest_of, metrics
from kdbench.store import Store

CHECKPOINT_EVERY_S = 30.0


class Saver:
    """The disk's side of a bundle. `told` hears what happened, for the log."""

    def __init__(
        self,
        store: Store,
        data: Any,
        circumstance: dict[str, Any],
        every_s: float = CHECKPOINT_EVERY_S,
        told: Callable[[str], None] = print,
    ):
        self.store, self.data, self.circumstance, self.every_s, self.told = store, data, circumstance, every_s, told
        self.saved_at = time.monotonic()
        self.due: dict[Position, bool] = {}
        self.sources: dict[str, dict[str, str]] = {}  # of each cell's parts, as they were when training began here
        self.started_at: dict[str, float] = {}
        self.trained_before_s: dict[str, float] = {}

    def began(self, member: Member, position: Position) -> None:
        self.started_at.setdefault(member.cell.id, time.monotonic())
        line = {"epoch": position[0], "step": position[1], "of": member.recipe["epochs"], "at": round(time.time(), 3)}
        self.store.append_line(self.store.file(member.cell.id, "progress.jsonl"), line)

    def save(self, member: Member, position: Position, must: bool = False) -> None:
        """A checkpoint, unless the last ones are younger than `every_s`.

        Decided once for a position: students saved at different ones could not go on side by side.
        """
        if not must and not self._due(position):
            return
        buffer = io.BytesIO()
        torch.save({"position": position, "trained_s": self._trained_s(member), "state": member.state()}, buffer)
        self.store.write_sealed(self.store.file(member.cell.id, "checkpoint.bin"), buffer.getvalue())

    def _due(self, position: Position) -> bool:
        if position not in self.due:
            self.due = {position: time.monotonic() - self.saved_at >= self.every_s}
            if self.due[position]:
                self.saved_at = time.monotonic()
        return self.due[position]

    def finished(self, member: Member) -> None:
        """Weights and predictions first, the record last: only the record is proof."""
        cell, numerics = member.cell, member.numerics
        predictions, targets = predict(member.task, member.deployed, self.data, "test", numerics)
        kept = member.task.keep(predictions, targets)
        weights = cpu_state(member.deployed)
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        self.store.write_sealed(self.store.file(cell.id, "weights.bin"), buffer.getvalue())
        table = io.BytesIO()
        np.savez_compressed(table, **{**kept, "target": targets, **member.task.per_image(predictions, targets)})
        self.store.write_bytes(self.store.file(cell.id, "predictions.npz"), table.getvalue())
        result = {
            "metrics": metrics(member.task, member.history),
            "weights_digest": digest_of(weights),
            "predictions_digest": digest_of(kept),
            "n_parameters": sum(weight.numel() for weight in member.deployed.parameters()),
        }
        self._record(member, "finished", result)

    def diverged(self, member: Member, step: int) -> None:
        self.told(f"{member.cell.id} diverged: the first number that is not finite came at step {step}")
        self._record(member, "diverged", {"metrics": {}, "weights_digest": None, "predictions_digest": None}, step)

    def failed(self, member: Member, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        self.told(f"{member.cell.id} failed: {type(error).__name__}: {error}")
        failure.put(self.store, member.cell.id, failure.describe(error, text))

    def _record(self, member: Member, outcome: str, result: dict[str, Any], step: int = NEVER) -> None:
        result = {
            **result,
            "history": member.history,
            "n_train": self.data.size("train"),
            "n_test": self.data.size("test"),
            "data_fingerprint": self.data.fingerprint,
            "diverged_at_step": None if step == NEVER else step,
        }
        begun = self.store.epochs_seen(member.cell.id)
        circumstance = {**self.circumstance, "train_s": round(self._trained_s(member), 3), "epochs_begun": len(begun)}
        circumstance["sources"] = self.sources.get(member.cell.id)
        self.store.put_record(Record(member.cell.id, member.cell.config, outcome, result, circumstance))
        self.store.clear_failure(member.cell.id)
        self.store.remove(self.store.file(member.cell.id, "checkpoint.bin"))

    def _trained_s(self, member: Member) -> float:
        before_s = self.trained_before_s.get(member.cell.id, 0.0)
        return before_s + time.monotonic() - self.started_at.get(member.cell.id, time.monotonic())


def checkpoint(store: Store, cell: Cell, told: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The cell's last checkpoint, or None. A damaged one is set aside with a message: the cell then starts again."""
    path = store.file(cell.id, "checkpoint.bin")
    try:
        raw = store.read_sealed(path)
    except DamagedError as error:
        told(f"{error}; it is set aside as {store.set_aside(path).name}, and {cell.id} starts from its beginning")
        return None
    return None if raw is None else torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
