"""The verb `check`: every pair with every objective takes two real training steps, so that what will not work is said before the
sweep says it. Nothing is written."""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.cell import Cell
from kdbench.errors import KdbenchError
from kdbench.losses._base import Batch, Taps
from kdbench.plan.bundle import SIDE_BY_SIDE
from kdbench.plan.matrix import Plan, Row
from kdbench.run.build import load_data, make_objective, make_student, make_task
from kdbench.run.member import NEVER, Member, finite_or_none
from kdbench.run.numerics import settle
from kdbench.run.result import digest_of
from kdbench.run.stream import BatchPlan
from kdbench.run.teacher import Live, load_weights
from kdbench.store import Store

SILENT, LOUD = 1e-3, 1e3
"""A term whose gradient is so much smaller than the task's cannot matter, one so much larger leaves nothing of the task."""
MIB = 2**20


@dataclass
class Checked:
    """What became of one objective on one pair. Sizes in MiB: weights with gradients and optimiser, and what a step keeps for its
    backward pass. `ratios` are gradient norms relative to the task's at the second step; `wrong` must be mended, `notes` thought about."""

    student: str
    teacher: str | None
    objective: str
    step_s: float | None = None
    ragged_s: float | None = None
    weights_mib: float | None = None
    kept_mib: float | None = None
    loss: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """One batch of the suite's own stream, with the teacher's taps (None without a teacher)."""

    inputs: Any
    targets: Any
    batch: Batch
    taps: Taps | None = None


def check(plan: Plan, store: Store, data_folder: Path, device: torch.device, told: Callable[[str], None]) -> Iterator[Checked]:
    """Check everything that the suite compares, pair by pair, a pair's teacher once.

    Raises:
        DataError: the data are not there or not right.
    """
    threads = torch.get_num_threads()
    settle(plan.suite.numerics, device)
    torch.set_num_threads(threads)  # as many as the user's environment allows: no number of a check is kept
    rows = {(row.student, row.teacher, row.objective): row for row in reversed(plan.rows) if row.role == "student"}
    teachers: dict[str, Row] = {row.student: row for row in reversed(plan.teachers)}
    first = next(iter(rows.values())).cell
    task, data = make_task(first), load_data(first, data_folder, device)
    told(f"{plan.suite.dataset['name']}: {data.size('train')} training and {data.size('test')} test images, fingerprint {data.fingerprint}")
    alone = [row for row in rows.values() if row.teacher is None]
    for row in reversed(alone):
        yield _checked(row, None, _stream(row.cell, data, told), data, task, device)
    taught = dict.fromkeys(teacher for _, teacher in plan.suite.pairs)
    for name in taught:
        mine = [rows[box] for box in plan.compared if box in rows and box[1] == name]
        if not mine:
            continue
        stream = _stream(mine[0].cell, data, lambda _: None)
        try:
            began = time.perf_counter()
            teacher = _teacher(teachers[name], mine[0], store, stream, data, task, device, told)
            seen = [Seen(one.inputs, one.targets, one.batch, teacher.taps(one.inputs, None, None)) for one in stream]
            told(f"teacher {name}: made, and two batches seen, in {time.perf_counter() - began:.1f} s")
        except Exception as error:
            why = f"its teacher: {_said(error)}"
            yield from (Checked(row.student, row.teacher, row.objective, wrong=[why]) for row in mine)
            continue
        before = digest_of(teacher.model.state_dict())
        for row in mine:
            found = _checked(row, (teacher.model, teachers[name].cell), seen, data, task, device)
            if digest_of(teacher.model.state_dict()) != before:
                found.wrong.append("the teacher is changed by training: its weights or statistics are no longer what they were")
                before = digest_of(teacher.model.state_dict())
            if any(weight.grad is not None for weight in teacher.model.parameters()):
                found.wrong.append("a gradient reaches the teacher")
            yield found


def _stream(cell: Cell, data: Any, told: Callable[[str], None]) -> list[Seen]:
    """The first batch of the first epoch, and its last one: the ragged one, if the recipe keeps it."""
    plan = BatchPlan.of(cell.config, data)
    batches = list(plan.epoch(0))
    if len(batches) == 1:
        batches *= 2
    wanted = [batches[0], batches[-1]]
    told(f"batches of {len(wanted[0][0])} and, last of an epoch, {len(wanted[1][0])}")
    given = data.batches("train", wanted)
    return [
        Seen(inputs, targets, Batch(targets, torch.as_tensor(index, device=targets.device), 0, step))
        for step, ((index, _), (inputs, targets)) in enumerate(zip(wanted, given, strict=True))
    ]


