"""The verb `plan`: what `run` will do, in text or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from kdbench import parts
from kdbench.plan import matrix, probe
from kdbench.plan.bundle import Bundle, bundles
from kdbench.plan.groups import group_lines
from kdbench.plan.matrix import ALPHA, Plan
from kdbench.plan.needs import disk_line
from kdbench.plan.nets import images_of_weights
from kdbench.plan.probe import MANY, Probes
from kdbench.plan.provider import Provided, has_gpu, provided
from kdbench.plan.recipe_limits import frozen_at_random, slow_averages
from kdbench.plan.schema import Suite
from kdbench.plan.suite import read
from kdbench.recipes._base import Recipe, steps_per_epoch
from kdbench.store import Store, cell_state

POWER = 0.8
ENOUGH_REPEATS = 5
BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 30
NAMES = 6
"""How many nets are named that have the same learning rates."""


class PlanSummary:
    """A plan held against the results folder. `states` are by cell id, in the words of `cell_state`."""

    def __init__(self, plan: Plan, probes: Probes, store: Store):
        self.plan, self.probes, self.store = plan, probes, store
        there = bool(store.entries(store.root / "cells"))
        self.states = {cell_id: cell_state.of(store, cell_id).name if there else "waiting" for cell_id in plan.cells}
        self.bundles = bundles(plan.cells.values())

    @classmethod
    def of(cls, suite: Path, results: Path) -> PlanSummary:
        """Raises SuiteError with all errors of the suite."""
        plan = matrix.expand(read(suite))
        return cls(plan, probe.probe(plan), Store(results))

    @cached_property
    def provided(self) -> list[Provided]:
        """Where the outputs of teachers come from on a machine like this."""
        return provided(self.plan, self.probes, self.store, has_gpu())

    def work(self, *some: Bundle) -> float:
        """TFLOP of the training of some bundles."""
        return sum(self.probes.work_tflop(self.plan, bundle) for bundle in some)

    def left(self) -> list[Bundle]:
        """What is not done of each bundle."""
        undone = [tuple(cell for cell in bundle.cells if self.states[cell.id] not in cell_state.DONE) for bundle in self.bundles]
        return [Bundle(cells) for cells in undone if cells]


def as_json(suite: Path, results: Path) -> str:
    """`{"cells": [...], "bundles": [...], "teachers": [...], "teacher_outputs": [...]}`, ids as in the results folder."""
    outlook = PlanSummary.of(suite, results)
    plan = outlook.plan

    def row(one: matrix.Row) -> dict[str, Any]:
        names = {key: getattr(one, key) for key in matrix.NAMES}
        cell = one.cell
        return {"id": cell.id, **names, "state": outlook.states[cell.id], "depends": dict(cell.depends), "config": cell.config}

    message = {
        "cells": [row(one) for one in plan.rows],
        "bundles": [
            {"cells": one.ids, "teacher": one.teacher, "tflop": None if outlook.probes.n_train is None else outlook.work(one)}
            for one in outlook.bundles
        ],
        "teachers": [{**row(one), "min_teacher_metric": plan.suite.teachers[one.student].min_teacher_metric} for one in plan.teachers],
        "teacher_outputs": [one.to_json() for one in outlook.provided],
    }
    return json.dumps(message, indent=1)


def as_text(suite: Path, results: Path, time_left: Callable[[PlanSummary], str] = lambda _: "") -> str:
    """`time_left` says how long the rest takes, after a comma or in brackets."""
    outlook = PlanSummary.of(suite, results)
    plan, asked, left = outlook.plan, outlook.plan.suite, outlook.left()
    counts = Counter(outlook.states.values())
    trials = sum(row.role == "trial" for row in plan.rows)
    students = sum(row.role == "student" for row in plan.rows)
    firsts = sum(row.role == "first_stage" for row in plan.rows)
    trained = sum(bool(row.cell.config["recipe"]["epochs"]) for row in plan.teachers)
    others = f" ({len(plan.teachers) - trained} more are not trained)" if trained < len(plan.teachers) else ""
    stages = f", {firsts} first stage{'s' * (firsts != 1)}" if firsts else ""
    lines = [
        f"{asked.name}: {len(plan.cells)} cells ({', '.join(f'{count} {name}' for name, count in sorted(counts.items()))})",
        f"  trainings: {trained} teacher{'s' * (trained != 1)}{others}, {students} student{'s' * (students != 1)}"
        f"{f', {trials} trials of tuning and their teachers' if trials else ''}"
        f"{stages} "
        f"(objectives: {len(asked.objectives)}, pairs: {len(asked.pairs)}, repeats: {asked.repeats}, teacher seeds: {asked.teacher_seeds})",
        f"  bundles (students that are trained together in one process): {len(outlook.bundles)}, {len(left)} of them not finished",
        _work(outlook, left) + time_left(outlook),
        disk_line(plan, outlook.probes),
        "teachers:",
        *(f"  {row.cell.id}  {row.student}, seed {row.repeat}: {outlook.states[row.cell.id]}" for row in plan.teachers),
        *(f"  note: {text}" for net in asked.teachers.values() if (text := images_of_weights(net, asked.dataset))),
        *_provider_lines(outlook),
        *group_lines(plan, outlook.probes),
        *(f"note: {one}" for one in outlook.probes.notes),
        *(f"not tried here (`kdbench check` tries it): {one}" for one in outlook.probes.untried),
        *learning_rate_lines(outlook),
        *slow_averages(plan, outlook.probes.n_train),
        *frozen_at_random(plan),
        *power_lines(plan),
    ]
    return "\n".join(lines)


def _provider_lines(outlook: PlanSummary) -> list[str]:
    """Where the outputs of each teacher come from; seeds of one teacher that are alike share a line."""
    titles = {"teacher": "teacher {}", "trial": "teacher {} of the tuning", "control": "untrained teacher {}"}
    names = {row.cell.id: titles[row.role].format(row.student) for row in outlook.plan.rows if row.objective is None}
    lines = Counter(f"{names[one.teacher]}: {one.text}" for one in outlook.provided)
    return [f"  {line}{f' (each of {count} seeds)' * (count > 1)}" for line, count in lines.items()]


def learning_rate_lines(outlook: PlanSummary) -> list[str]:
    """The learning rates of each recipe by epoch, from the schedule that training uses, and the nets that have it."""
    from kdbench.timm_adapter import learning_rates

    titles = {"student": "{0}", "teacher": "teacher {0}", "first_stage": "{0}, first stage of {1}"}
    rows = [(titles[row.role].format(row.student, row.objective), row) for row in outlook.plan.rows if row.role in titles]
    nets = {title: row.cell.config["recipe"] for title, row in rows}
    named: dict[str, list[str]] = {}
    for name, given in nets.items():
        if given["epochs"]:
            recipe = Recipe.complete(given)
            steps = steps_per_epoch(outlook.probes.n_train or MANY, recipe["batch_size"], recipe["drop_last"]) or 1
            columns = min(recipe["epochs"], COLUMNS)
            curve = learning_rates(recipe, steps, [column * recipe["epochs"] / columns for column in range(columns)])
            bars = "".join(BARS[round(rate / max(curve) * (len(BARS) - 1))] for rate in curve)
            at = _moments(recipe)
            rates = ", ".join(f"{rate:.3g} at {epoch:g}" for rate, epoch in zip(learning_rates(recipe, steps, at), at, strict=True))
            named.setdefault(f"{bars} {rates}{_factors(recipe)}", []).append(name)
    lines = [f"  {', '.join(names[:NAMES])}{' and others' * (len(names) > NAMES)}: {text}" for text, names in named.items()]
    return ["learning rate by epoch (the first is 0):", *lines, *_batch_notes(outlook.plan.suite)]


def _moments(recipe: Mapping[str, Any]) -> list[float]:
    """The epochs at which the rate changes its course, and for a cosine some in between."""
    epochs, warmup = recipe["epochs"], recipe["warmup_epochs"]
    later = {"step": recipe["milestones"], "constant": []}.get(recipe["schedule"])
    if later is None:
        later = [*(warmup + round((epochs - warmup) * quarter / 4) for quarter in (1, 2, 3)), epochs - 1]
    return sorted({0, warmup, *later})


def _factors(recipe: Mapping[str, Any]) -> str:
    layers = "" if recipe["layer_decay"] is None else f"; times {recipe['layer_decay']:g} for each layer below the head"
    return layers + ("" if recipe["loss_lr_scale"] == 1 else f"; times {recipe['loss_lr_scale']:g} for parameters of losses")


def _batch_notes(suite: Suite) -> list[str]:
    """What the linear rule gives where the batch is not the recipe's own and the learning rate is."""
    given = suite.file.data["recipe"]
    name = given if isinstance(given, str) else given["name"]
    make = parts.load("recipe", name, suite.file.path.parent).make
    batch, lr = getattr(make, "batch_size", None), getattr(make, "lr", None)
    trained = [net.recipe for net in (*suite.students.values(), *suite.teachers.values()) if net.recipe["epochs"]]
    others = sorted({one["batch_size"] for one in trained if lr and batch and one["lr"] == lr and one["batch_size"] != batch})
    return [
        f"note: the learning rate {lr:g} of {name} is for batches of {batch}; for {other} the linear rule gives {lr * other / batch:.3g}"
        for other in others
    ]


