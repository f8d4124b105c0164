from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses._base import Taps
from kdbench.models._base import Model, conv_norm, image_channels, staged

GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))
"""Channels and number of blocks of each stage; the first block of each halves the map."""


class CifarShufflenetv1(Model):
    """ShuffleNet with three groups for small images: a 1x1 stem of 24 channels at full size and three stages of 4, 8 and 4 blocks.

    The widths are the paper's for g = 3; it has no options.
    Source: Zhang et al. 2018; stem (no stride, no pooling), layer names and initialisation (torch's) as in RepDistiller's ShuffleV1.
    """

    head_name = "linear"

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        into = 24
        self.conv1, self.bn1 = conv_norm(image_channels(inputs), into, 1)
        for place, (width, blocks) in enumerate(STAGES):
            # The 24 channels of the stem are too few for groups.
            first = ShuffleUnit(into, width, halves=True, groups=GROUPS if place else 1)
            others = [ShuffleUnit(width, width, halves=False, groups=GROUPS) for _ in range(blocks - 1)]
            setattr(self, f"layer{place + 1}", nn.Sequential(first, *others))
            into = width
        self.linear = nn.Linear(into, outputs)

    def forward(self, inputs: Tensor) -> Taps:
        stages, preact = staged(self.bn1(self.conv1(inputs)), (self.layer1, self.layer2, self.layer3))
        pooled = stages[-1].mean((2, 3))
        return Taps(logits=self.linear(pooled), pooled=pooled, last=stages[-1], stages=stages, preact=preact)


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
        self.conv1, self.bn1 = conv_norm(into, inside, 1, groups=groups)
        self.conv2, self.bn2 = conv_norm(inside, inside, 3, stride=2 if halves else 1, groups=inside)
        self.conv3, self.bn3 = conv_norm(inside, out, 1, groups=GROUPS)

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
