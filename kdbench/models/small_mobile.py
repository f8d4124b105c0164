from __future__ import annotations

from torch import Tensor, nn

from kdbench.losses._base import Taps
from kdbench.models._base import Model, conv_norm, image_channels, kaiming, staged


class SmallMobile(Model):
    """A small net of depthwise-separable convolutions for small images: a different architecture family from the ResNets.

    `widths` are the channels of the stem and of each stage; every stage after the first halves the map.
    Source: the separable block of MobileNet (Howard et al. 2017); the size is ours.
    """

    head_name = "classifier"

    def __init__(self, *, widths: tuple[int, ...] = (16, 32, 64)):
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths must name the stem and at least one stage, and is {list(widths)}")
        self.widths = tuple(widths)

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        stem, *stages = self.widths
        self.stem = nn.Sequential(*conv_norm(image_channels(inputs), stem, 3))
        self.blocks = nn.ModuleList()
        into = stem
        for place, width in enumerate(stages):
            each = conv_norm(into, into, 3, stride=2 if place else 1, groups=into)
            self.blocks.append(nn.Sequential(*each, nn.ReLU(), *conv_norm(into, width, 1)))
            into = width
        self.classifier = nn.Linear(into, outputs)
        kaiming(self)

    def forward(self, inputs: Tensor) -> Taps:
        stages, preact = staged(self.stem(inputs), ([block] for block in self.blocks))
        pooled = stages[-1].mean((2, 3))
        return Taps(logits=self.classifier(pooled), pooled=pooled, last=stages[-1], stages=stages, preact=preact)
