"""Promises about what the numbers mean: distillation distils, and nothing is significant where nothing is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

import kdbench
from kdbench.plan.matrix import Plan
from kdbench.stats.paired import paired_differences
from kdbench.store import Store


@pytest.mark.slow
def test_kd_beats_cross_entropy_alone_and_kd_from_a_shuffled_teacher_does_not(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(
        dataset="{name: digits, per_class: 20}",
        recipe="{name: short, epochs: 20, batch_size: 20, lr: 0.02, milestones: [14], evaluate_every: 20}",
        teachers="{big: {model: cifar_resnet, depth: 8, min_top1: 0.9}}",
        students="{small: {model: small_mobile, widths: [16, 24, 32]}}",
        objectives="{ce: , kd: , shuffled: {loss: kd, pairing: shuffled}}",
        repeats="6",
    )
    assert train(plan) == 0

    runs = (
        kdbench.load(store.suite_folder("tiny")).query("role == 'student'").pivot(index="repeat", columns="objective", values="top1_last")
    )
    assert stats.ttest_rel(runs["kd"], runs["ce"], alternative="greater").pvalue < 0.025
    assert stats.ttest_rel(runs["shuffled"], runs["ce"], alternative="greater").pvalue > 0.05


@pytest.mark.slow
def test_one_objective_under_two_names_with_independent_seeds_is_significant_at_the_nominal_rate(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: object, store: Store
) -> None:
    """1000 pairs of trainings of two steps each, through the whole way from suite to test: 200 comparisons of five repeats."""
    pairs, repeats = 1000, 5
    frames = []
    for name, seed in (("one", 0), ("other", 1)):
        plan = plan_of(
            name=name,
            dataset="{name: digits, per_class: 2}",
            recipe="{name: short, epochs: 2, batch_size: 20, lr: 0.05, evaluate_every: 2}",
            students="{tiny: {model: small_mobile, widths: [4, 6]}}",
            objectives=f"{{{name}: {{terms: []}}}}",
            baselines="[]",
            repeats=str(pairs),
            seed=str(seed),
        )
        assert train(plan) == 0
        frames.append(kdbench.load(store.suite_folder(name)))
    import pandas as pd

    runs = pd.concat(frames)
    runs = runs.assign(teacher=(runs["repeat"] // repeats).astype(str), teacher_seed=0, value=runs["top1_last"])
    blocks = runs[["dataset", "teacher", "student"]].drop_duplicates()
    tested = paired_differences(runs, blocks.assign(baseline="one", objective="other"))

    assert len(tested) == pairs // repeats and (tested["n"] == repeats).all()
    significant = int((tested["p"] < 0.05).sum())
    low, high = stats.binom.interval(0.99, len(tested), 0.05)
    assert low <= significant <= high
    assert stats.kstest(tested["p"], "uniform").pvalue > 0.01
    assert abs(np.corrcoef(frames[0]["top1_last"], frames[1]["top1_last"])[0, 1]) < 0.2
