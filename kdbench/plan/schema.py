"""What a suite is: its parts resolved, and what its file may contain."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from kdbench.manifest import Metric, PaperClaim, Tuning
from kdbench.plan.yaml import Where, YamlFile, checked_suite_name

Json = dict[str, Any]

NUMERICS: dict[str, Json] = {
    "exact": {"name": "exact", "autocast": None, "tf32": False, "memory_format": "contiguous", "threads": 1},
    "fast": {"name": "fast", "autocast": "bfloat16", "tf32": True, "memory_format": "channels_last", "threads": 1},
}
DEFAULT_BASELINES = ("kd",)
"""Those of every suite that has them, after the loss of the task alone."""
MARGIN_POINTS = 0.2
"""The least difference that matters where a suite gives none, in points of a metric that is printed in per cent."""
KD_BESIDE = {"weight": 1.0, "temperature": 4.0}
"""What `+kd: true` adds: the KD term of the X+KD rows of the CRD protocol (weight 1, temperature 4)."""


@dataclass(frozen=True)
class Net:
    """A student or a teacher: its model and recipe resolved. `min_teacher_metric` is the least primary metric of a teacher, `declared`
    what was declared for its weights and how far it may be off. `made_for` are timm's facts about its weights."""

    name: str
    model: Json
    recipe: Json
    min_teacher_metric: float | None = None
    declared: tuple[float, float] | None = None
    made_for: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """The values of each dimension of the search for an objective's weights, and how many of its terms are tuned (KD beside is not)."""

    dimensions: dict[str, list[float]]
    terms: int


@dataclass(frozen=True)
class FirstStage:
    """The first of two stages of an objective: `config` is hashed, `changes` are the options of the recipe that differ from those of the
    second stage, and `recipes` is the whole recipe by student."""

    config: Json
    changes: Json
    recipes: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class ObjectiveSpec:
    """`config` is hashed; `label` is what tables print; `weight_from` says whose the weight is; `where` is its place in the file."""

    name: str
    label: str
    config: Json
    weight_from: str
    where: Where = ()
    search: Search | None = None
    control: tuple[str, str] | None = None
    """Of which objective it is a control, and which; the task's loss alone at the weight of one at weight 0 is (empty, `task`)."""
    reference: str | None = None
    """The objective that a control at weight 0 must equal, or with which one that inherits parts of the teacher is compared."""
    first: FirstStage | None = None
    """The stage before that of `config`."""

    @property
    def is_of_untrained(self) -> bool:
        """Whether its teacher is not trained."""
        return self.control is not None and self.control[1] == "untrained"

    @property
    def needs_teacher(self) -> bool:
        return bool(self.config["terms"]) or self.first is not None or "inherits" in self.config


@dataclass(frozen=True)
class Suite:
    """A matrix of trainings, resolved. `pairs` are (student, teacher) names; `sources` are the folders of users' own parts; `margin` is the
    least difference that matters of the compared metric, as the metric is stored (None: the suite gives none); `metric` is the name of the
    metric that reports compare (None: the task's primary one); `tuning` is how the weights of its tuned objectives are searched for,
    by `metric_of_trials`; `metric_worst` is a value of the primary metric that every teacher reaches."""

    name: str
    file: YamlFile
    description: str
    task: Json
    dataset: Json
    students: dict[str, Net]
    teachers: dict[str, Net]
    pairs: list[tuple[str, str]]
    objectives: dict[str, ObjectiveSpec]
    exclude: list[dict[str, list[str]]]
    baselines: list[str]
    assumed: list[str]
    numerics: Json
    repeats: int
    teacher_seeds: int
    seed: int
    margin: float | None = None
    metric: str | None = None
    claims: tuple[PaperClaim, ...] = ()
    tuning: Tuning | None = None
    metric_of_trials: Metric | None = None
    metric_worst: float = 0.0
    sources: dict[str, str] = field(default_factory=dict)

    def folder(self, part: str) -> Path | None:
        """The folder of a user's own part; None for a part of kdbench."""
        return Path(self.sources[part]) if part in self.sources else None


