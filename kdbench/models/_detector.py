"""What detectors share: a body of timm, a feature pyramid, and heads of torchvision, run step by step, without hooks. Not a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Taps
from kdbench.models import _torchvision as tv
from kdbench.models._base import InputAdapter, Model, image_channels
from kdbench.scenes import Images, Objects
from kdbench.timm_adapter import make_pyramid

Found = list[tuple[Tensor, Tensor, Tensor]]
"""Of each image the boxes (m x 4, in pixels of the input), scores (m, highest first) and labels (m, classes from 0)."""


class Backbone(nn.Module):
    """A body and the pyramid on its maps. The names of the levels and modules are torchvision's."""

    def __init__(self, body: Any, fpn: nn.Module, width: int):
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, width
        layout = getattr(body, "output_fmt", "NCHW")
        self.channels_last = str(getattr(layout, "value", layout)) == "NHWC"

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.body(pixels)
        return self.fpn({str(place): one.permute(0, 3, 1, 2) if self.channels_last else one for place, one in enumerate(maps)})


class Detector(Model):
    """A detector: images (`Images`) -> levels of a pyramid, losses of a training step, objects found.

    A part defines `detector` (the net of torchvision on a backbone), `losses` and `detect`. No part resizes, flips or normalises images:
    the dataset has done so.
    """

    released_layout: ClassVar[Mapping[str, str]] = {r"\.(inner_blocks|layer_blocks)\.(\d)\.(weight|bias)$": r".\1.\2.0.\3"}
    """torchvision's files are older than its modules."""

    of_timm = ("body", "backbone.body")
    adapter: InputAdapter | None = None

    def __init__(
        self,
        *,
        body: str,
        width: int,
        strides: Sequence[int],
        extra_levels: tv.Extra,
        norms: Mapping[str, tv.Norm],
        drop_path_rate: float,
        body_norm_eps: float | None,
    ):
        super().__init__()
        at_least(1, width=width, strides=strides)
        if list(strides) != [2**power for power in range(strides[0].bit_length() - 1, strides[0].bit_length() - 1 + len(strides))]:
            raise ValueError(f"strides are powers of 2, each twice the one before, as [8, 16, 32], and not {list(strides)}")
        if wrong := [name for name, norm in norms.items() if norm == "group" and width % tv.groups_of(width)]:
            raise ValueError(f"width must be a multiple of {tv.groups_of(width)} with {wrong[0]}: group, and is {width}")
        self.body, self.width, self.extra_levels, self.drop_path_rate = body, width, extra_levels, drop_path_rate
        self.strides, self.norms, self.body_norm_eps = tuple(strides), dict(norms), body_norm_eps
        self.level_strides = (*strides, *(strides[-1] * 2 ** (one + 1) for one in range(tv.EXTRA_LEVELS[extra_levels])))

    def detector(self, backbone: Backbone, outputs: int) -> nn.Module:
        """torchvision's net on this backbone, for this number of classes."""
        raise NotImplementedError(f"{type(self).__name__} does not define detector(backbone, outputs)")

    def losses(self, images: Images, objects: Objects) -> tuple[dict[str, Tensor], Taps]:
        """The named losses of a training step (scalars), and the taps of the same forward pass."""
        raise NotImplementedError(f"{type(self).__name__} does not define losses(images, objects)")

    def detect(self, images: Images) -> Found:
        """The objects found in each image, in evaluation mode."""
        raise NotImplementedError(f"{type(self).__name__} does not define detect(images)")

    def build(self, inputs: tuple[int, ...], outputs: int) -> None:
        image_channels(inputs)
        padded = (inputs[0], *(-(-side // 32) * 32 for side in inputs[1:]))  # as `Images.padded` does
        body, channels = make_pyramid(
            self.body, padded, self.strides, {"drop_path_rate": self.drop_path_rate} if self.drop_path_rate else {}
        )
        if self.body_norm_eps is not None:
            for module in body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = self.body_norm_eps
        self.outputs = outputs
        fpn = tv.pyramid_network(channels, self.width, self.extra_levels, self.norms["fpn_norm"])
        self.net: Any = self.detector(Backbone(body, fpn, self.width), outputs)

    def build_for(self, inputs: tuple[int, ...], outputs: int, size: int | None) -> None:
        if size is not None:
            raise RefusedError("a detector sees images in the size that the dataset gives them: leave out `input_size`")
        self.build(inputs, outputs)

    def adapt_inputs(self, inputs: Mapping[str, Any], normalisation: tuple[Any, Any] | None) -> None:
        # No hook of `forward`, since training and detecting do not call it.
        self.adapter = self.input_adapter(inputs, normalisation)

    @property
    def plain(self) -> nn.Module:
        return self.net

    def pyramid(self, images: Images) -> dict[str, Tensor]:
        """The levels of the pyramid by name, finest first."""
        if not isinstance(images, Images):
            raise RefusedError("a detector needs images of a dataset for detection, and these are inputs of a classifier")
        pixels = images.pixels
        if self.adapter is not None:
            (pixels,) = self.adapter(self, (pixels,))
            inside = pixels.new_zeros(pixels.shape[0], 1, *pixels.shape[2:])
            for place, (height, breadth) in enumerate(images.sizes):
                inside[place, :, :height, :breadth] = 1
            pixels = pixels * inside  # the margin is 0 in every normalisation
        return self.net.backbone(pixels)

    def forward(self, images: Images) -> Taps:  # type: ignore[override]
        return self.taps(self.pyramid(images))

    def taps(self, levels: Mapping[str, Tensor]) -> Taps:
        return Taps(levels=tuple(levels.values()), strides=self.level_strides)

    def parts_by_name(self) -> dict[str, nn.Module]:
        """`neck` (the pyramid) and `head`: modules with the same keys in every detector of this part with these options."""
        return {"neck": self.net.backbone.fpn, "head": self.net.head}

    def stages_in_order(self) -> list[list[nn.Module]]:
        """The modules of the body from input to output: those of its stem, of its first stage, and so on. What comes before a stage, as a
        pooling, belongs to it; a norm after the stem's convolution, which timm may list as a stage, to the stem."""
        body = self.net.backbone.body
        names = {name for name, _ in body.named_modules()}
        listed = [one["module"] for one in body.feature_info.info]
        ends = [known for one in listed for known in (one, one.replace(".", "_", 1)) if known in names]
        found: list[list[nn.Module]] = [[]]
        for name, module in _whole(body, ends):
            if name in ends and len(found) == 1 and _has_convolution(module):
                found.append([])
            found[-1].append(module)
            if name in ends:
                found.append([])
        return [stage for stage in found if any(True for module in stage for _ in module.parameters())]

    def released(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also, where the model is for the 80 classes of COCO, the rows of these classes out of the 91 of torchvision's nets."""
        found, ids = super().released(weights), tv.coco_ids()
        for name, (before, background, after) in self.rows_of_classes().items():
            for key in (f"{name}.weight", f"{name}.bias"):
                if self.outputs == len(ids) and key in found and found[key].shape[:1] == (before * 91 * after,):
                    rows = [0, *ids] if background else ids
                    found[key] = found[key].unflatten(0, (before, 91, after))[:, rows].flatten(0, 2)
        return found

    def rows_of_classes(self) -> dict[str, tuple[int, bool, int]]:
        """The layers with rows for each class: name -> (sets of classes, whether each begins with the background, rows of a class)."""
        return {}

    @property
    def head_modules(self) -> list[nn.Module]:
        return [self.net.get_submodule(name) for name in self.rows_of_classes()]


def at_least(least: int, **options: int | Sequence[int | float]) -> None:
    """Raises ValueError: an option, or one of its values, is below `least`, or it has no value."""
    for name, given in options.items():
        values = [given] if isinstance(given, (int, float)) else [*given]
        if not values or not min(values) >= least:
            raise ValueError(f"{name} must be at least {least}, and is {given if isinstance(given, (int, float)) else values}")


def shares(**options: float) -> None:
    """Raises ValueError: an option is no threshold of scores, or of overlaps."""
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, and is {value}")


class DenseDetector(Detector):
    """A detector whose heads judge each position of each level: their class logits are the tap `dense_logits`."""

    def task_losses(
        self, targets: list[dict[str, Tensor]], outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        """torchvision's losses. `counts`: the number of anchors of each level."""
        raise NotImplementedError(f"{type(self).__name__} does not define task_losses(targets, outputs, anchors, counts)")

    def forward(self, images: Images) -> Taps:  # type: ignore[override]
        levels = self.pyramid(images)
        return self.dense_taps(levels, self.net.head.classification_head(list(levels.values())))

    def dense_taps(self, levels: Mapping[str, Tensor], logits: Tensor) -> Taps:
        sizes, each = [one.shape[2:] for one in levels.values()], self._anchors_each()
        split = logits.split(self._counts(levels), 1)
        maps = [one.unflatten(1, (*size, each)).permute(0, 3, 4, 1, 2).flatten(1, 2) for one, size in zip(split, sizes, strict=True)]
        return Taps(levels=tuple(levels.values()), strides=self.level_strides, dense_logits=maps)

    def losses(self, images: Images, objects: Objects) -> tuple[dict[str, Tensor], Taps]:
        levels = self.pyramid(images)
        outputs = self.net.head(list(levels.values()))
        anchors = anchors_of(self.net.anchor_generator, images, levels)
        with without_autocast(images.device):
            precise = {name: in_full(value) for name, value in outputs.items()}
            losses = self.task_losses(targets_of(objects), precise, anchors, self._counts(levels))
        return losses, self.dense_taps(levels, outputs["cls_logits"])

    @torch.no_grad()
    def detect(self, images: Images) -> Found:
        levels = self.pyramid(images)
        outputs, counts = self.net.head(list(levels.values())), self._counts(levels)
        anchors = [list(one.split(counts)) for one in anchors_of(self.net.anchor_generator, images, levels)]
        with without_autocast(images.device):
            split = {name: list(in_full(value).split(counts, 1)) for name, value in outputs.items()}
            found = self.net.postprocess_detections(split, anchors, list(images.sizes))
        return [(one["boxes"], one["scores"], one["labels"]) for one in found]

    def rows_of_classes(self) -> dict[str, tuple[int, bool, int]]:
        return {"head.classification_head.cls_logits": (self._anchors_each(), False, 1)}

    def _anchors_each(self) -> int:
        """The number of anchors at a position."""
        return self.net.anchor_generator.num_anchors_per_location()[0]

    def _counts(self, levels: Mapping[str, Tensor]) -> list[int]:
        return [one.shape[2:].numel() * self._anchors_each() for one in levels.values()]


def targets_of(objects: Objects, first: int = 0) -> list[dict[str, Tensor]]:
    """The objects of each image as torchvision takes them, in memory of their own; the first class is `first`."""
    return [{"boxes": boxes.clone(), "labels": labels + first} for boxes, labels in objects]


def in_full(values: Tensor) -> Tensor:
    """At least in float32."""
    return values.float() if values.dtype.itemsize < 4 else values


def anchors_of(generator: Any, images: Images, levels: Mapping[str, Tensor]) -> list[Tensor]:
    """The anchors of each image, at least in float32: in bfloat16 positions beyond 256 pixels would be rounded."""
    shapes = [one.new_empty(one.shape, dtype=torch.promote_types(one.dtype, torch.float32)) for one in levels.values()]
    return generator(tv.ImageList(images.pixels, list(images.sizes)), shapes)


def without_autocast(device: torch.device) -> Any:
    return torch.autocast(device.type, enabled=False)


def _whole(module: nn.Module, ends: Sequence[str], prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The children of a module in order, each taken apart only where a stage ends inside of it."""
    found = []
    for name, child in module.named_children():
        inside = any(one.startswith(f"{prefix}{name}.") for one in ends)
        found += _whole(child, ends, f"{prefix}{name}.") if inside else [(f"{prefix}{name}", child)]
    return found


def _has_convolution(module: nn.Module) -> bool:
    return any(isinstance(one, nn.Conv2d) for one in module.modules())
