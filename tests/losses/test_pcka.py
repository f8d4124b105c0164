"""PCKA against the values of its released code, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench import parts
from kdbench.losses import pcka
from kdbench.losses._base import Loss, Pair, Taps

from . import toys
from .toys import each
from .values.pcka import GROUPS, slowly

with np.load(Path(__file__).parents[1] / "golden" / "detection.npz") as stored:
    NUMBERS = {key: stored[key] for key in stored.files if "/input/" in key or "/pcka_" in key}
OPTIONS: dict[str, dict[str, Any]] = {
    "channel/intra1": {},
    "batch/intra1": {"grouping": "image"},
    "hw/intra1": {"grouping": "offset"},
    "channel/intra1_inter1": {"inter": 1.0},
    "channel/intra1_l2": {"gram_norm": "row_half"},
}
"""By the end of a stored key. `tiny` is one patch, for which the released code has no value."""


def built(**options: Any) -> Loss:
    part = parts.load("loss", "pcka")
    return part.build(part.options({"intra": 1.0, **options}))


@each(
    (case, key, *precision) for case in ("even", "ceil") for key in OPTIONS for precision in ((torch.float64, 1e-12), (torch.float32, 1e-5))
)
def test_value_and_gradient_are_those_of_the_released_code(case: str, key: str, dtype: torch.dtype, tolerance: float) -> None:
    loss = built(**OPTIONS[key])
    student = torch.tensor(NUMBERS[f"{case}/input/student"], dtype=dtype, requires_grad=True)
    value = loss(Taps(last=student), Taps(last=torch.tensor(NUMBERS[f"{case}/input/teacher"], dtype=dtype)))
    value.backward()
    stem = f"{case}/map/pcka_official_{key}"
    assert value.dtype == dtype
    assert abs(value.item() - loss.intra - loss.inter - float(NUMBERS[f"{stem}/value"])) < tolerance
    wanted = torch.tensor(NUMBERS[f"{stem}/grad"])
    assert (student.grad - wanted).norm() < tolerance * wanted.norm()


def test_every_stored_value_is_compared() -> None:
    assert {key.split("/map/pcka_official_")[1].removesuffix("/value") for key in NUMBERS if key.endswith("/value")} == set(OPTIONS)


def test_value_is_the_printed_one_on_waves() -> None:
    k = torch.arange(1, 6145, dtype=torch.float64)
    x, y = ((0.37 * k).sin().view(2, 3, 32, 32), (0.53 * k).cos().view(2, 3, 32, 32))
    for options, wanted in (({}, 0.144288331171), ({"intra": 0.0, "inter": 1.0}, 9.06566859778e-05)):
        assert abs(1 - built(**options)(Taps(last=x), Taps(last=y)).item() - wanted) < 1e-12


@each((grouping, centred, inter) for grouping in GROUPS for centred in (False, True) for inter in (False, True))
def test_value_is_what_whole_gram_matrices_give(grouping: str, centred: bool, inter: bool) -> None:
    x, y = toys.random(2, 3, 5, 4, seed=1) + 1, toys.random(2, 3, 5, 4, seed=2) + 0.5
    weights = {"intra": 0.0, "inter": 1.0} if inter else {}
    loss, student, teacher = built(patch=2, grouping=grouping, centred=centred, **weights), Taps(last=x), Taps(last=y)
    assert toys.near(loss(student, teacher).item(), slowly(loss, student, teacher), 1e-10)


@each((grouping, centred) for grouping in GROUPS for centred in (False, True))
def test_float32_keeps_its_digits_where_the_mean_is_fifteen_times_the_deviation(grouping: str, centred: bool) -> None:
    loss = built(patch=4, grouping=grouping, centred=centred, intra=10.0, inter=3.0)
    x, y = (15 + toys.random(3, 4, 9, 16, seed=seed).float() for seed in (1, 2))
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        value = loss(Taps(last=leaf), Taps(last=y.to(dtype)))
        value.backward()
        found.append((value.detach().item(), leaf.grad.double()))
    (got, gradient), (wanted, exact) = found
    assert toys.near(got, wanted, 1e-4)
    assert (gradient - exact).norm() < 1e-5 * exact.norm()


def test_maps_are_resized_by_products_of_matrices_as_by_pytorchs_operation() -> None:
    x, wanted = toys.random(2, 3, 9, 5, seed=1), (12, 8)
    direct = pcka._resized(x, wanted)
    assert torch.allclose(pcka._lines(9, 12, x) @ x @ pcka._lines(5, 8, x).T, direct, rtol=0, atol=1e-12)


def test_a_constant_channel_has_no_likeness_and_no_gradient() -> None:
    for centred, constant in ((False, 0.0), (True, 0.1)):
        x, y = toys.random(2, 3, 7, 7, seed=1).float(), toys.random(2, 3, 7, 7, seed=2).float()
        x[:, 1] = constant
        x.requires_grad_()
        loss = built(patch=4, centred=centred, inter=1.0)
        value = loss(Taps(last=x), Taps(last=y))
        value.backward()
        alone = loss(Taps(last=x[:, [0, 2]]), Taps(last=y[:, [0, 2]]))
        assert toys.near(value.item(), 2 / 3 + 2 / 3 * alone.item(), 1e-6)
        assert x.grad[:, 1].abs().sum() == 0 and x.grad[:, 0].abs().sum() > 0


def test_one_patch_and_centred_two_are_refused() -> None:
    def of(*sizes: tuple[int, ...]) -> Pair:
        return Pair(*(Taps(last=torch.rand(2, *size)) for size in sizes))

    assert "the last map, 16x16, has 1 patches of 16, and it needs 2" in (built().missing(of((3, 16, 16), (3, 16, 16))) or "")
    assert built().missing(of((3, 17, 16), (3, 17, 16))) is None
    assert "has 2 patches of 16, and it needs 3" in (built(centred=True).missing(of((3, 17, 16), (3, 17, 16))) or "")
    assert "the last map the student has 3, the teacher 4" in (built().missing(of((3, 17, 16), (4, 17, 16))) or "")
    assert "2 patches of 16, that of the teacher 4" in (built().missing(of((3, 17, 16), (3, 17, 17))) or "")
    stages = toys.pair(widths=(4, 4))
    assert "stage 2" in (built(patch=2, tap="stages").missing(stages) or "")
    assert "stage by stage" in (built(tap="stages").missing(replace(stages, student=Taps(stages=stages.student.stages[:1]))) or "")
