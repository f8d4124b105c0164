"""Maps of a student made comparable with those of its teacher: projectors, a batch norm for any batch. Not a
loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Pair


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also serves one value for each channel, which PyTorch refuses: less its mean, it is zero."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if self.training and x.numel() == x.shape[1]:
            return x * 0 + self.bias[:, None, None]
        return super().forward(x)


def convolution(inputs: int, outputs: int, size: int = 1) -> list[nn.Module]:
    """A convolution without bias, its batch norm, and ReLU."""
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False), BatchNorm(outputs), nn.ReLU()]


def bottleneck(inputs: int, inner: int, outputs: int) -> list[nn.Module]:
    """1x1 to `inner` channels, 3x3, 1x1 to `outputs`."""
    return [*convolution(inputs, inner), *convolution(inner, inner, 3), *convolution(inner, outputs)]


def unlike_head(pair: Pair) -> str | None:
    """Why the teacher's classifier cannot be used on the average of its last map, if it cannot."""
    head, last = pair.teacher_head, pair.teacher.last
    assert head is not None and last is not None
    weight = next(iter(head.parameters()), last)
    try:
        with torch.no_grad():
            head(torch.zeros(1, last.shape[1], dtype=weight.dtype, device=weight.device))
    except RuntimeError:
        return f"the teacher's classifier does not take vectors of the {last.shape[1]} channels of its last map"
    return None
