from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._pyramid import check_levels, compared, unpaired
from kdbench.losses._soft import positive

SOURCE = "github.com/open-mmlab/mmrazor, configs/distill/mmdet/cwd"


class CWD(Loss):
    """Channel-wise distillation: each channel of a map, as a distribution over its positions, should be the teacher's.

    Sum over the maps of tau^2 times the mean over images and channels of KL( softmax(F_t / tau) || softmax(F_s / tau) ), the softmax over
    the positions of a channel.

    Shapes: maps F, n x c x h x w, of equal channels and sizes. With `tap: levels` of the levels with equal strides those at the places
        `levels`, counted from 0 at the finest (default: all), each a part of its own.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021 (arXiv 2011.13256);
        github.com/open-mmlab/mmrazor, mmrazor/models/losses/cwd.py.
    Defaults: tau 1 and weight 10 on all five levels of a pyramid, as in the configurations of that code for Faster R-CNN and RetinaNet (the
        one that is named after the class head of GFL has the levels, too).
    Departs: the paper compares the logits of segmentation with tau 4, and maps other channels by a 1x1 convolution; neither is offered.
        Levels are paired by stride, in the code by place. The softmax covers the margin of padded images, as in the code.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "mmrazor": Preset(f"{SOURCE}: Faster R-CNN, RetinaNet and GFL R101 to R50, tau 1, weight 10", weight=10.0)
    }

    couples = "sample"
    laws = frozenset({"permutation", "translation"})

    def __init__(self, *, tau: float = 1.0, tap: Literal["levels", "last", "stages"] = "levels", levels: list[int] | None = None):
        super().__init__()
        positive(tau=tau)
        check_levels(levels)
        self.tau = tau
        self.tap = tap
        self.levels = levels

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    def refuses(self, pair: Pair) -> str | None:
        return unpaired(pair, self.tap, self.levels)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        pairs = compared(student, teacher, self.tap, self.levels)
        return {"" if self.tap == "last" else name: self._apart(x, y) for name, (x, y) in pairs.items()}

    def _apart(self, x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        rows = (functional.log_softmax(z.flatten(0, 1).flatten(1) / self.tau, 1) for z in (x, y))
        return self.tau**2 * functional.kl_div(*rows, reduction="batchmean", log_target=True)
