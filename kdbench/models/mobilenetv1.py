from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from kdbench.losses._base import Taps
from kdbench.models._base import Model, conv_norm, image_channels, staged

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels at width 1 and stride of each of the 13 blocks."""
STARTS = (1, 4, 6, 12, 14)
"""Where in `model` the layers of each stage begin, after the stem, and where the last ones end."""


class Mobilenetv1(Model):
    """MobileNetV1 for ImageNet: a 3x3 stem of stride 2, then 13 depthwise-separable blocks; batch norm and ReLU follow each convolution.

    `width` multiplies all channels (rounded down). The literature's student has width 1: 4,231,976 parameters with 1000 classes, and
    1024x7x7 maps of 224 pixels.
    `stages` are the stem and the last map of each size below (strides 2, 4, 8, 16, 32; 32, 128, 256, 512 and 1024 channels), `preact` the
    same before their ReLU, `last` the last stage.
    Source: Howard et al. 2017 (arXiv 1704.04861), Table 1; ReLU, layer names, features and initialisation (PyTorch's default) as in the
    net of mdistiller, which the ImageNet tables of CRD, ReviewKD and DKD share.
    Departs: the stem is a stage; mdistiller's features are the other four. Any size of image is pooled; there it must be 224.
    """

    head_name = "fc"

    def __init__(self, *, width: float = 1.0):
        super().__init__()
        if int(32 * width) < 1:
            raise ValueError(f"width must leave the stem at least one of its 32 channels (1/32 or more), and is {width}")
        self.width = width

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        into = int(32 * self.width)
        layers = [nn.Sequential(*conv_norm(image_channels(inputs), into, 3, stride=2), nn.ReLU())]
        for channels, stride in BLOCKS:
            out = int(channels * self.width)
            each = conv_norm(into, into, 3, stride, groups=into)
            layers.append(nn.Sequential(*each, nn.ReLU(), *conv_norm(into, out, 1), nn.ReLU()))
            into = out
        self.model = nn.Sequential(*layers)
        self.fc = nn.Linear(into, outputs)

    def forward(self, inputs: Tensor) -> Taps:
        # A layer ends with the ReLU that `staged` applies.
        layers = [layer[:-1] for layer in self.model]  # type: ignore[index]
        stages, preact = staged(layers[0](inputs), [layers[first:end] for first, end in pairwise(STARTS)])
        pooled = stages[-1].mean((2, 3))
        return Taps(logits=self.fc(pooled), pooled=pooled, last=stages[-1], stages=stages, preact=preact)
