"""Arguments of timm's factories in a suite, nets for the size of their images, and small stems."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from kdbench import parts
from kdbench.errors import OptionsError, RefusedError, SuiteError
from kdbench.models.timm import Timm
from kdbench.plan import probe
from kdbench.plan.matrix import Plan
from kdbench.timm_stems import STEMS
from kdbench.train.start import start_from


def made(inputs: tuple[int, ...] = (3, 32, 32), device: str = "cpu", size: int | None = None, **options: Any) -> Timm:
    part = parts.load("model", "timm")
    model = part.build(part.options(options))
    torch.manual_seed(0)
    with torch.device(device):
        model.build_for(inputs, 10, size)
    return model.eval()


# Arguments


def test_a_model_of_timm_without_arguments_has_the_options_that_it_always_had() -> None:
    neutral = {"architecture": "test_vit", "drop_rate": 0.0, "drop_path_rate": 0.0, "stem": "own"}

    assert parts.load("model", "timm").options({"architecture": "test_vit"}) == neutral
    assert parts.load("model", "timm").options({**neutral, "stem": "small"}) == {**neutral, "stem": "small"}


def test_arguments_are_in_the_id_and_reach_timms_factory(plan_of: Callable[..., Plan]) -> None:
    def last(says: str) -> Any:
        return plan_of(students=f"{{small: {{model: {says}}}}}").rows[-1].cell

    plain, deeper = last("test_vit, patch_size: 4"), last("test_vit, patch_size: 4, depth: 2")
    assert deeper.config["student"]["options"]["arguments"] == {"patch_size": 4, "depth": 2}
    assert len({last("test_vit").id, plain.id, deeper.id}) == 3
    assert deeper.id == last("test_vit, depth: 2, patch_size: 4").id == last("timm, architecture: test_vit, depth: 2, patch_size: 4").id

    for says, count in (
        (
            {"architecture": "test_vit", "depth": 2, "img_size": 48, "patch_size": 8},
            lambda net: (len(net.blocks), net.pos_embed.shape[1]) == (2, 37),
        ),
        ({"architecture": "test_resnet", "layers": [2, 1, 1, 1]}, lambda net: len(net.layer1) == 2),
        ({"architecture": "test_byobnet", "stem_chs": 12}, lambda net: net.stem.conv.out_channels == 12),
        ({"architecture": "test_convnext", "kernel_sizes": 3}, lambda net: net.stages[0].blocks[0].conv_dw.kernel_size == (3, 3)),
        ({"architecture": "deit_tiny_distilled_patch16_224", "embed_dim": 48, "depth": 1}, lambda net: net.dist_token.shape[2] == 48),
    ):
        assert count(made(**says).net), says


def test_every_wrong_argument_is_told_with_its_line_and_what_the_architecture_takes(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        plan_of(
            students="""
                a: {model: test_vit, patchsize: 4, depth: deep, global_pool: average, num_classes: 7, init_values: null, wieghts: pretrained}
                b: {model: test_efficientnet, stem_size: 8, img_size: 32}
                c: {model: convmixer_768_32, drop_path_rate: 0.1}
                d: {model: test_resnet, arguments: {layers: [1, 1, 1, 1]}, features_only: true, device: cpu, checkpoint_path: x.pth}
                """
        )
    told = "\n".join(caught.value.errors)
    line = 1 + next(place for place, text in enumerate((tmp_path / "tiny.yaml").read_text().splitlines()) if "patchsize" in text)
    for offset, text in (
        (
            0,
            "a.patchsize: the model 'timm' has no option 'patchsize'; did you mean 'patch_size'?; with these options it takes act_layer, arch",
        ),
        (0, "a.depth: 'deep': expected a whole number"),
        (0, "a.global_pool: 'average': expected '', 'avg', "),
        (0, "a.num_classes: a suite cannot give it: the dataset decides it"),
        (0, "a.init_values: None: expected a number"),
        (0, "a.wieghts: the model 'timm' has no option 'wieghts'; did you mean 'weights'?"),
        (1, "b.stem_size: the model 'timm' has no option 'stem_size'"),
        (1, "b.img_size: the model 'timm' has no option 'img_size'"),
        (2, "c.drop_path_rate: timm's convmixer_768_32 does not take it; it takes drop_rate, global_pool"),
        (3, "d.arguments: the model 'timm' has no option 'arguments'"),
        (3, "d.features_only: a suite cannot give it: kdbench trains whole nets"),
        (3, "d.device: a suite cannot give it: kdbench decides it"),
        (3, "d.checkpoint_path: a suite cannot give it: write `weights`"),
    ):
        assert re.search(rf"tiny\.yaml:{line + offset}: students\.{re.escape(text)}", told), (text, told)
    assert len(caught.value.errors) == 13


def test_other_models_keep_to_their_options(plan_of: Callable[..., Plan]) -> None:
    with pytest.raises(SuiteError, match="the model 'small_mobile' has no option 'patch_size'"):
        plan_of(students="{small: {model: small_mobile, patch_size: 4}}")


def test_an_argument_that_timm_cannot_use_is_told_when_planning(plan_of: Callable[..., Plan]) -> None:
    for says, text in (
        ("model: test_vit, num_heads: 5", "timm cannot build test_vit for images of 8x8 pixels, num_heads=5.*: AssertionError"),
        ("model: test_vit, stem: small, patch_size: 2", r"small\.patch_size: `stem: small` sets it: leave out one of the two"),
    ):
        with pytest.raises(SuiteError, match=text):
            probe.probe(plan_of(students=f"{{small: {{{says}}}}}"))


def test_a_rate_of_zero_is_zero_also_where_timms_own_is_not() -> None:
    part, swin = parts.load("model", "timm"), "swin_tiny_patch4_window7_224"

    def dropped(**given: Any) -> bool:
        net = made(device="meta", architecture=swin, depths=[1, 1, 1, 1], stem="small", **given).net
        return any(type(one).__name__ == "DropPath" for one in net.modules())

    assert dropped() and dropped(drop_path_rate=0.3) and not dropped(drop_path_rate=0)
    assert "arguments" not in part.options({"architecture": "test_vit", "drop_path_rate": 0})


# The size of images


SIZED: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1]},
    "eva02_tiny_patch14_224": {"depth": 1, "patch_size": 4},
    "swinv2_tiny_window8_256": {"depths": [1, 1, 1, 1]},
    "convit_tiny": {"depth": 1},
    "gmlp_s16_224": {},
    "maxvit_pico_rw_256": {},
}
"""Nets that are made for one size of images, and arguments that make them small; the first three are tried by default."""


@pytest.mark.parametrize(
    ("side", "first", "last"), [(32, 0, 3), pytest.param(64, 0, 9, marks=pytest.mark.slow), pytest.param(32, 3, 9, marks=pytest.mark.slow)]
)
def test_nets_made_for_one_size_of_images_are_built_for_the_datasets(side: int, first: int, last: int) -> None:
    for architecture, more in list(SIZED.items())[first:last]:
        model = made((3, side, side), "meta", architecture=architecture, **more)
        assert model.built_with["img_size"] == side, architecture
        assert model.net(torch.empty(2, 3, side, side, device="meta")).shape == (2, 10)


def test_a_size_that_the_net_does_not_need_is_not_passed_and_one_that_is_not_square_is() -> None:
    side = 32
    dynamic = made((3, side, side), "meta", architecture="vit_tiny_patch16_224", depth=1, dynamic_img_size=True)
    assert "img_size" not in dynamic.built_with
    assert made((3, 32, side + 16), "meta", architecture="vit_tiny_patch16_224", depth=1).built_with["img_size"] == (32, side + 16)


@pytest.mark.parametrize(
    "names", [["test_vit", "test_resnet"], pytest.param(["efficientvit_m0", "crossvit_tiny_240"], marks=pytest.mark.slow)]
)
def test_a_net_that_runs_on_the_images_without_it_has_the_weights_that_it_always_had(names: list[str]) -> None:
    for architecture in names:
        model = made((3, 64, 64), architecture=architecture)
        torch.manual_seed(0)
        plain = timm.create_model(architecture, num_classes=10)
        assert model.built_with == {}
        assert all(torch.equal(value, model.net.state_dict()[name]) for name, value in plain.state_dict().items()), architecture


def test_a_net_whose_images_are_resized_is_built_for_the_new_size(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(students="{small: {model: vit_tiny_patch16_224, depth: 1, input_size: 48}}")

    assert next(one for one in probe.probe(plan).models.values() if isinstance(one.model, Timm)).model.built_with["img_size"] == 48
    assert made((3, 32, 32), "meta", size=48, architecture="vit_tiny_patch16_224", depth=1).built_with["img_size"] == 48


def test_timm_resamples_the_position_embeddings_of_pretrained_weights_for_another_size(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(8)
    make = timm.create_model
    state = make("test_vit2").state_dict()
    torch.save(state, tmp_path / "hub.pth")

    def local(name: str, pretrained: bool = False, **more: Any) -> Any:
        overlay = {"file": str(tmp_path / "hub.pth"), "url": "", "hf_hub_id": None} if pretrained else None
        return make(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **more)

    monkeypatch.setattr(timm, "create_model", local)
    cell = (
        plan_of(dataset="cifar10", students="{small: {model: test_vit2, dynamic_img_size: false, weights: pretrained, head: new}}")
        .rows[-1]
        .cell
    )
    model = made(architecture="test_vit2", dynamic_img_size=False)
    start_from(model, cell.config["student"], cell, 3)

    loaded = model.plain.state_dict()
    assert state["pos_embed"].shape[1] == 101 and loaded["pos_embed"].shape[1] == 5
    assert all(torch.equal(loaded[name], value) for name, value in state.items() if name != "pos_embed" and "head" not in name)
    assert torch.equal(
        loaded["pos_embed"],
        make(
            "test_vit2",
            pretrained=True,
            img_size=32,
            pretrained_cfg_overlay={"file": str(tmp_path / "hub.pth"), "url": "", "hf_hub_id": None},
        ).pos_embed,
    )


# Small stems

MEMBERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ResNet": ("resnext50_32x4d", 8, {"layers": [1, 1, 1, 1]}),
    "SENet": ("legacy_seresnet18", 8, {}),
    "DenseNet": ("densenet121", 8, {"block_config": [1, 1, 1, 1]}),
    "RegNet": ("regnetx_002", 8, {}),
    "EfficientNet": ("test_efficientnet", 8, {}),
    "MobileNetV3": ("mobilenetv3_small_050", 8, {}),
    "GhostNet": ("ghostnet_050", 8, {}),
    "ConvNeXt": ("convnext_atto", 8, {"depths": [1, 1, 1, 1]}),
    "SwinTransformer": ("swin_tiny_patch4_window7_224", 16, {"depths": [1, 1, 1, 1]}),
    "SwinTransformerV2": ("swinv2_tiny_window8_256", 16, {"depths": [1, 1, 1, 1]}),
    "SwinTransformerV2Cr": ("swinv2_cr_tiny_ns_224", 16, {"depths": [1, 1, 1, 1]}),
    "VisionTransformer": ("deit_tiny_patch16_224", 4, {"depth": 1}),
    "VisionTransformerRelPos": ("vit_relpos_small_patch16_224", 4, {"depth": 1}),
    "Eva": ("eva02_tiny_patch14_224", 4, {"depth": 1}),
    "Beit": ("beit_base_patch16_224", 4, {"depth": 1}),
    "Cait": ("cait_xxs24_224", 4, {"depth": 1}),
}
"""Of each family: a member, how many pixels wide is what a place of its last map (or a token) stands for, and arguments."""
OTHERS: dict[str, int] = {
    **dict.fromkeys(("seresnet50", "resnest14d", "densenetblur121d", "tf_efficientnetv2_b0", "efficientnet_b0", "mobilenetv2_100"), 8),
    **dict.fromkeys(("mobilenetv4_conv_small", "lcnet_050", "mnasnet_050", "convnext_atto_ols", "convnextv2_atto", "regnety_002"), 8),
    **dict.fromkeys(("deit_tiny_distilled_patch16_224", "flexivit_small", "vit_tiny_patch16_224"), 4),
}


def places(model: Timm, side: int) -> int:
    """The places of the last map, or the tokens without those that stand for no patch."""
    last = model.net.forward_features(torch.empty(1, 3, side, side, device="meta"))  # type: ignore[operator]
    if last.dim() == 3:
        return last.shape[1] - getattr(model.net, "num_prefix_tokens", last.shape[1] % 2)
    channels = model.net.num_features
    return last.numel() // last.shape[0] // (channels if channels in last.shape else last.shape[1])


def stemmed(architecture: str, pixels: int, side: int, **more: Any) -> Timm:
    model = made((3, side, side), "meta", architecture=architecture, stem="small", **more)
    assert places(model, side) == (side // pixels) ** 2, architecture
    return model


@pytest.mark.parametrize(
    "families",
    [
        ["ResNet", "RegNet", "EfficientNet", "ConvNeXt", "SwinTransformer", "VisionTransformer"],
        pytest.param(list(STEMS), marks=pytest.mark.slow),
    ],
)
def test_a_small_stem_keeps_maps_and_tokens_as_stated(families: list[str]) -> None:
    assert MEMBERS.keys() == STEMS.keys()
    for family in families:
        architecture, pixels, more = MEMBERS[family]
        model = stemmed(architecture, pixels, 32, **more)
        assert family in {one.__name__ for one in type(model.net).__mro__}


@pytest.mark.slow
def test_small_stems_of_further_members_and_larger_images_keep_maps_and_tokens_as_stated() -> None:
    for architecture, pixels, more in MEMBERS.values():
        stemmed(architecture, pixels, 64, **more)
    for architecture, pixels in OTHERS.items():
        for side in (32, 64):
            stemmed(architecture, pixels, side)


@pytest.mark.slow
def test_new_convolutions_of_a_stem_are_drawn_as_timm_draws_its_own() -> None:
    for architecture, name in (("densenet121", "features.conv0"), ("legacy_seresnet18", "layer0.conv1"), ("convnext_atto", "stem.0")):
        model, plain = made(architecture=architecture, stem="small"), timm.create_model(architecture)
        mine, theirs = (net.get_submodule(name) for net in (model.net, plain))
        fan = "fan_in" if architecture == "densenet121" else "fan_out"
        scale = {one: torch.nn.init._calculate_correct_fan(one.weight, fan) ** 0.5 for one in (mine, theirs)}  # type: ignore[arg-type]
        if architecture == "convnext_atto":
            scale = dict.fromkeys(scale, 1.0)
            assert not mine.bias.any()  # type: ignore[operator,union-attr]
        spread = [float(one.weight.detach().std()) * scale[one] for one in (mine, theirs)]  # type: ignore[operator,arg-type]
        assert spread[0] == pytest.approx(spread[1], rel=0.15), architecture


@pytest.mark.parametrize(
    ("architecture", "text"),
    [
        ("vgg11", "timm's vgg11 has no small stem: the family VGG has none here; those with one are ResNet, .*give `input_size: 224`"),
        ("vit_tiny_r_s16_p8_224", "it does not cut the image itself into patches.*give `input_size: 224`"),
        pytest.param("xcit_nano_12_p16_224", "the family Xcit has none here", marks=pytest.mark.slow),
        pytest.param(
            "mobilenetv4_conv_blur_medium",
            "its first stages halve their maps by BlurPool2d.*give `input_size: 224`",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_net_without_a_small_stem_is_refused_with_what_to_write_instead(architecture: str, text: str) -> None:
    with pytest.raises(RefusedError, match=text):
        made(device="meta", architecture=architecture, stem="small")


def test_an_argument_of_another_architecture_is_refused_by_the_part_itself() -> None:
    with pytest.raises(OptionsError, match="has no option 'window_size'"):
        parts.load("model", "timm").options({"architecture": "test_vit", "window_size": 4})
