"""How long the rest of a suite takes on this machine: what `run` does, with measured step times in place of training."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from kdbench.cell import Cell
from kdbench.plan.bundle import SIDE_BY_SIDE, Bundle, bundles
from kdbench.plan.matrix import Plan
from kdbench.plan.needs import TFLOP_PER_S, assumed_hours
from kdbench.plan.recipe_limits import second_views_of
from kdbench.plan.summary import PlanSummary
from kdbench.recipes._base import Recipe, steps_per_epoch
from kdbench.run.local import Machine, awaited, for_slots, in_order
from kdbench.store import Store, cell_state
from kdbench.store.step_times import StepTimes, Times, stream_of, student_of

MOST_RECORDS = 50
"""So many finished trainings are read to correct the estimate."""
WORTH = 0.03
"""More students side by side pay while twice as many save at least this share of the time of each."""
SAFE = 0.8
"""The share of the free memory that students may take."""


@dataclass(frozen=True)
class Costs:
    """The seconds of a plan's trainings on this device, from what `check` has measured. `found` are the times of a cell: of its student,
    its teacher and its data; `saved` is the share of a teacher's forward passes that a table of its outputs saves, by its id."""

    plan: Plan
    times: StepTimes
    saved: Mapping[str, float] = field(default_factory=dict)
    found: dict[str, tuple[Times | None, Times | None, Times | None]] = field(default_factory=dict)
    tested: set[str] = field(default_factory=set)
    device: str = "cpu"

    @classmethod
    def here(cls, plan: Plan, store: Store, device: str, saved: Mapping[str, float] = MappingProxyType({})) -> Costs:
        import torch

        from kdbench.train.circumstance import choose_device
        from kdbench.train.timing import step_times

        device = choose_device(device)
        return cls(plan, step_times(store, torch.device(device)), saved, device=device)

    def of(self, cell: Cell) -> tuple[Times | None, Times | None, Times | None]:
        if cell.id not in self.found:
            stream, get = stream_of(cell.config), self.times.get
            used = "teacher" in cell.depends and cell.config["objective"]["terms"]
            net = self.plan.cells[cell.depends["teacher"]].config["student"] if used else None
            teacher = get("teacher", stream, net) if used else {"forward_s": 0.0}
            self.found[cell.id] = get("student", stream, student_of(cell.config, net)), teacher, get("data", stream)
        return self.found[cell.id]

    def own_and_shared_s(self, cell: Cell, begun: int = 0) -> tuple[float, float]:
        """The training of a cell from an epoch on: its own seconds, and those that it shares with all students of its bundle."""
        mine, teacher, data = (one or {} for one in self.of(cell))
        recipe, terms = Recipe.complete(cell.config["recipe"]), cell.config["objective"]["terms"]
        held_out = round(data["pool"] * cell.config["dataset"]["options"].get("validation", 0.0))
        steps = steps_per_epoch(int(data["pool"]) - held_out, recipe["batch_size"], recipe["drop_last"])
        epochs, every = recipe["epochs"] - begun, recipe["evaluate_every"]
        evaluations = max(1, recipe["epochs"] // every - begun // every + bool(recipe["epochs"] % every))
        own = epochs * ((steps - 1) * mine["step_s"] + mine["last_s"] + max(0.0, mine["first_s"] - mine["step_s"]))
        own += evaluations * (data["test"] + held_out) * mine["predict_s"]
        views = 1 + len(second_views_of(terms, cell.sources)) + len({term["pairing"] for term in terms} - {"matched", "shuffled"})
        asked = 1 - self.saved.get(cell.depends.get("teacher", ""), 0.0)
        # Readers load images from files ahead of training.
        return own, epochs * steps * views * ((0.0 if data["from_files"] else data["data_s"]) + asked * teacher["forward_s"])

    def training_s(self, bundle: Bundle, begun: int = 0) -> float:
        pairs = [self.own_and_shared_s(cell, begun) for cell in bundle.cells]
        return sum(own for own, _ in pairs) + max(shared for _, shared in pairs)

    def preparation_s(self, bundle: Bundle) -> float:
        """Loading the data, building the students and, once, testing the teacher."""
        first = bundle.cells[0]
        _, teacher, data = (one or {} for one in self.of(first))
        test_s = 0.0
        if bundle.teacher and bundle.teacher not in self.tested:
            self.tested.add(bundle.teacher)
            test_s = teacher["forward_s"] * data["test"] / Recipe.complete(first.config["recipe"])["batch_size"]
        return data["load_s"] + test_s + sum((self.of(cell)[0] or {})["build_s"] for cell in bundle.cells)


def time_left(outlook: PlanSummary, jobs: int | None, device: str, tflop_per_s: float = TFLOP_PER_S) -> str:
    """`, about 14 min with 2 processes (measured step times)`; where nothing was measured, a hint and what follows from an assumed speed;
    nothing where nothing is left."""
    plan, store = outlook.plan, outlook.store
    left = [cell for bundle in outlook.left() for cell in bundle.cells]
    if not left:
        return ""
    saved = {one.teacher: one.saved for one in outlook.provided if not one.why}
    machine, costs = Machine.here(store.root, device=device, jobs=jobs), Costs.here(plan, store, device, saved)
    trained = _trained(outlook, costs.times.machine["device"])
    begun = {cell.id: min((cell_state.progress(store, cell.id) or (0, 0))[0], cell.config["recipe"]["epochs"]) for cell in left}
    start_s = 0.0
    if all(all(costs.of(cell)) for cell in left):
        known = [(cell, train_s, beside) for cell, train_s, beside in trained if all(costs.of(cell))]
        expected = sum(own + shared / beside for (own, shared), beside in ((costs.own_and_shared_s(cell), n) for cell, _, n in known))
        ratio = sum(train_s / beside for _, train_s, beside in known) / expected if known else 1.0
        start_s = (costs.times.get("worker") or {}).get("import_s", 0.0)
        basis = "measured step times" + f", corrected by {len(known)} trainings" * bool(known)

        def seconds(bundle: Bundle) -> float:
            parts = bundles(bundle.cells, begun)
            return costs.preparation_s(bundle) + ratio * sum(costs.training_s(part, begun[part.ids[0]]) for part in parts)

        side_by_side = students_side_by_side(costs, machine.jobs)
    elif trained and outlook.probes.n_train is not None:
        # A cell trained beside others shares their time.
        speed = sum(train_s / beside for _, train_s, beside in trained) / outlook.work(*(Bundle((cell,)) for cell, _, _ in trained))
        basis, side_by_side = "at the speed so far", SIDE_BY_SIDE

        def seconds(bundle: Bundle) -> float:
            return speed * outlook.work(bundle) * (1 - begun[bundle.ids[0]] / max(1, bundle.cells[0].config["recipe"]["epochs"]))
    else:
        work = None if outlook.probes.n_train is None else outlook.work(*outlook.left())
        return f" (`kdbench check` measures step times){assumed_hours(work, tflop_per_s)}"
    each_s: list[float] = []

    def noted(bundle: Bundle) -> float:
        each_s.append(seconds(bundle))
        return each_s[-1]

    total_s = start_s + duration_s(plan, left, machine.jobs, side_by_side, noted)
    hours = f", {sum(each_s) / 3600:,.3g} {'GPU' if costs.device == 'cuda' else 'core'} hours" if sum(each_s) >= 3600 else ""
    return f", about {in_words(total_s)} with {machine.jobs} process{'es' * (machine.jobs > 1)}{hours} ({basis})"


def _trained(outlook: PlanSummary, device: str) -> list[tuple[Cell, float, int]]:
    """(cell, seconds, students side by side) of some trainings on this device."""
    done = [cell for cell in outlook.plan.cells.values() if outlook.states[cell.id] in cell_state.DONE]
    found = []
    for cell in done[:: max(1, len(done) // MOST_RECORDS)]:
        record = outlook.store.record(cell.id)
        train_s, beside = (record.circumstance.get(name) if record else None for name in ("train_s", "side_by_side"))
        if record and train_s and beside and record.circumstance.get("device") == device:
            found.append((cell, float(train_s), int(beside)))
    return found


def duration_s(plan: Plan, left: Sequence[Cell], jobs: int, side_by_side: int, seconds: Callable[[Bundle], float]) -> float:
    """How long `run` takes for some cells of a plan, if a bundle takes `seconds`: its own order of bundles, without failures."""
    needed, undone, pending = awaited(plan.cells.values()), {cell.id for cell in left}, list(left)
    waiting: list[Bundle] = []
    running: list[tuple[float, int, Bundle]] = []
    now, number = 0.0, itertools.count()
    news = True
    while pending or waiting or running:
        if news:
            ready = [cell for cell in pending if undone.isdisjoint(cell.depends.values())]
            pending = [cell for cell in pending if not undone.isdisjoint(cell.depends.values())]
            together = [*(cell for bundle in waiting for cell in bundle.cells), *ready]
            waiting = in_order(bundles(together, side_by_side=side_by_side), needed)
        free = jobs - len(running)
        waiting = for_slots(waiting, free, jobs, bool(pending))
        for bundle in waiting[:free]:
            heapq.heappush(running, (now + seconds(bundle), next(number), bundle))
        waiting = waiting[free:]
        now, _, ended = heapq.heappop(running)
        undone.difference_update(ended.ids)
        news = not needed.isdisjoint(ended.ids)
    return now


def students_side_by_side(costs: Costs, jobs: int) -> int:
    """How many students of a bundle pay on this machine: more share a forward pass of the teacher, until that is a small part of a
    student's time, and until memory ends. What was not measured has the usual number."""
    cells = [row.cell for row in costs.plan.rows if row.role == "student" and row.repeat == 0]
    measured = [(mine, teacher) for mine, teacher, _ in map(costs.of, cells) if mine and teacher]
    if not measured:
        return SIDE_BY_SIDE
    pays = SIDE_BY_SIDE
    for mine, teacher in measured:
        while teacher["forward_s"] / (2 * pays) > WORTH * (teacher["forward_s"] / pays + mine["step_s"]):
            pays *= 2
    free_mib = SAFE * _free_mib(costs.device, jobs) - max(mine.get("saved_mib", 0.0) for mine, _ in measured)
    each_mib = max(mine.get("weights_mib", 0.0) for mine, _ in measured)
    return max(1, min(pays, math.floor(free_mib / each_mib) if each_mib else pays))


def _free_mib(device: str, jobs: int) -> float:
    """The free memory for each of so many processes."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] / 2**20 / -(-jobs // torch.cuda.device_count())
    import psutil

    return psutil.virtual_memory().available / 2**20 / jobs


def in_words(seconds: float) -> str:
    """`40 s`, `14 min`, `3.5 h`, `2.1 days`."""
    for unit, size, until in (("s", 1.0, 100.0), ("min", 60.0, 6000.0), ("h", 3600.0, 48 * 3600.0)):
        if seconds < until:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds / 86400:.{0 if seconds >= 864000 else 1}f} days"
