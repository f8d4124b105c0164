"""Reports from frame files: what is committed or was printed elsewhere goes through the same path."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from kdbench.errors import KdbenchError, UsageError
from kdbench.report import report_command
from kdbench.report.main_table import main_tables
from kdbench.report.study import study
from kdbench.report.write import ReportOptions, report, report_file
from kdbench.store.frame import costs, frame
from kdbench.store.frame_files import read_rows
from kdbench.store.from_file import of_rows, read

FRAMES = Path(__file__).parent / "frames"
MEASURED = Path(__file__).parents[2] / "results" / "measured"


def table(found):
    return main_tables(study(found.runs, found.costs, found.manifest))[0]


def test_a_committed_report_folder_gives_the_same_table_as_the_records(made, tmp_path):
    suite = made(teachers=("big", "other")).finish_all().write()
    folder = report(suite.store, ["quickstart"], io.StringIO(), options=ReportOptions(images=False)).folders["quickstart"]
    direct = main_tables(study(frame(suite.store, suite.checked()), costs(suite.store, suite.checked()), suite.checked()))[0]
    for name in ("frame.csv", "frame.parquet"):
        assert table(read(folder / name)) == direct


def test_without_its_manifest_a_frame_implies_objectives_blocks_and_family(made, tmp_path):
    suite = made(teachers=("big", "other")).finish_all().write()
    folder = report(suite.store, ["quickstart"], io.StringIO(), options=ReportOptions(images=False)).folders["quickstart"]
    shutil.copy(folder / "frame.csv", tmp_path / "mine.csv")
    found = read(tmp_path / "mine.csv")
    assert [one.name for one in found.manifest.objectives] == ["ce", "kd", "cc", "cka"]
    assert found.manifest.baselines == ("ce", "kd") and found.manifest.repeats == 5
    assert [block.teacher for block in found.manifest.blocks] == ["big", "other"]
    with_manifest = table(read(folder / "frame.csv"))
    assert [group.rows for group in table(found).groups] == [group.rows for group in with_manifest.groups]


def test_rows_taken_out_of_a_file_beside_its_manifest_change_no_other_p(made):
    suite = made().finish_all(noise=0.01).write()
    folder = report(suite.store, ["quickstart"], io.StringIO(), options=ReportOptions(images=False)).folders["quickstart"]
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


@pytest.mark.parametrize("suite", ["quickstart", "cifar100_small", "cifar100_shelf"])
def test_our_own_measured_results_can_be_reported_again(suite, tmp_path):
    out = io.StringIO()
    done = report_file(read(MEASURED / suite / "frame.csv"), tmp_path, out, width=140)
    assert not done.problems and suite in out.getvalue()
    assert {"report.md", "report.tex", "warnings.json", "comparisons.csv"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (ReportOptions(figures=True), "with --to FOLDER"),
        (ReportOptions(page=True), "with --to FOLDER"),
        (ReportOptions(tensorboard=Path("events")), "from the records of a suite"),
    ],
)
def test_what_a_frame_file_cannot_give_is_refused_before_anything_is_read(asked, told):
    with pytest.raises(UsageError, match=told):
        report_command.run(Path("results"), ["no.csv"], [], None, asked, False, (), io.StringIO())


def test_a_table_of_the_literature_goes_through_the_same_report(tmp_path):
    out = io.StringIO()
    assert report_command.run(tmp_path, ["published:crd"], [], tmp_path / "crd", ReportOptions(), False, (), out) == 0
    codes = {entry["code"] for entry in json.loads((tmp_path / "crd" / "warnings.json").read_text())}
    assert {"few-repeats", "derived-family"} <= codes  # one number a cell, and no suite
    overall = pd.read_csv(tmp_path / "crd" / "overall.csv").set_index(["baseline", "objective"])
    crd = overall.loc[("kd", "crd")]
    assert crd["n_pairs"] == 13 and round(100 * crd["new"], 2) == 1.08
    assert overall["low"].isna().all()  # one repeat has no spread
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


def derived(rows):
    return of_rows(rows, "mine").manifest


def test_a_manifest_counts_repeats_and_teachers_as_the_rows_have_them():
    own = derived(made_rows(teacher_seed=[0, 1, 2] * 2))
    assert (own.repeats, own.teacher_seeds, own.assumed) == (3, 1, ())
    crossed = pd.concat([made_rows(teacher_seed=seed) for seed in (0, 1)], ignore_index=True)
    both = derived(crossed)
    assert (both.repeats, both.teacher_seeds, both.assumed) == (3, 2, ())
    unnumbered = derived(made_rows(repeat=None, teacher_seed=[0, 1, 2] * 2))
    assert (unnumbered.repeats, unnumbered.teacher_seeds) == (3, 1)
    some = read(FRAMES / "46b_seed_missing_some.csv").manifest
    assert (some.repeats, some.teacher_seeds) == (5, 1) and "30 with 1, 10 with 2" in some.assumed[0]


def test_a_repeat_that_one_loss_lacks_is_a_missing_run_of_it():
    rows = made_rows(("ce", "kd"), range(5))
    found = of_rows(rows[~((rows["objective"] == "kd") & (rows["repeat"] == 3))], "mine")
    (gone,) = found.runs[found.runs["state"] == "missing"].to_dict(orient="records")
    assert (gone["objective"], gone["repeat"], gone["teacher"]) == ("kd", 3, "t")
    summaries = study(found.runs, found.costs, found.manifest).summaries.set_index("objective")
    assert summaries["n"].to_dict() == {"ce": 5, "kd": 4} and set(summaries["n_asked"]) == {5}


def test_losses_without_a_common_repeat_lack_none_of_each_others():
    rows = made_rows(("ce", "kd"), range(5)).assign(teacher=None)
    found = of_rows(pd.concat([rows, rows.assign(objective="b", repeat=rows["repeat"] + 10).head(4)], ignore_index=True), "mine")
    assert len(found.runs) == 14 and set(found.runs["state"]) == {"finished"} and found.manifest.repeats == 5
    compared = study(found.runs, found.costs, found.manifest)
    assert compared.summaries["n_asked"].to_dict() == compared.summaries["n"].to_dict()


def test_each_loss_has_one_label_of_its_own():
    rows = made_rows(("ce", "kd"), range(3))
    first = rows["repeat"] == 0
    sparse = rows.assign(label=rows["objective"].str.upper().where(first, None))
    assert derived(sparse).labels == {"ce": "CE", "kd": "KD"}
    for label, told in (
        (rows["objective"].str.upper().where(first, "other"), "label is 'other' .*it must be the same in all rows of a loss"),
        ("CE", "objective is 'kd' .*it must have its own label"),
    ):
        with pytest.raises(KdbenchError, match=told):
            derived(rows.assign(label=label))


def test_without_repeats_each_row_is_a_repeat_and_nothing_pairs():
    found = read(FRAMES / "17_missing_repeat.csv")
    compared = study(found.runs, found.costs, found.manifest)
    assert set(compared.comparisons["test"]) == {"Welch t"} and set(compared.summaries["n"]) == {5}
    assert set(compared.summaries["n_asked"]) == {5} and found.manifest.repeats == 5


def test_a_finished_run_without_a_value_counts_as_failed():
    found = read(FRAMES / "51_best_loss_has_empty_values.csv")
    failed = found.runs[found.runs["state"] == "failed"]
    assert len(failed) and set(failed["why"]) == {"top1_last is empty"} and failed["top1_last"].isna().all()


def test_a_derived_manifest_says_that_it_is_derived_and_one_beside_does_not(made):
    assert derived(made_rows()).derived
    suite = made().finish_all().write()
    folder = report(suite.store, ["quickstart"], io.StringIO(), options=ReportOptions(images=False)).folders["quickstart"]
    assert not read(folder / "frame.csv").manifest.derived


def test_metrics_are_known_by_their_whole_name_only():
    for name, higher, percent in (("top1", True, True), ("accuracy", True, True), ("f1", True, False), ("nll", False, False)):
        (metric,) = derived(made_rows().rename(columns={"top1_last": f"{name}_last"})).metrics
        assert (metric.name, metric.higher_is_better, metric.percent) == (name, higher, percent)
    for name in ("sharpness", "top1_error", "val_acc", "Top1.ema"):
        with pytest.raises(KdbenchError, match=f"direction of the metric '{name}' .* are not known; rename the column to one of top1_last"):
            derived(made_rows().rename(columns={"top1_last": f"{name}_last"}))


def test_a_run_that_diverged_may_have_a_loss_without_end():
    losses = [1.0, 2.0, float("inf"), 1.0, 1.0, 1.0]
    diverged = ["finished", "finished", "diverged", "finished", "finished", "finished"]
    assert derived(made_rows(nll_last=losses, state=diverged)).metrics[1].name == "nll"


def test_a_students_teacher_is_the_one_of_its_dataset():
    teachers = made_rows(("teacher",), [0]).assign(role="teacher", teacher=None, student="t")
    rows = [part.assign(dataset=name, role=part.get("role", "student")) for name in ("one", "two") for part in (teachers, made_rows())]
    cells = derived(pd.concat(rows, ignore_index=True)).cells
    whose = {cell.id: cell.dataset for cell in cells if cell.role == "teacher"}
    taught = [(cell.dataset, whose[cell.depends["teacher"]]) for cell in cells if cell.role == "student"]
    assert len(taught) == 12 and all(mine == its for mine, its in taught)


def test_empty_numbers_are_missing_however_they_are_written(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text_of(made_rows(top1_last=["NaN", "NA", "nan", "", "0.5", "0.75"], n_train="NA")))
    runs = read(path).runs
    assert runs["top1_last"].isna().tolist() == [True] * 4 + [False] * 2 and runs["top1_last"].iloc[5] == 0.75
    assert runs["n_train"].isna().all()


def test_repeats_that_are_words_are_numbered_as_they_appear():
    runs = of_rows(made_rows(repeat=["s7", "s0", "NA", "s0", "s7", "s3"]), "mine").runs
    assert [None if pd.isna(one) else one for one in runs["repeat"]] == [0, 1, None, 1, 0, 2]


def test_two_runs_of_one_repeat_are_told_before_anything_is_computed():
    with pytest.raises(KdbenchError, match=r"row 1 and row 4 are the same run \(dataset d, teacher t, student s, objective ce, repeat 0"):
        of_rows(made_rows(("ce", "ce")), "mine")
    # Cross-entropy without a teacher stands in the block where one with a teacher stands already.
    rows = pd.concat([made_rows(teacher_seed=None), made_rows(("ce",), teacher=None, teacher_seed=None)], ignore_index=True)
    with pytest.raises(KdbenchError, match="row 1 and row 7 are the same run"):
        of_rows(rows, "mine")
    assert len(of_rows(made_rows(("ce", "ce"), repeat=None), "mine").runs) == 6


@pytest.fixture
def folder(made):
    """The folder of a suite's report: its frame with the manifest beside it."""
    suite = made().finish_all().write()
    return report(suite.store, ["quickstart"], io.StringIO(), options=ReportOptions(images=False)).folders["quickstart"]


