"""Suite -> cells: the whole matrix, the graph of what depends on what, and the manifest that a report needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdbench import parts
from kdbench.cell import SCHEMA, Cell
from kdbench.errors import SuiteError
from kdbench.manifest import Block, Manifest, ManifestCell, ManifestObjective, Metric, TeacherRequirement
from kdbench.plan.schema import PLACES, Net, ObjectiveSpec, Suite

ALPHA = 0.05
Box = tuple[str, str | None, ObjectiveSpec]
"""A student with a teacher, or alone, and an objective."""


@dataclass(frozen=True)
class Row:
    """One cell of a suite under the names that the suite gives it. A student trained alone has no teacher, a teacher no objective."""

    cell: Cell
    role: str
    student: str
    teacher: str | None
    objective: str | None
    repeat: int
    teacher_seed: int | None


@dataclass(frozen=True)
class Plan:
    """All rows of a suite, teachers first, in the order of the file."""

    suite: Suite
    rows: list[Row]

    @cached_property
    def cells(self) -> dict[str, Cell]:
        return {row.cell.id: row.cell for row in self.rows}

    @property
    def teachers(self) -> list[Row]:
        return [row for row in self.rows if row.role == "teacher"]

    @cached_property
    def compared(self) -> list[tuple[str, str, str]]:
        """(student, teacher, objective) of every box of the table, in order: an objective without teacher stands in every pair."""
        present = {(row.student, row.teacher, row.objective) for row in self.rows if row.role == "student"}
        return [
            (student, teacher, name)
            for student, teacher in self.suite.pairs
            for name in self.suite.objectives
            if (student, teacher, name) in present or (student, None, name) in present
        ]

    @cached_property
    def task(self) -> Any:
        """The class of the suite's task."""
        name = self.suite.task["name"]
        return parts.load("task", name, self.suite.folder(name), self.suite.folder("suite")).make

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's metrics, the one that reports compare first."""
        name = self.suite.metric or self.task.primary().name
        return tuple(sorted(self.task.metrics, key=lambda metric: metric.name != name))

    @cached_property
    def comparisons(self) -> list[tuple[str, str, str, str]]:
        """(student, teacher, baseline, objective): every objective with every baseline in every pair, two baselines once."""
        boxes = set(self.compared)
        return [
            (student, teacher, baseline, name)
            for student, teacher, name in self.compared
            for place, baseline in enumerate(self.suite.baselines)
            if (student, teacher, baseline) in boxes and name not in self.suite.baselines[: place + 1]
        ]

    def manifest(self) -> Manifest:
        suite = self.suite
        dataset = suite.dataset["name"]
        return Manifest(
            suite=suite.name,
            metrics=self.metrics,
            baselines=tuple(suite.baselines),
            repeats=suite.repeats,
            teacher_seeds=suite.teacher_seeds,
            alpha=ALPHA,
            objectives=tuple(ManifestObjective(one.name, one.label, one.weight_from) for one in suite.objectives.values()),
            blocks=tuple(dict.fromkeys(Block(dataset, teacher, student) for student, teacher, _ in self.compared)),
            cells=tuple(
                ManifestCell(
                    row.cell.id, row.role, dataset, row.student, row.teacher, row.objective, row.repeat, row.teacher_seed, row.cell.depends
                )
                for row in self.rows
            ),
            description=suite.description,
            assumed=(*suite.assumed, *_begun_from_weights(suite)),
            margin=suite.margin,
            teacher_requirements={
                row.cell.id: TeacherRequirement(self.task.primary().name, net.min_teacher_metric, net.declared)
                for row in self.teachers
                for net in [suite.teachers[row.student]]
                if net.min_teacher_metric is not None or net.declared is not None
            },
            averaged={name: net.recipe["ema"] for name, net in suite.students.items() if "ema" in net.recipe},
        )


def _begun_from_weights(suite: Suite) -> Iterator[str]:
    """What a reader must know of nets that do not begin at random."""
    held_out = suite.dataset["options"].get("validation")
    for name, net in [*suite.students.items(), *suite.teachers.items()]:
        if weights := net.model.get("weights"):
            place = ", ".join(f"{name} '{weights[name]}'" for name in ("key", "prefix") if name in weights)
            whose = f"a checkpoint (SHA-256 {weights.get('digest')}...{', ' * bool(place)}{place})"
            whose = f"timm's {weights['tag']}" if weights["from"] == "timm" else whose
            how = "starts from" if net.recipe["epochs"] else "is not trained and has"
            leak = ", which may have been trained on the images held out for validation" if held_out else ""
            yield f"{name} {how} the weights of {whose}{leak}"


def expand(suite: Suite) -> Plan:
    """All cells of a suite, teachers first. Raises SuiteError: an `exclude` that excludes nothing, or a matrix with nothing in it."""
    unused, kept, objectives = set(range(len(suite.exclude))), [], suite.objectives.values()
    # An objective without terms is trained once a student, with no teacher.
    boxes: list[Box] = [(student, None, one) for student in dict(suite.pairs) for one in objectives if not one.needs_teacher]
    for box in boxes + [(student, teacher, one) for student, teacher in suite.pairs for one in objectives if one.needs_teacher]:
        names = dict(zip(PLACES, (*box[:2], box[2].name), strict=True))
        rules = {place for place, rule in enumerate(suite.exclude) if all(names[key] in listed for key, listed in rule.items())}
        unused -= rules
        kept += [] if rules else [box]
    errors = [f"{suite.file.at(('exclude', place))}: exclude.{place}: the rule matches no cell" for place in sorted(unused)]
    if not kept and not errors:
        errors.append(f"{suite.file.at(())}: `exclude` removes every cell")
    if errors:
        raise SuiteError(errors)
    return Plan(suite, list(_rows(suite, kept)))


def _rows(suite: Suite, kept: list[Box]) -> Iterator[Row]:
    alone = {"task": 1.0, "terms": []}
    needed = {teacher for _, teacher, _ in kept}
    depends: dict[tuple[str | None, int | None], dict[str, str]] = {}
    for name, net in suite.teachers.items():
        for seed in range(suite.teacher_seeds) if name in needed else ():
            cell = Cell(_config(suite, net, "teacher", alone, seed, {}), sources=suite.sources)
            depends[name, seed] = {"teacher": cell.id}
            yield Row(cell, "teacher", name, None, None, seed, seed)
    for student, teacher, objective in kept:
        asked = suite.teachers[teacher] if teacher else None
        for repeat, among in itertools.product(range(suite.repeats), range(suite.teacher_seeds) if asked else (None,)):
            config = _config(suite, suite.students[student], "student", objective.config, repeat, depends.get((teacher, among), {}))
            least, declared = (asked.min_teacher_metric, asked.declared) if asked else (None, None)
            cell = Cell(config, least, suite.sources, declared)
            yield Row(cell, "student", student, teacher, objective.name, repeat, among)


def _config(suite: Suite, net: Net, role: str, objective: dict[str, Any], repeat: int, depends: dict[str, str]) -> dict[str, Any]:
    """The science of one training, defaults written out: what is hashed."""
    return {
        "schema": SCHEMA,
        "role": role,
        "task": suite.task,
        "dataset": suite.dataset,
        "student": net.model,
        "depends": depends,
        "objective": objective,
        "recipe": net.recipe,
        "numerics": suite.numerics,
        "seed": suite.seed,
        "repeat": repeat,
    }
