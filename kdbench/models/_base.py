"""The contract of a model: a module whose forward gives taps.

Options are keyword-only and are the model's identity; `build` makes the layers for an input shape and a number of outputs, so
that a plan can build it on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from kdbench.losses._base import Taps


class Model(nn.Module):
    """A model part. After `build`, `forward(inputs)` gives `Taps`: at least the logits.

    `last` is the map whose global average is `pooled`.
    """

    version: ClassVar[int] = 1
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Nets of the literature that are this part with these options. A literal, read without import; each name begins with the part's."""

    def __init__(self) -> None:
        super().__init__()

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        """Make the layers. `inputs` is the shape of one image (channels, height, breadth), `outputs` the number of logits.

        Raises:
            RefusedError: it cannot take such images.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define build(inputs, outputs)")

    def forward(self, inputs: Tensor) -> Taps:
        raise NotImplementedError(f"{type(self).__name__} does not define forward(inputs)")

    @property
    def head(self) -> nn.Module | None:
        """What maps `pooled` to `logits`; None for a model without such a part."""
        return None


def kaiming(model: nn.Module) -> None:
    """Kaiming-normal (fan out, ReLU) convolutions; norms at 1 and 0; linear layers as torch makes them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
