"""The tables and the first sentences: what they print, what they mark, and what they claim."""

from __future__ import annotations

import itertools
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdbench.failure import Failure
from kdbench.report.across_table import across_table
from kdbench.report.comparison import comparisons, student_runs
from kdbench.report.comparison_table import comparison_table
from kdbench.report.cost_table import cost_table
from kdbench.report.entries import p
from kdbench.report.main_table import main_tables
from kdbench.report.paper import paper_table
from kdbench.report.sentences import findings
from kdbench.report.study import mirrored, study
from kdbench.report.warnings import warnings
from kdbench.report.write import report_tables
from kdbench.store.frame import costs, frame
from kdbench.store.from_file import of_rows, read

WORKED = {"ce": [0.90, 0.91, 0.89], "kd": [0.91, 0.93, 0.92], "cc": [0.95, 0.96, 0.94], "cka": [0.90, 0.92, 0.90]}
FRAMES = Path(__file__).parent / "frames"


def worked(made, values=None, **options):
    """A suite whose values are given: {objective: by repeat}."""
    suite = made(repeats=3, **options)
    for cell in suite.manifest["cells"]:
        suite.finish(cell["id"], 0.961 if cell["role"] == "teacher" else (values or WORKED)[cell["objective"]][cell["repeat"]])
    return suite


def study_of(suite):
    return study(frame(suite.store, suite.checked()), costs(suite.store, suite.checked()), suite.checked())


def tables_of(suite):
    """The main tables by name."""
    return {table.name: table for table in main_tables(study_of(suite))}


def of_file(name):
    found = read(FRAMES / f"{name}.csv")
    return study(found.runs, found.costs, found.manifest)


def texts(group):
    return {row[0].text(): [entry.text() for entry in row[1:]] for row in group.rows}


def test_a_worked_example_is_printed_as_by_hand(made):
    tables = tables_of(worked(made))
    assert list(tables) == ["vs_ce", "vs_kd"]
    titles = [[column.title for column in table.columns] for table in tables.values()]
    assert titles == [["loss", "top-1, %", f"Δ to {name}, points [95 % CI]", "p (Holm)", "verdict"] for name in ("ce", "kd")]
    assert [column.essential for column in tables["vs_ce"].columns] == [True, False, True, False, True]
    # With 2 degrees of freedom p = 1 - t / sqrt(t² + 2), so cc - kd .0351, cka - kd .0572, kd - ce .0742, cka - ce .1835, and
    # cc - ce counts as 1. By Holm over m = 5: .0351 * 5, .0572 * 4, .0742 * 3, .1835 * 2. Each interval is its own, where t(2) is 4.303.
    (group,) = tables["vs_ce"].groups
    assert group.title == "digits · student small · teacher big"
    assert texts(group) == {
        "ce": ["90.00 ± 1.00", "", "", ""],
        "kd": ["92.00 ± 1.00", "+2.00 [-0.48, +4.48]", "0.229", ""],
        "cc (taylor)": ["95.00 ± 1.00", "+5.00", "–‡", ""],
        "cka": ["90.67 ± 1.15", "+0.67 [-0.77, +2.10]", "0.367", ""],
    }
    assert texts(tables["vs_kd"].groups[0])["cka"] == ["90.67 ± 1.15", "-1.33 [-2.77, +0.10]", "0.229", ""]
    assert "‡ cc (taylor): not tested: the same difference in all 3 repeats: no spread to test against" in group.notes


def test_the_mean_over_all_pairs_stands_first_and_is_tested_repeat_by_repeat(made):
    suite = made(teachers=("big", "other"), students=("small", "tiny")).finish_all(noise=0.003)
    found = study_of(suite)
    table = tables_of(suite)["vs_kd"]
    assert [group.title for group in table.groups] == [
        "all pairs (2 students x 2 teachers)",
        *(f"digits · student {block['student']} · teacher {block['teacher']}" for block in suite.manifest["blocks"]),
    ]
    runs = found.students.groupby(["objective", "repeat"])["value"].mean().unstack()
    difference = 100 * (runs.loc["cka"] - runs.loc["kd"])
    half = 2.776445 * difference.std(ddof=1) / np.sqrt(5)
    centre = difference.mean()
    assert texts(table.groups[0])["cka"][1] == f"{centre:+.2f} [{centre - half:+.2f}, {centre + half:+.2f}]"
    assert texts(table.groups[0])["cka"][0] == f"{100 * runs.loc['cka'].mean():.2f} ± {100 * runs.loc['cka'].std(ddof=1):.2f}"


