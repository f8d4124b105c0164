"""Reads the taps of a net of timm in one forward pass, whatever its family: maps are n x c x h x w, tokens are n x tokens x width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps


class Reader:
    """Which modules of a net give its taps, and how. It holds names, not modules, so that a copy of the model reads its own net."""

    def __init__(self, net: nn.Module):
        modules = dict(net.named_modules())
        known = [info for info in getattr(net, "feature_info", None) or [] if info["module"] in modules]
        self.stages = {info["module"]: info["num_chs"] for info in known}
        self.activations = _last_activations(modules, list(self.stages))
        self.classifiers = _names(net, classifiers(net))
        # A stage of convolutions alone gives a map with channels first. Where it may give something else (channels last, tokens, several
        # branches), timm's own `forward_intermediates` gives the maps; it ends with what `forward_features` gives.
        layers = [layer for name in self.stages for layer in modules[name].modules()]
        plain = layers and not any(isinstance(layer, (nn.Linear, nn.LayerNorm, nn.ModuleList)) for layer in layers)
        self.asks_timm = hasattr(net, "forward_intermediates") and not plain

    def read(self, net: Any, inputs: Tensor) -> Taps:
        stages: dict[str, Any] = {}
        before: dict[str, Tensor] = {}
        given: dict[str, Tensor] = {}
        with _hooked(net, self.stages, stages), _hooked(net, self.activations, before, pre=True):
            features, maps = net.forward_intermediates(inputs, output_fmt="NCHW") if self.asks_timm else (net.forward_features(inputs), [])
        with _hooked(net, self.classifiers, given, pre=True):
            logits = net.forward_head(features)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not given:
            raise RefusedError("the net does not give one row of logits for each image, by the classifier that timm names")
        distinct = [one for place, one in enumerate(given.values()) if not any(one is other for other in [*given.values()][:place])]
        if any(one.dim() > 2 and one.shape[2:].numel() > 1 for one in distinct):
            # The classifier sees every token, and its output for one of them is taken (CLIP's ResNets).
            distinct = [net.forward_head(features, pre_logits=True)]
        pooled = torch.cat([one.flatten(1) for one in distinct], 1) if len(distinct) > 1 else distinct[0].flatten(1)
        found = self._stages(stages, maps)
        preact = [before[name] for name in self.activations]
        return Taps(logits, pooled, stages=found, preact=preact, **_final(net, features, found))

    def _stages(self, kept: Mapping[str, Any], maps: Sequence[Tensor]) -> list[Tensor]:
        """What the hooks gave where all of it has channels first; else timm's maps; else what the hooks gave as 4 dimensions."""
        found = [(kept[name], channels) for name, channels in self.stages.items() if isinstance(kept.get(name), Tensor)]
        found = [(one, channels) for one, channels in found if one.dim() == 4]
        if maps and (len(found) < len(self.stages) or not found or any(one.shape[1] != channels for one, channels in found)):
            return list(maps)
        return [one if one.shape[3] != channels or one.shape[1] == channels else one.permute(0, 3, 1, 2) for one, channels in found]


def classifiers(net: Any) -> list[nn.Module]:
    """The modules whose outputs are, or are averaged to, the logits, as timm names them; of one that also pools, its last layer."""
    found = net.get_classifier()
    flat = [
        one for each in (found if isinstance(found, tuple) else [found]) for one in (each if isinstance(each, nn.ModuleList) else [each])
    ]
    return [getattr(one, "fc", one) for one in flat]


def head_names(net: Any) -> list[str]:
    """The modules, in the net's order, whose shape follows from the number of classes: classifiers, and what timm lists besides (VOLO)."""
    found = {*_names(net, classifiers(net)), *_listed(net)}
    return [name for name, _ in net.named_modules() if name in found]


def head(net: Any) -> nn.Module | None:
    """A module that makes the logits from `pooled`; None where they need more than it (VOLO), or another weight each (EfficientViM)."""
    found, found_by_timm = classifiers(net), net.get_classifier()
    names = _names(net, found)
    if isinstance(found_by_timm, tuple):
        return Averaged(*found) if len(found) == len(found_by_timm) == 2 else None
    if len(found) != 1 or any(not f"{name}.".startswith(f"{names[0]}.") for name in _listed(net)):
        return None
    return Pointwise(found[0]) if isinstance(found[0], nn.Conv2d) else found[0]


