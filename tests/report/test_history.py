"""What happened on the way, as tables that can be committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from click.testing import CliRunner

from kdbench.cli import main
from kdbench.plan.matrix import Plan
from kdbench.store import Store


def test_each_epoch_and_term_has_a_row_and_each_objective_says_whose_its_weights_are(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(objectives="{ce: , rkd: , cka: {weight: {0: 0, 2: 3}, weight_from: assumed}}", repeats="1")
    train(plan)
    result = CliRunner().invoke(main, ["report", "tiny", "--results", str(store.root), "--histories"])
    assert result.exit_code == 0, result.output

    folder: Path = store.suite_folder("tiny") / "report"
    epochs = pd.read_csv(folder / "histories.csv")
    counts = epochs[epochs["role"] == "student"].groupby(["objective", "term"]).size().to_dict()
    assert counts == {
        ("ce", "task"): 3,
        **dict.fromkeys([("rkd", "task"), ("rkd", "rkd.distance"), ("rkd", "rkd.angle"), ("cka", "task"), ("cka", "cka")], 3),
    }
    rkd = plan.rows[-2].cell if plan.rows[-2].objective == "rkd" else next(row.cell for row in plan.rows if row.objective == "rkd")
    last = epochs[(epochs["id"] == rkd.id) & (epochs["epoch"] == 2)].set_index("term")
    record = store.record(rkd.id)
    assert record is not None
    assert last.loc["task", "test_top1"] == float(f"{record.result['metrics']['top1_last']:.6g}")
    assert last.loc["rkd.angle", "gradient_ratio"] > 0
    assert epochs[(epochs["objective"] == "cka") & (epochs["term"] == "cka")]["weighted"].iloc[0] == 0

    terms = pd.read_csv(folder / "terms.csv").set_index("objective")
    assert terms["weight_from"].to_dict() == {"ce": "published", "rkd": "published", "cka": "assumed"}
    assert terms.loc["cka", "weight"] == "[[0, 0.0], [2, 3.0]]" and '"distance": 25.0' in terms.loc["rkd", "options"]


def test_without_being_asked_no_history_is_written(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    train(plan_of(repeats="1"))
    CliRunner().invoke(main, ["report", "tiny", "--results", str(store.root)])

    assert sorted(path.name for path in (store.suite_folder("tiny") / "report").iterdir()) == ["frame.csv", "frame.parquet", "report.md"]