def test_kd_is_better_than_cross_entropy_over_all_pairs_of_a_published_layout():
    found = of_file("kd2x4x8")
    table = main_tables(found)[0]
    assert table.groups[0].title == "all pairs (2 students x 4 teachers)"
    assert texts(table.groups[0])["KD"] == ["73.09 ± 0.05", "+1.64 [+1.19, +2.09]", "0.004", "▲ better"]
    assert "better than CE: KD" in findings(found)[1] and findings(found)[0].startswith("Compared: 8 losses on cifar100, all pairs")
    assert "1 of 7 losses compared with CE" in findings(found)[2] and "these students and these teachers only" in findings(found)[2]


def test_rows_follow_the_suite_and_not_the_frame(made):
    suite = made(teachers=("big", "other"), students=("small", "tiny")).finish_all()
    runs, manifest = frame(suite.store, suite.checked()), suite.checked()
    measured = costs(suite.store, manifest)
    tables = main_tables(study(runs, measured, manifest))
    assert main_tables(study(runs.sample(frac=1, random_state=0), measured, manifest)) == tables
    assert all(list(texts(group)) == ["ce", "kd", "cc (taylor)", "cka"] for table in tables for group in table.groups)


def test_labels_change_no_number(made):
    suite = made(teachers=("big", "other")).finish_all(noise=0.01)
    numbers = [[row[1:4] for row in group.rows] for table in tables_of(suite).values() for group in table.groups]
    for objective in suite.manifest["objectives"]:
        objective["label"] = objective["label"][::-1]
    assert [[row[1:4] for row in group.rows] for table in tables_of(suite).values() for group in table.groups] == numbers


def test_holm_runs_over_every_comparison_of_the_suite_also_those_that_never_ran(made):
    suite = made(teachers=("big", "other")).finish_all(noise=0.01)
    for cell in suite.cells(teacher="other"):
        suite.store.file(cell["id"], "record.json").unlink()
    found = comparisons(student_runs(frame(suite.store, suite.checked()), suite.checked()), suite.checked())
    assert len(found) == 10
    assert found["p_holm"].isna().sum() == found["p"].isna().sum() == 5
    assert found["p_holm"].min() == pytest.approx(min(1, 10 * found["p"].min()))
    table = tables_of(suite)["vs_ce"]
    assert any(
        "Holm-corrected for 5 comparisons (all pairs), 10 (pair by pair), fixed by the suite" in sentence for sentence in table.caption
    )
    assert set(text for row in texts(table.groups[2]).values() for text in row[1:] if row[0] == "–†") == {"–", "–‡", ""}


def test_the_comparison_of_two_baselines_is_printed_from_both_sides(made):
    tables = tables_of(made().finish_all())
    kd, ce = texts(tables["vs_ce"].groups[0])["kd"], texts(tables["vs_kd"].groups[0])["ce"]
    assert kd[1].startswith("+") and ce[1].startswith("-") and kd[2] == ce[2]
    assert texts(tables["vs_ce"].groups[0])["ce"][1:] == ["", "", ""]
    line = next(iter(study_of(made().finish_all()).all_pairs.tests.values()))
    assert mirrored(mirrored(line)) == line and mirrored(line)["low"] == -line["high"]


def test_verdicts_are_words_with_marks_and_mirrored_for_the_other_baseline(made):
    suite = made(repeats=10)
    suite.manifest["margin"] = 0.003
    suite.finish_all(noise=0.001, gain={"ce": 0.0, "kd": 0.03, "cc": 0.03, "cka": 0.0315})
    tables = tables_of(suite)
    ce, kd = (texts(tables[name].groups[0]) for name in ("vs_ce", "vs_kd"))
    assert (ce["kd"][3], kd["ce"][3]) == ("▲ better", "▼ worse")
    # cka is better than kd, and shown to be by less than .3 points
    assert (ce["cka"][3], kd["cka"][3], kd["cc (taylor)"][3]) == ("▲ better", "△ better, below the margin", "= equal")
    suite.manifest["margin"] = None
    assert "=" not in "".join(text for row in texts(tables_of(suite)["vs_kd"].groups[0]).values() for text in row)
    assert any("nothing is called equal" in sentence for sentence in tables_of(suite)["vs_kd"].caption)


