"""Warnings: each is raised by what it is about, by nothing else, and fails a strict report."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest

from kdbench.errors import RequestError
from kdbench.report import verb
from kdbench.report.block_warnings import expected_maximum, largest_ratio
from kdbench.report.frame import costs, frame
from kdbench.report.study import study
from kdbench.report.warnings import CODES, as_json, unaccepted, warnings
from kdbench.report.write import Asked


def study_of(suite, **changed):
    """The study of a suite on disk; keyword arguments replace whole columns of its frame (a function of the frame gives the values)."""
    runs = frame(suite.store, suite.checked())
    runs = runs.assign(**{name: values(runs) if callable(values) else values for name, values in changed.items()})
    return study(runs, costs(suite.store, suite.checked()), suite.checked())


def codes(found):
    return {owed.code for owed in found}


@pytest.fixture
def clean(made):
    """A suite that owes its reader nothing: ten repeats that go together, effects that are large beside their noise."""
    suite = made(repeats=10)
    suite.manifest["margin"] = 0.01
    return suite.finish_all(noise=0.004)


def test_a_clean_suite_owes_nothing(clean):
    assert warnings(study_of(clean)) == ()


def test_missing_and_failed_runs_are_told_by_loss(clean):
    first, second, *_ = clean.cells(objective="cc")
    clean.finish(first["id"], None, outcome="diverged")
    clean.store.file(second["id"], "record.json").unlink()
    found = {owed.code: owed for owed in warnings(study_of(clean))}
    assert found["incomplete"].message == "not every repeat is complete: cc (taylor) 8 of 10"
    assert found["survivors"].message.startswith("whether a run ends well depends on the loss (cc (taylor) 1 of 10 failed)")
    assert found["incomplete"].where == "digits · student small · teacher big"


def test_two_repeats_are_too_few(made):
    found = {owed.code: owed for owed in warnings(study_of(made(repeats=2).finish_all()))}
    assert found["few-repeats"].message == "2 repeats: fewer than three are not tested"


def test_repeats_that_do_not_pair_are_told(clean):
    apart = study_of(clean, repeat=lambda runs: (runs["repeat"] + 100 * (runs["objective"] == "cc")).astype("Int64"))
    found = [owed for owed in warnings(apart) if owed.code == "unpaired"]
    assert [owed.message for owed in found] == [
        "repeats do not pair, so Welch's test, whose level is approximate, stands for the paired one: cc (taylor) - ce, cc (taylor) - kd"
    ]
    some = study_of(clean, repeat=lambda runs: (runs["repeat"] + 5 * (runs["objective"] == "cc")).astype("Int64"))
    assert "unequal-repeats" in codes(warnings(some))


def test_the_best_of_many_is_owed_its_luck_unless_the_margin_covers_it(made):
    # Spread .02 over 5 repeats: the best of four equal objectives is 1.03 * .02 / sqrt(2) / sqrt(5) too good, far above .002.
    noisy = made().finish_all(noise=0.02)
    noisy.manifest["margin"] = 0.002
    (owed,) = [owed for owed in warnings(study_of(noisy)) if owed.code == "best-of-many"]
    assert owed.message.startswith("the best of 4 objectives was found by looking at these runs")
    noisy.manifest["margin"] = 0.05
    assert "best-of-many" not in codes(warnings(study_of(noisy)))


@pytest.mark.parametrize(("k", "expected"), [(2, 0.5642), (5, 1.1630), (10, 1.5388), (20, 1.8675)])
def test_the_expected_maximum_is_that_of_the_tables(k, expected):
    assert expected_maximum(k) == pytest.approx(expected, abs=1e-4)


def test_tuning_some_losses_only_is_told(clean):
    clean.manifest["objectives"][3]["weight_from"] = "tuned"
    (owed,) = warnings(study_of(clean))
    assert owed.message == "weights were tuned for cka and not for kd, cc (taylor)"


def test_selection_on_the_test_set_and_a_mixture_of_rules_are_told(clean):
    every = warnings(study_of(clean, selection="best test epoch"))
    assert codes(every) == {"selected-on-test"} and len(every) == 1
    mixed = warnings(study_of(clean, selection=lambda runs: ["last epoch" if place % 2 else "best val" for place in range(len(runs))]))
    assert [owed.message for owed in mixed] == ["one table mixes rules of selection: best val, last epoch"]
    assert warnings(study_of(clean, selection="last epoch")) == ()


def test_repeats_that_do_not_differ_and_equal_weights_are_told(clean):
    for cell in clean.cells(objective="cka"):
        clean.finish(cell["id"], 0.95)
    assert "no-spread" in codes(warnings(study_of(clean)))
    twins = warnings(study_of(clean, weights_digest=lambda runs: [f"w{min(place, 20)}" for place in range(len(runs))]))
    assert sum(owed.code == "duplicated" for owed in twins) == 1
    ids = [owed.message for owed in twins if owed.code == "duplicated"][0]
    assert ids.count("0000a00") == len(frame(clean.store, clean.checked())) - 20


def test_a_ceiling_is_told(made):
    suite = made(repeats=10).finish_all(noise=0.0004, gain={"ce": 0.0, "kd": 0.05, "cc": 0.07, "cka": 0.0975})
    assert [owed.message for owed in warnings(study_of(suite)) if owed.code == "ceiling"] == [
        "at the ceiling of top-1, where differences have no room: cka"
    ]


def test_a_noisy_loss_is_told(clean):
    for place, cell in enumerate(clean.cells(objective="cc")):
        clean.finish(cell["id"], 0.9 + 0.05 * (place % 2))
    found = {owed.code: owed.message for owed in warnings(study_of(clean))}
    assert "the sd of cc (taylor) is" in found["unequal-spread"]


def test_runs_that_do_not_go_together_are_told(made):
    suite = made(repeats=12)
    suite.finish_all(noise=0.004)
    for place, cell in enumerate(suite.cells(role="student")):
        suite.finish(cell["id"], 0.9 + 0.01 * ((place * 7919) % 13) / 13)
    assert "pairing" in codes(warnings(study_of(suite)))


@pytest.mark.parametrize(
    ("column", "code", "told"),
    [
        ("device", "mixed-devices", "runs mix devices: a, b"),
        ("torch", "mixed-versions", "runs mix versions of torch: a, b"),
        ("timm", "mixed-versions", "runs mix versions of timm: a, b"),
        ("code_version", "mixed-code", "runs mix versions of the code: a, b"),
    ],
)
def test_mixed_circumstances_are_told(clean, column, code, told):
    found = warnings(study_of(clean, **{column: lambda runs: ["ab"[place % 2] for place in range(len(runs))]}))
    assert [(owed.code, owed.message, owed.where) for owed in found] == [(code, told, "")]


def test_code_with_changes_beside_its_commit_is_told(clean):
    assert codes(warnings(study_of(clean, code_version="abc-dirty"))) == {"changed-code"}


def test_different_data_are_told(clean):
    cell = clean.cells(objective="cc")[0]
    clean.finish(cell["id"], 0.9, fingerprint="beef")
    assert "mixed-data" in codes(warnings(study_of(clean)))


def test_a_term_whose_gradient_never_mattered_is_told(clean):
    idle = warnings(study_of(clean, least_gradient=lambda runs: (runs["objective"] == "cka").map({True: 0.004, False: 0.5})))
    assert [owed.message for owed in idle] == [
        "a term of cka did nothing: its gradient never exceeded 0.4 % of the task's; its weight is too small"
    ]


def test_a_table_without_plain_kd_is_told(made):
    suite = made(repeats=10, objectives=(("ce", "ce", "published"), ("cka", "cka", "assumed")))
    suite.manifest["margin"] = 0.01
    assert codes(warnings(study_of(suite.finish_all()))) == {"no-kd"}


def test_blocks_that_share_a_student_or_a_teacher_are_told(made):
    suite = made(teachers=("big", "other"), students=("small", "tiny"), repeats=10)
    suite.manifest["margin"] = 0.01
    found = {owed.code: owed.message for owed in warnings(study_of(suite.finish_all()))}
    assert "crossed (2 x 2)" in found["shared-blocks"] and "rank-test" not in found


def test_a_teacher_below_its_gate_is_told(clean):
    (teacher,) = clean.cells(role="teacher")
    clean.manifest["gates"][teacher["id"]] = {"metric": "top1", "min": 0.99}
    assert codes(warnings(study_of(clean))) == {"teacher"}


def test_a_part_whose_source_changed_since_is_told(clean):
    runs = study_of(clean, sources="loss kd 111; task classification 222")
    same = {"loss kd": "111", "task classification": "222"}
    assert warnings(runs, same) == ()
    (owed,) = warnings(runs, {**same, "loss kd": "999"})
    assert (owed.code, owed.message) == ("source-changed", "the source of the loss kd changed since these runs")
    half = study_of(clean, sources=lambda runs: [f"loss kd {place % 2}" for place in range(len(runs))])
    (owed,) = warnings(half, {"loss kd": "1"})
    assert "changed between these runs" in owed.message


def test_costs_taken_beside_other_work_are_told(clean):
    clean.profile("kd")
    whole = study_of(clean)
    measured = whole.costs.assign(others_at_work=0.6)
    found = warnings(study(whole.runs, measured, clean.checked()))
    assert codes(found) == {"shared-node"} and "1 of 1 costs" in found[0].message


def test_every_code_is_known_and_every_warning_is_for_machines_too(made):
    suite = made(repeats=2).finish_all()
    found = warnings(study_of(suite))
    assert codes(found) <= set(CODES)
    assert json.loads(json.dumps(as_json(found)))[0].keys() == {"code", "where", "message"}
    assert unaccepted(found, tuple(CODES)) == []


def strict(suite, *accepted, strict=True):
    out = io.StringIO()
    status = verb.run(suite.store.root, [suite.suite], [suite.suite], None, Asked(images=False), strict, accepted, out)
    return status, out.getvalue()


def test_strict_fails_on_a_warning_and_passes_one_that_was_accepted(made):
    suite = made(repeats=2).finish_all().write()
    status, told = strict(suite)
    assert status == 1 and "few-repeats" in told.splitlines()[-1]
    every = [entry["code"] for entry in json.loads((suite.store.suite_folder("quickstart") / "report/warnings.json").read_text())]
    assert strict(suite, *every)[0] == 0
    assert strict(suite, strict=False)[0] == 0
    with pytest.raises(RequestError, match="few-repeats"):
        strict(suite, "few-repeat")


def test_strict_passes_a_clean_suite(clean):
    status, told = strict(clean.write())
    assert status == 0 and "strict" not in told


def test_warnings_stand_in_every_format(made):
    suite = made(repeats=2).finish_all().write()
    out = io.StringIO()
    verb.run(suite.store.root, [suite.suite], [suite.suite], None, Asked(page=True, images=False), False, (), out)
    folder = suite.store.suite_folder("quickstart") / "report"
    texts = [out.getvalue(), *((folder / name).read_text() for name in ("report.md", "report.tex", "report.html", "warnings.json"))]
    assert all("few-repeats" in text for text in texts)
    assert isinstance(pd.read_csv(folder / "frame.csv"), pd.DataFrame)


def test_a_rank_test_over_two_students_is_said_to_be_mute(made):
    suite = made(students=("small", "tiny"), repeats=10)
    suite.manifest["margin"] = 0.01
    found = [owed.message for owed in warnings(study_of(suite.finish_all())) if owed.code == "rank-test"]
    assert found and all("the least p that any data can give is" in message for message in found)


def test_unequal_spread_is_only_told_where_equal_noise_would_seldom_look_so(made):
    assert [round(largest_ratio(k, 5), 1) for k in (2, 10)] == [3.1, 6.8]  # the roots of Hartley's F max: 9.60 and 46
    told = 0
    for seed in range(40):
        suite = made(suite=f"s{seed}", repeats=5).finish_all(seed=seed, noise=0.004)
        told += "unequal-spread" in codes(warnings(study_of(suite)))
    assert told <= 6  # one in 20, as luck has it


def test_a_family_made_from_rows_is_told(clean):
    clean.manifest["derived"] = True
    assert codes(warnings(study_of(clean))) == {"derived-family"}


def test_the_latest_epoch_is_no_choice_on_the_test_set(clean):
    assert warnings(study_of(clean, selection="latest epoch")) == ()


def test_a_part_that_is_gone_is_told(clean):
    (owed,) = warnings(study_of(clean, sources="loss lost 111"), {"loss lost": None})
    assert "no longer here" in owed.message
