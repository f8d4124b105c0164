"""The verb `check`: every pair with every objective takes real training steps, to find failures early, and to know what a step costs."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.cell import Cell
from kdbench.isolation import explained, isolated, private
from kdbench.losses._base import Batch, Taps
from kdbench.plan.bundle import SIDE_BY_SIDE
from kdbench.plan.matrix import Plan, Row
from kdbench.recipes._base import Recipe
from kdbench.store import Store
from kdbench.store.step_times import StepTimes
from kdbench.train import timing
from kdbench.train.build import Setup
from kdbench.train.evaluate import finite_or_none
from kdbench.train.member import NEVER, Member
from kdbench.train.numerics import settle, timed_s
from kdbench.train.objective import weight_at
from kdbench.train.result import digest_of
from kdbench.train.stream import BatchPlan
from kdbench.train.teacher import LiveTeacher, load_weights

SILENT, LOUD = 1e-3, 1e3
"""A term is negligible if its gradient relative to the task's is below the first, and dominates the task above the second."""
MIB = 2**20
SAME_IMAGES = {"epochs", "evaluate_every", "accumulate"}
"""Options of a stream of data that change no image of its first epoch."""


@dataclass
class Checked:
    """The result of one objective on one pair. `weights_mib` includes gradients and optimiser; `saved_mib` is what a step saves for its
    backward pass. `ratios` are gradient norms relative to the task's at a second step on a whole batch; `wrong` are errors, `notes`
    possible ones."""

    student: str
    teacher: str | None
    objective: str | None
    step_s: float | None = None
    ragged_s: float | None = None
    weights_mib: float | None = None
    saved_mib: float | None = None
    loss: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Step = tuple[Any, Any, Batch, Taps | None]
"""What `Member.step` gets: (inputs, targets, batch, taps of the teacher)."""


def check(plan: Plan, store: Store, data_folder: Path, device: torch.device, log: Callable[[str], None]) -> Iterator[Checked]:
    """Check everything that the suite compares, pair by pair, and keep step times. Raises DataError if the data are missing or wrong."""
    settle(plan.suite.numerics, device)  # with the threads of a training, so that step times are those of trainings
    rows = {(row.student, row.teacher, row.objective): row for row in reversed(plan.rows) if row.role == "student"}
    earlier = {row.cell.id: replace(row, objective=f"{row.objective}, first stage") for row in plan.rows if row.role == "first_stage"}
    teachers: dict[str, Row] = {row.student: row for row in reversed(plan.teachers)}
    first = next(iter(rows.values())).cell
    times = timing.step_times(store, device)
    setup = timing.time_data(times, first, data_folder, device)
    data = setup.data
    timing.time_worker(times)
    untrained: list[str] = []
    log(f"{plan.suite.dataset['name']}: {data.size('train')} training and {data.size('test')} test images, fingerprint {data.fingerprint}")
    for note in data.notes:
        log(f"{plan.suite.dataset['name']}: {note}")
    size, steps = first.config["recipe"]["batch_size"], BatchPlan.of(first.config, data).steps
    log(f"batches of {min(size, data.size('train'))}; the last one of an epoch has {min(size, data.size('train') - (steps - 1) * size)}")
    for row in reversed([row for row in rows.values() if row.teacher is None]):
        yield _checked(row, times, partial(_given, row.cell, row.cell, setup, _stream(row.cell, setup), data_folder))
    for name in dict.fromkeys(teacher for _, teacher in plan.suite.pairs):
        mine = [rows[box] for box in plan.compared if box in rows and box[1] == name]
        if not mine:
            continue
        starts = dict.fromkeys(row.cell.depends["start"] for row in mine if "start" in row.cell.depends)
        mine += [earlier[start] for start in starts]
        stream = _stream(mine[0].cell, setup)
        try:
            began = time.perf_counter()
            teacher, stops = _teacher(teachers[name], mine[0], store, stream, setup, log)
            untrained += [name] if stops is not None else []
            before = digest_of(teacher.model.state_dict())
            batches = [(inputs, targets, batch, teacher.taps(inputs)) for inputs, targets, batch, _ in stream]
            changes = digest_of(teacher.model.state_dict()) != before
            log(f"teacher {name}: built and run on two batches in {time.perf_counter() - began:.1f} s")
            timing.time_teacher(times, mine[0].cell, replace(setup, teacher=teacher), batches[0][0])
            _time_training(times, teachers[name].cell, store, data_folder, device)
        except Exception as error:
            why = f"its teacher: {explained(error)}"
            yield from (Checked(row.student, row.teacher, row.objective, wrong=[why]) for row in mine)
            continue
        for row in mine:
            found = _checked(row, times, partial(_given, row.cell, mine[0].cell, replace(setup, teacher=teacher), batches, data_folder))
            if changes:
                found.wrong.append("the teacher's weights or statistics change while it is in evaluation mode")
            found.wrong += [f"its teacher: {stops}"] if stops else []
            yield found
    times.save()
    for text in _not_tried(plan, data, untrained):
        log(f"not tried: {text}")


