"""The first noun: one training, fully resolved. Its id is a hash of the science and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SCHEMA = 1

NEUTRAL: tuple[tuple[Any, ...], ...] = (
    (("objective", "terms", "*", "pairing"), "matched"),
    (("student", "options", "stem"), "own", "timm"),
    (("recipe", "class_uniform"), 0),
    (("objective", "terms", "*", "options", "transform"), "none", "kd"),
    (("objective", "terms", "*", "options", "rescale"), "none", "sp"),
    (("objective", "terms", "*", "options", "embedded"), "both", "cc"),
    (("objective", "terms", "*", "options", "squared_distances"), False, "rkd"),
    (("objective", "terms", "*", "options", "mean"), "all", "rkd"),
    (("objective", "terms", "*", "options", "vertices"), None, "rkd"),
    (("objective", "terms", "*", "options", "eps"), "ours", "rkd"),
    (("objective", "terms", "*", "options", "kernel"), "linear", "cka"),
    (("objective", "terms", "*", "options", "form"), "one_minus", "cka"),
    (("objective", "terms", "*", "options", "official_bugs"), False, "rcka"),
    (("objective", "terms", "*", "options", "first_stage"), 0, "rcka"),
)
"""Fields that were added to the configuration after the first ids, each with the value that stands for the behaviour before it
existed. While a field has this value it is left out of the hash, so that an older cell keeps its id. `*` is any element. Where a third
value stands, it is the part whose option the field is: a user's own part may have one of the same name."""

ID_LENGTH = 12


def canonical(config: Mapping[str, Any], texts: dict[tuple[str, int], str] | None = None) -> str:
    """The text that is hashed: sorted keys, no spaces, without the fields that have their neutral value.

    `texts` remembers the text of each top-level value by its identity, for a matrix whose cells share them; they must outlive it.

    Raises:
        ValueError: the configuration holds a number that JSON has not (NaN, infinity).
    """
    texts = {} if texts is None else texts
    pieces = []
    for key in sorted(config):
        value = config[key]
        place = key, id(value)
        if place not in texts:
            kept = without_neutral({key: value})
            texts[place] = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)[1:-1]
        pieces.append(texts[place])
    return "{" + ",".join(piece for piece in pieces if piece) + "}"


def without_neutral(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration without the fields that have their neutral value: what is hashed, and what seeds are drawn from."""
    for path, neutral, *part in NEUTRAL:
        config = _without(config, path, neutral, *part)
    return config


def identify(config: Mapping[str, Any], texts: dict[tuple[str, int], str] | None = None) -> str:
    """The id of a configuration: the first 12 hexadecimal digits of the SHA-256 of its canonical text."""
    return hashlib.sha256(canonical(config, texts).encode()).hexdigest()[:ID_LENGTH]


@dataclass(frozen=True)
class Cell:
    """One training: `config` is the science (hashed); the rest is what a worker needs besides, and no part of the identity.

    `gate` is the least value of the primary metric that the suite asks of the teacher (None: the task's default), `declared` the
    value that was declared for it and how far it may be off; `sources` says in which folder a user's own part lies, and where a
    checkpoint does (`weights <digest>`).
    """

    config: Mapping[str, Any]
    gate: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    declared: tuple[float, float] | None = None

    @cached_property
    def id(self) -> str:
        return identify(self.config)

    @classmethod
    def of_matrix(
        cls,
        config: Mapping[str, Any],
        texts: dict[tuple[str, int], str],
        gate: float | None = None,
        sources: Mapping[str, str] | None = None,
        declared: tuple[float, float] | None = None,
    ) -> Cell:
        """A cell among many that share parts of their configuration: the same cell, with its id computed sooner."""
        cell = cls(config, gate, sources or {}, declared)
        cell.__dict__["id"] = identify(config, texts)  # where the cached property keeps it
        return cell

    @property
    def depends(self) -> Mapping[str, str]:
        """Ids of the cells that must be finished first, by role (`teacher`)."""
        return self.config["depends"]

    @property
    def role(self) -> str:
        return self.config["role"]

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "config": self.config, "gate": self.gate, "sources": dict(self.sources), "declared": self.declared}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        declared = data.get("declared")  # a cell of an earlier release has none
        return cls(data["config"], data["gate"], data["sources"], tuple(declared) if declared else None)


def _without(node: Any, path: tuple[str, ...], neutral: Any, part: str | None = None) -> Any:
    head, *rest = path
    if head == "*":
        return [_without(one, tuple(rest), neutral, part) for one in node] if isinstance(node, list) else node
    if not isinstance(node, Mapping) or head not in node:
        return node
    if head == "options" and part not in (None, node.get("name"), node.get("loss")):
        return node
    if rest:
        return {**node, head: _without(node[head], tuple(rest), neutral, part)}
    # `is` for None and booleans: 0 == False, and a neutral None must not swallow a zero.
    same = node[head] is neutral if neutral is None or isinstance(neutral, bool) else node[head] == neutral
    return {key: value for key, value in node.items() if key != head} if same else node
