"""The hierarchical context loss of ReviewKD, and its attention-based fusion. Not losses of their own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._gram import averaged
from kdbench.losses._projection import BatchNorm

Map = Float[Tensor, "n _ _ _"]


def hcl(x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """The mean of MSE( x, y ) and of those of both averaged to 4x4, 2x2 and 1x1, with the weights 1, 1/2, 1/4, 1/8 in order of use. A size
    that is not smaller than the height is left out."""
    weight, total, value = 1.0, 1.0, functional.mse_loss(x, y)
    for size in (4, 2, 1):
        if size < x.shape[2]:
            weight /= 2
            total += weight
            value = value + weight * functional.mse_loss(averaged(x, (size, size)), averaged(y, (size, size)))
    return value / total


class Fusion(nn.Module):
    """A student's map and what came from the deeper one, fused: conv1 reduces the map, two attention maps weigh it and the deeper one,
    conv2 gives the teacher's channels."""

    def __init__(self, into: int, middle: int, out: int, deepest: bool):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(into, middle, 1, bias=False), BatchNorm(middle))
        self.conv2 = nn.Sequential(nn.Conv2d(middle, out, 3, padding=1, bias=False), BatchNorm(out))
        self.att_conv = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        for layer in (self.conv1[0], self.conv2[0]):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]

    def forward(self, x: Map, deeper: Map | None, size: tuple[int, ...]) -> tuple[Map, Map]:
        """(the map for the teacher's of this size, what goes to the next shallower one)."""
        x = self.conv1(x)
        if self.att_conv is not None:
            assert deeper is not None
            deeper = resized(deeper, x.shape[2:])
            attention = self.att_conv(torch.cat([x, deeper], 1))
            x = x * attention[:, :1] + deeper * attention[:, 1:]
        x = resized(x, size)
        return self.conv2(x), x


def resized(x: Map, size: tuple[int, ...]) -> Map:
    """To (height, breadth) by the nearest neighbour."""
    return x if tuple(x.shape[2:]) == tuple(size) else functional.interpolate(x, tuple(size), mode="nearest")
