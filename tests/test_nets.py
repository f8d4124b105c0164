"""What a net starts from: checkpoints, pretrained weights, nets taken as they are; and how it sees its inputs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from kdbench import parts
from kdbench.errors import DataError, KdbenchError, SuiteError
from kdbench.models._base import Model
from kdbench.plan import probe
from kdbench.plan.matrix import Plan
from kdbench.plan.summary import as_text
from kdbench.store import Store, cell_state
from kdbench.train.build import Setup
from kdbench.train.evaluate import evaluate
from kdbench.train.start import fit, read_weights, start_from

CPU = torch.device("cpu")
SMALL = {"name": "small_mobile", "options": {"widths": [4, 6]}}


def built(name: str, options: dict[str, Any], inputs: tuple[int, ...] = (1, 8, 8), outputs: int = 10, seed: int = 0) -> Model:
    part = parts.load("model", name)
    torch.manual_seed(seed)
    model = part.build(part.options(options))
    model.build(inputs, outputs)
    return model


def saved(model: Model, path: Path, **beside: Any) -> Path:
    torch.save(model.plain.state_dict() if not beside else {"model": model.plain.state_dict(), **beside}, path)
    return path


def same(one: Any, other: Any) -> bool:
    one, other = dict(one), dict(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def student_of(plan: Plan, tmp_path: Path) -> torch.nn.Module:
    cell = plan.rows[-1].cell
    return Setup.of(cell, tmp_path, CPU).student(cell)


def teacher_as_it_is(says: str) -> dict[str, str]:
    return {"teachers": f"{{big: {{model: small_mobile, widths: [8, 12], train: false, min_top1: 0.0, {says}}}}}"}


# What is in the identity


def test_a_checkpoint_is_known_by_its_content_wherever_it_lies(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    model = built("small_mobile", {"widths": [4, 6]})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.pth").write_bytes(saved(model, tmp_path / "a.pth").read_bytes())
    saved(built("small_mobile", {"widths": [4, 6]}, seed=1), tmp_path / "other.pth")

    def last_id(weights: str) -> str:
        return plan_of(students=f"{{small: {{model: small_mobile, widths: [4, 6], weights: {weights}}}}}").rows[-1].cell.id

    assert last_id("a.pth") == last_id("elsewhere/b.pth")
    assert len({last_id("a.pth"), last_id("other.pth"), plan_of().rows[-1].cell.id}) == 3


def test_a_net_of_the_literature_is_its_family_with_its_options(plan_of: Callable[..., Plan]) -> None:
    named = plan_of(students="{small: {model: cifar_resnet8x4}}").rows[-1].cell
    spelt = plan_of(students="{small: {model: cifar_resnet, depth: 8, widths: [32, 64, 128, 256]}}").rows[-1].cell

    assert named.id == spelt.id
    assert plan_of(students="{small: {model: cifar_resnet8x4, dropout: 0.1}}").rows[-1].cell.config["student"]["options"]["dropout"] == 0.1


# Checkpoints


def test_a_student_starts_from_the_weights_that_it_is_given(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    model = built("small_mobile", {"widths": [4, 6]}, seed=5)
    saved(model, tmp_path / "a.pth")

    started = student_of(plan_of(students="{small: {model: small_mobile, widths: [4, 6], weights: a.pth}}"), tmp_path)
    assert same(started.state_dict(), model.state_dict())


def test_a_new_head_is_drawn_and_the_rest_is_the_checkpoints(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    model = built("small_mobile", {"widths": [4, 6]}, outputs=7, seed=5)
    saved(model, tmp_path / "a.pth")

    started = student_of(plan_of(students="{small: {model: small_mobile, widths: [4, 6], weights: a.pth, head: new}}"), tmp_path)
    theirs, ours = model.state_dict(), started.state_dict()
    assert ours["classifier.weight"].shape == (10, 6)
    assert same({k: v for k, v in ours.items() if "classifier" not in k}, {k: v for k, v in theirs.items() if "classifier" not in k})


def test_a_new_head_is_refused_by_a_model_that_does_not_say_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("small_mobile", {"widths": [4, 6]})
    monkeypatch.setattr(type(model), "head", None)

    with pytest.raises(DataError, match="needs a model that defines its `head`, and SmallMobile does not"):
        fit(model, model.state_dict(), "x.pth", new_head=True)


@pytest.mark.parametrize(
    "as_saved",
    [
        lambda state: state,
        lambda state: {
            "epoch": 240,
            "model": state,
            "best_acc": np.float64(74.31),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        },
        lambda state: {"opt": argparse.Namespace(lr=0.1), "model": state},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "acc": np.float32(0.7)},
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    ],
    ids=["bare", "as RepDistiller saves", "with its options", "of a parallel run", "of an old PyTorch"],
)
def test_weights_are_found_in_what_training_scripts_save(as_saved: Callable[[Any], Any], tmp_path: Path) -> None:
    model, other = built("cifar_resnet", {}), built("cifar_resnet", {}, seed=1)
    torch.save(as_saved(model.state_dict()), tmp_path / "x.pth")

    fit(other, read_weights(tmp_path / "x.pth"), "x.pth", new_head=False)
    assert same(other.state_dict(), model.state_dict())


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    model, other = built("cifar_resnet", {}), built("cifar_resnet", {}, seed=1)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "x.safetensors")

    fit(other, read_weights(tmp_path / "x.safetensors"), "x.safetensors", new_head=False)
    assert same(other.state_dict(), model.state_dict())


def test_the_keys_of_repdistillers_resnet50_are_those_of_timms_under_other_names(tmp_path: Path) -> None:
    model, other = (built("timm", {"architecture": "resnet50", "stem": "small"}, (3, 32, 32), seed=seed) for seed in (0, 1))
    theirs = {name.replace(".downsample.", ".shortcut."): value for name, value in model.plain.state_dict().items()}
    theirs = {re.sub("^fc", "linear", name): value for name, value in theirs.items()}

    fit(other, theirs, "x.pth", new_head=False)
    assert same(other.state_dict(), model.state_dict())


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code of the checkpoint was run",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is damaged or not a checkpoint"),
        ({"model": Evil()}, r"holds a \S*print beside its weights, and kdbench runs no code of a checkpoint"),
        ({"model": {"conv": [1, 2]}}, "holds no state dictionary"),
        ({}, "holds no state dictionary"),
    ],
    ids=["empty", "runs code", "no tensors", "nothing"],
)
def test_what_is_no_checkpoint_is_refused(content: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)

    with pytest.raises(DataError, match=f"x.pth {told}"):
        read_weights(path)
    assert "code" not in capsys.readouterr().out


def test_keys_that_do_not_match_are_named(tmp_path: Path) -> None:
    model = built("small_mobile", {"widths": [4, 6]})

    def refused(weights: dict[str, Tensor]) -> str:
        with pytest.raises(DataError) as caught:
            fit(model, weights, "x.pth", new_head=False)
        return str(caught.value)

    state = model.state_dict()
    assert "1 missing (classifier.bias)" in refused({name: value for name, value in state.items() if name != "classifier.bias"})
    assert "1 unknown (extra)" in refused({**state, "extra": torch.zeros(1)})
    told = refused({**state, "classifier.weight": torch.zeros(7, 6), "classifier.bias": torch.zeros(7)})
    assert "2 of another shape (classifier.bias (7,) for (10,), classifier.weight (7, 6) for (10, 6))" in told
    assert told.endswith("`head: new` would draw the head anew")


def test_a_checkpoint_that_changed_since_the_plan_is_refused(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    saved(built("small_mobile", {"widths": [4, 6]}), tmp_path / "a.pth")
    plan = plan_of(students="{small: {model: small_mobile, widths: [4, 6], weights: a.pth}}")
    saved(built("small_mobile", {"widths": [4, 6]}, seed=1), tmp_path / "a.pth")

    with pytest.raises(DataError, match=r"a\.pth is not the file with which the suite was planned"):
        student_of(plan, tmp_path)


# Taken as they are


def test_a_teacher_taken_as_it_is_is_evaluated_and_not_trained(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    saved(built("small_mobile", {"widths": [8, 12]}, seed=3), tmp_path / "big.pth")
    plan = plan_of(**teacher_as_it_is("weights: big.pth"))
    assert train(plan) == 0

    teacher = plan.teachers[0].cell
    record = store.record(teacher.id)
    setup = Setup.of(teacher, tmp_path, CPU)
    assert record is not None and len(record.result["history"]) == 1 and record.result["history"][0]["epoch"] == -1
    assert (
        record.result["metrics"]["top1_last"]
        == evaluate(setup.task, setup.student(teacher), setup.data, "test", teacher.config["numerics"])["top1"]
    )
    assert all(store.is_done(cell_id) for cell_id in plan.cells)


def test_a_declared_accuracy_is_held_against_what_the_weights_do_here(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    saved(built("small_mobile", {"widths": [8, 12]}, seed=3), tmp_path / "big.pth")
    plan = plan_of(**teacher_as_it_is("weights: big.pth"))
    train(plan)
    top1 = store.record(plan.teachers[0].cell.id).result["metrics"]["top1_last"]  # type: ignore[union-attr]

    right = plan_of(objectives="[ce, sp]", **teacher_as_it_is(f"weights: big.pth, declared_top1: {top1 + 0.004}"))
    assert right.teachers[0].cell.id == plan.teachers[0].cell.id, "what was declared is no science"
    assert train(right) == 0
    for off in (0.006, -0.006):
        wrong = plan_of(objectives="[ce, rkd]", **teacher_as_it_is(f"weights: big.pth, declared_top1: {top1 + off}"))
        assert train(wrong) == 1
        blocked = next(row.cell.id for row in wrong.rows if row.objective == "rkd")
        assert re.search("top-1 .*, and .* was declared for it", cell_state.of(store, blocked).why)
        assert "was declared (tolerance 0.50 %)" in cell_state.shortfall(store, wrong.manifest(), wrong.teachers[0].cell.id)


# timm's pretrained weights


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Tensor]:
    """timm's resnet10t.c3_in1k, read by timm from a file instead of the network."""
    torch.manual_seed(8)
    make = timm.create_model
    state = make("resnet10t", pretrained=False).state_dict()
    torch.save(state, tmp_path / "hub.pth")

    def local(name: str, pretrained: bool = False, **more: Any) -> Any:
        overlay = {"file": str(tmp_path / "hub.pth"), "url": "", "hf_hub_id": None} if pretrained else None
        return make(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **more)

    monkeypatch.setattr(timm, "create_model", local)
    return state


