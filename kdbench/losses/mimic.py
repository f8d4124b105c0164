from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._pyramid import check_levels, compared, unpaired


class Mimic(Loss):
    """Feature imitation on a pyramid (FitNet's hint for detectors): a learned map of each of the student's levels should equal the
    teacher's.

    Sum over the levels of mean( (A F_s - F_t)^2 ), A a 1x1 convolution with bias for each level, also where the channels are equal.

    Shapes: levels F, n x c x h x w; both models may differ in c. Of the levels with equal strides those at the places `levels`, counted
        from 0 at the finest (default: all). Each level is a part of its own.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015; for detectors as the term `mimic` of
        github.com/hunto/MasKD, mmrazor/configs/distill/dist (MSELoss and align_module).
    Defaults: all levels with weight 1, as there for RetinaNet and Faster R-CNN, beside DIST.
    Departs: levels are paired by stride, in the code by place. FitNet's regressor ends in batch norm and ReLU; this one is linear.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "maskd": Preset("github.com/hunto/MasKD, dist+mimic configurations: the mean squared error of five levels, weight 1", weight=1.0)
    }

    needs = frozenset({"levels"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(self, *, levels: list[int] | None = None):
        super().__init__()
        check_levels(levels)
        self.levels = levels

    def refuses(self, pair: Pair) -> str | None:
        return unpaired(pair, "levels", self.levels, learnt=True)

    def bind(self, pair: Pair) -> None:
        pairs = compared(pair.student, pair.teacher, "levels", self.levels)
        self.align = nn.ModuleDict({name: nn.Conv2d(x.shape[1], y.shape[1], 1) for name, (x, y) in pairs.items()})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        pairs = compared(student, teacher, "levels", self.levels)
        return {name: functional.mse_loss(self.align[name](x), y) for name, (x, y) in pairs.items()}
