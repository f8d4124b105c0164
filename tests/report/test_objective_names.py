"""An objective may have the name of any column, role or state, in a suite's records and in a frame file."""

from __future__ import annotations

import io

import pandas as pd

from kdbench.report.report_command import run
from kdbench.report.write import ReportOptions, report
from kdbench.store.frame import CIRCUMSTANCE, COST_COLUMNS, IDENTITY
from kdbench.store.histories import EPOCH

NAMES = sorted(
    {*IDENTITY, *CIRCUMSTANCE, *COST_COLUMNS, *EPOCH, "value", "n", "n_asked", "mean", "sd", "p", "baseline", "difference", "finished"}
    | {"index", "level_0", "block", "own", "row", "key", "verdict", "top1", "top1_last", "mean_rank", "n_blocks", "count", "size", "class"}
    | {"0", "None", "nan", "ce, kd", "a b", "Teacher"}
)


def test_an_objective_may_have_any_name_in_a_suite_and_in_a_frame_file(made, tmp_path) -> None:
    objectives = [(name, name, "published") for name in ("ce", "kd", *NAMES)]
    suite = made(students=("small", "tiny"), repeats=3, objectives=objectives)
    gain = {name: place / 1000 for place, (name, _, _) in enumerate(objectives)}
    suite.finish_all(gain=gain).write()
    for name in NAMES[:3]:
        suite.profile(name)
    out = io.StringIO()
    options = ReportOptions(histories=True, images=False)
    done = report(suite.write().store, [suite.suite], out, options=options)
    assert done.problems == {}
    frame = pd.read_csv(done.folders[suite.suite] / "frame.csv", keep_default_na=False)
    assert set(frame["objective"]) == {"", "ce", "kd", *NAMES}
    text = (done.folders[suite.suite] / "report.md").read_text()
    assert all(name.split("_")[0] in text for name in NAMES)

    alone = tmp_path / "alone" / "frame.csv"
    alone.parent.mkdir()
    frame.to_csv(alone, index=False)
    assert run(tmp_path, [str(alone)], [], tmp_path / "to", ReportOptions(images=False), False, (), out) == 0
    again = pd.read_csv(tmp_path / "to" / "frame.csv", keep_default_na=False)
    assert set(again["objective"]) == {"", "ce", "kd", *NAMES}
    one, other = (pd.read_csv(folder / "comparisons.csv", keep_default_na=False) for folder in (done.folders[suite.suite], tmp_path / "to"))
    keys = ["dataset", "teacher", "student", "baseline", "objective"]
    pd.testing.assert_frame_equal(one.sort_values(keys, ignore_index=True)[keys], other.sort_values(keys, ignore_index=True)[keys])
