"""The layout of a paper: what stands in which box, and what the marks and the caption say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.report.paper import paper_table
from kdbench.report.study import study
from kdbench.report.table import ABSENT, BEST, EMPTY, TIED
from kdbench.store.frame import costs, frame
from kdbench.store.from_file import read

TEACHERS = ("big", "other")
STUDENTS = ("small", "tiny")


def suite_of(made, **options):
    return made(**{"teachers": TEACHERS, "students": STUDENTS, **options})


def study_of(suite, among_best=None, verdict=None):
    """What the table is made of; emphasis and verdicts as given, by objective (a verdict by objective and baseline)."""
    manifest = suite.checked()
    found = study(frame(suite.store, manifest), costs(suite.store, manifest), manifest)
    pairs = zip(found.comparisons["objective"], found.comparisons["baseline"], strict=True)
    return replace(
        found,
        summaries=found.summaries.assign(among_best=[(among_best or {}).get(name, "") for name in found.summaries["objective"]]),
        comparisons=found.comparisons.assign(verdict=[(verdict or {}).get(pair, "undecided") for pair in pairs], verdict_why=""),
    )


def table_of(suite, **changes):
    return paper_table(study_of(suite, **changes))


def texts(table):
    return [[[entry.text() for entry in row] for row in group.rows] for group in table.groups]


def column(table, title):
    """The entries of a column, group by group."""
    place = [column.title for column in table.columns].index(title)
    return [[row[place] for row in group.rows] for group in table.groups]


def test_it_has_the_shape_of_table_1(made):
    table = table_of(suite_of(made).finish_all())
    titles = [column.title for column in table.columns]
    assert titles == ["teacher", "Student alone (ce)", "kd", "cc (taylor)", "cka", "Teacher alone"]
    assert [column.numeric for column in table.columns] == [False, True, True, True, True, True]
    assert [group.title for group in table.groups] == ["student small", "student tiny"]
    assert [[row[0] for row in group] for group in texts(table)] == [["big", "other"]] * 2
    assert (table.name, table.title) == ("paper", "top-1 in % of students on digits, by teacher and loss")


def test_a_worked_example_is_printed_as_by_hand(made):
    values = {"ce": [0.90, 0.91, 0.89], "kd": [0.91, 0.93, 0.92], "cc": [0.95, 0.96, 0.94], "cka": [0.90, 0.92, 0.90]}
    suite = suite_of(made, students=("small",), repeats=3)
    for cell in suite.manifest["cells"]:
        suite.finish(cell["id"], 0.961 if cell["role"] == "teacher" else values[cell["objective"]][cell["repeat"]])
    table = table_of(suite)
    row = ["90.00 ± 1.00", "92.00 ± 1.00", "95.00 ± 1.00", "90.67 ± 1.15", "96.10"]
    assert texts(table) == [[["big", *row], ["other", *row]]]


def test_the_student_alone_is_the_same_run_in_every_row_and_the_others_are_not(made):
    suite = suite_of(made).finish_all()
    table = table_of(suite)
    for group, student in zip(table.groups, STUDENTS, strict=True):
        alone, kd = ([row[place].runs for row in group.rows] for place in (1, 2))
        asked = tuple(cell["id"] for cell in suite.cells(student=student, objective="ce"))
        assert alone == [asked, asked]
        assert kd == [tuple(cell["id"] for cell in suite.cells(student=student, objective="kd", teacher=teacher)) for teacher in TEACHERS]


def test_the_order_of_the_frames_rows_does_not_matter(made):
    found = study_of(suite_of(made, teacher_seeds=2).finish_all(), among_best={"cka": "best"}, verdict={("cka", "kd"): "better"})
    shuffled = {name: getattr(found, name).sample(frac=1, random_state=1) for name in ("summaries", "students", "comparisons", "runs")}
    assert paper_table(found) == paper_table(replace(found, **shuffled))


def test_the_best_is_bold_and_what_is_tied_underlined_and_the_caption_says_so(made):
    table = table_of(suite_of(made).finish_all(), among_best={"cka": "best", "kd": "tied"})
    kinds = {title: {entry.emphasis for group in column(table, title) for entry in group} for title in ("cka", "kd", "cc (taylor)")}
    assert kinds == {"cka": {BEST}, "kd": {TIED}, "cc (taylor)": {""}}
    assert any("Bold: best mean" in sentence and "underlined" in sentence for sentence in table.caption)
    assert not any("Bold" in sentence for sentence in table_of(suite_of(made)).caption)


@pytest.mark.parametrize(
    ("verdict", "mark"),
    [
        ("better", "▲"),
        ("better but below the margin", "△"),
        ("equal", "="),
        ("worse but below the margin", "▽"),
        ("worse", "▼"),
        ("undecided", ""),
        ("unstable", "!"),
    ],
)
def test_marks_are_the_verdicts_against_kd(made, verdict, mark):
    table = table_of(suite_of(made).finish_all(), verdict={("cka", "kd"): verdict, ("cka", "ce"): "worse", ("cc", "ce"): "better"})
    assert {"".join(entry.marks) for group in column(table, "cka") for entry in group} == {mark}
    assert {entry.marks for group in column(table, "cc (taylor)") for entry in group} == {()}
    assert any(sentence.startswith("Marks compare each loss with kd in the same pair") for sentence in table.caption)
    assert any("▲ better" in sentence for sentence in table.caption)


def test_of_two_baselines_the_mirrored_verdict_is_printed_and_the_reference_has_none(made):
    table = table_of(suite_of(made).finish_all(), verdict={("kd", "ce"): "better"})
    assert {entry.marks for group in column(table, "Student alone (ce)") for entry in group} == {("▼",)}
    assert {entry.marks for group in column(table, "kd") for entry in group} == {()}


def test_without_kd_among_the_baselines_the_first_one_is_the_reference(made):
    suite = suite_of(made).finish_all()
    suite.manifest["baselines"] = ["ce"]
    table = table_of(suite, verdict={("cka", "ce"): "better", ("kd", "ce"): "worse"})
    assert {entry.marks for group in column(table, "kd") for entry in group} == {("▼",)}
    assert any(sentence.startswith("Marks compare each loss with ce") for sentence in table.caption)


def test_a_suite_without_baselines_has_no_marks_and_says_that_it_compares_nothing(made):
    suite = suite_of(made).finish_all()
    suite.manifest["baselines"] = []
    table = table_of(suite)
    assert not any(entry.marks for group in table.groups for row in group.rows for entry in row)
    assert any("Nothing is compared" in sentence for sentence in table.caption)


def test_runs_that_are_not_there_are_marked_and_explained_once(made):
    suite = suite_of(made).finish_all()
    first, second, *_ = suite.cells(objective="cc", teacher="other", student="small")
    suite.finish(first["id"], None, outcome="diverged")
    suite.store.file(second["id"], "record.json").unlink()
    (alone, *_) = suite.cells(objective="ce", student="tiny")
    suite.store.file(alone["id"], "record.json").unlink()
    table = table_of(suite)
    assert [["†" in entry.marks for entry in group] for group in column(table, "cc (taylor)")] == [[False, True], [False, False]]
    assert [["†" in entry.marks for entry in group] for group in column(table, "Student alone (ce)")] == [[False, False], [True, True]]
    small, tiny = table.groups
    assert small.notes == (
        f"† cc (taylor) from other: 3 of 5 repeats complete; 1 diverged: repeat 0 (run {first['id']}), diverged at step 120; 1 missing",
    )
    assert tiny.notes == ("† ce: 4 of 5 repeats complete; 1 missing",)


def test_what_could_not_be_tested_is_marked_and_explained(made):
    suite = suite_of(made, students=("small",)).finish_all()
    for cell in suite.cells(objective="cc", teacher="other"):
        suite.store.file(cell["id"], "record.json").unlink()
    (group,) = table_of(suite).groups
    assert [row[3].text() for row in group.rows][1] == f"{ABSENT}‡†"
    assert "‡" not in group.rows[0][3].text()
    (note,) = [note for note in group.notes if note.startswith("‡")]
    assert note.startswith("‡ cc (taylor) from other: not tested: ")


def test_one_repeat_has_no_spread_and_one_note_for_all_that_is_not_tested(made):
    (group,) = table_of(suite_of(made, students=("small",), repeats=1).finish_all()).groups
    assert all("±" not in entry.text() for row in group.rows for entry in row)
    (note,) = [note for note in group.notes if note.startswith("‡")]
    assert note.startswith("‡ all: not tested: ")


def test_a_suite_without_a_single_record_still_has_its_table(made):
    table = table_of(suite_of(made))
    assert {entry.text() for group in column(table, "kd") for entry in group} == {"–†"}
    assert {entry.text() for group in column(table, "Teacher alone") for entry in group} == {"–†"}
    assert any(note == "† teacher big: 0 of 1 trainings have a value; run 0000a0000000 missing" for note in table.groups[0].notes)


def test_several_teachers_of_a_name_are_a_mean_with_its_spread(made):
    suite = suite_of(made, teacher_seeds=2).finish_all()
    first, second = suite.cells(role="teacher", student="big")
    suite.finish(first["id"], 0.95)
    suite.finish(second["id"], 0.97)
    table = table_of(suite)
    (entry, _), _ = column(table, "Teacher alone")
    assert (entry.text(), entry.runs) == ("96.00 ± 1.41", (first["id"], second["id"]))
    assert any("trained 2 times" in sentence for sentence in table.caption)


def test_a_teacher_of_which_one_training_failed_is_marked(made):
    suite = suite_of(made, teacher_seeds=2).finish_all()
    first, _ = suite.cells(role="teacher", student="big")
    suite.finish(first["id"], None, outcome="diverged")
    table = table_of(suite)
    assert column(table, "Teacher alone")[0][0].text() == "96.10†"
    assert any(note.startswith("† teacher big: 1 of 2 trainings have a value; run") for note in table.groups[0].notes)


def test_a_teacher_below_what_the_suite_requires_is_named(made):
    suite = suite_of(made, students=("small",)).finish_all()
    (first,) = suite.cells(role="teacher", student="big")
    suite.manifest["teacher_requirements"] = {first["id"]: {"metric": "top1", "min": 0.97}}
    (group,) = table_of(suite).groups
    assert "Teacher big: top-1 96.10 %, below the required 97.00 %." in group.facts


def test_what_the_suite_excludes_is_an_empty_box(made):
    suite = suite_of(made).finish_all()
    gone = suite.cells(objective="cka", teacher="other", student="tiny")
    suite.manifest["cells"] = [cell for cell in suite.manifest["cells"] if cell not in gone]
    assert column(table_of(suite), "cka")[1][1] == EMPTY


def test_objectives_without_a_teacher_come_first_whatever_the_suite_says(made):
    objectives = (("kd", "KD", "published"), ("ce", "CE", "published"))
    table = table_of(suite_of(made, objectives=objectives).finish_all())
    assert [column.title for column in table.columns] == ["teacher", "Student alone (CE)", "KD", "Teacher alone"]


def test_two_datasets_are_named_in_the_groups(made):
    suite = suite_of(made).finish_all()
    for line in (*suite.manifest["blocks"], *suite.manifest["cells"]):
        line["dataset"] = "digits" if line["student"] != "tiny" else "letters"
    table = table_of(suite)
    assert [group.title for group in table.groups] == ["digits · student small", "letters · student tiny"]
    assert table.title == "top-1 in % of students, by teacher and loss"


def test_a_metric_that_is_no_percentage_is_printed_as_it_is(made):
    suite = suite_of(made).finish_all()
    suite.manifest["metrics"].reverse()
    table = table_of(suite)
    assert table.title.startswith("NLL of students") and "(lower is better)" in table.caption[0]
    assert column(table, "Teacher alone")[0][0].text() == "0.5000"


def test_the_caption_gives_repeats_family_test_teachers_weights_and_assumptions(made):
    table = table_of(suite_of(made).finish_all())
    caption = " ".join((*table.caption, *table.notes))
    for words in (
        "at the last epoch",
        "over 5 repeats",
        "Holm-corrected for 5 comparisons (all pairs), 20 (pair by pair), fixed by the suite",
        "two-sided paired t",
        "Each teacher was trained once.",
        "Weights assumed, not published: cka.",
        "Assumed: the digits stand for natural images",
        "Intervals do not include test-set sampling error.",
    ):
        assert words in caption
    assert len(table.caption) <= 8


def test_the_paper_layout_of_a_frame_file_claims_nothing_that_the_rows_do_not_hold():
    found = read(Path(__file__).parent / "frames" / "kd2x4x8.csv")
    table = paper_table(study(found.runs, found.costs, found.manifest))
    caption = " ".join(table.caption)
    assert "at the last epoch" not in caption and "suite fixes" not in caption and "fixed by the suite" not in caption
    assert "from these rows" in caption and "(higher is better; epoch not stated)" in caption
    assert [column.title for column in table.columns][-1] == "CRD"  # no column of teachers, of which there is no row
