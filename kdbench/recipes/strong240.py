from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Strong240(Recipe):
    """The CIFAR-100 recipe with strong augmentation of multi-level logit distillation (MLLD): that of CRD at half the learning rate.

    Compare results only with others of this recipe: published tables put its rows beside those of weaker augmentation.
    Source: the authors' repository (Jin-Ying/Multi-Level-Logit-Distillation, CVPR 2023), configs/cifar100/ours: 240 epochs, batch 64,
    learning rate 0.025, times 0.1 at epochs 150, 180 and 210, weight decay 5e-4. Its configurations for MobileNetV2 and the ShuffleNets
    have 480 epochs, the same milestones, and a rate of 0.01 (ShuffleNets) or 0.0025 (MobileNetV2): for these write
    `{name: strong240, epochs: 480, milestones: [150, 180, 210]}` and set `lr` for the student.
    Augmentation: crop and flip, then two operations of RandAugment with uniform magnitudes, then a hole of up to half the side (8 % of the
    area on average); here timm's RandAugment, and random erasing with probability 0.5 (9 % on average).
    Departs: there each batch has every image twice, with and without the strong augmentation, and the loss is the sum over both; here it is
    that of the strong one only. timm's operations have other ranges, and the erased part becomes noise instead of grey.
    """

    epochs: int = 240
    batch_size: int = 64
    lr: float = 0.025
    milestones: tuple[float, ...] = (150, 180, 210)
    rand_augment: str | None = "rand-m10-n2-p1-mstd101"
    random_erasing: float = 0.5
