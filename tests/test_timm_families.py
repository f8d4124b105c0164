"""The taps of timm's families: logits are timm's own, maps have channels first, tokens are apart, and what a net lacks is refused."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import timm
import torch
from timm.models.resnetv2 import ResNetV2
from torch import Tensor

from kdbench import Loss, Taps, parts
from kdbench.datasets.imagenet import Imagenet
from kdbench.errors import OptionsError, RefusedError, SuiteError
from kdbench.losses._base import TAPS, Batch, Pair
from kdbench.losses.cka import CKA
from kdbench.models.timm import Timm
from kdbench.plan import probe
from kdbench.plan.matrix import Plan
from kdbench.timm_adapter import of_family
from kdbench.train.start import fit

PAGES = Path(__file__).parents[1] / "docs"

SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4)}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
CROSS = {"img_scale": (1.0, 0.67), "patch_size": (12, 16), "embed_dim": (16, 24), "num_heads": (2, 2), "depth": ((1, 1, 0), (1, 1, 0))}
LEVIT = {"img_size": 64, "embed_dim": (16, 24, 32), "depth": (1, 1, 1), "num_heads": (2, 2, 2), "key_dim": 8}
PIT = {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (2, 2, 2)}

NETS: dict[str, tuple[dict[str, Any], set[str], tuple[int, ...] | None]] = {
    "swin_tiny_patch4_window7_224": (SWIN, {"tokens"}, (32, 8, 8)),
    "swinv2_tiny_window8_256": (SWIN, {"tokens"}, (32, 8, 8)),
    "test_mambaout": ({"img_size": 64}, {"tokens"}, (64, 2, 2)),
    "vit_tiny_patch16_224": (VIT, {"tokens", "class_token"}, (24, 4, 4)),
    "test_vit2": ({"img_size": 32, "patch_size": 8}, {"tokens", "registers"}, (64, 4, 4)),
    "deit_tiny_distilled_patch16_224": (VIT, {"tokens", "class_token", "distillation_token"}, (24, 4, 4)),
    "levit_128s": (LEVIT, {"tokens"}, (32, 1, 1)),
    "pit_ti_distilled_224": (PIT, {"tokens", "class_token", "distillation_token"}, (16, 2, 2)),
    "crossvit_tiny_240": ({"img_size": 48, **CROSS}, set(), None),
    "dla46x_c": ({}, set(), (256, 2, 2)),
    "volo_d1_224": ({"img_size": 32}, {"tokens", "class_token"}, (384, 2, 2)),
}
"""A small net of a family: arguments of its factory, the tokens that it gives, and the shape of its last map."""
NO_HEAD = {"crossvit_tiny_240", "volo_d1_224"}


@pytest.fixture(scope="module")
def timm_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("timm_table", PAGES / "timm_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["timm_table"] = module
    spec.loader.exec_module(module)
    return module


def wrapped(net: Any, architecture: str = "resnet18") -> Timm:
    model = Timm(architecture=architecture)
    model.wrap(net)
    return model.eval()


def small(name: str, timm_table: ModuleType) -> tuple[Timm, Tensor]:
    arguments = {key: value for key, value in NETS[name][0].items() if key != "img_size" or name != "test_mambaout"}
    with timm_table.CheapDraws():
        net = timm.create_model(name, num_classes=7, **arguments)
    side = NETS[name][0].get("img_size", 64)
    return wrapped(net, name), torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETS)
def test_a_net_of_each_kind_gives_timms_logits_maps_with_channels_first_and_its_tokens(name: str, timm_table: ModuleType) -> None:
    model, images = small(name, timm_table)
    _, tokens, last = NETS[name]

    with torch.no_grad():
        taps = model(images)
        assert torch.equal(taps.logits, model.net(images))
        maps = model.net.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    assert {one for one in TAPS[5:] if taps.has(one)} == tokens
    assert (taps.last is None) if last is None else (taps.last is not None and taps.last.shape[1:] == last)
    assert len(taps.stages) >= 2
    assert all(any(one.shape == each.shape and torch.equal(one, each) for each in maps) for one in taps.stages)
    if taps.tokens is not None and taps.last is not None:
        assert torch.equal(taps.tokens.transpose(1, 2).unflatten(2, taps.last.shape[2:]), taps.last)
    assert (model.head is None) == (name in NO_HEAD)
    if model.head is not None:
        torch.testing.assert_close(model.head(taps.pooled), taps.logits)


def test_a_convolution_as_classifier_makes_the_logits_from_pooled(timm_table: ModuleType) -> None:
    with timm_table.CheapDraws():
        model = wrapped(ResNetV2(layers=(1, 1), channels=(128, 128), num_classes=5))
    taps = model(torch.randn(2, 3, 32, 32))

    assert taps.pooled is not None and taps.pooled.shape == (2, 128) and taps.logits.shape == (2, 5)
    torch.testing.assert_close(model.head(taps.pooled), taps.logits)  # type: ignore[misc]
    assert [key for key in model.net.state_dict() if key.startswith("head")] == ["head.fc.weight", "head.fc.bias"]


def test_cka_over_a_swins_channels_averages_positions_and_not_channels(timm_table: ModuleType) -> None:
    model, images = small("swin_tiny_patch4_window7_224", timm_table)
    with torch.no_grad():
        taps, own = model(images), model.net.forward_features(images)  # n x h x w x c

    student = Taps(last=torch.randn(3, 5, 2, 2))
    wanted = CKA(tap="pooled")(Taps(pooled=student.last.mean((2, 3))), Taps(pooled=own.mean((1, 2))))  # type: ignore[union-attr]
    torch.testing.assert_close(CKA(pool="gap")(student, taps), wanted)
    assert not torch.isclose(CKA(pool="gap")(student, Taps(last=own)), wanted, rtol=0.01)


class Moments(Loss):
    """The squared distance of the means of one tap: enough to need it and to have a gradient everywhere."""

    presets: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, tap: str):
        super().__init__()
        self.tap = tap

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        one, other = (getattr(taps, self.tap) for taps in (student, teacher))
        one, other = (value[-1] if isinstance(value, tuple) else value for value in (one, other))
        return (one.flatten(1).square().mean(1) - other.flatten(1).square().mean(1)).square().mean()


def test_a_vit_learns_from_a_swin_through_every_tap_that_both_have(timm_table: ModuleType) -> None:
    teacher, images = small("swin_tiny_patch4_window7_224", timm_table)
    for tap in ("logits", "pooled", "last", "stages", "tokens"):
        student, _ = small("vit_tiny_patch16_224", timm_table)
        student.train()
        loss, optimizer = Moments(tap=tap), torch.optim.SGD(student.parameters(), lr=0.01)
        with torch.no_grad():
            given = teacher(images)
        values = []
        for _ in range(2):
            optimizer.zero_grad()
            value = loss(student(images), given)
            value.backward()
            optimizer.step()
            values.append(value.item())
        first = student.net.patch_embed.proj.weight.grad  # type: ignore[union-attr]
        assert first is not None and first.abs().sum() > 0, tap  # type: ignore[union-attr,operator]
        assert values[1] < values[0], tap


def test_a_distilled_head_gives_the_average_in_training_too(timm_table: ModuleType) -> None:
    model, images = small("deit_tiny_distilled_patch16_224", timm_table)
    evaluated = model(images).logits

    assert torch.equal(model.train()(images).logits, evaluated)


def test_a_new_head_is_all_that_depends_on_the_number_of_classes(timm_table: ModuleType) -> None:
    for name, second in (("deit_tiny_distilled_patch16_224", "head_dist"), ("crossvit_tiny_240", "head.1"), ("levit_128s", "head_dist")):
        model, _ = small(name, timm_table)
        drawn = {key: value.clone() for key, value in model.net.state_dict().items()}
        fit(model, {key: value + 1 for key, value in drawn.items()}, "theirs", new_head=True)
        now = model.net.state_dict()
        new = {key.rpartition(".")[0] for key, value in drawn.items() if torch.equal(value, now[key]) and key.endswith("weight")}
        assert all(key.startswith("head") for key in new)
        assert any(key.startswith(second) for key in new)
    volo, _ = small("volo_d1_224", timm_table)
    assert volo.head_modules == [volo.net.aux_head, volo.net.head]


def test_a_copy_of_a_model_reads_its_own_net(timm_table: ModuleType) -> None:
    import copy

    model, images = small("vit_tiny_patch16_224", timm_table)
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.net.head.weight)  # type: ignore[union-attr,arg-type]

    assert not torch.equal(model(images).logits, other(images).logits)
    assert torch.equal(model(images).pooled, other(images).pooled)


def test_a_loss_that_needs_what_a_net_does_not_give_is_refused_with_the_reason(timm_table: ModuleType) -> None:
    volo, images = small("volo_d1_224", timm_table)
    crossvit, wide = small("crossvit_tiny_240", timm_table)

    class Classifier(Moments):
        needs = frozenset({"teacher_head"})  # type: ignore[assignment]

    with pytest.raises(RefusedError, match="no module of the teacher makes its logits from 'pooled' alone"):
        Classifier(tap="logits").prepare(Pair(volo(images), volo(images), teacher_head=volo.head))
    with pytest.raises(RefusedError, match="it needs the tap 'last', which the teacher does not have"):
        CKA().prepare(Pair(volo(images), crossvit(wide)))


def test_a_net_without_classifier_is_refused_when_planning(plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder(torch.nn.Module):
        def forward_features(self, images: Tensor) -> Tensor:
            return images

    plan = plan_of(students="{net: {model: resnet18}}", dataset="cifar10")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Encoder())
    with pytest.raises(SuiteError, match="students.net: timm's resnet18 is no classifier: it gives features and no logits"):
        probe.probe(plan)


def test_only_nets_whose_taps_changed_have_another_version() -> None:
    part = parts.load("model", "timm")
    versions = {
        name: part.version_with({"architecture": name, "drop_rate": rate})
        for name, rate in (
            *(("resnet18", 0.0), ("resnet50.tv_in1k", 0.1), ("mobilenetv2_100", 0.0), ("vit_tiny_patch16_224", 0.1), ("mvitv2_tiny", 0.0)),
            *(("swin_tiny_patch4_window7_224.ms_in1k", 0.0), ("volo_d1_224", 0.0), ("test_mambaout", 0.0), ("mvitv2_small", 0.1)),
            ("no_such_model", 0.0),
            ("resnet50_clip", 0.0),
            ("resnet50_clip_gap", 0.0),
        )
    }

    assert [name for name, version in versions.items() if version == 2] == [
        *("swin_tiny_patch4_window7_224.ms_in1k", "volo_d1_224", "test_mambaout", "mvitv2_small", "resnet50_clip")
    ]
    assert of_family("swinv2_tiny_window8_256", ["swin_transformer_v2"])


def test_the_table_has_a_row_for_every_family_of_the_installed_timm(timm_table: ModuleType) -> None:
    rows = timm_table.committed()
    modules = set(timm.list_modules())

    if timm.__version__ == timm_table.version_of_page():
        assert {family for family, _ in rows} == modules
    assert len({family for family, _ in rows} & modules) > 0.6 * len(modules)


@pytest.mark.slow
def test_one_net_of_every_family_gives_what_the_table_says(timm_table: ModuleType) -> None:
    """Each row is made again: it compares the taps with what timm gives, and its words with those of the page."""
    served, rows = 0, timm_table.committed()
    for (family, name), words in rows.items():
        if family not in timm.list_modules() or not timm.is_model(name):
            continue
        found = timm_table.row(family, name)
        if "refused" not in found:
            own = timm.get_pretrained_cfg(name)
            options = {"architecture": name}
            version = parts.load("model", "timm").version_with(options)
            probe.probe_model(
                {"name": "timm", "version": version, "options": options}, Imagenet(size=own.input_size[1] if own else 224), 7, {}
            )
        served += "refused" not in found
        assert timm.__version__ != timm_table.version_of_page() or timm_table.line(found) == words
    assert served >= 0.95 * len(rows) or timm.__version__ != timm_table.version_of_page()


def test_nets_whose_pooling_has_parameters_of_its_own_are_planned() -> None:
    for name, more in (("pit_ti_224", {}), ("cait_xxs24_224", {}), ("test_vit", {"global_pool": "map", "img_size": 224})):
        part = parts.load("model", "timm")
        config = {"name": "timm", "version": part.version, "options": {"architecture": name, "arguments": more}}
        found = probe.probe_model(config, Imagenet(size=224), 10, {})
        assert found.taps.logits is not None and found.taps.logits.shape == (probe.PROBE_IMAGES, 10)
        assert found.flop_per_image > 0 and all(weight.requires_grad for weight in found.model.parameters())


def test_an_argument_that_drops_patches_in_training_is_refused() -> None:
    with pytest.raises(OptionsError, match="it drops patches in training"):
        Timm.further_options({"architecture": "test_vit", "patch_drop_rate": 0.5})
