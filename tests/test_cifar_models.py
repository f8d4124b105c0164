"""The nets of the literature for small images are those of RepDistiller, whose code made tests/golden/cifar_nets.json."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.errors import KdbenchError
from kdbench.losses._base import Taps
from kdbench.models._base import Model

GOLDEN = json.loads((Path(__file__).parent / "golden" / "cifar_nets.json").read_text())

FAMILIES = ["cifar_mobilenetv2", "cifar_resnet", "cifar_shufflenetv1", "cifar_shufflenetv2", "cifar_vgg", "cifar_wrn"]

ALONE = {"cifar_mobilenetv2", "cifar_shufflenetv1", "cifar_shufflenetv2"}
"""Families whose defaults are the one net that the literature uses."""

WITHOUT_PREACT = ("cifar_mobilenetv2", "cifar_wrn")

# Source: the number of parameters of RepDistiller's nets with 100 outputs (github.com/HobbitLong/RepDistiller, models/*.py), counted
# by running its code.
PARAMETERS = {
    "cifar_resnet8": 83_892,
    "cifar_resnet14": 181_108,
    "cifar_resnet20": 278_324,
    "cifar_resnet32": 472_756,
    "cifar_resnet44": 667_188,
    "cifar_resnet56": 861_620,
    "cifar_resnet110": 1_736_564,
    "cifar_resnet8x4": 1_233_540,
    "cifar_resnet32x4": 7_433_860,
    "cifar_wrn_16_1": 180_916,
    "cifar_wrn_16_2": 703_284,
    "cifar_wrn_40_1": 569_780,
    "cifar_wrn_40_2": 2_255_156,
    "cifar_vgg8": 3_965_028,
    "cifar_vgg11": 9_277_284,
    "cifar_vgg13": 9_462_180,
    "cifar_vgg16": 14_774_436,
    "cifar_vgg19": 20_086_692,
    "cifar_mobilenetv2": 812_836,
    "cifar_shufflenetv1": 949_258,
    "cifar_shufflenetv2": 1_355_528,
}

NETS = sorted(PARAMETERS)


def family(net: str) -> tuple[str, dict[str, Any]]:
    """The part that makes a net of the literature, and its options."""
    for name in FAMILIES:
        named = getattr(parts.load("model", name).make, "named", {})
        if net in named:
            return name, dict(named[net])
    assert net in ALONE
    return net, {}


def built(name: str, options: dict[str, Any] | None = None, inputs: tuple[int, ...] = (3, 32, 32), outputs: int = 100) -> Model:
    part = parts.load("model", name)
    torch.manual_seed(0)
    model = part.build(part.options(options))
    model.build(inputs, outputs)
    return model


def hashed(key: str, count: int) -> Tensor:
    """The u of the golden file: numbers from [0, 1) that are the same on every machine."""
    h = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(key.encode()))
    for factor, shift in ((2654435761, 16), (2246822519, 13), (3266489917, 16)):
        h = h * np.uint64(factor) % np.uint64(2**32)
        h ^= h >> np.uint64(shift)
    return torch.from_numpy(h / 2.0**32)


def fill(model: nn.Module) -> None:
    """Put the state of the golden file into a model, by the keys of its state dictionary."""
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        u = hashed(key, tensor.numel()).reshape(tensor.shape)
        if key.endswith("running_var"):
            value = 0.5 + u
        elif key.endswith(("running_mean", "bias")):
            value = 0.4 * u - 0.2
        elif tensor.dim() == 1:
            value = 0.5 + 0.5 * u
        else:
            value = (2 * u - 1) * (6 / prod(tensor.shape[1:])) ** 0.5
        tensor.copy_(value)


def close(ours: list[float], theirs: list[float], size: float, mode: str) -> None:
    """Equal but for the order of sums in float64; `size` is how large the summands are together."""
    assert len(ours) == len(theirs)
    one, other = (torch.tensor(values, dtype=torch.float64) for values in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12 * size, msg=lambda text: f"in {mode}: {text}")


def test_every_net_of_the_literature_is_named_by_its_family() -> None:
    named = {net: name for name in FAMILIES for net in getattr(parts.load("model", name).make, "named", {})}

    assert {*named, *ALONE} == set(PARAMETERS) == set(GOLDEN["nets"])
    assert all(net.startswith(name) for net, name in named.items())


@pytest.mark.parametrize("net", NETS)
def test_a_net_has_the_parameters_of_the_literature_and_the_keys_and_shapes_of_its_released_checkpoint(net: str) -> None:
    with torch.device("meta"):
        model = built(*family(net))

    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[net] == GOLDEN["nets"][net]["parameters"]
    # That nothing needs to be mapped is what lets our keys be compared with theirs.
    assert parts.load("model", family(net)[0]).make.released_layout == {}
    layout = "\n".join(f"{key} {'x'.join(map(str, tensor.shape))}" for key, tensor in model.state_dict().items())
    assert hashlib.sha256(layout.encode()).hexdigest()[:16] == GOLDEN["nets"][net]["layout"]


@pytest.mark.parametrize("net", NETS)
def test_a_net_with_the_weights_of_the_released_one_computes_what_it_computes(net: str) -> None:
    with torch.device("meta"):
        model = built(*family(net)).double()
    model.to_empty(device="cpu")
    fill(model)
    images = (2 * hashed("input", 2 * 3 * 32 * 32) - 1).reshape(2, 3, 32, 32)
    for mode in ("eval", "train"):  # the second changes the statistics of the normalisation
        with torch.no_grad():
            taps = model.train(mode == "train")(images)
        equal_to_golden(net, mode, taps)


def equal_to_golden(net: str, mode: str, taps: Taps) -> None:
    golden = GOLDEN["nets"][net][mode]
    assert taps.logits is not None and taps.pooled is not None
    close(taps.logits[0, :4].tolist(), golden["logits"], taps.logits.abs().max().item(), mode)
    close([taps.pooled.sum().item()], [golden["pooled"]], 0, mode)
    # A sum over a map of both signs may be near zero.
    close([one.sum().item() for one in taps.stages], golden["stages"], sum(one.abs().sum().item() for one in taps.stages), mode)
    if net.startswith(WITHOUT_PREACT):
        assert taps.preact == ()
    else:
        # Theirs begins with the stem after its activation, ours with the stem before it.
        size = sum(one.abs().sum().item() for one in taps.preact)
        assert len(taps.preact) == len(taps.stages)
        close([one.sum().item() for one in taps.preact[1:]], golden["preact"], size, mode)


@pytest.mark.parametrize("net", NETS)
def test_a_net_starts_from_the_distributions_of_the_literature_and_its_taps_are_those_that_losses_count_on(net: str) -> None:
    name, options = family(net)
    model = built(name, options)
    initialised_as_in_the_literature(model, name)
    for mode in ("eval", "train"):
        before_draws = torch.get_rng_state()
        with torch.no_grad():
            taps = model.train(mode == "train")(torch.linspace(-1, 1, 3 * 3 * 32 * 32).reshape(3, 3, 32, 32).sin())

        assert taps.last is not None and taps.pooled is not None and taps.logits is not None and model.head is not None
        torch.testing.assert_close(taps.last.mean((2, 3)), taps.pooled, msg=lambda text, mode=mode: f"in {mode}: {text}")
        torch.testing.assert_close(model.head(taps.pooled), taps.logits, msg=lambda text, mode=mode: f"in {mode}: {text}")
        assert (taps.last >= 0).all(), mode
        for before, after in zip(taps.preact, taps.stages, strict=bool(taps.preact)):
            assert torch.equal(before.relu(), after), mode
            assert (before < 0).any(), mode
        assert torch.equal(before_draws, torch.get_rng_state()), mode


@pytest.mark.parametrize("net", ["cifar_wrn_16_2", "cifar_mobilenetv2"])
def test_a_stage_that_no_activation_ends_is_tapped_as_it_is(net: str) -> None:
    taps = built(*family(net))(torch.randn(4, 3, 32, 32))

    assert all((one < 0).any() for one in taps.stages[1:])
    assert taps.preact == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_of_a_net_gets_a_gradient(name: str) -> None:
    model = built(name)
    model(torch.randn(4, 3, 32, 32)).logits.square().mean().backward()

    assert [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()] == []


def spread(weight: Tensor, std: float) -> None:
    """The weights have mean 0 and this standard deviation, as far as five standard errors can tell."""
    assert weight.mean().abs() < 5 * std / weight.numel() ** 0.5
    assert abs(weight.square().mean().sqrt().item() / std - 1) < 5 / (2 * weight.numel()) ** 0.5


def normal(weight: Tensor, std: float) -> None:
    spread(weight, std)
    # Beyond what a uniform distribution of this standard deviation reaches; of 1000 normal numbers 83 are.
    assert weight.numel() < 1000 or (weight.abs() > 3**0.5 * std).any()


def uniform(weight: Tensor, bound: float) -> None:
    spread(weight, bound / 3**0.5)
    assert weight.abs().max() <= bound


def initialised_as_in_the_literature(model: nn.Module, name: str) -> None:
    """RepDistiller's initialisation: of convolutions, and of the one linear layer (weight, bias), by family."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if name.startswith("cifar_shufflenet"):
                uniform(module.weight, prod(module.weight.shape[1:]) ** -0.5)
            else:
                normal(module.weight, (2 / (prod(module.kernel_size) * module.out_channels)) ** 0.5)
            assert (module.bias is not None) == (name == "cifar_vgg")
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            if name in ("cifar_vgg", "cifar_mobilenetv2"):
                normal(module.weight, 0.01)
            else:
                uniform(module.weight, bound)
            if name in ("cifar_vgg", "cifar_mobilenetv2", "cifar_wrn"):
                assert not module.bias.any()
            else:
                assert module.bias.any() and module.bias.abs().max() <= bound


