from dataclasses import dataclass
from typing import Literal

from kdbench.recipes._base import Recipe


@dataclass(frozen=True, kw_only=True)
class Coco12(Recipe):
    """The 12 epochs ("1x") of detectors on MS-COCO whose body has pretrained weights: its batch norms and first stage are frozen.

    Its images: `dataset: coco` (the shorter side 800 pixels, the longer at most 1333, flips). RetinaNet and FCOS have half of the rate:
    write `{name: coco12, lr: 0.01, warmup_lr: 1.0e-5}`.
    Source: mmdetection, configs/_base_/schedules/schedule_1x.py and models/faster-rcnn_r50_fpn.py: 8 GPUs with 2 images each, learning rate
    0.02, times 0.1 after epochs 8 and 11, momentum 0.9, weight decay 1e-4, a linear warm-up of 500 updates from 0.001 of the rate,
    `frozen_stages=1` (stem and first stage), `norm_eval=True`.
    Departs: weights and biases of batch norms are frozen in all stages, as torchvision does it; mmdetection trains them beyond the first.
    """

    epochs: int = 12
    batch_size: int = 16
    lr: float = 0.02
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (8, 11)
    warmup_steps: int = 500
    warmup_lr: float = 2e-5
    batch_norm: Literal["trained", "frozen"] = "frozen"
    frozen_stages: int = 2
