"""What each step of an epoch gets: images, targets and the teacher's outputs, in groups where the recipe divides its batches.

A batch is read, mixed and seen by the teacher group by group, so that no number depends on how many ranks share the groups."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdbench.datasets._base import to_device
from kdbench.isolation import isolated
from kdbench.losses._base import OF_SCENES, TAPS, Batch, Taps
from kdbench.scenes import Objects
from kdbench.train.given import Given, Part
from kdbench.train.member import Member
from kdbench.train.ranks import Ranks
from kdbench.train.seeds import seed_of
from kdbench.train.stream import BatchPlan, Place
from kdbench.train.teacher import LiveTeacher


class Feed:
    """Feeds the students of a bundle. `members` are those whose needs count."""

    def __init__(self, plan: BatchPlan, teacher: LiveTeacher | None, members: Sequence[Member], ranks: Ranks):
        self.plan, self.teacher, self.members, self.ranks = plan, teacher, members, ranks
        self.device, self.task = members[0].device, members[0].task
        # The second of two stages may have no terms.
        self.asked = teacher if any(member.objective.terms for member in members) else None
        self.pairings = sorted({pairing for member in members for pairing in member.objective.elsewhere})
        self.seconds = sorted(set().union(*(member.objective.second_views for member in members)))
        self.of_whole = set().union(*(member.objective.of_whole for member in members)) if plan.groups > 1 else set()

    def epoch(self, epoch: int, skipped: int) -> Generator[Given, None, None]:
        """The steps of an epoch after those that are skipped."""
        plan = self.plan
        wanted = list(plan.epoch(epoch))[skipped:]
        if self.teacher:
            self.teacher.begin_epoch(wanted, epoch * plan.steps + skipped)
        with ExitStack() as readers:  # they end with the epoch, also after an error

            def read(plan: BatchPlan, places: Sequence[Place]) -> Generator[tuple[Any, Any], None, None]:
                own = [part for place in places for _, part in plan.divided(place, self.ranks)]
                return readers.enter_context(closing(plan.data.batches("train", own)))

            batches = read(plan, wanted)
            others = {pairing: (places := list(plan.epoch(epoch, pairing))[skipped:], read(plan, places)) for pairing in self.pairings}
            seconds = {}
            for pairing, augmentation in self.seconds:
                other = plan.second_views(augmentation)
                seconds[pairing, augmentation] = read(other, list(other.epoch(epoch, pairing))[skipped:])
            for step, place in enumerate(wanted):
                total_step = epoch * plan.steps + skipped + step
                elsewhere = {
                    pairing: (dict(plan.divided(places[step], self.ranks)), reader) for pairing, (places, reader) in others.items()
                }
                yield self._given(place, epoch, total_step, batches, elsewhere, seconds)

    def _given(self, place: Place, epoch: int, step: int, batches: Any, others: Mapping[str, Any], seconds: Mapping[Any, Any]) -> Given:
        parts = self.ranks.tried(lambda: self._parts(place, epoch, step, batches, others, seconds))
        if self.plan.groups == 1:
            return Given(parts, (len(place[0]),), parts[0].batch, parts[0].teacher)
        classifier = Taps().with_classifier(self.teacher.model).classifier if self.teacher else ()
        return whole(parts, place[0], epoch, step, self.plan.groups, self.of_whole, self.ranks, self.device, classifier)

    def _parts(
        self, place: Place, epoch: int, step: int, batches: Any, others: Mapping[str, Any], seconds: Mapping[Any, Any]
    ) -> tuple[Part, ...]:
        plan, parts = self.plan, []
        for number, mine in plan.divided(place, self.ranks):
            group = (number,) if plan.groups > 1 else ()
            with isolated(seed_of(plan.streams.augment, step, *group)):
                inputs, targets = next(batches)
            inputs, targets = plan.mixed(inputs, targets, self.task, step, *group)
            taps = self.asked.taps(inputs, mine if plan.mixing is None else None) if self.asked else None
            elsewhere: dict[str, Taps] = {}
            for pairing, (there, reader) in others.items():
                with isolated(seed_of(plan.streams.augment, step, pairing, *group)):
                    elsewhere[pairing] = self.teacher.taps(next(reader)[0], there[number]) if self.teacher else Taps()
            second_views: dict[tuple[str, str], tuple[Any, Taps]] = {}
            for which, reader in seconds.items():
                with isolated(seed_of(plan.streams.augment, step, "second_view", *which, *group)):
                    seen, _ = plan.mixed(*next(reader), self.task, step, *group)
                    second_views[which] = seen, self.teacher.taps(seen) if self.teacher else Taps()
            batch = Batch(targets, to_device(mine[0], self.device), epoch, step, elsewhere, second_views)
            parts.append(Part(number, inputs, targets, batch, taps))
        return tuple(parts)


def whole(
    parts: tuple[Part, ...],
    index: Any,
    epoch: int,
    step: int,
    groups: int,
    needs: set[str],
    ranks: Ranks,
    device: torch.device,
    classifier: Sequence[Tensor] = (),
) -> Given:
    """A step in groups, with what of the whole batch is needed (names of `Taps` and `Batch`): of all ranks. `classifier` is the
    teacher's."""
    counts = counts_of(len(index), groups, ranks.world)
    batch = Batch(None, to_device(index, device), epoch, step)
    if not needs:
        return Given(parts, counts, batch)
    pieces = _pieces(parts, needs)
    objects = _objects(pieces, counts, ranks) if "target" in needs else None
    found = ranks.rows({name: torch.cat(each) for name, each in pieces.items()}, counts)
    sides: dict[Any, dict[Hashable, Tensor]] = {}
    for (side, *name), tensor in found.items():  # type: ignore[misc]
        sides.setdefault(side, {})[tuple(name)] = tensor
    target = objects.to(device) if objects is not None else sides.pop("target", {(): None})[()]
    of_teacher = {side: replace(taps_of(values), classifier=classifier) for side, values in sides.items()}
    teacher = of_teacher.pop("teacher", Taps(classifier=classifier))
    others = {which: taps for (kind, which), taps in of_teacher.items() if kind == "other"}
    seconds = {which: (None, taps) for (kind, which), taps in of_teacher.items() if kind == "second"}
    return Given(parts, counts, Batch(target, batch.index, epoch, step, others, seconds), teacher)