@pytest.mark.parametrize("name", FAMILIES)
def test_a_net_is_planned_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        taps = built(name, outputs=7)(torch.empty(2, 3, 32, 32))

    assert all(tensor.is_meta for tensor in taps.tensors())
    assert taps.logits is not None and taps.logits.shape == (2, 7)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_net_takes_images_of_other_sizes(name: str) -> None:
    for inputs in ((1, 28, 28), (3, 64, 64), (3, 40, 24), (4, 8, 8)):
        with torch.no_grad():
            taps = built(name, inputs=inputs, outputs=7)(torch.randn(4, *inputs))

        assert taps.last is not None and taps.logits is not None and taps.logits.shape == (4, 7), inputs
        torch.testing.assert_close(taps.last.mean((2, 3)), taps.pooled, msg=lambda text, inputs=inputs: f"{inputs}: {text}")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_net_refuses_what_is_no_image(name: str) -> None:
    with pytest.raises(KdbenchError, match=re.escape("not inputs of shape (10,)")):
        built(name, inputs=(10,))


@pytest.mark.parametrize(("height", "last"), [(32, 4), (48, 6), (64, 4), (128, 16)])
def test_a_vgg_pools_once_more_where_images_are_64_high(height: int, last: int) -> None:
    with torch.device("meta"):
        taps = built("cifar_vgg", inputs=(3, height, height))(torch.empty(2, 3, height, height))

    assert taps.last is not None and taps.last.shape == (2, 512, last, last)