def test_pretrained_weights_are_timms_with_their_own_normalisation_and_a_head_of_ones_own(
    hub: dict[str, Tensor], plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    colour = {"dataset": "cifar10"}
    plan = plan_of(students="{small: {model: resnet10t, weights: pretrained, head: new}}", **colour)
    config = plan.rows[-1].cell.config["student"]
    assert config["weights"] == {"from": "timm", "tag": "c3_in1k", "head": "new"}
    assert config["inputs"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    probe.probe(plan)

    for says in ("resnet10t, weights: 'pretrained:c3_in1k'", "resnet10t.c3_in1k, weights: pretrained"):
        same_again = plan_of(students=f"{{small: {{model: {says}, head: new}}}}", **colour)
        assert same_again.rows[-1].cell.id == plan.rows[-1].cell.id
    net = built("timm", {"architecture": "resnet10t"}, (3, 64, 64), 12, seed=1)
    own = net.head.weight.clone()  # type: ignore[union-attr,operator]
    start_from(net, config, plan.rows[-1].cell, 3)
    loaded = net.plain.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in hub.items() if not name.startswith("fc."))
    assert torch.equal(net.head.weight, own)  # type: ignore[union-attr,arg-type]


def test_a_pretrained_net_taken_as_it_is_needs_a_head_that_fits_and_sees_its_own_size(
    hub: dict[str, Tensor], plan_of: Callable[..., Plan]
) -> None:
    plan = plan_of(dataset="cifar10", teachers="{big: {model: resnet10t, weights: pretrained, train: false}}")
    cell = plan.teachers[0].cell
    assert cell.config["student"]["inputs"]["size"] == 176
    with pytest.raises(SuiteError, match="its weights have 1000 outputs, but the dataset needs 10: write `head: new`, and train it"):
        probe.probe(plan)
    with pytest.raises(DataError, match=r"resnet10t\.c3_in1k does not fit the model.*`head: new`"):
        start_from(built("timm", {"architecture": "resnet10t"}, (3, 64, 64), 12), cell.config["student"], cell, 3)

    net = built("timm", {"architecture": "resnet10t"}, (3, 64, 64), 1000)
    start_from(net, cell.config["student"], cell, 3)
    assert same(net.plain.state_dict(), hub)
    assert "big is not trained and has the weights of timm's c3_in1k" in plan.manifest().assumed
    both = plan_of(
        dataset="{name: cifar10, validation: 0.1}",
        students="{net: {model: resnet10t, weights: pretrained, head: new}}",
        teachers="{net: {model: small_mobile}}",
    )
    leak = "which may have been trained on the images held out for validation"
    assert both.manifest().assumed == (f"net starts from the weights of timm's c3_in1k, {leak}",)


def test_weights_that_cannot_be_downloaded_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, plan_of: Callable[..., Plan]) -> None:
    cell = plan_of(dataset="cifar10", students="{small: {model: resnet10t, weights: pretrained, head: new}}").rows[-1].cell
    net = built("timm", {"architecture": "resnet10t"}, (3, 64, 64), 12)

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(DataError, match=r"resnet10t\.c3_in1k cannot be loaded \(OSError: no network\).*HF_HOME.*use a file"):
        start_from(net, cell.config["student"], cell, 3)