def _teacher(
    row: Row, student: Row, store: Store, stream: list[Seen], data: Any, task: Any, device: torch.device, told: Callable[[str], None]
) -> Live:
    """The trained teacher if there is one; else one whose batch norms have seen these two batches, for fresh ones let features explode."""
    model = make_student(row.cell, data, task, device)
    record = store.record(row.cell.id)
    if record is not None and record.outcome == "finished":
        model.load_state_dict(load_weights(store, record))
    elif row.cell.config["recipe"]["epochs"]:
        told(f"teacher {row.student}: there is no trained one; its first weights stand in for it")
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the average of all batches seen
        with torch.no_grad():
            for one in stream:
                model.train()(one.inputs)
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
    return Live(model, student.cell.config["numerics"])


def _checked(row: Row, teacher: tuple[nn.Module, Cell] | None, stream: list[Seen], data: Any, task: Any, device: torch.device) -> Checked:
    found = Checked(row.student, row.teacher, row.objective)
    try:
        _try(found, row.cell, teacher, stream, data, task, device)
    except Exception as error:
        found.wrong.append(_said(error))
    return found


def _try(
    found: Checked, cell: Cell, teacher: tuple[nn.Module, Cell] | None, stream: list[Seen], data: Any, task: Any, device: torch.device
) -> None:
    def made() -> Member:
        model, config = (teacher[0], teacher[1].config["student"]) if teacher else (None, None)
        objective = make_objective(cell, data, task, device, model, config)
        return Member(cell, make_student(cell, data, task, device), objective, task, BatchPlan.of(cell.config, data).steps)

    member = made()
    whole, ragged = stream
    with _Kept() as kept:
        found.step_s = _timed(device, lambda: member.step(whole.inputs, whole.targets, whole.batch, whole.taps))
    found.kept_mib = kept.bytes / MIB
    found.weights_mib = _held(member) / MIB
    began = member.sums.get("")
    found.loss = finite_or_none(float(began[0]) / member.seen) if began is not None else None
    first_bad = member.went_bad(0)
    found.ragged_s = _timed(device, lambda: member.step(ragged.inputs, ragged.targets, ragged.batch, ragged.taps, first=True))
    found.ratios = dict(member.gradients)
    if (bad := first_bad if first_bad != NEVER else member.went_bad(1)) != NEVER:
        found.wrong.append(f"a number that is not finite came at step {bad + 1} ({'the ragged batch' if bad else 'a whole batch'})")
    for name, ratio in found.ratios.items():
        if not ratio >= SILENT:
            found.notes.append(f"{name} says next to nothing: its gradient is {ratio:.1g} of the task's")
        elif ratio > LOUD:
            found.notes.append(f"{name} drowns the task: its gradient is {ratio:.1g} times the task's")
    if idle := [name for name, weight in member.student.named_parameters() if weight.requires_grad and weight.grad is None]:
        found.notes.append(f"no gradient reaches {len(idle)} of the student's weights ({', '.join(idle[:3])})")
    found.wrong += _round_trip(member, made())


def _round_trip(member: Member, fresh: Member) -> list[str]:
    """What a checkpoint does not bring back."""
    buffer = io.BytesIO()
    torch.save(member.state(), buffer)
    buffer.seek(0)
    fresh.restore(torch.load(buffer, map_location="cpu", weights_only=True), 2)
    parts = {
        # Not the state dictionary, which may itself be what forgets.
        "weights": lambda one: {**dict(one.trained.named_parameters()), **dict(one.trained.named_buffers())},
        "optimiser": lambda one: _flat(one.optimizer.state_dict()["state"]),
    }
    return [
        f"a checkpoint does not bring the {name} back"
        for name, state in parts.items()
        if digest_of(state(member)) != digest_of(state(fresh))
    ]


def _flat(state: dict[Any, Any]) -> dict[str, Tensor]:
    return {f"{key}.{name}": value for key, held in state.items() for name, value in held.items() if isinstance(value, Tensor)}


def _held(member: Member) -> int:
    """Bytes of weights, gradients and what the optimiser keeps."""
    state = [*member.trained.state_dict().values(), *_flat(member.optimizer.state_dict()["state"]).values()]
    gradients = [weight.grad for weight in member.trained.parameters() if weight.grad is not None]
    return sum(one.numel() * one.element_size() for one in [*state, *gradients])


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts what is kept for the backward pass, each piece of memory once."""

    def __init__(self) -> None:
        self.pieces: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def __enter__(self) -> _Kept:  # type: ignore[override]
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.pieces.values())


def _timed(device: torch.device, act: Callable[[], None]) -> float:
    def settled() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = settled()
    act()
    return settled() - began


def _said(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, KdbenchError):
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({Path(frame.filename).name}:{frame.lineno})"


def bundle_mib(found: list[Checked]) -> float:
    """Memory of the largest bundle that one process would train: all weights, and what one step at a time keeps; without teacher. An
    upper bound: weights that the backward pass needs are counted in both."""
    each = sorted((one.weights_mib or 0.0 for one in found), reverse=True)[:SIDE_BY_SIDE]
    return sum(each) + max((one.kept_mib or 0.0 for one in found), default=0.0)
