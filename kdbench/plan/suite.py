"""YAML -> Suite: everything named is found, every default is written out, every mistake is reported with its line.

Reading goes section by section, so that one mistake does not hide the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kdbench import parts
from kdbench.errors import PartError, SuiteError, nearest
from kdbench.plan.yaml import Source, Where

Json = dict[str, Any]

NUMERICS: dict[str, Json] = {
    "exact": {"name": "exact", "autocast": None, "tf32": False, "memory_format": "contiguous", "threads": 1},
    "fast": {"name": "fast", "autocast": "bfloat16", "tf32": True, "memory_format": "channels_last", "threads": 1},
}
DEFAULT_BASELINES = ("ce", "kd")
KD_BESIDE = {"weight": 1.0, "temperature": 4.0}
"""What `+kd: true` adds: the KD term of the X+KD rows of the CRD protocol (weight 1, temperature 4)."""


@dataclass(frozen=True)
class Net:
    """A student or a teacher: its model and recipe resolved. `gate` is the least primary metric asked of a teacher."""

    name: str
    model: Json
    recipe: Json
    gate: float | None = None


@dataclass(frozen=True)
class Objective:
    """`config` is hashed; `label` is what tables print; `weight_from` says whose the weight is; `where` it stands in the file."""

    name: str
    label: str
    config: Json
    weight_from: str
    where: Where = ()

    @property
    def needs_teacher(self) -> bool:
        return bool(self.config["terms"])


@dataclass(frozen=True)
class Suite:
    """A matrix of trainings, resolved. `pairs` are (student, teacher) names; `sources` say where users' own parts lie."""

    name: str
    source: Source
    description: str
    task: Json
    dataset: Json
    students: dict[str, Net]
    teachers: dict[str, Net]
    pairs: list[tuple[str, str]]
    objectives: dict[str, Objective]
    exclude: list[dict[str, list[str]]]
    baselines: list[str]
    assumed: list[str]
    numerics: Json
    repeats: int
    teacher_seeds: int
    seed: int
    sources: dict[str, str] = field(default_factory=dict)

    def folder(self, part: str) -> Path | None:
        """Where a user's own part lies; None for a part of the house."""
        return Path(self.sources[part]) if part in self.sources else None


# What a suite may say

_strict = ConfigDict(strict=True, extra="forbid")


def _suite_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
        raise ValueError("a suite's name becomes a folder: letters, digits, '_', '.' and '-' only")
    return value


def _increasing(value: float | dict[int, float]) -> float | dict[int, float]:
    if isinstance(value, dict) and (not value or list(value) != sorted(value) or min(value) < 0):
        raise ValueError("a schedule of weights is a mapping from epoch (from 0, increasing) to weight")
    return value


Weight = Annotated[float | dict[int, float], AfterValidator(_increasing)]
WeightFrom = Literal["published", "released", "tuned", "assumed"]
Names = str | list[str]
Named = list[str] | dict[str, Json | None]
PLACES = ("student", "teacher", "objective")
NOT_A_TERMS = {"task", "+kd", "terms"}


class _Exclude(BaseModel):
    model_config = _strict
    student: Names | None = None
    teacher: Names | None = None
    objective: Names | None = None


class _ObjectiveFields(BaseModel):
    """The keys of an objective that are not options of its loss."""

    model_config = _strict

    loss: str | None = None
    preset: str | None = None
    weight: Weight | None = None
    weight_from: WeightFrom | None = None
    task: float | None = None
    terms: list[Json] | None = None
    pairing: Literal["matched", "shuffled"] = "matched"
    beside_kd: bool | Json | None = None


