"""What single images say of one classifier: its calibration, its accuracy class by class, its agreement with another."""

from __future__ import annotations

import numpy as np

BINS = 15


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """The mean gap between confidence and accuracy, over bins of equal width weighted by their images (Guo et al. 2017).

    Bin k of K holds the confidences in ((k - 1) / K, k / K].

    Args:
        confidence: [images], the probability of the predicted class, a fraction.
        correct: [images], whether the predicted class is the true one.

    Returns:
        A fraction.

    Raises:
        ValueError: the shapes differ, there is no image, or a confidence is no probability.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} must be two columns of the same images")
    held = confidence.astype(np.float64)
    if not ((held >= 0) & (held <= 1)).all():
        raise ValueError("a confidence lies outside of 0 to 1, or is not a number")
    place = np.clip(np.ceil(held * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, held, bins) - np.bincount(place, correct.astype(np.float64), bins)
    return float(np.abs(gaps).sum() / len(held))


def class_accuracy(correct: np.ndarray, target: np.ndarray, n_classes: int) -> np.ndarray:
    """Accuracy over the images of each class.

    Args:
        correct: [images].
        target: [images], the true class, from 0.

    Returns:
        [classes], fractions; NaN for a class without images.

    Raises:
        ValueError: the shapes differ, or a target is none of the classes.
    """
    if correct.ndim != 1 or correct.shape != target.shape:
        raise ValueError(f"correct {correct.shape} and target {target.shape} must be two columns of the same images")
    if len(target) and not (target.min() >= 0 and target.max() < n_classes):
        raise ValueError(f"targets from {target.min()} to {target.max()} do not fit {n_classes} classes")
    images = np.bincount(target, minlength=n_classes)
    right = np.bincount(target, correct.astype(np.float64), n_classes)
    return np.divide(right, images, out=np.full(n_classes, np.nan), where=images > 0)


def means_over_classes(correct: np.ndarray, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Balanced accuracy (the mean recall) and macro-F1 over the classes that have images.

    Args:
        correct, predicted, target: [images]. An image whose class shares the highest output is predicted as its class and yet not correct:
            then no class is predicted.
    """
    n_classes = int(target.max()) + 1
    counted = (correct | (predicted != target)) & (predicted < n_classes)
    images, right, said = (np.bincount(one, minlength=n_classes) for one in (target, target[correct], predicted[counted]))
    there = images > 0
    recall, f1 = right[there] / images[there], 2 * right[there] / (images + said)[there]
    return {"balanced_accuracy": float(recall.mean()), "macro_f1": float(f1.mean())}


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """log softmax of [images, classes], at least in float32's precision; in float64 for float64."""
    whole = logits.astype(np.float64 if logits.dtype == np.float64 else np.float32)
    held = whole - whole.max(axis=1, keepdims=True)
    return held - np.log(np.exp(held).sum(axis=1, keepdims=True))


def mean_divergence(teacher: np.ndarray, student: np.ndarray) -> float:
    """The mean over the images of KL(teacher || student) = sum over the classes of p_teacher (log p_teacher - log p_student), in nats.

    Args:
        teacher, student: [images, classes], as `log_probabilities` makes them.

    Raises:
        ValueError: the shapes differ, or there is no image.
    """
    if teacher.ndim != 2 or teacher.shape != student.shape or not len(teacher):
        raise ValueError(f"the outputs of teacher {teacher.shape} and student {student.shape} must be of the same images and classes")
    return float((np.exp(teacher) * (teacher - student)).sum(axis=1).mean(dtype=np.float64))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The share of images to which two classifiers give the same class, right or wrong.

    Raises:
        ValueError: the shapes differ, or there is no image.
    """
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise ValueError(f"predictions {one.shape} and {other.shape} must be two columns of the same images")
    return float((one == other).mean())
