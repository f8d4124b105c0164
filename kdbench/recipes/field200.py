from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Field200(Recipe):
    """The field's 200-epoch CIFAR recipe for ImageNet-style nets: batch 128, 0.1, times 0.2 at 60, 120 and 160 epochs.

    Source: the CIFAR branch of the RKD authors' repository, which most 3x3-stem ResNet results share.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    milestones: tuple[float, ...] = (60, 120, 160)
    decay_rate: float = 0.2