def test_a_loss_with_a_failed_run_is_never_called_better(made):
    suite = made(repeats=10).finish_all(noise=0.001, gain={"ce": 0.0, "kd": 0.03, "cc": 0.05, "cka": 0.0})
    assert texts(tables_of(suite)["vs_ce"].groups[0])["cc (taylor)"][3] == "▲ better"
    suite.finish(suite.cells(objective="cc")[0]["id"], None, outcome="diverged")
    (group,) = tables_of(suite)["vs_ce"].groups
    assert texts(group)["cc (taylor)"][3] == ""
    assert "cc (taylor): no verdict, since 1 of 10 runs of cc (taylor) failed" in group.notes
    assert [row[1].emphasis for row in group.rows] == ["", "best", "", ""]  # nor is its mean the best


def test_a_loss_whose_runs_collapse_gets_no_verdict_and_no_interval(made):
    suite = made(repeats=10, students=("small", "tiny")).finish_all(noise=0.001, gain={"ce": 0.0, "kd": 0.03, "cc": 0.05, "cka": 0.0})
    suite.finish(suite.cells(objective="cc", student="small")[3]["id"], 0.3)
    found = study_of(suite)
    for table in main_tables(found):
        for group in table.groups:
            row = texts(group)["cc (taylor)"]
            assert row[3] == "! unstable" and row[2] == "–" and "[" not in row[1]
            assert "! cc (taylor): no verdict, since some runs of cc (taylor) collapse" in group.notes
        assert texts(table.groups[0])["kd" if table.name == "vs_ce" else "ce"][3].endswith(("better", "worse"))
        assert "! unstable" in " ".join(table.caption)
    assert "No verdict, since some runs collapse: cc (taylor)." in findings(found)[2]
    assert [row[1].emphasis for row in main_tables(found)[0].groups[0].rows] == ["", "best", "", ""]


def test_the_best_is_bold_and_what_cannot_be_told_from_it_underlined(made):
    suite = made(repeats=10).finish_all(noise=0.001, gain={"ce": 0.0, "kd": 0.03, "cc": 0.0301, "cka": 0.02})
    rows = {row[0].text(): row[1].emphasis for row in tables_of(suite)["vs_ce"].groups[0].rows}
    assert rows["ce"] == rows["cka"] == "" and {rows["kd"], rows["cc (taylor)"]} == {"best", "tied"}


def test_runs_that_are_not_there_are_counted_and_explained(made):
    suite = made().finish_all()
    first, second, third, *_ = suite.cells(objective="cc")
    suite.finish(first["id"], None, outcome="diverged")
    suite.store.file(second["id"], "record.json").unlink()
    suite.store.put_failure(second["id"], Failure("device memory", "no memory\nmore lines"))
    suite.store.file(third["id"], "record.json").unlink()
    (group,) = tables_of(suite)["vs_ce"].groups
    assert texts(group)["cc (taylor)"][0].split(" ")[0].endswith("†")
    assert group.notes == (
        f"† cc (taylor): 2 of 5 repeats complete; 1 diverged: repeat 0 (run {first['id']}), diverged at step 120; "
        f"1 failed: repeat 1 (run {second['id']}), device memory: no memory; 1 missing",
        "‡ cc (taylor): not tested: there are only two repeats, and a test needs three",
    )
    assert findings(study_of(suite))[3] == "18 of 21 runs finished; 1 diverged, 1 failed, 1 missing."
    assert "Incomplete: cc (taylor)." in findings(study_of(suite))[2]


def test_an_objective_without_any_run_shows_as_such(made):
    suite = made().finish_all()
    for cell in suite.cells(objective="cc"):
        suite.store.file(cell["id"], "record.json").unlink()
    suite.manifest["cells"] = [cell for cell in suite.manifest["cells"] if cell["objective"] != "cka"]
    (group,) = tables_of(suite)["vs_ce"].groups
    assert texts(group)["cc (taylor)"] == ["–†", "–", "–‡", ""]
    assert "cka" not in texts(group)  # excluded, not missing
    assert "† cc (taylor): 0 of 5 repeats complete; 5 missing" in group.notes


def test_a_loss_that_the_suite_excludes_from_a_pair_has_a_mean_over_fewer_pairs_which_is_marked(made):
    suite = made(teachers=("big", "other")).finish_all(noise=0.001)
    gone = suite.cells(objective="cka", teacher="other")
    suite.manifest["cells"] = [cell for cell in suite.manifest["cells"] if cell not in gone]
    group = tables_of(suite)["vs_ce"].groups[0]
    row = next(row for row in group.rows if row[0].text() == "cka")
    assert "†" in row[1].text() and row[1].emphasis == "" and row[4].text() == "▲ better"
    assert "† cka: 1 of 2 pairs in the suite" in group.notes


