"""Detectors compute what torchvision's do, from images that the dataset resized and padded, and draw from a stream of their own."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, box_iou

from kdbench import parts
from kdbench.catalogue import shown
from kdbench.errors import DataError, KdbenchError, RefusedError
from kdbench.isolation import isolated
from kdbench.losses._base import Batch, Loss, Pair, Taps
from kdbench.models._detector import Detector, anchors_of
from kdbench.models._torchvision import coco_ids
from kdbench.plan.probe import _shapes_only
from kdbench.scenes import Images, Objects
from kdbench.train.start import fit

DETECTORS = ["fcos", "retinanet", "faster_rcnn"]
SIZES = [(96, 128), (70, 100), (120, 61)]
BODIES = ["test_resnet", "lcnet_035", "test_convnext", "mobilenetv3_small_050"]
CLASSES = 5


def small(name: str, classes: int = CLASSES, **options: Any) -> Detector:
    """A small detector, with class layers whose scores differ, so that it finds something without training."""
    known = {"body": "test_resnet", "width": 32, "score_threshold": 0.02}
    known |= {"regions": 32, "head_width": 16, "rpn_samples": 64, "anchor_sizes": [8, 16, 32, 64, 128]} if name == "faster_rcnn" else {}
    known |= {"head_norm": "group", "anchor_sizes": [8, 16, 32, 64, 128]} if name == "retinanet" else {}
    part = parts.load("model", name)
    torch.manual_seed(0)
    model: Detector = part.build(part.options({**known, **options}))
    model.build((3, 96, 128), classes)
    for module in model.head_modules:
        nn.init.normal_(module.weight, std=0.3)
    return model


def scene(sizes: Any = SIZES, seed: int = 0) -> tuple[Images, Objects]:
    """Images of these sizes, of which the second has no object."""
    draw = torch.Generator().manual_seed(seed)
    images = Images.padded([torch.randn(3, *size, generator=draw) for size in sizes])
    boxes, labels = [], []
    for place, (height, breadth) in enumerate(sizes):
        many = 0 if place == 1 else 3 + place
        corner = torch.rand(many, 2, generator=draw) * torch.tensor([breadth - 34.0, height - 34.0])
        boxes.append(torch.cat([corner, corner + 4 + 28 * torch.rand(many, 2, generator=draw)], 1))
        labels.append(torch.randint(CLASSES, (many,), generator=draw))
    return images, Objects(tuple(boxes), tuple(labels), images.sizes)


def plain_transform() -> GeneralizedRCNNTransform:
    """torchvision's own step before its nets, which only pads here, also in evaluation."""
    made = GeneralizedRCNNTransform(0, 10**6, [0.0] * 3, [1.0] * 3)
    made.resize = lambda image, target=None: (image, target)
    return made


def of_torchvision(model: Detector, images: Images, objects: Objects | None = None) -> Any:
    """What torchvision's own forward of the same net gives; its first class is 1 where a background is class 0."""
    net = copy.deepcopy(model.net)
    net.transform = plain_transform()
    first = int(hasattr(net, "roi_heads"))
    if first:
        for owner in (net.rpn, net.roi_heads):  # torchvision's own sampler, of the global generator
            owner.fg_bg_sampler = type(owner.fg_bg_sampler).__mro__[1](
                owner.fg_bg_sampler.batch_size_per_image, owner.fg_bg_sampler.positive_fraction
            )
    net.train(model.training)
    listed = [images.pixels[place, :, :height, :breadth] for place, (height, breadth) in enumerate(images.sizes)]
    if objects is None:
        return [(one["boxes"], one["scores"], one["labels"] - first) for one in net(listed)]
    targets = [{"boxes": boxes.clone(), "labels": labels + first} for boxes, labels in objects]
    return net(listed, targets)


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(mine, theirs) for a, b in zip(one, other, strict=True) for mine, theirs in zip(a, b, strict=True))