# How inputs are seen


def test_a_net_with_its_own_normalisation_and_size_sees_what_it_would_see_by_itself() -> None:
    net = built("small_mobile", {"widths": [4, 6]}, (3, 8, 8)).eval()
    pixels = torch.rand(5, 3, 8, 8)

    def normalised(mean: list[float], std: list[float]) -> Tensor:
        return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    mine, theirs = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), ([0.1, 0.2, 0.6], [0.5, 0.25, 0.3])
    expected = net(normalised(*theirs)).logits
    net.adapt_inputs({"mean": theirs[0], "std": theirs[1]}, mine)
    torch.testing.assert_close(net(normalised(*mine)).logits, expected)

    larger = built("small_mobile", {"widths": [4, 6]}, (3, 8, 8)).eval()
    larger.adapt_inputs({"size": 16}, None)
    assert larger(pixels).last.shape[2:] == (16, 16)
    with pytest.raises(KdbenchError, match="the dataset does not state how its inputs are normalised"):
        larger.adapt_inputs({"mean": [0.0], "std": [1.0]}, None)
    with pytest.raises(KdbenchError, match="the model's normalisation has 3 channels, and the dataset's images have 1"):
        larger.adapt_inputs({"mean": [0.0] * 3, "std": [1.0] * 3}, ([0.5], [0.5]))


