"""From a cell's configuration to the objects that are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench import parts
from kdbench.cell import Cell
from kdbench.datasets._base import Data
from kdbench.losses._base import Pair
from kdbench.models._base import Model
from kdbench.plan.probe import probe_model
from kdbench.run.draws import Streams
from kdbench.run.numerics import laid_out
from kdbench.run.objective import Objective
from kdbench.run.start import start_from
from kdbench.tasks._base import Task


def make_task(cell: Cell) -> Task:
    config = cell.config["task"]
    return parts.from_config("task", {**config, "options": {}}, cell.sources)


def make_dataset(cell: Cell) -> Any:
    return parts.from_config("dataset", cell.config["dataset"], cell.sources)


def make_model(config: Mapping[str, Any], cell: Cell, data: Data, task: Task) -> Model:
    """A model with freshly drawn weights (the caller seeds torch's generator first), seeing its inputs as it was made to."""
    dataset = make_dataset(cell)
    model = parts.from_config("model", config, cell.sources)
    model.build(data.input_shape, task.outputs(dataset))
    if "inputs" in config:
        model.sees(config["inputs"], dataset.normalisation)
    return model


def make_student(cell: Cell, data: Data, task: Task, device: torch.device) -> nn.Module:
    """The student with its initial weights: drawn on the CPU whatever the device, so that every machine starts from the same."""
    torch.manual_seed(Streams.of(cell.config).init)
    model = make_model(cell.config["student"], cell, data, task)
    start_from(model, cell.config["student"], cell, data.input_shape[0])
    return laid_out(model, cell.config["numerics"], device)


def make_objective(cell: Cell, data: Data, task: Task, device: torch.device, teacher: nn.Module | None, teacher_config: Any) -> Objective:
    """The objective, its losses bound to the pair; their own parameters drawn from the stream `loss`."""
    objective = Objective(cell.config["objective"], cell.sources)
    if objective.terms:
        dataset, outputs = make_dataset(cell), task.outputs(make_dataset(cell))
        student_taps = probe_model(cell.config["student"], dataset, outputs, cell.sources).taps
        teacher_taps = probe_model(teacher_config, dataset, outputs, cell.sources).taps
        head = getattr(teacher, "head", None)
        torch.manual_seed(Streams.of(cell.config).loss)
        objective.bind(Pair(student_taps, teacher_taps, data.targets("train").cpu(), head, teacher))
    return objective.to(device)


def load_data(cell: Cell, folder: Path, device: torch.device) -> Data:
    """The cell's dataset, read once in a process for all cells that follow with the same."""
    dataset = cell.config["dataset"]
    return _load_data(json.dumps(dataset), cell.sources.get(dataset["name"]), folder, device)


@lru_cache(maxsize=1)
def _load_data(config: str, source: str | None, folder: Path, device: torch.device) -> Data:
    dataset = json.loads(config)
    return parts.from_config("dataset", dataset, {dataset["name"]: source} if source else {}).load(folder).to(device)
