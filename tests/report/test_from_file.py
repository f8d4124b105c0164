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


def made_rows(objectives=("ce", "kd"), repeats=range(3), **columns):
    """A student's runs, of which the given columns are changed: one value for all rows, or one for each."""
    rows = [
        {"dataset": "d", "teacher": "t", "student": "s", "objective": name, "repeat": repeat, "teacher_seed": 0, "top1_last": 0.5}
        for name in objectives
        for repeat in repeats
    ]
    return pd.DataFrame(rows).assign(**columns)


def text_of(rows):
    return rows.to_csv(index=False)


def test_a_teacher_of_its_own_in_each_repeat_is_one_teacher_seed_a_repeat():
    own = derived(made_rows(teacher_seed=[0, 1, 2] * 2), "mine")
    assert (own["repeats"], own["teacher_seeds"]) == (3, 1)
    crossed = pd.concat([made_rows(teacher_seed=seed) for seed in (0, 1)], ignore_index=True)
    both = derived(crossed, "mine")
    assert (both["repeats"], both["teacher_seeds"]) == (3, 2)


def test_runs_without_a_repeat_are_each_a_repeat_with_one_teacher():
    found = derived(made_rows(repeat=None, teacher_seed=[0, 1, 2] * 2), "mine")
    assert (found["repeats"], found["teacher_seeds"]) == (3, 1)


def test_a_derived_manifest_says_that_it_is_derived_and_one_beside_does_not(made):
    assert derived(made_rows(), "mine")["derived"] is True
    suite = made().finish_all().write()
    folder = report(suite.store, ["quickstart"], io.StringIO(), asked=Asked(images=False)).folders["quickstart"]
    assert "derived" not in read(folder / "frame.csv").manifest


@pytest.mark.parametrize(
    ("name", "higher", "percent"),
    [
        ("top1", True, True),
        ("val_acc", True, True),
        ("Top1.ema", True, True),
        ("f1", True, False),
        ("box_map", True, False),
        ("test_loss", False, False),
        ("cross_entropy", False, False),
        ("top1_error", False, False),
        ("val.ppl", False, False),
    ],
)
def test_the_words_of_a_metrics_name_say_which_way_is_better(name, higher, percent):
    (metric,) = derived(made_rows().rename(columns={"top1_last": f"{name}_last"}), "mine")["metrics"]
    assert (metric["name"], metric["higher_is_better"], metric["percent"]) == (name, higher, percent)


@pytest.mark.parametrize("name", ["sharpness", "lossless", "accent"])
def test_a_metric_that_does_not_say_which_way_is_better_needs_a_manifest(name):
    with pytest.raises(KdbenchError, match=f"whether a higher {name} is better; put a manifest.json beside it"):
        derived(made_rows().rename(columns={"top1_last": f"{name}_last"}), "mine")


def test_accuracies_in_per_cent_and_values_without_end_are_refused():
    with pytest.raises(KdbenchError, match=r"top1_last is to be a fraction between 0 and 1, and holds 73.2 \(row 2\)"):
        derived(made_rows(top1_last=[0.5, 73.2, 0.5, 0.5, 0.5, 0.5]), "mine")
    losses = [1.0, 2.0, float("inf"), 1.0, 1.0, 1.0]
    with pytest.raises(KdbenchError, match=r"nll_last is to be a finite number, and holds inf \(row 3\)"):
        derived(made_rows(nll_last=losses), "mine")
    diverged = ["finished", "finished", "diverged", "finished", "finished", "finished"]
    assert derived(made_rows(nll_last=losses, state=diverged), "mine")["metrics"][1]["name"] == "nll"
    assert derived(made_rows(bleu_last=28.4), "mine")["metrics"][1]["percent"] is False


