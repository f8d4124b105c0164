"""An objective: the task's loss with its weight, plus weighted distillation terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.choice import applied
from kdbench.errors import RefusedError
from kdbench.isolation import isolated
from kdbench.losses._base import TAPS, Batch, Loss, Pair, Taps
from kdbench.plan.provider import keeps_relation

ELSEWHERE = ("shuffled_globally", "shuffled_in_class")
"""The pairings whose images are not in the batch: the loop provides the teacher's outputs for them."""


class Objective(nn.Module):
    """What one student minimises. Each term has its own draws: those of `seed` to build and bind it, others for each `forward`."""

    def __init__(self, config: Mapping[str, Any], sources: Mapping[str, str], seed: int = 0, epochs: int = 1):
        super().__init__()
        self.seed, self.epochs = seed, epochs
        self.task_weight: float = config["task"]
        self.is_first_stage = "stage" in config
        self.terms = list(config["terms"])
        names = [term["loss"] for term in self.terms]
        self.names = [name if names.count(name) == 1 else f"{name}{names[:place].count(name) + 1}" for place, name in enumerate(names)]
        self.losses = nn.ModuleList()
        self.augmentation: str | None = None
        """How the second view of its images is augmented; None if no loss needs one."""
        self.task_of_both_views = False
        for place, term in enumerate(self.terms):
            with isolated(seed + place):
                # Anew, so that cells and terms share no variables of a user's module.
                self.losses.append(parts.from_config("loss", {**term, "name": term["loss"]}, sources, anew=True))

    def bind(self, pair: Pair) -> None:
        """Raises RefusedError if a loss cannot be used with the pair, or if two of them need different second views."""
        for place, (name, loss) in enumerate(zip(self.names, self._each(), strict=True)):
            try:
                with isolated(self.seed + place):
                    loss.prepare(pair)
            except RefusedError as error:
                raise RefusedError(f"the loss '{name}' refuses this pair: {error}") from error
        of_two_views = [loss for loss in self._each() if "second_view" in loss._needs()]
        if len(asked := dict.fromkeys(loss.augmentation for loss in of_two_views)) > 1:
            raise RefusedError(f"its losses need second views that are augmented differently ({', '.join(asked)}): let them need the same")
        self.augmentation = next(iter(asked), None)
        self.task_of_both_views = any(loss.task_of_both_views for loss in of_two_views)

    def forward(
        self, task_losses: Mapping[str, Tensor], student: Taps, teacher: Taps | None, batch: Batch, seed: int = 0, whole: bool | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """(raw value, weighted value) of each term by name; the task's is `task`. The total is the sum of the weighted values. For a
        batch in groups, `whole` True gives the terms for the whole batch, and False the task and the other terms, of one group."""
        values = {}
        if not whole:
            raw = sum(task_losses.values(), start=torch.zeros((), device=next(iter(task_losses.values())).device))
            values["task"] = (raw, self.task_weight * raw)
        for place, (name, term, loss) in enumerate(zip(self.names, self.terms, self._each(), strict=True)):
            if whole is not None and whole != is_whole(term, loss):
                continue
            assert teacher is not None, "an objective with terms is trained with a teacher"
            with isolated(seed + place):
                own = _paired(term, teacher, batch, self.augmentation)
                if loss.relation:
                    with isolated(0):  # own draws: whether it is computed now or was for another student changes nothing else
                        loss.known(own)
                named = loss.parts(student, own, batch)
            weight = weight_at(term["weight"], batch.epoch) * schedule_at(term, batch.epoch, self.epochs)
            for part, value in named.items():
                values[f"{name}.{part}" if part else name] = (value, weight * value)
        return values

    @property
    def of_whole(self) -> set[str]:
        """What the terms for the whole batch need, of those of a batch in groups."""
        return {name for loss, term in zip(self._each(), self.terms, strict=True) if is_whole(term, loss) for name in loss._needs()}

    def of_groups(self) -> list[Loss]:
        """The losses that are computed for each group of a batch."""
        return [loss for loss, term in zip(self._each(), self.terms, strict=True) if not is_whole(term, loss)]

    @property
    def trains_student(self) -> bool:
        """Whether the student takes part: always but in a first stage of learnable parts alone."""
        return not self.is_first_stage or any(loss.trains_student for loss in self._each())

    def total(self, values: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """What is minimised. A first stage is without the task's loss: at weight 0 it would decay a head that nothing trains."""
        return torch.stack([weighted for name, (_, weighted) in values.items() if name != "task" or not self.is_first_stage]).sum()

    @property
    def elsewhere(self) -> set[str]:
        """The pairings with images outside of the batch."""
        return {term["pairing"] for term in self.terms} & set(ELSEWHERE)

    @property
    def second_views(self) -> set[tuple[str, str]]:
        """(pairing, augmentation) of the second views that it needs: of the images of the batch, and of those outside of it."""
        return set() if self.augmentation is None else {(pairing, self.augmentation) for pairing in {"matched", *self.elsewhere}}

    @property
    def kept(self) -> dict[str, Loss]:
        """The losses of which a table keeps what they compute of the teacher's taps, by its name."""
        return {loss.relation: loss for loss, is_kept in self._kept() if is_kept}

    @property
    def taps_needed(self) -> set[str]:
        """The taps that its other losses read."""
        return {name for loss, is_kept in self._kept() if not is_kept for name in loss._needs()} & set(TAPS)

    def _kept(self) -> list[tuple[Loss, bool]]:
        pairs = zip(self._each(), self.terms, strict=True)
        return [(loss, keeps_relation(loss._needs(), loss.relation, loss.couples, term["pairing"])) for loss, term in pairs]

    def unscheduled(self, values: Mapping[str, tuple[Tensor, Tensor]], terms: int) -> Tensor | None:
        """The sum of the first terms with their weights, of schedules the largest one, out of what `forward` gives; None if these are not
        among it."""
        found = []
        for name, term in zip(self.names[:terms], self.terms, strict=False):
            weight = term["weight"] if isinstance(term["weight"], (int, float)) else max(one for _, one in term["weight"])
            found += [weight * raw for key, (raw, _) in values.items() if key == name or key.startswith(f"{name}.")]
        return torch.stack(found).sum() if found else None

    def scale(self, factor: float, terms: int) -> None:
        """Multiply the weights of the first terms."""
        scaled = applied({"terms": self.terms, "tuned": {"terms": terms}}, {"weight": factor})
        self.terms = scaled["terms"]

    def deployed(self, student: nn.Module) -> nn.Module:
        """The model that is evaluated and kept."""
        for place, loss in enumerate(self._each()):
            with isolated(self.seed + place):
                student = loss.deployed(student)
        return student

    def _each(self) -> list[Loss]:
        return list(self.losses)  # type: ignore[arg-type]


def is_whole(term: Mapping[str, Any], loss: Loss) -> bool:
    """Whether a term needs the whole batch where that is divided into groups: it compares images, or gets the rows of other ones."""
    return loss.couples == "batch" or term["pairing"] not in ("matched", *ELSEWHERE)


def weight_at(weight: float | list[list[float]], epoch: int) -> float:
    """A term's weight: a number, or a schedule [[epoch, weight], ...], linear in between and constant outside."""
    if isinstance(weight, (int, float)):
        return float(weight)
    if epoch <= weight[0][0]:
        return weight[0][1]
    for (start, before), (end, after) in zip(weight, weight[1:], strict=False):
        if epoch <= end:
            return before + (after - before) * (epoch - start) / (end - start)
    return weight[-1][1]


def schedule_at(term: Mapping[str, Any], epoch: int, epochs: int) -> float:
    """The factor of a term's weight in an epoch (from 0) of a training of `epochs` epochs, by its warm-up and decay (`Preset`)."""
    now = (epoch + 1) * (term.get("of_epochs", epochs) / epochs)
    factor = min(now / term["warm_up"], 1.0) if term.get("warm_up") else 1.0
    if "decay" in term:
        start, end = term["decay"]
        factor *= (1 + math.cos(math.pi * min(max((now - start) / (end - start), 0.0), 1.0))) / 2
    return factor


def _paired(term: Mapping[str, Any], teacher: Taps, batch: Batch, augmentation: str | None) -> Taps:
    """The teacher's rows, or those of other images: a control. Where only a step is tried, they are of the same batch. Of both views where
    there are two, and then of the same images."""
    elsewhere = term["pairing"] in ELSEWHERE and batch.others is not None
    taps = batch.others[term["pairing"]] if elsewhere and batch.others is not None else teacher
    if augmentation is not None:
        _, second = batch.second_views.get((term["pairing"] if elsewhere else "matched", augmentation), (None, None))
        taps = replace(taps, second_view=second)  # None: no loss of these needs it
    if elsewhere or term["pairing"] == "matched":
        return taps
    return taps.rows(torch.randperm(len(taps.tensors()[0])))
