"""Stems for images of 32 or 64 pixels, by family of timm. An exported net contains the text of this file, so it imports only torch."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


class NoStemError(ValueError):
    """The message says why."""


def small_stem(net: nn.Module) -> None:
    """Change a net for ImageNet to one for small images, in place. Raises NoStemError for nets without such a stem. Families
    whose stem is made of arguments (`small_arguments`) stay as they are."""
    stem = _stem_of(net)
    if not isinstance(stem, Mapping):
        stem(net)


def small_arguments(net: nn.Module) -> Mapping[str, Any]:
    """The arguments of timm's factory that give nets of this net's family a stem for small images; none where `small_stem` changes the net
    after it is built. Raises NoStemError for nets without such a stem."""
    stem = _stem_of(net)
    if not isinstance(stem, Mapping):
        return {}
    if not cuts_patches(net):
        raise NoStemError("it does not cut the image itself into patches")
    return stem


def cuts_patches(net: nn.Module) -> bool:
    return any(type(one).__name__ == "PatchEmbed" for one in net.children())


def _stem_of(net: nn.Module) -> Any:
    families = [one.__name__ for one in type(net).__mro__ if one.__name__ in STEMS]
    if not families:
        raise NoStemError(f"the family {type(net).__name__} has none here; those with one are {', '.join(STEMS)}")
    return STEMS[families[0]][1]


def _resnet(net: Any) -> None:
    into = next(module.in_channels for module in net.conv1.modules() if isinstance(module, nn.Conv2d))
    net.conv1 = nn.Conv2d(into, net.bn1.num_features, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm draws it
    net.maxpool = nn.Identity()


def _senet(net: Any) -> None:
    net.layer0.conv1 = _of_stride_1(net.layer0.conv1)
    nn.init.kaiming_normal_(net.layer0.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm draws it
    net.pool0 = nn.Identity()


def _densenet(net: Any) -> None:
    net.features.conv0 = _of_stride_1(net.features.conv0)
    nn.init.kaiming_normal_(net.features.conv0.weight)  # as timm draws it
    net.features.pool0 = nn.Identity()


def _convnext(net: Any) -> None:
    for place, layer in enumerate(net.stem):
        if isinstance(layer, nn.Conv2d):
            net.stem[place] = made = _of_stride_1(layer)
            nn.init.trunc_normal_(made.weight, std=0.02)  # as timm draws it
            if made.bias is not None:
                nn.init.zeros_(made.bias)


def _regnet(net: Any) -> None:
    _keep_size(net.stem)
    _keep_size(net.s1)


def _mobile(net: Any) -> None:
    _keep_size(net.conv_stem)
    blocks = (block for stage in net.blocks for block in stage)
    _keep_size(next(block for block in blocks if any(_halves(one) for one in block.modules())))


def _of_stride_1(old: nn.Conv2d) -> nn.Conv2d:
    return nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=old.bias is not None)


def _halves(module: nn.Module) -> bool:
    pools = isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) or type(module).__name__ == "BlurPool2d"
    return (pools or isinstance(module, nn.Conv2d)) and getattr(module, "stride", 1) in (2, (2, 2))


def _keep_size(part: nn.Module) -> None:
    """Give the convolutions of a part of a net stride 1."""
    for module in part.modules():
        if _halves(module):
            if not isinstance(module, nn.Conv2d):
                raise NoStemError(f"its first stages halve their maps by {type(module).__name__}, and not by convolutions")
            module.stride = (1, 1)


_PATCH_4 = ("patches of 4x4 pixels", {"patch_size": 4})
_WINDOWS = ("patches of 2x2 pixels, in windows of 4x4 patches", {"patch_size": 2, "window_size": 4})
_STRIDES = ("the stem and the first stage that halves the map have stride 1", _mobile)

STEMS: Mapping[str, tuple[str, Callable[[Any], None] | Mapping[str, Any]]] = {
    "ResNet": ("one 3x3 convolution of stride 1, and no pooling", _resnet),
    "SENet": ("a first convolution of 3x3 and stride 1, and no pooling", _senet),
    "DenseNet": ("a first convolution of 3x3 and stride 1, and no pooling", _densenet),
    "RegNet": ("the stem and the first stage have stride 1", _regnet),
    "EfficientNet": _STRIDES,
    "MobileNetV3": _STRIDES,
    "GhostNet": _STRIDES,
    "ConvNeXt": ("3x3 convolutions of stride 1", _convnext),
    "SwinTransformer": _WINDOWS,
    "SwinTransformerV2": _WINDOWS,
    "SwinTransformerV2Cr": ("patches of 2x2 pixels", {"patch_size": 2}),
    "VisionTransformer": _PATCH_4,
    "VisionTransformerRelPos": _PATCH_4,
    "Eva": _PATCH_4,
    "Beit": _PATCH_4,
    "Cait": _PATCH_4,
}
"""The class of a family's nets in timm -> what a small stem is, and what makes it: a change in place, or arguments of the factory."""
