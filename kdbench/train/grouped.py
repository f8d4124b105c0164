"""A student whose batches are divided into groups (`bn_groups`), which several ranks may share.

Each group has its own forward and backward pass, and so its own statistics of batch norm. Losses that compare images see the whole batch:
their gradient of the student's outputs is found first, by every rank alike, and goes into the backward pass of each group. The gradients of
the groups are added in pairs. With numerics `exact` on the CPU no bit depends on how many ranks there are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.choice import Point
from kdbench.isolation import isolated
from kdbench.losses._base import Batch, Taps
from kdbench.train.dot import Dot
from kdbench.train.feed import taps_of, tensors_of, whole
from kdbench.train.given import Given, Part
from kdbench.train.member import Member, relative_sizes
from kdbench.train.ranks import in_pairs
from kdbench.train.seeds import seed_of

Values = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Group:
    """A group after its forward pass. `taps` are those that losses of the whole batch need; `share`: its part of the images; `buffers`: the
    running statistics, and other numbers that a forward pass may change, and `moved`, which it has."""

    rows: slice
    share: float
    values: Values
    taps: dict[Hashable, Tensor]
    buffers: list[Tensor]
    moved: list[bool]


@dataclass
class Forward:
    """A batch after the forward passes: the groups of this rank by number, and of the losses of the whole batch the student's outputs that
    they got, and their values. `names` are those of the groups' values."""

    groups: dict[int, Group]
    leaves: dict[Hashable, Tensor]
    values: Values
    names: list[str]


@dataclass
class Pull:
    """Something whose gradient is wanted: its value in each group, and of the whole batch its gradients of the student's outputs and
    directly of weights."""

    of_group: Callable[[Group], Tensor | None]
    outputs: Mapping[Hashable, Tensor]
    weights: Sequence[Tensor | None]


@dataclass
class Summed:
    """`gradients`: of each pull, those of the weights; `values`: of the whole batch."""

    gradients: list[list[Tensor | None]]
    values: Values


