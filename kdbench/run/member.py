"""One student of a bundle: its weights, objective, optimiser, schedule, and what it has seen so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.cell import Cell
from kdbench.losses._base import Batch, Taps
from kdbench.run.draws import Streams, seed_of
from kdbench.run.numerics import autocast
from kdbench.run.objective import Objective
from kdbench.tasks._base import Task
from kdbench.through_timm import make_optimizer, make_scheduler

NEVER = -1


class Member:
    """A student in training. `step` is the whole of what happens to it for one batch; nothing of it is shared with another student."""

    def __init__(self, cell: Cell, student: nn.Module, objective: Objective, task: Task, steps_per_epoch: int):
        self.cell, self.student, self.objective, self.task = cell, student, objective, task
        self.recipe, self.numerics = cell.config["recipe"], cell.config["numerics"]
        self.streams = Streams.of(cell.config)
        self.trained = nn.ModuleDict({"student": student, "objective": objective})
        self.optimizer = make_optimizer(self.trained, self.recipe)
        self.scheduler = make_scheduler(self.optimizer, self.recipe, steps_per_epoch)
        self.deployed = objective.deployed(student)
        self.history: list[dict[str, Any]] = []
        self.device = next(student.parameters()).device
        self.bad_step = torch.tensor(NEVER, device=self.device)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.seen = 0
        self.gradients: dict[str, float] = {}
        self.lr = self.optimizer.param_groups[0]["lr"]

    def step(self, inputs: Any, targets: Any, batch: Batch, teacher: Taps | None, first: bool = False) -> None:
        """One batch: forward, objective, backward, update. `first` asks for the gradient sizes of the terms (once an epoch)."""
        self.trained.train()
        torch.manual_seed(seed_of(self.streams.dropout, batch.step))
        with autocast(self.numerics, inputs):
            task_losses, taps = self.task.step(self.student, inputs, targets)
        torch.manual_seed(seed_of(self.streams.loss, batch.step))
        values = self.objective(task_losses, taps, teacher, batch)
        total = torch.stack([weighted for _, weighted in values.values()]).sum()
        if first and len(values) > 1:
            self.gradients = self._gradient_sizes(values)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if self.recipe["clip_grad"] is not None:
            nn.utils.clip_grad_norm_(self.trained.parameters(), self.recipe["clip_grad"])
        self.optimizer.step()
        self.scheduler.step_update(batch.step + 1)
        self._note(values, total.detach(), batch)

    def _note(self, values: dict[str, tuple[Tensor, Tensor]], total: Tensor, batch: Batch) -> None:
        """Sums stay on the device: nothing here waits for it."""
        n = len(batch.index) if batch.index is not None else 1
        self.seen += n
        for name, pair in {**values, "": (total, total)}.items():
            now = torch.stack([value.detach() for value in pair]).double() * n
            self.sums[name] = self.sums[name] + now if name in self.sums else now
        first_bad = (self.bad_step == NEVER) & ~torch.isfinite(total)
        self.bad_step = torch.where(first_bad, batch.step, self.bad_step)

    def _gradient_sizes(self, values: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Each weighted term's gradient norm over the student's weights, relative to the task's (at weight 1 if its weight is 0)."""
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        norms = {}
        for name, (raw, weighted) in values.items():
            what = raw if name == "task" and self.objective.task_weight == 0 else weighted
            gradients = torch.autograd.grad(what, weights, retain_graph=True, allow_unused=True) if what.requires_grad else ()
            squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
            norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        task = norms.pop("task")
        return {name: norm / task for name, norm in norms.items()} if task > 0 else {}

    def end_epoch(self, epoch: int, evaluated: dict[str, dict[str, float | None]]) -> None:
        """Close the epoch's entry in the history."""
        entry: dict[str, Any] = {"epoch": epoch, "lr": self.lr, "terms": {}}
        for name, sums in self.sums.items():
            raw, weighted = (finite_or_none(value / self.seen) for value in sums.tolist())
            if not name:
                entry["loss"] = weighted
                continue
            entry["terms"][name] = {"raw": raw, "weighted": weighted}
            if name in self.gradients:
                entry["terms"][name]["gradient_ratio"] = finite_or_none(self.gradients[name])
        self.history.append({**entry, **evaluated})

    def went_bad(self, last_step: int) -> int:
        """The first step whose loss, or after whose epoch a weight, was not finite; `NEVER` if all is well. Waits for the device."""
        bad = int(self.bad_step)
        if bad == NEVER and not all(bool(torch.isfinite(weight).all()) for weight in self.trained.parameters()):
            return last_step
        return bad

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here, to the bit."""
        return {
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "sums": self.sums,
            "seen": self.seen,
            "gradients": self.gradients,
            "lr": self.lr,
            "bad_step": self.bad_step,
        }

    def restore(self, state: dict[str, Any], steps_done: int) -> None:
        self.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.step_update(steps_done)
        self.history, self.seen = state["history"], state["seen"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.gradients, self.lr = state["gradients"], state["lr"]
        self.bad_step = state["bad_step"].to(self.device)


def finite_or_none(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
