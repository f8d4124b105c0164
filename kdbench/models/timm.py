from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps
from kdbench.models._base import Model
from kdbench.through_timm import make_model, small_stem


class Timm(Model):
    """Any of timm's models: a suite may say just its name (`resnet18`).

    `stem: small` is for images of 32 or 64 pixels: a ResNet begins with a 3x3 convolution of stride 1 and no pooling, MobileNetV2
    with a stem of stride 1 and its first halving stage at stride 1 (32 pixels end as a 4x4 map). `last` is what timm's
    `forward_features` gives (for MobileNetV2 the 1280 channels of its head convolution), `pooled` what its head makes of it before
    the classifier; the stages are those of timm's `feature_info`, where the model has one; a ResNet's are tapped before their
    activation, too.
    Source: the timm library; the stems as in the CIFAR nets of the RKD authors' repository and of most results that share it.
    """

    released_layout: ClassVar[Mapping[str, str]] = {r"\.shortcut\.": ".downsample.", r"^linear\.": "fc."}
    """The ResNet50 of RepDistiller is timm's with a small stem, under other names."""

    def __init__(self, *, architecture: str, drop_rate: float = 0.0, drop_path_rate: float = 0.0, stem: Literal["own", "small"] = "own"):
        super().__init__()
        self.architecture, self.drop_rate, self.drop_path_rate, self.stem = architecture, drop_rate, drop_path_rate, stem

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        # Only what is asked for: not every model of timm knows every argument.
        asked = {name: getattr(self, name) for name in ("drop_rate", "drop_path_rate") if getattr(self, name)}
        self.net = make_model(self.architecture, inputs, outputs, **asked)
        if not hasattr(self.net, "forward_head"):
            raise RefusedError(f"timm's {self.architecture} does not separate its features from its head")
        if self.stem == "small":
            try:
                small_stem(self.net)
            except ValueError as error:
                raise RefusedError(f"timm's {self.architecture} has no small stem: {error}") from error
        modules = dict(self.net.named_modules())
        stages = [info["module"] for info in getattr(self.net, "feature_info", None) or []]
        self.stage_names = [name for name in stages if name in modules]
        self.activation_names = _last_activations(modules, self.stage_names)
        for name in self.activation_names:
            modules[name].inplace = False  # type: ignore[assignment]

    @property
    def plain(self) -> nn.Module:
        return self.net

    @property
    def head(self) -> nn.Module:
        return self.net.get_classifier()  # type: ignore[operator]

    def forward(self, inputs: Tensor) -> Taps:
        kept: dict[str, Any] = {}
        before: dict[str, Any] = {}
        modules = dict(self.net.named_modules())
        hooks = [
            modules[name].register_forward_hook(lambda _, __, out, name=name: kept.__setitem__(name, out)) for name in self.stage_names
        ]
        hooks += [
            modules[name].register_forward_pre_hook(lambda _, given, name=name: before.__setitem__(name, given[0]))
            for name in self.activation_names
        ]
        try:
            last = self.net.forward_features(inputs)  # type: ignore[operator]
        finally:
            for hook in hooks:
                hook.remove()
        pooled = self.net.forward_head(last, pre_logits=True)  # type: ignore[operator]
        logits = self.head(pooled)
        maps = [kept[name] for name in self.stage_names if name in kept and kept[name].dim() == 4]
        return Taps(
            logits=logits,
            pooled=pooled.flatten(1),
            last=last if last.dim() == 4 else None,
            stages=tuple(maps),
            preact=tuple(before[name] for name in self.activation_names),
        )


def _last_activations(modules: Mapping[str, nn.Module], stages: list[str]) -> list[str]:
    """For each stage the activation that it ends with, where every stage is known to end with one (timm's ResNets)."""
    found = []
    for name in stages:
        ends = [name] if isinstance(modules[name], nn.ReLU) else []
        if isinstance(modules[name], nn.Sequential) and len(modules[name]):  # type: ignore[arg-type]
            last = f"{name}.{len(modules[name]) - 1}"  # type: ignore[arg-type]
            ends = [f"{last}.{act}" for act in ("act3", "act2") if isinstance(modules.get(f"{last}.{act}"), nn.ReLU)][:1]
            if not hasattr(modules[last], "downsample"):
                ends = []  # not a ResNet's block: what its activation is followed by is not known here
        found += ends
    return found if len(found) == len(stages) else []
