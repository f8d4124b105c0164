"""A teacher's outputs in a file that is filled while students are trained, for every loss, student and repeat with this teacher.

The views of an image are few where they are crops and flips (162 of CIFAR's 32x32 pixels), so they come back."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench import parts
from kdbench.errors import StoreError, TeacherError
from kdbench.isolation import isolated
from kdbench.losses._base import Loss, Taps
from kdbench.plan.provider import SERVED, why_no_table
from kdbench.process_log import log
from kdbench.store import Store
from kdbench.store.rows import KEY_BYTES, Rows, padded
from kdbench.train.circumstance import device_name, installed
from kdbench.train.member import Member
from kdbench.train.stream import BatchPlan, Place
from kdbench.train.teacher import LiveTeacher
from kdbench.version import VERSION

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
            self.width += padded(dtype.itemsize * width)
        self.rows = Rows(path, n_images * n_views, self.width)

    def get(self, place: Place) -> dict[str, Tensor] | None:
        """The taps of a batch, on the CPU; None if one of its rows is missing."""
        found = self.rows.get(self._numbers(place))
        if found is None:
            return None
        values = torch.from_numpy(found.copy())
        return {name: values[:, where].contiguous().view(dtype) for name, (dtype, where) in self.slices.items()}

    def there(self, place: Place) -> np.ndarray:
        """Which rows of a batch are in the table (n, bool)."""
        return self.rows.there(self._numbers(place))

    def missing(self, place: Place) -> Place:
        """What of a batch is not in the table."""
        where = ~self.there(place)
        return place[0][where], place[1][where]

    def put(self, place: Place, taps: Taps) -> None:
        """Write the rows of a batch, if the disk takes them."""
        values = torch.zeros(len(place[0]), self.width, dtype=torch.uint8)
        for name, (_, where) in self.slices.items():
            values[:, where] = getattr(taps, name).detach().cpu().contiguous().view(torch.uint8)
        self.rows.put(self._numbers(place), values.numpy())

    def _numbers(self, place: Place) -> np.ndarray:
        index, views = place
        return np.asarray(index, np.int64) * self.n_views + np.asarray(views, np.int64)


class RelationTable:
    """What a loss computes of the teacher's taps of a batch (`Loss.of_teacher`), by the number of the step. A row says of which images and
    views it is, so that one of another order of the images is missing. `like`: the tensors of one batch."""

    def __init__(self, path: Path, like: Sequence[Tensor], n_steps: int):
        """Raises StoreError."""
        self.path, self.layout = path, [(tensor.dtype, tensor.shape, tensor.numel() * tensor.itemsize) for tensor in like]
        self.rows = Rows(path, n_steps, KEY_BYTES + sum(padded(size) for _, _, size in self.layout))

    def get(self, step: int, place: Place) -> list[Tensor] | None:
        """On the CPU; None if it is missing."""
        row = self.rows.get(np.array([step]))
        if row is None or row[0, :KEY_BYTES].tobytes() != self._key(place):
            return None
        values, found, start = torch.from_numpy(row[0].copy()), [], KEY_BYTES
        for dtype, shape, size in self.layout:
            found.append(values[start : start + size].view(dtype).view(shape))
            start += padded(size)
        return found

    def put(self, step: int, place: Place, values: Sequence[Tensor]) -> None:
        """Write it, if the disk takes it."""
        parts = [self._key(place)]
        for tensor, (_, _, size) in zip(values, self.layout, strict=True):
            parts += [tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), bytes(padded(size) - size)]
        self.rows.put(np.array([step]), np.frombuffer(b"".join(parts), np.uint8)[None])

    @staticmethod
    def _key(place: Place) -> bytes:
        return hashlib.sha256(b"".join(np.asarray(one, np.int64).tobytes() for one in place)).digest()[:KEY_BYTES]


class TabledTeacher(LiveTeacher):
    """A live teacher that reads what is in its table. In each epoch it recomputes the first batch of which it finds rows there. For a batch
    of which rows are missing, these are computed together with those that the next batches will miss. Where losses need maps of it, what
    they compute of those of a whole batch is in tables of its own, and serves whoever sees the same batches: `kept` are these losses.

    It is run on whole batches only, since the bits of an image's outputs may depend on the size of its batch. Some processors and sizes
    also give other bits at another place in the batch: on the CPU this is tried at the start, and there is no table then."""

    def __init__(
        self, live: LiveTeacher, store: Store, identity: Mapping[str, Any], plan: BatchPlan, kept: Mapping[str, Loss], epochs: int
    ):
        super().__init__(live.model, live.cell, live.numerics)
        self.store, self.identity, self.plan, self.kept, self.n_steps = store, identity, plan, kept, epochs * plan.steps
        self.path = self._path(identity)
        self.table: TeacherTable | None = None
        self.relations: dict[str, RelationTable] = {}
        self.is_off = self.is_checked = self.has_served = False
        self.coming: deque[Place] = deque()
        self.step = 0

    @property
    def provider(self) -> str:  # type: ignore[override]
        """`live` as long as nothing was read from the table."""
        return "table" if self.has_served else "live"

    def begin_epoch(self, places: Sequence[Place], step: int) -> None:
        self.is_checked, self.coming, self.step = False, deque(places), step

    def taps(self, inputs: Any, place: Place | None = None) -> Taps:
        step = None  # of the students' own images, which alone have relations
        if self.coming and place is self.coming[0]:
            self.coming.popleft()
            step, self.step = self.step, self.step + 1
        if self.is_off or place is None or len(place[0]) != self.plan.batch_size:
            return super().taps(inputs)
        if self.is_checked and self.table and (found := self._read(self.table, step, place, inputs.device)):
            self.has_served = True
            return found.with_classifier(self.model)
        taps = super().taps(inputs)
        if self.table is None:
            try:
                self._try_other_places(inputs, taps)
                self.table = self._opened(taps)
            except StoreError as error:
                log(f"teacher {self.cell.id} is run at each step: {error}")
                self.is_off = True
                return taps
        if not self.is_checked:
            self._check(self.table, step, place, taps)
        self.table.put(place, taps)
        for name, loss in self.kept.items() if step is not None else ():
            self.relations[name].put(step, place, loss.known(taps))
        return taps

    def _read(self, table: TeacherTable, step: int | None, place: Place, device: torch.device) -> Taps | None:
        """The taps and relations of a batch, as far as they are kept; None if something is missing."""
        relations = {}
        for name in self.kept if step is not None else ():
            if (values := self.relations[name].get(step, place)) is None:
                return None
            relations[name] = [value.to(device, non_blocking=True) for value in values]
        if (rows := self._rows(table, place)) is None:
            return None
        return Taps(**{name: value.to(device, non_blocking=True) for name, value in rows.items()}, relations=relations)

    def _rows(self, table: TeacherTable, place: Place) -> dict[str, Tensor] | None:
        """The rows of a batch, after those that are missing are computed; None if all are missing, or none can be written."""
        if (found := table.get(place)) or table.rows.is_full:
            return found
        size, missing = self.plan.batch_size, [table.missing(place)]
        if len(missing[0][0]) in (0, size):
            return None
        for later in self.coming:
            if sum(len(index) for index, _ in missing) >= size:
                break
            if len(later[0]) == size:
                missing.append(table.missing(later))
        # At the end of an epoch too few are missing: rows of the batch itself make up the number.
        index, views = (np.concatenate(rows)[:size] for rows in zip(*missing, place, strict=True))
        with isolated(0):
            inputs, _ = self.plan.data.batch("train", index, views)
        table.put((index, views), super().taps(inputs))
        return table.get(place)

    def _try_other_places(self, inputs: Any, taps: Taps) -> None:
        """Raises StoreError: outputs depend on the place in the batch."""
        if not isinstance(inputs, Tensor) or inputs.device.type != "cpu":
            return
        for places in (torch.arange(len(inputs)).roll(1), torch.from_numpy(np.random.Philox(0).random_raw(len(inputs)).argsort())):
            other = super().taps(inputs[places])
            for name in SERVED:
                if taps.has(name) and self._difference(getattr(other, name), getattr(taps, name)[places]):
                    size = len(inputs)
                    raise StoreError(f"on this processor the bits of its {name} depend on the place of an image in a batch of {size}")

    def _difference(self, now: Tensor, before: Tensor) -> float:
        """How far outputs are apart, relative to the largest of them; 0 where that is nothing, or no more than what these numerics on this
        device leave open."""
        if torch.equal(now, before):
            return 0.0
        off = float((now.double() - before.double()).abs().max() / now.double().abs().max())
        low = self.numerics["autocast"]
        close = max(CLOSE.get(now.dtype, 0.0), CLOSE[getattr(torch, low) if low else torch.float32])
        promises_bits = now.device.type == "cpu" and self.numerics["name"] == "exact"
        return 0.0 if off <= close and not promises_bits else off

    def _opened(self, taps: Taps) -> TeacherTable:
        given = {name: getattr(taps, name) for name in sorted(SERVED) if taps.has(name)}
        layout = {name: (tensor.dtype, tensor.shape[1]) for name, tensor in given.items()}
        assert self.plan.data.n_views is not None
        self.store.write_json(self.path.with_suffix(".json"), self.identity)
        # What the batches follow from; a row says itself which images it is of.
        order = [self.plan.streams.order, self.plan.streams.augment, self.plan.drop_last, self.plan.class_uniform]
        for name, loss in self.kept.items():
            path = self._path({**self.identity, "relation": name, "order": order})
            self.relations[name] = RelationTable(path, loss.known(taps), self.n_steps)
        return TeacherTable(self.path, layout, self.plan.data.size("train"), self.plan.data.n_views)

    def _path(self, identity: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self.store.tables_folder(self.cell.id) / f"{key}.rows"

    def _check(self, table: TeacherTable, step: int | None, place: Place, taps: Taps) -> None:
        """Compare what of a batch is in the tables. Raises TeacherError if it is not what the teacher gives; the table is set aside
        then."""
        there = table.there(place)
        found = table.get((place[0][there], place[1][there])) if there.any() else None
        for name, row in (found or {}).items():
            now = getattr(taps, name).detach()
            self._compare(self.path, name, now[torch.from_numpy(there).to(now.device)], row)
        relations = {name: self.relations[name].get(step, place) for name in self.kept} if step is not None else {}
        for name, values in relations.items():
            for now, row in zip(self.kept[name].known(taps), values or (), strict=False):
                self._compare(self.relations[name].path, name.split()[0], now, row)
        self.is_checked = found is not None and (step is not None or not self.kept) and None not in relations.values()

    def _compare(self, path: Path, name: str, now: Tensor, row: Tensor) -> None:
        if off := self._difference(now, row.to(now.device)):
            aside = self.store.set_aside(path)
            raise TeacherError(
                f"{path} does not hold what teacher {self.cell.id} gives now ({name} differs by {off:.2g} of its largest value), "
                f"so what was trained from it cannot be trusted: it is set aside as {aside.name}, and the next run makes it anew"
            )


def with_table(live: LiveTeacher, store: Store, plan: BatchPlan, members: Sequence[Member], device: torch.device) -> LiveTeacher:
    """The teacher of a bundle with its table, if one can serve these students."""
    first = members[0].cell
    needed = {name for member in members for name in member.objective.taps_needed}
    if why := why_no_table(first.config["recipe"], plan.data.n_views, needed):
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
    kept = {name: loss for member in members for name, loss in member.objective.kept.items()}
    return TabledTeacher(live, store, identity, plan, kept, first.config["recipe"]["epochs"])