def test_one_repeat_has_no_spread_and_no_test(made):
    (group,) = tables_of(made(repeats=1).finish_all())["vs_ce"].groups
    assert "±" not in texts(group)["cc (taylor)"][0]
    assert texts(group)["cc (taylor)"][2] == "–‡"
    assert any("one repeat only" in note for note in group.notes)


def test_a_suite_without_a_single_record_still_has_its_tables(made):
    for options in ({}, {"teachers": ("big", "other")}):
        found = study_of(made(**options))
        for table in main_tables(found):
            assert all(row[0] == "–†" for group in table.groups for row in texts(group).values())
        assert "† ce, kd, cc (taylor), cka: 0 of 5 repeats complete; 5 missing" in main_tables(found)[0].groups[-1].notes
        assert "cannot be tested" in findings(found)[1]


def test_a_suite_without_baselines_has_one_table_and_says_that_it_compares_nothing(made):
    suite = made().finish_all()
    suite.manifest["baselines"] = []
    (table,) = tables_of(suite).values()
    assert [column.title for column in table.columns] == ["loss", "top-1, %"]
    assert any("Nothing is compared" in sentence for sentence in table.caption)
    found = study_of(suite)
    assert comparison_table(found) is None and across_table(found) is None and len(findings(found)) == 2


def test_an_entry_knows_the_runs_behind_it(made):
    suite = made(teachers=("big", "other")).finish_all()
    table = tables_of(suite)["vs_ce"]
    row, alone = table.groups[1].rows[2], table.groups[1].rows[0]
    mine = {cell["id"] for cell in suite.cells(objective="cc", teacher="big")}
    ce = {cell["id"] for cell in suite.cells(objective="ce", role="student")}
    assert set(row[1].runs) == mine and set(row[2].runs) == mine | ce
    assert alone[1] == table.groups[2].rows[0][1] and set(alone[1].runs) == ce  # cross-entropy alone: the same runs for both teachers
    assert set(table.groups[0].rows[2][1].runs) == {cell["id"] for cell in suite.cells(objective="cc")}
    assert len(table.groups[0].rows[0][1].runs) == len(ce)


def test_a_few_runs_on_other_data_are_left_out_and_named_and_the_others_stay(made):
    suite = made().finish_all()
    stray = suite.cells(objective="cc")[0]["id"]
    suite.finish(stray, 0.5, fingerprint="beef")
    (group,) = tables_of(suite)["vs_ce"].groups
    assert texts(group)["kd"][0].startswith("91.") and "†" in texts(group)["cc (taylor)"][0]
    assert any(f"4 of 5 repeats complete; 1 on different data: repeat 0 (run {stray})" in note for note in group.notes)
    assert not any("failed" in note for note in group.notes)
    half = made(suite="half", objectives=(("ce", "ce", "published"), ("kd", "kd", "published"))).finish_all()
    for cell in half.cells(objective="kd"):
        half.finish(cell["id"], 0.9, fingerprint="beef")
    assert all(row[0] == "–†" for row in texts(tables_of(half)["vs_ce"].groups[0]).values())  # no majority: neither is right


def test_runs_from_before_the_content_was_in_the_fingerprint_count_with_those_that_have_it(made):
    suite = made().finish_all()
    for place, cell in enumerate(suite.cells(role="student")):
        suite.finish(cell["id"], 0.9 + place / 1000, fingerprint="f00d" if place % 2 else "f00d-c0de")
    assert not any("different data" in note for note in tables_of(suite)["vs_ce"].groups[0].notes)
    stray = suite.cells(objective="cc")[0]["id"]
    suite.finish(stray, 0.5, fingerprint="f00d-beef")
    notes = tables_of(suite)["vs_ce"].groups[0].notes
    assert any(f"4 of 5 repeats complete; 1 on different data: repeat 0 (run {stray})" in note for note in notes)


