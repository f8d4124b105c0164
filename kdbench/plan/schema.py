"""What a suite is: its parts resolved, and what its file may say."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kdbench.plan.yaml import Source, Where

Json = dict[str, Any]

NUMERICS: dict[str, Json] = {
    "exact": {"name": "exact", "autocast": None, "tf32": False, "memory_format": "contiguous", "threads": 1},
    "fast": {"name": "fast", "autocast": "bfloat16", "tf32": True, "memory_format": "channels_last", "threads": 1},
}
DEFAULT_BASELINES = ("ce", "kd")
MARGIN_POINTS = 0.2
"""The least difference that matters where a suite says none, in points of a metric that is printed per cent."""
KD_BESIDE = {"weight": 1.0, "temperature": 4.0}
"""What `+kd: true` adds: the KD term of the X+KD rows of the CRD protocol (weight 1, temperature 4)."""


@dataclass(frozen=True)
class Net:
    """A student or a teacher: its model and recipe resolved.

    `gate` is the least primary metric asked of a teacher, `declared` what was declared for its weights and how far it may be off.
    """

    name: str
    model: Json
    recipe: Json
    gate: float | None = None
    declared: tuple[float, float] | None = None


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
    """A matrix of trainings, resolved. `pairs` are (student, teacher) names; `sources` say where users' own parts lie; `margin` is the
    least difference of the primary metric that matters, as the metric is stored (None: the suite says none)."""

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
    margin: float | None = None
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


class Exclude(BaseModel):
    model_config = _strict
    student: Names | None = None
    teacher: Names | None = None
    objective: Names | None = None


class ObjectiveFields(BaseModel):
    """The keys of an objective that are not options of its loss."""

    model_config = _strict

    loss: str | None = None
    preset: str | None = None
    weight: Weight | None = None
    weight_from: WeightFrom | None = None
    task: float | None = None
    terms: list[Json] | None = None
    pairing: Literal["matched", "shuffled"] = "matched"
    beside_kd: bool | Json | None = Field(default=None, alias="+kd")


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
    "exclude": (list[Exclude], ()),
    "baselines": (list[str] | None, None),
    "assumed": (list[str], ()),
    "margin": (Annotated[float, Field(gt=0)] | None, None),
    "numerics": (Literal["exact", "fast"], "exact"),
    "repeats": (_Positive, 5),
    "teacher_seeds": (_Positive, 1),
    "seed": (Annotated[int, Field(ge=0)], 0),
    "+kd": (bool | Json, False),
}
"""Every key of a suite: its type and its default (`...`: it must be there). `min_<primary metric>` comes besides."""
