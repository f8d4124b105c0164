"""What a suite needs before anything was measured or run: hours of a device, from its work and an assumed speed, and space on the disk."""

from __future__ import annotations

from typing import Any

from kdbench import parts
from kdbench.plan.bundle import model_key
from kdbench.plan.matrix import Plan
from kdbench.plan.probe import Probes
from kdbench.recipes._base import MOMENTUM, Recipe

TFLOP_PER_S = 10.0
"""The speed that is assumed of a device: a round number, which large GPUs exceed by far."""
SHORT_H = 1.0
"""Less work than this many hours is left out: it may be meant for a CPU, which is slower."""
MIB = 2**20


def assumed_hours(tflop: float | None, tflop_per_s: float) -> str:
    """`; about 154 GPU hours at an assumed ...`; empty for little work, and where it is unknown."""
    hours = (tflop or 0.0) / tflop_per_s / 3600
    if hours < SHORT_H:
        return ""
    about = f"{hours:,.{0 if hours >= 100 else 1}f} GPU hours"
    return f"; about {about} at {tflop_per_s:g} TFLOP per second, which is assumed (--tflop-per-s changes it)"


def disk_mib(plan: Plan, probes: Probes) -> tuple[float, float, bool]:
    """(what all cells keep: weights and predictions; the largest checkpoint of a student, while it is trained; whether predictions count,
    which they do not where the dataset does not declare its test images). Without the parameters of losses."""
    dataset: Any = parts.from_config("dataset", plan.suite.dataset, plan.suite.sources)
    task = plan.task()
    each, images = task.bytes_per_image(task.outputs(dataset)), dataset.test_images
    weights = {
        key: sum(one.numel() * one.element_size() for one in probed.model.state_dict().values()) for key, probed in probes.models.items()
    }
    kept = sum(weights[model_key(cell.config["student"])] for cell in plan.cells.values())
    checkpoints = [weights[model_key(cell.config["student"])] * _copies(cell.config["recipe"]) for cell in plan.cells.values()]
    return (kept + len(plan.cells) * (each or 0) * (images or 0)) / MIB, max(checkpoints) / MIB, bool(each and images)


def _copies(given: dict[str, Any]) -> int:
    """How many times a checkpoint holds the weights: themselves, the optimiser's averages, the moving average."""
    recipe = Recipe.complete(given)
    return (1 + (1 if recipe["optimizer"] in (*MOMENTUM, "lion") else 2) + (recipe["ema"] is not None)) if recipe["epochs"] else 0


def disk_line(plan: Plan, probes: Probes) -> str:
    kept, checkpoint, predicted = disk_mib(plan, probes)
    what = "weights and at most the predictions" if predicted else "weights, without predictions"
    return f"  disk: {_size(kept)} for all cells ({what}); a checkpoint of {_size(checkpoint)} for each student while it is trained"


def _size(mib: float) -> str:
    return f"{mib / 1024:.3g} GiB" if mib >= 1000 else f"{mib:.3g} MiB"