def _names(net: nn.Module, modules: Sequence[nn.Module]) -> list[str]:
    return [name for name, module in net.named_modules() if any(module is one for one in modules)]


def _listed(net: Any) -> list[str]:
    """What timm lists as classifier in the configuration of the model."""
    listed = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = [listed] if isinstance(listed, str) else list(listed)
    return [name for name in names if name in dict(net.named_modules())]


class Averaged(nn.Module):
    """A classifier and one trained by distillation, averaged. They see the same vector, or one half of it each."""

    def __init__(self, own: nn.Module, distilled: nn.Module):
        super().__init__()
        self.own, self.distilled = own, distilled
        self.width = next(layer.in_features for layer in own.modules() if isinstance(layer, nn.Linear))

    def forward(self, pooled: Tensor) -> Tensor:
        own, distilled = (pooled, pooled) if pooled.shape[1] == self.width else pooled.chunk(2, 1)
        return (self.own(own) + self.distilled(distilled)) / 2


class Pointwise(nn.Module):
    """A 1x1 convolution as a linear layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layer(pooled[:, :, None, None]).flatten(1)


def _final(net: Any, features: Any, stages: Sequence[Tensor]) -> dict[str, Tensor | None]:
    """`last` and the tokens, from the final features; nothing where they are several sequences (CoaT, CrossViT)."""
    if not isinstance(features, Tensor) or features.dim() not in (3, 4):
        return {}
    if features.dim() == 4:
        if not _channels_last(net, features):
            return {"last": features}
        return {"last": features.permute(0, 3, 1, 2), "tokens": features.flatten(1, 2)}
    grid = stages[-1].shape[2:] if stages else None
    before = features.shape[1] - grid.numel() if grid else getattr(net, "num_prefix_tokens", 0)
    if before < 0:  # the patches are left out at the end (PiT)
        assert stages
        return {"last": stages[-1], "tokens": stages[-1].flatten(2).transpose(1, 2), **_prefix(net, features)}
    patches = features[:, before:]
    last = patches.transpose(1, 2).unflatten(2, grid) if grid else None
    return {"last": last, "tokens": patches, **_prefix(net, features[:, :before])}


def _channels_last(net: Any, features: Tensor) -> bool:
    """By timm's own statement, or, where it has none, by the number of channels."""
    if (stated := getattr(net, "output_fmt", None)) is not None:
        return str(getattr(stated, "value", stated)) == "NHWC"
    return features.shape[1] != net.num_features and features.shape[3] == net.num_features


def _prefix(net: Any, tokens: Tensor) -> dict[str, Tensor | None]:
    """The tokens before the patches, by what they are: a class token, one of distillation, registers, in this order."""
    made = getattr(net, "embeds", net)
    registers = getattr(made, "reg_token", None)
    first = tokens.shape[1] - (0 if registers is None else registers.shape[1])
    named = dict(zip(("class_token", "distillation_token"), tokens[:, :first].unbind(1), strict=False))
    return named if first == tokens.shape[1] else {**named, "registers": tokens[:, first:]}


@contextmanager
def _hooked(net: nn.Module, names: Any, kept: dict[str, Any], pre: bool = False) -> Iterator[None]:
    """A context in which the outputs of modules (with `pre` their first inputs) are put into `kept` by their names."""

    def keeper(name: str) -> Any:
        return (lambda _, given: kept.update({name: given[0]})) if pre else (lambda _, __, out: kept.update({name: out}))

    modules = [(name, net.get_submodule(name)) for name in names]
    hooks = [one.register_forward_pre_hook(keeper(name)) if pre else one.register_forward_hook(keeper(name)) for name, one in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_activations(modules: Mapping[str, nn.Module], stages: list[str]) -> list[str]:
    """For each stage the activation that it ends with, where every stage is known to end with one (timm's ResNets)."""
    found = []
    for name in stages:
        module = modules[name]
        if isinstance(module, nn.ReLU):
            found.append(name)
        # Not known here of other blocks than a ResNet's: what their activation is followed by.
        elif isinstance(module, nn.Sequential) and len(module) and hasattr(module[-1], "downsample"):
            last = f"{name}.{len(module) - 1}"
            found += [f"{last}.{act}" for act in ("act3", "act2") if isinstance(modules.get(f"{last}.{act}"), nn.ReLU)][:1]
    return found if len(found) == len(stages) else []
