from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps


class MGD(Loss):
    """Masked generative distillation: the teacher's last map should be generated from a student's map of which channels are missing.

    1/n || G(m * A(F_s)) - F_t ||^2, summed over channels and positions. m is 0 with probability `mask` and else 1, drawn anew in each
    step for each image and channel. A is a 1x1 convolution to the teacher's channels (nothing where they are equal); G is a 3x3
    convolution, ReLU and a 3x3 convolution, all of the teacher's channels. All convolutions have a bias.

    Shapes: last maps F, n x c x h x w; both models may differ in c, not in h and w.

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022, github.com/yzd-v/MGD; for classification
        github.com/yzd-v/cls_KD, dis_losses/mgd.py.
    Defaults: weight 0.0012 and mask 0.15, as in cls_KD for CIFAR-100; for ImageNet it has weight 7e-5.
    Departs: the weight alpha of the code is the weight of the term. What is left of a masked map is not divided by 1 - mask, as in the
        code. The masking of positions, for detection, is left out.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar": Preset("github.com/yzd-v/cls_KD, CIFAR-100: alpha 0.0012, mask 0.15", weight=0.0012),
        "imagenet": Preset("github.com/yzd-v/cls_KD, ImageNet configurations: alpha 7e-5, mask 0.15", weight=7e-5),
    }

    needs = frozenset({"last"})
    laws = frozenset()

    def __init__(self, *, mask: float = 0.15):
        super().__init__()
        if not 0 < mask < 1:
            raise ValueError(f"mask must be more than 0 and less than 1, not {mask}")
        self.mask = mask

    def refuses(self, pair: Pair) -> str | None:
        assert pair.student.last is not None and pair.teacher.last is not None
        sizes = ["x".join(map(str, side.last.shape[2:])) for side in (pair.student, pair.teacher)]
        return None if sizes[0] == sizes[1] else f"it needs last maps of equal size: the student's is {sizes[0]}, the teacher's {sizes[1]}"

    def bind(self, pair: Pair) -> None:
        assert pair.student.last is not None and pair.teacher.last is not None
        own, other = pair.student.last.shape[1], pair.teacher.last.shape[1]
        self.align: nn.Module = nn.Identity() if own == other else nn.Conv2d(own, other, 1)
        self.generation = nn.Sequential(nn.Conv2d(other, other, 3, padding=1), nn.ReLU(), nn.Conv2d(other, other, 3, padding=1))

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        x: Float[Tensor, "n c h w"] = self.align(student.last)
        generated = self.generation(x * (self._uniform(x) >= self.mask))
        return functional.mse_loss(generated, teacher.last, reduction="sum") / len(x)

    def _uniform(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
        return torch.rand(*x.shape[:2], 1, 1, device=x.device)