_Positive = Annotated[int, Field(ge=1)]
SECTIONS: dict[str, tuple[Any, Any]] = {
    "name": (Annotated[str, AfterValidator(_suite_name)], None),
    "description": (str, ""),
    "task": (str | None, None),
    "dataset": (str | Json, ...),
    "recipe": (str | Json, ...),
    "students": (Named, ...),
    "teachers": (Named, ...),
    "pairs": (dict[str, Names] | None, None),
    "objectives": (list[str | Json] | dict[str, Json | None], ...),
    "exclude": (list[_Exclude], ()),
    "baselines": (list[str] | None, None),
    "assumed": (list[str], ()),
    "numerics": (Literal["exact", "fast"], "exact"),
    "repeats": (_Positive, 5),
    "teacher_seeds": (_Positive, 1),
    "seed": (Annotated[int, Field(ge=0)], 0),
    "+kd": (bool | Json, False),
}
"""Every key of a suite: its type and its default (`...`: it must be there). `min_<primary metric>` comes besides."""


def read(path: Path | str) -> Suite:
    """Read a suite and resolve every name in it.

    Raises:
        SuiteError: with all mistakes of schema and names.
    """
    return _Reading(Source(Path(path))).suite()


class _Reading:
    """One pass over one file, gathering mistakes."""

    def __init__(self, source: Source):
        self.source, self.mistakes, self.sources = source, [], {}  # type: ignore[var-annotated]
        self.base = source.path.parent

    def wrong(self, where: Where, what: str) -> None:
        self.mistakes.append(f"{self.source.at(where)}: {'.'.join(map(str, where)) + ': ' if where else ''}{what}")

    def suite(self) -> Suite:
        data = self.source.data
        says = {key: self._section(key) for key in SECTIONS}
        task, gate_key = self._task(says["task"], says["dataset"])
        for key in data:
            if key not in SECTIONS and key != gate_key:
                self.wrong((key,), f"a suite has no such key{nearest(str(key), [*SECTIONS, gate_key or 'min_top1'])}")
        gate = self._gate(data, gate_key)
        dataset = self._part_with_options(("dataset",), "dataset", says["dataset"])
        recipe = self._recipe(("recipe",), says["recipe"])
        students = self._nets("students", says["students"], recipe, None, None)
        teachers = self._nets("teachers", says["teachers"], recipe, gate_key, gate)
        objectives = self._objectives(says["objectives"], says["+kd"], task)
        pairs = self._pairs(says["pairs"], students, teachers)
        exclude = self._excludes(says["exclude"], students, teachers, objectives)
        baselines = self._baselines(says["baselines"], objectives)
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
            sources=self.sources,
        )

    def _section(self, key: str) -> Any:
        kind, default = SECTIONS[key]
        if key not in self.source.data:
            if default is ...:
                self.wrong((), f"a suite needs '{key}'")
                return None
            return default
        return self._checked((key,), kind, self.source.data[key])

    def _checked(self, where: Where, kind: Any, value: Any) -> Any:
        """The value as `kind`, or None after its mistakes were noted."""
        try:
            return TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            for one in _told(error):
                self.wrong((*where, *one["loc"]), one["text"])
            return None

    # Parts by name

    def _load(self, where: Where, kind: str, name: str) -> parts.Part | None:
        try:
            part = parts.load(kind, name, self.base)
        except PartError as error:
            self.wrong(where, str(error))
            return None
        if ".py:" in name:
            file, _, attribute = name.rpartition(":")
            path = (self.base / file).resolve()
            # In the identity stands what it is (file name, class, hash of the source), not where it lies.
            part = parts.Part(kind, f"{path.name}:{attribute}", part.make, part.version)
            if self.sources.setdefault(part.name, str(path.parent)) != str(path.parent):
                self.wrong(where, f"two files named {path.name} with a {attribute} each: rename one")
        return part

    def _resolved(self, where: Where, part: parts.Part, options: Mapping[str, Any]) -> Json | None:
        """The part's options with defaults; what its constructor refuses is told here."""
        known, wrong = part.known(), False
        for key in options:
            if key not in known:
                self.wrong((*where, key), f"the {part.kind} '{part.name}' has no option '{key}'{nearest(str(key), known)}")
                wrong = True
        try:
            resolved = part.options({key: value for key, value in options.items() if key in known})
            part.build(resolved)
        except PartError as error:
            self.wrong(where, str(error))
            return None
        return None if wrong else resolved

    def _part_with_options(self, where: Where, kind: str, says: str | Json | None) -> Json | None:
        """`name` or `{name: ..., option: ...}` -> {name, version, options}."""
        if says is None:
            return None
        options = {} if isinstance(says, str) else {key: value for key, value in says.items() if key != "name"}
        name = says if isinstance(says, str) else says.get("name")
        if not isinstance(name, str):
            self.wrong(where, f"it needs a name: one of {', '.join(parts.names(kind))}")
            return None
        part = self._load(where, kind, name)
        resolved = part and self._resolved(where, part, options)
        return None if part is None or resolved is None else {"name": part.name, "version": part.version, "options": resolved}

    def _task(self, says: str | None, dataset: Any) -> tuple[parts.Part | None, str | None]:
        if says is None:
            name = dataset if isinstance(dataset, str) else (dataset or {}).get("name")
            try:
                says = parts.load("dataset", name, self.base).make.task if isinstance(name, str) else "classification"
            except PartError:
                says = "classification"  # the dataset's own mistake is told elsewhere
        part = self._load(("task",), "task", says)
        return part, f"min_{part.make.primary().name}" if part else None

    def _gate(self, data: Json, key: str | None, where: Where = ()) -> float | None:
        if key is None or key not in data:
            return None
        return self._checked((*where, key), Annotated[float, Field(ge=0)], data[key])

    # Recipe, students, teachers

    def _recipe(self, where: Where, says: str | Json | None) -> Json | None:
        found = self._part_with_options(where, "recipe", says)
        return found and found["options"]

    def _nets(self, section: str, says: Named | None, recipe: Json | None, gate_key: str | None, gate: float | None) -> dict[str, Net]:
        listed = {name: None for name in says} if isinstance(says, list) else says or {}
        if not listed and says is not None:
            self.wrong((section,), "it names none")
        nets = {}
        for name, options in listed.items():
            where: Where = (section, name if isinstance(says, dict) else list(listed).index(name))
            net = self._net(where, name, options or {}, recipe, gate_key, gate)
            if net:
                nets[name] = net
        return nets

    def _net(self, where: Where, name: str, says: Json, recipe: Json | None, gate_key: str | None, gate: float | None) -> Net | None:
        reserved = {"model", "recipe", *([gate_key] if gate_key else [])}
        options = {key: value for key, value in says.items() if key not in reserved}
        model = says.get("model", name)
        own, changes = {}, says.get("recipe") or {}
        if model not in parts.names("model") and ":" not in str(model):
            model, options = "timm", {"architecture": model, **options}
        part = self._load(where, "model", model)
        resolved = part and self._resolved(where, part, options)
        if resolved and model == "timm":
            self._timm_name((*where, "model"), resolved["architecture"], section=str(where[0]))
        if not isinstance(changes, dict):
            self.wrong((*where, "recipe"), "a net's own recipe is a mapping of what it changes")
        elif recipe is not None:
            own = self._own_recipe((*where, "recipe"), recipe, changes, student=where[0] == "students")
        least = self._gate(says, gate_key, where)
        if part is None or resolved is None:
            return None
        config = {"name": part.name, "version": part.version, "options": resolved}
        return Net(name, config, own, gate if least is None else least)

    def _timm_name(self, where: Where, architecture: str, section: str) -> None:
        from kdbench.through_timm import has_model, model_names

        if not has_model(architecture):
            near = nearest(architecture, [*parts.names("model"), *model_names()])
            near = near if "mean" in near else "; there is any model of timm, and: " + ", ".join(parts.names("model"))
            self.wrong(where, f"neither kdbench nor timm has a model '{architecture}'{near}")

    def _own_recipe(self, where: Where, recipe: Json, changes: Json, student: bool) -> Json:
        says = self.source.data["recipe"]
        part = self._load(where, "recipe", says if isinstance(says, str) else says["name"])
        if part is None:
            return {}
        shared = sorted(set(changes) & part.make.shared) if student else []
        for key in shared:
            self.wrong(
                (*where, key),
                f"a student's own '{key}' would break the data stream that all students share; change the suite's recipe",
            )
        return self._resolved(where, part, {**recipe, **{key: value for key, value in changes.items() if key not in shared}}) or {}

    # Objectives

    def _objectives(self, says: Any, beside_kd: bool | Json | None, task: parts.Part | None) -> dict[str, Objective]:
        listed: dict[str, tuple[Where, Json]] = {}
        for place, (name, options) in enumerate(self._entries(says)):
            where: Where = ("objectives", name) if isinstance(says, dict) else ("objectives", place)
            if name in listed:
                self.wrong(where, f"the objective '{name}' stands twice")
            listed[name] = (where, options or {})
        found: dict[str, Objective] = {}
        alone = task.make.alone if task else "ce"
        for name, (where, options) in listed.items():
            objective, beside = self._objective(where, name, options, alone)
            if objective is None:
                continue
            found[name] = objective
            added = beside_kd if beside is None else beside
            if added and objective.needs_teacher and not any(term["loss"] == "kd" for term in objective.config["terms"]):
                both = self._with_kd(where, objective, added)
                if both:
                    found[both.name] = both
        return found

    def _entries(self, says: Any) -> list[tuple[str, Json | None]]:
        """(name, options) of objectives that are listed or mapped."""
        if isinstance(says, dict):
            return list(says.items())
        entries: list[tuple[str, Json | None]] = []
        for place, one in enumerate(says or []):
            if isinstance(one, str):
                entries.append((one, None))
            elif len(one) == 1:
                entries.append(next(iter(one.items())))
            else:
                keys = ", ".join(map(str, one)) or "nothing"
                self.wrong(
                    ("objectives", place), f"one name with its options stands here, not {keys}: are the options indented below the name?"
                )
        return entries

    def _objective(self, where: Where, name: str, says: Json, alone: str) -> tuple[Objective | None, bool | Json | None]:
        if not isinstance(says, dict):
            self.wrong(where, f"options are a mapping, and this is {says!r}")
            return None, None
        own = {key: "beside_kd" if key == "+kd" else key for key in says if key == "+kd" or key in _ObjectiveFields.model_fields}
        fields = self._checked(where, _ObjectiveFields, {own[key]: says[key] for key in own})
        options = {key: value for key, value in says.items() if key not in own}
        if fields is None:
            return None, None
        if name == alone and fields.loss is None and fields.terms is None:
            for key in options:
                self.wrong((*where, key), f"'{alone}' is the task's loss alone: it has no options")
            return Objective(name, name, {"task": 1.0 if fields.task is None else fields.task, "terms": []}, "published", where), False
        if fields.terms is not None:
            return self._combined(where, name, fields, options), fields.beside_kd
        return self._single(where, name, fields, options), fields.beside_kd

    def _single(self, where: Where, name: str, fields: _ObjectiveFields, options: Json) -> Objective | None:
        """One loss, by its preset: `rkd`, `rkd:official_cls`, or a name of one's own with `loss:`."""
        asked = fields.loss or name
        loss_name, preset_name = asked, fields.preset
        if ":" in asked and ".py:" not in asked and asked.partition(":")[0] in parts.names("loss"):
            loss_name, _, in_name = asked.partition(":")
            preset_name = preset_name or in_name
        part = self._load((*where, "loss") if fields.loss else where, "loss", loss_name)
        if part is None:
            return None
        presets = part.make.presets
        if preset_name is not None and preset_name not in presets:
            self.wrong(where, f"the loss '{loss_name}' has no preset '{preset_name}'{nearest(preset_name, presets)}")
            return None
        preset = presets[preset_name] if preset_name else next(iter(presets.values()), None)
        resolved = self._resolved(where, part, {**(preset.options if preset else {}), **options})
        weight = fields.weight if fields.weight is not None else preset.weight if preset else None
        if weight is None and preset is None:
            self.wrong(where, f"'{asked}' has no presets, so the suite must say its weight: `weight: ...`")
        elif weight is None:
            self.wrong(where, f"no weight was ever published for '{asked}': say `weight:`, and `weight_from:` released, tuned or assumed")
        elif preset is not None and preset.weight is None and fields.weight_from is None:
            self.wrong(
                where,
                f"no weight was ever published for '{asked}': say where this one is from, `weight_from:` released, tuned or assumed",
            )
        if resolved is None or weight is None:
            return None
        terms = [_term(part, resolved, weight, fields.pairing)]
        for other, other_weight, other_options in preset.terms if preset else ():
            more = parts.load("loss", other)
            terms.append(_term(more, more.options(dict(other_options)), other_weight, fields.pairing))
        task = fields.task if fields.task is not None else preset.task if preset else 1.0
        variant = part.build(resolved).variant
        label = name if variant is None or variant in name else f"{name} ({variant})"
        default = "published" if fields.weight is None else "the suite"
        return Objective(name, label, {"task": float(task), "terms": terms}, fields.weight_from or default, where)

    def _combined(self, where: Where, name: str, fields: _ObjectiveFields, options: Json) -> Objective | None:
        """Several terms: each `{loss: ..., weight: ..., option: ...}`."""
        for key in options:
            self.wrong((*where, key), "options stand with their term, under `terms`")
        singles = []
        for place, says in enumerate(fields.terms or []):
            at: Where = (*where, "terms", place)
            for key in sorted(NOT_A_TERMS & set(says)):
                self.wrong((*at, key), f"'{key}' is the objective's, not a term's: it stands beside `terms`")
            if not isinstance(says.get("loss"), str):
                self.wrong(at, "a term needs its `loss`")
                continue
            said = {key: value for key, value in says.items() if key not in NOT_A_TERMS}
            singles.append(self._objective(at, says["loss"], said, alone="")[0])
        found = [single for single in singles if single]
        if len(found) < len(fields.terms or []):
            return None
        variants = [one.label for one in found if one.label != one.name]
        # The weakest claim of any term is the objective's.
        claims = {one.weight_from for one in found}
        weakest = next((claim for claim in ("assumed", "tuned", "the suite", "released") if claim in claims), "published")
        return Objective(
            name=name,
            label=f"{name} ({', '.join(variants)})" if variants else name,
            config={
                "task": 1.0 if fields.task is None else float(fields.task),
                "terms": [term for one in found for term in one.config["terms"]],
            },
            weight_from=fields.weight_from or weakest,
            where=where,
        )

    def _with_kd(self, where: Where, objective: Objective, says: bool | Json) -> Objective | None:
        kd = parts.load("loss", "kd")
        options = {**KD_BESIDE, **(says if isinstance(says, dict) else {})}
        weight = self._checked((*where, "+kd", "weight"), Weight, options.pop("weight"))
        if weight is None:
            return None
        resolved = self._resolved((*where, "+kd"), kd, options)
        if resolved is None:
            return None
        terms = [*objective.config["terms"], _term(kd, resolved, weight, "matched")]
        config = {**objective.config, "terms": terms}
        return Objective(f"{objective.name}+kd", f"{objective.label}+kd", config, objective.weight_from, where)

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


