from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps
from kdbench.models._base import Model, kaiming


class SmallMobile(Model):
    """A small net of depthwise-separable convolutions: another family than the ResNets, for small images.

    `widths` are the channels of the stem and of each stage; every stage after the first halves the map.
    Source: the separable block of MobileNet (Howard et al. 2017); the size is ours.
    """

    def __init__(self, *, widths: tuple[int, ...] = (16, 32, 64)):
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths must name the stem and at least one stage, and is {list(widths)}")
        self.widths = tuple(widths)

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        if len(inputs) != 3:
            raise RefusedError(f"a convolutional net needs images (channels, height, breadth), not inputs of shape {tuple(inputs)}")
        stem, *stages = self.widths
        self.stem = nn.Sequential(nn.Conv2d(inputs[0], stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        self.blocks = nn.ModuleList()
        into = stem
        for place, width in enumerate(stages):
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(into, into, 3, stride=1 if place == 0 else 2, padding=1, groups=into, bias=False),
                    nn.BatchNorm2d(into),
                    nn.ReLU(),
                    nn.Conv2d(into, width, 1, bias=False),
                    nn.BatchNorm2d(width),
                )
            )
            into = width
        self.classifier = nn.Linear(into, outputs)
        kaiming(self)

    @property
    def head(self) -> nn.Module:
        return self.classifier

    def forward(self, inputs: Tensor) -> Taps:
        preact = [self.stem(inputs)]
        stages = [F.relu(preact[0])]
        for block in self.blocks:
            preact.append(block(stages[-1]))
            stages.append(F.relu(preact[-1]))
        pooled = stages[-1].mean((2, 3))
        return Taps(logits=self.classifier(pooled), pooled=pooled, last=stages[-1], stages=tuple(stages), preact=tuple(preact))