def test_a_students_teacher_is_the_one_of_its_dataset():
    teachers = made_rows(("teacher",), [0]).assign(role="teacher", teacher=None, student="t")
    rows = [part.assign(dataset=name, role=part.get("role", "student")) for name in ("one", "two") for part in (teachers, made_rows())]
    cells = derived(pd.concat(rows, ignore_index=True), "mine")["cells"]
    whose = {cell["id"]: cell["dataset"] for cell in cells if cell["role"] == "teacher"}
    taught = [(cell["dataset"], whose[cell["depends"]["teacher"]]) for cell in cells if cell["role"] == "student"]
    assert len(taught) == 12 and all(mine == its for mine, its in taught)


def test_empty_numbers_are_missing_however_they_are_written(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text_of(made_rows(top1_last=["NaN", "NA", "nan", "", "0.5", "0.75"], n_train="NA")))
    runs = read(path).runs
    assert runs["top1_last"].isna().tolist() == [True] * 4 + [False] * 2 and runs["top1_last"].iloc[5] == 0.75
    assert runs["n_train"].isna().all()


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("top1_last", "0,73", r"top1_last is to be a number, and holds '0,73' \(row 2\)"),
        ("top1_best_val", "none yet", r"top1_best_val is to be a number, and holds 'none yet' \(row 2\)"),
        ("train_s", "2 h", r"train_s is to be a number, and holds '2 h' \(row 2\)"),
        ("n_train", "45000.5", r"n_train is to be a whole number, and holds 45000.5 \(row 2\)"),
        ("n_train", "50k", r"n_train is to be a number, and holds '50k' \(row 2\)"),
        ("n_test", "inf", r"n_test is to be a whole number, and holds inf \(row 2\)"),
        ("repeat", "1.5", r"repeat is to be a whole number, and holds 1.5 \(row 2\)"),
        ("teacher_seed", "s0", r"teacher_seed is to be a number, and holds 's0' \(row 2\)"),
    ],
)
def test_text_among_numbers_is_told_by_column_row_and_value(tmp_path, column, value, told):
    path = tmp_path / "mine.csv"
    rows = made_rows().astype(object)
    if column not in rows:
        rows[column] = None
    rows.loc[1, column] = value
    path.write_text(text_of(rows))
    with pytest.raises(KdbenchError, match=told):
        read(path)


def test_repeats_that_are_words_are_numbered_as_they_appear():
    runs = of_rows(made_rows(repeat=["s7", "s0", "NA", "s0", "s7", "s3"]), "mine").runs
    assert [None if pd.isna(one) else one for one in runs["repeat"]] == [0, 1, None, 1, 0, 2]


def test_two_runs_of_one_repeat_are_told_before_anything_is_computed():
    with pytest.raises(KdbenchError, match="row 1 and row 4 are runs of one dataset d, teacher t, student s, objective ce, repeat 0"):
        of_rows(made_rows(("ce", "ce")), "mine")
    # Cross-entropy without a teacher stands in the block where one with a teacher stands already.
    rows = pd.concat([made_rows(teacher_seed=None), made_rows(("ce",), teacher=None, teacher_seed=None)], ignore_index=True)
    with pytest.raises(KdbenchError, match="row 1 and row 7 are runs of one"):
        of_rows(rows, "mine")
    assert len(of_rows(made_rows(("ce", "ce"), repeat=None), "mine").runs) == 6


@pytest.fixture
def folder(made):
    """The folder of a suite's report: its frame with the manifest beside it."""
    suite = made().finish_all().write()
    return report(suite.store, ["quickstart"], io.StringIO(), asked=Asked(images=False)).folders["quickstart"]


def test_two_runs_of_one_repeat_beside_a_manifest_are_told(folder):
    rows = read_rows(folder / "frame.csv")
    kd = rows.index[rows["objective"] == "kd"]
    rows.loc[kd[1], "repeat"] = rows.loc[kd[0], "repeat"]
    rows.to_csv(folder / "frame.csv", index=False)
    with pytest.raises(KdbenchError, match=f"row {kd[0] + 1} and row {kd[1] + 1} are runs of one .*objective kd, repeat 0"):
        read(folder / "frame.csv")
    rows.drop(index=kd[0]).to_csv(folder / "frame.csv", index=False)
    with pytest.raises(KdbenchError, match=f"row {kd[1]} and run {rows.loc[kd[0], 'id']} of the manifest are runs of one"):
        read(folder / "frame.csv")