@pytest.mark.parametrize("sizes", [SIZES, [(96, 128)], [(70, 100), (64, 96)]], ids=["mixed", "one", "two"])
@pytest.mark.parametrize("name", DETECTORS)
def test_training_losses_are_torchvisions_bit_for_bit(name: str, sizes: Any) -> None:
    model = small(name).train()
    images, objects = scene(sizes)

    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    seed = int(torch.randint(2**62, ()))
    torch.manual_seed(7)
    losses, taps = model.losses(images, objects)
    torch.manual_seed(seed)
    theirs = of_torchvision(twin, images, objects)

    assert losses.keys() == theirs.keys() and all(torch.equal(losses[key], theirs[key]) for key in losses)
    sum(losses.values()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    assert [tuple(level.shape[2:]) for level in taps.levels][0] == tuple(side // taps.strides[0] for side in images.pixels.shape[2:])


@pytest.mark.parametrize("sizes", [SIZES, [(96, 128)]], ids=["mixed", "one"])
@pytest.mark.parametrize("name", DETECTORS)
def test_boxes_scores_and_labels_are_torchvisions_bit_for_bit(name: str, sizes: Any) -> None:
    model = small(name).eval()
    images, _ = scene(sizes)

    found = model.detect(images)

    with torch.no_grad():
        assert equal(found, of_torchvision(model, images))
    assert all(len(boxes) for boxes, _, _ in found)
    for (boxes, scores, labels), (height, breadth) in zip(found, images.sizes, strict=True):
        assert boxes.min() >= 0 and boxes[:, 2].max() <= breadth and boxes[:, 3].max() <= height
        assert (scores[:-1] >= scores[1:]).all() and labels.min() >= 0 and labels.max() < CLASSES


@pytest.mark.parametrize("name", DETECTORS)
def test_the_taps_of_training_are_those_of_forward(name: str) -> None:
    model = small(name).eval()  # as in training, batch norm would have other statistics the second time
    images, objects = scene()

    taps = model(images)
    model.net.train()
    for module in model.net.modules():
        module.training = isinstance(module, nn.Module) and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    _, same = model.losses(images, objects)

    assert taps.strides == same.strides == model.level_strides and len(taps.levels) == len(taps.strides)
    assert all(torch.equal(one, other) for one, other in zip(taps.levels, same.levels, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(taps.dense_logits, same.dense_logits, strict=True))
    assert bool(taps.dense_logits) is (name != "faster_rcnn")


@pytest.mark.parametrize(("name", "anchors"), [("fcos", 1), ("retinanet", 9)])
def test_dense_logits_are_those_of_the_class_layer(name: str, anchors: int) -> None:
    model = small(name).eval()
    images, _ = scene()
    taps = model(images)
    head = model.net.head.classification_head

    for level, logits in zip(taps.levels, taps.dense_logits, strict=True):
        assert logits.shape == (len(images), anchors * CLASSES, *level.shape[2:])
        assert torch.equal(logits, head.cls_logits(head.conv(level)))


@pytest.mark.parametrize("name", DETECTORS)
def test_images_without_objects_train_and_images_in_which_nothing_is_found_are_empty(name: str) -> None:
    model = small(name).train()
    images, objects = scene()
    none = Objects(tuple(one[:0] for one in objects.boxes), tuple(one[:0] for one in objects.labels), objects.sizes)

    losses, _ = model.losses(images, none)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()

    found = small(name, score_threshold=1.0).eval().detect(images)
    assert [(tuple(boxes.shape), len(scores), len(labels)) for boxes, scores, labels in found] == [((0, 4), 0, 0)] * 3


@pytest.mark.parametrize("name", DETECTORS)
def test_weights_that_are_not_numbers_give_losses_that_are_not_and_find_nothing(name: str) -> None:
    model = small(name).train()
    images, objects = scene()
    with torch.no_grad():
        for weight in model.net.backbone.parameters():
            weight.fill_(float("nan"))

    losses, _ = model.losses(images, objects)

    assert not torch.stack(list(losses.values())).isfinite().all()
    assert [len(boxes) for boxes, _, _ in model.eval().detect(images)] == [0, 0, 0]


@pytest.mark.parametrize("name", DETECTORS)
def test_what_is_shared_is_not_written_to(name: str) -> None:
    images, objects = scene()
    before = copy.deepcopy((images.pixels, objects.boxes, objects.labels))
    model = small(name)
    model.adapt_inputs({"mean": [0.5] * 3, "std": [0.25] * 3}, ((0.4,) * 3, (0.2,) * 3))

    model.train().losses(images, objects)
    model.eval().detect(images)

    assert torch.equal(images.pixels, before[0])
    assert equal((objects.boxes, objects.labels), before[1:])


def test_the_regions_of_a_step_are_those_of_its_own_loss_with_the_background_as_class_0_and_forward_has_none() -> None:
    model = small("faster_rcnn").train()
    images, objects = scene()
    losses, taps = model.losses(images, objects)
    regions = taps.regions

    assert torch.equal(nn.functional.cross_entropy(regions.logits, regions.labels), losses["loss_classifier"])
    counts = [len(boxes) for boxes in regions.boxes]
    own = regions.labels.split(counts)
    assert sum(counts) == len(regions.logits) and regions.logits.shape[1] == CLASSES + 1 and not own[1].any()
    for boxes, labels, (true, classes) in zip(regions.boxes, own, objects, strict=True):
        assert not boxes.requires_grad
        for label, overlap in zip(labels, box_iou(boxes, true), strict=True):
            assert (label > 0) == bool((overlap >= 0.5).any()) and (label == 0 or classes[overlap.argmax()] + 1 == label)
    evaluated = model.eval()(images).regions
    assert list(evaluated.logits.shape) == [0, CLASSES + 1] and [len(boxes) for boxes in evaluated.boxes] == [0, 0, 0]


class Kept(Loss):
    """Keeps what it gets."""

    needs = frozenset({"regions"})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        self.got = student.regions, teacher.regions
        return (student.regions.logits - teacher.regions.logits).square().mean()


def test_a_loss_gets_the_teachers_logits_for_the_students_regions_as_torchvision_computes_them() -> None:
    student, teacher = (
        small("faster_rcnn", body="lcnet_035").train(),
        small("faster_rcnn", width=64, head_convs=1, head_norm="batch").eval(),
    )
    images, objects = scene()
    _, own = student.losses(images, objects)
    before = own.regions.logits.clone()
    loss = Kept()
    loss(own, teacher(images)).backward()

    mine, theirs = loss.got
    with torch.no_grad():
        heads, sizes = teacher.net.roi_heads, list(images.sizes)
        pooled = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(teacher.net.backbone(images.pixels), list(own.regions.boxes), sizes)
        wanted, _ = heads.box_predictor(heads.box_head(pooled))
    assert torch.equal(theirs.logits, wanted) and torch.equal(mine.logits, before) and not torch.equal(wanted, before)
    assert mine.head is None and theirs.head is None, "a loss cannot change the models"
    assert all(weight.grad is None for weight in teacher.parameters()) and not theirs.logits.requires_grad
    assert all(weight.grad.any() for weight in student.net.roi_heads.box_predictor.cls_score.parameters())
    assert any(weight.grad is not None and weight.grad.any() for weight in student.net.backbone.body.parameters())

    order = torch.tensor([2, 0, 1])
    loss(own, teacher(images).rows(order))
    with torch.no_grad():
        levels = [level[order] for level in teacher(images).levels]
        assert torch.equal(loss.got[1].logits, teacher.class_logits(levels, own.regions.boxes)), "of other images, where regions stay"


def test_where_no_region_was_drawn_the_second_stage_of_the_teacher_is_not_run() -> None:
    teacher = small("faster_rcnn").eval()
    taps = teacher(scene()[0])
    teacher.net.roi_heads.forward = teacher.net.roi_heads.box_roi_pool.forward = lambda *given: 1 / 0
    assert Kept().parts(taps, taps)[""].isnan()


def test_a_loss_of_regions_refuses_detectors_of_one_stage_and_advice_names_what_both_models_have() -> None:
    one, two = (small(name).eval()(scene()[0]) for name in ("fcos", "faster_rcnn"))
    kd, dkd = (parts.load("loss", name) for name in ("kd", "dkd"))
    on_regions = dkd.build(dkd.options({"tap": "regions"}))
    assert on_regions.missing(Pair(two, two)) is None
    for pair, who in ((Pair(one, two), "student does"), (Pair(two, one), "teacher does"), (Pair(one, one), "student and the teacher do")):
        assert on_regions.missing(pair) == (
            f"it needs the tap 'regions', which the {who} not have: only a detector with two stages, as faster_rcnn, gives the class "
            "logits of regions"
        )
    advice = [kd.build(kd.options({})).missing(pair).rpartition("; ")[2] for pair in (Pair(two, two), Pair(one, one), Pair(one, two))]
    assert advice[:2] == ["use kd:regions", "use kd:dense"] and "use" not in advice[2]


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_a_dense_detector_draws_no_random_number(name: str) -> None:
    model = small(name).train()
    torch.manual_seed(3)
    before = torch.get_rng_state()

    model.losses(*scene())

    assert torch.equal(torch.get_rng_state(), before)
    # In training torchvision's own transform draws for every image, also where there is one size.
    GeneralizedRCNNTransform(64, 128, [0.0] * 3, [1.0] * 3).train()([torch.rand(3, 64, 64)])
    assert not torch.equal(torch.get_rng_state(), before)


def sampled(model: Detector, seed: int) -> tuple[list[Tensor], Tensor]:
    """Which anchors and how many regions a step draws, and the state of the global generator after it."""
    drawn: list[Tensor] = []
    for owner in (model.net.rpn, model.net.roi_heads):
        own = owner.fg_bg_sampler

        def kept(labels: list[Tensor], own: Any = own) -> Any:
            found = own(labels)
            drawn.append(torch.cat([*found[0], *found[1]]))
            return found

        owner.fg_bg_sampler = kept
    torch.manual_seed(seed)
    model.losses(*scene())
    return drawn, torch.get_rng_state()


def test_the_samplers_of_a_step_follow_from_its_seed_whatever_the_body_draws() -> None:
    (anchors, regions), _ = sampled(small("faster_rcnn").train(), 5)
    (again, same_regions), _ = sampled(small("faster_rcnn").train(), 5)
    (with_drop_path, _), _ = sampled(small("faster_rcnn", drop_path_rate=0.5).train(), 5)
    (other, _), _ = sampled(small("faster_rcnn").train(), 6)

    assert torch.equal(anchors, again) and torch.equal(regions, same_regions)
    assert torch.equal(anchors, with_drop_path)
    assert not torch.equal(anchors, other)


def test_the_samplers_take_one_number_of_the_global_generator() -> None:
    _, state = sampled(small("faster_rcnn").train(), 5)
    torch.manual_seed(5)
    torch.randint(2**62, ())

    assert torch.equal(state, torch.get_rng_state())


def test_a_copy_of_a_detector_draws_apart_from_it() -> None:
    model = small("faster_rcnn").train()
    twin = copy.deepcopy(model)
    model.stream.seed(1)

    assert not hasattr(twin.stream, "state")
    assert twin.net.rpn.fg_bg_sampler.stream is twin.net.roi_heads.fg_bg_sampler.stream is twin.stream


def test_regions_are_pooled_at_the_strides_of_the_levels_whatever_the_first_batch_is() -> None:
    narrow = scene([(36, 44), (40, 40)])[0]  # torchvision infers half of the stride 4 as the nearest power of 2 to 40 / 16
    model = small("faster_rcnn").eval()
    first = model.detect(narrow)
    model.detect(scene()[0])

    assert model.net.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert equal(first, model.detect(narrow))
    inferred = copy.deepcopy(model.net.roi_heads.box_roi_pool)
    inferred.scales = inferred.map_levels = None
    inferred(model.pyramid(narrow), [torch.tensor([[0.0, 0.0, 9.0, 9.0]])] * 2, list(narrow.sizes))
    assert inferred.scales[0] != 1 / 4


def test_the_margin_changes_what_is_found_in_the_image_so_that_the_batch_is_part_of_the_result() -> None:
    model = small("fcos").eval()
    image = scene([(64, 64)])[0].pixels[0]
    alone, wider = Images.padded([image]), Images.padded([image, torch.zeros(3, 96, 128)])

    def finest(images: Images) -> Tensor:
        return model(images).levels[0][0, :, :8, :8]

    assert not torch.allclose(finest(alone), finest(wider))


@pytest.mark.parametrize("name", DETECTORS)
def test_images_are_renormalised_and_their_margin_stays_zero(name: str) -> None:
    model = small(name).eval()
    images, _ = scene()
    given, own = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), ((0.5, 0.5, 0.5), (0.25, 0.5, 0.125))
    pixels = [images.pixels[place, :, :height, :breadth] for place, (height, breadth) in enumerate(images.sizes)]
    mean, std, own_mean, own_std = (torch.tensor(one).view(3, 1, 1) for one in (*given, *own))
    expected = model(Images.padded([(one * std + mean - own_mean) / own_std for one in pixels]))

    model.adapt_inputs({"mean": own[0], "std": own[1]}, given)

    for mine, other in zip(model(images).levels, expected.levels, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_detector_does_not_resize_and_takes_no_inputs_of_a_classifier() -> None:
    with pytest.raises(RefusedError, match="leave out `input_size`"):
        small("fcos").build_for((3, 96, 128), 2, 224)
    with pytest.raises(RefusedError, match="inputs of a classifier"):
        small("fcos")(torch.zeros(2, 3, 96, 128))


def test_anchors_are_in_float32_where_the_levels_are_not() -> None:
    model = small("fcos").eval()
    images = Images.padded([torch.zeros(3, 64, 1024)])
    levels = model.pyramid(images)
    whole = anchors_of(model.net.anchor_generator, images, levels)
    half = anchors_of(model.net.anchor_generator, images, {name: one.bfloat16() for name, one in levels.items()})

    assert equal([whole], [half]) and half[0].dtype == torch.float32


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_are_in_float32_under_autocast(name: str) -> None:
    model = small(name).train()
    images, objects = scene()
    torch.manual_seed(1)
    exact, _ = small(name).train().losses(images, objects)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = model.losses(images, objects)
        found = model.eval().detect(images)

    assert all(loss.dtype == torch.float32 for loss in losses.values()) and found[0][0].dtype == torch.float32
    for key, value in losses.items():
        torch.testing.assert_close(value, exact[key], rtol=0.2, atol=0.05)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", DETECTORS)
def test_every_body_trains_and_lists_its_stages(name: str, body: str) -> None:
    model = small(name, body=body).train()
    images, objects = scene()
    losses, _ = model.losses(images, objects)
    sum(losses.values()).backward()

    stages = model.stages_in_order()
    listed = [id(weight) for stage in stages for module in stage for weight in module.parameters()]
    assert listed == [id(weight) for weight in model.net.backbone.body.parameters()]
    assert len(stages) == (6 if body == "lcnet_035" else 5)
    assert {"neck", "head"} == model.parts_by_name().keys()


def test_the_first_stage_of_a_resnet_is_its_stem() -> None:
    body = small("fcos").net.backbone.body
    stem, first, *_ = small("fcos").stages_in_order()

    assert [type(module) for module in stem] == [type(body[name]) for name in ("conv1", "bn1", "act1")]
    assert [type(module) for module in first] == [type(body[name]) for name in ("maxpool", "layer1")]


@pytest.mark.parametrize("name", DETECTORS)
def test_neck_and_head_hold_all_weights_but_the_bodys(name: str) -> None:
    one, other = small(name), small(name)
    nn.init.normal_(one.net.backbone.fpn.inner_blocks[0][0].weight)
    for part, module in one.parts_by_name().items():
        other.parts_by_name()[part].load_state_dict(module.state_dict())

    def rest(model: Detector) -> dict[str, Tensor]:
        return {key: value for key, value in model.net.state_dict().items() if not key.startswith("backbone.body.")}

    assert rest(one).keys() == rest(other).keys()
    assert all(torch.equal(value, rest(other)[key]) for key, value in rest(one).items())


def test_p6_is_made_of_c5_also_where_its_channels_are_those_of_the_pyramid() -> None:
    model = small("retinanet", body="lcnet_035", width=176, extra_levels="p6p7_from_c5", head_norm="none")  # the last map has 176 channels
    channels = model.net.backbone.fpn.extra_blocks.p6.in_channels

    assert channels == 176 and model.net.backbone.fpn.extra_blocks.use_P5 is False


SETTINGS = "score_thresh nms_thresh detections_per_img topk_candidates center_sampling_radius _pre_nms_top_n _post_nms_top_n"


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "faster_rcnn_resnet50_fpn"])
def test_defaults_are_torchvisions(name: str) -> None:
    from torchvision.models import detection

    kind, options = parts.named("model")[name]
    part = parts.load("model", kind)
    model = part.build(part.options(options))
    with torch.device("meta"):
        model.build((3, 96, 128), 91 - ("faster" in name))
        theirs = getattr(detection, name.replace("faster_", "faster"))(weights=None, weights_backbone=None)

    def settings(net: Any) -> dict[str, Any]:
        owners = {where: module for where, module in net.named_modules() if where in ("", "rpn", "roi_heads")}
        found: dict[str, Any] = {f"{where} {key}": getattr(one, key, None) for where, one in owners.items() for key in SETTINGS.split()}
        generator = net.rpn.anchor_generator if "rpn" in owners else net.anchor_generator
        found |= {"anchors": [one.tolist() for one in generator.cell_anchors]}
        for where, one in owners.items():
            for key in ("fg_bg_sampler", "proposal_matcher", "box_coder"):
                rule = vars(getattr(one, key, object)).items() if hasattr(one, key) else ()
                found |= {f"{where} {key} {name}": value for name, value in rule if name != "stream"}
        return found | {
            "box_loss": getattr(getattr(net, "head", None), "regression_head", None)
            and getattr(net.head.regression_head, "_loss_type", None)
        }

    assert settings(model.net) == settings(theirs)
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (model.net, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", sorted(key for key, (part, _) in parts.named("model").items() if part in DETECTORS))
def test_every_named_detector_runs_where_nothing_is_computed(name: str) -> None:
    kind, options = parts.named("model")[name]
    part = parts.load("model", kind)
    model = part.build(part.options(options))
    with isolated(0), torch.device("meta"), _shapes_only(), torch.no_grad():
        model.build((3, 144, 192), 3)
        images = Images.padded([torch.empty(3, 144, 192)] * 2)
        taps = model.eval()(images)

    assert [tuple(level.shape[2:]) for level in taps.levels][:2] == [tuple(-(-side // s) for side in (160, 192)) for s in taps.strides[:2]]
    assert all(level.device.type == "meta" for level in taps.levels)


def test_fcos_of_the_small_resnet_has_the_parameters_of_the_trials() -> None:
    model = small("fcos", classes=3, width=64, extra_levels="max_pool")

    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(0.81, abs=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"body": "vit_tiny_patch16_224"},
            "no pyramid for this detector: its maps have strides of 16 pixels, and maps of 8, 32 are needed",
        ),
        ({"body": "swin_tiny_patch4_window7_224"}, "cannot be the body of a detector for images of 96x128 pixels"),
        ({"body": "test_convnext", "strides": [2, 4, 8]}, "and maps of 2 are needed"),
        ({"body": "resnet_18"}, "did you mean"),
        ({"strides": [8, 32]}, "each twice the one before"),
        ({"width": 80}, "a multiple of 32 with head_norm: group"),
    ],
)
def test_a_body_without_a_pyramid_is_refused_with_the_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        small("fcos", **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fcos", {"width": 0}, "width must be at least 1, and is 0"),
        ("fcos", {"strides": []}, r"strides must be at least 1, and is \[\]"),
        ("fcos", {"detections": 0}, "detections must be at least 1, and is 0"),
        ("fcos", {"head_convs": -1}, "head_convs must be at least 0, and is -1"),
        ("fcos", {"score_threshold": 2.0}, "score_threshold must be between 0 and 1, and is 2.0"),
        ("retinanet", {"anchors_per_octave": 0}, "anchors_per_octave must be at least 1, and is 0"),
        ("retinanet", {"candidates": -1}, "candidates must be at least 1, and is -1"),
        ("retinanet", {"aspect_ratios": [1.0, -1.0]}, "aspect_ratios must be positive"),
        ("faster_rcnn", {"aspect_ratios": []}, "aspect_ratios must be positive"),
        ("faster_rcnn", {"regions": 0}, "regions must be at least 1, and is 0"),
        ("faster_rcnn", {"proposals": [100, 0]}, r"proposals must be at least 1, and is \[100, 0\]"),
        ("faster_rcnn", {"rpn_nms_threshold": -0.1}, "rpn_nms_threshold must be between 0 and 1, and is -0.1"),
    ],
)
def test_options_with_which_nothing_could_be_found_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        small(name, **options)


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_anchor_sizes_are_asked_for_each_level(name: str) -> None:
    with pytest.raises(KdbenchError, match="one size for each of the"):
        small(name, anchor_sizes=[8, 16])


def released(name: str, resnet: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A net of torchvision with random weights, as its published one is made (of the first version frozen norms, their epsilon), and the
    file of its weights: of the first version with the names of older modules."""
    from torchvision.models import detection
    from torchvision.models import resnet as resnets
    from torchvision.models.detection._utils import overwrite_eps
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    kind, _, version = name.partition("_resnet50_fpn")
    whole = {"num_classes": 91, "box_score_thresh" if kind == "faster_rcnn" else "score_thresh": 0.1}
    if version:
        net = getattr(detection, name.replace("faster_", "faster"))(weights=None, weights_backbone=None, **whole)
    else:
        body = getattr(resnets, resnet)(weights=None, norm_layer=FrozenBatchNorm2d)
        levels = (None, None) if kind == "faster_rcnn" else ([2, 3, 4], LastLevelP6P7(256, 256))
        make = {"fcos": detection.FCOS, "retinanet": detection.RetinaNet, "faster_rcnn": detection.FasterRCNN}[kind]
        net = make(_resnet_fpn_extractor(body, 5, *levels), **whole)
        if kind != "fcos":
            overwrite_eps(net, 0.0)
    net.transform = plain_transform()
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif key.endswith("running_mean") or ("cls_logits.weight" in key and "rpn" not in key) or "cls_score.weight" in key:
            value.normal_(std=0.1)
        elif "_head.conv" in key and value.dim() == 4:
            value.normal_(std=0.03)
    return net.eval(), {key: value.clone() for key, value in net.state_dict().items()}


def as_published(held: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The weights under the names of the first version's files."""
    held = {re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key): value for key, value in held.items()}
    if kind == "retinanet":
        return {
            re.sub(r"_head\.conv\.(\d)\.0\.", lambda found: f"_head.conv.{2 * int(found[1])}.", key): value for key, value in held.items()
        }
    return {key.replace("rpn.head.conv.0.0.", "rpn.head.conv."): value for key, value in held.items()}


def loaded(name: str, held: dict[str, Tensor], classes: int, **options: Any) -> Detector:
    """Our net of this name with the weights of a file."""
    kind, meant = parts.named("model")[name]
    part = parts.load("model", kind)
    model: Detector = part.build(part.options({**meant, "score_threshold": 0.1, **options}))
    model.build((3, 96, 128), classes)
    fit(model, held, "net.pth", new_head=False)
    return model.eval()


def both(model: Detector, net: nn.Module, dtype: torch.dtype) -> tuple[Any, Any]:
    """What both nets find in two images."""
    images, _ = scene([(64, 96), (60, 64)])
    images = replace(images, pixels=images.pixels.to(dtype))
    with torch.no_grad():
        theirs = net.to(dtype)([images.pixels[0], images.pixels[1, :, :60, :64]])
    found = model.to(dtype).detect(images)
    assert all(len(boxes) for boxes, _, _ in found)
    return found, [(one["boxes"], one["scores"], one["labels"]) for one in theirs]


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_file_of_torchvision_gives_its_detections_of_the_80_categories(kind: str) -> None:
    name = f"{kind}_resnet50_fpn"
    net, held = released(name, "resnet18")
    ids = coco_ids()
    layer = "roi_heads.box_predictor.cls_score.bias" if kind == "faster_rcnn" else "head.classification_head.cls_logits.bias"
    of_none = torch.ones(91, dtype=torch.bool)
    of_none[[0, *ids] if kind == "faster_rcnn" else ids] = False
    for bias in (net.get_parameter(layer), held[layer]):
        bias.data.unflatten(0, (-1, 91))[:, of_none] = -1e4  # as after training, in which these outputs have no image
    model = loaded(name, as_published(held, kind), 80, body="resnet18")

    # In float64, where the frozen norms of torchvision and ours are as good as equal, so that the same boxes are suppressed.
    for mine, theirs in zip(*both(model, net, torch.float64), strict=True):
        assert [ids[label] for label in mine[2]] == theirs[2].tolist()
        torch.testing.assert_close(mine[:2], theirs[:2], rtol=1e-9, atol=1e-9)
    assert len(ids) == 80 and ids[:2] == [1, 2] and ids[-1] == 90


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["fcos_resnet50_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "faster_rcnn_resnet50_fpn", "faster_rcnn_resnet50_fpn_v2"],
)
def test_weights_of_the_published_nets_give_torchvisions_detections(name: str) -> None:
    net, held = released(name, "resnet50")
    background, is_second = int("faster" in name), name.endswith("_v2")
    model = loaded(name, held if is_second else as_published(held, parts.named("model")[name][0]), 91 - background)

    # The norms of the second version are ours; the frozen ones of the first are the same up to rounding.
    for mine, theirs in zip(*both(model, net, torch.float32 if is_second else torch.float64), strict=True):
        assert torch.equal(mine[2] + background, theirs[2])
        torch.testing.assert_close(mine[:2], theirs[:2], rtol=0 if is_second else 1e-9, atol=0 if is_second else 1e-9)


def test_a_file_of_another_detector_is_refused() -> None:
    _, held = released("fcos_resnet50_fpn", "resnet18")

    with pytest.raises(DataError, match="does not fit the model"):
        loaded("retinanet_resnet50_fpn", held, 80, body="resnet18")


def test_show_lists_the_choices_of_options_that_are_named_in_another_module() -> None:
    for name in ("fcos", "retinanet", "faster_rcnn"):
        text = shown(name, Path("nowhere"))
        assert "  extra_levels: none, max_pool, p6p7_from_p5, p6p7_from_c5; default " in text
        assert "  head_norm: none, group, batch; default " in text and "Keys beside the options, in a suite:" in text
