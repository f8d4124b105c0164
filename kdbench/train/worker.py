"""`python -m kdbench.train.worker RESULTS CELL...` trains cells in this process, in bundles. After a kill the same command resumes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import failure, parts
from kdbench.cell import Cell, depended
from kdbench.errors import ClaimError, DamagedError, StoppedError
from kdbench.failure import STOPPED
from kdbench.plan.bundle import SIDE_BY_SIDE, Bundle, bundles
from kdbench.process_log import log
from kdbench.store import Store
from kdbench.validation import given_path

if TYPE_CHECKING:
    from kdbench.train.build import Setup
    from kdbench.train.checkpoint import Saver
    from kdbench.train.loop import Position
    from kdbench.train.member import Member

BEGINNING = (0, 0)
"""(epoch, step) of a cell without a checkpoint."""


def main(arguments: Sequence[str] | None = None) -> int:
    reader = argparse.ArgumentParser(prog="kdbench.train.worker", description=__doc__)
    reader.add_argument("results", type=Path)
    reader.add_argument("cells", nargs="+")
    reader.add_argument("--data", type=Path, default=given_path(os.environ.get("KDBENCH_DATA") or "data"))
    reader.add_argument("--device", default="auto")
    reader.add_argument("--checkpoint-every", type=float, default=None, metavar="SECONDS")
    reader.add_argument("--side-by-side", type=int, default=SIDE_BY_SIDE)
    reader.add_argument("--readers", type=int, default=1, metavar="N", help="processes that read ahead, for data in files")
    reader.add_argument("--tables", nargs="*", default=(), metavar="TEACHER", help="cells of teachers whose outputs are kept in a table")
    reader.add_argument("--steps", type=int, default=None, metavar="N", help="stop after so many steps, as if asked to")
    asked = reader.parse_args(arguments)
    how = asked.device, asked.checkpoint_every, asked.side_by_side, Stop(asked.steps), asked.readers, asked.tables
    return work(Store(asked.results), asked.cells, asked.data, *how)


class Stop:
    """Whether to stop: after SIGTERM, SIGUSR2 or SIGINT, or after a number of steps. The loop calls it at each step."""

    def __init__(self, steps: int | None = None) -> None:
        self.asked, self.steps = False, steps
        for name in ("SIGTERM", "SIGUSR2", "SIGINT"):
            signal.signal(getattr(signal, name), self._set)

    def _set(self, *_: Any) -> None:
        self.asked = True

    def __call__(self) -> bool:
        if self.steps is not None:
            self.steps -= 1
        return self.asked or (self.steps is not None and self.steps < 0)


def work(
    store: Store,
    ids: Sequence[str],
    data_folder: Path,
    device: str = "auto",
    checkpoint_every_s: float | None = None,
    side_by_side: int = SIDE_BY_SIDE,
    stop: Callable[[], bool] = lambda: False,
    readers: int = 0,
    tables: Collection[str] = (),
) -> int:
    """Train the cells that are not done and that no other process trains, with a table for each of the teachers in `tables`, where one can
    serve. Returns the exit status."""
    with ExitStack() as claims:
        cells: list[Cell] = []
        positions: dict[str, Position] = {}
        status = 0
        for cell_id in ids:
            try:
                claims.enter_context(store.claim(cell_id))
                if not store.is_done(cell_id):  # checked under the claim: another process may have finished it
                    cell = store.cell(cell_id)
                    positions[cell_id] = _position(store, cell)
                    cells.append(cell)
            except ClaimError as error:
                log(f"skipped: {error}")
            except Exception as error:
                status = 1
                _fail(store, [cell_id], error)
        train_bundle = partial(_train_bundle, store, data_folder, device, checkpoint_every_s, readers, stop, tables)
        waiting = deque(bundles(cells, positions, side_by_side))
        while waiting:
            if getattr(stop, "asked", False):  # before data and teacher are loaded
                return STOPPED
            bundle = waiting.popleft()
            try:
                well, afresh = train_bundle(bundle, positions[bundle.ids[0]])
                positions |= {cell.id: BEGINNING for cell in afresh}
                waiting.extend(bundles(afresh, positions, side_by_side))
                status |= not well
            except StoppedError as error:
                log(str(error))
                return STOPPED
            except Exception as error:
                status = 1
                _fail(store, [cell_id for cell_id in bundle.ids if not store.is_done(cell_id)], error)
        return status


def _position(store: Store, cell: Cell) -> Position:
    """The position of a cell's next step. Its checkpoint is read again when its bundle begins, to save memory."""
    from kdbench.train.checkpoint import checkpoint

    saved = checkpoint(store, cell, log)
    return saved["position"] if saved else BEGINNING


