"""ReviewKD's context loss alone against its stored values, and which maps it reads."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses._hcl import hcl
from kdbench.losses.reviewkd import ReviewKD

from . import toys
from .values._stored import NUMBERS, inputs_of

HCL = [tuple(key.split("/")[:2]) for key in NUMBERS if "/hcl_h" in key and key.endswith("/value")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_context_loss_is_that_of_the_released_code(dtype: torch.dtype, tolerance: float) -> None:
    assert len(HCL) == 6
    for case, key in HCL:
        with toys.case(case, key):
            size = key.removeprefix("hcl_")
            inputs = inputs_of(case, dtype)
            x = inputs[f"hcl_student_{size}"].requires_grad_()
            value = hcl(x, inputs[f"hcl_teacher_{size}"])
            value.backward()
            assert toys.near(value.item(), float(NUMBERS[f"{case}/{key}/value"]), tolerance)
            wanted = torch.tensor(NUMBERS[f"{case}/{key}/grad/hcl_student_{size}"])
            assert (x.grad.double() - wanted).norm() <= tolerance * wanted.norm()


def test_released_is_preact_of_a_student_after_its_activation() -> None:
    loss, _ = toys.bound("reviewkd", "mdistiller")
    pair = toys.fitting(loss)
    other = ReviewKD(maps="preact")
    other.bind(pair)
    other.double().load_state_dict(loss.state_dict())
    after = pair.student.map(torch.clone)
    object.__setattr__(after, "preact", pair.student.stages)
    assert toys.value(other, after, pair.teacher, toys.batch(6)) == toys.value(loss, pair.student, pair.teacher, toys.batch(6))