# Options that contradict


@pytest.mark.parametrize(
    ("section", "says", "told"),
    [
        (
            "students",
            "model: small_mobile, weights: nowhere.pth",
            r"there is no file .*nowhere\.pth.*for weights of timm write `pretrained`",
        ),
        ("students", "model: small_mobile, weights: pretrained", "only models of timm have pretrained weights, not 'small_mobile'"),
        ("students", "model: resnet10t, weights: 'pretrained:c9_in1k'", r"no pretrained weights 'resnet10t\.c9_in1k'; it has .*c3_in1k"),
        ("students", "model: resnet18, stem: small, weights: pretrained", "for the model's own stem"),
        ("students", "model: small_mobile, head: new", "this key needs `weights`"),
        ("students", "model: small_mobile, train: false", "a student is always trained; only teachers can have `train: false`"),
        ("teachers", "model: small_mobile, train: false, recipe: {lr: 1}", "a net with `train: false` has no recipe"),
        ("teachers", "model: small_mobile, within: 0.1", "no metric is declared"),
        ("students", "model: small_mobile, mean: [0.5]", "`mean` and `std` are given together"),
        ("students", "model: cifar_resnet1100", "did you mean 'cifar_resnet110'"),
        ("students", "model: cifar_resnet56, depth: 20", "'cifar_resnet56' is cifar_resnet with depth 56: for another value write"),
        ("students", "model: small_mobile, declared_top1: 0.5", "has no option 'declared_top1'"),
    ],
)
def test_options_of_a_net_that_contradict_are_refused(section: str, says: str, told: str, plan_of: Callable[..., Plan]) -> None:
    with pytest.raises(SuiteError, match=told):
        plan_of(**{section: f"{{one: {{{says}}}}}"})


