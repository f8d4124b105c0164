from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Tv90(Recipe):
    """The 90-epoch ImageNet recipe of torchvision's reference training, which made its first weights (`IMAGENET1K_V1`) of ResNets.

    Its images: `dataset: imagenet` (224 pixels).
    Source: torchvision, references/classification, README.md and train.py: 90 epochs, 8 GPUs with 32 images each, learning rate 0.1, times
    0.1 every 30 epochs, momentum 0.9, weight decay 1e-4 of all parameters, batch norm of each GPU (`--sync-bn` is off).
    Departs: the last batch of an epoch has 143 images; theirs is filled up with images that the epoch has had. Running statistics are the
    mean over the groups; theirs are those of the first GPU.
    """

    epochs: int = 90
    batch_size: int = 256
    lr: float = 0.1
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (30, 60)
    bn_groups: int = 8