def _fail(store: Store, ids: Sequence[str], error: Exception) -> None:
    text = traceback.format_exc()
    log(text if ids else f"{type(error).__name__}: {error}")
    for cell_id in ids:
        failure.put(store, cell_id, failure.describe(error, text))


def _train_bundle(
    store: Store,
    data_folder: Path,
    device_name: str,
    checkpoint_every_s: float | None,
    readers: int,
    stop: Callable[[], bool],
    tables: Collection[str],
    bundle: Bundle,
    start: Position,
) -> tuple[bool, list[Cell]]:
    """Train one bundle. Returns whether no cell failed, and the cells that must restart because their checkpoint does not fit."""
    import torch

    from kdbench.train.build import Setup, first_stage_of, point_of
    from kdbench.train.checkpoint import CHECKPOINT_EVERY_S, Saver
    from kdbench.train.circumstance import choose_device, circumstance
    from kdbench.train.loop import train
    from kdbench.train.numerics import settle
    from kdbench.train.stream import BatchPlan
    from kdbench.train.teacher_table import with_table

    first = bundle.cells[0]
    device = torch.device(choose_device(device_name))
    settle(first.config["numerics"], device)
    setup = Setup.of(first, data_folder, device)
    setup.data.read_with(readers)
    with_teacher = _with_teacher(setup, store, first)
    if with_teacher is None:
        return True, []
    setup, plan = with_teacher, BatchPlan.of(first.config, setup.data)
    every_s = CHECKPOINT_EVERY_S if checkpoint_every_s is None else checkpoint_every_s
    saver = Saver(store, setup.data, circumstance(device, len(bundle.cells)), every_s, log)
    members: list[Member] = []
    afresh: list[Cell] = []
    for cell in bundle.cells:
        try:
            earlier = first_stage_of(store, cell)
            member = setup.member(cell, point_of(store, cell), earlier, store)
            if earlier and earlier.outcome == "diverged":
                saver.diverged(member, earlier.result["diverged_at_step"], "first stage")
                continue
            saver.sources[cell.id] = parts.sources_of(cell.config)
            if _resumed(store, member, start, plan.steps, saver):
                members.append(member)
            else:
                afresh.append(cell)
        except Exception as error:  # the other cells can still be trained
            # Another student of this bundle, or another process, may have set the first stage aside before.
            start_id = cell.depends.get("start")
            gone = start_id is not None and not store.is_done(start_id) and store.failure(start_id) is None
            if gone or (start_id is not None and isinstance(error, DamagedError) and _is_set_aside(store, cell, "start")):
                saver.lost.add(cell.id)
                continue
            _fail(store, [cell.id], error)
    if members:
        log(f"bundle of {len(members)} from epoch {start[0] + 1}: {' '.join(member.cell.id for member in members)}")
        teacher = setup.teacher
        if teacher and teacher.cell.id in tables:
            teacher = with_table(teacher, store, plan, members, device)
        saver.teacher = teacher
        train(members, plan, teacher, saver, start, stop)
    return all(cell in afresh or cell.id in saver.lost or store.is_done(cell.id) for cell in bundle.cells), afresh


def _with_teacher(setup: Setup, store: Store, cell: Cell) -> Setup | None:
    """The setup with the cell's teacher; None if the teacher's files are damaged: they are set aside, so that it is trained again."""
    try:
        return setup.with_teacher(store, cell)
    except DamagedError:
        if not _is_set_aside(store, cell, "teacher"):
            raise
        return None


def _is_set_aside(store: Store, cell: Cell, role: str) -> bool:
    """Set aside the damaged files of what a cell depends on in this role, so that it is trained again; False if they are sound."""
    from kdbench.train.teacher import load_weights

    def check(cell_id: str) -> None:
        if record := store.record(cell_id):
            load_weights(store, record)

    other = cell.depends[role]
    why = store.set_aside_result(other, check)
    if not why and store.is_done(other):
        return False
    after = "its students" if role == "teacher" else "its second stage"
    log(f"{why or 'another process found it damaged'}; {depended(role)} {other} is trained again before {after}")
    return True


def _resumed(store: Store, member: Member, start: Position, steps: int, saver: Saver) -> bool:
    """Restore a student at the position of its bundle. Returns False if its checkpoint does not fit, after setting it aside."""
    from kdbench.train.checkpoint import checkpoint, set_aside

    if start == BEGINNING:
        return True
    saved = checkpoint(store, member.cell, log)
    if saved is None:
        return False
    try:
        if saved["position"] != start or start[1] >= steps:
            raise ValueError(f"its position is {saved['position']}")
        member.restore(saved["state"], start[0] * steps + start[1])
    except Exception as error:
        set_aside(store, member.cell, f"the checkpoint does not fit ({type(error).__name__}: {error})", log)
        return False
    saver.trained_before_s[member.cell.id] = saved["trained_s"]
    return True


if __name__ == "__main__":
    sys.exit(main())
