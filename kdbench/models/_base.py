"""The contract of a model: a module whose forward gives taps.

Options are keyword-only and are the model's identity; `build` makes the layers for an input shape and a number of outputs, so
that a plan can build it on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps


class Model(nn.Module):
    """A model part. After `build`, `forward(inputs)` gives `Taps`: at least the logits.

    `last` is the map whose global average is `pooled`.
    """

    version: ClassVar[int] = 1
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Nets of the literature that are this part with these options. A literal, read without import; each name begins with the part's."""

    released_layout: ClassVar[Mapping[str, str]] = {}
    """Patterns of the keys of a published checkpoint, and what they are called here, in this order."""

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

    def sees(self, inputs: Mapping[str, Any], normalisation: tuple[Any, Any] | None) -> None:
        """Have the net see its inputs as its weights were made to: in its own `mean` and `std`, in its own `size`.

        `normalisation` is the (mean, std) that the dataset's inputs come with.

        Raises:
            RefusedError: the inputs are to be normalised otherwise, and nobody says how they were.
        """
        if "mean" in inputs and normalisation is None:
            raise RefusedError("it has a normalisation of its own, and this dataset does not say how its inputs were normalised")
        if "mean" in inputs and normalisation is not None and len(inputs["mean"]) != len(normalisation[0]):
            told = f"its own normalisation is of {len(inputs['mean'])} channels, and the dataset's images have {len(normalisation[0])}"
            raise RefusedError(f"{told}: say `mean` and `std` for these")
        self.register_forward_pre_hook(SeenAs(normalisation, inputs.get("mean"), inputs.get("std"), inputs.get("size")))

    @property
    def plain(self) -> nn.Module:
        """The module whose weights are the model's as others know it: itself, unless it wraps one."""
        return self

    @property
    def head(self) -> nn.Module | None:
        """What maps `pooled` to `logits`; None for a model without such a part."""
        return None


class SeenAs:
    """Turns a dataset's inputs into what a net was made for: its own normalisation, its own size. Put before a net's forward."""

    def __init__(self, given: tuple[Any, Any] | None, mean: Any = None, std: Any = None, size: int | None = None):
        self.given, self.mean, self.std, self.size = given, mean, std, size

    def __call__(self, net: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (inputs,) = arguments
        if self.mean is not None and self.given is not None:
            mean_given, std_given, mean, std = (
                torch.tensor(values, device=inputs.device).view(-1, 1, 1) for values in (*self.given, self.mean, self.std)
            )
            inputs = (inputs * std_given + mean_given - mean) / std
        if self.size is not None and tuple(inputs.shape[2:]) != (self.size, self.size):
            inputs = F.interpolate(inputs, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        return (inputs,)


def staged(before: Tensor, layers: Iterable[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """(maps after their ReLU, the same maps before it) of the stem and of each layer, whose blocks give what comes before theirs."""
    stages, preact = [F.relu(before)], [before]
    for layer in layers:
        hidden = stages[-1]
        for block in layer:
            before = block(hidden)
            hidden = F.relu(before)
        stages.append(hidden)
        preact.append(before)
    return stages, preact


def kaiming(model: nn.Module) -> None:
    """Kaiming-normal (fan out, ReLU) convolutions; norms at 1 and 0; linear layers as torch makes them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
