from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._pyramid import check_levels, compared, unpaired

SOURCE = "github.com/open-mmlab/mmrazor, configs/distill/mmdet/pkd"
FOUR = {"levels": [0, 1, 2, 3]}


class PKD(Loss):
    """Distillation by Pearson correlation: each channel of a level, over its images and positions, should correlate with the teacher's.

    Sum over the levels of 1/2 mean( (z_s - z_t)^2 ) with z = (F - m) / (s + 1e-6): m and s are the mean and the standard deviation (with
    N - 1) of a channel over the N = n h w values of the batch. But for the 1e-6 it is (1 - 1/N) (1 - the mean correlation of the channels).

    Shapes: levels F, n x c x h x w, of equal channels; of the levels with equal strides those at the places `levels`, counted from 0 at
        the finest (default: all). Each level is a part of its own.

    Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS 2022
        (arXiv 2207.02039); github.com/open-mmlab/mmrazor, mmrazor/models/losses/pkd_loss.py.
    Defaults: the four finest levels with weight 6, as that code has for Faster R-CNN; 10 for RetinaNet.
    Departs: levels are paired by stride, and of equal size; the code pairs them by place and resizes the student's where the heights
        differ. A channel that is constant (as all are with one value) has z = 0, with a gradient of up to 1e6 / N where it is the
        student's alone; the code's gradient is then not a number.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "faster_rcnn": Preset(f"{SOURCE}: Faster R-CNN R101 to R50 (and Mask R-CNN Swin to RetinaNet R50), 6", weight=6.0, options=FOUR),
        "retinanet": Preset(f"{SOURCE}: RetinaNet X101 to R50, FCOS X101 to RetinaNet R50, RepPoints, 10", weight=10.0, options=FOUR),
    }

    needs = frozenset({"levels"})
    laws = frozenset({"permutation", "translation"})

    def __init__(self, *, levels: list[int] | None = None):
        super().__init__()
        check_levels(levels)
        self.levels = levels

    def refuses(self, pair: Pair) -> str | None:
        return unpaired(pair, "levels", self.levels)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        pairs = compared(student, teacher, "levels", self.levels)
        return {name: functional.mse_loss(_standardised(x), _standardised(y)) / 2 for name, (x, y) in pairs.items()}


def _standardised(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "c m"]:
    x = x.transpose(0, 1).flatten(1)
    x = x - x[:, :1].detach()  # so that equal values become exactly zero
    x = x - x.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(x, dim=1, keepdim=True) / max(x.shape[1] - 1, 1) ** 0.5
    return x / (deviation + 1e-6)
