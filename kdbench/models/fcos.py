from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdbench.models import _torchvision as tv
from kdbench.models._detector import Backbone, DenseDetector, at_least, shares


class Fcos(DenseDetector):
    """FCOS: each position of a feature pyramid predicts a class, its distances to the four sides of a box, and how central it is.

    `body` is a convolutional net of timm, whose last maps of these `strides` the pyramid is made of, with `width` channels; `extra_levels`
    are made of its coarsest map (`p6p7_from_c5`: of the body's). A box is learned by the positions within `center_sampling_radius` strides
    of its centre, on one level: where the largest distance to a side is 4 to 8 strides. `candidates` of each level with a score (the root
    of the product of class and centre) above `score_threshold` go into the suppression of overlaps (`nms_threshold`), of which at most
    `detections` remain. `body_norm_eps` changes the epsilon of the batch norms of the body. No step draws a random number.

    Losses: `classification` (focal), `bbox_regression` (GIoU), `bbox_ctrness` (cross-entropy), each a sum over positions divided by the
    number of positions with an object in the batch.
    Source: Tian et al. 2019 and 2020; computed by torchvision, whose defaults these are (`fcos_resnet50_fpn`).
    """

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fcos_resnet50_fpn": {"body": "resnet50"},
        "fcos_test_resnet": {"body": "test_resnet", "width": 64, "extra_levels": "max_pool"},
    }

    def __init__(
        self,
        *,
        body: str,
        width: int = 256,
        strides: tuple[int, ...] = (8, 16, 32),
        extra_levels: Literal["none", "max_pool", "p6p7_from_p5", "p6p7_from_c5"] = "p6p7_from_p5",
        fpn_norm: Literal["none", "group", "batch"] = "none",
        head_norm: Literal["none", "group", "batch"] = "group",
        head_convs: int = 4,
        center_sampling_radius: float = 1.5,
        score_threshold: float = 0.2,
        nms_threshold: float = 0.6,
        candidates: int = 1000,
        detections: int = 100,
        drop_path_rate: float = 0.0,
        body_norm_eps: float | None = None,
    ):
        norms = {"fpn_norm": fpn_norm, "head_norm": head_norm}
        shared = {"drop_path_rate": drop_path_rate, "body_norm_eps": body_norm_eps}
        super().__init__(body=body, width=width, strides=strides, extra_levels=extra_levels, norms=norms, **shared)
        at_least(0, head_convs=head_convs)
        at_least(1, candidates=candidates, detections=detections)
        shares(score_threshold=score_threshold, nms_threshold=nms_threshold)
        self.head_convs, self.center_sampling_radius = head_convs, center_sampling_radius
        self.score_threshold, self.nms_threshold, self.candidates, self.detections = score_threshold, nms_threshold, candidates, detections

    def detector(self, backbone: Backbone, outputs: int) -> nn.Module:
        head = tv.FCOSHead(self.width, 1, outputs, num_convs=0)  # its halves are made here: it takes no norm
        norm = tv.norm_layer(self.norms["head_norm"]) or nn.Identity
        head.classification_head = tv.FCOSClassificationHead(self.width, 1, outputs, self.head_convs, norm_layer=norm)
        head.regression_head = tv.FCOSRegressionHead(self.width, 1, self.head_convs, norm_layer=norm)
        return tv.FCOS(
            backbone,
            outputs,
            anchor_generator=tv.AnchorGenerator(tuple((one,) for one in self.level_strides), ((1.0,),) * len(self.level_strides)),
            head=head,
            center_sampling_radius=self.center_sampling_radius,
            score_thresh=self.score_threshold,
            nms_thresh=self.nms_threshold,
            detections_per_img=self.detections,
            topk_candidates=self.candidates,
        )

    def task_losses(
        self, targets: list[dict[str, Tensor]], outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        return self.net.compute_loss(targets, outputs, anchors, counts)
