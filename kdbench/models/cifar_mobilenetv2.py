from __future__ import annotations

from torch import Tensor, nn

from kdbench.losses._base import Taps
from kdbench.models._base import Model, conv_norm, image_channels, kaiming

GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Channels at width 1, number of blocks, and the stride of the first one, for each of the seven groups."""


class CifarMobilenetv2(Model):
    """MobileNetV2 for small images: a 3x3 stem of stride 2, seven groups of inverted residuals, a 1x1 convolution to 1280 channels.

    `width` multiplies all channels (rounded down) except the 1280, which only widths above 1 change; `expansion` multiplies the channels
    inside a block (not in the first group). The second group has stride 1 (2 in the paper), so that 32x32 images end as 2x2 maps. The
    literature's student ('mobile_half', 'MobileNetV2') has width 0.5 and expansion 6, the defaults.

    `stages` are the stem (after its ReLU) and the outputs of the groups 1, 2, 4 and 6 (counted from 0), the features of RepDistiller; no
    activation follows a group, so there is no `preact`. `last` is the 1280-channel map after its ReLU.
    Source: Sandler et al. 2018; layer names, strides, initialisation and features as in the net of RepDistiller.
    """

    head_name = "classifier.0"

    def __init__(self, *, width: float = 0.5, expansion: int = 6):
        super().__init__()
        if int(16 * width) < 1:
            raise ValueError(f"width must leave the narrowest group at least one of its 16 channels (1/16 or more), and is {width}")
        if expansion < 1:
            raise ValueError(f"expansion must be at least 1, not {expansion}")
        self.width, self.expansion = width, expansion

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        into = int(32 * self.width)
        self.conv1 = nn.Sequential(*conv_norm(image_channels(inputs), into, 3, stride=2), nn.ReLU())
        self.blocks = nn.ModuleList()
        for place, (channels, count, stride) in enumerate(GROUPS):
            out, made = int(channels * self.width), []
            for block in range(count):
                made.append(InvertedResidual(into, out, stride if block == 0 else 1, self.expansion if place else 1))
                into = out
            self.blocks.append(nn.Sequential(*made))
        out = int(1280 * max(1.0, self.width))
        self.conv2 = nn.Sequential(*conv_norm(into, out, 1), nn.ReLU())
        # A sequence of one, for the keys of released checkpoints: classifier.0.weight.
        self.classifier = nn.Sequential(nn.Linear(out, outputs))
        kaiming(self)
        nn.init.normal_(self.classifier[0].weight, 0, 0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def forward(self, inputs: Tensor) -> Taps:
        hidden = self.conv1(inputs)
        stages = [hidden]
        for place, group in enumerate(self.blocks):
            hidden = group(hidden)
            if place in (1, 2, 4, 6):
                stages.append(hidden)
        last = self.conv2(hidden)
        pooled = last.mean((2, 3))
        return Taps(logits=self.classifier(pooled), pooled=pooled, last=last, stages=stages)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a 3x3 one on each channel, a 1x1 one that narrows; beside a shortcut where shapes allow."""

    def __init__(self, into: int, out: int, stride: int, expansion: int):
        super().__init__()
        inside = into * expansion
        self.shortcut = stride == 1 and into == out
        widen, each = conv_norm(into, inside, 1), conv_norm(inside, inside, 3, stride, groups=inside)
        self.conv = nn.Sequential(*widen, nn.ReLU(), *each, nn.ReLU(), *conv_norm(inside, out, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv(hidden) if self.shortcut else self.conv(hidden)
