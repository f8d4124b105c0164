"""What `plan` states of hours and disk space before anything was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from kdbench.cli import main
from kdbench.plan import matrix, needs, probe
from kdbench.plan.suite import read
from kdbench.plan.summary import PlanSummary
from kdbench.recipes._base import Recipe
from kdbench.run import estimate
from kdbench.store import Store
from kdbench.tasks.classification import Classification
from kdbench.timm_adapter import make_optimizer
from tests.test_estimate import costs_of

SUITES = Path(__file__).parents[1] / "suites"


def test_the_disk_space_of_imagenet160_is_that_of_its_nets_and_of_the_predictions_for_50000_images() -> None:
    plan = matrix.expand(read(SUITES / "imagenet160.yaml"))
    kept, checkpoint, predicted = needs.disk_mib(plan, probe.probe(plan))

    # Source: torchvision's numbers of parameters, and by hand: means and variances of batch norm (4 bytes), counters (8 bytes).
    resnet18, resnet34 = 11_689_512 * 4 + 9_600 * 4 + 20 * 8, 21_797_672 * 4 + 17_024 * 4 + 36 * 8
    one_image = 5 * 4 + 8 + 1 + 4 + 4 + 4  # top-5, target, correct, nll, predicted, confidence
    assert predicted and kept * 2**20 == pytest.approx(24 * resnet18 + resnet34 + 25 * 50_000 * one_image, rel=1e-9)
    assert checkpoint * 2**20 == pytest.approx(2 * resnet18), "the weights and the momentum; the teacher is not trained"


@pytest.mark.parametrize("outputs", [10, 200, 201, 1000])
def test_the_bytes_of_an_image_are_those_of_the_arrays_that_are_saved(outputs: int) -> None:
    task, targets = Classification(), np.arange(7) % outputs
    raw = {"logits": np.random.default_rng(0).normal(size=(7, outputs)).astype(np.float32)}

    saved = {**task.keep(raw, targets), "target": targets, **task.per_image(raw, targets)}
    assert 7 * task.bytes_per_image(outputs) == sum(array.nbytes for array in saved.values())


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw", "lamb", "lion"])
def test_a_checkpoint_holds_the_weights_and_what_its_optimizer_keeps(optimizer: str) -> None:
    net = nn.Linear(100, 100, bias=False)
    recipe = {
        "optimizer": optimizer,
        "epochs": 1,
        "lr": 0.01,
        "batch_size": 8,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "decay_norms_and_biases": True,
    }
    made = make_optimizer(net, Recipe.complete(recipe))
    net(torch.randn(2, 100)).sum().backward()
    made.step()
    held = sum(value.numel() for one in made.state_dict()["state"].values() for value in one.values() if isinstance(value, torch.Tensor))

    assert 10_000 * (needs._copies(recipe) - 1) == pytest.approx(held, abs=10)
    assert needs._copies({**recipe, "ema": 0.99}) == needs._copies(recipe) + 1
    assert needs._copies({**recipe, "epochs": 0}) == 0


def test_plan_states_hours_at_an_assumed_speed_where_nothing_was_measured(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    def said(*more: str) -> list[str]:
        result = CliRunner().invoke(main, ["plan", str(write_suite()), "--results", str(tmp_path / "none"), "--device", "cpu", *more])
        assert result.exit_code == 0, result.output
        return result.output.splitlines()

    assert not any("GPU hours" in line for line in said()), "a small suite may be meant for a CPU"
    (work,) = [line for line in said("--tflop-per-s", "1e-10") if "GPU hours" in line]
    assert "GPU hours at 1e-10 TFLOP per second, which is assumed (--tflop-per-s changes it)" in work
    assert needs.assumed_hours(180_000, 10.0).startswith("; about 5.0 GPU hours at 10 TFLOP per second")
    assert needs.assumed_hours(None, 10.0) == ""
    (disk,) = [line for line in said() if line.startswith("  disk:")]
    assert disk.endswith("for each student while it is trained") and "(weights, without predictions)" in disk


def test_measured_step_times_give_the_hours_of_all_processes(
    write_suite: Callable[..., Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlook = PlanSummary.of(write_suite(), store.root)
    costs = costs_of(outlook.plan, store, step_s=3600.0, first_s=3600.0, last_s=3600.0)
    monkeypatch.setattr(estimate.Costs, "here", lambda *_: costs)

    # A teacher and four students of three epochs with three steps of an hour each.
    assert ", 45 core hours (measured step times)" in estimate.time_left(outlook, 2, "cpu").replace("45.1", "45").replace("45.2", "45")
