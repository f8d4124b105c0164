"""CKA by layer: sums of the unbiased HSIC over batches, against the formula and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.losses._base import Taps
from kdbench.losses._gram import CKA
from kdbench.train.features import shuffled
from kdbench.train.similarity import LayerSums, compared, grams, layers


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC_1 of Song et al. 2012, equation by equation."""
    n = len(x)
    k, m = (one @ one.T for one in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = np.ones(n)
    whole = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ k @ m @ ones)
    return whole / (n * (n - 3))


def by_formula(x: np.ndarray, y: np.ndarray, batches: list[np.ndarray]) -> float:
    one, other, both = (sum(len(b) * hsic(p[b], q[b]) for b in batches) for p, q in ((x, x), (y, y), (x, y)))
    return both / np.sqrt(one * other)


def features(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def measured(x: np.ndarray, y: np.ndarray, batches: list[np.ndarray]) -> LayerSums:
    """The sums of teacher x and student y, whose only layer is `pooled`."""
    teacher, student = ([Taps(pooled=torch.tensor(one[batch])) for batch in batches] for one in (x, y))
    return compared(grams(teacher), grams(student), batches)


def value(x: np.ndarray, y: np.ndarray, size: int = 32) -> float:
    ((found,),) = measured(x, y, shuffled(len(x), size)).cka()
    assert found is not None
    return found


def test_the_value_is_that_of_the_formula_with_the_sums_taken_before_the_ratio_also_with_a_ragged_rest() -> None:
    x = features(75, 9, 0)
    y = np.hstack([x[:, :4] ** 2, features(75, 3, 1)])
    for size in (75, 25, 32, 20):
        batches = shuffled(75, size)
        assert value(x, y, size) == pytest.approx(by_formula(x, y, batches), rel=1e-10)
    ratios = [by_formula(x, y, [batch]) for batch in shuffled(75, 25)]
    assert abs(np.mean(ratios) - value(x, y, 25)) > 1e-4


def test_of_one_batch_it_is_the_unbiased_cka_of_the_loss() -> None:
    x, y = features(40, 12, 2), features(40, 5, 3)
    y[:, 0] = x[:, 0]
    assert value(x, y, 40) == pytest.approx(float(CKA("unbiased")(torch.tensor(x), torch.tensor(y))), rel=1e-10)


def test_neither_a_rotation_nor_a_scale_nor_a_shift_of_either_side_changes_it_and_it_is_one_with_itself() -> None:
    x = features(90, 20, 4)
    y = x[:, :6] + features(90, 6, 5)
    turned = np.linalg.qr(features(20, 20, 6))[0]
    plain = value(x, y)
    assert 0.05 < plain < 0.95
    for changed in (x @ turned, 1000 * x, x + 1e4, 1e-3 * x @ turned):
        assert value(changed, y) == pytest.approx(plain, rel=1e-6) and value(y, changed) == pytest.approx(plain, rel=1e-6)
        assert value(changed, x) == pytest.approx(1, rel=1e-6)
    assert value(x, x) == pytest.approx(1, rel=1e-12)


def test_unrelated_features_that_are_more_than_the_images_have_about_zero_where_the_biased_value_is_near_one() -> None:
    x, y = features(256, 2000, 7), features(256, 2000, 8)
    assert abs(value(x, y, 64)) < 0.02
    assert float(CKA("biased")(torch.tensor(x[:64]), torch.tensor(y[:64]))) > 0.9


def test_a_last_batch_of_fewer_than_four_images_is_left_out_and_counted() -> None:
    x, y = features(67, 6, 9), features(67, 6, 10)
    batches = shuffled(67, 32)
    assert [len(batch) for batch in batches] == [32, 32, 3]
    sums = measured(x, y, batches)
    assert (sums.n_images, sums.skipped) == (64, 3)
    assert sums.cka()[0][0] == pytest.approx(by_formula(x, y, batches[:2]), rel=1e-10)
    whole = measured(x[:66], y[:66], shuffled(66, 31))
    assert (whole.n_images, whole.skipped) == (66, 0)


def test_constant_features_have_no_value() -> None:
    x = features(64, 6, 11)
    assert measured(x, np.full((64, 3), 7.1), shuffled(64, 32)).cka() == [[None]]
    assert measured(np.full((64, 3), np.nan), x, shuffled(64, 32)).cka() == [[None]]


def test_the_images_of_a_batch_are_of_all_places_and_each_is_there_once() -> None:
    batches = shuffled(1000, 64)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert all(np.ptp(batch) > 500 for batch in batches[:-1])
    assert [list(one) for one in shuffled(1000, 64)] == [list(one) for one in batches]


def test_layers_are_stages_or_the_last_map_then_pooled_features_and_logits() -> None:
    maps = [torch.zeros(4, 2, 3, 3), torch.zeros(4, 3, 2, 2)]
    last = maps[-1]
    assert list(layers(Taps(torch.zeros(4, 5), torch.zeros(4, 3), last, maps))) == ["stage 1", "stage 2", "pooled", "logits"]
    assert list(layers(Taps(torch.zeros(4, 5), last=last))) == ["last map", "logits"]


def test_maps_are_flattened_and_many_features_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor(features(40, 2 * 5 * 5, 12))
    whole = next(iter(grams([Taps(last=x.view(40, 2, 5, 5))])))["last map"]
    monkeypatch.setattr("kdbench.train.similarity.COLUMNS", 7)
    assert torch.allclose(whole, next(iter(grams([Taps(pooled=x)])))["pooled"], rtol=1e-10, atol=1e-10)