def _time_training(times: StepTimes, teacher: Cell, store: Store, data_folder: Path, device: torch.device) -> None:
    """The steps of a teacher that is to be trained. What stops its training is found elsewhere."""
    if teacher.config["recipe"]["epochs"] and not store.is_done(teacher.id):
        setup = Setup.of(teacher, data_folder, device)
        with suppress(Exception):
            timing.time_student(times, teacher, setup, _stream(teacher, setup))


def _not_tried(plan: Plan, data: Any, untrained: list[str]) -> Iterator[str]:
    """What a suite does and this check does not."""
    if untrained:
        yield f"the training of teachers ({', '.join(untrained)}): losses were checked with teachers of initial weights"
    for name, objective in plan.suite.objectives.items():
        for term in objective.config["terms"]:
            if weight_at(term["weight"], 0) == 0:
                yield f"the gradient of {term['loss']} in {name}: its weight is 0 in epoch 0"
    students = len({(row.student, row.teacher, row.objective) for row in plan.rows if row.role == "student"})
    yield f"whole epochs, evaluation and saving of results; repeats other than the first; {students} settings together in bundles"
    if data.from_files:
        yield "reading of images by several processes"
    yield "jobs on SLURM (`kdbench run SUITE --on CLUSTER --dry-run` shows them)"


def _stream(cell: Cell, setup: Setup) -> list[Step]:
    """The first and the last batch of the first epoch, mixed as in training; the last may be smaller."""
    plan = BatchPlan.of(cell.config, setup.data)
    batches = list(plan.epoch(0))
    wanted = [batches[0], batches[-1]]
    steps: list[Step] = []
    for step, ((index, _), given) in enumerate(zip(wanted, setup.data.batches("train", wanted), strict=True)):
        inputs, targets = plan.mixed(*given, setup.task, step)
        steps.append((inputs, targets, Batch(targets, torch.as_tensor(index, device=setup.device), 0, step), None))
    return steps


def _given(cell: Cell, other: Cell, setup: Setup, stream: list[Step], data_folder: Path) -> tuple[Setup, list[Step]]:
    """The setup and the batches, which are those of `other`, or those of `cell` where its recipe makes others, as that of a first stage
    can."""
    mine, theirs = (Recipe.complete(one.config["recipe"]) for one in (cell, other))
    if all(mine[name] == theirs[name] for name in Recipe.shared - SAME_IMAGES):
        return setup, stream
    assert setup.teacher is not None
    own = replace(Setup.of(cell, data_folder, setup.device), teacher=setup.teacher)
    return own, [(inputs, targets, batch, setup.teacher.taps(inputs)) for inputs, targets, batch, _ in _stream(cell, own)]


def _of_two_views(cell: Cell, setup: Setup, stream: list[Step], augmentation: str) -> list[Step]:
    """The same batches with a second view of their images."""
    assert setup.teacher is not None
    plan = BatchPlan.of(cell.config, setup.data).second_views(augmentation)
    batches, steps = list(plan.epoch(0)), []
    given = plan.data.batches("train", [batches[0], batches[-1]])
    for (inputs, targets, batch, teacher), second in zip(stream, given, strict=True):
        seen, _ = plan.mixed(*second, setup.task, batch.step)
        views = {("matched", augmentation): (seen, setup.teacher.taps(seen))}
        steps.append((inputs, targets, replace(batch, second_views=views), teacher))
    return steps


