from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses._base import Taps
from kdbench.models._base import Model, conv_norm, image_channels, kaiming, staged


class CifarResnet(Model):
    """The CIFAR ResNet of 6n+2 layers: a 3x3 stem and three stages of basic blocks.

    `depth` is 6n+2 (8, 14, 20, 32, 44, 56, 110); `widths` are the channels of the stem and of the stages: (16, 16, 32, 64), or
    (32, 64, 128, 256) for the literature's 'x4' nets. `dropout` applies to the pooled features, `drop_path` to the residual branches.
    Source: He et al. 2016; layer names, shortcut (1x1 convolution) and initialisation as in the nets of RepDistiller.
    """

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar_resnet8": {"depth": 8},
        "cifar_resnet14": {"depth": 14},
        "cifar_resnet20": {"depth": 20},
        "cifar_resnet32": {"depth": 32},
        "cifar_resnet44": {"depth": 44},
        "cifar_resnet56": {"depth": 56},
        "cifar_resnet110": {"depth": 110},
        "cifar_resnet8x4": {"depth": 8, "widths": [32, 64, 128, 256]},
        "cifar_resnet32x4": {"depth": 32, "widths": [32, 64, 128, 256]},
    }

    head_name = "fc"

    def __init__(
        self, *, depth: int = 8, widths: tuple[int, int, int, int] = (16, 16, 32, 64), dropout: float = 0.0, drop_path: float = 0.0
    ):
        super().__init__()
        if (depth - 2) % 6 or depth < 8:
            raise ValueError(f"depth must be 6n+2 (8, 14, 20, ...), not {depth}")
        self.depth, self.widths, self.dropout, self.drop_path = depth, tuple(widths), dropout, drop_path

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        blocks = (self.depth - 2) // 6
        stem, *stages = self.widths
        self.conv1, self.bn1 = conv_norm(image_channels(inputs), stem, 3)
        into = stem
        for place, width in enumerate(stages):
            first = BasicBlock(into, width, 2 if place else 1, self.drop_path)
            others = [BasicBlock(width, width, 1, self.drop_path) for _ in range(blocks - 1)]
            setattr(self, f"layer{place + 1}", nn.Sequential(first, *others))
            into = width
        self.fc = nn.Linear(into, outputs)
        kaiming(self)

    def forward(self, inputs: Tensor) -> Taps:
        stages, preact = staged(self.bn1(self.conv1(inputs)), (self.layer1, self.layer2, self.layer3))
        pooled = stages[-1].mean((2, 3))
        logits = self.fc(F.dropout(pooled, self.dropout, self.training) if self.dropout else pooled)
        return Taps(logits=logits, pooled=pooled, last=stages[-1], stages=stages, preact=preact)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; gives the sum before its activation, so that the pre-activation map can be tapped."""

    def __init__(self, into: int, width: int, stride: int, drop_path: float):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(into, width, 3, stride)
        self.conv2, self.bn2 = conv_norm(width, width, 3)
        self.drop_path = drop_path
        self.downsample = nn.Sequential(*conv_norm(into, width, 1, stride)) if stride != 1 or into != width else None

    def forward(self, hidden: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(hidden)))))
        if self.drop_path and self.training:
            # A whole branch falls away for an image, and the others are scaled up: what dropout does, with one draw an image.
            branch = branch * F.dropout(branch.new_ones(len(branch), 1, 1, 1), self.drop_path)
        return branch + (hidden if self.downsample is None else self.downsample(hidden))
