from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._hcl import Fusion, hcl
from kdbench.losses._pyramid import check_levels, compared, unpaired

SOURCE = "github.com/dvlab-research/ReviewKD, Detection/configs"


class ReviewKDFPN(Loss):
    """Knowledge review on a pyramid: the student's levels, each fused with the coarser ones, should equal the teacher's levels.

    Sum over the levels l of HCL( F_l, T_l ). From the coarsest level on, F_l = BN(conv 3x3 (R_l)), R_l the fusion X_l A_1 + R_(l+1) A_2
    with X_l = BN(conv 1x1 (S_l)) and (A_1, A_2) = sigmoid(conv 1x1 (X_l, R_(l+1))); at the coarsest level R = X. R_(l+1) is resized to the
    size of S_l by the nearest neighbour. HCL is the weighted mean of the mean squared differences of the maps, and of both averaged to 4x4,
    2x2 and 1x1, with weights of 1, 1/2, 1/4 and 1/8 in order of use; sizes that are not smaller than the height are left out.

    Shapes: levels S_l and T_l, n x c x h x w; both models may differ in c. R has the channels of the student's coarsest level. Of the
        levels with equal strides those at the places `levels`, counted from 0 at the finest (default: all). Each is a part of its own.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021; github.com/dvlab-research/ReviewKD, Detection/model.
    Defaults: all five levels with weight 1, as in that code for Faster R-CNN R101 to R50; 1.2 to R18, 2 for R50 to MobileNetV2.
    Departs: the code has 256 channels everywhere. Levels are paired by stride, in the code by place. With one image and a level of 1x1, a
        batch norm gives its bias where PyTorch raises.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "faster_rcnn": Preset(f"{SOURCE}: Faster R-CNN R101 to R50; RetinaNet R101 to R50, 1", weight=1.0),
        "faster_rcnn_r18": Preset(f"{SOURCE}: Faster R-CNN R101 to R18, 1.2", weight=1.2),
        "faster_rcnn_mv2": Preset(f"{SOURCE}: Faster R-CNN R50 to MobileNetV2, 2", weight=2.0),
    }

    needs = frozenset({"levels"})
    # The batch norm after each 1x1 convolution takes the mean away.
    laws = frozenset({"permutation", "translation"})

    def __init__(self, *, levels: list[int] | None = None):
        super().__init__()
        check_levels(levels)
        self.levels = levels

    def refuses(self, pair: Pair) -> str | None:
        return unpaired(pair, "levels", self.levels, learnt=True)

    def bind(self, pair: Pair) -> None:
        maps = list(compared(pair.student, pair.teacher, "levels", self.levels).values())
        middle = maps[-1][0].shape[1]
        self.fusions = nn.ModuleList(Fusion(x.shape[1], middle, y.shape[1], place + 1 == len(maps)) for place, (x, y) in enumerate(maps))

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        pairs = compared(student, teacher, "levels", self.levels)
        found, coarser = {}, None
        for fusion, (name, (x, y)) in reversed(list(zip(self.fusions, pairs.items(), strict=True))):
            fused, coarser = fusion(x, coarser, y.shape[2:])
            found[name] = hcl(fused, y)
        return found
