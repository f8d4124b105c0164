"""A small copy of a suite: the same nets, losses and verbs from end to end, with few images and epochs. Its results mean nothing."""

from __future__ import annotations

from pathlib import Path

from kdbench import parts
from kdbench.errors import UsageError
from kdbench.plan import suite as suites
from kdbench.plan.schema import Json

EPOCHS = 2
OF_WEIGHTS = {"weights", "head", "train", "within", "input_size", "mean", "std"}
OF_LENGTH = {"epochs", "batch_size", "milestones", "warmup_epochs", "accumulate", "class_uniform", "warmup_steps"}


def small(path: Path) -> Json:
    """The data of the small copy of a suite. Teachers are trained, from initial weights, since pretrained ones have other classes.
    Raises SuiteError for a suite that is wrong, UsageError for one that cannot be made small."""
    suite = suites.read(path)
    if suite.tuning:
        raise UsageError(f"{path}: --small does not shorten the search of `tune`: copy the suite without --small, and change `tune`")
    given = dict(suite.file.data)
    kind = parts.load("dataset", suite.dataset["name"], path.parent)
    task = parts.load("task", suite.task["name"], path.parent).make
    primary = task.primary().name
    declared = {*OF_WEIGHTS, f"declared_{primary}", f"min_{primary}"}
    for section in ("teachers", "students"):
        if isinstance(given[section], dict):
            given[section] = {name: _net(net, declared) for name, net in given[section].items()}
    recipe = _named(given["recipe"])
    warmup = {"warmup_epochs": 1} if suite.students and any(net.recipe["warmup_epochs"] for net in suite.students.values()) else {}
    if suite.students and any(net.recipe.get("warmup_steps") for net in suite.students.values()):
        warmup["warmup_steps"] = 1
    given["recipe"] = {**_without(recipe, OF_LENGTH), "epochs": EPOCHS, "batch_size": task.small_batch, **warmup}
    given["dataset"] = {**_named(given["dataset"]), **task.few_images(kind.known(), suite.dataset["options"])}
    given["description"] = f"A small copy of {suite.name}, to try it from end to end: its results mean nothing."
    given |= {"repeats": 1, "teacher_seeds": 1, f"min_{primary}": 0.0}
    return given


def _net(given: Json | None, declared: set[str]) -> Json | None:
    net = _without(given or {}, declared)
    return {**net, **({"recipe": _without(net["recipe"], OF_LENGTH)} if net.get("recipe") else {})} or None


def _named(given: str | Json) -> Json:
    return {"name": given} if isinstance(given, str) else dict(given)


def _without(given: Json, keys: set[str]) -> Json:
    return {key: value for key, value in given.items() if key not in keys}
