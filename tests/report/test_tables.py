"""The tables: what they print, what they mark, and what they claim."""

from __future__ import annotations

import pytest

from kdbench.report.accuracy import accuracy
from kdbench.report.comparison import comparisons, student_runs
from kdbench.report.cost import cost
from kdbench.report.frame import costs, frame
from kdbench.report.study import study

WORKED = {"ce": [0.90, 0.91, 0.89], "kd": [0.91, 0.93, 0.92], "cc": [0.95, 0.96, 0.94], "cka": [0.90, 0.92, 0.90]}


def worked(made, values=None, **options):
    """A suite whose values are given: {objective: by repeat}."""
    suite = made(repeats=3, **options)
    for cell in suite.manifest["cells"]:
        suite.finish(cell["id"], 0.961 if cell["role"] == "teacher" else (values or WORKED)[cell["objective"]][cell["repeat"]])
    return suite


def table_of(suite, **options):
    return accuracy(study_of(suite), **options)


def study_of(suite):
    return study(frame(suite.store, suite.checked()), costs(suite.store, suite.checked()), suite.checked())


def texts(group):
    return {row[0].text(): [entry.text() for entry in row[1:]] for row in group.rows}


def test_a_worked_example_is_printed_as_by_hand(made):
    table = table_of(worked(made))
    assert [column.title for column in table.columns] == [
        "objective",
        "top-1, %",
        "n",
        "Δ to ce, points [95 %]",
        "p (Holm)",
        "Δ to kd, points [95 %]",
        "p (Holm)",
    ]
    (group,) = table.groups
    assert group.title == "digits · student small · teacher big"
    # With 2 degrees of freedom p = 1 - t / sqrt(t² + 2), so cc - kd .0351, cka - kd .0572, kd - ce .0742, cka - ce .1835, and
    # cc - ce counts as 1. By Holm in each direction over m = 5: greater .0351 * 5, .0742 * 4, .1835 * 3; less .0572 * 5. Nothing is
    # claimed, so every interval is at .05 / 5, where t(2) is 9.925: half-widths 9.925 * sd / sqrt 3.
    assert texts(group) == {
        "ce": ["90.00 ± 1.00", "3/3", "", "", "-2.00 [-7.73, +3.73]", "0.297"],
        "kd": ["92.00 ± 1.00", "3/3", "+2.00 [-3.73, +7.73]", "0.297", "", ""],
        "cc (taylor)": ["95.00 ± 1.00", "3/3", "+5.00", "–‡", "+3.00 [-2.73, +8.73]", "0.175"],
        "cka": ["90.67 ± 1.15", "3/3", "+0.67 [-2.64, +3.97]", "0.551", "-1.33 [-4.64, +1.97]", "0.286"],
    }
    assert "‡ cc (taylor) - ce: not tested, the same difference in all 3 repeats: no spread to test against" in group.notes


def test_rows_follow_the_suite_and_not_the_frame(made):
    suite = made(teachers=("big", "other"), students=("small", "tiny")).finish_all()
    runs, manifest = frame(suite.store, suite.checked()), suite.checked()
    measured = costs(suite.store, manifest)
    table = accuracy(study(runs, measured, manifest))
    assert accuracy(study(runs.sample(frac=1, random_state=0), measured, manifest)) == table
    assert [group.title for group in table.groups] == [
        f"digits · student {block['student']} · teacher {block['teacher']}" for block in suite.manifest["blocks"]
    ]
    assert all(list(texts(group)) == ["ce", "kd", "cc (taylor)", "cka"] for group in table.groups)


def test_neither_labels_nor_what_is_shown_change_a_number(made):
    suite = made(teachers=("big", "other")).finish_all(noise=0.01)
    whole = table_of(suite)
    part = table_of(suite, shown=["cc"])
    for every, few in zip(whole.groups, part.groups, strict=True):
        assert texts(few) == {"cc (taylor)": texts(every)["cc (taylor)"]}
    for objective in suite.manifest["objectives"]:
        objective["label"] = objective["label"][::-1]
    numbers = [[row[1:] for row in group.rows] for group in table_of(suite).groups]
    assert numbers == [[row[1:] for row in group.rows] for group in whole.groups]


def test_holm_runs_over_every_comparison_of_the_suite_also_those_that_never_ran(made):
    suite = made(teachers=("big", "other")).finish_all(noise=0.01)
    for cell in suite.cells(teacher="other"):
        suite.store.file(cell["id"], "record.json").unlink()
    found = comparisons(student_runs(frame(suite.store, suite.checked()), suite.checked()), suite.checked())
    assert len(found) == 10
    assert found["p_holm"].isna().sum() == found["p"].isna().sum() == 5
    assert found["p_holm"].min() == pytest.approx(10 * found["p"].min())
    assert any("m = 10 comparisons" in sentence for sentence in table_of(suite).caption)


