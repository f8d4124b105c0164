"""timm's one door: models, optimisers and schedules come through here."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from kdbench.errors import PartError, nearest

# timm's own 'sgd' is Nesterov's, and by default it spares biases and norms from weight decay: the literature's recipes want neither.
OPTIMIZERS = {"sgd": "momentum", "nesterov": "nesterov", "adamw": "adamw"}


def make_optimizer(module: nn.Module, recipe: dict[str, Any]) -> Optimizer:
    from timm.optim import create_optimizer_v2

    momentum = {} if recipe["optimizer"] == "adamw" else {"momentum": recipe["momentum"]}
    return create_optimizer_v2(
        module,
        opt=OPTIMIZERS[recipe["optimizer"]],
        lr=recipe["lr"],
        weight_decay=recipe["weight_decay"],
        filter_bias_and_bn=not recipe["decay_norms_and_biases"],
        **momentum,
    )


def make_scheduler(optimizer: Optimizer, recipe: dict[str, Any], steps_per_epoch: int) -> Any:
    """A schedule of the learning rate by update: call `step_update(number of updates done)` after each."""
    from timm.scheduler import CosineLRScheduler
    from timm.scheduler.multistep_lr import MultiStepLRScheduler

    warmup = {"warmup_t": recipe["warmup_epochs"] * steps_per_epoch, "warmup_lr_init": 0.0, "t_in_epochs": False}
    if recipe["schedule"] == "cosine":
        return CosineLRScheduler(optimizer, t_initial=recipe["epochs"] * steps_per_epoch, **warmup)
    milestones = recipe["milestones"] if recipe["schedule"] == "step" else []
    # timm applies a milestone one index early (its t + 1), and annotates whole numbers though it only bisects: a milestone may fall
    # within an epoch. Milestones count from the start, warm-up included.
    at = [milestone * steps_per_epoch + 1 for milestone in milestones]
    return MultiStepLRScheduler(optimizer, decay_t=at, decay_rate=recipe["decay_rate"], warmup_prefix=False, **warmup)


def make_model(architecture: str, inputs: tuple[int, ...], outputs: int, **arguments: Any) -> nn.Module:
    """A timm model with random weights. Raises PartError with the nearest name when timm has no such model."""
    import timm

    if not timm.is_model(architecture):
        raise PartError(f"timm has no model '{architecture}'{nearest(architecture, timm.list_models())[:200]}")
    return timm.create_model(architecture, pretrained=False, num_classes=outputs, in_chans=inputs[0], **arguments)


def has_model(architecture: str) -> bool:
    import timm

    return timm.is_model(architecture)


def model_names() -> list[str]:
    import timm

    return timm.list_models()
