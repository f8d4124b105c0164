from dataclasses import dataclass
from typing import Literal

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Short160(Recipe):
    """Thirty epochs on ImageNet at 160 pixels: to compare losses under a short budget, on the whole test set.

    Its images: `dataset: {name: imagenet, size: 160}`. Batch, learning rate, weight decay and groups are those of `tv90`; a cosine that
    falls to 0 is in place of the steps.
    Source: defined by kdbench; no paper uses it. The size of the images is that of procedure A3 (Wightman et al. 2021), which trains for
    100 epochs. Whether losses rank as after 100 epochs at 224 pixels is not known.
    """

    epochs: int = 30
    batch_size: int = 256
    lr: float = 0.1
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    bn_groups: int = 8
