"""What the groups of batches (`bn_groups`) mean for a plan: how many ranks can share them, and what the ranks send each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdbench.plan.bundle import model_key
from kdbench.plan.matrix import Plan
from kdbench.plan.probe import Probes
from kdbench.plan.provider import decimal
from kdbench.plan.recipe_limits import said_of
from kdbench.recipes._base import Recipe, fitting_ranks

LARGE_MB = 16
"""So much in a step is worth a line: between GPUs of one machine it takes about a millisecond, between machines several."""
LINES = 6


def group_lines(plan: Plan, probes: Probes) -> list[str]:
    """Of a recipe that divides its batches; losses that send much are listed."""
    recipes = [Recipe.complete(net.recipe) for net in plan.suite.students.values()]
    grouped = [recipe for recipe in recipes if recipe["bn_groups"] > 1]
    if not grouped:
        return []
    groups, batch, numerics = grouped[0]["bn_groups"], grouped[0]["batch_size"], plan.suite.numerics["name"]
    which = fitting_ranks(groups, numerics)
    said = f"groups: each batch of {batch} is divided into {groups} (`bn_groups`), which {which} ranks can share (`--ranks`)"
    sizes = sorted(((size, what) for what, size in set(_sent(plan, probes))), reverse=True)
    large = [
        f"  {what}: {decimal(size)} of outputs go from each rank to all others in a step" for size, what in sizes if size > LARGE_MB * 1e6
    ]
    more = [f"  and {len(large) - LINES} more of more than {LARGE_MB} MB"] if len(large) > LINES else []
    return [said, *large[:LINES], *more]


def _sent(plan: Plan, probes: Probes) -> Iterator[tuple[str, int]]:
    """(objective and pair, bytes): the outputs of student and teacher that losses of the whole batch need, for a batch."""
    for row in plan.rows:
        if row.role != "student" or not row.teacher or row.repeat:
            continue
        teacher = plan.cells[row.cell.depends["teacher"]]
        terms = row.cell.config["objective"]["terms"]
        needs = {
            name
            for term, loss in zip(terms, said_of(terms, row.cell.sources), strict=True)
            if loss and (loss.couples == "batch" or term["pairing"] == "shuffled")
            for name in loss.needs
        }
        size = sum(_bytes_of_an_image(probes.models[model_key(one.config["student"])].taps, needs) for one in (row.cell, teacher))
        views = 2 if "second_view" in needs else 1
        yield f"{row.objective} ({row.student} <- {row.teacher})", size * views * row.cell.config["recipe"]["batch_size"]


def _bytes_of_an_image(taps: Any, needs: set[str]) -> int:
    held: Mapping[str, Any] = vars(taps)
    tensors = [
        one for name in needs if held.get(name) is not None for one in (held[name] if isinstance(held[name], tuple) else (held[name],))
    ]
    return sum(one[0].numel() * one.dtype.itemsize for one in tensors if hasattr(one, "numel") and one.ndim)
