"""YAML -> Suite: every name is looked up, every default is written out, all errors of all sections are reported with their lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench import parts
from kdbench.errors import PartError, SuiteError, closest, nearest
from kdbench.manifest import Metric, Tuning
from kdbench.plan import paper_claims, schema, stages, tuning
from kdbench.plan.nets import NetReader, metric_value
from kdbench.plan.objectives import ObjectiveReader
from kdbench.plan.reading import FileReader
from kdbench.plan.schema import DEFAULT_BASELINES, MARGIN_POINTS, NUMERICS, PLACES, SECTIONS, Json, Names, Net, ObjectiveSpec, Suite
from kdbench.plan.yaml import Where, YamlFile


def read(path: Path | str) -> Suite:
    """Read a suite and resolve every name in it. Raises SuiteError: with all errors of schema and names."""
    return _SuiteReader(YamlFile(Path(path))).suite()


class _SuiteReader(FileReader):
    """A whole suite from its file."""

    def suite(self) -> Suite:
        data = self.file.data
        given = {key: self.section(key) for key in SECTIONS}
        name = given["name"] if "name" in data else self.checked((), SECTIONS["name"][0], self.file.path.stem)
        task, min_key = self._task(given["task"], given["dataset"])
        for key in data:
            if key not in SECTIONS and key != min_key:
                self.error((key,), f"unknown key{nearest(str(key), [*SECTIONS, min_key or 'min_top1'])}")
        dataset = self.part_with_options(("dataset",), "dataset", given["dataset"])
        least = metric_value(self, (min_key,), task.make.primary(), data[min_key]) if task and min_key in data else None
        students, teachers = self._nets(given, task, least)
        tune = tuning.read(self, given["tune"], dataset, students, teachers)
        objectives = ObjectiveReader(self, tune).read(given["objectives"], given["+kd"], task)
        objectives = stages.with_recipes(self, given["recipe"], students, objectives)
        pairs = self._pairs(given["pairs"], students, teachers)
        self._check_tuned(tune, objectives)
        if tune and tune.how.pair and pairs and tune.how.pair not in pairs and not self.errors:
            self.error(("tune", "share", "pair"), f"{tune.how.pair[0]} <- {tune.how.pair[1]} is not among the suite's pairs")
        exclude = self._excludes(given["exclude"], students, teachers, objectives)
        baselines = self._baselines(given["baselines"], objectives, task)
        metric = self._metric(given["metric"], task)
        margin = given["margin"]
        if metric and metric.percent:  # given in points, and stored as a fraction
            margin = (MARGIN_POINTS if margin is None else margin) / 100
        claims = paper_claims.read(self, given["claims"], objectives, metric, margin)
        if not self.errors:
            self._check_size(pairs, objectives, given["repeats"], given["teacher_seeds"], tune.how if tune else None)
        if self.errors:
            raise SuiteError(sorted(self.errors, key=lambda one: int(one.removeprefix(f"{self.file.path}:").partition(":")[0])))
        assert task and dataset and metric
        return Suite(
            name=name,
            file=self.file,
            description=given["description"].strip(),
            task={"name": task.name, "version": task.version},
            dataset=dataset,
            students=students,
            teachers=teachers,
            pairs=pairs,
            objectives=objectives,
            exclude=exclude,
            baselines=baselines,
            assumed=list(given["assumed"]),
            numerics=NUMERICS[given["numerics"]],
            repeats=given["repeats"],
            teacher_seeds=given["teacher_seeds"],
            seed=given["seed"],
            margin=margin,
            metric=given["metric"],
            claims=claims,
            tuning=tune.how if tune else None,
            metric_of_trials=metric if tune else None,
            metric_worst=_worst(task.make.primary()),
            sources=self.sources,
        )

    def _task(self, name: str | None, dataset: Any) -> tuple[parts.Part | None, str | None]:
        if name is None:
            dataset_name = dataset if isinstance(dataset, str) else (dataset or {}).get("name")
            try:
                name = parts.load("dataset", dataset_name, self.base).make.task if isinstance(dataset_name, str) else "classification"
            except PartError:
                name = "classification"  # the dataset's own error is reported elsewhere
        part = self.load(("task",), "task", name)
        return part, f"min_{part.make.primary().name}" if part else None

    def _check_tuned(self, tune: tuning.Tune | None, objectives: Mapping[str, ObjectiveSpec]) -> None:
        """Note a `tune` that is of nothing, wholly or in one of its dimensions."""
        if tune and not self.errors:
            if not any(objective.search for objective in objectives.values()):
                self.error(("tune",), "no objective is tuned: none has a distillation term, or each says `tune: false`")
            for name in set(tune.dimensions) - tune.used:
                options = {option for one in objectives.values() for term in one.config["terms"] for option in term["options"]}
                known = [*tuning.WORDS, *sorted(options)]
                self.error(("tune", name), f"no loss that is tuned has an option '{name}' that is a number above 0{nearest(name, known)}")

    def _metric(self, name: str | None, task: parts.Part | None) -> Metric | None:
        """The metric that reports compare."""
        if task is None:
            return None
        known = {metric.name: metric for metric in task.make.metrics}
        if name is not None and name not in known:
            self.error(("metric",), f"the task '{task.name}' has no metric '{name}'{nearest(name, known)}")
        return known.get(name or "", task.make.primary())

    def _nets(self, given: Json, task: parts.Part | None, min_teacher_metric: float | None) -> tuple[dict[str, Net], dict[str, Net]]:
        recipe = self.part_with_options(("recipe",), "recipe", given["recipe"])
        options = recipe and recipe["options"]
        students = NetReader(self, options).read("students", given["students"])
        metric = task.make.primary() if task else None
        teachers = NetReader(self, options, metric, min_teacher_metric).read("teachers", given["teachers"])
        for teacher, net in teachers.items():
            if "weights" in net.model and not net.recipe.get("epochs", 1) and (given["teacher_seeds"] or 1) > 1:
                self.error(("teacher_seeds",), f"the teacher '{teacher}' is not trained, so it has only one seed")
        return students, teachers

    def _check_size(
        self, pairs: list[tuple[str, str]], objectives: Mapping[str, ObjectiveSpec], repeats: int, seeds: int, tune: Tuning | None
    ) -> None:
        """Refuse a matrix that is too large to be planned, before it is expanded."""
        taught = sum(objective.needs_teacher for objective in objectives.values())
        alone = len({student for student, _ in pairs}) * (len(objectives) - taught) * repeats
        taught += sum(objective.first is not None for objective in objectives.values())
        cells = alone + (len(pairs) * taught * repeats + len({teacher for _, teacher in pairs})) * seeds
        tuned = [one for one in objectives.values() if one.search and not one.control]
        searches = len(tuned) * (1 if tune and tune.pair else len(pairs))
        cells += searches * tune.trainings if tune else 0
        if cells > schema.MAX_CELLS:
            made_of = f"{len(pairs)} pairs, {len(objectives)} objectives, {repeats} repeats, {seeds} of each teacher"
            limit = f"the limit is {schema.MAX_CELLS:,}: split it into several suites"
            self.error((), f"the suite has {cells:,} cells before `exclude` ({made_of}), and {limit}")

    def known(self, where: Where, name: str, known: Mapping[str, Any], section: str) -> None:
        if name in known:
            return
        given = self.file.data.get(section)
        if not isinstance(given, (list, dict)):
            return  # the section's own error is reported at its place
        listed = [str(inner) for one in given for inner in (one if isinstance(one, dict) else [one])]
        if name not in listed:
            self.error(where, f"'{name}' is not among the suite's {section}{nearest(name, known if closest(name, known) else listed)}")

    def _pairs(self, given: dict[str, Names] | None, students: dict[str, Net], teachers: dict[str, Net]) -> list[tuple[str, str]]:
        if given is None:
            if len(students) * len(teachers) > schema.MAX_CELLS:
                many = f"{len(students)} students with {len(teachers)} teachers are too many pairs"
                self.error((), f"{many}: list the pairs that you need in `pairs`")
                return []
            return [(student, teacher) for student in students for teacher in teachers]
        pairs: dict[tuple[str, str], None] = {}
        for student, names in given.items():
            self.known(("pairs", student), student, students, "students")
            for teacher in [names] if isinstance(names, str) else names:
                self.known(("pairs", student), teacher, teachers, "teachers")
                if (student, teacher) in pairs:
                    self.error(("pairs", student), f"'{teacher}' is given twice")
                pairs[student, teacher] = None
        return list(pairs)

    def _excludes(self, given: Any, students: Any, teachers: Any, objectives: Any) -> list[dict[str, list[str]]]:
        if len(given or ()) > schema.MAX_EXCLUDES:
            self.error(("exclude",), f"expected at most {schema.MAX_EXCLUDES} rules, not {len(given)}: use `pairs`")
            return []
        found = []
        for place, one in enumerate(given or ()):
            rule = {key: [value] if isinstance(value, str) else value for key in PLACES if (value := getattr(one, key)) is not None}
            if not rule:
                self.error(("exclude", place), f"the rule is empty: name a {', '.join(PLACES)}")
            for key, known in zip(PLACES, (students, teachers, objectives), strict=True):
                for name in rule.get(key, ()):
                    self.known(("exclude", place, key), name, known, f"{key}s")
            found.append({key: list(dict.fromkeys(names)) for key, names in rule.items()})
        return found

    def _baselines(self, given: list[str] | None, objectives: dict[str, ObjectiveSpec], task: parts.Part | None) -> list[str]:
        if given is None:
            return [name for name in (task.make.alone if task else "", *DEFAULT_BASELINES) if name in objectives]
        for place, name in enumerate(given):
            self.known(("baselines", place), name, objectives, "objectives")
            if name in given[:place]:
                self.error(("baselines", place), f"'{name}' is given twice")
        return given


def _worst(metric: Metric) -> float:
    """A value that is not better than any."""
    if metric.percent:
        return 0.0 if metric.higher_is_better else 1.0
    return -1e30 if metric.higher_is_better else 1e30
