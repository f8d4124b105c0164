from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._pyramid import aligned, check_levels, compared, unpaired


class MGD(Loss):
    """Masked generative distillation: the teacher's map should be generated from a student's map of which parts are missing.

    1/n || G(m * A(F_s)) - F_t ||^2, summed over channels and positions, and over the levels. m is 0 with probability `mask` and else 1,
    drawn anew in each step for each image and channel (`masks: channels`) or position (`masks: positions`). A is a 1x1 convolution to the
    teacher's channels (nothing where they are equal); G is a 3x3 convolution, ReLU and a 3x3 convolution, all of the teacher's channels.
    All convolutions have a bias; each level has its own.

    Shapes: maps F, n x c x h x w; both models may differ in c, not in h and w. With `tap: levels` of the levels with equal strides those at
        the places `levels`, counted from 0 at the finest (default: all), each a part of its own.

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022, github.com/yzd-v/MGD, det/; for classification
        github.com/yzd-v/cls_KD, dis_losses/mgd.py.
    Defaults: the last map, weight 0.0012 and mask 0.15 of channels, as in cls_KD for CIFAR-100; for ImageNet it has weight 7e-5. For
        detectors masks of positions, 0.65 with weight 2e-5 (RetinaNet) and 0.45 with 5e-7 (Faster R-CNN).
    Departs: the weight alpha of the code is the weight of the term. What is left of a masked map is not divided by 1 - mask, as in the
        code. Levels are paired by stride, in the code by place. Of the detection configurations those for RetinaNet, RepPoints and SOLO
        also start the student from the teacher's neck and head, which is no part of the loss.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar": Preset("github.com/yzd-v/cls_KD, CIFAR-100: alpha 0.0012, mask 0.15", weight=0.0012),
        "imagenet": Preset("github.com/yzd-v/cls_KD, ImageNet configurations: alpha 7e-5, mask 0.15", weight=7e-5),
        "retinanet": Preset(
            "github.com/yzd-v/MGD, configurations of RetinaNet and RepPoints: alpha 2e-5, lambda 0.65 on all levels",
            weight=2e-5,
            options={"tap": "levels", "masks": "positions", "mask": 0.65},
        ),
        "faster_rcnn": Preset(
            "github.com/yzd-v/MGD, configurations of Faster R-CNN and Mask R-CNN: alpha 5e-7, lambda 0.45 on levels 0 to 3",
            weight=5e-7,
            options={"tap": "levels", "masks": "positions", "mask": 0.45, "levels": [0, 1, 2, 3]},
        ),
    }
    added: ClassVar[Mapping[str, Any]] = {"tap": "last", "masks": "channels", "levels": None}

    laws = frozenset()

    def __init__(
        self,
        *,
        mask: float = 0.15,
        tap: Literal["last", "levels"] = "last",
        masks: Literal["channels", "positions"] = "channels",
        levels: list[int] | None = None,
    ):
        super().__init__()
        if not 0 < mask < 1:
            raise ValueError(f"mask must be more than 0 and less than 1, not {mask}")
        check_levels(levels)
        self.mask = mask
        self.tap = tap
        self.masks = masks
        self.levels = levels

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    def refuses(self, pair: Pair) -> str | None:
        return unpaired(pair, self.tap, self.levels, learnt=True)

    def bind(self, pair: Pair) -> None:
        pairs = compared(pair.student, pair.teacher, self.tap, self.levels)
        self.align = aligned(pairs)
        widths = [y.shape[1] for _, y in pairs.values()]
        self.generation = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)) for width in widths
        )

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        found = {}
        pairs = compared(student, teacher, self.tap, self.levels)
        for align, generation, (name, (x, y)) in zip(self.align, self.generation, pairs.items(), strict=True):
            x = align(x)
            generated = generation(x * (self._uniform(x) >= self.mask))
            found["" if self.tap == "last" else name] = functional.mse_loss(generated, y, reduction="sum") / len(x)
        return found

    def _uniform(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ _ _"]:
        n, channels, *size = x.shape
        return torch.rand(n, *((channels, 1, 1) if self.masks == "channels" else (1, *size)), device=x.device)
