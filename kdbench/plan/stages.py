"""The two stages of an objective: what `two_stages` of a suite or a preset says, and the recipe of each first stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from kdbench import parts
from kdbench.plan.reading import FileReader
from kdbench.plan.schema import FirstStage, Json, Net, ObjectiveSpec
from kdbench.plan.tuning import largest
from kdbench.plan.yaml import Where
from kdbench.recipes._base import Recipe

WORDS = ("weight", "then")
"""What `two_stages` may say besides options of the recipe."""


def first_stage(reader: FileReader, where: Where, terms: list[Json], words: Json, known: bool) -> FirstStage | None:
    """The first stage of an objective with these terms: they alone, without schedules, with the options that their losses have there.
    None after an error was noted. `known`: whether the terms have a weight of their own."""
    changes = {name: value for name, value in words.items() if name not in WORDS}
    if "epochs" not in changes:
        reader.error(where, "the first stage needs `epochs`")
        return None
    if "ema" in changes:
        reader.error((*where, "ema"), "the second stage starts from the last weights of the first, not from their average: leave it out")
    weight = words.get("weight")
    if weight is not None:
        weight = reader.checked((*where, "weight"), Annotated[float, Field(gt=0, allow_inf_nan=False)], weight)
    elif not known:
        reader.error(where, "no source gives a weight for the first stage, and `tune` searches for that of the second: write `weight` here")
    found = [_alone(reader, where, term, weight) for term in terms]
    config = {"task": 0.0, "terms": [term for term in found if term], "stage": "first"}
    return FirstStage(config, changes) if all(found) else None


def _alone(reader: FileReader, where: Where, term: Json, weight: float | None) -> Json | None:
    """A term as it is in the first stage; None after an error was noted."""
    folder = reader.sources.get(term["loss"])
    part = parts.load("loss", term["loss"], None if folder is None else Path(folder), reader.base)
    if not isinstance(own := part.make.first_stage_options, Mapping):
        reader.error(where, f"the loss '{part.name}' has `first_stage_options` that are no mapping of its options")
        return None
    if (options := reader.resolved(where, part, {**term["options"], **own})) is None:
        return None
    kept = {name: term[name] for name in ("loss", "version", "pairing")}
    return {**kept, "options": options, "weight": float(largest(term["weight"]) if weight is None else weight)}


def with_recipes(
    reader: FileReader, given: str | Json | None, students: Mapping[str, Net], objectives: Mapping[str, ObjectiveSpec]
) -> dict[str, ObjectiveSpec]:
    """The objectives, each first stage with the recipe of each student. Errors are noted."""
    found, settled = dict(objectives), dict[str, dict[str, Json]]()
    name = given if isinstance(given, str) else (given or {}).get("name")
    for objective in objectives.values():
        if objective.first is None or not isinstance(name, str):
            continue
        changes, recipes = objective.first.changes, dict[str, Json]()
        key = json.dumps(changes, sort_keys=True, default=str)
        if key not in settled:
            for student, net in students.items():
                if not net.recipe or (recipe := _recipe(reader, objective.where, name, net, changes)) is None:
                    break
                recipes[student] = recipe
            settled[key] = recipes
        found[objective.name] = replace(objective, first=replace(objective.first, recipes=settled[key]))
    return found


def _recipe(reader: FileReader, where: Where, name: str, net: Net, changes: Json) -> Json | None:
    """A student's recipe with the changes of the first stage, which is evaluated at its end alone: its classifier is not trained."""
    part = reader.load(("recipe",), "recipe", name)
    if part is None:
        return None
    changes = {name: value for name, value in changes.items() if name != "ema"}
    recipe = reader.resolved((*where, "two_stages"), part, changes, WORDS, _base(reader, part, net))
    if recipe is None:
        return None
    kept = {name: value for name, value in recipe.items() if name != "ema"}
    return kept if "evaluate_every" in changes else {**kept, "evaluate_every": kept["epochs"]}


def _base(reader: FileReader, part: parts.Part, net: Net) -> Json:
    """The recipe that a first stage changes: that of the student. An option that has the value of `added` is left out, as where nobody
    states it, unless somebody does: the suite, the student, or the recipe's own file with another default."""
    students = reader.file.data["students"]
    own = students.get(net.name) if isinstance(students, dict) else None
    stated = reader.file.data["recipe"], own.get("recipe") if isinstance(own, Mapping) else None
    names = {name for one in stated if isinstance(one, Mapping) for name in one} | set(part.options(net.recipe))
    return {name: value for name, value in Recipe.complete(net.recipe).items() if name in names}
