"""The files of a student: checkpoints during training, then weights, predictions and the record, or a failure."""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from kdbench import failure
from kdbench.cell import Cell
from kdbench.errors import DamagedError, LostClaimError, StoreError
from kdbench.record import Record
from kdbench.store import Store
from kdbench.train.loop import Position
from kdbench.train.member import NEVER, Member
from kdbench.train.result import digest_of, metrics
from kdbench.train.teacher import LiveTeacher

CHECKPOINT_EVERY_S = 30.0
LARGEST_SHARE = 0.01
"""Of the time of training, for checkpoints: those of large or many students come later."""


class Saver:
    """Writes the files of a bundle's students."""

    def __init__(
        self, store: Store, data: Any, circumstance: dict[str, Any], every_s: float = CHECKPOINT_EVERY_S, log: Callable[[str], None] = print
    ):
        self.store, self.data, self.circumstance, self.every_s, self.log = store, data, circumstance, every_s, log
        self.saved_at, self.saving_s = time.monotonic(), 0.0
        self.due: dict[Position, bool] = {}
        self.sources: dict[str, dict[str, str]] = {}  # by cell: digests of its parts when training began here
        self.started_at: dict[str, float] = {}
        self.trained_before_s: dict[str, float] = {}
        self.teacher: LiveTeacher | None = None
        self.lost: set[str] = set()  # cells that another process took over

    def began(self, member: Member, position: Position) -> None:
        self.started_at.setdefault(member.cell.id, time.monotonic())
        line = {"epoch": position[0], "step": position[1], "of": member.recipe["epochs"], "at": round(time.time(), 3)}
        self.store.append_line(self.store.file(member.cell.id, "progress.jsonl"), line)

    def save(self, member: Member, position: Position, must: bool = False) -> None:
        """Save a checkpoint if the last one is older than `every_s`, and than what makes saving at most `LARGEST_SHARE` of the time (not if
        `every_s` is 0). Decided once per position so that all students share positions."""
        began_s = time.monotonic()
        if not must:
            if position not in self.due:
                wait_s = max(self.every_s, self.saving_s / LARGEST_SHARE) if self.every_s else 0.0
                self.due = {position: began_s - self.saved_at >= wait_s}
                if self.due[position]:
                    self.saved_at, self.saving_s = began_s, 0.0
            if not self.due[position]:
                return
        buffer = io.BytesIO()
        torch.save({"position": position, "trained_s": self._trained_s(member), "state": member.state()}, buffer)
        self.store.write_sealed(self.store.file(member.cell.id, "checkpoint.bin"), buffer.getvalue())
        self.saving_s += time.monotonic() - began_s

    def finished(self, member: Member) -> None:
        """Save weights, predictions and, last, the record: a cell with a record is complete."""
        cell = member.cell
        assert member.predicted is not None  # the last epoch ends with an evaluation
        raw, targets = member.predicted
        predictions = member.task.keep(raw, targets)
        weights = member.kept()
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        self.store.write_sealed(self.store.file(cell.id, "weights.bin"), buffer.getvalue())
        table = io.BytesIO()
        np.savez_compressed(table, **{**predictions, **member.task.true_columns(targets), **member.task.per_image(raw, targets)})
        self.store.write_bytes(self.store.file(cell.id, "predictions.npz"), table.getvalue())
        result = {
            "metrics": metrics(member.task, member.history),
            "weights_digest": digest_of(weights),
            "predictions_digest": digest_of(predictions),
            "n_parameters": sum(weight.numel() for weight in member.deployed.parameters()),
        }
        self._record(member, "finished", result, files=self.store.sizes_and_digests(cell.id))

    def diverged(self, member: Member, step: int, stage: str | None = None) -> None:
        """`stage`: where it is not the cell itself that diverged, but its first stage."""
        self.log(f"{member.cell.id} diverged: the loss or a weight is NaN or infinite at step {step}{f' of its {stage}' if stage else ''}")
        told = {"diverged_in": stage} if stage else {}
        self._record(member, "diverged", {"metrics": {}, "weights_digest": None, "predictions_digest": None, **told}, step)

    def failed(self, member: Member, error: Exception) -> None:
        if isinstance(error, LostClaimError):
            self.lost.add(member.cell.id)
            self.log(str(error))
            return
        text = "".join(traceback.format_exception(error))
        self.log(f"{member.cell.id} failed: {type(error).__name__}: {error}")
        failure.put(self.store, member.cell.id, failure.describe(error, text))

    def _record(
        self, member: Member, outcome: str, result: dict[str, Any], step: int = NEVER, files: Mapping[str, Any] | None = None
    ) -> None:
        result = {
            **result,
            "history": member.history,
            "n_train": self.data.size("train"),
            "n_test": self.data.size("test"),
            "data_fingerprint": self.data.fingerprint,
            "diverged_at_step": None if step == NEVER else step,
            **({} if member.point is None else {"tuned": member.point}),
        }
        begun = self.store.epochs_seen(member.cell.id)
        provider = self.teacher and self.teacher.provider  # now: a table may have turned out not to serve
        circumstance = {**self.circumstance, "teacher": provider, "train_s": round(self._trained_s(member), 3), "epochs_begun": len(begun)}
        circumstance |= {"sources": self.sources.get(member.cell.id), "files": files or {}}
        self.store.put_record(Record(member.cell.id, member.cell.config, outcome, result, circumstance))
        self.store.clear_failure(member.cell.id)
        self.store.remove(self.store.file(member.cell.id, "checkpoint.bin"))

    def _trained_s(self, member: Member) -> float:
        before_s = self.trained_before_s.get(member.cell.id, 0.0)
        return before_s + time.monotonic() - self.started_at.get(member.cell.id, time.monotonic())