def _increasing(value: float | dict[int, float]) -> float | dict[int, float]:
    if not all(weight >= 0 for weight in (value.values() if isinstance(value, dict) else [value])):
        raise ValueError("a weight is a number of at least 0")
    if isinstance(value, dict) and (not value or list(value) != sorted(value) or min(value) < 0):
        raise ValueError("a schedule of weights is a mapping from epoch (from 0, increasing) to weight")
    return value


Weight = Annotated[float | dict[int, float], AfterValidator(_increasing)]


def _in_order(value: list[float]) -> list[float]:
    if len(value) != 2 or not 0 <= value[0] < value[1]:
        raise ValueError("decay is the epochs (from 1) of its start and its end, as in [150, 240]")
    return value


Decay = Annotated[list[float], AfterValidator(_in_order)]
WeightFrom = Literal["published", "released", "tuned", "assumed"]
Names = str | list[str]
Nets = list[str] | dict[str, Json | None]
PLACES = ("student", "teacher", "objective")
NOT_OF_A_TERM = {"task", "+kd", "terms", "dot", "tune", "controls", "label_smoothing", "two_stages", "inherits"}
"""Keys of an objective that a single term of it cannot have."""
MAX_NAMES = 1_000
MAX_EXCLUDES = 200
MAX_CLAIMS = 100
MAX_CELLS = 20_000
"""The largest suite that is planned: names in a section, rules of `exclude`, claims, cells."""


class Exclude(BaseModel, strict=True, extra="forbid"):
    student: Names | None = None
    teacher: Names | None = None
    objective: Names | None = None


class ClaimFields(BaseModel, strict=True, extra="forbid"):
    """A claim that a suite checks."""

    claim: Annotated[str, Field(min_length=1)]
    source: str = ""
    better: Names | None = None
    not_worse: Names | None = None
    cheaper: Names | None = None
    than: Names | None = None
    equal: Annotated[list[str], Field(min_length=2)] | None = None
    cost: Literal["time", "memory"] | None = None
    margin: Annotated[float, Field(gt=0)] | None = None


class ObjectiveFields(BaseModel, strict=True, extra="forbid"):
    """The keys of an objective that are not options of its loss."""

    loss: str | None = None
    preset: str | None = None
    weight: Weight | None = None
    weight_from: WeightFrom | None = None
    warm_up: Annotated[float, Field(ge=0)] | None = None
    decay: Decay | None = None
    dot: Annotated[float, Field(gt=0, lt=1)] | None = None
    task: float | None = None
    terms: list[Json] | None = None
    pairing: Literal["matched", "shuffled", "shuffled_globally", "shuffled_in_class"] = "matched"
    controls: list[Literal["zero", "untrained", "shuffled", "shuffled_globally", "shuffled_in_class"]] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    tune: Literal[False] | Json | None = None
    two_stages: Literal[False] | Json | None = None
    inherits: Annotated[list[str], Field(min_length=1)] | None = None
    beside_kd: bool | Json | None = Field(default=None, alias="+kd")


_Positive = Annotated[int, Field(ge=1)]
SECTIONS: dict[str, tuple[Any, Any]] = {
    "name": (Annotated[str, AfterValidator(checked_suite_name)], None),
    "description": (str, ""),
    "task": (str | None, None),
    "dataset": (str | Json, ...),
    "recipe": (str | Json, ...),
    "students": (Nets, ...),
    "teachers": (Nets, ...),
    "pairs": (dict[str, Names] | None, None),
    "objectives": (list[str | Json] | dict[str, Json | None], ...),
    "exclude": (list[Exclude], ()),
    "baselines": (list[str] | None, None),
    "assumed": (list[str], ()),
    "claims": (list[ClaimFields], ()),
    "metric": (str | None, None),
    "margin": (Annotated[float, Field(gt=0)] | None, None),
    "numerics": (Literal["exact", "fast"], "exact"),
    "repeats": (_Positive, 5),
    "teacher_seeds": (_Positive, 1),
    "seed": (Annotated[int, Field(ge=0)], 0),
    "+kd": (bool | Json, False),
    "tune": (Json | None, None),
}
"""Every key of a suite: its type and its default (`...`: it is required). `min_<primary metric>` is a key, too."""
