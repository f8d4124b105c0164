"""The verb `plan`: what a run would do, in text or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdbench.cell import Cell
from kdbench.plan import matrix, probe
from kdbench.plan.bundle import Bundle, bundles, work_tflop
from kdbench.plan.matrix import ALPHA, Plan
from kdbench.plan.probe import Probes
from kdbench.plan.suite import read
from kdbench.store import Store

DONE = "done"


class Outlook:
    """A plan held against the results folder. `states` are by cell id: done, running, failed or waiting."""

    def __init__(self, plan: Plan, probes: Probes, store: Store):
        self.plan, self.probes, self.store = plan, probes, store
        there = (store.root / "cells").is_dir()
        self.states = {cell_id: self._state(cell_id) if there else "waiting" for cell_id in plan.cells}
        self.bundles = bundles(plan.cells.values())

    def _state(self, cell_id: str) -> str:
        if self.store.is_done(cell_id):
            return DONE
        if not self.store.cell_folder(cell_id).is_dir():
            return "waiting"
        if self.store.is_alive(cell_id):
            return "running"
        return "failed" if self.store.failure(cell_id) else "waiting"

    def work(self, bundle: Bundle) -> float:
        """TFLOP of a bundle's training."""
        teacher = self.plan.cells[bundle.teacher].config["student"] if bundle.teacher else None
        return work_tflop(bundle, self.probes.n_train or 0, self.probes.flop_per_image, teacher)

    def left(self, bundle: Bundle) -> Bundle | None:
        """The part of a bundle that is not done."""
        undone = tuple(cell for cell in bundle.cells if self.states[cell.id] != DONE)
        return Bundle(undone) if undone else None


def look(suite: Path, results: Path) -> Outlook:
    """Raises SuiteError with all mistakes of the suite."""
    plan = matrix.expand(read(suite))
    return Outlook(plan, probe.probe(plan), Store(results))


def as_json(suite: Path, results: Path) -> str:
    """`{"cells": [...], "bundles": [...], "teachers": [...]}`, ids as in the results folder."""
    outlook = look(suite, results)
    plan = outlook.plan

    def row(one: matrix.Row) -> dict[str, Any]:
        names = {key: getattr(one, key) for key in ("role", "student", "teacher", "objective", "repeat", "teacher_seed")}
        cell = one.cell
        return {"id": cell.id, **names, "state": outlook.states[cell.id], "depends": dict(cell.depends), "config": cell.config}

    told = {
        "cells": [row(one) for one in plan.rows],
        "bundles": [
            {"cells": one.ids, "teacher": one.teacher, "tflop": None if outlook.probes.n_train is None else outlook.work(one)}
            for one in outlook.bundles
        ],
        "teachers": [{**row(one), "gate": plan.suite.teachers[one.student].gate} for one in plan.teachers],
    }
    return json.dumps(told, indent=1)


def as_text(suite: Path, results: Path) -> str:
    outlook = look(suite, results)
    plan, said = outlook.plan, outlook.plan.suite
    counts = Counter(outlook.states.values())
    left = [part for bundle in outlook.bundles if (part := outlook.left(bundle))]
    students = len(plan.rows) - len(plan.teachers)
    lines = [
        f"{said.name}: {len(plan.cells)} cells ({', '.join(f'{count} {name}' for name, count in sorted(counts.items()))})",
        f"  {_teachers(plan)}, {students} of students: {len(said.objectives)} objectives, "
        f"{len(said.pairs)} pairs, {said.repeats} repeats, {said.teacher_seeds} of each teacher",
        f"  {len(outlook.bundles)} bundles, {len(left)} of them with something to train",
        _work(outlook, left),
        "teachers:",
        *(f"  {row.cell.id}  {row.student}, seed {row.repeat}: {outlook.states[row.cell.id]}" for row in plan.teachers),
        *power_lines(said.repeats, plan.family(), said.baselines),
    ]
    return "\n".join(lines)


def power_lines(repeats: int, family: int, baselines: Iterable[str]) -> list[str]:
    """What so many repeats can show, in standard deviations of the paired difference."""
    from kdbench.stats.power import detectable_difference, repeats_needed

    named = " and ".join(baselines) or "no baseline"
    lines = [f"what {repeats} repeats can show, in sd of the paired difference (80 % power, alpha {ALPHA:g}):"]
    if repeats < 2:
        return [*lines, "  nothing: a single repeat has no spread; no difference will be tested"]
    lines.append(f"  {detectable_difference(repeats, ALPHA):.2g} for one comparison asked alone")
    if family > 1:
        worst = detectable_difference(repeats, ALPHA, family)
        lines.append(f"  {worst:.2g} at the first step of Holm over the family of {family} comparisons with {named}")
    if repeats < 5:
        lines.append(f"  five repeats would show about {detectable_difference(5, ALPHA):.2g}: consider them")
    needed = repeats_needed(1.0, ALPHA, max(family, 1))
    lines.append(f"  a difference of one sd would need {repeats_needed(1.0, ALPHA)} repeats alone, {needed} at the first step of Holm")
    return lines


def _teachers(plan: Plan) -> str:
    trained = sum(bool(row.cell.config["recipe"]["epochs"]) for row in plan.teachers)
    as_they_are = len(plan.teachers) - trained
    return f"{trained} trainings of teachers{f' ({as_they_are} more are taken as they are)' if as_they_are else ''}"


def _work(outlook: Outlook, left: list[Bundle]) -> str:
    if outlook.probes.n_train is None:
        return "  work: unknown, for the dataset does not declare how many training images it has"
    return f"  work: {_total(outlook, outlook.bundles):.3g} TFLOP in all, {_total(outlook, left):.3g} left{_time_left(outlook, left)}"


def _total(outlook: Outlook, some: Iterable[Bundle]) -> float:
    return sum(outlook.work(bundle) for bundle in some)


def _time_left(outlook: Outlook, left: list[Bundle]) -> str:
    """From what was trained here already, if anything was."""
    done: list[Cell] = [cell for cell in outlook.plan.cells.values() if outlook.states[cell.id] == DONE]
    if not done or not left:
        return ""
    spent_s = work = 0.0
    for cell in done[:50]:
        record = outlook.store.record(cell.id)
        if record is None:
            continue
        # A cell trained beside others shares their time.
        spent_s += record.circumstance["train_s"] / record.circumstance["side_by_side"]
        work += outlook.work(Bundle((cell,)))
    return f", about {_total(outlook, left) / work * spent_s / 60:.1f} min of one process at the pace so far" if work else ""