def _teacher(
    row: Row, student: Row, store: Store, stream: list[Step], setup: Setup, log: Callable[[str], None]
) -> tuple[LiveTeacher, str | None]:
    """The trained teacher, or an untrained one with batch-norm statistics of a whole batch, without which features explode; and, of an
    untrained one, what will stop its training (empty: nothing known)."""
    stops = None
    model = setup.student(row.cell)
    record = store.record(row.cell.id)
    if record is not None and record.outcome == "finished":
        model.load_state_dict(load_weights(store, record))
    elif row.cell.config["recipe"]["epochs"]:
        log(f"teacher {row.student}: not trained yet: checked with its initial weights")
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the average of all batches seen
        with isolated(0), torch.no_grad():
            model.train()(private(stream[0][0]))
            stops = _stops(model, row.cell, setup.data, stream[0][0])
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
    return LiveTeacher(model, row.cell, student.cell.config["numerics"]), stops


def _stops(model: nn.Module, cell: Cell, data: Any, inputs: Any) -> str:
    """What will stop the training of a model at the last batch of an epoch; empty if nothing does. Only a batch of one image is tried."""
    steps = BatchPlan.of(cell.config, data)
    if steps.drop_last or data.size("train") % steps.batch_size != 1 or not isinstance(inputs, Tensor):
        return ""
    try:
        copy.deepcopy(model).train()(private(inputs[:1]))
    except ValueError as error:
        return _of_one_image(error, steps.steps)
    return ""


def _of_one_image(error: ValueError, steps: int) -> str:
    """What to do about an error that batch norm raises for a batch of one image; empty for other errors."""
    if "more than 1 value per channel" not in str(error):
        return ""
    problem = f"batch {steps}, the last of each epoch, has one image, and batch norm cannot be trained on one image"
    return f"{problem}: write `drop_last: true` in the recipe, or another `batch_size`"


def _of_parts(error: Exception, recipe: Mapping[str, Any]) -> str:
    """What to do where `accumulate` or `bn_groups` makes parts of one image, which batch norm cannot be trained on; empty for other
    errors."""
    option = "bn_groups" if recipe["bn_groups"] > 1 else "accumulate"
    if "more than 1 value per channel" not in str(error) or recipe["bn_groups"] == 1 != recipe["batch_size"] // recipe["accumulate"]:
        return ""
    last = ", or `drop_last: true` if only the last batch is too small" if option == "bn_groups" else ""
    return f"`{option}: {recipe[option]}` makes parts of one image, on which batch norm cannot be trained: write a smaller number{last}"


def _checked(row: Row, times: StepTimes, given: Callable[[], tuple[Setup, list[Step]]]) -> Checked:
    found = Checked(row.student, row.teacher, row.objective)
    try:
        setup, stream = given()
        member = setup.member(row.cell)
        if member.objective.augmentation is not None:
            stream = _of_two_views(row.cell, setup, stream, member.objective.augmentation)
        _try(found, row.cell, setup, stream, member)
        if not found.wrong:
            memory = {"weights_mib": found.weights_mib or 0.0, "saved_mib": found.saved_mib or 0.0}
            found.step_s = timing.time_student(times, row.cell, setup, stream, **memory)
    except Exception as error:
        found.wrong.append(_of_parts(error, Recipe.complete(row.cell.config["recipe"])) or explained(error))
    return found


