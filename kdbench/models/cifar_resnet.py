from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps
from kdbench.models._base import Model, kaiming, staged


class CifarResnet(Model):
    """The CIFAR ResNet of 6n+2 layers: a 3x3 stem and three stages of basic blocks.

    `depth` is 6n+2 (8, 14, 20, 32, 44, 56, 110); `widths` are the channels of the stem and of the stages: (16, 16, 32, 64), or
    (32, 64, 128, 256) for the literature's 'x4' nets. `dropout` falls on the pooled features, `drop_path` on the residual branches.
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

    # Layers are named as in RepDistiller, so its checkpoints need no change of keys.
    released_layout: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, *, depth: int = 8, widths: tuple[int, int, int, int] = (16, 16, 32, 64), dropout: float = 0.0, drop_path: float = 0.0
    ):
        super().__init__()
        if (depth - 2) % 6 or depth < 8:
            raise ValueError(f"depth must be 6n+2 (8, 14, 20, ...), not {depth}")
        self.depth, self.widths, self.dropout, self.drop_path = depth, tuple(widths), dropout, drop_path

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        if len(inputs) != 3:
            raise RefusedError(f"a convolutional net needs images (channels, height, breadth), not inputs of shape {tuple(inputs)}")
        blocks = (self.depth - 2) // 6
        stem, *stages = self.widths
        self.conv1 = nn.Conv2d(inputs[0], stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        into = stem
        for place, width in enumerate(stages):
            made = []
            for block in range(blocks):
                made.append(BasicBlock(into, width, stride=2 if place > 0 and block == 0 else 1, drop_path=self.drop_path))
                into = width
            setattr(self, f"layer{place + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(into, outputs)
        kaiming(self)

    @property
    def head(self) -> nn.Module:
        return self.fc

    def forward(self, inputs: Tensor) -> Taps:
        stages, preact = staged(self.bn1(self.conv1(inputs)), (self.layer1, self.layer2, self.layer3))
        pooled = stages[-1].mean((2, 3))
        logits = self.fc(F.dropout(pooled, self.dropout, self.training) if self.dropout else pooled)
        return Taps(logits=logits, pooled=pooled, last=stages[-1], stages=tuple(stages), preact=tuple(preact))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; gives the sum before its activation, so that the pre-activation map can be tapped."""

    def __init__(self, into: int, width: int, stride: int, drop_path: float):
        super().__init__()
        self.conv1 = nn.Conv2d(into, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.drop_path = drop_path
        self.downsample = None
        if stride != 1 or into != width:
            self.downsample = nn.Sequential(nn.Conv2d(into, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, hidden: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(hidden)))))
        if self.drop_path and self.training:
            # A whole branch falls away for an image, and the others are scaled up: what dropout does, with one draw an image.
            kept = F.dropout(branch.new_ones(len(branch), 1, 1, 1), self.drop_path)
            branch = branch * kept
        return branch + (hidden if self.downsample is None else self.downsample(hidden))
