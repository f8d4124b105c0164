"""Builds the objects of a cell's configuration, for worker, check, profile and export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench import parts
from kdbench.cell import Cell
from kdbench.choice import WORD, Point, applied, picked
from kdbench.datasets._base import Data, Dataset
from kdbench.errors import DataError
from kdbench.isolation import isolated
from kdbench.losses._base import Pair
from kdbench.models._base import Model
from kdbench.plan.probe import probe_model
from kdbench.recipes._base import OF_TASK, Recipe
from kdbench.record import Record, same_images
from kdbench.store import Store
from kdbench.tasks._base import Task
from kdbench.train.grouped import GroupedMember
from kdbench.train.member import Member
from kdbench.train.numerics import laid_out
from kdbench.train.objective import Objective
from kdbench.train.seeds import Streams
from kdbench.train.start import continue_from, inherit, start_from
from kdbench.train.stream import BatchPlan
from kdbench.train.teacher import LiveTeacher, load_teacher, load_weights


@dataclass(frozen=True)
class Setup:
    """What the cells of a bundle share. `teacher` is None without distillation."""

    task: Task
    dataset: Dataset
    data: Data
    device: torch.device
    teacher: LiveTeacher | None = None

    @classmethod
    def of(cls, cell: Cell, data_folder: Path, device: torch.device) -> Setup:
        """The setup of a cell's bundle, without its teacher. Raises DataError if the data are missing or wrong."""
        task, dataset = make_task(cell), make_dataset(cell)
        recipe = Recipe.complete(cell.config["recipe"])
        data = load_data(cell, data_folder, device).augmented(recipe["rand_augment"], recipe["random_erasing"])
        return cls(task, dataset, data, device)

    def with_teacher(self, store: Store, cell: Cell, is_checked: bool = False) -> Setup:
        """The same setup with the trained teacher that the cell depends on, if any. Raises what `load_teacher` raises."""
        if "teacher" not in cell.depends:
            return self
        teacher_cell = store.cell(cell.depends["teacher"])
        with isolated(0):
            model = make_model(teacher_cell, self.dataset, self.task)
        return replace(self, teacher=load_teacher(store, model, teacher_cell, cell, self.data, self.task, self.device, is_checked))

    def student(self, cell: Cell) -> nn.Module:
        """The cell's model with its initial weights, drawn on the CPU so that they are the same on every device."""
        with isolated(Streams.of(cell.config).init):
            model = make_model(cell, self.dataset, self.task)
            start_from(model, cell.config["student"], cell, self.data.input_shape[0])
        return laid_out(model, cell.config["numerics"], self.device)

    def objective(self, cell: Cell, point: Point | None = None) -> Objective:
        """The objective, its losses bound to the pair with draws from the stream `loss`; at a point of its search, if it has one."""
        config, seed = cell.config, Streams.of(cell.config).loss
        given = config["objective"] if point is None else applied(config["objective"], point)
        objective = Objective(given, cell.sources, seed, Recipe.complete(config["recipe"])["epochs"])
        if objective.terms:
            assert self.teacher is not None, "an objective with terms is trained with a teacher"
            outputs = self.task.outputs(self.dataset)
            student_taps = probe_model(cell.config["student"], self.dataset, outputs, cell.sources).taps
            teacher_taps = probe_model(self.teacher.cell.config["student"], self.dataset, outputs, self.teacher.cell.sources).taps
            teacher, labels = self.teacher.model, self.data.targets("train").cpu() if self.task.has_classes else None
            if self.dataset.augments:
                student_taps, teacher_taps = student_taps.with_second_view(), teacher_taps.with_second_view()
            features = partial(self.teacher.features, self.data) if teacher_taps.pooled is not None else None
            objective.bind(Pair(student_taps, teacher_taps, labels, getattr(teacher, "head", None), teacher, features))
        return objective.to(self.device)

    def member(self, cell: Cell, point: Point | None = None, first: Record | None = None, store: Store | None = None) -> Member:
        """The student of a cell, ready to train; after its first stage, if that has finished. Raises PartError (missing), RefusedError (a
        loss), DataError (initial weights, or a second view of the images), or DamagedError (the weights of the first stage)."""
        objective, plan = self.objective(cell, point), BatchPlan.of(cell.config, self.data)
        if objective.augmentation is not None:  # what cannot be augmented so is a failure of this cell alone
            second = plan.second_views(objective.augmentation)
            index, views = next(second.epoch(0))
            with isolated(0):
                second.data.batch("train", index[:1], views[:1])
        student = self.student(cell)
        if (names := cell.config["objective"].get("inherits")) and self.teacher:
            inherit(student, self.teacher.model, names)
        if first and first.outcome == "finished" and store:
            if not same_images(first.result["data_fingerprint"], self.data.fingerprint):
                raise DataError(f"its first stage {first.id} was trained on other images than these ({self.data.fingerprint})")
            continue_from(student, objective, load_weights(store, first), first.config["objective"]["terms"])
        kind = GroupedMember if plan.groups > 1 else Member
        return kind(cell, student, objective, make_task(cell), plan.steps, point)


def first_stage_of(store: Store, cell: Cell) -> Record | None:
    """The record of the first of two stages; None for a cell without one. Raises DataError: it has not ended."""
    if "start" not in cell.depends:
        return None
    record = store.record(cell.depends["start"])
    if record is None:
        raise DataError(f"its first stage {cell.depends['start']} is not trained")
    return record


def point_of(store: Store, cell: Cell) -> Point | None:
    """The point that a tuned cell is trained at; None for others. Raises DataError: its trials do not tell."""
    tuned = cell.config["objective"].get("tuned")
    if tuned is None:
        return None
    trials = [store.record(other) for role, other in sorted(cell.depends.items()) if role.startswith(WORD)]
    if None in trials:
        raise DataError("not all of the trials that choose its weights are finished")
    return picked(tuned, filter(None, trials))


def make_task(cell: Cell) -> Task:
    """The cell's task, with the loss that its recipe and its objective ask for."""
    options = {name: value for name, value in cell.config["recipe"].items() if name in OF_TASK and value != Recipe.added[name]}
    options |= cell.config["objective"].get("task_options", {})
    return parts.from_config("task", {**cell.config["task"], "options": options}, cell.sources)


def make_dataset(cell: Cell) -> Dataset:
    return parts.from_config("dataset", cell.config["dataset"], cell.sources)


def make_model(cell: Cell, dataset: Dataset, task: Task) -> Model:
    """The cell's model with its input adapter, without the weights of its configuration."""
    config: Mapping[str, Any] = cell.config["student"]
    model: Model = parts.from_config("model", config, cell.sources, anew=True)
    model.build_for(dataset.input_shape, task.outputs(dataset), config.get("inputs", {}).get("size"))
    if "inputs" in config:
        model.adapt_inputs(config["inputs"], dataset.normalisation)
    return model


def load_data(cell: Cell, folder: Path, device: torch.device) -> Data:
    """The cell's dataset; a process reads it once for consecutive cells with the same dataset."""
    dataset = cell.config["dataset"]
    sources = {name: cell.sources[name] for name in (dataset["name"], "suite") if name in cell.sources}
    return _load_data(json.dumps(dataset), json.dumps(sources), folder, device)


@lru_cache(maxsize=1)
def _load_data(config: str, sources: str, folder: Path, device: torch.device) -> Data:
    dataset = json.loads(config)
    with isolated(0):  # random splits and subsets are the same each time
        return parts.from_config("dataset", dataset, json.loads(sources)).load(folder).to(device)