def _try(found: Checked, cell: Cell, setup: Setup, stream: list[Step], member: Member) -> None:
    whole, ragged = stream
    with saved_pieces() as pieces:
        found.step_s = timed_s(setup.device, lambda: member.step(*whole))
    found.saved_mib = sum(pieces.values()) / MIB
    found.weights_mib = _held(member) / MIB
    began = member.sums.get("")
    found.loss = finite_or_none(float(began[0]) / member.seen) if began is not None else None
    first_bad = member.went_bad(0)
    try:
        found.ragged_s = timed_s(setup.device, lambda: member.step(*ragged))
    except ValueError as error:
        if len(ragged[2].index) == 1 and (stops := _of_one_image(error, BatchPlan.of(cell.config, setup.data).steps)):
            found.wrong.append(stops)
            return
        raise
    found.ratios = _ratios(setup.member(cell), whole)
    if (bad := first_bad if first_bad != NEVER else member.went_bad(1)) != NEVER:
        found.wrong.append(f"a value is not finite at step {bad + 1} ({'the last batch' if bad else 'the first batch'})")
    silent = {name for name, term in zip(member.objective.names, member.objective.terms, strict=True) if weight_at(term["weight"], 0) == 0}
    for name, ratio in found.ratios.items():
        if name.partition(".")[0] in silent:
            continue
        if ratio == 0:
            found.notes.append(
                f"{name} has no gradient for the student: if `plan` does not say why, it may use `detach` or `.item()` on its taps"
            )
        elif not ratio >= SILENT:
            found.notes.append(f"{name} is negligible: its gradient is {ratio:.1g} of the task's")
        elif ratio > LOUD:
            found.notes.append(f"{name} dominates the task: its gradient is {ratio:.1g} times the task's")
    if idle := [name for name, weight in member.student.named_parameters() if weight.requires_grad and weight.grad is None]:
        found.notes.append(f"no gradient reaches {len(idle)} of the student's weights ({', '.join(idle[:3])})")
    known = {id(weight) for group in member.optimizer.param_groups for weight in group["params"]}
    if untrained := [name for name, weight in member.trained.named_parameters() if weight.requires_grad and id(weight) not in known]:
        found.wrong.append(f"weights that a loss creates in `forward` are never trained ({', '.join(untrained)}): create them in `bind`")
        return
    fresh = setup.member(cell)
    buffer = io.BytesIO()
    torch.save(member.state(), buffer)
    buffer.seek(0)
    fresh.restore(torch.load(buffer, map_location="cpu", weights_only=True), 2)
    parts = {
        # Not the state dictionary, which may be incomplete.
        "weights": lambda one: {**dict(one.trained.named_parameters()), **dict(one.trained.named_buffers())},
        "optimiser": lambda one: _flat(one.optimizer.state_dict()["state"]),
        "average": lambda one: one.average.module.state_dict() if one.average else {},
    }
    wrong = [name for name, state in parts.items() if digest_of(state(member)) != digest_of(state(fresh))]
    found.wrong += [f"a checkpoint does not restore the {name}" for name in wrong]
    found.notes += _unsaved_attributes(member.objective.losses, fresh.objective.losses)


def _ratios(member: Member, whole: Step) -> dict[str, float]:
    """Gradient sizes at the second step on a whole batch: those of a small last batch say nothing about a relational loss."""
    inputs, targets, batch, teacher = whole
    member.step(*whole)
    member.step(inputs, targets, replace(batch, step=1), teacher, first=True)
    return dict(member.gradients)


def _unsaved_attributes(losses: Iterable[nn.Module], restored: Iterable[nn.Module]) -> list[str]:
    """Numbers and tensors that a loss changed in these steps, and that a checkpoint does not contain."""
    found = []
    for loss, fresh in zip(losses, restored, strict=True):
        for name, value in vars(loss).items():
            there = vars(fresh).get(name)
            if name.startswith("_") or not isinstance(value, (bool, int, float, Tensor)):
                continue
            tensors = isinstance(value, Tensor) and isinstance(there, Tensor)
            if not (torch.equal(value, there) if tensors else value is there or value == there):
                text = f"the loss '{type(loss).__name__}' changes '{name}' while it trains, and a checkpoint does not contain it"
                found.append(f"{text}: if it matters later, make it a buffer (`self.register_buffer`)")
    return found


def _flat(state: dict[Any, Any]) -> dict[str, Tensor]:
    return {f"{key}.{name}": value for key, held in state.items() for name, value in held.items() if isinstance(value, Tensor)}


def _held(member: Member) -> int:
    """Bytes of weights, their average, gradients and optimiser state."""
    state = [*member.trained.state_dict().values(), *_flat(member.optimizer.state_dict()["state"]).values()]
    state += member.average.module.state_dict().values() if member.average else ()
    gradients = [weight.grad for weight in member.trained.parameters() if weight.grad is not None]
    return sum(one.numel() * one.element_size() for one in [*state, *gradients])


@contextmanager
def saved_pieces() -> Iterator[dict[int, int]]:
    """The bytes of each piece of memory that is saved for the backward pass, by its address."""
    pieces: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield pieces


def bundle_mib(found: list[Checked]) -> float:
    """Memory of the largest bundle, without teacher. An upper bound: weights that the backward pass needs are counted twice."""
    each = sorted((one.weights_mib or 0.0 for one in found), reverse=True)[:SIDE_BY_SIDE]
    return sum(each) + max((one.saved_mib or 0.0 for one in found), default=0.0)