def test_a_finished_run_without_the_metric_counts_as_failed(made):
    suite = made().finish_all(gain={"ce": 0.0, "kd": 0.02, "cc": 0.05, "cka": 0.03}, noise=0.001)
    suite.finish(suite.cells(objective="cc")[0]["id"], None)
    (group,) = tables_of(suite)["vs_ce"].groups
    row = next(row for row in group.rows if row[0].text() == "cc (taylor)")
    assert row[4].text() == "" and row[1].emphasis == "" and "†" in row[1].text()
    assert "† cc (taylor): 4 of 5 repeats complete; 1 without a value" in group.notes
    found = of_file("51_best_loss_has_empty_values")
    rows = texts(main_tables(found)[0].groups[0])
    assert "sp" in rows and rows["sp"][3] == "" and rows["rkd"][3] == "▲ better"


def test_the_caption_says_what_is_claimed_in_at_most_eight_lines_and_the_notes_what_is_assumed(made):
    suite = made(teachers=("big", "other")).finish_all()
    suite.manifest["margin"] = 0.002
    table = tables_of(suite)["vs_kd"]
    caption, notes = " ".join(table.caption), " ".join(table.notes)
    for words in (
        "top-1 on the test set at the last epoch (higher is better), mean ± standard deviation over 5 repeats",
        "paired by repeat (same initial weights, images, order)",
        "Holm-corrected for 5 comparisons (all pairs), 10 (pair by pair), fixed by the suite",
        "CI: 95 % confidence interval",
        "no mark: undecided, not equal",
        "points (all pairs) or ",
        "is found with a probability of 80 %",
        "Intervals do not include test-set sampling error",
        "Each teacher was trained once.",
    ):
        assert words in caption
    assert sum(len(textwrap.wrap(sentence, 110)) for sentence in table.caption) <= 8
    assert notes.startswith("Images: 300 for training, 900 for testing.")
    assert "Weights assumed, not published: cka. Assumed: the digits stand for natural images." in notes
    assert "Teacher big: top-1 96.10 %." in table.groups[1].facts and table.groups[0].facts == ()
    assert len({table.caption for table in tables_of(suite).values()}) == 1


def test_the_longest_caption_has_at_most_eight_lines():
    draw, rows = np.random.default_rng(0), []
    gains = {"ce": 0.0, "kd": 0.02, "near": 0.021, "other repeats": 0.01, "unstable": 0.02, "like kd": 0.02}
    for student, (objective, gain), repeat, seed in itertools.product(("a", "b"), gains.items(), range(6), range(2)):
        if (objective == "ce" and seed) or (objective == "kd" and repeat == 5 and seed):
            continue
        line = {"dataset": "digits", "teacher": None if objective == "ce" else "big", "student": student, "objective": objective}
        line |= {"repeat": repeat + 10 * (objective == "other repeats"), "teacher_seed": seed, "selection": "best test epoch"}
        fallen = 0.5 * (objective == "unstable" and repeat == 2)
        rows.append(line | {"top1_last": 0.5 + gain + 0.01 * (repeat % 3) + 0.0001 * draw.normal() - fallen})
    found = of_rows(pd.DataFrame(rows), "worst")
    for derived in (True, False):
        table = main_tables(study(found.runs, found.costs, replace(found.manifest, derived=derived, teacher_seeds=2)))[0]
        caption = " ".join(table.caption)
        for words in (
            "paired or Welch's t test",
            "△ better, ▽ worse",
            "! unstable: some runs collapse",
            "Bold",
            "underlined",
            "1 to 2 times",
            "80 %",
        ):
            assert words in caption
        assert sum(len(textwrap.wrap(sentence, 110)) for sentence in table.caption) <= 8


def test_the_caption_of_a_frame_file_claims_nothing_that_the_rows_do_not_hold():
    caption = " ".join(main_tables(of_file("kd2x4x8"))[0].caption)
    assert "at the last epoch" not in caption and "fixed by the suite" not in caption and "initial weights" not in caption
    assert "(higher is better; epoch not stated)" in caption and "from these rows" in caption and "trained" not in caption
    assert "trained 1 to 2 times" in " ".join(main_tables(of_file("46b_seed_missing_some"))[0].caption)


def test_repeats_without_a_number_are_counted_one_by_one():
    for table in main_tables(of_file("17_missing_repeat")):
        assert not any("of 1 repeats" in note for group in table.groups for note in group.notes)
        assert any("without a repeat number" in note for note in table.groups[0].notes)


def test_several_teachers_are_averaged_and_all_of_them_are_stated(made):
    suite = made(teacher_seeds=2).finish_all()
    first = suite.cells(role="teacher")[0]["id"]
    suite.finish(first, 0.5)
    suite.manifest["teacher_requirements"] = {first: {"metric": "top1", "min": 0.6}}
    table = tables_of(suite)["vs_ce"]
    assert "Teacher big: top-1 50.00 %, below the required 60.00 %; top-1 96.10 %." in table.groups[0].facts
    assert any("Each teacher was trained 2 times; a repeat is the mean over these." in sentence for sentence in table.caption)


