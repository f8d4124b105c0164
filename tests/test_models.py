"""Models give the taps that losses count on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench import parts
from kdbench.errors import KdbenchError
from kdbench.models._base import Model
from kdbench.models._detector import Detector
from kdbench.plan.nets import NetFields

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "timm": [
        {"architecture": "resnet18"},
        {"architecture": "mobilenetv2_100"},
        {"architecture": "resnet18", "stem": "small"},
        {"architecture": "resnet50", "stem": "small"},
        {"architecture": "mobilenetv2_100", "stem": "small"},
    ],
    "cifar_resnet": [{}, {"depth": 14, "widths": [32, 64, 128, 256]}],
}


def built(name: str, options: dict[str, Any], inputs: tuple[int, int, int] = (3, 32, 32), outputs: int = 7) -> Model:
    part = parts.load("model", name)
    torch.manual_seed(0)
    model = part.build(part.options(options))
    model.build(inputs, outputs)
    return model


CLASSIFIERS = [name for name in parts.names("model") if not issubclass(parts.load("model", name).make, Detector)]
EVERY = [(name, options) for name in CLASSIFIERS for options in OPTIONS.get(name, [{}])]


@pytest.mark.parametrize(("name", "options"), EVERY, ids=str)
def test_the_global_average_of_last_is_pooled_and_the_head_makes_the_logits(name: str, options: dict[str, Any]) -> None:
    model = built(name, options).eval()
    with torch.no_grad():
        taps = model(torch.randn(3, 3, 32, 32))

    assert taps.last is not None and taps.pooled is not None and taps.logits is not None and model.head is not None
    torch.testing.assert_close(taps.last.mean((2, 3)), taps.pooled)
    torch.testing.assert_close(model.head(taps.pooled), taps.logits)
    assert taps.logits.shape == (3, 7)
    assert len(taps.stages) >= 2


@pytest.mark.parametrize(("name", "options"), EVERY, ids=str)
def test_taps_before_the_activation_are_untouched_by_it(name: str, options: dict[str, Any]) -> None:
    model = built(name, options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # a branch that begins with zero hides what the activation does
    taps = model(torch.randn(3, 3, 32, 32))

    for before, after in zip(taps.preact, taps.stages, strict=False):
        torch.testing.assert_close(before.relu(), after)
        assert (before < 0).any()


@pytest.mark.parametrize(
    ("depth", "widths", "millions"), [(20, (16, 16, 32, 64), 0.27), (56, (16, 16, 32, 64), 0.86), (110, (16, 16, 32, 64), 1.73)]
)
def test_cifar_resnets_have_the_parameters_of_the_literature(depth: int, widths: tuple[int, ...], millions: float) -> None:
    model = built("cifar_resnet", {"depth": depth, "widths": list(widths)}, outputs=10)

    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("architecture", "last", "mega"),
    [("resnet18", 4, 555.5), ("resnet34", 4, 1159.4), ("resnet50", 4, 1297.9), ("mobilenetv2_100", 4, 88.0)],
)
def test_a_small_stem_keeps_a_map_of_4x4_from_32_pixels_and_costs_what_is_known(architecture: str, last: int, mega: float) -> None:
    model = built("timm", {"architecture": architecture, "stem": "small"}, outputs=100).eval()

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        taps = model(torch.randn(1, 3, 32, 32))
    assert taps.last is not None and taps.last.shape[2:] == (last, last)
    assert counter.get_total_flops() / 2e6 == pytest.approx(mega, rel=0.005)


def test_drop_path_drops_whole_branches_of_an_image_in_training_only() -> None:
    model = built("cifar_resnet", {"drop_path": 0.5})
    block = model.layer1[0]
    nn.init.zeros_(block.bn2.weight)
    nn.init.ones_(block.bn2.bias)
    hidden = torch.zeros(200, 16, 4, 4)

    told = set(block.train()(hidden)[:, 0, 0, 0].tolist())
    assert told == {0.0, 2.0}
    assert set(block.eval()(hidden).flatten().tolist()) == {1.0}


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("cifar_resnet", {"depth": 9}, "depth must be 6n\\+2"),
        ("small_mobile", {"widths": [4]}, "at least one stage"),
        ("timm", {"architecture": "resnet_18"}, "timm has no model 'resnet_18'; did you mean"),
    ],
)
def test_what_a_model_cannot_be_is_told(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(KdbenchError, match=told):
        built(name, options)


@pytest.mark.parametrize("name", parts.names("model"))
def test_no_option_of_a_model_has_the_name_of_a_key_of_a_suite(name: str) -> None:
    assert not set(parts.load("model", name).known()) & set(NetFields.model_fields)
