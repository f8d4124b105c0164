from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdbench.models import _torchvision as tv
from kdbench.models._detector import Backbone, DenseDetector, at_least, shares


class RetinaNet(DenseDetector):
    """RetinaNet: each anchor at each position of a feature pyramid predicts a class and how it differs from a box.

    `body` is a convolutional net of timm, whose last maps of these `strides` the pyramid is made of, with `width` channels; `extra_levels`
    are made of its coarsest map (`p6p7_from_c5`: of the body's). `anchor_sizes` has one size in pixels for each level; at a position are
    anchors of `anchors_per_octave` sizes from it to its double, each with all `aspect_ratios` (height to width). `candidates` of each level
    with a score above `score_threshold` go into the suppression of overlaps (`nms_threshold`), of which at most `detections` remain (AP
    counts 100). `body_norm_eps` changes the epsilon of the batch norms of the body. No step draws a random number.

    Losses: `classification` (focal) and `bbox_regression` (`box_loss`), each the mean over images of the sum over anchors divided by the
    number of anchors with an object.
    Source: Lin et al. 2017; computed by torchvision, whose defaults these are (`retinanet_resnet50_fpn`; `_v2` is after Zhang et al. 2020).
    """

    released_layout: ClassVar[Mapping[str, str]] = {
        **DenseDetector.released_layout,
        # In older files a rectifier after each convolution has a number too.
        **{rf"_head\.conv\.{2 * place}\.(weight|bias)$": rf"_head.conv.{place}.0.\1" for place in range(4)},
    }

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "retinanet_resnet50_fpn": {"body": "resnet50", "body_norm_eps": 0.0},
        "retinanet_resnet50_fpn_v2": {"body": "resnet50", "extra_levels": "p6p7_from_c5", "head_norm": "group", "box_loss": "giou"},
        "retinanet_test_resnet": {
            "body": "test_resnet",
            "width": 64,
            "extra_levels": "max_pool",
            "head_norm": "group",
            "anchor_sizes": [12, 24, 48, 96],
        },
    }

    def __init__(
        self,
        *,
        body: str,
        width: int = 256,
        strides: tuple[int, ...] = (8, 16, 32),
        extra_levels: Literal["none", "max_pool", "p6p7_from_p5", "p6p7_from_c5"] = "p6p7_from_p5",
        fpn_norm: Literal["none", "group", "batch"] = "none",
        head_norm: Literal["none", "group", "batch"] = "none",
        anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512),
        anchors_per_octave: int = 3,
        aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        box_loss: Literal["l1", "smooth_l1", "giou"] = "l1",
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        candidates: int = 1000,
        detections: int = 300,
        drop_path_rate: float = 0.0,
        body_norm_eps: float | None = None,
    ):
        norms = {"fpn_norm": fpn_norm, "head_norm": head_norm}
        shared = {"drop_path_rate": drop_path_rate, "body_norm_eps": body_norm_eps}
        super().__init__(body=body, width=width, strides=strides, extra_levels=extra_levels, norms=norms, **shared)
        at_least(1, anchor_sizes=anchor_sizes, anchors_per_octave=anchors_per_octave, candidates=candidates, detections=detections)
        shares(score_threshold=score_threshold, nms_threshold=nms_threshold)
        if not aspect_ratios or min(aspect_ratios) <= 0:
            raise ValueError(f"aspect_ratios must be positive, and are {list(aspect_ratios)}")
        if len(anchor_sizes) != len(self.level_strides):
            raise ValueError(f"anchor_sizes needs one size for each of the {len(self.level_strides)} levels, and is {list(anchor_sizes)}")
        self.anchor_sizes, self.anchors_per_octave, self.aspect_ratios = tuple(anchor_sizes), anchors_per_octave, tuple(aspect_ratios)
        self.box_loss, self.score_threshold, self.nms_threshold = box_loss, score_threshold, nms_threshold
        self.candidates, self.detections = candidates, detections

    def detector(self, backbone: Backbone, outputs: int) -> nn.Module:
        octave = [2 ** (place / self.anchors_per_octave) for place in range(self.anchors_per_octave)]
        sizes = tuple(tuple(int(size * factor) for factor in octave) for size in self.anchor_sizes)
        head = tv.RetinaNetHead(self.width, len(octave) * len(self.aspect_ratios), outputs, tv.norm_layer(self.norms["head_norm"]))
        head.regression_head._loss_type = self.box_loss
        return tv.RetinaNet(
            backbone,
            outputs,
            anchor_generator=tv.AnchorGenerator(sizes, (self.aspect_ratios,) * len(sizes)),
            head=head,
            score_thresh=self.score_threshold,
            nms_thresh=self.nms_threshold,
            detections_per_img=self.detections,
            topk_candidates=self.candidates,
        )

    def task_losses(
        self, targets: list[dict[str, Tensor]], outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        return self.net.compute_loss(targets, outputs, anchors)
