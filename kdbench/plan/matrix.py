"""Suite -> cells: the whole matrix, the graph of what depends on what, and the manifest that a report needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from kdbench import parts
from kdbench.cell import SCHEMA, Cell
from kdbench.choice import WORD
from kdbench.errors import SuiteError
from kdbench.manifest import Block, Manifest, ManifestCell, ManifestObjective, Metric, TeacherRequirement
from kdbench.plan import tuning
from kdbench.plan.nets import AS_IS, images_of_weights
from kdbench.plan.schema import PLACES, Net, ObjectiveSpec, Suite

ALPHA = 0.05
NAMES = ("role", "student", "teacher", "objective", "repeat", "teacher_seed", "trial")
Box = tuple[str, str | None, ObjectiveSpec]
"""A student with a teacher, or alone, and an objective."""


@dataclass(frozen=True)
class Row:
    """One cell of a suite under the names that the suite gives it. A student trained alone has no teacher, a teacher no objective, and a
    trial (role `trial`) its number in the search of its objective; the teacher of trials is one without objective. A first stage (role
    `first_stage`) has the names of the first training that needs it, and the trial 0 where that is a trial."""

    cell: Cell
    role: str
    student: str
    teacher: str | None
    objective: str | None
    repeat: int
    teacher_seed: int | None
    trial: int | None = None


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
            if (student, teacher, baseline) in boxes
            and name not in self.suite.baselines[: place + 1]
            and not self.suite.objectives[name].control
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
            objectives=tuple(
                ManifestObjective(one.name, one.label, one.weight_from, control_of, control, one.reference)
                for one in suite.objectives.values()
                for control_of, control in [one.control or (None, None)]
            ),
            blocks=tuple(dict.fromkeys(Block(dataset, teacher, student) for student, teacher, _ in self.compared)),
            cells=tuple(
                ManifestCell(dataset=dataset, depends=row.cell.depends, id=row.cell.id, **{name: getattr(row, name) for name in NAMES})
                for row in self.rows
            ),
            description=suite.description,
            assumed=(*suite.assumed, *_begun_from_weights(suite), *_trained_in_stages(suite)),
            margin=suite.margin,
            teacher_requirements={
                row.cell.id: TeacherRequirement(self.task.primary().name, net.min_teacher_metric, declared)
                for row in self.rows
                if row.objective is None and row.role != "control"
                for net in [suite.teachers[row.student]]
                for declared in [net.declared if row.role == "teacher" else None]
                if net.min_teacher_metric is not None or declared is not None
            },
            tuning=suite.tuning,
            claims=suite.claims,
            averaged={name: net.recipe["ema"] for name, net in suite.students.items() if "ema" in net.recipe},
        )


def _begun_from_weights(suite: Suite) -> Iterator[str]:
    """What a reader must know of nets that do not begin at random."""
    held_out = suite.dataset["options"].get("validation") or suite.tuning
    for name, net in [*suite.students.items(), *suite.teachers.items()]:
        if weights := net.model.get("weights"):
            place = ", ".join(f"{name} '{weights[name]}'" for name in ("key", "prefix") if name in weights)
            whose = f"a checkpoint (SHA-256 {weights.get('digest')}...{', ' * bool(place)}{place})"
            whose = f"timm's {weights['tag']}" if weights["from"] == "timm" else whose
            how = "starts from" if net.recipe["epochs"] else "is not trained and has"
            leak = ", which may have been trained on the images held out for validation" if held_out else ""
            part = " (its body alone)" if "into" in weights else ""
            yield f"{name} {how} the weights of {whose}{part}{leak}"
        if other := images_of_weights(net, suite.dataset):
            yield other


def _trained_in_stages(suite: Suite) -> Iterator[str]:
    """What a reader must know of objectives in two stages: their trainings are longer than the others."""
    for one in suite.objectives.values():
        epochs = {recipe["epochs"] for recipe in one.first.recipes.values()} if one.first and not one.control else ()
        for count in epochs:
            more = f"{one.label} is trained for {count} epoch{'s' * (count != 1)} more than the others, in a first stage"
            yield f"{more}; the costs of a step are those of the second"


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
    # What an untrained teacher knows is its architecture: no metric is asked of it.
    worst = suite.metric_worst
    for name in dict.fromkeys(teacher for _, teacher, one in kept if teacher and one.is_of_untrained):
        model = {key: value for key, value in suite.teachers[name].model.items() if key != "weights"}
        net = Net(name, model, {**AS_IS, "batch_size": suite.teachers[name].recipe["batch_size"]})
        for seed in range(suite.teacher_seeds):
            cell = Cell(_config(suite, net, "teacher", alone, seed, {}), sources=suite.sources)
            depends[f"untrained {name}", seed] = {"teacher": cell.id}
            yield Row(cell, "control", name, None, None, seed, seed)
    searches, begun = _Searches(suite), set[str]()
    yield from searches.rows([(student, teacher, one) for student, teacher, one in kept if teacher and one.search])
    for student, teacher, objective in kept:
        asked = suite.teachers[teacher] if teacher else None
        for repeat, among in itertools.product(range(suite.repeats), range(suite.teacher_seeds) if asked else (None,)):
            final, chosen = searches.final(student, teacher, objective)
            taught = depends.get((f"untrained {teacher}" if objective.is_of_untrained else teacher, among), {})
            least, declared = (asked.min_teacher_metric, asked.declared) if asked else (None, None)
            least, declared = (worst, None) if objective.is_of_untrained else (least, declared)
            if objective.first:
                before = replace(suite.students[student], recipe=objective.first.recipes[student])
                cell = Cell(_config(suite, before, "student", objective.first.config, repeat, taught), least, suite.sources, declared)
                taught = {**taught, "start": cell.id}
                yield from [] if cell.id in begun else [Row(cell, "first_stage", student, teacher, objective.name, repeat, among)]
                begun.add(cell.id)
            config = _config(suite, suite.students[student], "student", final, repeat, {**taught, **chosen})
            yield Row(Cell(config, least, suite.sources, declared), "student", student, teacher, objective.name, repeat, among)


class _Searches:
    """The trials of a suite, each a cell of its own, and what the trainings that follow them depend on. All is known before the first of
    them is trained: a later cell names the trials among which it chooses, never what they choose."""

    def __init__(self, suite: Suite):
        self.suite, self.how = suite, suite.tuning
        options = {**suite.dataset["options"], **({"validation": self.how.validation} if self.how else {})}
        self.dataset = {**suite.dataset, "options": options}
        metric = suite.metric_of_trials
        self.words = {"metric": metric.name, "higher_is_better": metric.higher_is_better} if metric else {}
        self.chosen: dict[tuple[str, str, str], dict[str, str]] = {}
        self.begun: set[str] = set()

    def rows(self, boxes: list[tuple[str, str, ObjectiveSpec]]) -> Iterator[Row]:
        """All trials, the rounds of all objectives in turn after their teachers."""
        if self.how is None:
            return
        places = dict.fromkeys(self._key(student, teacher, objective) for student, teacher, objective in boxes)
        teachers: dict[str, dict[str, str]] = {}
        for _, teacher, _ in places:
            if teacher not in teachers:
                alone = {"task": 1.0, "terms": []}
                cell = Cell(self._config(self.suite.teachers[teacher], "teacher", alone, 0, {}), sources=self.suite.sources)
                teachers[teacher] = {"teacher": cell.id}
                yield Row(cell, "trial", teacher, None, None, 0, 0)
        for student, teacher, name in places:
            yield from self._search(student, teacher, self.suite.objectives[name], teachers[teacher])

    def _search(self, student: str, teacher: str, objective: ObjectiveSpec, taught: dict[str, str]) -> Iterator[Row]:
        assert self.how is not None and objective.search is not None
        how, tried, begun = self.how, list[str](), dict[int, dict[str, str]]()
        net, least = self.suite.students[student], self.suite.teachers[teacher].min_teacher_metric

        def row(place: int, what: dict[str, Any], repeat: int, chosen: list[str]) -> Row:
            config = self._config(net, "trial", self._objective(objective, what), repeat, {**begun[repeat], **_roles(chosen)})
            cell = Cell(config, least, self.suite.sources)
            tried.append(cell.id)
            return Row(cell, "trial", student, teacher, objective.name, repeat, 0, place)

        for repeat in range(how.repeats + how.more_repeats):
            begun[repeat] = taught
            if objective.first:
                shorter = replace(net, recipe=objective.first.recipes[student])
                cell = Cell(self._config(shorter, "trial", objective.first.config, repeat, taught), least, self.suite.sources)
                begun[repeat] = {**taught, "start": cell.id}
                yield from [] if cell.id in self.begun else [Row(cell, "first_stage", student, teacher, objective.name, repeat, 0, 0)]
                self.begun.add(cell.id)
        firsts = tuning.points(objective.search)
        for place, point in enumerate(firsts, start=1):
            first = row(place, {"point": point}, 0, [])
            yield first
            for repeat in range(1, how.repeats):
                # A weight that the first repeat found from its gradient is the same in the others.
                yield row(place, {"pick": 0} if "gradient" in point else {"point": point}, repeat, [first.cell.id] * ("gradient" in point))
        for more in range(how.further):
            before = list(tried)
            yield from [row(len(firsts) + more + 1, {"pick": "further"}, repeat, before) for repeat in range(how.repeats)]
        before = list(tried)
        for place in range(how.again):
            for repeat in range(how.repeats, how.repeats + how.more_repeats):
                yield row(len(firsts) + how.further + place + 1, {"pick": place}, repeat, before)
        self.chosen[student, teacher, objective.name] = _roles(tried)

    def final(self, student: str, teacher: str | None, objective: ObjectiveSpec) -> tuple[dict[str, Any], dict[str, str]]:
        """The objective of a final training, and the trials that it depends on."""
        if teacher is None or objective.search is None:
            return objective.config, {}
        return self._objective(objective, {"pick": "best"}), self.chosen[self._key(student, teacher, objective)]

    def _key(self, student: str, teacher: str, objective: ObjectiveSpec) -> tuple[str, str, str]:
        """Which search an objective takes its weights from: a control from that of the objective that it is of."""
        return (*self._pair(student, teacher), objective.control[0] if objective.control else objective.name)

    def _pair(self, student: str, teacher: str) -> tuple[str, str]:
        return self.how.pair if self.how and self.how.pair else (student, teacher)

    def _objective(self, objective: ObjectiveSpec, what: dict[str, Any]) -> dict[str, Any]:
        assert objective.search is not None
        return {**objective.config, "tuned": {**what, **({} if "point" in what else self.words), "terms": objective.search.terms}}

    def _config(self, net: Net, role: str, objective: dict[str, Any], repeat: int, depends: dict[str, str]) -> dict[str, Any]:
        return {**_config(self.suite, net, role, objective, repeat, depends), "dataset": self.dataset}


def _roles(ids: list[str]) -> dict[str, str]:
    return {f"{WORD}{place:05}": cell_id for place, cell_id in enumerate(ids)}


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
