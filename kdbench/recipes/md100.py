from dataclasses import dataclass

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Md100(Recipe):
    """The 100-epoch ImageNet recipe of mdistiller, which the table of DKD and those of later papers use.

    Its images: `dataset: imagenet` (224 pixels).
    Source: mdistiller, configs/imagenet/r34_r18 and r50_mv1 (kd, at, dkd): 100 epochs, batch 512, learning rate 0.2, times
    0.1 after epochs 30, 60 and 90, momentum 0.9, weight decay 1e-4 of all parameters. Its configurations of CRD and ReviewKD have batch
    256 and rate 0.1: write `{name: md100, batch_size: 256, lr: 0.1}`.
    Departs: `bn_groups` is assumed: it trains on several GPUs with batch norm of each, and does not state how many. Running statistics are
    the mean over the groups; theirs are those of the first GPU.
    """

    epochs: int = 100
    batch_size: int = 512
    lr: float = 0.2
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (30, 60, 90)
    bn_groups: int = 8
