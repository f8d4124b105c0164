from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Field200(Recipe):
    """The usual 200-epoch CIFAR recipe for ImageNet-style nets: batch 128, learning rate 0.1, multiplied by 0.2 at epochs 60, 120 and 160.

    The name means: usual in the field, 200 epochs.
    Source: the CIFAR branch of the RKD authors' repository, whose values most results with ResNets for small images (3x3 stem) use.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    milestones: tuple[float, ...] = (60, 120, 160)
    decay_rate: float = 0.2
