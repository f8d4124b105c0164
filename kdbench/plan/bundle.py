"""Cells -> bundles: what is trained side by side, because it shares its data stream and its teacher."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.cell import Cell
from kdbench.recipes._base import Recipe

SIDE_BY_SIDE = 16
"""How many students one process trains at once by default: it depends on the machine and changes no result."""


@dataclass(frozen=True)
class Bundle:
    cells: tuple[Cell, ...]

    @property
    def ids(self) -> list[str]:
        return [cell.id for cell in self.cells]

    @property
    def teacher(self) -> str | None:
        return self.cells[0].depends.get("teacher")


def key(cell: Cell, position: Any = 0) -> str:
    """Cells with the same key can be trained side by side. `position` is where a cell's next step lies (its checkpoint)."""
    config, recipe = cell.config, Recipe.complete(cell.config["recipe"])
    names = ("task", "dataset", "numerics", "seed", "repeat", "role")
    # Of what a cell depends on, its teacher is shared; the number tells the rounds of a search, which follow each other.
    depends = cell.depends.get("teacher"), len(cell.depends)
    shared = {name: config[name] for name in names}, {name: recipe[name] for name in Recipe.shared}
    return json.dumps([*shared, depends, position], sort_keys=True)


def bundles(cells: Iterable[Cell], positions: Mapping[str, Any] | None = None, side_by_side: int = SIDE_BY_SIDE) -> list[Bundle]:
    """Group cells, in their order, at most `side_by_side` to a bundle, and bundles of a group of nearly equal size."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell, (positions or {}).get(cell.id, 0)), []).append(cell)
    found = []
    for group in groups.values():
        size, larger = divmod(len(group), -(-len(group) // side_by_side))
        rest = iter(group)
        while some := tuple(itertools.islice(rest, size + (larger > 0))):
            found.append(Bundle(some))
            larger -= 1
    return found


def model_key(model: Mapping[str, Any]) -> str:
    return json.dumps(model, sort_keys=True)