class Listener(Saver):
    """The saver of a rank that is not the first: it writes nothing."""

    def began(self, member: Member, position: Position) -> None: ...

    def save(self, member: Member, position: Position, must: bool = False) -> None: ...

    def finished(self, member: Member) -> None: ...

    def diverged(self, member: Member, step: int, stage: str | None = None) -> None: ...

    def failed(self, member: Member, error: Exception) -> None:
        self.log(f"{member.cell.id} failed: {failure.described(error)}")


def checkpoint(store: Store, cell: Cell, log: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The cell's last checkpoint: `position` (epoch, step), `trained_s`, the member's `state`; or None. A damaged one is set aside."""
    path = store.file(cell.id, "checkpoint.bin")
    try:
        raw = store.read_sealed(path)
        return None if raw is None else _checked(torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True), cell)
    except DamagedError as error:
        set_aside(store, cell, str(error), log)
    except StoreError:
        raise
    except Exception as error:  # torch raises anything for what is no checkpoint
        set_aside(store, cell, f"{path} is damaged ({type(error).__name__}: {error})", log)
    return None


def set_aside(store: Store, cell: Cell, why: str, log: Callable[[str], None]) -> None:
    aside = store.set_aside(store.file(cell.id, "checkpoint.bin"))
    log(f"{why}; it is set aside as {aside.name}, and {cell.id} restarts")


def _checked(saved: Any, cell: Cell) -> dict[str, Any]:
    """Raises ValueError if it is not a checkpoint of this cell."""
    if not isinstance(saved, dict) or not {"position", "trained_s", "state"} <= saved.keys():
        raise ValueError("it is not a checkpoint")
    position = saved["position"]
    if not isinstance(position, tuple | list) or len(position) != 2 or not all(type(one) is int and one >= 0 for one in position):
        raise ValueError(f"its position is {position!r}")
    if not isinstance(saved["trained_s"], int | float) or not isinstance(saved["state"], dict):
        raise ValueError("a field has the wrong type")
    history = saved["state"].get("history")
    if not isinstance(history, list) or len(history) != position[0] or position[0] >= cell.config["recipe"]["epochs"]:
        raise ValueError("its history does not fit its position")
    return {**saved, "position": tuple(position)}
