"""A second task, thrown away after this file, goes through plan, loop, record, required metric and report without a change anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import kdbench
from kdbench.plan.matrix import Plan
from kdbench.store import Store

REGRESSION = '''
import torch
import torch.nn.functional as F
from kdbench.datasets.digits import Digits
from kdbench.losses._base import Loss
from kdbench.manifest import Metric
from kdbench.tasks._base import Task


class Slant(Task):
    """How much ink lies right of the middle, less what lies left of it: one number an image."""

    metrics = (Metric("rmse", "RMSE", percent=False, higher_is_better=False), Metric("bias", "bias", percent=False))
    alone = "mse"

    def outputs(self, dataset):
        return 1

    @staticmethod
    def truth(inputs):
        return inputs[..., 4:].mean((1, 2, 3)) - inputs[..., :4].mean((1, 2, 3))

    def step(self, student, inputs, targets):
        taps = student(inputs)
        return {"squared_error": F.mse_loss(taps.logits[:, 0], self.truth(inputs))}, taps

    def predict(self, model, inputs):
        return {"said": model(inputs).logits[:, 0], "truth": self.truth(inputs)}

    def measure(self, predictions, targets):
        wrong = predictions["said"] - predictions["truth"]
        return {"rmse": float((wrong**2).mean() ** 0.5), "bias": float(wrong.mean())}


class Inked(Digits):
    """The digits, for another task."""

    task = "regression.py:Slant"


class Copy(Loss):
    """Mean squared difference of outputs."""

    needs = frozenset({"logits"})

    def forward(self, student, teacher, batch):
        return F.mse_loss(student.logits, teacher.logits)
'''


def test_a_regression_runs_from_suite_to_report_through_its_one_file(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    import io

    from kdbench.report.write import report

    (tmp_path / "regression.py").write_text(REGRESSION)
    plan = plan_of(
        dataset="{name: 'regression.py:Inked', per_class: 4}",
        teachers="{big: {model: small_mobile, widths: [8, 12]}}",
        min_rmse="2.0",
        objectives="{mse: , copy: {loss: 'regression.py:Copy', weight: 1}, rkd: }",
        baselines="[mse]",
    )

    assert train(plan) == 0

    frame = kdbench.load(store.suite_folder("tiny"))
    assert set(frame["state"]) == {"finished"}
    assert {"rmse_last", "bias_last", "rmse_best_test", "rmse_best_val"} <= set(frame.columns)
    assert (frame["rmse_best_test"] <= frame["rmse_last"]).all()
    out = io.StringIO()
    report(store, None, out, width=120)
    assert "RMSE" in out.getvalue() and "copy" in out.getvalue() and "lower is better" in out.getvalue()


def test_its_gate_reads_in_its_own_metric_and_the_right_way_round(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "regression.py").write_text(REGRESSION)
    plan = plan_of(
        task="regression.py:Slant",
        dataset="{name: digits, per_class: 4}",
        teachers="{big: {model: small_mobile, widths: [8, 12], min_rmse: 1.0e-6}}",
        objectives="{mse: , copy: {loss: 'regression.py:Copy', weight: 1}}",
        baselines="[mse]",
        repeats="1",
    )

    assert train(plan) == 1
    failure = store.failure(next(row.cell.id for row in plan.rows if row.objective == "copy"))
    assert failure and failure.kind == "blocked"
    assert "is not good enough: RMSE" in failure.message and "the suite requires 1e-06" in failure.message