def test_a_metric_that_is_no_percentage_is_printed_as_it_is(made):
    suite = made().finish_all()
    suite.manifest["metrics"].reverse()
    table = tables_of(suite)["vs_ce"]
    assert table.columns[1].title == "NLL" and table.columns[2].title == "Δ to ce [95 % CI]"
    assert texts(table.groups[0])["kd"][0] == "0.5000 ± 0.0000"
    assert "(lower is better)" in table.caption[0]


def test_a_p_value_shows_on_which_side_of_alpha_it_lies(made):
    manifest = made().checked()
    printed = {value: p(manifest, value).text() for value in (0.0497, 0.0503, 0.05, 0.04999996, 0.0494, 0.2, 0.0004, 1.0)}
    assert list(printed.values()) == ["0.0497", "0.0503", "0.050", "0.04999996"[:9] + "6", "0.049", "0.200", "<0.001", "1.000"]
    assert p(manifest, float("nan")).text() == "–"


def test_the_comparisons_have_both_intervals_and_both_families(made):
    suite = made(teachers=("big", "other")).finish_all(noise=0.01)
    suite.manifest["margin"] = 0.002
    found = study_of(suite)
    table = comparison_table(found)
    assert [len(group.rows) for group in table.groups] == [5, 5, 5] and table.groups[0].title.startswith("all pairs")
    titles = [column.title for column in table.columns]
    row = dict(zip(titles, (entry.text() for entry in table.groups[0].rows[0]), strict=True))
    line = found.overall.iloc[0]
    assert row["comparison"] == "kd - ce" and row["test"] == "paired t" and row["n"] == "5"
    assert row["simultaneous 95 % CI"] == f"[{100 * line['low_all']:+.2f}, {100 * line['high_all']:+.2f}]"
    assert row["Δ, points [95 % CI]"].endswith(f"[{100 * line['low']:+.2f}, {100 * line['high']:+.2f}]")
    assert line["low_all"] < line["low"] and "m = 10 (pair by pair), m = 5 (all pairs)" in table.caption[0]


def test_across_pairs_there_are_ranks_and_wins_and_intervals_for_new_pairs_from_three_teachers_on(made):
    few = across_table(study_of(made(teachers=("big", "other")).finish_all()))
    assert [column.title for column in few.columns] == ["loss", "pairs", "better / same / worse", "mean rank"]
    assert any("3 students or 3 teachers" in sentence for sentence in few.caption)
    many = made(suite="many", teachers=("a", "b", "c", "d"), students=("small", "tiny")).finish_all()
    table = across_table(study_of(many))
    assert len(table.columns) == 6 and [group.title for group in table.groups] == ["compared with ce", "compared with kd"]
    cka = texts(table.groups[0])["cka"]
    assert cka[:2] == ["8/8", "8 / 0 / 0"] and cka[3].startswith("+") and cka[4].startswith("[")
    assert texts(table.groups[1])["ce"][1] == "0 / 0 / 8"
    assert across_table(study_of(made(suite="one").finish_all())) is None


def test_choosing_pairs_afterwards_changes_no_p_value(made):
    suite = made(teachers=("big", "other")).finish_all(noise=0.01)
    found = study_of(suite)
    chosen = found.pairs["digits", "big", "small"]
    whole = found.comparisons[found.comparisons["teacher"] == "big"]
    assert [line["p_holm"] for line in chosen.tests.values()] == whole["p_holm"].tolist() and chosen.m == 10
    assert found.all_pairs.compared("ce", "kd")["p_holm"] == found.all_pairs.compared("kd", "ce")["p_holm"]
    assert chosen.compared("cc", "cka") is None  # neither is a baseline


@pytest.mark.slow
def test_ten_thousand_records_are_studied_in_seconds():
    names = [f"loss{number}" for number in range(19)]
    rows = [
        ("cifar100", None if name == "ce" else f"t{teacher}", f"s{student}", name, repeat)
        for name in ("ce", "kd", *names)
        for teacher in range(1 if name == "ce" else 10)
        for student in range(10)
        for repeat in range(5)
    ]
    runs = pd.DataFrame(rows, columns=["dataset", "teacher", "student", "objective", "repeat"])
    runs["top1_last"] = 0.7 + 0.01 * np.random.default_rng(0).normal(size=len(runs))
    found = of_rows(runs, "large")
    start = time.process_time()
    whole = study(found.runs, found.costs, found.manifest)
    assert len(report_tables(whole)) == 4 and warnings(whole) and findings(whole)
    assert time.process_time() - start < 12  # alone about 4 s


