"""OFD's margins, and which batch norm of a teacher they come from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdbench import parts
from kdbench.errors import RefusedError
from kdbench.losses._norms import margin, norms_before
from kdbench.losses.ofd import OFD

from . import toys


def model(name: str, **options: Any) -> Any:
    part = parts.load("model", name)
    made = part.build(part.options(options))
    made.build((3, 32, 32), 10)
    return made


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("cifar_resnet", {"depth": 8}, ["bn1", *(f"layer{stage}.0.bn2" for stage in (1, 2, 3))]),
        ("cifar_resnet", {"depth": 20}, ["bn1", *(f"layer{stage}.2.bn2" for stage in (1, 2, 3))]),
        ("cifar_vgg", {"depth": 11}, ["block0.1", "block1.1", "block2.4", "block3.4", "block4.4"]),
        ("timm", {"architecture": "resnet18"}, ["net.bn1", *(f"net.layer{stage}.1.bn2" for stage in (1, 2, 3, 4))]),
        ("cifar_shufflenetv1", {}, ["bn1", "layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"]),
    ],
)
def test_the_norm_is_that_of_the_last_blocks_own_branch(name: str, options: dict[str, Any], wanted: list[str]) -> None:
    teacher = model(name, **options)
    found = norms_before(teacher, len(wanted))
    assert [next(key for key, one in teacher.named_modules() if one is norm) for norm in found] == wanted


def test_a_teacher_whose_maps_are_shuffled_after_their_norm_is_refused() -> None:
    with pytest.raises(RefusedError, match="map 1 of `preact` has none"):
        norms_before(model("cifar_shufflenetv2"), 4)


def test_a_teacher_that_cannot_be_called_without_data_is_refused() -> None:
    pair = toys.pair()
    pair.teacher_model.forward = lambda images: 1 / 0
    assert "division by zero" in (OFD().missing(pair) or "")


def test_margins_are_the_mean_of_the_negative_values() -> None:
    norm = nn.BatchNorm2d(6).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 1e-3, 0.0, 0.0]).double())
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -5.0, -0.3, 0.3], dtype=torch.float64))
    found = margin(norm).tolist()
    drawn = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for place in (0, 1):
        values = norm.weight[place].detach().abs() * drawn + norm.bias[place].detach()
        assert math.isclose(found[place], values[values < 0].mean().item(), rel_tol=5e-3)
    assert found[2] == -1.5  # of four deviations above zero less than one in a thousand is negative
    assert math.isclose(found[3], -5.0, rel_tol=1e-9)
    assert found[4:] == [-0.3, 0.0]


def test_a_student_with_larger_maps_is_refused() -> None:
    pair = toys.pair()
    loss = OFD(form="zoo")
    small = pair.teacher.map(lambda x: x[:, :, :1, :1] if x.ndim == 4 else x)
    assert "larger than the teacher's" in (loss.missing(type(pair)(pair.student, small)) or "")
