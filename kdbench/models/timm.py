from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps
from kdbench.models._base import Model
from kdbench.through_timm import make_model


class Timm(Model):
    """Any of timm's models, with random weights: a suite may say just its name (`resnet18`).

    `last` is what timm's `forward_features` gives (for MobileNetV2 the 1280 channels of its head convolution), `pooled` what its
    head makes of it before the classifier; the stages are those of timm's `feature_info`, where the model has one.
    Source: the timm library.
    """

    def __init__(self, *, architecture: str, drop_rate: float = 0.0, drop_path_rate: float = 0.0):
        super().__init__()
        self.architecture, self.drop_rate, self.drop_path_rate = architecture, drop_rate, drop_path_rate

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        # Only what is asked for: not every model of timm knows every argument.
        asked = {name: getattr(self, name) for name in ("drop_rate", "drop_path_rate") if getattr(self, name)}
        self.net = make_model(self.architecture, inputs, outputs, **asked)
        if not hasattr(self.net, "forward_head"):
            raise RefusedError(f"timm's {self.architecture} does not separate its features from its head")
        modules = dict(self.net.named_modules())
        stages = [info["module"] for info in getattr(self.net, "feature_info", None) or []]
        self.stage_names = [name for name in stages if name in modules]

    @property
    def head(self) -> nn.Module:
        return self.net.get_classifier()  # type: ignore[operator]

    def forward(self, inputs: Tensor) -> Taps:
        kept: dict[str, Any] = {}
        modules = dict(self.net.named_modules())
        hooks = [
            modules[name].register_forward_hook(lambda _, __, out, name=name: kept.__setitem__(name, out)) for name in self.stage_names
        ]
        try:
            last = self.net.forward_features(inputs)  # type: ignore[operator]
        finally:
            for hook in hooks:
                hook.remove()
        pooled = self.net.forward_head(last, pre_logits=True)  # type: ignore[operator]
        logits = self.head(pooled)
        maps = [kept[name] for name in self.stage_names if name in kept and kept[name].dim() == 4]
        return Taps(logits=logits, pooled=pooled.flatten(1), last=last if last.dim() == 4 else None, stages=tuple(maps))