class GroupedMember(Member):
    """A student of batches in groups."""

    def step(self, inputs: Any, targets: Any, batch: Batch, teacher: Taps | None, first: bool = False) -> None:
        assert batch.index is not None
        pieces = np.array_split(np.arange(len(batch.index)), self.recipe["bn_groups"])
        own = [(number, pieces[number]) for number in self.ranks.share(len(pieces)) if len(pieces[number])]
        parts = tuple(Part(number, *self.rows(rows, inputs, targets, batch, teacher)) for number, rows in own)
        what = batch.index, batch.epoch, batch.step, len(pieces), self.objective.of_whole, self.ranks, self.device
        self.take(whole(parts, *what, teacher.classifier if teacher else ()), first)

    def take(self, given: Given, first: bool = False) -> None:
        if self.point and "gradient" in self.point:
            self._weigh(self.point, given)
        with isolated(seed_of(self.streams.dropout, given.batch.step)):
            self.set_modes()
            forward = self._forward(given)
            sizes = self._sizes(forward) if first and len(self._all_values(forward)) > 1 else {}
            weights = [weight for weight in self.trained.parameters() if weight.requires_grad]
            summed = self._summed(forward, self.ranks.tried(lambda: self._pulls(forward, weights)), weights)
            self.ranks.tried(lambda: self._end_step(given, summed, weights))
            if sizes:
                self.gradients = relative_sizes(sizes)

    def _end_step(self, given: Given, summed: Summed, weights: Sequence[Tensor]) -> None:
        self._forget_gradients()
        *terms, gradients = summed.gradients
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = None if gradient is None else _laid_out_as(weight, gradient)
        if isinstance(self.optimizer, Dot):
            self.optimizer.add({weight: one for weight, one in zip(weights, terms[0], strict=True) if one is not None})
        self.of_task = {}  # that of the last group of this rank, and of no batch
        self._note(summed.values, self.objective.total(summed.values), sum(given.counts), given.batch.step)
        self._update(given.batch.step)

    def _forward(self, given: Given) -> Forward:
        groups = self.ranks.tried(lambda: self._groups(given))
        names = list(next(iter(groups.values())).values) if groups else []
        if not all(given.counts):  # a rank without an image has nothing of its own to go by
            names, counters = self.ranks.told((names, [buffer for buffer in self._buffers().values() if not buffer.is_floating_point()]))[0]
            for buffer, value in zip([one for one in self._buffers().values() if not one.is_floating_point()], counters, strict=True):
                buffer.copy_(value)
        if not (needs := self.objective.of_whole):
            return Forward(groups, {}, {}, names)
        mine = {name: torch.cat([group.taps[name].detach() for group in groups.values()]) for name in self._tap_names(groups)}
        found = self.ranks.rows(mine, given.counts)
        leaves = {name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in found.items()}

        def values() -> Values:
            taps = taps_of(leaves).with_classifier(self.student) if "classifier" in needs else taps_of(leaves)
            if "classifier" in needs and taps.second_view:
                taps = replace(taps, second_view=taps.second_view.with_classifier(self.student))
            return self.objective({}, taps, given.teacher, given.batch, seed_of(self.streams.loss, given.batch.step), whole=True)

        return Forward(groups, leaves, self.ranks.tried(values), names)

    @staticmethod
    def _tap_names(groups: Mapping[int, Group]) -> list[Hashable]:
        return list(next(iter(groups.values())).taps) if groups else []

    def _groups(self, given: Given) -> dict[int, Group]:
        """The forward pass of each group of this rank, all from the same running statistics."""
        assert given.batch.index is not None
        n, groups, before = len(given.batch.index), {}, self._buffers()
        pieces = np.array_split(np.arange(n), self.recipe["bn_groups"])
        counted: list[Tensor] = []
        try:
            for part in given.parts:
                # Other tensors, and not other values in these: a backward pass may need them as they were.
                for (module, name), start in before.items():
                    module._buffers[name] = start.clone()
                with isolated(seed_of(self.streams.dropout, part.batch.step, part.number)):
                    losses, taps = self.forward(part.inputs, part.targets, part.batch)
                    seed = seed_of(seed_of(self.streams.loss, part.batch.step), part.number)
                    values = self.objective(losses, taps, part.teacher, part.batch, seed, whole=False)
                after = [module._buffers[name] for module, name in before]
                counted = [one for one in after if one is not None and not one.is_floating_point()]
                pairs = [(one, start, place) for one, (place, start) in zip(after, before.items(), strict=True) if one is not None]
                running = [
                    (one, _is_statistic(*place) or not torch.equal(one, start)) for one, start, place in pairs if one.is_floating_point()
                ]
                rows = pieces[part.number]
                where = slice(int(rows[0]), int(rows[-1]) + 1)
                kept = tensors_of(taps, self.objective.of_whole), [one for one, _ in running], [moved for _, moved in running]
                groups[part.number] = Group(where, len(rows) / n, values, *kept)
        finally:
            for (module, name), start in before.items():
                module._buffers[name] = start
        for start, value in zip([one for one in before.values() if not one.is_floating_point()], counted, strict=bool(counted)):
            start.copy_(value)  # the same in every group: how many batches there were
        return groups

    def _buffers(self) -> dict[tuple[nn.Module, str], Tensor]:
        """What the forward pass of a group may change."""
        roots = [self.student, *self.objective.of_groups()]
        modules = dict.fromkeys(module for root in roots for module in root.modules())
        return {(module, name): one for module in modules for name, one in module._buffers.items() if one is not None}

    def _all_values(self, forward: Forward) -> list[str]:
        places = [[name, f"{name}."] for name in ("task", *self.objective.names)]  # of a loss and its parts; a user's has dots in its name

        def place(value: str) -> int:
            return next(number for number, (name, part) in enumerate(places) if value == name or value.startswith(part))

        return sorted([*forward.names, *forward.values], key=place)

    def _pulls(self, forward: Forward, weights: Sequence[Tensor]) -> list[Pull]:
        """What is minimised; with DOT first the distillation terms, then the task."""

        def total(names: Callable[[str], bool]) -> Callable[[Group], Tensor | None]:
            def of(group: Group) -> Tensor | None:
                chosen = {name: value for name, value in group.values.items() if names(name)}
                return self.objective.total(chosen) if any(self._is_minimised(name) for name in chosen) else None

            return of

        of_whole = torch.stack([weighted for _, weighted in forward.values.values()]).sum() if forward.values else None
        outputs, direct = self._pulled(of_whole, forward, weights)
        if not isinstance(self.optimizer, Dot):
            return [Pull(total(lambda name: True), outputs, direct)]
        nothing = Pull(total(lambda name: name == "task"), {}, [None] * len(weights))
        return [Pull(total(lambda name: name != "task"), outputs, direct), nothing]

    def _is_minimised(self, name: str) -> bool:
        return name != "task" or not self.objective.is_first_stage

    @staticmethod
    def _pulled(
        value: Tensor | None, forward: Forward, weights: Sequence[Tensor], keep: bool = False
    ) -> tuple[dict[Hashable, Tensor], list[Tensor | None]]:
        """The gradients of a value of the whole batch: of the student's outputs, and directly of weights, as a loss's own."""
        if value is None or not value.requires_grad:
            return {}, [None] * len(weights)
        leaves = {name: leaf for name, leaf in forward.leaves.items() if leaf.requires_grad}
        found = torch.autograd.grad(value, [*leaves.values(), *weights], retain_graph=keep, allow_unused=True)
        outputs = {name: one for name, one in zip(leaves, found, strict=False) if one is not None}
        return outputs, list(found[len(leaves) :])

    def _summed(self, forward: Forward, pulls: Sequence[Pull], weights: Sequence[Tensor], keep: bool = False) -> Summed:
        """The gradients and values of all groups of all ranks. Unless the graphs are kept for more, the running statistics become the mean
        of those of the groups."""
        running = [] if keep else [one for one in self._buffers().values() if one.is_floating_point()]
        kind = max((one.dtype for one in [*weights, *running]), key=lambda dtype: dtype.itemsize, default=torch.float32)
        kind = torch.promote_types(kind, torch.float32)

        def of(number: int) -> list[Tensor]:
            group = forward.groups.get(number)
            found: list[Tensor | None] = []
            for place, pull in enumerate(pulls):
                found += _gradients(group, pull, weights, keep or place + 1 < len(pulls)) if group else [None] * len(weights)
            pieces = [torch.zeros_like(like) if one is None else one for one, like in zip(found, [*weights] * len(pulls), strict=True)]
            pieces += group.buffers[: len(running)] if group else map(torch.zeros_like, running)
            pieces += [one * group.share if group else one for one in self._values_of(group, forward.names)]
            moved = group.moved[: len(running)] if group else [False] * len(running)
            flags = [group is not None, *moved, *(one is not None for one in found)]
            pieces.append(torch.tensor(flags, dtype=kind, device=self.device))
            return [piece.detach().to(kind) for piece in pieces]

        share, exact = self.ranks.share(self.recipe["bn_groups"]), self.numerics["name"] == "exact"
        # As one vector only at the end: for large nets each is more memory than the process keeps, and comes page by page.
        parted = self.ranks.tried(lambda: in_pairs(of, share.start, share.stop, torch._foreach_add))
        mine = torch.cat([piece.reshape(-1) for piece in parted])
        # What all ranks have computed alike of the whole batch has the same bits with `exact`; else they take the mean.
        direct = [one for pull in pulls for one in pull.weights]
        sure = exact and self.device.type == "cpu"
        alike = [] if sure else [one for one in direct if one is not None]
        mine = torch.cat([mine, *(one.reshape(-1).to(kind) / self.ranks.world for one in alike)])
        shapes = [*(one.shape for one in [*weights] * len(pulls)), *(one.shape for one in running)]
        shapes += [torch.Size([2])] * len(forward.names) + [torch.Size([1 + len(running) + len(direct)])] + [one.shape for one in alike]
        total = self.ranks.total(mine, exact).split([shape.numel() for shape in shapes])
        pieces = iter([one.view(shape) for one, shape in zip(total, shapes, strict=True)])
        gradients, means = [next(pieces) for _ in direct], [next(pieces) for _ in running]
        values = {name: next(pieces) for name in forward.names}
        count, *flags = next(pieces).tolist()
        moved, there = flags[: len(running)], flags[len(running) :]
        direct = [None if one is None else one if sure else next(pieces) for one in direct]
        for buffer, mean, has_moved in zip(running, means, moved, strict=True):
            if has_moved:  # a constant stays what it is, to the last bit
                buffer.copy_(mean / count)
        found = [_added(one if is_there else None, other) for one, is_there, other in zip(gradients, there, direct, strict=True)]
        given = {name: (raw, weighted) for name, (raw, weighted) in values.items()} | forward.values
        by_pull = [found[place * len(weights) : (place + 1) * len(weights)] for place in range(len(pulls))]
        return Summed(by_pull, {name: given[name] for name in self._all_values(forward)})

    def _values_of(self, group: Group | None, names: Sequence[str]) -> list[Tensor]:
        return [torch.stack(group.values[name]) if group else torch.zeros(2, device=self.device) for name in names]

    def _sizes(self, forward: Forward) -> dict[str, dict[int, Tensor]]:
        """Each weighted term's gradients of the student's weights (at weight 1 if the task's weight is 0)."""
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        names = self._all_values(forward) if weights else []
        pulls = self.ranks.tried(lambda: self._pulls_of_each(forward, names, weights))
        summed = self._summed(forward, pulls, weights, keep=True) if pulls else Summed([], {})
        return {name: _there(gradients) for name, gradients in zip(names, summed.gradients, strict=True)}

    def _pulls_of_each(self, forward: Forward, names: Sequence[str], weights: Sequence[Tensor]) -> list[Pull]:
        pulls = []
        for name in names:
            place = 0 if name == "task" and self.objective.task_weight == 0 else 1
            outputs, direct = self._pulled(forward.values[name][1] if name in forward.values else None, forward, weights, keep=True)
            pulls.append(
                Pull(lambda group, name=name, place=place: group.values[name][place] if name in group.values else None, outputs, direct)
            )
        return pulls

    def _weigh(self, point: Point, given: Given) -> None:
        """`_find_weight` of a batch in groups."""
        count = self.cell.config["objective"]["tuned"]["terms"]
        with self._copied(), isolated(seed_of(self.streams.dropout, given.batch.step)):
            self.set_modes()
            forward = self._forward(given)
            weights = [weight for weight in self.student.parameters() if weight.requires_grad]
            pulls = self.ranks.tried(lambda: self._task_and_terms(forward, weights, count))
            task, own = map(_there, self._summed(forward, pulls, weights).gradients)
        self.ranks.tried(lambda: self._choose(point, relative_sizes({"task": task, "terms": own}).get("terms", 0.0)))

    def _task_and_terms(self, forward: Forward, weights: Sequence[Tensor], count: int) -> list[Pull]:
        terms = self.objective.unscheduled(forward.values, count)
        return [
            Pull(lambda group: group.values["task"][0 if self.objective.task_weight == 0 else 1], {}, [None] * len(weights)),
            Pull(lambda group: self.objective.unscheduled(group.values, count), *self._pulled(terms, forward, weights)),
        ]


def _gradients(group: Group, pull: Pull, weights: Sequence[Tensor], keep: bool) -> list[Tensor | None]:
    """What a group pulls at the weights; None where it does not."""
    outputs, given = [], []
    value = pull.of_group(group)
    if value is not None and value.requires_grad:
        outputs.append(value)
        given.append(torch.full_like(value, group.share))
    for name, gradient in pull.outputs.items():
        if group.taps[name].requires_grad:
            outputs.append(group.taps[name])
            given.append(gradient[group.rows])
    if not outputs:
        return [None] * len(weights)
    return list(torch.autograd.grad(outputs, weights, given, retain_graph=keep, allow_unused=True))


def _laid_out_as(weight: Tensor, gradient: Tensor) -> Tensor:
    """With memory of its own, in the layout of its weight: fused optimisers need that."""
    return torch.empty_like(weight).copy_(gradient)


def _is_statistic(module: nn.Module, name: str) -> bool:
    """Whether a buffer is a running statistic of a batch norm, which every forward pass changes."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and name.startswith("running_")


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _there(gradients: Sequence[Tensor | None]) -> dict[int, Tensor]:
    return {place: one for place, one in enumerate(gradients) if one is not None}
