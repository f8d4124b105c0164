from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses._base import Taps
from kdbench.models._base import Model, image_channels, kaiming


class CifarWrn(Model):
    """The wide ResNet of 6n+4 layers: a 3x3 stem and three stages of pre-activation blocks, then norm, ReLU and average.

    `depth` is 6n+4 (10, 16, 22, 28, 40); `widen_factor` multiplies the stages' 16, 32 and 64 channels (the stem has 16). `dropout` is
    between the two convolutions of a block.

    `stages` are the stem's convolution and the sums at the end of the three stages, without an activation, as in RepDistiller. There is
    no `preact`: RepDistiller computes it by a second pass through the next block's norm, which in training updates its running statistics
    twice a step. `last` is the last sum after norm and ReLU.
    Source: Zagoruyko and Komodakis 2016; layer names, initialisation and features as in the nets of RepDistiller.
    """

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar_wrn_16_1": {"depth": 16, "widen_factor": 1},
        "cifar_wrn_16_2": {"depth": 16, "widen_factor": 2},
        "cifar_wrn_40_1": {"depth": 40, "widen_factor": 1},
        "cifar_wrn_40_2": {"depth": 40, "widen_factor": 2},
    }

    head_name = "fc"

    def __init__(self, *, depth: int = 16, widen_factor: int = 2, dropout: float = 0.0):
        super().__init__()
        if (depth - 4) % 6 or depth < 10:
            raise ValueError(f"depth must be 6n+4 (10, 16, 22, ...), not {depth}")
        if widen_factor < 1:
            raise ValueError(f"widen_factor must be at least 1, not {widen_factor}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
        self.depth, self.widen_factor, self.dropout = depth, widen_factor, dropout

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        into = 16
        self.conv1 = nn.Conv2d(image_channels(inputs), into, 3, padding=1, bias=False)
        for place in range(3):
            width = 16 * 2**place * self.widen_factor
            first = PreactBlock(into, width, 2 if place else 1, self.dropout)
            others = [PreactBlock(width, width, 1, self.dropout) for _ in range((self.depth - 4) // 6 - 1)]
            # One level more than needed, for the keys of released checkpoints: block1.layer.0.conv1.weight.
            setattr(self, f"block{place + 1}", nn.Sequential(OrderedDict(layer=nn.Sequential(first, *others))))
            into = width
        self.bn1 = nn.BatchNorm2d(into)
        self.fc = nn.Linear(into, outputs)
        kaiming(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, inputs: Tensor) -> Taps:
        stages = [self.conv1(inputs)]
        for block in (self.block1, self.block2, self.block3):
            stages.append(block(stages[-1]))
        last = F.relu(self.bn1(stages[-1]))
        pooled = last.mean((2, 3))
        return Taps(logits=self.fc(pooled), pooled=pooled, last=last, stages=stages)


class PreactBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, beside a shortcut.

    Where the number of channels changes (as with every stride), the shortcut is a 1x1 convolution of what the first norm and ReLU
    give; else it is the block's input as it came.
    """

    def __init__(self, into: int, width: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(into)
        self.conv1 = nn.Conv2d(into, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(into, width, 1, stride=stride, bias=False) if into != width else None
        self.dropout = dropout

    def forward(self, hidden: Tensor) -> Tensor:
        activated = F.relu(self.bn1(hidden))
        branch = F.relu(self.bn2(self.conv1(activated)))
        if self.dropout:
            branch = F.dropout(branch, self.dropout, self.training)
        return self.conv2(branch) + (hidden if self.convShortcut is None else self.convShortcut(activated))
