"""A linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from kdbench.errors import DataError
from kdbench.train.seeds import seed_of

HELD_OUT = 0.2
"""The share of the training images of each class that chooses the strength of L2."""
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MOST_STEPS = 1000


@dataclass(frozen=True)
class Probed:
    """Accuracies are fractions; `l2` is lambda in: mean NLL + lambda / 2 |W|^2."""

    accuracy: float
    validation_accuracy: float
    l2: float
    converged: bool


def linear_probe(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> Probed:
    """The accuracy on the test images of logistic regression on standardised features, fitted to the training images.

    lambda is the one of `STRENGTHS` with the highest accuracy on a part of the training images that is held out, the largest of equals;
    the weights are then fitted to all training images. Mean and deviation of the features are those of the images fitted to. The same
    features give the same result with the same versions of SciPy and scikit-learn and one thread.

    Args:
        train, test: [images, features].
        train_labels, test_labels: [images], classes from 0.

    Raises:
        DataError: there are too few training images.
    """
    held = held_out(train_labels)
    if len(np.unique(train_labels[~held])) < 2 or not held.any():
        raise DataError(
            f"a linear probe needs two classes with {round(1 / HELD_OUT)} training images each, and has {len(train_labels)} in all"
        )
    best, place = -1.0, 0
    for number, (accuracy, _) in enumerate(_path(train[~held], train_labels[~held], train[held], train_labels[held], STRENGTHS)):
        best, place = max((best, place), (accuracy, number), key=lambda one: one[0])
    *_, (accuracy, converged) = _path(train, train_labels, test, test_labels, STRENGTHS[: place + 1])
    return Probed(accuracy, best, STRENGTHS[place], converged)


def held_out(labels: np.ndarray) -> np.ndarray:
    """[images], which images are held out: of each class the share `HELD_OUT`, by a draw that depends on nothing but their number."""
    # Sorting raw draws gives a permutation that no release of NumPy can change.
    order = np.lexsort((np.random.Philox(seed_of("linear probe")).random_raw(len(labels)), labels))
    counts = np.bincount(labels)
    within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.zeros(len(labels), dtype=bool)
    found[order] = within < np.repeat((counts * HELD_OUT).astype(np.int64), counts)
    return found


def _path(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, strengths: tuple[float, ...]) -> list[tuple[float, bool]]:
    """(accuracy on the new images, whether the fit converged) for each strength, each fit beginning at the one before."""
    from sklearn.linear_model import LogisticRegression

    x, x_new = x.astype(np.float64), x_new.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0)
    scale = np.where(deviation > 1e-12 * np.abs(mean).max(initial=1.0), deviation, np.inf)  # a constant feature is left out
    x, x_new = (x - mean) / scale, (x_new - mean) / scale
    model = LogisticRegression(solver="lbfgs", max_iter=MOST_STEPS, warm_start=True)
    found = []
    for strength in strengths:
        model.set_params(C=1 / (strength * len(y)))  # scikit-learn's: C sum of NLL + 1/2 |W|^2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, y)
        found.append((float((model.predict(x_new) == y_new).mean()), bool(np.max(model.n_iter_) < MOST_STEPS)))
    return found
