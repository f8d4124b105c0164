"""WKD-L as the sum of its two terms, and its distances of classes, against golden/shelf.npz."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses._base import Batch, Pair, Taps
from kdbench.losses.nkd import NKD
from kdbench.losses.wkd_l import WKDL, _by_class, _distances

from .values._stored import NUMBERS, inputs_of


@pytest.mark.parametrize("case", ["n8", "n13"])
def test_the_target_term_and_the_transport_are_the_released_value(case: str) -> None:
    for key in (f"{case}/wkd_l_T8_w600_sharpen1", f"{case}/wkd_l_T2_w30_sharpen2"):
        option = {name: float(NUMBERS[f"{key}/option/{name}"]) for name in ("T", "weight", "sharpen")}
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            inputs = inputs_of(case, dtype)
            logits = inputs["student_logits"].requires_grad_()
            taps, batch = (Taps(logits), Taps(inputs["teacher_logits"])), Batch(inputs["target"])
            loss = WKDL(temperature=option["T"], sharpen=option["sharpen"])
            loss.register_buffer("distance", inputs["wkd_distance"])
            transport = loss(*taps, batch)
            total = NKD(gamma=0.0)(*taps, batch) + option["weight"] * transport
            total.backward()
            torch.testing.assert_close(total.item(), float(NUMBERS[f"{key}/value"]), rtol=tolerance, atol=0)
            torch.testing.assert_close(transport.item(), float(NUMBERS[f"{key}/part/transport"]), rtol=tolerance, atol=0)
            wanted = torch.tensor(NUMBERS[f"{key}/grad/student_logits"], dtype=dtype)
            assert float((logits.grad - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize("case", ["n8", "n13"])
def test_distances_of_classes_are_the_released_ones_in_any_order_of_the_classes_images(case: str) -> None:
    features = inputs_of(case, torch.float64)["class_features"]
    classes, each, width = features.shape
    torch.testing.assert_close(_distances(features), torch.tensor(NUMBERS[f"{case}/wkd_cost/value"]), rtol=1e-9, atol=1e-12)
    labels = torch.arange(classes).repeat(each)
    mixed = features.transpose(0, 1).reshape(-1, width)
    assert torch.equal(_by_class(mixed, labels, classes), features)


def test_a_small_class_has_some_images_twice_and_a_large_one_its_first() -> None:
    labels = torch.tensor([0, 1, 0, 0, 2, 0, 1])
    chosen = _by_class(torch.arange(7.0)[:, None], labels, 3)[:, :, 0]
    assert chosen.tolist() == [[0, 2], [1, 6], [4, 4]]


def test_it_is_bound_from_the_teachers_features_and_labels() -> None:
    torch.manual_seed(0)
    pair = Pair(Taps(torch.randn(4, 3)), Taps(torch.randn(4, 3)), labels=torch.arange(12) % 3, teacher_features=torch.randn(12, 5))
    loss = WKDL()
    loss.prepare(pair)
    assert loss.distance.shape == (3, 3) and torch.equal(loss.distance.diagonal(), torch.zeros(3).double())
    assert (loss.distance + torch.eye(3) > 0).all()
