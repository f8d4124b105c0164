"""Reports from frame files: what is committed or was printed elsewhere goes through the same path."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from kdbench.errors import KdbenchError, RequestError
from kdbench.report import verb
from kdbench.report.accuracy import accuracy
from kdbench.report.frame import costs, frame
from kdbench.report.from_file import derived, of_rows, read, read_rows
from kdbench.report.study import study
from kdbench.report.write import Asked, report, report_file

MEASURED = Path(__file__).parents[2] / "results" / "measured"


def table(found):
    return accuracy(study(found.runs, found.costs, found.manifest))


def test_a_committed_report_folder_gives_the_same_table_as_the_records(made, tmp_path):
    suite = made(teachers=("big", "other")).finish_all().write()
    folder = report(suite.store, ["quickstart"], io.StringIO(), asked=Asked(images=False)).folders["quickstart"]
    direct = accuracy(study(frame(suite.store, suite.checked()), costs(suite.store, suite.checked()), suite.checked()))
    for name in ("frame.csv", "frame.parquet"):
        assert table(read(folder / name)) == direct


def test_without_its_manifest_a_frame_implies_objectives_blocks_and_family(made, tmp_path):
    suite = made(teachers=("big", "other")).finish_all().write()
    folder = report(suite.store, ["quickstart"], io.StringIO(), asked=Asked(images=False)).folders["quickstart"]
    shutil.copy(folder / "frame.csv", tmp_path / "mine.csv")
    found = read(tmp_path / "mine.csv")
    assert [one["name"] for one in found.manifest["objectives"]] == ["ce", "kd", "cc", "cka"]
    assert found.manifest["baselines"] == ["ce", "kd"] and found.manifest["repeats"] == 5
    assert [block["teacher"] for block in found.manifest["blocks"]] == ["big", "other"]
    with_manifest = table(read(folder / "frame.csv"))
    assert [group.rows for group in table(found).groups] == [group.rows for group in with_manifest.groups]


def test_rows_taken_out_of_a_file_beside_its_manifest_change_no_other_p(made):
    suite = made().finish_all(noise=0.01).write()
    folder = report(suite.store, ["quickstart"], io.StringIO(), asked=Asked(images=False)).folders["quickstart"]
    whole = read(folder / "frame.csv")
    rows = pd.read_csv(folder / "frame.csv", dtype=str)
    rows[rows["objective"] != "cc"].to_csv(folder / "frame.csv", index=False)
    part = read(folder / "frame.csv")
    one, other = (
        study(found.runs, found.costs, found.manifest).comparisons.set_index(["objective", "baseline"]) for found in (whole, part)
    )
    kept = [key for key in one.index if "cc" not in key]
    # What is gone counts as p = 1, so the family keeps its size: nothing becomes easier.
    assert len(one) == len(other) and (other.loc[kept, "p_holm"] >= one.loc[kept, "p_holm"] - 1e-15).all()
    assert other.loc[kept, "p"].tolist() == one.loc[kept, "p"].tolist()
    assert other.loc[("cc", "kd"), "n"] == 0


def test_ids_that_look_like_numbers_stay_text(tmp_path):
    path = tmp_path / "frame.csv"
    path.write_text("dataset,teacher,student,objective,repeat,id,top1_last\nd,t,s,ce,0,123456789012,0.5\nd,t,s,kd,0,0012e4567890,0.6\n")
    assert read(path).runs["id"].tolist() == ["123456789012", "0012e4567890"]


def test_a_frame_of_the_least_columns_is_enough():
    rows = pd.DataFrame(
        [{"dataset": "d", "student": "s", "objective": name, "repeat": repeat, "acc_last": 0.5 + 0.01 * repeat + gain}
         for name, gain in (("ce", 0.0), ("kd", 0.1), ("mine", 0.2)) for repeat in range(3)]
    )  # fmt: skip
    found = of_rows(rows, "mine")
    (group,) = table(found).groups
    assert group.title == "d · student s"
    assert [row[0].text() for row in group.rows] == ["ce", "kd", "mine"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"dataset": ["d"], "objective": ["ce"], "top1_last": [0.5]}, "no column student"),
        ({"dataset": ["d"], "student": ["s"], "objective": ["ce"]}, "<metric>_last"),
        ({"dataset": ["d"], "student": ["s"], "objective": ["ce"], "top1_last": [0.5], "role": ["teacher"]}, "no student's run"),
        (
            {"dataset": ["d"] * 2, "student": ["s"] * 2, "objective": ["ce"] * 2, "top1_last": [0.5] * 2, "id": ["a"] * 2},
            "run a stands in 2 rows",
        ),
    ],
)
def test_a_frame_that_is_none_is_told_what_it_lacks(rows, told):
    with pytest.raises(KdbenchError, match=told):
        derived(pd.DataFrame(rows), "mine")


def test_a_file_that_is_not_there_or_no_table_is_told(tmp_path):
    (tmp_path / "frame.csv").write_text("a,b\n")
    with pytest.raises(KdbenchError, match="frame.csv"):
        read_rows(tmp_path / "frames.csv")
    (tmp_path / "frame.parquet").write_bytes(b"no parquet")
    with pytest.raises(KdbenchError, match="is no frame"):
        read_rows(tmp_path / "frame.parquet")


@pytest.mark.parametrize("suite", ["quickstart", "cifar100_small"])
def test_our_own_measured_results_can_be_reported_again(suite, tmp_path):
    out = io.StringIO()
    done = report_file(read(MEASURED / suite / "frame.csv"), tmp_path, out, width=140)
    assert not done.problems and suite in out.getvalue()
    assert {"report.md", "report.tex", "warnings.json", "comparisons.csv"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked(figures=True), "say with --to"),
        (Asked(page=True), "say with --to"),
        (Asked(tensorboard=Path("events")), "from the records of a suite"),
    ],
)
def test_what_a_frame_file_cannot_give_is_refused_before_anything_is_read(asked, told):
    with pytest.raises(RequestError, match=told):
        verb.run(Path("results"), ["no.csv"], [], None, asked, False, (), io.StringIO())


def test_a_table_of_the_literature_goes_through_the_same_report(tmp_path):
    out = io.StringIO()
    assert verb.run(tmp_path, ["published:crd"], [], tmp_path / "crd", Asked(), False, (), out) == 0
    codes = {entry["code"] for entry in json.loads((tmp_path / "crd" / "warnings.json").read_text())}
    assert {"few-repeats", "shared-blocks", "rank-test"} <= codes  # one number a cell, 13 pairs that share their nets
    across = pd.read_csv(tmp_path / "crd" / "across.csv").set_index(["baseline", "objective"])
    crd = across.loc[("kd", "crd")]
    assert crd["n_blocks"] == 13 and crd["n_clusters"] == 3
    assert (round(100 * crd["difference"], 2), round(crd["wilcoxon_blocks_p"], 4)) == (1.08, 0.0002)
    assert (across.loc["kd", "these_low"].isna()).all() and (across["sign_flip_p"].isna()).all()
    assert (pd.read_csv(tmp_path / "crd" / "comparisons.csv")["verdict"] == "undecided").all()