def test_costs_are_printed_for_each_block_and_devices_are_not_mixed_silently(made):
    suite = made(teachers=("big", "other"))
    suite.profile("ce", None)
    suite.profile("kd")
    suite.profile("cc", step_ms=1234.6, device="gpu")
    table = cost_table(costs(suite.store, suite.checked()), suite.checked())
    assert [list(texts(group)) for group in table.groups] == [["ce", "kd", "cc (taylor)"], ["ce"]]
    assert texts(table.groups[1])["ce"] == ["12.34 [11.34, 13.34]", "3.08", "3.08", "3.08", "0.50", "5,186", "–", "1,234,567", "2.50"]
    assert texts(table.groups[0])["cc (taylor)"][0] == "1235 [1234, 1236]"
    assert "different devices" in table.groups[0].notes[0]
    without = made(suite="without")
    assert cost_table(costs(without.store, without.checked()), without.checked()) is None


def test_what_is_incomplete_unstable_or_on_other_data_is_never_the_best(made):
    gain = {"ce": 0.0, "kd": 0.02, "cc": 0.05, "cka": 0.03}
    spoil = {
        "missing": lambda suite, cell: suite.store.file(cell, "record.json").unlink(),
        "diverged": lambda suite, cell: suite.finish(cell, None, outcome="diverged"),
        "without a value": lambda suite, cell: suite.finish(cell, None),
        "on other data": lambda suite, cell: suite.finish(cell, 0.95, fingerprint="beef"),
        "collapsed": lambda suite, cell: suite.finish(cell, 0.3),
    }
    for name, change in spoil.items():
        suite = made(suite=name, repeats=10, students=("small", "tiny")).finish_all(gain=gain, noise=0.001)
        change(suite, suite.cells(objective="cc", student="small")[0]["id"])
        found = study_of(suite)
        groups = [group for table in (*main_tables(found), paper_table(found)) for group in table.groups]
        bold = {(group.title, entry.text()[:2]) for group in groups for row in group.rows for entry in row if entry.emphasis}
        spoilt = [pair for pair in found.places if pair.block is None or pair.block.student == "small"]
        assert all(pair.summaries["cc"]["among_best"] == "" for pair in spoilt), name
        assert len(bold) >= 3, name
        if name == "collapsed":  # then it has no verdict anywhere, and no interval but in the frames
            every = [*main_tables(found), comparison_table(found), across_table(found)]
            rows = [row for table in every for group in table.groups for row in group.rows if "cc" in row[0].text()]
            assert not any("[" in entry.text() or "▲" in entry.text() for row in rows for entry in row)
            assert all(pair.summaries["cc"]["among_best"] == "" for pair in found.places)


def rows_of(values, short=(), left_out=(), collapse=None):
    """The study of a frame of two pairs: values (objective: mean), 5 repeats, but `short` ((objective, student): repeats)."""
    luck = np.random.default_rng(3).normal(0, 0.001, (2, len(values), 5))
    short = dict(short)
    rows = [
        {"dataset": "d", "teacher": None, "student": student, "objective": name, "repeat": repeat, "state": "finished"}
        | {"top1_last": 0.1 if (name, at, repeat) == (collapse, 0, 0) else value + luck[at, place, repeat]}
        for at, student in enumerate(("s1", "s2"))
        for place, (name, value) in enumerate(values.items())
        for repeat in range(short.get((name, student), 5))
        if (name, student) not in left_out
    ]
    found = of_rows(pd.DataFrame(rows), "file")
    return study(found.runs, found.costs, found.manifest)


def notes_of(found):
    return {table.name: table.groups[0].notes for table in main_tables(found)}


def test_a_verdict_over_fewer_pairs_names_their_number():
    found = rows_of({"ce": 0.7, "kd": 0.75, "sp": 0.76}, left_out=[("sp", "s2")])
    assert "better than ce: kd, sp (1 of 2 pairs)" in findings(found)[1]
    assert "† sp: Δ over the 1 of 2 pairs that have both losses" in notes_of(found)["vs_ce"]
    assert [row[2].marks for row in main_tables(found)[0].groups[0].rows] == [(), (), ("†",)]
    assert [row[1].text() for row in across_table(found).groups[0].rows] == ["2/2", "1/2"]