def test_a_teacher_taken_as_it_is_has_no_seeds(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    saved(built("small_mobile", {"widths": [8, 12]}), tmp_path / "big.pth")

    with pytest.raises(SuiteError, match="the teacher 'big' is not trained, so it has only one seed"):
        plan_of(teacher_seeds="2", **teacher_as_it_is("weights: big.pth"))


def test_a_net_of_another_size_or_normalisation_is_probed_as_it_will_be_seen(plan_of: Callable[..., Plan]) -> None:
    plain, larger = (
        probe.probe(plan_of(students=f"{{small: {{model: small_mobile, {says}}}}}"))
        for says in ("widths: [4, 6]", "widths: [4, 6], input_size: 16")
    )

    assert max(one.flop_per_image for one in larger.models.values()) > 3 * min(one.flop_per_image for one in plain.models.values())


# Teachers of ImageNet


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_weights_of_a_resnet_fit_timms_key_by_key_and_give_the_same_logits(architecture: str, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(3)
    theirs = getattr(torchvision.models, architecture)().eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = built("timm", {"architecture": architecture}, (3, 64, 64), 1000).eval()
    images = torch.randn(2, 3, 64, 64)

    fit(ours, read_weights(tmp_path / "theirs.pth"), "theirs.pth", new_head=False)
    assert same(ours.plain.state_dict(), theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images))


IMAGES = "{name: imagenet, size: 160, crop_pct: 0.95}"


def imagenet_teacher(plan_of: Callable[..., Plan], dataset: str, teacher: str) -> tuple[dict[str, Any], list[str]]:
    """The resolved model of a teacher that is taken as it is, and what the report states of its images."""
    plan = plan_of(
        dataset=dataset, teachers=f"{{big: {{train: false, {teacher}}}}}", students="[resnet18]", objectives="[ce, kd]", recipe="tv90"
    )
    assumed = plan.manifest().assumed
    return plan.suite.teachers["big"].model, [line for line in assumed if "published for images" in line]


def test_weights_in_a_file_with_a_tag_see_images_as_timms_weights_of_that_tag_do(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"weights")

    tagged, _ = imagenet_teacher(plan_of, IMAGES, "model: mobilenetv1_100, weights: {file: a.pth, tag: ra4_e3600_r224_in1k}")
    from_timm, _ = imagenet_teacher(plan_of, IMAGES, 'model: mobilenetv1_100, weights: "pretrained:ra4_e3600_r224_in1k"')
    assert tagged["inputs"] == from_timm["inputs"] == {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 224}
    assert tagged["weights"]["from"] == "file" and "tag" not in tagged["weights"]
    plain, _ = imagenet_teacher(plan_of, IMAGES, "model: mobilenetv1_100, weights: a.pth")
    assert "inputs" not in plain
    own, _ = imagenet_teacher(
        plan_of, IMAGES, "model: resnet34, weights: {file: a.pth, tag: tv_in1k}, input_size: 160, mean: [0, 0, 0], std: [1, 1, 1]"
    )
    assert own["inputs"] == {"mean": [0, 0, 0], "std": [1, 1, 1], "size": 160}


def test_a_tag_that_timm_does_not_have_is_refused_with_those_that_it_has(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"weights")
    told = refusal(
        dataset=IMAGES,
        teachers="{resnet34: {weights: {file: a.pth, tag: tv2_in1k}}, vgg: {model: cifar_vgg8, weights: {file: a.pth, tag: x}}}",
    )

    assert (
        "teachers.resnet34.weights.tag: timm has no pretrained weights 'resnet34.tv2_in1k'; it has" in told and "resnet34.tv_in1k" in told
    )
    assert "only models of timm have pretrained weights, not 'cifar_vgg': leave out `tag`, and give `mean` and `std`" in told


def test_the_report_states_where_a_teacher_sees_other_images_than_its_weights_were_made_for(
    plan_of: Callable[..., Plan], write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    made = "the weights of big are published for images of 224 pixels, 0.875, bilinear (size, crop, interpolation)"
    (tmp_path / "a.pth").write_bytes(b"weights")
    for dataset, teacher, told in (
        (IMAGES, "input_size: 160", [f"{made}, and see images of 160 pixels, 0.95, bilinear here: its metric in the tables is of these"]),
        (IMAGES, "", [f"{made}, and see images of 160 pixels, 0.95, bilinear, resized to 224 here: its metric in the tables is of these"]),
        ("imagenet", "", []),
    ):
        for weights in ('"pretrained:tv_in1k"', "{file: a.pth, tag: tv_in1k}"):
            model = f"model: resnet34, weights: {weights}" + f", {teacher}" * bool(teacher)
            assert imagenet_teacher(plan_of, dataset, model)[1] == told, (dataset, model)
    _, nothing = imagenet_teacher(plan_of, IMAGES, "model: resnet34, weights: a.pth")
    assert nothing == []
    lines = as_text(
        write_suite(
            dataset=IMAGES,
            recipe="tv90",
            objectives="[ce, kd]",
            students="[resnet18]",
            teachers='{big: {model: resnet34, weights: "pretrained:tv_in1k", train: false, input_size: 160}}',
        ),
        tmp_path,
    )
    assert f"  note: {made}" in lines
