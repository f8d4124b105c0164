from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class DeitSmallData(Recipe):
    """AdamW with DeiT's augmentation, for small vision transformers that are trained from scratch on small sets of small images.

    It is the recipe of "Vision Transformer for Small-Size Datasets" with the RandAugment of DeiT, and not a recipe of the DeiT authors. It
    was made for CIFAR and Tiny-ImageNet. Stochastic depth is an option of the model: the source has `drop_path_rate: 0.1`.
    Source: Lee, Lee and Song 2021 (arXiv 2112.13492) and the script of the authors' repository (SPT_LSA_ViT): AdamW, learning rate 1e-3,
    batch 128, weight decay 0.05 of all parameters, 100 epochs, 10 of them warm-up, cosine between rates of 1e-6, label smoothing 0.1, half
    of the batches mixed (mixup or CutMix, alpha 1), erasing 0.25, drop_last. RandAugment: Touvron et al. 2021 (DeiT).
    Departs: RandAugment instead of the AutoAugment policy of CIFAR-10. An epoch has each image once; theirs has three views of each image,
    in the same batch (`epochs: 300, warmup_epochs: 30` has their number of updates). Erasing covers at most a third of the image, not 0.4.
    """

    epochs: int = 100
    batch_size: int = 128
    lr: float = 1e-3
    optimizer: Literal["sgd", "nesterov", "adam", "adamw", "lamb", "lion"] = "adamw"
    weight_decay: float = 0.05
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    warmup_epochs: int = 10
    warmup_lr: float = 1e-6
    lr_min: float = 1e-6
    cosine_after_warmup: bool = True
    drop_last: bool = True
    label_smoothing: float = 0.1
    mixup: float = 1.0
    cutmix: float = 1.0
    mix_probability: float = 0.5
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    random_erasing: float = 0.25
