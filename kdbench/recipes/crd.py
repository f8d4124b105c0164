from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class CRD(Recipe):
    """The 240-epoch CIFAR-100 recipe of CRD, on which most published tables stand.

    Source: RepDistiller's training script and mdistiller's cifar100 configurations; the learning rate is 0.01 for MobileNetV2 and
    the ShuffleNets, which a suite says per student.
    """

    epochs: int = 240
    batch_size: int = 64
    lr: float = 0.05
    milestones: tuple[float, ...] = (150, 180, 210)
