from dataclasses import dataclass
from typing import Literal

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class SmallDetector(Recipe):
    """A few epochs of AdamW for small detectors on small sets, from initial weights: batch norm is trained.

    Source: defined by kdbench; no paper uses it.
    """

    epochs: int = 6
    batch_size: int = 8
    lr: float = 2e-3
    optimizer: Literal["sgd", "nesterov", "adam", "adamw", "lamb", "lion"] = "adamw"
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    warmup_epochs: int = 1
    warmup_lr: float = 8e-5
    cosine_after_warmup: bool = True
    clip_grad: float | None = 5.0
