"""Suite -> cells: the whole matrix, the graph of what depends on what, and the manifest that a report needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdbench import parts
from kdbench.cell import SCHEMA, Cell
from kdbench.errors import SuiteError
from kdbench.plan.schema import Net, Objective, Suite
from kdbench.record import MANIFEST_SCHEMA

ALPHA = 0.05


@dataclass(frozen=True)
class Row:
    """One cell of a suite under the names that the suite gives it. A student trained alone has no teacher."""

    cell: Cell
    role: str
    student: str
    teacher: str | None
    objective: str
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

    def family(self) -> int:
        """How many comparisons the suite makes: every objective with every baseline in every block, two baselines once."""
        boxes = set(self.compared)
        return sum(
            (student, teacher, baseline) in boxes and name not in self.suite.baselines[: place + 1]
            for student, teacher, name in self.compared
            for place, baseline in enumerate(self.suite.baselines)
        )

    def manifest(self) -> dict[str, Any]:
        suite = self.suite
        task = parts.load("task", suite.task["name"], suite.folder(suite.task["name"])).make
        return {
            "schema": MANIFEST_SCHEMA,
            "suite": suite.name,
            "description": suite.description,
            "metrics": [metric.to_json() for metric in task.metrics],
            "baselines": suite.baselines,
            "assumed": [*suite.assumed, *_begun_from_weights(suite)],
            "repeats": suite.repeats,
            "teacher_seeds": suite.teacher_seeds,
            "alpha": ALPHA,
            "margin": suite.margin,
            "objectives": [{"name": one.name, "label": one.label, "weight_from": one.weight_from} for one in suite.objectives.values()],
            "blocks": [
                {"dataset": suite.dataset["name"], "teacher": teacher, "student": student}
                for student, teacher in dict.fromkeys((student, teacher) for student, teacher, _ in self.compared)
            ],
            "cells": [
                {
                    "id": row.cell.id,
                    "role": row.role,
                    "dataset": suite.dataset["name"],
                    "student": row.student,
                    "teacher": row.teacher,
                    "objective": row.objective,
                    "repeat": row.repeat,
                    "teacher_seed": row.teacher_seed,
                    "depends": dict(row.cell.depends),
                }
                for row in self.rows
            ],
            "gates": {
                row.cell.id: {"metric": task.primary().name, "min": net.gate, "declared": net.declared}
                for row in self.teachers
                for net in [suite.teachers[row.student]]
                if net.gate is not None or net.declared is not None
            },
            "profiles": [],
        }


def _begun_from_weights(suite: Suite) -> Iterator[str]:
    """What a reader must know of nets that do not begin at random."""
    held_out = suite.dataset["options"].get("validation")
    for name, net in [*suite.students.items(), *suite.teachers.items()]:
        if weights := net.model.get("weights"):
            whose = f"timm's {weights['tag']}" if weights["from"] == "timm" else f"a checkpoint (SHA-256 {weights['digest']}...)"
            how = "begins with" if net.recipe["epochs"] else "is taken as it is, with"
            leak = ", whose makers may have seen the images that are held out for validation" if held_out else ""
            yield f"{name} {how} the weights of {whose}{leak}"


def expand(suite: Suite) -> Plan:
    """All cells of a suite, teachers first.

    Raises:
        SuiteError: an `exclude` that excludes nothing, or a matrix with nothing in it.
    """
    used = [False] * len(suite.exclude)
    kept: list[tuple[str, str | None, Objective]] = []
    for student, teacher, objective in _boxes(suite):
        rules = [place for place, rule in enumerate(suite.exclude) if _matches(rule, student, teacher, objective.name)]
        for place in rules:
            used[place] = True
        if not rules:
            kept.append((student, teacher, objective))
    mistakes = [
        f"{suite.source.at(('exclude', place))}: exclude.{place}: it matches nothing in the matrix"
        for place, hit in enumerate(used)
        if not hit
    ]
    if not kept and not mistakes:
        mistakes.append(f"{suite.source.at(())}: nothing is left to train")
    if mistakes:
        raise SuiteError(mistakes)
    return Plan(suite, list(_rows(suite, kept)))


def _boxes(suite: Suite) -> Iterator[tuple[str, str | None, Objective]]:
    """Each (student, teacher, objective) to train; an objective without terms is trained once a student, with no teacher."""
    for student in dict.fromkeys(student for student, _ in suite.pairs):
        for objective in suite.objectives.values():
            if not objective.needs_teacher:
                yield student, None, objective
    for student, teacher in suite.pairs:
        for objective in suite.objectives.values():
            if objective.needs_teacher:
                yield student, teacher, objective


def _matches(rule: dict[str, list[str]], student: str, teacher: str | None, objective: str) -> bool:
    said = {"student": student, "teacher": teacher, "objective": objective}
    return all(said[key] in names for key, names in rule.items())


def _rows(suite: Suite, kept: list[tuple[str, str | None, Objective]]) -> Iterator[Row]:
    alone = {"task": 1.0, "terms": []}
    needed = {teacher for _, teacher, _ in kept}
    nobody: dict[str, str] = {}
    depends: dict[tuple[str, int], dict[str, str]] = {}
    texts: dict[tuple[str, int], str] = {}
    for name, net in suite.teachers.items():
        if name in needed:
            for seed in range(suite.teacher_seeds):
                cell = Cell.of_matrix(_config(suite, net, "teacher", alone, seed, nobody), texts, sources=suite.sources)
                depends[name, seed] = {"teacher": cell.id}
                yield Row(cell, "teacher", name, None, "teacher", seed, seed)
    for student, teacher, objective in kept:
        net = suite.students[student]
        for repeat in range(suite.repeats):
            if teacher is None:
                config = _config(suite, net, "student", objective.config, repeat, nobody)
                cell = Cell.of_matrix(config, texts, sources=suite.sources)
                yield Row(cell, "student", student, None, objective.name, repeat, None)
                continue
            for seed in range(suite.teacher_seeds):
                config = _config(suite, net, "student", objective.config, repeat, depends[teacher, seed])
                taught = suite.teachers[teacher]
                cell = Cell.of_matrix(config, texts, taught.gate, suite.sources, taught.declared)
                yield Row(cell, "student", student, teacher, objective.name, repeat, seed)


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
