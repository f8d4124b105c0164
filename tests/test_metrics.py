"""Balanced accuracy and macro-F1 against scikit-learn, where outputs are not unique or not numbers, and as the metric of a suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from kdbench.errors import SuiteError, UsageError
from kdbench.manifest import Manifest, Metric
from kdbench.plan.matrix import Plan
from kdbench.plan.summary import power_lines
from kdbench.tasks.classification import Classification


def measured(logits: Any, targets: Any) -> dict[str, float]:
    return Classification().measure({"logits": np.asarray(logits, np.float32)}, np.asarray(targets))


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 80), classes=st.integers(2, 12), used=st.integers(1, 12))
def test_the_means_over_classes_are_those_of_scikit_learn(seed: int, images: int, classes: int, used: int) -> None:
    """Some classes have no image, and some of these are predicted."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, min(used, classes), images)
    logits = draw.normal(size=(images, classes)) + 2 * (np.arange(classes) == targets[:, None])
    predicted, present = logits.argmax(1), np.unique(targets)
    found = measured(logits, targets)

    assert found["balanced_accuracy"] == pytest.approx(recall_score(targets, predicted, labels=present, average="macro", zero_division=0))
    assert found["macro_f1"] == pytest.approx(f1_score(targets, predicted, labels=present, average="macro", zero_division=0))
    if set(predicted) <= set(targets):  # scikit-learn warns of others
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, predicted))
    if len(present) == 1:
        assert found["balanced_accuracy"] == found["top1"]


def test_worked_examples() -> None:
    """Nine images of class 0, one of class 1: a net that only knows class 0 is right 9 times of 10, and on half of the classes."""
    targets = [0] * 9 + [1]
    found = measured([[1.0, 0.0]] * 10, targets)
    assert (found["top1"], found["balanced_accuracy"]) == (0.9, 0.5)
    assert found["macro_f1"] == pytest.approx((2 * 9 / (9 + 10) + 0) / 2)
    assert measured(np.eye(2)[targets], targets) | {"nll": 0} == {"top1": 1, "top5": 1, "nll": 0, "balanced_accuracy": 1, "macro_f1": 1}


@pytest.mark.parametrize("value", [0.0, 3.5, np.inf, -np.inf, np.nan])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_an_output_that_is_the_same_for_all_classes_is_right_about_nothing(value: float) -> None:
    found = measured(np.full((6, 3), value), [0, 1, 2, 0, 0, 0])
    assert (found["top1"], found["balanced_accuracy"], found["macro_f1"]) == (0, 0, 0)


def test_the_task_has_the_metrics_with_the_same_primary_one() -> None:
    assert [metric.name for metric in Classification.metrics] == ["top1", "top5", "nll", "balanced_accuracy", "macro_f1"]
    assert Classification.primary().name == "top1" and Classification.version == 1


# Suites

DATASET = "{name: digits, per_class: 12, imbalance: 4}"


def test_a_suite_names_the_metric_that_its_reports_compare(plan_of: Callable[..., Plan]) -> None:
    plain, other = plan_of(dataset=DATASET), plan_of(dataset=DATASET, metric="macro_f1")
    assert list(plain.cells) == list(other.cells)
    assert plain.manifest().primary.name == "top1" and other.manifest().primary.name == "macro_f1"
    assert other.manifest().margin == 0.002 and not other.manifest().assumed
    assert {one.metric for one in other.manifest().teacher_requirements.values()} == {"top1"}
    assert any("points" in line for line in power_lines(other))
    losses = plan_of(dataset=DATASET, metric="nll")
    assert losses.manifest().margin is None and not any("points" in line for line in power_lines(losses))
    with pytest.raises(SuiteError, match="has no metric 'balanced'.*balanced_accuracy"):
        plan_of(dataset=DATASET, metric="balanced")


def test_a_metric_that_the_suite_lacks_is_refused_and_others_keep_what_they_mean() -> None:
    metrics = (Metric("top1", "top-1", per_image="correct"), Metric("nll", "NLL", percent=False, higher_is_better=False), Metric("f", "F"))
    suite = Manifest("s", metrics, (), 1, 1, 0.05, (), (), (), margin=0.002)
    assert suite.compared_by("top1_last") is suite
    assert (suite.compared_by("f").margin, suite.compared_by("nll").margin) == (0.002, None)
    assert [one.name for one in suite.compared_by("f").metrics] == ["f", "top1", "nll"]
    assert suite.compared_by("macro_f1", predictions=True).primary.label == "macro-F1"
    with pytest.raises(UsageError, match="has no metric 'macro_f1'"):
        suite.compared_by("macro_f1")
    with pytest.raises(UsageError, match="has no metric 'top-1'.*did you mean 'top1'"):
        suite.compared_by("top-1")
