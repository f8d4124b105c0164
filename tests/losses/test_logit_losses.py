"""Schedules of the losses of the logits, and identities between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdbench import parts
from kdbench.errors import PartError
from kdbench.losses._base import Batch, Loss, Pair, Taps

from . import toys
from .toys import each
from .values._stored import CASES, NUMBERS, inputs_of


def built(name: str, **options: Any) -> Loss:
    part = parts.load("loss", name)
    return part.build(part.options(options))


def stored(case: str) -> tuple[Taps, Taps, Batch]:
    inputs = inputs_of(case, torch.float64)
    return Taps(inputs["student_logits"]), Taps(inputs["teacher_logits"]), Batch(inputs["target"])


@each((case,) for case in CASES)
def test_nkd_with_gamma_0_is_its_target_term_alone_that_of_wkd(case: str) -> None:
    found = built("nkd", gamma=0.0).parts(*stored(case))
    assert list(found) == ["target"]
    assert toys.near(found["target"].item(), float(NUMBERS[f"{case}/wkd_l_T2_w30_sharpen2/part/target_term"]), 1e-12)


@each((case,) for case in CASES)
def test_the_gradient_of_the_temperature_is_reversed_by_the_released_schedule(case: str) -> None:
    loss = built("ctkd")
    for epoch, wanted in zip(NUMBERS[f"{case}/ctkd_schedule/epoch"], NUMBERS[f"{case}/ctkd_schedule/reversal"], strict=True):
        assert np.isclose(loss.reversal(int(epoch) - 1), wanted, rtol=1e-12, atol=1e-15)  # type: ignore[operator]


def test_the_temperature_starts_at_15_62_and_ascends_after_the_first_epochs() -> None:
    loss, pair = toys.bound("ctkd", "cifar100")
    assert toys.near(loss.temperature(0).item(), 15.62117157, 1e-9)  # type: ignore[operator]
    gradients = []
    for epoch in (0, 9, 200):
        loss.zero_grad()
        loss(pair.student, pair.teacher, Batch(epoch=epoch)).backward()
        gradients.append(loss.theta.grad.item())
    theta = loss.theta.detach().clone().requires_grad_()
    temperature = 1 + 20 * theta.sigmoid()
    plain = [torch.log_softmax(side.logits / temperature, 1) for side in (pair.student, pair.teacher)]
    (temperature**2 * (plain[1].exp() * (plain[1] - plain[0])).sum(1).mean()).backward()
    assert toys.near(gradients[1], -theta.grad.item(), 1e-12) and gradients[2] == gradients[1]
    assert toys.near(gradients[0], loss.reversal(0) * theta.grad.item(), 1e-12)  # type: ignore[operator]


def test_wsld_of_a_teacher_without_any_error_is_finite() -> None:
    s, t, batch = stored("n8")
    certain = Taps(1e4 * torch.nn.functional.one_hot(batch.target, 10).double())
    sure = built("wsld")(s, certain, batch).item()
    assert toys.near(sure, 4 * torch.nn.functional.cross_entropy(s.logits / 2, batch.target).item(), 1e-12)
    assert built("wsld")(certain, certain, batch).item() == 0


def test_kd_as_cross_entropy_has_the_gradient_of_the_divergence() -> None:
    s, t, _ = stored("n8")
    gradients = []
    for form in ("divergence", "cross_entropy"):
        x = s.logits.clone().requires_grad_()
        built("kd", form=form)(Taps(x), t).backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-14)


def test_a_target_of_overwhelming_logits_leaves_dkd_exact_in_float32() -> None:
    s, t, batch = stored("n8")
    far = Taps(t.logits + 60 * torch.nn.functional.one_hot(batch.target, 10))
    near = [built("dkd", temperature=1.0)(s.map(cast), far.map(cast), batch).item() for cast in (torch.Tensor.double, torch.Tensor.float)]
    assert toys.near(near[1], near[0], 1e-5)


@each([("dkd", {}), ("nkd", {}), ("ctkd", {"inside": "dkd"})])
def test_one_class_has_no_others_and_is_refused(name: str, options: dict[str, Any]) -> None:
    one = Taps(torch.zeros(4, 1))
    assert "only one class" in (built(name, **options).missing(Pair(one, one)) or "")


@each(
    [
        *((name, {"temperature": 0.0}) for name in ("kd", "dkd", "nkd", "wsld")),
        ("dist", {"tau": 0.0}),
        ("dist", {"beta": 0.0, "gamma": 0.0}),
        ("ctkd", {"reversal_epochs": 0}),
    ]
)
def test_options_of_logits_that_mean_nothing_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(PartError, match=f"'{name}'"):
        built(name, **options)


@each((case,) for case in CASES)
def test_dist_is_that_of_torchdistill_but_for_the_1e_8_beside_the_norms(case: str) -> None:
    value = built("dist", beta=2.0, gamma=2.0, tau=1.0)(*stored(case)).item()
    assert toys.near(value, float(NUMBERS[f"{case}/dist_plus_torchdistill/part/dist"]), 1e-7)
