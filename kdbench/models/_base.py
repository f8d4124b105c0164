"""The contract of a model: a module whose forward returns taps. Options are keyword-only and are the model's identity."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps


class Model(nn.Module):
    """A model part. After `build`, `forward(inputs)` returns `Taps`: at least the logits."""

    version: ClassVar[int] = 1
    added: ClassVar[Mapping[str, Any]] = {}
    """Options added after the first release (`Loss.added`)."""

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Nets of the literature: name -> options. A literal, read without import; each name begins with the part's."""

    released_layout: ClassVar[Mapping[str, str]] = {}
    """Patterns in the keys of a published checkpoint, and their replacements here, applied in this order."""

    head_name: ClassVar[str] = ""

    of_timm: ClassVar[tuple[str, str]] = ("", "")
    """The option that names a net of timm whose published weights the model can begin with, and the module of `plain` that is this net
    without its classifier (empty: the model is the whole net)."""

    holds_further: ClassVar[str] = ""
    """The option (a mapping) that holds `further_options`. A suite does not write its name."""

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def version_with(cls, options: Mapping[str, Any]) -> int:
        """The version of a model with these options. A commit that changes only what some nets compute raises it for these nets alone, so
        that the cells of the others keep their ids."""
        return cls.version

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        """Make the layers, also on the meta device. `inputs` is the shape of an image (channels, height, breadth), `outputs` the number
        of logits. Raises RefusedError for images that the model cannot take."""
        raise NotImplementedError(f"{type(self).__name__} does not define build(inputs, outputs)")

    @classmethod
    def further_options(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Options beside those of `__init__` that the model has with the options `given`: name -> type. They have no default: what is not
        given is not in the cell's configuration. Raises OptionsError for a given option that the model cannot have, with the reason."""
        return {}

    def build_for(self, inputs: tuple[int, ...], outputs: int, size: int | None) -> None:
        """`build`, for images that are resized to `size` (None: not resized) before the net. Most nets do not depend on it."""
        self.build(inputs, outputs)

    def forward(self, inputs: Tensor) -> Taps:
        raise NotImplementedError(f"{type(self).__name__} does not define forward(inputs)")

    def adapt_inputs(self, inputs: Mapping[str, Any], normalisation: tuple[Any, Any] | None) -> None:
        """Convert inputs before the net: from the dataset's `normalisation` (mean, std) to the net's own `mean`, `std` and `size`. Raises
        RefusedError if the dataset does not state its normalisation, or it has another number of channels."""
        self.register_forward_pre_hook(self.input_adapter(inputs, normalisation))

    @staticmethod
    def input_adapter(inputs: Mapping[str, Any], normalisation: tuple[Any, Any] | None) -> InputAdapter:
        """What `adapt_inputs` applies."""
        if "mean" in inputs and normalisation is None:
            raise RefusedError("the model has its own normalisation, but the dataset does not state how its inputs are normalised")
        if "mean" in inputs and normalisation is not None and len(inputs["mean"]) != len(normalisation[0]):
            message = f"the model's normalisation has {len(inputs['mean'])} channels, and the dataset's images have {len(normalisation[0])}"
            raise RefusedError(f"{message}: set `mean` and `std` for these")
        return InputAdapter(normalisation, inputs.get("mean"), inputs.get("std"), inputs.get("size"))

    def released(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a published checkpoint by the names that they have here."""
        return {reduce(lambda key, rule: re.sub(*rule, key), self.released_layout.items(), name): one for name, one in weights.items()}

    @property
    def plain(self) -> nn.Module:
        """The module whose weights are saved and exported: itself, unless it wraps another one."""
        return self

    @property
    def head(self) -> nn.Module | None:
        """The module that maps `pooled` to `logits` (its name is `head_name`); None for a model without one."""
        return self.get_submodule(self.head_name) if self.head_name else None

    def parts_by_name(self) -> Mapping[str, nn.Module]:
        """The parts that a student can have from its teacher before training (`inherits` of an objective)."""
        return {} if self.head is None else {"head": self.head}

    def stages_in_order(self) -> Sequence[Sequence[nn.Module]]:
        """The modules of each stage that a recipe can freeze, from the images on: the stem is the first. Empty for a model that does not
        say."""
        return []

    @property
    def head_modules(self) -> list[nn.Module]:
        """The modules that depend on the number of classes: `head: new` leaves their weights as they are drawn."""
        return [] if self.head is None else [self.head]


class InputAdapter:
    """A pre-hook that converts a dataset's inputs to a net's own normalisation and size."""

    def __init__(self, given: tuple[Any, Any] | None, mean: Any = None, std: Any = None, size: int | None = None):
        self.given, self.mean, self.std, self.size = given, mean, std, size

    def __call__(self, net: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (inputs,) = arguments
        if self.mean is not None and self.given is not None:
            mean_given, std_given, mean, std = (
                torch.tensor(values).to(inputs.device, non_blocking=True).view(-1, 1, 1) for values in (*self.given, self.mean, self.std)
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


def image_channels(inputs: tuple[int, ...]) -> int:
    """The number of channels of images of this shape (channels, height, breadth). Raises RefusedError for inputs of another rank."""
    if len(inputs) != 3:
        raise RefusedError(f"a convolutional net needs images (channels, height, breadth), not inputs of shape {tuple(inputs)}")
    return inputs[0]


def conv_norm(into: int, out: int, size: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias that only its stride makes smaller, and its norm."""
    return nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(out)


def kaiming(model: nn.Module) -> None:
    """Kaiming-normal (fan out, ReLU) convolutions; norms at 1 and 0; linear layers as torch makes them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