def test_the_comparison_of_two_baselines_is_printed_from_both_sides(made):
    rows = texts(table_of(made().finish_all()).groups[0])
    kd, ce = rows["kd"], rows["ce"]
    assert kd[2].startswith("+") and ce[4].startswith("-")
    assert kd[3] == ce[5]
    assert (kd[4:], ce[2:4]) == (["", ""], ["", ""])


def test_verdicts_are_marked_on_the_differences_and_mirrored_for_the_other_baseline(made):
    suite = made(repeats=10)
    suite.manifest["margin"] = 0.003
    suite.finish_all(noise=0.001, gain={"ce": 0.0, "kd": 0.03, "cc": 0.03, "cka": 0.0315})
    rows = texts(table_of(suite).groups[0])
    assert "▲" in rows["kd"][2] and "▼" in rows["ce"][4]
    assert "▲" in rows["cka"][2] and "△" in rows["cka"][4]  # better than kd, and shown to be by less than .3 points
    assert "=" in rows["cc (taylor)"][4]
    suite.manifest["margin"] = None
    assert "=" not in "".join(text for row in texts(table_of(suite).groups[0]).values() for text in row)


def test_a_loss_with_a_failed_run_is_never_called_better(made):
    suite = made(repeats=10).finish_all(noise=0.001, gain={"ce": 0.0, "kd": 0.03, "cc": 0.05, "cka": 0.0})
    assert "▲" in texts(table_of(suite).groups[0])["cc (taylor)"][2]
    suite.finish(suite.cells(objective="cc")[0]["id"], None, outcome="diverged")
    table = table_of(suite)
    assert "▲" not in texts(table.groups[0])["cc (taylor)"][2]
    assert [row[1].emphasis for row in table.groups[0].rows] == ["", "best", "", ""]  # nor is its mean the best


def test_the_best_is_bold_and_what_cannot_be_told_from_it_underlined(made):
    suite = made(repeats=10).finish_all(noise=0.001, gain={"ce": 0.0, "kd": 0.03, "cc": 0.0301, "cka": 0.02})
    rows = {row[0].text(): row[1].emphasis for row in table_of(suite).groups[0].rows}
    assert rows["ce"] == rows["cka"] == "" and {rows["kd"], rows["cc (taylor)"]} == {"best", "tied"}


def test_runs_that_are_not_there_are_counted_and_explained(made):
    suite = made().finish_all()
    first, second, third, *_ = suite.cells(objective="cc")
    suite.finish(first["id"], None, outcome="diverged")
    suite.store.file(second["id"], "record.json").unlink()
    suite.store.put_failure(second["id"], {"class": "OutOfMemoryError", "message": "no memory\nmore lines"})
    suite.store.file(third["id"], "record.json").unlink()
    (group,) = table_of(suite).groups
    assert texts(group)["cc (taylor)"][1] == "2/5†"
    assert group.notes == (
        f"† cc (taylor): 2 of 5 repeats complete; 1 diverged: repeat 0 (run {first['id']}), diverged at step 120; "
        f"1 failed: repeat 1 (run {second['id']}), OutOfMemoryError: no memory; 1 missing",
        "‡ cc (taylor) - ce, cc (taylor) - kd: not tested, two pairs only: fewer than three are not tested",
    )


def test_an_objective_without_any_run_shows_as_such(made):
    suite = made().finish_all()
    for cell in suite.cells(objective="cc"):
        suite.store.file(cell["id"], "record.json").unlink()
    suite.manifest["cells"] = [cell for cell in suite.manifest["cells"] if cell["objective"] != "cka"]
    (group,) = table_of(suite).groups
    assert texts(group)["cc (taylor)"] == ["–", "0/5†", "–", "–‡", "–", "–‡"]
    assert "cka" not in texts(group)  # excluded, not missing
    assert "† cc (taylor): 0 of 5 repeats complete; 5 missing" in group.notes


def test_one_repeat_has_no_spread_and_no_test(made):
    suite = made(repeats=1).finish_all()
    (group,) = table_of(suite).groups
    assert "±" not in texts(group)["cc (taylor)"][0]
    assert texts(group)["cc (taylor)"][3] == "–‡"
    assert any("one pair only" in note for note in group.notes)
    assert "No comparison of this block can be tested: see ‡." in group.facts


def test_a_suite_without_a_single_record_still_has_its_table(made):
    (group,) = table_of(made()).groups
    assert all(row[2] == "0/5†" or row[1] == "0/5†" for row in texts(group).values())
    assert "† ce, kd, cc (taylor), cka: 0 of 5 repeats complete; 5 missing" in group.notes


