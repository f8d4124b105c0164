"""Step times that were measured on this machine, kept in `profiles/step_times.json` for estimates: no result depends on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import NonNegativeFloat, TypeAdapter, ValidationError

from kdbench.errors import StoreError
from kdbench.recipes._base import MIXING, OF_DATA, Recipe
from kdbench.store.store import Store

COSTLY = ("batch_size", "accumulate", "optimizer", "clip_grad", "ema", *MIXING, *OF_DATA)
"""The options of a recipe that change what a step costs."""
Times = dict[str, NonNegativeFloat]
FORM = TypeAdapter(dict[str, Times])


class StepTimes:
    """By what was measured, its numbers, with units in their names. `machine` is whatever tells one device with its libraries from others;
    a file that is damaged counts as empty."""

    def __init__(self, store: Store, machine: Mapping[str, Any]):
        self.store, self.machine = store, dict(machine)
        self.path = store.root / "profiles" / "step_times.json"
        self.new: dict[str, Times] = {}
        self.known = self._read()

    def _read(self) -> dict[str, Times]:
        try:
            return FORM.validate_python(self.store.json(self.path) or {})
        except ValidationError:
            return {}

    def get(self, *what: Any) -> Times | None:
        return self.known.get(self._key(what))

    def put(self, *what: Any, **numbers: float) -> None:
        key = self._key(what)
        self.new[key] = self.known[key] = {name: round(value, 6) for name, value in numbers.items()}

    def save(self) -> None:
        """Beside what other processes have saved since; nothing happens in a results folder that cannot be written."""
        if self.new:
            with suppress(StoreError):
                self.store.write_json(self.path, {**self._read(), **self.new})

    def _key(self, what: tuple[Any, ...]) -> str:
        return hashlib.sha256(json.dumps([self.machine, *what], sort_keys=True).encode()).hexdigest()[:12]


def stream_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a cell's configuration, what decides the cost of its batches. Trials and final trainings share it."""
    recipe, dataset = Recipe.complete(config["recipe"]), config["dataset"]
    options = {name: value for name, value in dataset["options"].items() if name != "validation"}
    return {"dataset": {**dataset, "options": options}, "recipe": {name: recipe[name] for name in COSTLY}, "numerics": config["numerics"]}


def student_of(config: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    """What decides the cost of a student's step. `teacher` is the teacher's net. Weights cost nothing."""
    objective = config["objective"]
    terms = [[term["loss"], term["options"], term["pairing"]] for term in objective["terms"]]
    return {"student": config["student"], "terms": terms, "dot": "dot" in objective, "teacher": teacher if terms else None}
