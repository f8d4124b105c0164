"""One student of a bundle: its weights, objective, optimiser, schedule and history."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.cell import Cell
from kdbench.choice import Point, rounded
from kdbench.errors import LossError
from kdbench.isolation import isolated, private
from kdbench.losses._base import Batch, Taps
from kdbench.recipes._base import Recipe
from kdbench.tasks._base import Task
from kdbench.timm_adapter import learning_rate, make_optimizer, make_scheduler
from kdbench.train.average import moving_average
from kdbench.train.dot import Dot
from kdbench.train.evaluate import Predictions, finite_or_none
from kdbench.train.given import Given
from kdbench.train.numerics import autocast
from kdbench.train.objective import Objective
from kdbench.train.ranks import ALONE, Ranks
from kdbench.train.seeds import Streams, seed_of

NEVER = -1

Part = tuple[float, int, Any, Any, Batch, Taps | None]
"""A part of a batch: its share of the images, the seed of its losses, and what `Member.step` gets."""


class Member:
    """A student in training. It shares no state with other students. `ranks` are those that train it."""

    ranks: Ranks = ALONE

    def __init__(self, cell: Cell, student: nn.Module, objective: Objective, task: Task, steps_per_epoch: int, point: Point | None = None):
        """`point` is that of a tuned objective, which `objective` is at."""
        self.point = point
        self.cell, self.student, self.objective, self.task = cell, student, objective, task
        self.recipe, self.numerics = Recipe.complete(cell.config["recipe"]), cell.config["numerics"]
        self.streams = Streams.of(cell.config)
        self.frozen = _frozen(student, self.recipe)
        if not objective.trains_student:
            student.requires_grad_(False)
            if not any(weight.requires_grad for weight in objective.parameters()):
                raise LossError("nothing is trained in this first stage: no loss in it has parameters, and none trains the student")
        self.trained = nn.ModuleDict({"student": student, "objective": objective})
        self.optimizer = make_optimizer(self.trained, self.recipe, fused=self.numerics["name"] == "fast")
        if (delta := cell.config["objective"].get("dot")) is not None:
            self.optimizer = Dot(self.optimizer.param_groups, self.recipe["momentum"], delta)
        self.scheduler = make_scheduler(self.optimizer, self.recipe, steps_per_epoch)
        self.latest = objective.deployed(student)
        self.average = None if self.recipe["ema"] is None else moving_average(self.latest, self.recipe["ema"])
        self.deployed = self.average.module if self.average else self.latest  # what is evaluated and kept
        self.predicted: Predictions | None = None
        """What the student said of the test images when it was last evaluated."""
        self.history: list[dict[str, Any]] = []
        self.device = next(student.parameters()).device
        self.bad_step = torch.tensor(NEVER, device=self.device)
        self.of_task: dict[str, Tensor] = {}
        """The parts of the task's loss in the last forward pass, where it has several."""
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.modules = [module for module in self.trained.modules() if module not in self.frozen]
        self.sums: dict[str, Tensor] = {}
        self.seen = 0
        self.gradients: dict[str, float] = {}
        self.lr = learning_rate(self.optimizer)

    def step(self, inputs: Any, targets: Any, batch: Batch, teacher: Taps | None, first: bool = False) -> None:
        """One batch: forward, objective, backward, update. `first` also measures the gradient sizes of the terms (once an epoch)."""
        gradients: dict[str, dict[int, Tensor]] = {}
        if self.point and "gradient" in self.point:
            self._find_weight(self.point, inputs, targets, batch, teacher)
        with isolated(seed_of(self.streams.dropout, batch.step)):
            self.set_modes()
            for place, (share, seed, *part) in enumerate(self.parts(inputs, targets, batch, teacher)):
                values = self._values(seed, *part)
                total = self.objective.total(values)
                if first and len(values) > 1:
                    self._add_gradients(gradients, values, share)
                if not place:
                    self._forget_gradients()
                self._backward(share, values, total)
                n = 1 if part[2].index is None else len(part[2].index)
                self._note(values, total.detach(), n, batch.step)
            self._update(batch.step)
            if gradients:
                self.gradients = relative_sizes(gradients)

    def set_modes(self) -> None:
        """Into training mode, but what is frozen."""
        if not all(module.training for module in self.modules):  # as after an evaluation
            self.trained.train()
            for module in self.frozen:
                module.training = False
        if not self.objective.trains_student:
            self.student.eval()

    def take(self, given: Given, first: bool = False) -> None:
        """`step`, as the loop gives it."""
        (part,) = given.parts
        self.step(part.inputs, part.targets, part.batch, part.teacher, first)

    def _update(self, step: int) -> None:
        """Change the weights by their gradients."""
        if self.recipe["clip_grad"] is not None:
            self._clip(self.recipe["clip_grad"])
        self.optimizer.step()
        self.scheduler.step_update(step + 1)
        if self.average:
            self.average.update_parameters(self.latest)

    def _clip(self, largest: float) -> None:
        """As `clip_grad_norm_`, with the parameters of losses last: where these have no gradient, no bit of the student's changes."""
        mine = set(self.student.parameters())
        sides = [
            [one for one in self.trained.parameters() if one.grad is not None and (one in mine) == is_student]
            for is_student in (True, False)
        ]
        norms = [nn.utils.get_total_norm([one.grad for one in side if one.grad is not None]) for side in sides if side]
        if norms:
            nn.utils.clip_grads_with_norm_([one for side in sides for one in side], largest, reduce(torch.hypot, norms))

    def _forget_gradients(self) -> None:
        """As the optimiser's `zero_grad`, which takes several times as long."""
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def _backward(self, share: float, values: dict[str, tuple[Tensor, Tensor]], total: Tensor) -> None:
        """Add the gradients of a part of the batch; with DOT those of the distillation terms are apart from the task's."""
        if not isinstance(self.optimizer, Dot):
            (total if share == 1 else share * total).backward()
            return
        terms = share * torch.stack([weighted for name, (_, weighted) in values.items() if name != "task"]).sum()
        weights = [weight for weight in self.trained.parameters() if weight.requires_grad]
        found = torch.autograd.grad(terms, weights, retain_graph=True, allow_unused=True)
        self.optimizer.add({weight: gradient for weight, gradient in zip(weights, found, strict=True) if gradient is not None})
        (share * values["task"][1]).backward()

    def _find_weight(self, point: Point, inputs: Any, targets: Any, batch: Batch, teacher: Taps | None) -> None:
        """Turn the size of the distillation gradient that a trial asks for into the factor of its weights, before the first step. What is
        measured is a copy, with the weights of the tuned terms without their schedules. Raises LossError: there is no gradient."""
        count = self.cell.config["objective"]["tuned"]["terms"]
        found = dict[str, dict[int, Tensor]]()
        with self._copied(), isolated(seed_of(self.streams.dropout, batch.step)):
            self.set_modes()
            for share, seed, *part in self.parts(inputs, targets, batch, teacher):
                values = self._values(seed, *part)
                terms = self.objective.unscheduled(values, count)
                self._add_gradients(found, {"task": values["task"], "terms": (terms, terms)}, share)
        self._choose(point, relative_sizes(found).get("terms", 0.0))

    @contextmanager
    def _copied(self) -> Iterator[None]:
        """In this block the student is a copy of itself."""
        own = self.student, self.objective, self.trained
        self.trained = copy.deepcopy(self.trained)
        self.student, self.objective = self.trained["student"], self.trained["objective"]
        try:
            yield
        finally:
            self.student, self.objective, self.trained = own

    def _choose(self, point: Point, size: float) -> None:
        """Choose the factor of the weights where their gradient has this size. Raises LossError."""
        if not 0 < size < math.inf:
            raise LossError(f"the distillation gradient is {size:g} times the task's at the first step: give a `weight` to search around")
        self.point = {"weight": rounded(point["gradient"] / size)} | {name: value for name, value in point.items() if name != "gradient"}
        self.objective.scale(self.point["weight"], self.cell.config["objective"]["tuned"]["terms"])

    def parts(self, inputs: Any, targets: Any, batch: Batch, teacher: Taps | None) -> Iterator[Part]:
        """The batch in parts of nearly equal size, none larger than the recipe's batch divided by `accumulate`."""
        seed = seed_of(self.streams.loss, batch.step)
        if self.recipe["accumulate"] == 1:
            yield 1.0, seed, inputs, targets, batch, teacher
            return
        assert batch.index is not None
        n, largest = len(batch.index), self.recipe["batch_size"] // self.recipe["accumulate"]
        for place, rows in enumerate(np.array_split(np.arange(n), -(-n // largest))):
            yield len(rows) / n, seed_of(seed, place), *self.rows(rows, inputs, targets, batch, teacher)

    def rows(self, rows: np.ndarray, inputs: Any, targets: Any, batch: Batch, teacher: Taps | None) -> tuple[Any, Any, Batch, Taps | None]:
        """What `step` gets, of some consecutive images of a batch alone."""
        assert batch.index is not None
        chosen = slice(int(rows[0]), int(rows[-1]) + 1)

        def of(taps: Taps) -> Taps:
            return taps.rows(chosen)

        own_inputs, own_targets = self.task.rows(inputs, targets, chosen)
        seconds = {asked: (self.task.rows(seen, targets, chosen)[0], of(taps)) for asked, (seen, taps) in batch.second_views.items()}
        others = None if batch.others is None else {pairing: of(taps) for pairing, taps in batch.others.items()}
        own_batch = Batch(own_targets, batch.index[chosen], batch.epoch, batch.step, others, seconds)
        return own_inputs, own_targets, own_batch, of(teacher) if teacher else None

    def _values(self, seed: int, inputs: Any, targets: Any, batch: Batch, teacher: Taps | None) -> dict[str, tuple[Tensor, Tensor]]:
        task_losses, taps = self.forward(inputs, targets, batch)
        return self.objective(task_losses, taps, teacher, batch, seed)

    def forward(self, inputs: Any, targets: Any, batch: Batch) -> tuple[dict[str, Tensor], Taps]:
        """The task's losses and the taps, of the second view too where the objective needs one."""
        # Copies, since the model may change its inputs, which all students share.
        with autocast(self.numerics, inputs):
            losses, taps = self.task.step(self.student, private(inputs), private(targets))
        self.of_task = {f"task.{name}": value for name, value in losses.items()} if len(losses) > 1 else {}
        taps = taps.with_classifier(self.student)
        if self.objective.augmentation is None:
            return losses, taps
        seen, _ = batch.second_views["matched", self.objective.augmentation]
        with autocast(self.numerics, seen):
            further, second = self.task.step(self.student, private(seen), private(targets))
        if self.objective.task_of_both_views:
            losses = {**losses, **{f"{name} of the second view": value for name, value in further.items()}}
        return losses, replace(taps, second_view=second.with_classifier(self.student))

    def _note(self, values: Mapping[str, tuple[Tensor, Tensor]], total: Tensor, n: int, step: int) -> None:
        """The values for n images. Sums stay on the device, so that nothing here waits for it."""
        self.seen += n
        of_task = {name: (value, self.objective.task_weight * value) for name, value in self.of_task.items()}
        pairs = {**values, **of_task, "": (total, total)}
        now = torch.stack([value.detach() for pair in pairs.values() for value in pair]).double().mul_(n).view(-1, 2)
        self.sums |= {name: self.sums[name] + one if name in self.sums else one for name, one in zip(pairs, now, strict=True)}
        self.bad_step = torch.where(torch.isfinite(total) | (self.bad_step != NEVER), self.bad_step, step)

    def _add_gradients(self, found: dict[str, dict[int, Tensor]], values: dict[str, tuple[Tensor, Tensor]], share: float) -> None:
        """Add each weighted term's gradients of the student's weights (at weight 1 if the task's weight is 0)."""
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        for name, (raw, weighted) in values.items() if weights else ():
            what = raw if name == "task" and self.objective.task_weight == 0 else weighted
            gradients = torch.autograd.grad(what, weights, retain_graph=True, allow_unused=True) if what.requires_grad else ()
            mine = found.setdefault(name, {})
            for place, gradient in enumerate(gradients):
                if gradient is not None:
                    mine[place] = mine.get(place, 0) + share * gradient

    def end_epoch(self, epoch: int, evaluated: dict[str, dict[str, float | None]]) -> None:
        """Append the epoch's entry to the history."""
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
        """The first step with a non-finite loss, or `last_step` if a weight is not finite; else `NEVER`. Waits for the device."""
        bad = int(self.bad_step)
        if bad == NEVER and not all(bool(torch.isfinite(weight).all()) for weight in self.trained.parameters()):
            return last_step
        return bad

    def kept(self) -> dict[str, Tensor]:
        """The weights that a finished cell leaves: what is deployed; of a first stage all that the second starts from."""
        module = self.trained if self.objective.is_first_stage else self.deployed
        return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that is needed to resume; bit for bit on the CPU with numerics `exact`."""
        own = {name: getattr(self, name) for name in ("history", "sums", "seen", "gradients", "lr", "bad_step")}
        own |= {"average": self.average.module.state_dict()} if self.average else {}
        own |= {"point": self.point} if self.point else {}
        return {"trained": self.trained.state_dict(), "optimizer": self.optimizer.state_dict(), **own}

    def restore(self, state: dict[str, Any], steps_done: int) -> None:
        """Raises ValueError: the state is of another point of the search, since trials were trained again."""
        if (saved := state.get("point")) != self.point and "gradient" not in (self.point or {}):
            raise ValueError(f"it was trained at {saved}, and its trials now choose {self.point}")
        self.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.step_update(steps_done)
        if self.point and "gradient" in self.point and "weight" in state["point"]:
            self.point = state["point"]
            self.objective.scale(self.point["weight"], self.cell.config["objective"]["tuned"]["terms"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.history, self.seen = state["history"], state["seen"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.gradients, self.lr = state["gradients"], state["lr"]
        self.bad_step = state["bad_step"].to(self.device)


def _frozen(student: nn.Module, recipe: Mapping[str, Any]) -> set[nn.Module]:
    """The modules of a student that a recipe freezes. Their parameters become constant; they stay in evaluation mode."""
    stages = student.stages_in_order()[: recipe["frozen_stages"]] if recipe["frozen_stages"] else []  # type: ignore[operator]
    found = {module for stage in stages for own in stage for module in own.modules()}
    if recipe["batch_norm"] == "frozen":
        found |= {module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    for module in found:
        module.requires_grad_(False)
        module.training = False
    return found


def relative_sizes(gradients: dict[str, dict[int, Tensor]]) -> dict[str, float]:
    """Each term's gradient norm relative to the task's."""
    norms = {}
    for name, mine in gradients.items():
        squares = [gradient.double().square().sum() for gradient in mine.values()]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    task = norms.pop("task")
    return {name: norm / task for name, norm in norms.items()} if task > 0 else {}