def test_runs_that_the_manifest_beside_does_not_know_are_refused(folder):
    rows = read_rows(folder / "frame.csv")
    rows.assign(id=["a1b2c3d4e5f6", *rows["id"][1:]]).to_csv(folder / "frame.csv", index=False)
    with pytest.raises(KdbenchError, match="does not know: a1b2c3d4e5f6; move the file or take the manifest away"):
        read(folder / "frame.csv")
    rows.drop(columns="id").to_csv(folder / "frame.csv", index=False)
    with pytest.raises(KdbenchError, match="has no column id, so manifest.json beside it knows none of its runs"):
        read(folder / "frame.csv")


def test_only_leading_lines_that_begin_with_a_hash_are_comments(tmp_path):
    path = tmp_path / "mine.csv"
    rows = made_rows(("ce #1", "kd"), why=["see issue #12"] * 6, state=["failed"] + ["finished"] * 5)
    path.write_text('# our runs, 5" discs\n# second line\n' + text_of(rows))
    (tmp_path / "terms.csv").write_text("# terms\nobjective,weight_from\nce #1,tuned\nkd,\n")
    found = read(path)
    assert found.runs["objective"].unique().tolist() == ["ce #1", "kd"]
    assert set(found.runs["why"]) == {"see issue #12"}
    assert [one["weight_from"] for one in found.manifest["objectives"]] == ["tuned", None]


def test_a_state_that_is_none_of_ours_is_told_with_those_that_are():
    states = ["finished", "finished", "done", "finished", "finished", "finished"]
    with pytest.raises(KdbenchError, match=r"state is to be one of finished, diverged, failed, .*missing, and holds 'done' \(row 3\)"):
        of_rows(made_rows(state=states), "mine")


def test_ids_of_a_parquet_file_that_are_numbers_become_text(tmp_path):
    made_rows(id=range(100, 106), student=18).to_parquet(tmp_path / "mine.parquet")
    found = read(tmp_path / "mine.parquet")
    assert found.runs["id"].tolist() == ["100", "101", "102", "103", "104", "105"]
    assert found.manifest["blocks"][0]["student"] == "18" and table(found).groups


@pytest.mark.parametrize("column", ["objective", "dataset", "student", "id"])
@pytest.mark.parametrize("nothing", [None, ""])
def test_a_run_that_does_not_say_what_it_is_of_is_told_by_column_and_row(column, nothing):
    rows = made_rows(id=[f"{one:012x}" for one in range(6)]).astype(object)
    rows.loc[4, column] = nothing
    with pytest.raises(KdbenchError, match=rf"{column} is to be filled, and is empty \(row 5\)"):
        derived(rows, "mine")


def test_a_missing_column_is_told_beside_a_manifest_as_well(folder):
    read_rows(folder / "frame.csv").drop(columns="objective").to_csv(folder / "frame.csv", index=False)
    with pytest.raises(KdbenchError, match="no column objective"):
        read(folder / "frame.csv")


@pytest.mark.parametrize(
    ("objectives", "baselines"),
    [
        (("CE", "KD", "mine"), ["CE", "KD"]),
        (("ce", "kd:dkd", "mine"), ["ce", "kd:dkd"]),
        (("ce", "kd:crd", "kd:zoo"), ["ce"]),
        (("Ce", "kd:crd", "Kd"), ["Ce", "Kd"]),
        (("KD", "kd", "ce"), ["ce", "kd"]),
        (("mine", "skd:a"), []),
    ],
)
def test_baselines_are_found_by_name_in_whatever_case(objectives, baselines):
    assert derived(made_rows(objectives), "mine")["baselines"] == baselines
