"""YAML -> Suite: everything named is found, every default is written out, every mistake is reported with its line.

Reading goes section by section, so that one mistake does not hide the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdbench import parts
from kdbench.errors import PartError, SuiteError, nearest
from kdbench.plan.nets import NetReader
from kdbench.plan.objectives import ObjectiveReader
from kdbench.plan.reading import Reading
from kdbench.plan.schema import DEFAULT_BASELINES, MARGIN_POINTS, NUMERICS, PLACES, SECTIONS, Json, Names, Net, Objective, Suite
from kdbench.plan.yaml import Source, Where


def read(path: Path | str) -> Suite:
    """Read a suite and resolve every name in it.

    Raises:
        SuiteError: with all mistakes of schema and names.
    """
    return _SuiteReading(Source(Path(path))).suite()


class _SuiteReading(Reading):
    """A whole suite from its file."""

    def suite(self) -> Suite:
        data = self.source.data
        says = {key: self.section(key) for key in SECTIONS}
        task, gate_key = self._task(says["task"], says["dataset"])
        for key in data:
            if key not in SECTIONS and key != gate_key:
                self.wrong((key,), f"a suite has no such key{nearest(str(key), [*SECTIONS, gate_key or 'min_top1'])}")
        gate = self._gate(data, gate_key)
        dataset = self.part_with_options(("dataset",), "dataset", says["dataset"])
        recipe = self._recipe(("recipe",), says["recipe"])
        metric = task.make.primary().name if task else None
        students = NetReader(self, recipe).read("students", says["students"])
        teachers = NetReader(self, recipe, metric, gate).read("teachers", says["teachers"])
        objectives = ObjectiveReader(self).read(says["objectives"], says["+kd"], task)
        pairs = self._pairs(says["pairs"], students, teachers)
        exclude = self._excludes(says["exclude"], students, teachers, objectives)
        baselines = self._baselines(says["baselines"], objectives)
        for name, net in teachers.items():
            if "weights" in net.model and not net.recipe.get("epochs", 1) and (says["teacher_seeds"] or 1) > 1:
                self.wrong(("teacher_seeds",), f"the teacher '{name}' is taken as it is: there is one of it, whatever the seed")
        if self.mistakes:
            raise SuiteError(self.mistakes)
        assert task and dataset
        return Suite(
            name=says["name"] or self.source.path.stem,
            source=self.source,
            description=says["description"].strip(),
            task={"name": task.name, "version": task.version},
            dataset=dataset,
            students=students,
            teachers=teachers,
            pairs=pairs,
            objectives=objectives,
            exclude=exclude,
            baselines=baselines,
            assumed=list(says["assumed"]),
            numerics=NUMERICS[says["numerics"]],
            repeats=says["repeats"],
            teacher_seeds=says["teacher_seeds"],
            seed=says["seed"],
            margin=self._margin(says["margin"], task),
            sources=self.sources,
        )

    def _task(self, says: str | None, dataset: Any) -> tuple[parts.Part | None, str | None]:
        if says is None:
            name = dataset if isinstance(dataset, str) else (dataset or {}).get("name")
            try:
                says = parts.load("dataset", name, self.base).make.task if isinstance(name, str) else "classification"
            except PartError:
                says = "classification"  # the dataset's own mistake is told elsewhere
        part = self.load(("task",), "task", says)
        return part, f"min_{part.make.primary().name}" if part else None

    def _margin(self, says: float | None, task: parts.Part) -> float | None:
        """As the metric is stored: a suite says points of a metric that is printed per cent."""
        percent = task.make.primary().percent
        if says is None:
            return MARGIN_POINTS / 100 if percent else None
        return says / 100 if percent else says

    def _gate(self, data: Json, key: str | None, where: Where = ()) -> float | None:
        if key is None or key not in data:
            return None
        return self.checked((*where, key), Annotated[float, Field(ge=0)], data[key])

    def _recipe(self, where: Where, says: str | Json | None) -> Json | None:
        found = self.part_with_options(where, "recipe", says)
        return found and found["options"]

    # What stands beside what

    def _known(self, where: Where, name: str, known: Mapping[str, Any], section: str) -> bool:
        listed = self.source.data.get(section) or ()
        if name in known:
            return True
        if name not in listed:  # else its own mistake was told where it stands
            self.wrong(where, f"'{name}' is not among the suite's {section}{nearest(name, [*map(str, listed), *known])}")
        return False

    def _pairs(self, says: dict[str, Names] | None, students: dict[str, Net], teachers: dict[str, Net]) -> list[tuple[str, str]]:
        if says is None:
            return [(student, teacher) for student in students for teacher in teachers]
        pairs = []
        for student, named in says.items():
            self._known(("pairs", student), student, students, "students")
            for teacher in [named] if isinstance(named, str) else named:
                self._known(("pairs", student), teacher, teachers, "teachers")
                if (student, teacher) in pairs:
                    self.wrong(("pairs", student), f"'{teacher}' stands twice")
                pairs.append((student, teacher))
        return pairs

    def _excludes(self, says: Any, students: Any, teachers: Any, objectives: Any) -> list[dict[str, list[str]]]:
        found = []
        for place, one in enumerate(says or ()):
            rule = {key: [value] if isinstance(value, str) else value for key in PLACES if (value := getattr(one, key)) is not None}
            if not rule:
                self.wrong(("exclude", place), f"it says nothing: name a {', '.join(PLACES)}")
            for key, known in zip(PLACES, (students, teachers, objectives), strict=True):
                for name in rule.get(key, ()):
                    self._known(("exclude", place, key), name, known, f"{key}s")
            found.append(rule)
        return found

    def _baselines(self, says: list[str] | None, objectives: dict[str, Objective]) -> list[str]:
        if says is None:
            return [name for name in DEFAULT_BASELINES if name in objectives]
        for place, name in enumerate(says):
            self._known(("baselines", place), name, objectives, "objectives")
            if name in says[:place]:
                self.wrong(("baselines", place), f"'{name}' stands twice")
        return says
