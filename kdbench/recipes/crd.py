from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class CRD(Recipe):
    """The 240-epoch CIFAR-100 recipe of CRD, which most published tables use.

    Source: RepDistiller's training script and mdistiller's cifar100 configurations. For MobileNetV2 and the ShuffleNets they use a learning
    rate of 0.01: set it for these students in the suite.
    """

    epochs: int = 240
    batch_size: int = 64
    lr: float = 0.05
    milestones: tuple[float, ...] = (150, 180, 210)
