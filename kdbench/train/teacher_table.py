"""A teacher's outputs in a file that is filled while students are trained, for every loss, student and repeat with this teacher.

The views of an image are few where they are crops and flips (162 of CIFAR's 32x32 pixels), so they come back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench import parts
from kdbench.errors import StoreError, TeacherError
from kdbench.losses._base import Taps
from kdbench.process_log import log
from kdbench.store import Store
from kdbench.store.rows import Rows
from kdbench.train.circumstance import device_name, installed
from kdbench.train.member import Member
from kdbench.train.stream import BatchPlan, Place
from kdbench.train.teacher import LiveTeacher
from kdbench.version import VERSION

SERVED = frozenset({"logits", "pooled"})
"""The taps in a table: maps would take hundreds of times its space."""

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-3}
"""How far a recomputed output may be from its row, relative to the largest of the batch, on devices that do not promise equal bits."""


class TeacherTable:
    """The rows of `n_images` images in `n_views` views. `layout`: dtype and width of each tap."""

    def __init__(self, path: Path, layout: Mapping[str, tuple[torch.dtype, int]], n_images: int, n_views: int):
        """Raises StoreError."""
        self.n_views, self.width = n_views, 0
        self.slices: dict[str, tuple[torch.dtype, slice]] = {}
        for name, (dtype, width) in layout.items():
            self.slices[name] = (dtype, slice(self.width, self.width + dtype.itemsize * width))
            self.width += -(-dtype.itemsize * width // 8) * 8
        self.rows = Rows(path, n_images * n_views, self.width)

    def get(self, place: Place) -> dict[str, Tensor] | None:
        """The taps of a batch, on the CPU; None if one of its rows is missing."""
        found = self.rows.get(self._numbers(place))
        if found is None:
            return None
        values = torch.from_numpy(found.copy())
        return {name: values[:, where].contiguous().view(dtype) for name, (dtype, where) in self.slices.items()}

    def put(self, place: Place, taps: Taps) -> None:
        """Write the rows of a batch, if the disk takes them."""
        values = torch.zeros(len(place[0]), self.width, dtype=torch.uint8)
        for name, (_, where) in self.slices.items():
            values[:, where] = getattr(taps, name).detach().cpu().contiguous().view(torch.uint8)
        self.rows.put(self._numbers(place), values.numpy())

    def _numbers(self, place: Place) -> np.ndarray:
        index, views = place
        return np.asarray(index, np.int64) * self.n_views + np.asarray(views, np.int64)


class TabledTeacher(LiveTeacher):
    """A live teacher that reads what is in its table. In each epoch it recomputes the first batch that it finds there.

    Only whole batches are kept, since the bits of an image's outputs may depend on the size of its batch. Some processors and sizes also
    give other bits at another place in the batch: on the CPU this is tried at the start, and there is no table then."""

    provider = "table"

    def __init__(self, live: LiveTeacher, store: Store, identity: Mapping[str, Any], plan: BatchPlan):
        super().__init__(live.model, live.cell, live.numerics)
        self.store, self.identity, self.plan = store, identity, plan
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.path = store.root / "tables" / live.cell.id / f"{key}.rows"
        self.table: TeacherTable | None = None
        self.is_off = self.is_checked = False

    def begin_epoch(self) -> None:
        self.is_checked = False

    def taps(self, inputs: Any, place: Place | None = None) -> Taps:
        if self.is_off or place is None or len(place[0]) != self.plan.batch_size:
            return super().taps(inputs)
        if self.is_checked and self.table and (found := self.table.get(place)):
            return Taps(**{name: value.to(inputs.device, non_blocking=True) for name, value in found.items()}).with_classifier(self.model)
        taps = super().taps(inputs)
        if self.table is None:
            try:
                self._try_other_places(inputs, taps)
                self.table = self._opened(taps)
            except StoreError as error:
                log(f"teacher {self.cell.id} is run at each step: {error}")
                self.is_off = True
                return taps
        if not self.is_checked and (found := self.table.get(place)):
            self._check(found, taps)
            self.is_checked = True
        else:
            self.table.put(place, taps)
        return taps

    def _try_other_places(self, inputs: Any, taps: Taps) -> None:
        """Raises StoreError: outputs depend on the place in the batch."""
        if not isinstance(inputs, Tensor) or inputs.device.type != "cpu":
            return
        for places in (torch.arange(len(inputs)).roll(1), torch.from_numpy(np.random.Philox(0).random_raw(len(inputs)).argsort())):
            other = super().taps(inputs[places])
            for name in SERVED:
                if taps.has(name) and not torch.equal(getattr(other, name), getattr(taps, name)[places]):
                    size = len(inputs)
                    raise StoreError(f"on this processor the bits of its {name} depend on the place of an image in a batch of {size}")

    def _opened(self, taps: Taps) -> TeacherTable:
        given = {name: getattr(taps, name) for name in sorted(SERVED) if taps.has(name)}
        layout = {name: (tensor.dtype, tensor.shape[1]) for name, tensor in given.items()}
        assert self.plan.data.n_views is not None
        self.store.write_json(self.path.with_suffix(".json"), self.identity)
        return TeacherTable(self.path, layout, self.plan.data.size("train"), self.plan.data.n_views)

    def _check(self, found: Mapping[str, Tensor], taps: Taps) -> None:
        """Raises TeacherError if rows are not what the teacher gives; the table is set aside then."""
        for name, row in found.items():
            now = getattr(taps, name).detach()
            there = row.to(now.device)
            if torch.equal(now, there):
                continue
            off = float((now.double() - there.double()).abs().max() / now.double().abs().max())
            if now.device.type == "cpu" or not off <= CLOSE.get(now.dtype, 0.0):
                aside = self.store.set_aside(self.path)
                raise TeacherError(
                    f"{self.path} does not hold what teacher {self.cell.id} gives now ({name} differs by {off:.2g} of its largest value), "
                    f"so what was trained from it cannot be trusted: it is set aside as {aside.name}, and the next run makes it anew"
                )


def teacher_of(
    live: LiveTeacher, asked: str, store: Store, plan: BatchPlan, members: Sequence[Member], device: torch.device
) -> LiveTeacher:
    """The teacher of a bundle: with its table, if one is asked for and can serve these students."""
    if asked != "table":
        return live
    first = members[0].cell
    if why := _cannot_serve(plan, {name for member in members for name in member.objective.taps_needed}):
        log(f"teacher {live.cell.id} is run at each step: {why}")
        return live
    record = store.record(live.cell.id)
    assert record is not None
    identity = {
        "teacher": live.cell.id,
        "weights": record.result["weights_digest"],
        "sources": parts.sources_of(live.cell.config),
        "images": plan.data.fingerprint,
        "dataset": first.config["dataset"],
        "numerics": first.config["numerics"],
        "batch_size": plan.batch_size,
        "device": device_name(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"kdbench": VERSION} | {name: installed(name) for name in ("torch", "timm", "torchvision", "numpy")},
    }
    return TabledTeacher(live, store, identity, plan)


def _cannot_serve(plan: BatchPlan, needed: set[str]) -> str:
    """Why a table has not what a bundle needs; empty if it has."""
    if plan.data.n_views is None:
        return "the views of an image are too many for a table"
    if plan.mixing is not None:
        return "images are mixed"
    return f"a loss needs {', '.join(sorted(needed - SERVED))}, which no table holds" if needed - SERVED else ""
