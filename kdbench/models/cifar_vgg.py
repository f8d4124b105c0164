from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps
from kdbench.models._base import Model, image_channels, kaiming

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""How many convolutions each of the five blocks has, by depth. (The three dense layers that the depth counts are one here.)"""


class CifarVgg(Model):
    """The VGG net with batch norm for small images: five blocks of 3x3 convolutions, then the average and one linear layer.

    `depth` is 8, 11, 13, 16 or 19. A 2x2 max pooling follows each of the first three blocks (four for images of height 64), so that images
    of 32x32 and of 64x64 end as 4x4 maps. `stages` are the maps of the blocks before the pooling.
    Source: Simonyan and Zisserman 2015; classifier, layer names, initialisation and the rule for 64 as in the nets of RepDistiller
    (its vgg8_bn is cifar_vgg8 here).
    """

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar_vgg8": {"depth": 8},
        "cifar_vgg11": {"depth": 11},
        "cifar_vgg13": {"depth": 13},
        "cifar_vgg16": {"depth": 16},
        "cifar_vgg19": {"depth": 19},
    }

    head_name = "classifier"

    def __init__(self, *, depth: int = 8):
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {', '.join(map(str, CONVOLUTIONS))}, not {depth}")
        self.depth = depth

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        into = image_channels(inputs)
        if min(inputs[1:]) < 8:
            raise RefusedError(f"this VGG halves its maps three times: images must be at least 8x8, not {inputs[1]}x{inputs[2]}")
        self.pooled_blocks = 4 if inputs[1] == 64 else 3
        for place, (count, width) in enumerate(zip(CONVOLUTIONS[self.depth], (64, 128, 256, 512, 512), strict=True)):
            made: list[nn.Module] = []
            for _ in range(count):
                made += [nn.Conv2d(into, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                into = width
            # The last activation of a block is left to forward, which taps the map before it.
            setattr(self, f"block{place}", nn.Sequential(*made[:-1]))
        self.classifier = nn.Linear(into, outputs)
        kaiming(self)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.classifier.weight, 0, 0.01)

    def forward(self, inputs: Tensor) -> Taps:
        hidden = inputs
        stages, preact = [], []
        for place, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            preact.append(block(hidden))
            stages.append(F.relu(preact[-1]))
            hidden = F.max_pool2d(stages[-1], 2) if place < self.pooled_blocks else stages[-1]
        pooled = hidden.mean((2, 3))
        return Taps(logits=self.classifier(pooled), pooled=pooled, last=hidden, stages=stages, preact=preact)