def test_a_fact_claims_nothing_where_nothing_was_tested_or_the_baseline_collapses():
    found = rows_of({"ce": 0.7, "kd": 0.75, "sp": 0.76}, {("ce", "s1"): 1, ("ce", "s2"): 1})
    assert (
        "not tested against ce: kd, sp (only 1 repeat is complete in all 2 pairs)" in findings(found)[1]
        and "no difference from ce" not in findings(found)[1]
    )
    found = rows_of({"ce": 0.7, "kd": 0.75, "sp": 0.76}, collapse="ce")
    assert "no verdict against ce: some runs of ce collapse" in findings(found)[1] and "no difference" not in findings(found)[1]
    for least in (1, 2):
        found = rows_of({"ce": 0.7, "kd": 0.75}, {(name, student): least for name in ("ce", "kd") for student in ("s1", "s2")})
        caption = " ".join(main_tables(found)[0].caption)
        assert "cannot be tested" in findings(found)[1] and "Nothing could be tested" in caption and "Holm" not in caption
        assert ("±" in caption) == (least == 2)


def test_reasons_name_the_loss_on_both_sides_of_a_comparison(made):
    suite = made(repeats=10).finish_all(noise=0.001, gain={"ce": 0.0, "kd": 0.03, "cc": 0.05, "cka": 0.0})
    suite.finish(suite.cells(objective="kd")[0]["id"], None, outcome="diverged")
    notes = notes_of(study_of(suite))
    assert "kd: no verdict, since 1 of 10 runs of kd failed" in notes["vs_ce"]
    assert "ce, cka: no verdict, since 1 of 10 runs of kd failed" in notes["vs_kd"]
    for cell in suite.cells(objective="kd"):
        suite.finish(cell["id"], None, outcome="diverged")
    notes = notes_of(study_of(suite))
    assert "‡ kd: not tested: no complete repeat of kd" in notes["vs_ce"]
    assert "‡ all: not tested: no complete repeat of kd" in notes["vs_kd"]


def test_underlining_is_explained_for_single_pairs_where_only_these_have_it(made):
    noisy = {"ce": 0.0, "kd": 0.02, "cc": 0.021, "cka": 0.0211}
    for teachers, words in ((("big",), "rows; underlined"), (("big", "other"), "rows; underlined (pair by pair)")):
        assert words in " ".join(tables_of(made(teachers=teachers).finish_all(gain=noisy))["vs_ce"].caption)


def test_repeats_that_lack_a_trained_teacher_are_incomplete(made):
    suite = made(teacher_seeds=2).finish_all()
    runs = frame(suite.store, suite.checked())
    cut = runs[(runs["objective"] != "kd") | (runs["repeat"] != 3) | (runs["teacher_seed"] != 1)]
    found = study(cut, costs(suite.store, suite.checked()), suite.checked())
    assert "† kd: 4 of 5 repeats with all trained teachers" in notes_of(found)["vs_ce"]
    assert "incomplete" in [one.code for one in warnings(found)] and "Incomplete: kd" in " ".join(findings(found))
    assert "trained 1 to 2 times" in " ".join(main_tables(found)[0].caption)


def test_verdicts_of_single_pairs_are_facts_where_all_pairs_have_none(made):
    suite = made(repeats=10, students=("small", "tiny")).finish_all(noise=0.001, gain=dict.fromkeys(("ce", "kd", "cc", "cka"), 0.0))
    for cell in suite.cells(objective="cc"):
        suite.finish(cell["id"], 0.9 + 0.001 * cell["repeat"] % 0.003 + (0.02 if cell["student"] == "small" else -0.02))
    assert (
        "In single pairs: better than ce: cc (taylor) (1 of 2 pairs); worse than ce: cc (taylor) (1 of 2 pairs)"
        in findings(study_of(suite))[1]
    )


def test_a_claim_over_several_datasets_names_them():
    rows = [
        {"dataset": dataset, "teacher": None, "student": "s", "objective": name, "repeat": repeat, "state": "finished", "top1_last": value}
        for dataset in ("d", "e")
        for name, value in (("ce", 0.7), ("kd", 0.75))
        for repeat in range(3)
    ]
    found = of_rows(pd.DataFrame(rows), "file")
    assert "for this student on these datasets only." in " ".join(findings(study(found.runs, found.costs, found.manifest)))
