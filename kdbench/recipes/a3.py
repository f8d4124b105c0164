from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class A3(Recipe):
    """Procedure A3 of "ResNet strikes back": 100 epochs on ImageNet at 160 pixels with LAMB, mixed images and binary cross-entropy.

    Its images: `dataset: {name: imagenet, size: 160, crop_pct: 0.95, interpolation: bicubic}`.
    Source: Wightman, Touvron and Jegou 2021 (arXiv 2110.00476), Table 2, column A3: LAMB, batch 2048, learning rate 8e-3, weight decay
    0.02 (not of norms and biases), 5 epochs of warm-up, cosine, RandAugment 6/0.5, mixup 0.1, CutMix 1.0; no label smoothing, stochastic
    depth, repeated augmentation, erasing or average of weights. LAMB clips the gradient to norm 1, as timm's does by default. The rest is
    of timm's script and its settings for A3: warm-up from 1e-4, least rate 1e-6, target threshold 0.2, drop_last.
    Departs: evaluation is at 160 pixels (theirs: 224), since a dataset has one size. The cosine starts at the end of the warm-up and
    changes at each update, as in MMPretrain's configuration of A3; timm's counts from the first epoch (lower by 0.6 % of the full rate
    where the warm-up ends, by at most 4.7 % later; `cosine_after_warmup: false`) and changes once an epoch. Training crops are resized by
    the dataset's interpolation; timm's script draws bilinear or bicubic for each.
    """

    epochs: int = 100
    batch_size: int = 2048
    lr: float = 8e-3
    optimizer: Literal["sgd", "nesterov", "adam", "adamw", "lamb", "lion"] = "lamb"
    weight_decay: float = 0.02
    decay_norms_and_biases: bool = False
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    warmup_epochs: int = 5
    warmup_lr: float = 1e-4
    lr_min: float = 1e-6
    cosine_after_warmup: bool = True
    drop_last: bool = True
    mixup: float = 0.1
    cutmix: float = 1.0
    rand_augment: str | None = "rand-m6-mstd0.5-inc1"
    task_loss: Literal["cross_entropy", "binary_cross_entropy"] = "binary_cross_entropy"
    target_threshold: float | None = 0.2
