from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdbench.losses._base import Regions, Taps
from kdbench.models import _torchvision as tv
from kdbench.models._detector import Backbone, Detector, Found, anchors_of, at_least, in_full, shares, targets_of, without_autocast
from kdbench.scenes import Images, Objects


class FasterRcnn(Detector):
    """Faster R-CNN: a net on a feature pyramid proposes regions (RPN), and a head on their features (RoIAlign) finds class and box of each.

    `body` is a convolutional net of timm, whose last maps of these `strides` the pyramid is made of, with `width` channels; `extra_levels`
    (for proposals alone) are made of its coarsest map. `anchor_sizes` has one size in pixels for each level, `aspect_ratios` are height to
    width. At each training step `rpn_samples` anchors of an image are drawn, at most half of them of an object, and `regions` proposals, at
    most a quarter of them. `proposals` remain of the `rpn_candidates` of each level after suppression of overlaps (`rpn_nms_threshold`):
    both are (in training, in evaluation). The head has `head_convs` convolutions of 256 channels, with `head_norm`, and linear layers of
    `head_width` (two without convolutions, else one). `body_norm_eps` changes the epsilon of the batch norms of the body.

    The samplers draw from a stream of their own: its seed is one number, drawn before the body runs, and the draws are made on the CPU, so
    that neither the body's own draws nor the number of proposals of the last step change them, nor the device.

    Losses: `loss_classifier` (cross-entropy) and `loss_box_reg` (smooth L1) of the regions, `loss_objectness` and `loss_rpn_box_reg` of
    the anchors, means over what was drawn. The tap `regions` has the proposals that were drawn, with class logits and labels. `forward`
    makes the levels alone, and no regions: the heads, which run in training and in detecting, are not in its cost.
    Source: Ren et al. 2015, Lin et al. 2017 (FPN); computed by torchvision, whose defaults these are (`fasterrcnn_resnet50_fpn`, and `_v2`
        after Li et al. 2021), except that RoIAlign knows the strides (torchvision infers them from the first batch).
    """

    released_layout: ClassVar[Mapping[str, str]] = {
        **Detector.released_layout,
        r"^rpn\.head\.conv\.(weight|bias)$": r"rpn.head.conv.0.0.\1",
    }

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "faster_rcnn_resnet50_fpn": {"body": "resnet50", "body_norm_eps": 0.0},
        "faster_rcnn_resnet50_fpn_v2": {"body": "resnet50", "fpn_norm": "batch", "rpn_convs": 2, "head_convs": 4, "head_norm": "batch"},
        "faster_rcnn_test_resnet": {
            "body": "test_resnet",
            "width": 64,
            "anchor_sizes": [8, 16, 32, 64, 128],
            "regions": 64,
            "head_width": 128,
        },
        "faster_rcnn_lcnet_035": {"body": "lcnet_035", "width": 64, "anchor_sizes": [8, 16, 32, 64, 128], "regions": 64, "head_width": 128},
    }

    def __init__(
        self,
        *,
        body: str,
        width: int = 256,
        strides: tuple[int, ...] = (4, 8, 16, 32),
        extra_levels: Literal["none", "max_pool", "p6p7_from_p5", "p6p7_from_c5"] = "max_pool",
        fpn_norm: Literal["none", "group", "batch"] = "none",
        anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512),
        aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        rpn_convs: int = 1,
        rpn_samples: int = 256,
        rpn_candidates: tuple[int, int] = (2000, 1000),
        proposals: tuple[int, int] = (2000, 1000),
        rpn_nms_threshold: float = 0.7,
        rpn_score_threshold: float = 0.0,
        regions: int = 512,
        head_convs: int = 0,
        head_norm: Literal["none", "group", "batch"] = "none",
        head_width: int = 1024,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
        drop_path_rate: float = 0.0,
        body_norm_eps: float | None = None,
    ):
        norms = {"fpn_norm": fpn_norm}
        shared = {"drop_path_rate": drop_path_rate, "body_norm_eps": body_norm_eps}
        super().__init__(body=body, width=width, strides=strides, extra_levels=extra_levels, norms=norms, **shared)
        at_least(1, anchor_sizes=anchor_sizes, rpn_convs=rpn_convs, rpn_samples=rpn_samples, rpn_candidates=rpn_candidates)
        at_least(1, proposals=proposals, regions=regions, head_width=head_width, detections=detections)
        at_least(0, head_convs=head_convs)
        shares(rpn_nms_threshold=rpn_nms_threshold, rpn_score_threshold=rpn_score_threshold)
        shares(score_threshold=score_threshold, nms_threshold=nms_threshold)
        if not aspect_ratios or min(aspect_ratios) <= 0:
            raise ValueError(f"aspect_ratios must be positive, and are {list(aspect_ratios)}")
        if len(anchor_sizes) != len(self.level_strides):
            raise ValueError(f"anchor_sizes needs one size for each of the {len(self.level_strides)} levels, and is {list(anchor_sizes)}")
        if head_norm != "none" and not head_convs:
            raise ValueError(f"head_norm {head_norm} is of the convolutions of the head, which has none: set head_convs")
        self.anchor_sizes, self.aspect_ratios = tuple(anchor_sizes), tuple(aspect_ratios)
        self.rpn_convs, self.rpn_samples, self.rpn_candidates, self.proposals = (
            rpn_convs,
            rpn_samples,
            tuple(rpn_candidates),
            tuple(proposals),
        )
        self.rpn_nms_threshold, self.rpn_score_threshold = rpn_nms_threshold, rpn_score_threshold
        self.regions, self.head_convs, self.head_norm, self.head_width = regions, head_convs, head_norm, head_width
        self.score_threshold, self.nms_threshold, self.detections = score_threshold, nms_threshold, detections

    def detector(self, backbone: Backbone, outputs: int) -> nn.Module:
        if self.head_convs:
            shape, norm = (self.width, 7, 7), tv.norm_layer(self.head_norm)
            head: nn.Module = tv.FastRCNNConvFCHead(shape, [256] * self.head_convs, [self.head_width], norm)
        else:
            head = tv.TwoMLPHead(self.width * 7 * 7, self.head_width)
        net = tv.FasterRCNN(
            backbone,
            rpn_anchor_generator=tv.AnchorGenerator(
                tuple((size,) for size in self.anchor_sizes), (self.aspect_ratios,) * len(self.anchor_sizes)
            ),
            rpn_head=tv.RPNHead(self.width, len(self.aspect_ratios), self.rpn_convs),
            rpn_pre_nms_top_n_train=self.rpn_candidates[0],
            rpn_pre_nms_top_n_test=self.rpn_candidates[1],
            rpn_post_nms_top_n_train=self.proposals[0],
            rpn_post_nms_top_n_test=self.proposals[1],
            rpn_nms_thresh=self.rpn_nms_threshold,
            rpn_score_thresh=self.rpn_score_threshold,
            rpn_batch_size_per_image=self.rpn_samples,
            box_roi_pool=tv.region_pool([str(place) for place in range(len(self.strides))], self.strides),
            box_head=head,
            box_predictor=tv.FastRCNNPredictor(self.head_width, outputs + 1),
            box_score_thresh=self.score_threshold,
            box_nms_thresh=self.nms_threshold,
            box_detections_per_img=self.detections,
            box_batch_size_per_image=self.regions,
        )
        self.stream = Stream()
        for owner in (net.rpn, net.roi_heads):
            drawn = owner.fg_bg_sampler
            owner.fg_bg_sampler = Sampler(drawn.batch_size_per_image, drawn.positive_fraction, self.stream)
        return net

    def losses(self, images: Images, objects: Objects) -> tuple[dict[str, Tensor], Taps]:
        self.stream.seed(int(torch.randint(2**62, (), device="cpu")))
        levels, targets, regions = self.pyramid(images), targets_of(objects, first=1), self.net.roi_heads
        proposals, losses = self.proposed(images, levels, targets)
        with without_autocast(images.device):
            proposals, _, labels, wanted = regions.select_training_samples(proposals, targets)
        logits, deltas = self.of_regions(levels, proposals)
        with without_autocast(images.device):
            classifier, boxes = tv.fastrcnn_loss(logits, deltas, labels, wanted)
        drawn = Regions(tuple(proposals), logits, torch.cat(labels), self.class_logits)
        return {"loss_classifier": classifier, "loss_box_reg": boxes, **losses}, replace(self.taps(levels), regions=drawn)

    @torch.no_grad()
    def detect(self, images: Images) -> Found:
        levels = self.pyramid(images)
        proposals, _ = self.proposed(images, levels)
        logits, deltas = self.of_regions(levels, proposals)
        with without_autocast(images.device):
            found = self.net.roi_heads.postprocess_detections(logits, deltas, proposals, list(images.sizes))
        return [(boxes, scores, labels - 1) for boxes, scores, labels in zip(*found, strict=True)]

    def proposed(
        self, images: Images, levels: Mapping[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The regions that may hold an object, of each image, and with `targets` the losses of these proposals."""
        rpn = self.net.rpn
        objectness, deltas = rpn.head(list(levels.values()))
        counts = [one[0].numel() for one in objectness]
        anchors = anchors_of(rpn.anchor_generator, images, levels)
        with without_autocast(images.device):
            objectness, deltas = (in_full(one) for one in tv.concat_box_prediction_layers(objectness, deltas))
            boxes = rpn.box_coder.decode(deltas.detach(), anchors).view(len(images), -1, 4)
            proposals, _ = rpn.filter_proposals(boxes, objectness, list(images.sizes), counts)
            if targets is None:
                return proposals, {}
            labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
            of_objects, of_boxes = rpn.compute_loss(objectness, deltas, labels, rpn.box_coder.encode(matched, anchors))
        return proposals, {"loss_objectness": of_objects, "loss_rpn_box_reg": of_boxes}

    def of_regions(self, levels: Mapping[str, Tensor], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The class logits (the background first) and boxes, as differences from the regions, of all regions of all images."""
        heads = self.net.roi_heads
        maps = {name: in_full(level) for name, level in levels.items()}  # as the regions
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, regions, [])))  # by strides, whatever the sizes
        return in_full(logits), in_full(deltas)

    def class_logits(self, levels: Sequence[Tensor], regions: Sequence[Tensor]) -> Tensor:
        """The class logits of any regions on these levels, finest first."""
        return self.of_regions({str(place): level for place, level in enumerate(levels)}, list(regions))[0]

    def taps(self, levels: Mapping[str, Tensor]) -> Taps:
        finest = levels["0"]
        boxes = (finest.new_zeros(0, 4, dtype=torch.float32),) * len(finest)
        labels = finest.new_zeros(0, dtype=torch.int64)
        none = Regions(boxes, finest.new_zeros(0, self.outputs + 1, dtype=torch.float32), labels, self.class_logits)
        return replace(super().taps(levels), regions=none)

    def parts_by_name(self) -> dict[str, nn.Module]:
        head = nn.ModuleDict({"rpn": self.net.rpn, "roi_heads": self.net.roi_heads})
        return {"neck": self.net.backbone.fpn, "head": head}

    def rows_of_classes(self) -> dict[str, tuple[int, bool, int]]:
        return {f"roi_heads.box_predictor.{name}": (1, True, rows) for name, rows in (("cls_score", 1), ("bbox_pred", 4))}


class Stream:
    """Random numbers apart from all others, on the CPU. It holds a state and no generator, so that a copy of the model goes on alone."""

    state: Tensor

    def seed(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()


class Sampler(tv.BalancedPositiveNegativeSampler):
    """torchvision's sampler with the draws of a stream."""

    def __init__(self, batch_size_per_image: int, positive_fraction: float, stream: Stream):
        super().__init__(batch_size_per_image, positive_fraction)
        self.stream = stream

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.stream.state)
        try:
            found = super().__call__([one.cpu() for one in matched_idxs])
            self.stream.state = torch.default_generator.get_state()
        finally:
            torch.default_generator.set_state(before)
        of_objects, others = ([one.to(labels.device) for one, labels in zip(side, matched_idxs, strict=True)] for side in found)
        return of_objects, others
