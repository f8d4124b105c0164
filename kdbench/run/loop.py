"""The training loop: one data stream, one teacher, k students side by side, each as if it were alone. Read it from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch

from kdbench.errors import StoppedError
from kdbench.losses._base import Batch, Taps
from kdbench.run.evaluate import evaluate
from kdbench.run.member import NEVER, Member
from kdbench.run.stream import BatchPlan

Position = tuple[int, int]
"""(epoch, step within it) of the next step."""


class Provider(Protocol):
    """What gives the teacher's taps for a batch: by a forward pass, or looked up."""

    def taps(self, inputs: Any, index: Any, views: Any) -> Taps: ...


class Keeper(Protocol):
    """What becomes of a student outside the loop; knows the disk."""

    def began(self, member: Member, position: Position) -> None: ...
    def save(self, member: Member, position: Position, must: bool = False) -> None: ...
    def finished(self, member: Member) -> None: ...
    def diverged(self, member: Member, step: int) -> None: ...
    def failed(self, member: Member, error: Exception) -> None: ...


def train(
    members: Sequence[Member],
    plan: BatchPlan,
    teacher: Provider | None,
    keeper: Keeper,
    start: Position = (0, 0),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train a bundle from `start` to its last epoch. A student that diverges or raises leaves; the others go on.

    Raises:
        StoppedError: `stop` said so, after every student was saved where it stands.
    """
    recipe = members[0].recipe
    live = list(members)
    if not recipe["epochs"]:  # taken as it is
        live = [member for member in live if _survives(keeper, member, _as_it_is, member, plan)]
    for epoch in range(start[0], recipe["epochs"]):
        skipped = start[1] if epoch == start[0] else 0
        for member in live:
            if not skipped:
                member.begin_epoch()
            keeper.began(member, (epoch, skipped))
        wanted = list(plan.epoch(epoch))[skipped:]
        with closing(plan.data.batches("train", wanted)) as batches:  # what reads ahead ends with the epoch, however that ends
            for step, (index, views) in enumerate(wanted, start=skipped):
                if stop():
                    for member in live:
                        keeper.save(member, (epoch, step), must=True)
                    raise StoppedError(f"asked to stop in epoch {epoch + 1} at step {step + 1}: saved there")
                inputs, targets = next(batches)
                taps = teacher.taps(inputs, index, views) if teacher else None
                batch = Batch(targets, torch.as_tensor(index, device=members[0].device), epoch, epoch * plan.steps + step)
                live = [member for member in live if _survives(keeper, member, _step, member, inputs, targets, batch, taps, step == 0)]
                if not live:
                    return
        live = [member for member in live if _survives(keeper, member, _end, member, epoch, plan, keeper)]
        if not live:
            return
    for member in live:
        _survives(keeper, member, keeper.finished, member)


def _survives(keeper: Keeper, member: Member, act: Callable[..., bool | None], *arguments: Any) -> bool:
    """Whether the student goes on; what it raises is its own failure, and nobody else's."""
    try:
        return act(*arguments) is not False
    except Exception as error:
        keeper.failed(member, error)
        return False


def _step(member: Member, inputs: Any, targets: Any, batch: Batch, taps: Taps | None, first: bool) -> None:
    member.step(inputs, targets, batch, taps, first)


def _as_it_is(member: Member, plan: BatchPlan) -> None:
    """Evaluate what is not trained; its history has one entry, before any epoch."""
    member.end_epoch(-1, {split: evaluate(member.task, member.deployed, plan.data, split, member.numerics) for split in _splits(plan)})


def _splits(plan: BatchPlan) -> list[str]:
    return [split for split in ("val", "test") if plan.data.size(split)]


def _end(member: Member, epoch: int, plan: BatchPlan, keeper: Keeper) -> bool:
    """Close an epoch: leave if a number went bad, else evaluate and save."""
    bad = member.went_bad((epoch + 1) * plan.steps - 1)
    if bad != NEVER:
        member.end_epoch(epoch, {})
        keeper.diverged(member, bad)
        return False
    last = epoch + 1 == member.recipe["epochs"]
    evaluated = {}
    if last or (epoch + 1) % member.recipe["evaluate_every"] == 0:
        evaluated = {split: evaluate(member.task, member.deployed, plan.data, split, member.numerics) for split in _splits(plan)}
    member.end_epoch(epoch, evaluated)
    if not last:
        keeper.save(member, (epoch + 1, 0))
    return True
