"""Cells -> bundles: what is trained side by side, because it shares its data stream and its teacher."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.cell import Cell
from kdbench.recipes._base import Recipe

SIDE_BY_SIDE = 16
"""How many students one process trains at once unless told otherwise: the machine's matter, not the science's."""

BACKWARD = 2.0
"""A backward pass costs about twice a forward pass."""


@dataclass(frozen=True)
class Bundle:
    cells: tuple[Cell, ...]

    @property
    def ids(self) -> list[str]:
        return [cell.id for cell in self.cells]

    @property
    def teacher(self) -> str | None:
        return self.cells[0].depends.get("teacher")


def key(cell: Cell, position: Any = 0, texts: dict[int, str] | None = None) -> tuple[str, ...]:
    """Cells with the same key can be trained side by side. `position` is where a cell's next step lies (its checkpoint).

    `texts` remembers the text of each sub-configuration by its identity: the cells of a plan share them, and there may be ten
    thousand cells.
    """
    texts = {} if texts is None else texts
    config = cell.config

    def text(value: Any) -> str:
        if id(value) not in texts:
            texts[id(value)] = json.dumps(value, sort_keys=True)
        return texts[id(value)]

    recipe = config["recipe"]
    shared = [str(recipe.get(name, 0)) for name in sorted(Recipe.shared)]  # a cell of an earlier release lacks the later ones
    stream = [text(config[name]) for name in ("task", "dataset", "numerics")]
    plain = [str(config[name]) for name in ("seed", "repeat", "role", "depends")]
    return (*stream, *plain, *shared, str(position))


def bundles(cells: Iterable[Cell], positions: Mapping[str, Any] | None = None, side_by_side: int = SIDE_BY_SIDE) -> list[Bundle]:
    """Group cells, in their order, at most `side_by_side` to a bundle."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    texts: dict[int, str] = {}
    for cell in cells:
        groups.setdefault(key(cell, (positions or {}).get(cell.id, 0), texts), []).append(cell)
    return [Bundle(tuple(group[start : start + side_by_side])) for group in groups.values() for start in range(0, len(group), side_by_side)]


def work_tflop(bundle: Bundle, n_train: int, flop_per_image: Mapping[str, float], teacher_model: Mapping[str, Any] | None) -> float:
    """Estimated work of a bundle: training passes of its students and one forward pass of the teacher, without evaluation."""
    images = n_train * bundle.cells[0].config["recipe"]["epochs"]
    students = sum(flop_per_image[model_key(cell.config["student"])] for cell in bundle.cells)
    teacher = flop_per_image[model_key(teacher_model)] if teacher_model else 0.0
    return images * ((1 + BACKWARD) * students + teacher) / 1e12


def model_key(model: Mapping[str, Any]) -> str:
    return json.dumps(model, sort_keys=True)
