"""`python -m kdbench.train.worker RESULTS CELL...` trains cells in this process, in bundles. After a kill the same command resumes."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import failure, parts
from kdbench.cell import Cell, depended
from kdbench.errors import ClaimError, DamagedError, RankLostError, RefusedError, StoppedError
from kdbench.failure import STOPPED
from kdbench.plan.bundle import SIDE_BY_SIDE, Bundle, bundles
from kdbench.process_log import log
from kdbench.recipes._base import Recipe, why_not_shared
from kdbench.store import Store
from kdbench.validation import given_path

if TYPE_CHECKING:
    from kdbench.train.build import Setup
    from kdbench.train.checkpoint import Saver
    from kdbench.train.loop import Position
    from kdbench.train.meeting import Meeting
    from kdbench.train.member import Member
    from kdbench.train.ranks import Ranks

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
    reader.add_argument("--ranks", type=int, default=1, metavar="N", help="processes that share the groups of each batch")
    reader.add_argument("--rank", type=int, default=0, help="which of them this is; the first one starts the others")
    reader.add_argument("--meeting", default=None, metavar="NAME", help="where they find each other")
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = reader.parse_args(arguments)
    store, meeting = Store(asked.results), None
    if asked.ranks > 1:
        from kdbench.train.meeting import Meeting

        name = asked.meeting or f"{socket.gethostname()}-{uuid.uuid4().hex}"  # no other process has had it
        meeting = Meeting(store, store.root / "meetings" / name, asked.rank, asked.ranks)
        if not asked.rank:
            meeting.start_others(main, arguments)
    how = asked.device, asked.checkpoint_every, asked.side_by_side, Stop(asked.steps), asked.readers, asked.tables
    return work(store, asked.cells, asked.data, *how, meeting)


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
    meeting: Meeting | None = None,
) -> int:
    """Train the cells that are not done and that no other process trains, with a table for each of the teachers in `tables`, where one can
    serve. Returns the exit status. Of several ranks the first one chooses what is trained; each makes this call."""
    if meeting is None or meeting.world == 1:
        return _Work(store, data_folder, device, checkpoint_every_s, side_by_side, stop, readers, tables).lead(ids)
    lost = True  # however this ends before all have said that it does
    its = _Work(store, data_folder, device, checkpoint_every_s, side_by_side, stop, readers, tables)
    try:
        its.join(meeting)
        status = its.follow() if meeting.rank else its.lead(ids)
        its.ranks.end()
        lost = False
        return status
    except RankLostError as error:
        log(str(error))
        if its.ranks is not None:
            its.ranks.cut()
        if not meeting.rank and (told := meeting.why_lost()):
            for cell_id in its.current or its.claimed:
                if not store.is_done(cell_id):
                    failure.put(store, cell_id, told)
        return 1
    except Exception as error:
        meeting.tell(error)
        raise
    finally:
        meeting.end(lost)


@dataclass
class _Work:
    store: Store
    data_folder: Path
    device_name: str
    checkpoint_every_s: float | None
    side_by_side: int
    stop: Callable[[], bool]
    readers: int
    tables: Collection[str]
    current: tuple[str, ...] = ()
    """The cells of the bundle that is trained now."""

    claimed: list[str] = field(default_factory=list)
    ranks: Ranks | None = None
    place: int = 0
    """Of this rank among those on this machine."""

    def join(self, meeting: Meeting) -> None:
        """Meet the other ranks. Raises RankLostError."""
        from kdbench.train.circumstance import device_of

        self.place = meeting.place
        self.ranks = meeting.ranks(device_of(self.device_name, self.place))

    def lead(self, ids: Sequence[str]) -> int:
        """Claim cells, and train those that can be trained, in bundles."""
        store, status = self.store, 0
        cells: list[Cell] = []
        positions: dict[str, Position] = {}
        with ExitStack() as claims:
            for cell_id in ids:
                try:
                    claims.enter_context(store.claim(cell_id))
                    self.claimed.append(cell_id)
                    if not store.is_done(cell_id):  # checked under the claim: another process may have finished it
                        cell = store.cell(cell_id)
                        positions[cell_id] = _position(store, cell)
                        cells.append(cell)
                except ClaimError as error:
                    log(f"skipped: {error}")
                except Exception as error:
                    status = 1
                    _fail(store, [cell_id], error)
            waiting = deque(bundles(cells, positions, self.side_by_side))
            while waiting:
                if getattr(self.stop, "asked", False):  # before data and teacher are loaded
                    return self._led(STOPPED)
                bundle = waiting.popleft()
                try:
                    well, afresh = self._train(bundle, positions[bundle.ids[0]])
                    positions |= {cell.id: BEGINNING for cell in afresh}
                    waiting.extend(bundles(afresh, positions, self.side_by_side))
                    status |= not well
                except StoppedError as error:
                    log(str(error))
                    return self._led(STOPPED)
                except RankLostError:
                    raise
                except Exception as error:
                    status = 1
                    _fail(store, [cell_id for cell_id in bundle.ids if not store.is_done(cell_id)], error)
                    if self.ranks is not None and not self.ranks.knows(error):
                        raise RankLostError("the first rank cannot go on: the others end") from error
            return self._led(status)

    def _train(self, bundle: Bundle, start: Position) -> tuple[bool, list[Cell]]:
        self.current = tuple(bundle.ids)
        if self.ranks is not None:
            self.ranks.first(lambda: (bundle, start))
        return self._train_bundle(bundle, start)

    def _led(self, status: int) -> int:
        """End the other ranks."""
        if self.ranks is not None:
            self.ranks.first(lambda: None)
        return status

    def follow(self) -> int:
        """Train what the first rank says. It alone writes results, and judges failures."""
        while (said := self.ranks.first(lambda: None)) is not None:
            try:
                self._train_bundle(*said)
            except Exception as error:
                if isinstance(error, RankLostError) or not self.ranks.knows(error):
                    raise
                log(failure.described(error))
        return 0

    def _train_bundle(self, bundle: Bundle, start: Position) -> tuple[bool, list[Cell]]:
        """Train one bundle. Returns whether no cell failed, and the cells that must restart because their checkpoint does not fit."""
        from kdbench.train.build import first_stage_of
        from kdbench.train.checkpoint import CHECKPOINT_EVERY_S, Listener, Saver
        from kdbench.train.circumstance import circumstance, device_of
        from kdbench.train.loop import train
        from kdbench.train.numerics import settle
        from kdbench.train.ranks import ALONE
        from kdbench.train.stream import BatchPlan
        from kdbench.train.teacher_table import with_table

        ranks, store, first = self.ranks or ALONE, self.store, bundle.cells[0]
        device = device_of(self.device_name, self.place)
        settle(first.config["numerics"], device)
        setup = ranks.tried(lambda: _setup(first, self.data_folder, device, ranks.world))
        setup.data.read_with(self.readers)
        setup, is_damaged = self._with_teacher(setup, first, ranks)
        if is_damaged:
            return True, []
        plan = BatchPlan.of(first.config, setup.data)
        every_s = CHECKPOINT_EVERY_S if self.checkpoint_every_s is None else self.checkpoint_every_s
        kind = Listener if ranks.rank else Saver
        saver = kind(store, setup.data, circumstance(device, len(bundle.cells), ranks.world), every_s, log)
        members: list[Member] = []
        afresh: list[Cell] = []
        for cell in bundle.cells:
            try:
                earlier = ranks.tried(partial(first_stage_of, store, cell))
                member = ranks.tried(partial(_member, setup, store, cell, earlier))
                member.ranks = ranks
                if earlier and earlier.outcome == "diverged":
                    ranks.tried(partial(saver.diverged, member, earlier.result["diverged_at_step"], "first stage"))
                    continue
                saver.sources[cell.id] = ranks.tried(partial(parts.sources_of, cell.config))
                if _resumed(store, member, start, plan.steps, saver, ranks):
                    members.append(member)
                else:
                    afresh.append(cell)
            except Exception as error:  # the other cells can still be trained
                if isinstance(error, RankLostError) or not ranks.knows(error):
                    raise
                if ranks.rank:
                    continue
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
            if teacher and teacher.cell.id in self.tables:
                teacher = with_table(teacher, store, plan, members, device)
            saver.teacher = teacher
            train(members, plan, teacher, saver, start, self.stop, ranks)
        return all(cell in afresh or cell.id in saver.lost or store.is_done(cell.id) for cell in bundle.cells), afresh

    def _with_teacher(self, setup: Setup, cell: Cell, ranks: Ranks) -> tuple[Setup, bool]:
        """The setup with the cell's teacher, which the first rank compares with its record; and whether the teacher's files are damaged:
        they are set aside then, so that it is trained again."""
        found = [setup]

        def checked() -> bool:
            try:
                found[0] = setup.with_teacher(self.store, cell)
            except DamagedError:
                if not _is_set_aside(self.store, cell, "teacher"):
                    raise
                return True
            return False

        is_damaged = ranks.first(checked)
        if not is_damaged:
            found[0] = ranks.tried(lambda: setup.with_teacher(self.store, cell, is_checked=True) if ranks.rank else found[0])
        return found[0], is_damaged


def _setup(cell: Cell, data_folder: Path, device: Any, ranks: int) -> Setup:
    from kdbench.train.build import Setup

    recipe = Recipe.complete(cell.config["recipe"])
    if recipe["epochs"] and (why := why_not_shared(ranks, recipe["bn_groups"], cell.config["numerics"]["name"])):
        raise RefusedError(why)
    return Setup.of(cell, data_folder, device)


def _member(setup: Setup, store: Store, cell: Cell, earlier: Any) -> Member:
    from kdbench.train.build import point_of

    return setup.member(cell, point_of(store, cell), earlier, store)


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


def _resumed(store: Store, member: Member, start: Position, steps: int, saver: Saver, ranks: Ranks) -> bool:
    """Restore a student at the position of its bundle. Returns False if its checkpoint does not fit, after setting it aside. The first rank
    reads it for all."""
    from kdbench.train.checkpoint import checkpoint, set_aside

    if start == BEGINNING:
        return True
    saved = ranks.first(lambda: checkpoint(store, member.cell, log))
    if saved is None:
        return False

    def restore() -> None:
        if saved["position"] != start or start[1] >= steps:
            raise ValueError(f"its position is {saved['position']}")
        member.restore(saved["state"], start[0] * steps + start[1])

    try:
        ranks.tried(restore)
    except RankLostError:
        raise
    except Exception as error:
        if not ranks.rank:
            set_aside(store, member.cell, f"the checkpoint does not fit ({type(error).__name__}: {error})", log)
        return False
    saver.trained_before_s[member.cell.id] = saved["trained_s"]
    return True


if __name__ == "__main__":
    sys.exit(main())
