from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._hcl import Fusion, hcl
from kdbench.losses._stagewise import check_place, unmatched

Maps = list[Float[Tensor, "n _ _ _"]]


class ReviewKD(Loss):
    """Knowledge review: the student's maps, each fused with those of the deeper stages, should equal the teacher's maps.

    sum over the levels l of HCL( F_l, T_l ), the levels the stages from `first_stage` on and, as a map of 1x1, the pooled features.
    From the deepest level on, F_l = BN(conv 3x3 (R_l)), R_l the fusion X_l A_1 + R_(l+1) A_2 resized to the size of T_l, with
    X_l = BN(conv 1x1 (S_l)) and (A_1, A_2) = sigmoid(conv 1x1 (X_l, R_(l+1))); at the deepest level R = X. R_(l+1) is resized to the size
    of S_l. Both resize by the nearest neighbour. R has as many channels as the student's pooled features, at most `middle`.
    HCL is the weighted mean of the mean squared differences of the maps, and of both averaged to 4x4, 2x2 and 1x1, with weights of 1, 1/2,
    1/4 and 1/8 in order of use; sizes that are not smaller than the height are left out, so that of maps of 1x1 the first alone is used.

    Shapes: S_l and T_l n x c x h x w; both models may differ in all but n, and must have the same number of stages. `maps` says which:
    released: the teacher's before their ReLU, the student's after it (as the ReLU of `preact`); preact: both before it;
    stages: both after it, for a model without `preact`.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021; github.com/dvlab-research/ReviewKD, CIFAR-100.
    Defaults: weight 1 with a linear warm-up of 20 of 240 epochs, as in github.com/megvii-research/mdistiller, resnet110 to resnet32.
    Departs: the stem is left out, as in the released code (there by a zip that stops early). mdistiller does not use its option of the most
        channels (it takes 512); the authors' code has 256 for MobileNet. The released code is told the sizes for each pair; here they are
        the models' own. With one image and a map of 1x1, a batch norm gives its bias where PyTorch raises.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        name: Preset(
            f"github.com/megvii-research/mdistiller, CIFAR-100, {pairs}: linear warm-up of 20 epochs",
            weight=weight,
            warm_up=20.0,
            epochs=240,
        )
        for name, weight, pairs in (
            ("mdistiller", 1.0, "resnet110 to resnet32"),
            ("mdistiller_res20", 0.6, "resnet56 to resnet20"),
            ("mdistiller_wrn", 5.0, "wide ResNets (kdbench's have no `preact`), resnet32x4 to resnet8x4 and to ShuffleNetV1"),
            ("mdistiller_shufflev2", 8.0, "resnet32x4 to ShuffleNetV2"),
        )
    } | {
        "official_imagenet": Preset("github.com/dvlab-research/ReviewKD, ImageNet: ResNet-34 to ResNet-18, no warm-up", weight=1.0),
        "official_imagenet_mobilenet": Preset(
            "github.com/dvlab-research/ReviewKD, ImageNet: ResNet-50 to MobileNetV1, no warm-up", weight=8.0, options={"middle": 256}
        ),
    }

    def __init__(self, *, maps: Literal["released", "preact", "stages"] = "released", first_stage: int = 1, middle: int = 512):
        super().__init__()
        check_place(first_stage)
        if middle < 1:
            raise ValueError(f"middle must be at least 1 channel, not {middle}")
        self.maps = maps
        self.first_stage = first_stage
        self.middle = middle

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self._tap, "pooled"})

    @property
    def laws(self) -> frozenset[str]:
        # The batch norm after each 1x1 convolution takes the mean away; not what a ReLU between them makes of it.
        return frozenset({"permutation", *(set() if self.maps == "released" else {"translation"})})

    @property
    def _tap(self) -> str:
        return "stages" if self.maps == "stages" else "preact"

    def refuses(self, pair: Pair) -> str | None:
        return unmatched(pair, self._tap, self.first_stage)

    def bind(self, pair: Pair) -> None:
        widths = [[one.shape[1] for one in self._levels(taps)] for taps in (pair.student, pair.teacher)]
        middle = min(self.middle, widths[0][-1])
        deepest = len(widths[0]) - 1
        self.fusions = nn.ModuleList(
            Fusion(into, middle, out, place == deepest) for place, (into, out) in enumerate(zip(*widths, strict=True))
        )

    def _levels(self, taps: Taps) -> Maps:
        """The maps, shallow to deep, and the pooled features as the last of them."""
        assert taps.pooled is not None
        return [*getattr(taps, self._tap)[self.first_stage :], taps.pooled[:, :, None, None]]

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        inputs, targets = self._levels(student), self._levels(teacher)
        if self.maps == "released":
            inputs = [*(one.relu() for one in inputs[:-1]), inputs[-1]]
        values, deeper = [], None
        for fusion, x, y in reversed(list(zip(self.fusions, inputs, targets, strict=True))):
            fused, deeper = fusion(x, deeper, y.shape[2:])
            values.append(hcl(fused, y))
        return torch.stack(values).sum()
