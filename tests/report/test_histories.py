"""What happened on the way, as tables that can be committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from click.testing import CliRunner

from kdbench.cli import main
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.store.histories import histories


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

    names = {path.name for path in (store.suite_folder("tiny") / "report").iterdir()}
    assert {"frame.csv", "frame.parquet", "report.md"} <= names and "histories.csv" not in names


def test_epochs_terms_and_what_was_evaluated_stand_in_their_rows(made: Callable[..., Any]) -> None:
    suite = made(repeats=2)
    teacher, (one, other), damaged = suite.cells(role="teacher")[0], suite.cells(objective="cc"), suite.cells(objective="kd")[0]
    terms = {"task": {"raw": 2.0, "weighted": 1.0}, "cc": {"raw": 0.5, "weighted": 50.0, "gradient_ratio": 0.25}}
    suite.finish(teacher["id"], 0.9, history=[{"epoch": -1, "lr": 0.0, "terms": {}, "test": {"top1": 0.9}}])
    first = {"epoch": 0, "lr": 0.1, "terms": terms, "loss": 51.0}
    late = {"late": {"raw": 3.0, "weighted": None}, **terms}
    second = {"epoch": 1, "lr": 0.01, "terms": late, "loss": None, "val": {"top1": 0.5}, "test": {"top1": 0.25, "nll": None}}
    suite.finish(one["id"], 0.5, history=[first, second])
    suite.finish(other["id"], None, outcome="diverged")
    suite.store.file(damaged["id"], "record.json").parent.mkdir(parents=True)
    suite.store.file(damaged["id"], "record.json").write_text("{")
    found = histories(suite.store, suite.checked())

    nan = float("nan")
    numbers = ["epoch", "lr", "loss", "raw", "weighted", "gradient_ratio", "test_top1", "val_top1", "test_nll"]
    assert found[["role", "objective", "term"]].values.tolist()[1:] == [
        ["student", "cc", term] for term in ("task", "cc", "late", "task", "cc")
    ]
    assert found["id"].tolist() == [teacher["id"], *[one["id"]] * 5] and found["repeat"].tolist() == [0] * 6
    np.testing.assert_array_equal(
        found[numbers].to_numpy(float),
        [
            [-1, 0.0, nan, nan, nan, nan, 0.9, nan, nan],
            [0, 0.1, 51.0, 2.0, 1.0, nan, nan, nan, nan],
            [0, 0.1, 51.0, 0.5, 50.0, 0.25, nan, nan, nan],
            [1, 0.01, nan, 3.0, nan, nan, nan, nan, nan],
            [1, 0.01, nan, 2.0, 1.0, nan, 0.25, 0.5, nan],
            [1, 0.01, nan, 0.5, 50.0, 0.25, nan, nan, nan],
        ],
    )
    assert pd.api.types.is_integer_dtype(found["epoch"])


def test_a_suite_without_records_has_no_row_and_every_column(made: Callable[..., Any]) -> None:
    found = histories(made().store, made().checked())

    assert len(found) == 0 and {"id", "epoch", "term", "gradient_ratio"} <= set(found)


def test_records_without_history_have_no_rows_and_do_not_hide_others(made: Callable[..., Any]) -> None:
    suite = made(repeats=2)
    entry = {"epoch": 0, "lr": 0.1, "terms": {"task": {"raw": 2.0, "weighted": 1.0}}, "loss": 2.0}
    for cell in suite.manifest["cells"]:
        suite.finish(cell["id"], 0.9)
    nothing = histories(suite.store, suite.checked())
    assert not len(nothing) and {"epoch", "term", "raw"} <= set(nothing)
    last = suite.manifest["cells"][-1]["id"]
    suite.finish(last, 0.9, history=[entry])
    assert histories(suite.store, suite.checked())["id"].tolist() == [last]
