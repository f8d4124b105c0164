from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses._base import Taps
from kdbench.models._base import Model, conv_norm, image_channels, staged

WIDTHS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024), 2.0: (224, 488, 976, 2048)}
"""Channels of the three stages and of the last convolution, by size."""


class CifarShufflenetv2(Model):
    """ShuffleNetV2 for small images: a 1x1 stem of 24 channels at full size, three stages of 4, 8 and 4 blocks, a 1x1 convolution.

    `size` is 0.5, 1, 1.5 or 2; the literature's student ('ShuffleV2') is size 1. `stages` are the stem and the three stages, `last` the
    map of the last convolution. `preact` has the channels of RepDistiller's in another order: here after the shuffle, there before it. Half
    of these channels pass through a block unchanged, and were activated before it.
    Source: Ma et al. 2018; stem (no stride, no pooling), layer names and initialisation (torch's) as in RepDistiller's ShuffleV2.
    """

    head_name = "linear"

    def __init__(self, *, size: float = 1.0):
        super().__init__()
        if size not in WIDTHS:
            raise ValueError(f"size must be one of {', '.join(f'{one:g}' for one in WIDTHS)}, not {size:g}")
        self.size = size

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        into = 24
        self.conv1, self.bn1 = conv_norm(image_channels(inputs), into, 1)
        *stages, wide = WIDTHS[self.size]
        for place, (width, units) in enumerate(zip(stages, (3, 7, 3), strict=True)):
            made = [HalvingUnit(into, width), *(SplitUnit(width) for _ in range(units))]
            setattr(self, f"layer{place + 1}", nn.Sequential(*made))
            into = width
        self.conv2, self.bn2 = conv_norm(into, wide, 1)
        self.linear = nn.Linear(wide, outputs)

    def forward(self, inputs: Tensor) -> Taps:
        stages, preact = staged(self.bn1(self.conv1(inputs)), (self.layer1, self.layer2, self.layer3))
        last = F.relu(self.bn2(self.conv2(stages[-1])))
        pooled = last.mean((2, 3))
        return Taps(logits=self.linear(pooled), pooled=pooled, last=last, stages=stages, preact=preact)


class HalvingUnit(nn.Module):
    """Halves the map and makes `width` channels of it, half by each of two branches; gives them before their activation."""

    def __init__(self, into: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv_norm(into, into, 3, stride=2, groups=into)
        self.conv2, self.bn2 = conv_norm(into, half, 1)
        self.conv3, self.bn3 = conv_norm(into, half, 1)
        self.conv4, self.bn4 = conv_norm(half, half, 3, stride=2, groups=half)
        self.conv5, self.bn5 = conv_norm(half, half, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        one = self.bn2(self.conv2(self.bn1(self.conv1(hidden))))
        other = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(hidden)))))
        return shuffled(one, self.bn5(self.conv5(other)))


class SplitUnit(nn.Module):
    """Lets half of the channels pass and convolves the other half; gives both before their activation.

    The activation that follows leaves the half that passed as it is, for it is not negative.
    """

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv_norm(half, half, 1)
        self.conv2, self.bn2 = conv_norm(half, half, 3, groups=half)
        self.conv3, self.bn3 = conv_norm(half, half, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        passed, other = hidden.chunk(2, 1)
        other = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(other)))))
        return shuffled(passed, self.bn3(self.conv3(other)))


def shuffled(one: Tensor, other: Tensor) -> Tensor:
    """The channels of both in turn, as a shuffle of two groups has them."""
    return torch.stack([one, other], 2).flatten(1, 2)