def _objects(pieces: dict[Hashable, list[Any]], counts: Sequence[int], ranks: Ranks) -> Objects | None:
    """The targets of the whole batch, taken out of the pieces, where they are objects in images and no tensor; else None."""
    own = pieces.get(("target",), [])
    are_objects = any(isinstance(one, Objects) for one in own)
    if not all(counts):  # a rank without an image does not know it
        are_objects = any(ranks.told(are_objects))
    if not are_objects:
        return None
    pieces.pop(("target",), None)
    told = ranks.told([one.to(torch.device("cpu")) for one in own])
    return Objects.joined([one for each in told for one in each])


def _pieces(parts: Sequence[Part], needs: set[str]) -> dict[Hashable, list[Tensor]]:
    """By side and tap, the rows of each group."""
    pieces: dict[Hashable, list[Tensor]] = {}

    def add(side: Any, tensors: Mapping[Hashable, Tensor]) -> None:
        for name, tensor in tensors.items():
            pieces.setdefault((side, *name), []).append(tensor)  # type: ignore[misc]

    for part in parts:
        if part.teacher is not None:
            add("teacher", tensors_of(part.teacher, needs))
        if "target" in needs:
            add("target", {(): part.targets})
        for which, taps in (part.batch.others or {}).items():
            add(("other", which), tensors_of(taps, needs))
        for view, (_, taps) in part.batch.second_views.items():
            add(("second", view), tensors_of(taps, needs))
    return pieces


def counts_of(n: int, groups: int, world: int) -> tuple[int, ...]:
    """How many images of a batch of n in groups each of `world` ranks has."""
    return tuple(
        sum(len(one) for one in torch.arange(n).tensor_split(groups)[groups * r // world : groups * (r + 1) // world]) for r in range(world)
    )


def tensors_of(taps: Taps, names: set[str]) -> dict[Hashable, Tensor]:
    """Those of a model's taps that have these names, and those of its second view where `second_view` is among them. The names of levels
    have their strides."""
    found: dict[Hashable, Tensor] = {}
    for name in TAPS:
        if name in names and taps.has(name) and name != "regions":  # batches of detectors are not divided
            value = getattr(taps, name)
            if not isinstance(value, tuple):
                found[(name,)] = value
            elif name in OF_SCENES:
                found |= {(name, place, stride): one for place, (stride, one) in enumerate(zip(taps.strides, value, strict=True))}
            else:
                found |= {(name, place): one for place, one in enumerate(value)}
    if "second_view" in names and taps.has("second_view"):
        assert taps.second_view is not None
        found |= {("second_view", *name): one for name, one in tensors_of(taps.second_view, names - {"second_view"}).items()}  # type: ignore[misc]
    return found


def taps_of(tensors: Mapping[Hashable, Tensor]) -> Taps:
    """The taps that `tensors_of` took apart."""
    given: dict[str, Any] = {}
    for (name, *rest), tensor in tensors.items():  # type: ignore[misc]
        if name == "second_view":
            given.setdefault(name, {})[tuple(rest)] = tensor
        elif rest:
            given[name] = (*given.get(name, ()), tensor)
            if len(rest) > 1 and rest[1] not in given.get("strides", ()):
                given["strides"] = (*given.get("strides", ()), rest[1])
        else:
            given[name] = tensor
    if "second_view" in given:
        given["second_view"] = taps_of(given["second_view"])
    return Taps(**given)
