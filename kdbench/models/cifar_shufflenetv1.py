from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps
from kdbench.models._base import Model, staged

GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))
"""Channels and number of blocks of each stage; the first block of each halves the map."""


class CifarShufflenetv1(Model):
    """ShuffleNet with three groups for small images: a 1x1 stem of 24 channels at full size and three stages of 4, 8 and 4 blocks.

    The widths are the paper's for g = 3; it has no options.
    Source: Zhang et al. 2018; the stem without stride or pooling, layer names and initialisation (torch's own) as in the ShuffleV1 of
    RepDistiller.
    """

    # Layers are named as in RepDistiller, so its checkpoints need no change of keys.
    released_layout: ClassVar[Mapping[str, str]] = {}

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        if len(inputs) != 3:
            raise RefusedError(f"a convolutional net needs images (channels, height, breadth), not inputs of shape {tuple(inputs)}")
        into = 24
        self.conv1 = nn.Conv2d(inputs[0], into, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(into)
        for place, (width, blocks) in enumerate(STAGES):
            made = []
            for block in range(blocks):
                # The 24 channels of the stem are too few to be grouped.
                made.append(ShuffleUnit(into, width, halves=block == 0, groups=1 if place == 0 and block == 0 else GROUPS))
                into = width
            setattr(self, f"layer{place + 1}", nn.Sequential(*made))
        self.linear = nn.Linear(into, outputs)

    @property
    def head(self) -> nn.Module:
        return self.linear

    def forward(self, inputs: Tensor) -> Taps:
        stages, preact = staged(self.bn1(self.conv1(inputs)), (self.layer1, self.layer2, self.layer3))
        pooled = stages[-1].mean((2, 3))
        return Taps(logits=self.linear(pooled), pooled=pooled, last=stages[-1], stages=tuple(stages), preact=tuple(preact))


class ShuffleUnit(nn.Module):
    """A grouped bottleneck whose channels are shuffled, added to its input; gives the map before its activation.

    Where the map is halved, the input's average over 3x3 is set beside the branch, which then makes only the channels that it lacks.
    `groups` are those of the first convolution and of the shuffle.
    """

    def __init__(self, into: int, width: int, halves: bool, groups: int):
        super().__init__()
        out = width - into if halves else width
        inside = out // 4
        self.halves, self.groups = halves, groups
        self.conv1 = nn.Conv2d(into, inside, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride=2 if halves else 1, padding=1, groups=inside, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, out, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(out)

    def forward(self, hidden: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(hidden)))
        # Channel j of group g becomes channel g of group j, so that the next convolution sees every group.
        branch = branch.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        # The literature's code has an activation after the convolution of each channel; the paper has none.
        branch = F.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        if self.halves:
            return torch.cat([branch, F.avg_pool2d(hidden, 3, stride=2, padding=1)], 1)
        return branch + hidden
