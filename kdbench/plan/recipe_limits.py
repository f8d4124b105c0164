"""What a recipe asks for that a task, a dataset or a loss of the suite does not have. Importing this module loads no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from kdbench import parts
from kdbench.isolation import isolated
from kdbench.plan.matrix import Plan
from kdbench.plan.schema import Json, Net, ObjectiveSpec
from kdbench.recipes._base import MIXING, OF_DATA, OF_TASK, RAND_AUGMENT_WORDS, Recipe, is_rand_augment, steps_per_epoch


def unmet(plan: Plan, dataset: Any) -> list[str]:
    """Every option of a recipe that cannot be used, with its line, the reason, and what to write instead."""
    suite, found = plan.suite, []

    def problems(net: Net) -> list[tuple[str, str]]:
        return [*_of_task(plan.task, suite.task["name"], net), *_of_dataset(dataset, suite.dataset["name"], net)]

    for section, nets in (("students", suite.students), ("teachers", suite.teachers)):
        for name, net in nets.items():
            for option, problem in problems(net):
                found.append(f"{suite.file.at(_where(plan, section, name, option))}: {section}.{name}: {problem}")
    for objective, net in first_stages(plan):
        known, changes = problems(suite.students[net.name]), objective.first.changes if objective.first else {}
        for option, problem in problems(net):
            if option in changes or (option, problem) not in known:  # else it is that of the student, told above
                where = (*objective.where, "two_stages", option)
                found.append(f"{suite.file.at(where)}: objectives.{objective.name}.two_stages: {problem}")
    seen = set()
    for student, _, name in plan.compared:
        objective, recipe = suite.objectives[name], Recipe.complete(suite.students[student].recipe)
        if "dot" in objective.config and (recipe["optimizer"] != "sgd" or recipe["clip_grad"] is not None):
            problem = "`dot` is a form of `optimizer: sgd` without `clip_grad`, and the recipe has another: change it, or leave out `dot`"
            found.append(f"{suite.file.at(objective.where)}: objectives.{name}: {student}: {problem}")
        elif "dot" in objective.config and recipe["momentum"] + objective.config["dot"] >= 1:
            problem = f"`dot` and the recipe's momentum {recipe['momentum']:g} must be less than 1 in all: write a smaller `dot`"
            found.append(f"{suite.file.at(objective.where)}: objectives.{name}: {student}: {problem}")
        stages = [(objective.config, recipe)]
        stages += [(objective.first.config, Recipe.complete(objective.first.recipes[student]))] if objective.first else []
        for config, its in stages:
            losses = [(term, loss) for term in config["terms"] if (loss := _said(term, suite.sources))]
            asked = [(term["loss"], loss.augmentation) for term, loss in losses if "second_view" in loss.needs]
            found_in = [problem for term, loss in losses for problem in _of_loss(term, loss, its)]
            found_in += [problem for term in config["terms"] for problem in _of_pairing(term, plan.task, dataset)]
            for problem in (*found_in, *_of_second_views(asked, dataset, suite.dataset["name"])):
                if (name, problem) not in seen:
                    seen.add((name, problem))
                    found.append(f"{suite.file.at(objective.where)}: objectives.{name}: {problem}")
    return list(dict.fromkeys(found))


def first_stages(plan: Plan) -> Iterator[tuple[ObjectiveSpec, Net]]:
    """Each first stage that is trained: its objective, and the student with the recipe that it has there."""
    for student, name in dict.fromkeys((student, name) for student, _, name in plan.compared):
        if first := (objective := plan.suite.objectives[name]).first:
            yield objective, replace(plan.suite.students[student], recipe=first.recipes[student])


def slow_averages(plan: Plan, n_train: int | None) -> list[str]:
    """A warning of each moving average that is too slow for its training."""
    found = {}
    for net in (*plan.suite.students.values(), *plan.suite.teachers.values()):
        recipe = Recipe.complete(net.recipe)
        if recipe["ema"] is not None and n_train is not None and recipe["epochs"]:
            updates = recipe["epochs"] * steps_per_epoch(n_train, recipe["batch_size"], recipe["drop_last"])
            found[recipe["ema"], updates] = recipe["ema"] ** updates
    return [
        f"warning: after the {updates:,} updates of a training, {100 * left:.0f} % of its average with decay {decay:g} (`ema`) are still "
        "initial weights: use a smaller decay"
        for (decay, updates), left in found.items()
        if left >= 0.01
    ]


def frozen_at_random(plan: Plan) -> list[str]:
    """A warning of each net of which a recipe freezes weights that nothing has trained."""
    found = []
    for net in (*plan.suite.students.values(), *plan.suite.teachers.values()):
        recipe = Recipe.complete(net.recipe)
        options = [f"`{name}: {recipe[name]}`" for name in ("batch_norm", "frozen_stages") if recipe[name] != Recipe.added[name]]
        if options and recipe["epochs"] and "weights" not in net.model:
            found.append(f"warning: {net.name} begins at random, and part of it is never trained ({', '.join(options)}): give it `weights`")
    return found


def _where(plan: Plan, section: str, name: str, option: str) -> tuple[str | int, ...]:
    """The place of an option: in the recipe of the net if it has one there, else in that of the suite."""
    given = plan.suite.file.data[section]
    own = given.get(name) if isinstance(given, dict) else None
    inside = isinstance(own, dict) and isinstance(own.get("recipe"), dict) and option in own["recipe"]
    return (section, name, "recipe", option) if inside else ("recipe", option)


def _changed(net: Net, options: tuple[str, ...]) -> list[str]:
    """Which of these options the recipe of a net sets. A net that is not trained has none."""
    return [name for name in options if net.recipe["epochs"] and Recipe.complete(net.recipe)[name] != Recipe.added[name]]


def _of_task(task: Any, name: str, net: Net) -> Iterator[tuple[str, str]]:
    known = parts.Part("task", name, task, 0).known()
    for option in _changed(net, OF_TASK):
        if option not in known:
            yield option, f"the task '{name}' has no {option}: leave it out of the recipe"
    if task.mix is parts.contract("task").mix:  # type: ignore[attr-defined]
        for option in _changed(net, MIXING):
            yield option, f"the task '{name}' has no mixed images: leave {option} out of the recipe"
    if net.recipe["class_uniform"] and not task.has_classes:
        yield "class_uniform", f"images of the task '{name}' have no class of their own: leave class_uniform out of the recipe"
    for option in _changed(net, ("accumulate", "bn_groups")) if task.couples == "batch" else ():
        yield option, f"the loss of the task '{name}' needs whole batches: leave {option} out of the recipe"


def _of_dataset(dataset: Any, name: str, net: Net) -> Iterator[tuple[str, str]]:
    for option in () if dataset.augments else _changed(net, OF_DATA):
        yield option, f"the dataset '{name}' has no {option}: leave it out of the recipe"
    if net.recipe["drop_last"] and dataset.n_train is not None and dataset.n_train < net.recipe["batch_size"]:
        few = f"{dataset.n_train} training images are less than a batch of {net.recipe['batch_size']}, and `drop_last` drops it"
        yield "drop_last", few
    recipe = Recipe.complete(net.recipe)
    if dataset.n_train is not None and recipe["warmup_steps"] and recipe["epochs"]:
        steps = recipe["epochs"] * steps_per_epoch(dataset.n_train, recipe["batch_size"], recipe["drop_last"])
        if recipe["warmup_steps"] >= steps:
            yield "warmup_steps", f"the training has {steps:,} updates, and the warm-up of {recipe['warmup_steps']:,} must be shorter"
        elif (
            recipe["schedule"] == "step"
            and min(recipe["milestones"], default=math.inf) * steps / recipe["epochs"] <= recipe["warmup_steps"]
        ):
            first = min(recipe["milestones"])
            yield "milestones", f"the warm-up of {recipe['warmup_steps']:,} updates ends after epoch {first:g}, the first of `milestones`"


class Said(NamedTuple):
    """What a loss declares."""

    needs: frozenset[str]
    couples: str
    takes_mixed: bool
    augmentation: str
    relation: str


def _said(term: Mapping[str, Any], sources: Mapping[str, str]) -> Said | None:
    """None if something is wrong with the loss, which is found where it is tried."""
    try:
        with isolated(0):
            loss = parts.from_config("loss", {**term, "name": term["loss"]}, sources)
            return Said(loss._needs(), loss.couples, loss.takes_mixed, str(loss.augmentation), loss.relation)
    except Exception:
        return None


def second_views_of(terms: list[Json], sources: Mapping[str, str]) -> set[str]:
    """How the second views that these terms need are augmented; empty if they need none."""
    return {loss.augmentation for loss in said_of(terms, sources) if loss and "second_view" in loss.needs}


def said_of(terms: list[Json], sources: Mapping[str, str]) -> Sequence[Said | None]:
    """What the losses of these terms declare; None where something is wrong with one."""
    there = _asked.get(id(terms))
    if there is None or there[0] is not terms or there[1] is not sources:
        chosen = [json.dumps({name: term[name] for name in ("loss", "version", "options")}, sort_keys=True) for term in terms]
        there = terms, sources, tuple(_said_of(text, json.dumps(dict(sources), sort_keys=True)) for text in chosen)
        if len(_asked) >= MOST_ASKED:
            _asked.clear()
        _asked[id(terms)] = there
    return there[2]


MOST_ASKED = 1024
_asked: dict[int, tuple[list[Json], Mapping[str, str], Sequence[Said | None]]] = {}
"""What was answered, by the list itself, which all cells of an objective share: a plan asks for it several times for each cell."""


@lru_cache(maxsize=1024)
def _said_of(term: str, sources: str) -> Said | None:
    return _said(json.loads(term), json.loads(sources))


def _of_second_views(asked: list[tuple[str, str]], dataset: Any, name: str) -> Iterator[str]:
    from kdbench.datasets._fixmatch import NAME

    for called, augmentation in asked:
        if not dataset.augments:
            yield f"the loss '{called}' needs a second view of each image, and the dataset '{name}' has none: choose another loss"
        if augmentation != NAME and not is_rand_augment(augmentation):
            yield f"the `augmentation` {augmentation!r} of the loss '{called}' is not understood: write '{NAME}', or {RAND_AUGMENT_WORDS}"
    if len({augmentation for _, augmentation in asked}) > 1:
        each = "; ".join(f"{called}: {augmentation}" for called, augmentation in asked)
        yield f"its losses need second views that are augmented differently ({each}): give all the same `augmentation`"


def _of_pairing(term: Mapping[str, Any], task: Any, dataset: Any) -> Iterator[str]:
    pairing = term["pairing"]
    if pairing == "shuffled_in_class" and not task.has_classes:
        yield f"the pairing '{pairing}' of '{term['loss']}' needs images with one class each: write `shuffled`"
    elif pairing in ("shuffled_globally", "shuffled_in_class") and not dataset.one_size:
        yield f"the pairing '{pairing}' of '{term['loss']}' needs batches of one size, and these images differ: write `shuffled`"


def _of_loss(term: Mapping[str, Any], loss: Said, recipe: Json) -> Iterator[str]:
    name, mixing, divided = term["loss"], any(recipe[option] for option in MIXING), recipe["accumulate"] > 1
    couples, takes_mixed = loss.couples, loss.takes_mixed or not loss.needs & {"target", "index"}
    if mixing and term["pairing"] in ("shuffled_globally", "shuffled_in_class"):
        text = f"the pairing '{term['pairing']}' gives '{name}' the teacher's outputs for images that are not mixed"
        yield f"{text}: leave mixup and cutmix out of the recipe"
    if mixing and not takes_mixed:
        yield (
            f"the loss '{name}' needs the class or the index of each image, and mixed images have two: leave mixup and cutmix out of the "
            "recipe, or declare `takes_mixed = True` in a loss that is right for them (its `batch.target` is n x classes then)"
        )
    if divided and (couples != "sample" or term["pairing"] != "matched"):
        why = "is given the teacher's outputs for other images of its batch" if couples == "sample" else "compares the images of a batch"
        yield (
            f"the loss '{name}' {why}, and accumulate would give it parts of the batch: leave accumulate out of the recipe, with a smaller "
            'batch_size if the memory is too small (a loss that is a mean over its images declares `couples = "sample"`)'
        )