def power_lines(plan: Plan) -> list[str]:
    """Which differences the tests can find with the repeats of the suite, and a warning where the repeats are few."""
    from kdbench.stats.power import detectable_difference, paired_power

    repeats, n_pairs, in_pairs = plan.suite.repeats, len(plan.suite.pairs), len(plan.comparisons)
    overall = len({(baseline, name) for _, _, baseline, name in plan.comparisons})
    if not overall:
        return ["no comparisons: the suite has no baseline, or no other objective"]
    if repeats < 2:
        return [f"warning: with 1 repeat no difference is tested. Use {ENOUGH_REPEATS} or more repeats."]
    # (words, comparisons in the family, pairs in the mean): the mean over independent pairs has an sd smaller by the root of their number.
    families = [(f"mean over all {n_pairs} pairs", overall, n_pairs)] * (n_pairs > 1) + [("one pair", in_pairs, 1)]
    usual = plan.task.usual_sd
    sd = (usual or 0.0) * 2**0.5
    lines = [
        f"smallest true difference that {repeats} repeats find ({100 * POWER:.0f} % power, alpha {ALPHA:g}); "
        "sd: standard deviation of a paired difference:"
    ]
    for words, size, pairs in families:
        found = detectable_difference(repeats, ALPHA, size, POWER) / pairs**0.5
        step = f" (strictest step of Holm, {size} comparisons)" if size > 1 else ""
        example = f"; this is {found * sd:.2g} points if the sd is {sd:.2f} points" if usual and plan.metrics[0].percent else ""
        lines.append(f"  {words}: {found:.2g} sd{step}{example}")
    if repeats < ENOUGH_REPEATS and usual and plan.metrics[0].percent:
        powers = [f"{100 * paired_power(pairs**0.5 / sd, repeats, ALPHA / size):.0f} % ({words})" for words, size, pairs in families]
        lines += [
            f"warning: {repeats} repeats are few: they find a true difference of 1 point with a probability of {' and '.join(powers)}.",
            f"  Use {ENOUGH_REPEATS} or more repeats. Assumed: the sd of one run is {usual:g} points (usual on all of CIFAR-100;",
            f"  larger on small datasets), so that of a difference is {sd:.2f} points; paired runs are uncorrelated",
            "  (the worst case), and so are the results of different pairs.",
        ]
    return lines


def _work(outlook: PlanSummary, left: list[Bundle]) -> str:
    if outlook.probes.n_train is None:
        return "  work: unknown, because the dataset does not declare its number of training images"
    return f"  work: {outlook.work(*outlook.bundles):.3g} TFLOP in total, {outlook.work(*left):.3g} left"