def test_the_dropout_of_a_wide_resnet_falls_inside_its_blocks_in_training_only() -> None:
    images = torch.randn(4, 3, 32, 32)
    plain, dropping = built("cifar_wrn"), built("cifar_wrn", {"dropout": 0.5})

    assert torch.equal(plain.eval()(images).logits, dropping.eval()(images).logits)
    torch.manual_seed(1)
    one = dropping.train()(images)
    torch.manual_seed(2)
    other = dropping(images)
    assert torch.equal(one.stages[0], other.stages[0])
    assert not any(torch.equal(a, b) for a, b in zip(one.stages[1:], other.stages[1:], strict=True))


@pytest.mark.parametrize(("width", "last"), [(0.25, 1280), (1.0, 1280), (1.5, 1920)])
def test_the_last_map_of_a_mobilenet_widens_only_above_width_1(width: float, last: int) -> None:
    with torch.device("meta"):
        taps = built("cifar_mobilenetv2", {"width": width})(torch.empty(2, 3, 32, 32))

    assert [one.shape[1] for one in taps.stages] == [int(channels * width) for channels in (32, 24, 32, 96, 320)]
    assert taps.last is not None and taps.last.shape[1] == last


@pytest.mark.parametrize(
    ("size", "widths"), [(0.5, [24, 48, 96, 192, 1024]), (1.5, [24, 176, 352, 704, 1024]), (2.0, [24, 224, 488, 976, 2048])]
)
def test_a_shufflenetv2_has_the_widths_of_its_size(size: float, widths: list[int]) -> None:
    with torch.device("meta"):
        taps = built("cifar_shufflenetv2", {"size": size})(torch.empty(2, 3, 32, 32))

    assert taps.last is not None and [*(one.shape[1] for one in taps.stages), taps.last.shape[1]] == widths


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("cifar_wrn", {"depth": 17}, r"depth must be 6n\+4 \(10, 16, 22, ...\), not 17"),
        ("cifar_wrn", {"depth": 4}, "depth must be"),
        ("cifar_wrn", {"widen_factor": 0}, "widen_factor must be at least 1, not 0"),
        ("cifar_wrn", {"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ("cifar_vgg", {"depth": 9}, "depth must be one of 8, 11, 13, 16, 19, not 9"),
        ("cifar_mobilenetv2", {"width": 0.05}, "at least one of its 16 channels .* and is 0.05"),
        ("cifar_mobilenetv2", {"expansion": 0}, "expansion must be at least 1, not 0"),
        ("cifar_shufflenetv1", {"size": 1.0}, "has no option 'size'"),
        ("cifar_shufflenetv2", {"size": 3.0}, "size must be one of 0.5, 1, 1.5, 2, not 3"),
    ],
)
def test_what_a_net_cannot_be_is_told(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(KdbenchError, match=told):
        built(name, options)


def test_a_vgg_refuses_images_that_it_cannot_halve_three_times() -> None:
    with pytest.raises(KdbenchError, match="images must be at least 8x8, not 7x32"):
        built("cifar_vgg", inputs=(3, 7, 32))
