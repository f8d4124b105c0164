"""An objective: the task's loss with its weight, plus weighted distillation terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.errors import RefusedError
from kdbench.losses._base import Batch, Loss, Pair, Taps


class Objective(nn.Module):
    """What one student minimises. Built from the resolved configuration, then bound to its pair."""

    def __init__(self, config: Mapping[str, Any], sources: Mapping[str, str]):
        super().__init__()
        self.task_weight: float = config["task"]
        self.terms = list(config["terms"])
        self.names = _distinct([term["loss"] for term in self.terms])
        self.losses = nn.ModuleList(parts.from_config("loss", {**term, "name": term["loss"]}, sources) for term in self.terms)

    def bind(self, pair: Pair) -> None:
        """Raises RefusedError when a loss cannot serve the pair."""
        for name, loss in zip(self.names, self._each(), strict=True):
            why = loss.missing(pair)
            if why is not None:
                raise RefusedError(f"the loss '{name}' refuses this pair: {why}")
            loss.bind(pair)

    def forward(
        self, task_losses: Mapping[str, Tensor], student: Taps, teacher: Taps | None, batch: Batch
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Each term by name: (raw value, weighted value); the task's own is called `task`. The total is the sum of the weighted."""
        raw = sum(task_losses.values(), start=torch.zeros((), device=batch_device(task_losses)))
        values = {"task": (raw, self.task_weight * raw)}
        for name, term, loss in zip(self.names, self.terms, self._each(), strict=True):
            assert teacher is not None, "an objective with terms is trained with a teacher"
            named = loss.parts(student, _paired(term, teacher), batch)
            weight = weight_at(term["weight"], batch.epoch)
            for part, value in named.items():
                values[f"{name}.{part}" if part else name] = (value, weight * value)
        return values

    def deployed(self, student: nn.Module) -> nn.Module:
        """The model that is evaluated and kept."""
        for loss in self._each():
            student = loss.deployed(student)
        return student

    def _each(self) -> list[Loss]:
        return list(self.losses)  # type: ignore[arg-type]


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


def batch_device(task_losses: Mapping[str, Tensor]) -> torch.device:
    return next(iter(task_losses.values())).device


def _paired(term: Mapping[str, Any], teacher: Taps) -> Taps:
    """The teacher's rows as they come, or shuffled: the control arm in which a teacher says nothing about the image at hand."""
    if term.get("pairing", "matched") == "matched":
        return teacher
    tensors = teacher.tensors()
    order = torch.randperm(len(tensors[0])).to(tensors[0].device)
    return teacher.map(lambda tensor: tensor[order])


def _distinct(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}{names[:place].count(name) + 1}" for place, name in enumerate(names)]
