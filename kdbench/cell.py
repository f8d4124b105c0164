"""The first noun: one training, fully resolved. Its id is a hash of everything that decides its result, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from kdbench.validation import Count, Finite, Schema1, check

SCHEMA = 1
ID_LENGTH = 12


class _Config(TypedDict):
    schema: Schema1
    role: Literal["teacher", "student", "trial"]
    task: dict[str, Any]
    dataset: dict[str, Any]
    student: dict[str, Any]
    depends: dict[str, Any]
    objective: dict[str, Any]
    recipe: dict[str, Any]
    numerics: dict[str, Any]
    seed: Count
    repeat: Count


class _Form(TypedDict):
    """What the file of a cell holds."""

    id: str
    config: _Config
    min_teacher_metric: Finite | None
    sources: dict[str, str]
    declared_teacher_metric: Annotated[list[Finite], Field(min_length=2, max_length=2)] | None


def canonical(config: Any) -> str:
    """The text that is hashed: sorted keys, no spaces. Raises ValueError for a number that JSON does not have (NaN, infinity)."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def identify(config: Mapping[str, Any]) -> str:
    """The id of a configuration: the first 12 hexadecimal digits of the SHA-256 of its canonical text."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:ID_LENGTH]


def depended(role: str) -> str:
    """What a reader calls a cell that another one depends on in this role: `teacher`, `trial`, or `first stage`."""
    return "trial" if role.startswith("choose") else {"start": "first stage"}.get(role, role)


def is_id(text: str) -> bool:
    return len(text) == ID_LENGTH and set(text) <= set("0123456789abcdef")


@dataclass(frozen=True)
class Cell:
    """One training: `config` is everything that decides its result, and is hashed; the rest is what a worker needs besides.
    `min_teacher_metric` is the smallest primary metric that the suite accepts of the teacher (None: the task's default);
    `declared_teacher_metric` is the value that was declared for the teacher and the accepted deviation. `sources` gives the folder of each
    of the user's own parts, and the file of each checkpoint (`weights <digest>`)."""

    config: Mapping[str, Any]
    min_teacher_metric: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    declared_teacher_metric: tuple[float, float] | None = None

    @cached_property
    def id(self) -> str:
        return identify(self.config)

    @property
    def depends(self) -> Mapping[str, str]:
        """Ids of the cells that must be finished first, by role: `teacher`, `start` (the first of two stages), and `choose.<number>` of the
        trials that choose its weights."""
        return self.config["depends"]

    @property
    def role(self) -> str:
        return self.config["role"]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "config": self.config,
            "min_teacher_metric": self.min_teacher_metric,
            "sources": dict(self.sources),
            "declared_teacher_metric": self.declared_teacher_metric,
        }

    @classmethod
    def from_json(cls, data: Any) -> Cell:
        """Raises ValueError, naming field and value, for anything that `to_json` does not write."""
        check(_Form, data)
        declared = data["declared_teacher_metric"]
        cell = cls(data["config"], data["min_teacher_metric"], data["sources"], tuple(declared) if declared else None)
        if cell.id != data["id"]:
            raise ValueError(f"id: {data['id']!r}: its configuration has the id {cell.id}")
        return cell
