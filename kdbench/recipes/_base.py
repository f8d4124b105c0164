"""The contract of a recipe: how a model is optimised. A recipe is data; `kdbench.through_timm` makes optimiser and schedule of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """SGD with momentum and a stepped learning rate unless told otherwise.

    `milestones` are in epochs (fractions allowed); the learning rate is multiplied by `decay_rate` at each. `weight_decay` falls on
    every parameter, as the literature's recipes have it, unless `decay_norms_and_biases` is false. The small last batch stays unless
    `drop_last`. `class_uniform` draws batches of so many images of each class that they hold (0: of any images), as the samplers of
    correlation congruence do; every image still comes once an epoch. `clip_grad` is a maximal global norm of the gradient.
    `evaluate_every` is in epochs; the last epoch always counts.
    """

    version: ClassVar[int] = 1
    shared: ClassVar[frozenset[str]] = frozenset({"epochs", "batch_size", "drop_last", "evaluate_every", "class_uniform"})
    """What students of a pair have in common: the data stream. A student's own recipe cannot change these."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "nesterov", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norms_and_biases: bool = True
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[float, ...] = field(default=())
    decay_rate: float = 0.1
    warmup_epochs: int = 0
    drop_last: bool = False
    clip_grad: float | None = None
    evaluate_every: int = 1
    class_uniform: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "decay_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("momentum", "weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, and is {getattr(self, name)}")
        if self.class_uniform < 0 or (self.class_uniform and self.batch_size % self.class_uniform):
            raise ValueError(f"class_uniform must divide the batch of {self.batch_size} (or be 0), and is {self.class_uniform}")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ValueError(f"clip_grad must be positive, not {self.clip_grad}")
        if any(later <= earlier for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones must increase, and are {list(self.milestones)}")
