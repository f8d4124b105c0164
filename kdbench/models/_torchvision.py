"""The only module of models that uses torchvision: what detectors are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, FCOS_ResNet50_FPN_Weights, RetinaNet
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

# fmt: off
__all__ = [
    "FCOS", "FasterRCNN", "RetinaNet", "AnchorGenerator", "BalancedPositiveNegativeSampler", "FastRCNNConvFCHead", "FastRCNNPredictor",
    "TwoMLPHead", "FCOSClassificationHead", "FCOSHead", "FCOSRegressionHead", "ImageList", "RetinaNetHead", "RPNHead", "fastrcnn_loss",
    "concat_box_prediction_layers",
]
# fmt: on

Norm = Literal["none", "group", "batch"]
Extra = Literal["none", "max_pool", "p6p7_from_p5", "p6p7_from_c5"]
EXTRA_LEVELS = {"none": 0, "max_pool": 1, "p6p7_from_p5": 2, "p6p7_from_c5": 2}


def norm_layer(name: Norm) -> Callable[..., nn.Module] | None:
    return {"none": None, "group": lambda channels: nn.GroupNorm(groups_of(channels), channels), "batch": nn.BatchNorm2d}[name]


def groups_of(channels: int) -> int:
    """The groups of a group norm: 32, as in torchvision's heads, and fewer where a group would be one channel, since its norm of a map of
    one pixel, as the coarsest levels of small images are, is 0."""
    return min(32, max(channels // 2, 1))


def pyramid_network(channels: list[int], width: int, extra: Extra, norm: Norm) -> nn.Module:
    """A feature pyramid on maps with these channels, finest first."""
    block: LastLevelMaxPool | LastLevelP6P7 | None = None
    if extra == "max_pool":
        block = LastLevelMaxPool()
    elif extra != "none":
        block = LastLevelP6P7(width if extra == "p6p7_from_p5" else channels[-1], width)
        block.use_P5 = extra == "p6p7_from_p5"  # torchvision decides by the channels, which may be equal
    return FeaturePyramidNetwork(channels, width, block, norm_layer(norm))


def region_pool(names: list[str], strides: tuple[int, ...]) -> MultiScaleRoIAlign:
    """RoIAlign on the levels of these names. torchvision infers their scales from the sizes of the first batch without its margin, wrongly
    where images are much smaller than it, and keeps them; here they are set."""
    pool = MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    pool.map_levels = LevelMapper(finest, coarsest, pool.canonical_scale, pool.canonical_level)
    return pool


def coco_ids() -> list[int]:
    """The 80 categories of COCO by their ids, which are the places of torchvision's 91 outputs; the other outputs are of no category."""
    names = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [place for place, name in enumerate(names) if name not in ("__background__", "N/A")]
