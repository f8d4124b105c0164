"""Linear probes: what is fitted, what chooses the strength of L2, and what never does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from kdbench.errors import DataError
from kdbench.train import linear_probe as module
from kdbench.train.linear_probe import held_out, linear_probe


def classes(n: int, seed: int, spread: float = 1.0, d: int = 6, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, k, n)
    centres = np.random.default_rng(99).normal(size=(k, d)) * 2
    return centres[labels] + draw.normal(size=(n, d)) * spread, labels


def test_the_fit_minimises_the_mean_nll_and_half_the_strength_times_the_squared_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = classes(150, 0, 3.0)
    new, labels = classes(300, 1, 3.0)
    monkeypatch.setattr(module, "STRENGTHS", (0.3,))
    mean, sd = x.mean(0), x.std(0)
    standard, standard_new = (x - mean) / sd, (new - mean) / sd

    def loss(flat: np.ndarray) -> float:
        weights, bias = flat[:18].reshape(6, 3), flat[18:]
        logits = standard @ weights + bias
        return float((special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]).mean() + 0.15 * (weights**2).sum())

    best = optimize.minimize(loss, np.zeros(21), method="BFGS").x
    predicted = (standard_new @ best[:18].reshape(6, 3) + best[18:]).argmax(1)
    assert linear_probe(x, y, new, labels).accuracy == pytest.approx((predicted == labels).mean(), abs=0.011)


def test_the_test_images_choose_nothing() -> None:
    x, y = classes(200, 2, 3.0)
    new, labels = classes(100, 3, 3.0)
    found = linear_probe(x, y, new, labels)
    wrong = linear_probe(x, y, new, (labels + 1) % 3)
    assert (found.l2, found.validation_accuracy) == (wrong.l2, wrong.validation_accuracy)
    assert found.accuracy > 0.5 > wrong.accuracy
    assert found == linear_probe(x, y, new, labels) and found.converged


def test_of_strengths_that_are_equally_good_the_largest_is_taken() -> None:
    x, y = classes(200, 4, 0.01)
    found = linear_probe(x, y, *classes(50, 5, 0.01))
    assert (found.accuracy, found.validation_accuracy, found.l2) == (1, 1, module.STRENGTHS[0])


def test_the_scale_of_a_feature_does_not_matter_and_a_constant_one_is_left_out() -> None:
    x, y = classes(200, 6, 2.0)
    new, labels = classes(100, 7, 2.0)
    factors = np.array([1e-3, 1, 1e3, 5, 0.2, 1])
    plain, scaled = linear_probe(x, y, new, labels), linear_probe(x * factors, y, new * factors, labels)
    assert scaled.accuracy == pytest.approx(plain.accuracy, abs=0.011)
    dead = [np.hstack([one, np.full((len(one), 2), 3.3)]) for one in (x, new)]
    dead[1][:, -1] = -100
    assert linear_probe(dead[0], y, dead[1], labels).accuracy == pytest.approx(plain.accuracy, abs=0.011)


def test_a_fifth_of_each_class_is_held_out() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 10, 4, 25])
    held = held_out(labels)
    assert [int(held[labels == label].sum()) for label in range(4)] == [10, 2, 0, 5]
    assert (held == held_out(labels)).all() and 0 < held[:25].sum() < 10


def test_too_few_images_are_refused() -> None:
    x, y = classes(8, 8)
    with pytest.raises(DataError, match="two classes with 5 training images each, and has 8"):
        linear_probe(x, np.arange(8) % 4, x, y)
    with pytest.raises(DataError, match="two classes"):
        linear_probe(x, np.zeros(8, int), x, y)
