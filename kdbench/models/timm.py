from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdbench.errors import OptionsError, RefusedError
from kdbench.losses._base import Taps
from kdbench.models._base import Model
from kdbench.models._timm_taps import Reader, head, head_names
from kdbench.timm_adapter import factory_arguments, has_model, make_model, of_family
from kdbench.timm_arguments import SET_HERE

RATES = ("drop_rate", "drop_path_rate")
READ_ANEW = frozenset(
    {
        *("deepseek_vit", "hieradet_sam2", "mambaout", "qwen3_vit", "swin_transformer", "swin_transformer_v2"),  # maps had channels last
        *("efficientvit_msra", "shvit", "volo"),  # logits were without the norm before the classifier, or without the auxiliary head
        "tresnet",  # a stage was absent
    }
)
"""Families of timm whose taps were others in version 1."""
WITHOUT_DROPOUT = frozenset({"lcnetv2", "mvitv2"})
"""Families whose classifier then had no dropout."""
CLIP = "resnet*_clip"
"""Nets whose classifier then saw one token instead of all: the same logits within rounding."""


class Timm(Model):
    """Any model of timm; a suite may give only its name (`resnet18`).

    `stem: small` is for images of 32 or 64 pixels: a ResNet starts with a 3x3 convolution of stride 1 and no pooling, MobileNetV2 with a
    stem of stride 1 and its first halving stage at stride 1 (32 pixels end as a 4x4 map); kdbench/timm_stems.py lists all families.
    A suite gives arguments of timm's factory (`img_size`, `patch_size`, ...) beside these options. A rate that is not given is timm's own.
    A net that cannot run on images of the dataset's size is built for it (`img_size`) if its factory takes that.

    `logits` are timm's own, also where several classifiers are averaged: those of a distilled head are averaged in training too. `pooled`
    is the input of the last layer, that of several classifiers side by side. `last` is the output of `forward_features` (for MobileNetV2
    the 1280 channels of its head convolution), `tokens` the same of a net that keeps channels last; both are absent where it is several
    sequences (CoaT, CrossViT, EfficientViM), and those of PiT, whose classifier sees the class token alone, are before its last norm.
    `stages` are those of `feature_info`, as maps (of a transformer, a map for each block). `preact` exists for ResNets.
    Source: the timm library; the stems as in the CIFAR nets of the RKD authors' repository and of most results that share it.
    """

    released_layout: ClassVar[Mapping[str, str]] = {r"\.shortcut\.": ".downsample.", r"^linear\.": "fc."}
    """The ResNet50 of RepDistiller is timm's with a small stem, under other names."""

    of_timm = ("architecture", "")
    added: ClassVar[Mapping[str, Any]] = {"arguments": {}}
    holds_further: ClassVar[str] = "arguments"

    def __init__(
        self,
        *,
        architecture: str,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem: Literal["own", "small"] = "own",
        arguments: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.architecture, self.drop_rate, self.drop_path_rate, self.stem = architecture, drop_rate, drop_path_rate, stem
        self.arguments = dict(arguments or {})

    @classmethod
    def further_options(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        architecture = given.get("architecture")
        if set(given) <= {"architecture", "stem"} or not isinstance(architecture, str) or not has_model(architecture):
            return {}
        taken = factory_arguments(architecture)
        wrong = [((name,), f"a suite cannot give it: {SET_HERE[name]}") for name in given if name in SET_HERE]
        for rate in RATES:
            if given.get(rate) and rate not in taken:
                wrong.append(((rate,), f"timm's {architecture} does not take it; it takes {', '.join(sorted(taken))}"))
        if wrong:
            raise OptionsError(f"timm's {architecture}", wrong)
        # A rate of 0 means timm's own; where that is another one, a 0 in the suite is an argument like the others.
        zeros = {rate for rate in RATES if given.get(rate) == 0 and rate in taken and taken[rate][1]}
        return {name: kind for name, (kind, _) in taken.items() if name not in RATES or name in zeros}

    def build_for(self, inputs: tuple[int, ...], outputs: int, size: int | None) -> None:
        self.build((*inputs[:-2], size, size) if size else inputs, outputs)

    @classmethod
    def version_with(cls, options: Mapping[str, Any]) -> int:
        families = READ_ANEW if not options.get("drop_rate") else {*READ_ANEW, *WITHOUT_DROPOUT}
        architecture = str(options.get("architecture")).partition(".")[0]
        return cls.version + (of_family(architecture, families) or fnmatchcase(architecture, CLIP))

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        # Only what is asked for: not every model of timm knows every argument.
        asked = {name: getattr(self, name) for name in RATES if getattr(self, name)} | self.arguments
        net, self.built_with = make_model(self.architecture, inputs, outputs, self.stem, asked)
        self.wrap(net)

    def wrap(self, net: nn.Module) -> None:
        """Use this net of timm. Raises RefusedError for one without classifier."""
        if not hasattr(net, "forward_head") or not hasattr(net, "get_classifier"):
            raise RefusedError(f"timm's {self.architecture} is no classifier: it gives features and no logits")
        self.net, self.reader = net, Reader(net)
        for name in self.reader.activations:
            net.get_submodule(name).inplace = False  # type: ignore[assignment]

    @property
    def plain(self) -> nn.Module:
        return self.net

    @property
    def head(self) -> nn.Module | None:
        return head(self.net)

    @property
    def head_modules(self) -> list[nn.Module]:
        return [self.net.get_submodule(name) for name in head_names(self.net)]

    def forward(self, inputs: Tensor) -> Taps:
        return self.reader.read(self.net, inputs)
