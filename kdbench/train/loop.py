"""The training loop: one data stream, one teacher, k students side by side, with the same results as if each were trained alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

from kdbench.datasets._base import to_device
from kdbench.errors import StoppedError
from kdbench.isolation import isolated
from kdbench.losses._base import Batch, Taps
from kdbench.train.evaluate import Predictions, measured, predict_all
from kdbench.train.member import NEVER, Member
from kdbench.train.seeds import seed_of
from kdbench.train.stream import BatchPlan
from kdbench.train.teacher import LiveTeacher

Position = tuple[int, int]
"""(epoch, step within it) of the next step."""


class Recorder(Protocol):
    """Saves the results of students."""

    def began(self, member: Member, position: Position) -> None: ...
    def save(self, member: Member, position: Position, must: bool = False) -> None: ...
    def finished(self, member: Member) -> None: ...
    def diverged(self, member: Member, step: int) -> None: ...
    def failed(self, member: Member, error: Exception) -> None: ...


def train(
    members: Sequence[Member],
    plan: BatchPlan,
    teacher: LiveTeacher | None,
    recorder: Recorder,
    start: Position = (0, 0),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train a bundle from `start` to its last epoch. A student that diverges or raises leaves the bundle; the others continue. Raises
    StoppedError if `stop` returns True, after every student was saved at its position."""
    recipe = members[0].recipe
    live = list(members)
    if not recipe["epochs"]:  # taken as it is
        live = _evaluated(live, -1, plan, recorder)
    for epoch in range(start[0], recipe["epochs"]):
        skipped = start[1] if epoch == start[0] else 0
        if not skipped:
            for member in live:
                member.begin_epoch()
        live = [member for member in live if _survives(recorder, member, recorder.began, member, (epoch, skipped))]
        if not live:
            return
        wanted = list(plan.epoch(epoch))[skipped:]
        pairings = sorted({pairing for member in live for pairing in member.objective.elsewhere})
        if teacher:
            teacher.begin_epoch(wanted, epoch * plan.steps + skipped)
        with ExitStack() as readers:  # they end with the epoch, also after an error
            batches = readers.enter_context(closing(plan.data.batches("train", wanted)))
            others_wanted = {pairing: list(plan.epoch(epoch, pairing))[skipped:] for pairing in pairings}
            elsewhere = {
                pairing: readers.enter_context(closing(plan.data.batches("train", places))) for pairing, places in others_wanted.items()
            }
            seconds = {}
            for pairing, augmentation in sorted(set().union(*(member.objective.second_views for member in live))):
                other = plan.second_views(augmentation)
                reader = other.data.batches("train", list(other.epoch(epoch, pairing))[skipped:])
                seconds[pairing, augmentation] = readers.enter_context(closing(reader))
            for step, place in enumerate(wanted, start=skipped):
                if stop():
                    for member in live:
                        _survives(recorder, member, recorder.save, member, (epoch, step), True)
                    raise StoppedError(f"asked to stop in epoch {epoch + 1} at step {step + 1}: saved there")
                total_step = epoch * plan.steps + step
                with isolated(seed_of(plan.streams.augment, total_step)):
                    inputs, targets = next(batches)
                inputs, targets = plan.mixed(inputs, targets, members[0].task, total_step)
                # The second of two stages may have no terms.
                asked = teacher if any(member.objective.terms for member in live) else None
                taps = asked.taps(inputs, place if plan.mixing is None else None) if asked else None
                others: dict[str, Taps] = {}
                for pairing, reader in elsewhere.items():
                    with isolated(seed_of(plan.streams.augment, total_step, pairing)):
                        others[pairing] = teacher.taps(next(reader)[0], others_wanted[pairing][step - skipped]) if teacher else Taps()
                second_views: dict[tuple[str, str], tuple[Any, Taps]] = {}
                for which, reader in seconds.items():
                    with isolated(seed_of(plan.streams.augment, total_step, "second_view", *which)):
                        seen, _ = plan.mixed(*next(reader), members[0].task, total_step)
                        second_views[which] = seen, teacher.taps(seen) if teacher else Taps()
                batch = Batch(targets, to_device(place[0], members[0].device), epoch, total_step, others, second_views)
                live = [member for member in live if _survives(recorder, member, member.step, inputs, targets, batch, taps, step == 0)]
                if not live:
                    return
        live = _ended(live, epoch, plan, recorder)
        if not live:
            return
    for member in live:
        _survives(recorder, member, recorder.finished, member)


def _survives(recorder: Recorder, member: Member, act: Callable[..., bool | None], *arguments: Any) -> bool:
    """Whether the student continues; an error is a failure of this student only."""
    try:
        return act(*arguments) is not False
    except Exception as error:
        recorder.failed(member, error)
        return False


def _evaluated(live: list[Member], epoch: int, plan: BatchPlan, recorder: Recorder) -> list[Member]:
    """End an epoch of some students with an evaluation of all in one pass over the images, and keep what they said of the test images; of
    models that are not trained it is epoch -1. Returns those that go on."""
    metrics: dict[str, dict[str, Any]] = {member.cell.id: {} for member in live}
    for split in ("val", "test"):
        if live and plan.data.size(split):
            found = predict_all(live[0].task, [member.deployed for member in live], plan.data, split, live[0].numerics)
            told = [(member, said, metrics[member.cell.id]) for member, said in zip(live, found, strict=True)]
            live = [member for member, *rest in told if _survives(recorder, member, _judged, member, split, *rest)]
    return [member for member in live if _survives(recorder, member, member.end_epoch, epoch, metrics[member.cell.id])]


def _judged(member: Member, split: str, said: Predictions | Exception, metrics: dict[str, Any]) -> None:
    if isinstance(said, Exception):
        raise said
    metrics[split] = measured(member.task, said)
    if split == "test":
        member.predicted = said


def _ended(live: list[Member], epoch: int, plan: BatchPlan, recorder: Recorder) -> list[Member]:
    """End an epoch: those leave that have a value that is not finite, the others are evaluated where it is time, and saved."""
    live = [member for member in live if _survives(recorder, member, _is_finite, member, epoch, plan, recorder)]
    if not live:
        return live
    last, every = epoch + 1 == live[0].recipe["epochs"], live[0].recipe["evaluate_every"]  # shared by a bundle
    if last or (epoch + 1) % every == 0:
        live = _evaluated(live, epoch, plan, recorder)
    else:
        live = [member for member in live if _survives(recorder, member, member.end_epoch, epoch, {})]
    return live if last else [member for member in live if _survives(recorder, member, recorder.save, member, (epoch + 1, 0))]


def _is_finite(member: Member, epoch: int, plan: BatchPlan, recorder: Recorder) -> bool:
    bad = member.went_bad((epoch + 1) * plan.steps - 1)
    if bad != NEVER:
        member.end_epoch(epoch, {})
        recorder.diverged(member, bad)
    return bad == NEVER