def test_rows_that_contradict_the_manifest_beside_them_are_refused(folder):
    rows = read_rows(folder / "frame.csv")
    kd = rows.index[rows["objective"] == "kd"]
    for column, value, message in (
        ("repeat", 3, f"repeat is 3 \\(line {kd[0]}\\), and by manifest.json beside it run {rows.loc[kd[0], 'id']} has 0"),
        ("objective", "cc", f"objective is cc \\(line {kd[0]}\\).* has kd"),
        ("id", "a1b2c3d4e5f6", "no run with the id a1b2c3d4e5f6"),
        ("top1_last", 94.2, "top1_last is 94.2 .* is it in per cent"),
    ):
        changed = rows.copy()
        changed.loc[kd[0], column] = value
        changed.to_csv(folder / "frame.csv", index=False)
        with pytest.raises(KdbenchError, match=message):
            read(folder / "frame.csv")
    for column, message in (("id", "no run with the id"), ("top1_last", "no column top1_last"), ("objective", "no column objective")):
        rows.drop(columns=column).to_csv(folder / "frame.csv", index=False)
        with pytest.raises(KdbenchError, match=message):
            read(folder / "frame.csv")


def test_only_leading_lines_that_begin_with_a_hash_are_comments(tmp_path):
    path = tmp_path / "mine.csv"
    rows = made_rows(("ce #1", "kd"), why=["see issue #12"] * 6, state=["failed"] + ["finished"] * 5)
    path.write_text('# our runs, 5" discs\n# second line\n' + text_of(rows))
    (tmp_path / "terms.csv").write_text(
        "# terms\nobjective,label,task,loss,version,weight,weight_from,pairing,options\nce #1,,1,,,,tuned,,\nkd,,1,,,,,,\n"
    )
    found = read(path)
    assert found.runs["objective"].unique().tolist() == ["ce #1", "kd"]
    assert set(found.runs["why"]) == {"see issue #12"}
    assert [one.weight_from for one in found.manifest.objectives] == ["tuned", None]


def test_ids_of_a_parquet_file_that_are_numbers_become_text(tmp_path):
    made_rows(id=range(100, 106), student=18).to_parquet(tmp_path / "mine.parquet")
    found = read(tmp_path / "mine.parquet")
    assert found.runs["id"].tolist() == ["100", "101", "102", "103", "104", "105"]
    assert found.manifest.blocks[0].student == "18" and table(found).groups


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
    assert list(derived(made_rows(objectives)).baselines) == baselines
