"""The grid of WKD-F, and its decay."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdbench import parts
from kdbench.losses._base import Loss, Pair, Taps
from kdbench.train.objective import schedule_at

from .values._stored import CASES, NUMBERS


def built(grid: int) -> Loss:
    part = parts.load("loss", "wkd_f")
    return part.build(part.options({"grid": grid}))


def test_moments_are_those_of_each_field_and_exact_where_the_mean_is_large() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 7, 5) + 1000
    mean, deviation = built(4)._moments(x)
    rows, columns = (((0, 2), (1, 4), (3, 6), (5, 7)), ((0, 2), (1, 3), (2, 4), (3, 5)))
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            field = x[:, :, top:bottom, left:right].double().flatten(2)
            assert torch.allclose(mean[:, :, i, j], field.mean(2), rtol=1e-12)
            assert torch.allclose(deviation[:, :, i, j], (field.var(2) + 1e-5).sqrt(), rtol=1e-9)


def test_a_grid_of_fields_of_one_position_is_refused() -> None:
    side = Taps(last=torch.rand(2, 3, 4, 4))
    pair = Pair(side, side)
    assert "a 4 x 4 grid over the student's last map, 4 x 4, has fields of one position" in (built(4).missing(pair) or "")
    assert built(3).missing(pair) is None
    pair = replace(pair, student=Taps(last=torch.rand(2, 3, 8, 4)))
    assert "teacher's" in (built(4).missing(pair) or "")


def test_the_decay_of_the_cifar_presets_is_that_of_the_released_code() -> None:
    preset = parts.load("loss", "wkd_f").make.presets["cifar"]
    term = {"decay": preset.decay, "of_epochs": preset.epochs}
    for case in CASES:
        for epoch, factor in zip(NUMBERS[f"{case}/wkd_decay/epoch"], NUMBERS[f"{case}/wkd_decay/factor"], strict=True):
            assert abs(schedule_at(term, int(epoch) - 1, 240) - factor) < 1e-12
