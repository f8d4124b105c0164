"""Detection from a suite to records: detectors side by side, resumed, at weight 0, with the teacher's neck and head."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from kdbench.datasets._scenes import SceneReader
from kdbench.errors import DataError, SuiteError, UsageError
from kdbench.plan.matrix import Plan
from kdbench.plan.probe import probe
from kdbench.record import Record
from kdbench.report.write import ReportOptions, from_store, report_tables
from kdbench.run import local
from kdbench.store import Store
from kdbench.train.build import Setup
from kdbench.train.stream import BatchPlan

REAL = Path(os.environ.get("KDBENCH_DATA") or Path(__file__).parents[1] / "data")
TINY = {
    "dataset": "{name: digit_scenes, images: 10, test_images: 6, sides: [72, 108], horizontal_flip: true}",
    "recipe": "{name: small_detector, epochs: 2, batch_size: 4}",
    "min_top1": None,
    "min_ap": "0",
    "repeats": "1",
    "baselines": None,
}
BODIES = {
    "fcos": "{{model: fcos, body: {body}, width: 32, extra_levels: max_pool, head_convs: 1}}",
    "faster_rcnn": "{{model: faster_rcnn, body: {body}, width: 32, anchor_sizes: [8, 16, 32, 64, 128], regions: 16, head_width: 32}}",
    "retinanet": "{{model: retinanet, body: {body}, width: 32, extra_levels: max_pool, anchor_sizes: [12, 24, 48, 96]}}",
}
ON_REGIONS = "'dkd:detection':\n"
LOSSES = """
detection:
mimic:
pkd: {weight: 1, weight_from: assumed}
pcka: {tap: levels, patch: 4, levels: [0, 1], weight: 1, weight_from: assumed}
"""


@pytest.fixture
def scenes(plan_of: Callable[..., Plan]) -> Callable[..., Plan]:
    """A suite of two small detectors of one kind."""

    def plan(kind: str = "fcos", objectives: str = LOSSES, **changes: Any) -> Plan:
        body = BODIES[kind]
        nets = {"teachers": f"{{big: {body.format(body='test_resnet')}}}", "students": f"{{small: {body.format(body='lcnet_035')}}}"}
        return plan_of(**(TINY | nets | {"objectives": objectives} | changes))

    return plan


def records(plan: Plan, store: Store) -> dict[str, Record]:
    """Of the students, by objective."""
    found = {row.objective: store.record(row.cell.id) for row in plan.rows if row.role == "student"}
    assert all(found.values())
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["fcos", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("faster_rcnn", "retinanet"))])
def test_each_of_several_detectors_side_by_side_gets_what_it_gets_alone_with_one_decode_and_one_pyramid_of_the_teacher_a_batch(
    kind: str, scenes: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = scenes(kind, objectives=LOSSES + (ON_REGIONS if kind == "faster_rcnn" else ""))
    probe(plan)
    teacher = next(row.cell.id for row in plan.rows if row.role == "teacher")
    ids = [row.cell.id for row in plan.rows if row.role == "student"]
    other = Store(tmp_path / "alone")
    assert train(plan, [teacher]) == 0 and train(plan, [teacher], store=other) == 0

    reads: list[int] = []
    passes: list[str] = []
    read = SceneReader.read

    def counted(self: SceneReader, index: np.ndarray, views: np.ndarray | None) -> torch.Tensor:
        reads.append(len(index) if views is not None else 0)
        return read(self, index, views)

    def noted(self: Any, pixels: torch.Tensor) -> Any:
        passes.append(
            "shapes" if pixels.is_meta else "student" if torch.is_grad_enabled() else "teacher" if self.training is False else "other"
        )
        return forward(self, pixels)

    from kdbench.models._detector import Backbone

    forward = Backbone.forward
    monkeypatch.setattr(SceneReader, "read", counted)
    monkeypatch.setattr(Backbone, "forward", noted)
    taught = [one for one in ids if "teacher" in plan.cells[one].depends]
    assert train(plan, taught) == 0
    in_training, evaluations = passes.count("student"), passes.count("teacher")
    assert sum(reads) == 2 * 10, "each image is decoded once an epoch for all of them"
    assert in_training == len(taught) * 6, "three steps an epoch for each student"
    # The teacher: a pyramid a step, and one pass over the test images to compare it with its record. Students: one pass an epoch each.
    once = len(Setup.of(plan.cells[ids[0]], tmp_path, torch.device("cpu")).data.in_order(6))
    assert evaluations == 6 + once + 2 * len(taught) * once
    monkeypatch.undo()
    assert train(plan, [one for one in ids if "teacher" not in plan.cells[one].depends]) == 0

    for cell_id in ids:
        assert train(plan, [cell_id], store=other) == 0
    for name, record in records(plan, store).items():
        assert record.result == other.record(record.id).result, name
    results = [record.result["weights_digest"] for record in records(plan, store).values()]
    assert len(set(results)) == len(ids) == 1 + len(taught) >= 4, "and the losses differ"


@pytest.mark.parametrize("kind", ["fcos", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_a_detector_that_is_stopped_at_any_step_and_resumed_ends_with_the_same_record(
    kind: str, scenes: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = scenes(kind, objectives="detection:\nmimic:\n" + (ON_REGIONS if kind == "faster_rcnn" else ""))
    assert train(plan) == 0
    whole = {cell_id: store.record(cell_id).result for cell_id in plan.cells}
    other = Store(tmp_path / "stopped")
    steps = itertools.count(1)
    for _ in range(40):
        train(plan, store=other, stop=lambda: next(steps) % 3 == 0, checkpoint_every_s=0)
        if all(other.is_done(cell_id) for cell_id in plan.cells):
            break
    assert {cell_id: other.record(cell_id).result for cell_id in plan.cells} == whole


def test_all_objectives_of_a_student_see_the_same_boxes_and_the_history_has_every_loss_of_the_detector_by_name(
    scenes: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = scenes("faster_rcnn", objectives="{detection: , mimic: }")
    assert train(plan) == 0
    first = {name: record.result["history"][0]["terms"] for name, record in records(plan, store).items()}
    parts = {f"task.loss_{one}" for one in ("classifier", "box_reg", "objectness", "rpn_box_reg")}
    assert parts <= set(first["detection"]) and parts <= set(first["mimic"])
    for terms in first.values():
        assert sum(terms[name]["raw"] for name in parts) == pytest.approx(terms["task"]["raw"], rel=1e-6)
    assert {"mimic.P2", "mimic.P3"} <= set(first["mimic"])
    metrics = store.record(next(iter(plan.cells))).result["metrics"]
    assert {"ap_last", "ap50_last", "ap75_last", "ap_s_last", "ap_m_last", "ap_l_last", "ar_100_last"} <= set(metrics)
    assert metrics["ap_l_last"] is None, "there are no large objects"


@pytest.mark.slow
def test_a_report_of_detectors_has_every_metric_the_classes_and_intervals_over_images(
    scenes: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = scenes(
        objectives="{detection: , mimic: }",
        repeats="3",
        dataset="{name: digit_scenes, images: 16, test_images: 8}",
        recipe="{name: small_detector, epochs: 3, batch_size: 4}",
        students="{small: {model: fcos_test_resnet}}",
        teachers="{big: {model: fcos_test_resnet}}",
    )
    assert train(plan) == 0
    whole = from_store(store, store.manifest(plan.suite.name), ReportOptions())
    tables = {table.name or table.title: table for table in report_tables(whole)}

    metrics = {row[0].value: row for row in tables["metrics"].groups[0].rows}
    assert list(metrics) == ["teacher", "detection", "mimic"]
    for name in ("detection", "mimic"):
        values = [store.record(row.cell.id).result["metrics"]["ap50_last"] for row in plan.rows if row.objective == name]
        assert metrics[name][2].value == pytest.approx(np.mean(values)) and metrics[name][2].spread == pytest.approx(np.std(values, ddof=1))
        assert metrics[name][6].text() == "–", "there are no large objects"
    assert tables["classes"].title == "AP of each class" and len(tables["classes"].groups[0].rows) == 3
    assert whole.images is not None
    (line,) = whole.images.intervals.to_dict(orient="records")
    mine, its = (
        np.array([store.record(row.cell.id).result["metrics"]["ap_last"] for row in plan.rows if row.objective == name])
        for name in ("mimic", "detection")
    )
    assert line["difference"] == pytest.approx((mine - its).mean(), abs=1e-9)
    assert line["n_images"] == 8 and line["low_images"] < line["difference"] < line["high_images"]


OF_SCENES = {
    "fcos": {
        "mimic": "",
        "pkd": "",
        "cwd": "",
        "fgd": "",
        "reviewkd_fpn": "",
        "pcka": "tap: levels, patch: 4",
        "mgd": "tap: levels",
        "kd": "tap: dense_logits, task: 1",
        "dist": "tap: dense_logits",
    },
    "faster_rcnn": {"dkd": "tap: regions", "kd": "tap: regions, task: 1, pairing: shuffled"},
}


@pytest.mark.parametrize("kind", OF_SCENES)
def test_a_loss_for_detectors_at_weight_zero_is_the_detectors_own_loss_for_every_such_loss(
    kind: str, scenes: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    lines = [f"{name}: {{controls: [zero], weight: 1, weight_from: assumed, {how}}}" for name, how in OF_SCENES[kind].items()]
    plan = scenes(kind, objectives="\n".join(["detection:", *lines]))
    probe(plan)
    controls = [
        row.cell.id for row in plan.rows if row.role == "teacher" or row.objective == "detection" or row.objective.endswith("-zero")
    ]
    assert train(plan, controls) == 0
    digests = {row.objective: store.record(row.cell.id).result for row in plan.rows if row.cell.id in controls and row.objective}
    assert len(digests) == 1 + len(OF_SCENES[kind])
    assert len({result["weights_digest"] for result in digests.values()}) == 1
    assert len({result["predictions_digest"] for result in digests.values()}) == 1


def test_a_student_can_begin_with_the_neck_and_the_head_of_its_teacher_beside_a_control_with_the_same_parts(
    scenes: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    body = BODIES["fcos"].format(body="test_resnet")
    other = BODIES["fcos"].format(body="lcnet_035")
    with pytest.raises(SuiteError) as error:
        probe(scenes(objectives="{detection: , mimic: {inherits: [neck]}}"))
    assert "the student's part 'neck' differs from the teacher's" in str(error.value), "bodies of other channels have other necks"

    plan = scenes(objectives="{detection: , mimic: {inherits: [head]}}", teachers=f"{{big: {body}}}", students=f"{{small: {other}}}")
    probe(plan)
    assert [one.label for one in plan.suite.objectives.values()] == ["detection", "mimic, inherits head", "detection, inherits head"]
    assert train(plan) == 0
    cell = next(row.cell for row in plan.rows if row.objective == "detection-inherits-head")
    setup = Setup.of(cell, tmp_path, torch.device("cpu")).with_teacher(store, cell)
    begun = setup.member(cell).student.parts_by_name()["head"].state_dict()
    theirs = setup.teacher.model.parts_by_name()["head"].state_dict()
    assert begun.keys() == theirs.keys() and all(torch.equal(begun[name], theirs[name]) for name in begun)
    digests = [record.result["weights_digest"] for record in records(plan, store).values()]
    assert len(set(digests)) == 3


def test_a_recipe_freezes_norms_and_first_stages_of_a_detectors_body_and_warms_up_by_updates(
    scenes: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    frozen = "{name: coco12, epochs: 2, batch_size: 4, milestones: [1], warmup_steps: 2}"
    plan = scenes(objectives="{detection: }", recipe=frozen, teachers="{big: {model: fcos_test_resnet}}", pairs=None)
    assert train(plan) == 0
    row = next(row for row in plan.rows if row.role == "student")
    setup = Setup.of(row.cell, tmp_path, torch.device("cpu"))
    before = setup.student(row.cell)
    from kdbench.train.teacher import load_weights

    after = load_weights(store, store.record(row.cell.id))
    stem_and_first = {id(one) for stage in before.stages_in_order()[:2] for module in stage for one in module.parameters()}
    norms = {
        id(one) for module in before.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for one in module.parameters()
    }
    changed = {name for name, one in before.named_parameters() if not torch.equal(one, after[name])}
    kept = {name for name, one in before.named_parameters() if id(one) in stem_and_first | norms}
    assert kept and not kept & changed
    assert any("fpn" in name for name in changed) and any("head" in name for name in changed)


def test_losses_of_classifiers_and_nets_without_a_pyramid_are_refused_with_the_reason(scenes: Callable[..., Plan]) -> None:
    for objectives, answer in (
        ("{detection: , sp: }", "a detector has the maps of a pyramid (`levels`), and neither one vector nor one map of an image"),
        ("{detection: , mimic: {pairing: shuffled_in_class}}", "needs images with one class each: write `shuffled`"),
        ("{detection: , mimic: {pairing: shuffled_globally}}", "needs batches of one size, and these images differ: write `shuffled`"),
        ("{detection: , 'dkd:detection': }", "only a detector with two stages, as faster_rcnn, gives the class logits of regions"),
        ("{detection: , mgd: }", "use mgd:retinanet or mgd:faster_rcnn"),
        ("{detection: , mgd: {tap: levels}}", "the weights of 'mgd' are for another tap: use a preset for this one (mgd:retinanet, mgd:"),
        ("{ce: , mimic: }", "the loss of the task alone is called 'detection' for this dataset, not 'ce'"),
    ):
        with pytest.raises(SuiteError) as error:
            probe(scenes(objectives=objectives))
        assert answer in str(error.value), str(error.value)
    for recipe, answer in (
        ("{name: small_detector, epochs: 2, class_uniform: 2}", "images of the task 'detection' have no class of their own"),
        ("{name: small_detector, epochs: 2, bn_groups: 2}", "needs whole batches: leave bn_groups out of the recipe"),
        ("{name: small_detector, epochs: 2, mixup: 0.5}", "the task 'detection' has no mixed images"),
    ):
        with pytest.raises(SuiteError) as error:
            probe(scenes(recipe=recipe))
        assert answer in str(error.value), str(error.value)
    with pytest.raises(UsageError, match="the loss of the task 'detection' needs whole batches, which ranks cannot share: use 1 rank"):
        local.check_ranks(scenes().cells.values(), 2)
    with pytest.raises(SuiteError) as error:
        probe(scenes(students="{small: {model: fcos, body: vit_tiny_patch16_224}}"))
    assert "students.small" in str(error.value) and "pyramid" in str(error.value)
    with pytest.raises(SuiteError) as error:
        probe(scenes(students="[resnet10t]"))
    assert (
        "students.resnet10t: the model does not take the images of a dataset for detection: build a detector on it, as `{model: fcos"
        in str(error.value)
    )


def test_a_plan_says_which_levels_a_loss_leaves_out(scenes: Callable[..., Plan]) -> None:
    found = probe(scenes(objectives="{detection: , pcka: {tap: levels, patch: 8, weight: 1, weight_from: assumed}}")).notes
    assert any("the loss 'pcka' skips level P5 (1 patch of 8" in note for note in found)
    assert not probe(scenes(objectives="{detection: , mimic: }")).notes


def test_the_images_of_a_detector_are_the_same_for_every_repeat_of_a_seed_and_differ_between_repeats(
    scenes: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = scenes(objectives="{detection: , mimic: }", repeats="2")
    places = {}
    for row in plan.rows:
        if row.role == "student":
            setup = Setup.of(row.cell, tmp_path, torch.device("cpu"))
            epoch = [(index.tolist(), views.tolist()) for index, views in BatchPlan.of(row.cell.config, setup.data).epoch(1)]
            places[row.objective, row.repeat] = epoch
    assert places["detection", 0] == places["mimic", 0] != places["detection", 1] == places["mimic", 1]


@pytest.mark.slow
def test_a_small_detector_learns_to_find_digits(scenes: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    plan = scenes(
        objectives="{detection: }",
        dataset="{name: digit_scenes, images: 160, horizontal_flip: false}",
        recipe="{name: small_detector, epochs: 12}",
        students="{small: {model: fcos, body: test_resnet, width: 64, extra_levels: max_pool, head_convs: 1}}",
    )
    assert train(plan, [row.cell.id for row in plan.rows if row.role == "student"]) == 0
    history = records(plan, store)["detection"].result["history"]
    assert history[-1]["test"]["ap"] > 0.25 > history[0]["test"]["ap"]


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "bccd").is_dir(), reason="needs blood cells (BCCD) in COCO's layout, as bccd in the folder $KDBENCH_DATA")
@pytest.mark.parametrize(("kind", "epochs", "least"), [("fcos", 6, 0.30), ("faster_rcnn", 5, 0.38)])
def test_a_small_detector_learns_real_images(kind: str, epochs: int, least: float, scenes: Callable[..., Plan], store: Store) -> None:
    from kdbench.train.worker import work

    heads = {"fcos": "extra_levels: max_pool", "faster_rcnn": "anchor_sizes: [8, 16, 32, 64, 128], regions: 64, head_width: 128"}
    plan = scenes(
        kind,
        objectives="{detection: }",
        dataset="{name: coco, folder: bccd, classes: 3, train_images: 292, size: [144, 192], vertical_flip: true}",
        recipe=f"{{name: small_detector, epochs: {epochs}}}",
        students=f"{{small: {{model: {kind}, body: test_resnet, width: 64, {heads[kind]}}}}}",
    )
    local.prepare(plan, store)
    assert work(store, [row.cell.id for row in plan.rows if row.role == "student"], REAL, "cpu") == 0
    assert records(plan, store)["detection"].result["metrics"]["ap_last"] >= least


def test_a_body_begins_with_the_weights_of_timms_classifier_of_its_name_from_the_hub_or_from_a_file(
    scenes: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = timm.create_model
    file = tmp_path / "classifier.pth"

    def local(name: str, pretrained: bool = False, **more: Any) -> Any:
        overlay = {"file": str(file), "url": "", "hf_hub_id": None} if pretrained else None
        return make(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **more)

    monkeypatch.setattr(timm, "create_model", local)
    for body, tag in (("test_resnet", "r160_in1k"), ("test_convnext", "r160_in1k")):  # the second has other names in a pyramid
        torch.manual_seed(3)
        weights = make(body).state_dict()
        torch.save({"model": weights, "epoch": 3}, file)
        begun: dict[str, dict[str, torch.Tensor]] = {}
        for given in (None, "pretrained", f"{{file: {file}, into: body}}", f"{{file: {file}, tag: {tag}}}"):
            if given == "pretrained":
                torch.save(weights, file)
            net = f"{{small: {{model: fcos, body: {body}, width: 32, head_convs: 1, extra_levels: max_pool, weights: {given or '~'}}}}}"
            plan = scenes(objectives="{detection: }", students=net)
            probe(plan)
            cell = next(row.cell for row in plan.rows if row.role == "student")
            begun[str(given)] = Setup.of(cell, tmp_path, torch.device("cpu")).student(cell).plain.state_dict()
            assert any("(its body alone)" in line for line in plan.manifest().assumed) == (given is not None)
        flat = {name.replace(".", "_"): value for name, value in weights.items()}
        for given, state in begun.items():
            inner = {name.removeprefix("backbone.body."): value for name, value in state.items() if name.startswith("backbone.body.")}
            same = [torch.equal(value, flat[name.replace(".", "_")]) for name, value in inner.items()]
            assert all(same) if given != "None" else not all(same), given


def test_weights_of_a_body_that_cannot_be_used_are_refused_with_the_reason(scenes: Callable[..., Plan], tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save(timm.create_model("lcnet_035").state_dict(), file)
    begin = "model: fcos, body: test_resnet, width: 32, extra_levels: max_pool"
    for section, net, answer in (
        ("teachers", f"{begin}, weights: pretrained, train: false", "the rest would teach at random: leave it out"),
        ("students", f"{begin}, weights: pretrained, head: new", "these weights are the body's, and all else is drawn anew"),
        ("students", f"{begin}, weights: 'pretrained:a9_in1k'", "timm has no pretrained weights 'test_resnet.a9_in1k'"),
        ("students", "model: cifar_resnet20, weights: {file: other.pth, into: body}", "only a detector has a body of its own"),
    ):
        with pytest.raises(SuiteError) as error:
            scenes(objectives="{detection: }", **{section: f"{{small: {{{net}}}}}"})
        assert answer in str(error.value), str(error.value)
    plan = scenes(objectives="{detection: }", students=f"{{small: {{{begin}, weights: {{file: {file}, into: body}}}}}}")
    cell = next(row.cell for row in plan.rows if row.role == "student")
    with pytest.raises(DataError, match="other.pth does not fit the model"):
        Setup.of(cell, tmp_path, torch.device("cpu")).student(cell)
