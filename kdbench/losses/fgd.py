from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._pyramid import aligned, check_levels, compared, unpaired
from kdbench.losses._soft import positive

SOURCE = "github.com/yzd-v/FGD, configs/distillers/fgd"


class FGD(Loss):
    """Focal and global distillation: the student's levels should equal the teacher's, most where its attention and the objects are, and so
    should the relations of their positions.

    Sum over the levels of foreground L_fg + background L_bg + attention L_at + context L_re, each a mean over images, with x the student's
    level (through a 1x1 convolution where the channels differ) and y the teacher's:
    L_fg and L_bg are sums over channels and positions of S C M (x - y)^2, where S = h w softmax(mean_c |y| / T) over the positions,
    C = c softmax(mean_hw |y| / T) over the channels, and M is the mask of the foreground or the background. In the foreground M is, at each
    position that a box touches, 1 over the positions of the smallest such box, and else 0; in the background it is 1 over the number of
    positions outside of all boxes, and else 0.
    L_at is the sum of |S_x - S_y| and |C_x - C_y|, each with the attention of its own map.
    L_re is the sum of (g_x - g_y)^2 of the global context g = z + V(sum_p softmax_p(w z) z_p): w is a 1x1 convolution to one channel, V
    a 1x1 convolution to half the channels, layer norm, ReLU and a 1x1 convolution back. Student and teacher have their own, both trained.

    Shapes: levels n x c x h x w, of equal sizes; both models may differ in c. Of the levels with equal strides those at the places
        `levels`, counted from 0 at the finest (default: all). It needs the objects of each image (`target`).

    Source: Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022 (arXiv 2111.11837); github.com/yzd-v/FGD,
        mmdet/distillation/losses/fgd.py.
    Defaults: T 0.5, foreground 1e-3, background 5e-4, attention 5e-4, context 5e-6 on all levels, as in that code for RetinaNet. Its
        configurations clip gradients at a norm of 35, which is a matter of the recipe.
    Departs: as in the code, a box takes up the same share of the map as of the image without its margin, so that boxes are too large in
        padded images, and by a position at the right and the bottom in all. Levels are paired by stride, in the code by place. With one
        channel, half the channels are one. Configurations with student and teacher of one architecture also start the student from the
        teacher's neck and head, which is no part of the loss.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "retinanet": Preset(f"{SOURCE}: RetinaNet R101 and X101 to R50, GFL R101 to R50", weight=1.0),
        "faster_rcnn": Preset(
            f"{SOURCE}: Faster R-CNN R101 to R50, Cascade Mask R-CNN X101 to Faster R-CNN and Mask R-CNN R50, levels 0 to 3",
            weight=1.0,
            options={"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "context": 5e-7, "levels": [0, 1, 2, 3]},
        ),
        "fcos": Preset(
            f"{SOURCE}: FCOS R101 to R50, RepPoints",
            weight=1.0,
            options={"temperature": 0.8, "foreground": 1.6e-3, "background": 8e-4, "attention": 8e-4, "context": 8e-6},
        ),
    }

    needs = frozenset({"levels", "target"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        foreground: float = 1e-3,
        background: float = 5e-4,
        attention: float = 5e-4,
        context: float = 5e-6,
        levels: list[int] | None = None,
    ):
        super().__init__()
        positive(temperature=temperature)
        check_levels(levels)
        self.temperature = temperature
        self.foreground = foreground
        self.background = background
        self.attention = attention
        self.context = context
        self.levels = levels

    def refuses(self, pair: Pair) -> str | None:
        return unpaired(pair, "levels", self.levels, learnt=True)

    def bind(self, pair: Pair) -> None:
        pairs = compared(pair.student, pair.teacher, "levels", self.levels)
        self.align = aligned(pairs)
        self.student_context, self.teacher_context = (nn.ModuleList(_Context(y.shape[1]) for _, y in pairs.values()) for _ in range(2))

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        pairs = compared(student, teacher, "levels", self.levels)
        found = []
        for align, own, other, (x, y) in zip(self.align, self.student_context, self.teacher_context, pairs.values(), strict=True):
            x = align(x)
            (of_places, of_channels), (there, here) = (self._attention(z) for z in (y, x))
            squares = (of_channels[:, :, None, None] * (x - y).square()).sum(1) * of_places
            masks = [_masks(boxes.to(x), size, x.shape[2:]) for boxes, size in zip(batch.target.boxes, batch.target.sizes, strict=True)]
            focal = [(squares * torch.stack(one)).sum() for one in zip(*masks, strict=True)]
            unlike = (there - of_places).abs().sum() + (here - of_channels).abs().sum()
            found.append(torch.stack([*focal, unlike, functional.mse_loss(own(x), other(y), reduction="sum")]) / len(x))
        weights = {"foreground": self.foreground, "background": self.background, "attention": self.attention, "context": self.context}
        return {part: weight * value for (part, weight), value in zip(weights.items(), torch.stack(found).sum(0), strict=True)}

    def _attention(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n c"]]:
        size, channels = x[0, 0].numel(), x.shape[1]
        places = functional.softmax(x.abs().mean(1).flatten(1) / self.temperature, 1).unflatten(1, x.shape[2:])
        return size * places, channels * functional.softmax(x.abs().mean((2, 3)) / self.temperature, 1)


class _Context(nn.Module):
    """A map with its global context added (GcBlock)."""

    def __init__(self, channels: int):
        super().__init__()
        half = max(channels // 2, 1)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.add = nn.Sequential(nn.Conv2d(channels, half, 1), nn.LayerNorm([half, 1, 1]), nn.ReLU(), nn.Conv2d(half, channels, 1))
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
        for zero in (self.mask.bias, self.add[3].weight, self.add[3].bias):
            nn.init.zeros_(zero)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        weights = functional.softmax(self.mask(x).flatten(2), 2)
        return x + self.add((x.flatten(2) @ weights.mT)[..., None])


def _masks(boxes: Float[Tensor, "m 4"], size: Sequence[int], wanted: Sequence[int]) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Of the foreground and of the background of one image, for a map of the wanted size."""
    touched = []
    for axis in (1, 0):  # rows, then columns
        low, high = (boxes[:, [side]] / size[1 - axis] * wanted[1 - axis] for side in (axis, axis + 2))
        low, high = low.floor(), high.ceil()
        places = torch.arange(wanted[1 - axis], device=boxes.device)
        touched.append(((places >= low) & (places <= high), high + 1 - low))
    (rows, heights), (columns, breadths) = touched
    weights = (rows / heights / breadths)[:, :, None] * columns[:, None, :]
    foreground = torch.cat([weights.new_zeros(1, *wanted), weights]).amax(0)
    outside = (foreground == 0).to(boxes)
    return foreground, outside / outside.sum().clamp_min(1)