def _term(part: parts.Part, options: Json, weight: Any, pairing: str) -> Json:
    scheduled = [[epoch, float(value)] for epoch, value in weight.items()] if isinstance(weight, dict) else float(weight)
    return {"loss": part.name, "version": part.version, "options": options, "weight": scheduled, "pairing": pairing}


def _told(error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's mistakes in our words: where (keys of the file only), and what instead."""
    told: dict[tuple, dict[str, Any]] = {}
    for one in error.errors():
        given = one["input"]
        text = f"{given!r}: {one['msg']}" if not isinstance(given, (dict, list)) else one["msg"]
        if one["type"] == "bool_type" and isinstance(given, str):
            text = f"'{given}' is text in YAML 1.2: write true or false"
        if one["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            text = "there is no such key here"
        # Members of a union stand in pydantic's place; only what is in the file helps.
        loc = tuple(
            key for key in one["loc"] if not (isinstance(key, str) and re.search(r"[\[\]()]|^(str|int|float|bool|constrained-.*)$", key))
        )
        if loc in told and "YAML" not in told[loc]["text"]:
            told[loc]["text"] += f", or {one['msg'][0].lower()}{one['msg'][1:]}"
        elif loc not in told:
            told[loc] = {"loc": loc, "text": text}
    return list(told.values())