def test_cross_entropy_stands_in_both_blocks_with_the_same_runs(made):
    suite = made(teachers=("big", "other")).finish_all()
    one, other = (group.rows[0] for group in table_of(suite).groups)
    assert one[1] == other[1] and len(one[1].runs) == 5


def test_an_entry_knows_the_runs_behind_it(made):
    suite = made().finish_all()
    row = table_of(suite).groups[0].rows[2]
    mine = {cell["id"] for cell in suite.cells(objective="cc")}
    assert set(row[1].runs) == mine
    assert set(row[3].runs) == mine | {cell["id"] for cell in suite.cells(objective="ce", role="student")}


def test_runs_on_different_data_are_neither_averaged_nor_compared(made):
    suite = made().finish_all()
    suite.finish(suite.cells(objective="cc")[0]["id"], 0.93, fingerprint="beef")
    (group,) = table_of(suite).groups
    assert texts(group)["kd"] == ["–", "0/5†", "–", "–‡", "", ""]
    assert any("different data" in fact for fact in group.facts)


def test_a_finished_run_without_the_metric_is_no_number(made):
    suite = made().finish_all()
    suite.finish(suite.cells(objective="cc")[0]["id"], None, n_train=None, n_test=None)
    (group,) = table_of(suite).groups
    assert texts(group)["cc (taylor)"][1] == "4/5†"
    assert group.notes == ("† cc (taylor): 4 of 5 repeats complete; 1 without a value",)


def test_the_caption_says_what_is_claimed_and_what_is_assumed(made):
    suite = made().finish_all()
    suite.manifest["margin"] = 0.002
    suite.manifest["baselines"].append("rkd")
    table = table_of(suite)
    caption, facts = " ".join(table.caption), " ".join(table.groups[0].facts)
    for said in (
        "top-1 on the test set at the last epoch (higher is better)",
        "sample standard deviation",
        "the same initial weights and the same images in the same order",
        "m = 5 comparisons",
        "95 % simultaneous intervals",
        "no mark: undecided, which is not equal",
        "All claims are for this test set",
        "For these teachers: one trained teacher per pair",
        "Weights assumed, not published: cka.",
        "Assumed: the digits stand for natural images",
        "The baseline rkd is not among the objectives of this suite",
    ):
        assert said in caption
    assert "Teacher big: top-1 96.10 %." in facts
    assert "300 training images, 900 test images." in facts
    assert "With n = 5" in facts and "80 % power" in facts


def test_several_teachers_are_averaged_and_all_of_them_are_stated(made):
    suite = made(teacher_seeds=2).finish_all()
    first = suite.cells(role="teacher")[0]["id"]
    suite.finish(first, 0.5)
    suite.manifest["gates"] = {first: {"metric": "top1", "min": 0.6}}
    table = table_of(suite)
    assert "Teacher big: top-1 50.00 %, below its gate of 60.00 %; top-1 96.10 %." in table.groups[0].facts
    assert texts(table.groups[0])["cc (taylor)"][1] == "5/5"
    assert any("the mean over 2 trained teachers" in sentence for sentence in table.caption)


def test_a_metric_that_is_no_percentage_is_printed_as_it_is(made):
    suite = made().finish_all()
    suite.manifest["metrics"].reverse()
    table = table_of(suite)
    assert table.columns[1].title == "NLL" and table.columns[3].title == "Δ to ce [95 %]"
    assert texts(table.groups[0])["kd"][0] == "0.5000 ± 0.0000"
    assert "(lower is better)" in table.caption[0]


def test_costs_are_printed_for_each_block_and_devices_are_not_mixed_silently(made):
    suite = made(teachers=("big", "other"))
    suite.profile("ce", None)
    suite.profile("kd")
    suite.profile("cc", step_ms=1234.6, device="gpu")
    table = cost(costs(suite.store, suite.checked()), suite.checked())
    assert [list(texts(group)) for group in table.groups] == [["ce", "kd", "cc (taylor)"], ["ce"]]
    assert texts(table.groups[1])["ce"] == [
        "12.34 [11.34, 13.34]",
        "3.08",
        "3.08",
        "3.08",
        "0.50",
        "5,186",
        "–",
        "1,234,567",
        "2.50",
    ]
    assert texts(table.groups[0])["cc (taylor)"][0] == "1235 [1234, 1236]"
    assert "different devices" in table.groups[0].notes[0]


def test_a_suite_without_profiles_has_no_table_of_costs(made):
    suite = made()
    assert cost(costs(suite.store, suite.checked()), suite.checked()) is None
