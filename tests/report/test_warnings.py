"""Warnings: each is raised by what it is about, by nothing else, and fails a strict report."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest

from kdbench.errors import UsageError
from kdbench.report import report_command
from kdbench.report.study import study
from kdbench.report.warnings import CODES, RETIRED, warnings
from kdbench.report.write import ReportOptions
from kdbench.store.frame import costs, frame
from kdbench.store.from_file import read


def study_of(suite, **changed):
    """The study of a suite on disk; keyword arguments replace whole columns of its frame (a function of the frame gives the values)."""
    runs = frame(suite.store, suite.checked())
    runs = runs.assign(**{name: values(runs) if callable(values) else values for name, values in changed.items()})
    return study(runs, costs(suite.store, suite.checked()), suite.checked())


def codes(found):
    return {one.code for one in found}


@pytest.fixture
def clean(made):
    """A suite without a warning: ten repeats that pair, effects that are large beside their noise."""
    suite = made(repeats=10)
    suite.manifest["margin"] = 0.01
    return suite.finish_all(noise=0.004)


def test_a_clean_suite_has_no_warning(clean):
    assert warnings(study_of(clean)) == ()


def messages(found):
    """The messages by code."""
    texts: dict[str, list[str]] = {}
    for one in found:
        texts.setdefault(one.code, []).append(one.message)
    return texts


def test_missing_and_failed_runs_are_one_warning_with_what_to_do(made, clean):
    first, second, *_ = clean.cells(objective="cc")
    clean.finish(first["id"], None, outcome="diverged")
    clean.store.file(second["id"], "record.json").unlink()
    text = "not all repeats are complete for cc (taylor): run the suite again, or see the notes marked †"
    assert messages(warnings(study_of(clean))) == {"incomplete": [text]}
    several = made(suite="several", teachers=("big", "other"), repeats=10)
    several.manifest["margin"] = 0.01
    several.finish_all()
    for cell in (several.cells(objective="ce")[0], several.cells(objective="cc", teacher="big")[0], several.cells(objective="kd")[0]):
        several.store.file(cell["id"], "record.json").unlink()
    (text,) = messages(warnings(study_of(several)))["incomplete"]
    assert text.startswith("not all repeats are complete for ce in 2 of 2 pairs; kd, cc (taylor) in 1 of 2 pairs: ")


def test_two_repeats_are_too_few(made):
    found = messages(warnings(study_of(made(repeats=2, teachers=("big", "other")).finish_all())))
    assert found["few-repeats"] == ["2 repeats: a test needs at least three, and five or more to find most differences"]


def test_repeats_that_do_not_pair_are_named(clean):
    apart = study_of(clean, repeat=lambda runs: (runs["repeat"] + 100 * (runs["objective"] == "cc")).astype("Int64"))
    (text,) = messages(warnings(apart))["unpaired"]
    assert text.startswith("cc (taylor): no repeats in common with the baseline, so the test is Welch's, which is approximate")


def test_runs_that_collapse_are_named_with_loss_pairs_and_repeats(made):
    suite = made(repeats=10, teachers=("big", "other")).finish_all(noise=0.004)
    for place in (2, 7):
        suite.finish(suite.cells(objective="cc", teacher="big")[place]["id"], 0.4 + place / 100)
    (text,) = messages(warnings(study_of(suite)))["unstable"]
    assert text.startswith(
        "some runs are far from the others of their loss, or spread far more than other losses: cc (taylor) (2 runs in 1 of 2 pairs, repeats 2, 7); no verdict"
    )
    assert "lower their weight or learning rate" in text


def test_identical_runs_under_two_names_are_named_also_in_frame_files(made, tmp_path):
    suite = made(repeats=5, objectives=(("ce", "ce", "published"), ("kd", "kd", "published"), ("kd:crd", "kd (crd)", "published")))
    suite.finish_all(gain={"ce": 0.0, "kd": 0.02, "kd:crd": 0.02})
    for one, other in zip(suite.cells(objective="kd"), suite.cells(objective="kd:crd"), strict=True):
        for cell in (one, other):
            suite.finish(cell["id"], 0.92 + 0.001 * cell["repeat"] ** 2)
    text = "kd and kd (crd) have equal values in all repeats: they may be the same runs under two names, or an added term has no effect"
    assert messages(warnings(study_of(suite)))["duplicated"] == [text]
    rows = frame(suite.store, suite.checked())
    rows[rows["role"] == "student"][["dataset", "teacher", "student", "objective", "repeat", "top1_last"]].to_csv(
        tmp_path / "x.csv", index=False
    )
    found = read(tmp_path / "x.csv")
    (text,) = messages(warnings(study(found.runs, found.costs, found.manifest)))["duplicated"]
    assert text.startswith("kd and kd:crd have equal values")
    few = made(suite="few", repeats=2, objectives=(("ce", "ce", "published"), ("kd", "kd", "published"))).finish_all(noise=0)
    for cell in few.cells(role="student"):
        few.finish(cell["id"], 0.9)
    assert "duplicated" not in messages(warnings(study_of(few)))  # two equal repeats are no sign


def test_tuning_some_losses_only_is_warned_of(clean):
    clean.manifest["objectives"][3]["weight_from"] = "tuned"
    (one,) = warnings(study_of(clean))
    assert one.message == "weights were tuned for cka and not for kd, cc (taylor): tune all of them, or none"


def test_selection_on_the_test_set_and_a_mixture_of_rules_are_warned_of(clean):
    every = warnings(study_of(clean, selection="best test epoch"))
    assert codes(every) == {"selected-on-test"} and len(every) == 1
    mixed = warnings(study_of(clean, selection=lambda runs: ["last epoch" if place % 2 else "best val" for place in range(len(runs))]))
    assert [one.message for one in mixed] == ["the runs use different rules to choose the checkpoint: best val, last epoch; use one rule"]
    assert warnings(study_of(clean, selection="last epoch")) == ()


def test_repeats_that_do_not_differ_and_equal_weights_are_warned_of(clean):
    for cell in clean.cells(objective="cka"):
        clean.finish(cell["id"], 0.95)
    assert "no-spread" in codes(warnings(study_of(clean)))
    twins = warnings(study_of(clean, weights_digest=lambda runs: [f"w{min(place, 20)}" for place in range(len(runs))]))
    assert sum(one.code == "duplicated" for one in twins) == 1
    assert "exactly the same weights: 0000a000" in [one.message for one in twins if one.code == "duplicated"][0]


def test_a_ceiling_is_warned_of(made):
    suite = made(repeats=10).finish_all(noise=0.0004, gain={"ce": 0.0, "kd": 0.05, "cc": 0.07, "cka": 0.0975})
    assert [one.message for one in warnings(study_of(suite)) if one.code == "ceiling"] == [
        "top-1 is almost perfect for cka: use a harder dataset to see differences"
    ]


def test_a_noisy_loss_is_named_once_for_all_pairs(made):
    suite = made(repeats=10, teachers=("big", "other")).finish_all()
    for place, cell in enumerate(suite.cells(objective="cc")):
        suite.finish(cell["id"], 0.9 + 0.036 * (place % 4 // 2))
    (text,) = messages(warnings(study_of(suite)))["unequal-spread"]
    assert text.startswith("losses vary by different amounts in 2 of 2 pairs: the sd of cc (taylor) is up to ")


@pytest.mark.parametrize(
    ("column", "code", "told"),
    [
        ("device", "mixed-devices", "runs that are compared mix devices: a, b; run all of them on one"),
        ("torch", "mixed-versions", "runs that are compared mix versions of torch: a, b; run all of them on one"),
        ("timm", "mixed-versions", "runs that are compared mix versions of timm: a, b; run all of them on one"),
        ("code_version", "mixed-code", "runs that are compared mix versions of the code: a, b; run all of them on one"),
    ],
)
def test_mixed_circumstances_are_warned_of(clean, column, code, told):
    found = warnings(study_of(clean, **{column: lambda runs: ["ab"[place % 2] for place in range(len(runs))]}))
    assert [(one.code, one.message) for one in found] == [(code, told)]


def test_code_with_changes_beside_its_commit_is_warned_of(clean):
    assert codes(warnings(study_of(clean, code_version="abc-dirty"))) == {"changed-code"}


def test_different_data_are_warned_of(clean):
    cell = clean.cells(objective="cc")[0]
    clean.finish(cell["id"], 0.9, fingerprint="beef")
    (text,) = messages(warnings(study_of(clean)))["mixed-data"]
    assert text.startswith(f"1 run on digits with other data than most (beef), left out of all numbers: {cell['id']}; run it again")


def test_a_term_whose_gradient_never_mattered_is_warned_of(clean):
    idle = warnings(study_of(clean, least_gradient=lambda runs: (runs["objective"] == "cka").map({True: 0.004, False: 0.5})))
    assert [one.message for one in idle] == [
        "a term of cka has no effect: its gradient never exceeds 0.4 % of the task's; raise its weight"
    ]


def test_a_table_without_plain_kd_is_warned_of(made):
    suite = made(repeats=10, objectives=(("ce", "ce", "published"), ("cka", "cka", "assumed")))
    suite.manifest |= {"margin": 0.01, "baselines": ["ce"]}
    assert codes(warnings(study_of(suite.finish_all(seed=2)))) == {"no-kd"}


def test_a_teacher_below_what_the_suite_requires_is_named(clean):
    (teacher,) = clean.cells(role="teacher")
    clean.manifest["teacher_requirements"][teacher["id"]] = {"metric": "top1", "min": 0.99}
    assert codes(warnings(study_of(clean))) == {"teacher"}


def test_a_part_whose_source_changed_since_is_warned_of(clean):
    runs = study_of(clean, sources="loss kd 111; task classification 222")
    same = {"loss kd": "111", "task classification": "222"}
    assert warnings(runs, same) == ()
    (one,) = warnings(runs, {**same, "loss kd": "999"})
    assert (one.code, one.message) == ("source-changed", "the source changed since these runs: loss kd; new runs may give other values")
    half = study_of(clean, sources=lambda runs: [f"loss kd {place % 2}" for place in range(len(runs))])
    (one,) = warnings(half, {"loss kd": "1"})
    assert "changed between these runs" in one.message


def test_costs_taken_beside_other_work_are_warned_of(clean):
    clean.profile("kd")
    whole = study_of(clean)
    measured = whole.costs.assign(others_at_work=0.6)
    found = warnings(study(whole.runs, measured, clean.checked()))
    assert codes(found) == {"shared-node"} and "1 of 1 costs" in found[0].message


def test_every_code_is_known_and_every_warning_is_for_machines_too(made):
    suite = made(repeats=2).finish_all()
    found = warnings(study_of(suite))
    assert codes(found) <= set(CODES)
    assert strict(suite.write())[0] == 1 and strict(suite, *CODES)[0] == 0
    every = json.loads((suite.store.suite_folder("quickstart") / "report/warnings.json").read_text())
    assert [(one["code"], one["message"]) for one in every] == [(one.code, one.message) for one in found]


def strict(suite, *accepted, strict=True):
    out = io.StringIO()
    status = report_command.run(suite.store.root, [suite.suite], [suite.suite], None, ReportOptions(images=False), strict, accepted, out)
    return status, out.getvalue()


def test_strict_fails_on_a_warning_and_passes_one_that_was_accepted(made):
    suite = made(repeats=2).finish_all().write()
    status, told = strict(suite)
    assert status == 1 and "few-repeats" in told.splitlines()[-1]
    every = [entry["code"] for entry in json.loads((suite.store.suite_folder("quickstart") / "report/warnings.json").read_text())]
    assert strict(suite, *every, *RETIRED)[0] == 0
    assert strict(suite, strict=False)[0] == 0
    with pytest.raises(UsageError, match="few-repeats"):
        strict(suite, "few-repeat")


def test_strict_passes_a_clean_suite(clean):
    status, told = strict(clean.write())
    assert status == 0 and "strict:" not in told


def test_warnings_stand_in_every_format(made):
    suite = made(repeats=2).finish_all().write()
    out = io.StringIO()
    report_command.run(suite.store.root, [suite.suite], [suite.suite], None, ReportOptions(page=True, images=False), False, (), out)
    folder = suite.store.suite_folder("quickstart") / "report"
    texts = [out.getvalue(), *((folder / name).read_text() for name in ("report.md", "report.tex", "report.html", "warnings.json"))]
    assert all("few-repeats" in text for text in texts)
    assert isinstance(pd.read_csv(folder / "frame.csv"), pd.DataFrame)


@pytest.mark.slow
def test_unequal_spread_is_only_told_where_equal_noise_would_seldom_look_so(made):
    told = 0
    for seed in range(40):
        suite = made(suite=f"s{seed}", repeats=5).finish_all(seed=seed, noise=0.004)
        told += "unequal-spread" in codes(warnings(study_of(suite)))
    assert told <= 6  # one in 20, as luck has it
    sides = {"students": tuple("abcd"), "teachers": tuple("efgh")}
    many = [made(suite=f"m{seed}", repeats=5, **sides).finish_all(seed=seed, noise=0.004) for seed in range(4)]
    assert not any("unequal-spread" in codes(warnings(study_of(suite))) for suite in many)


def test_a_family_made_from_rows_is_warned_of(clean):
    clean.manifest["derived"] = True
    assert codes(warnings(study_of(clean))) == {"derived-family"}


def test_the_latest_epoch_is_no_choice_on_the_test_set(clean):
    assert warnings(study_of(clean, selection="latest epoch")) == ()


def test_a_part_that_is_gone_is_warned_of(clean):
    (one,) = warnings(study_of(clean, sources="loss lost 111"), {"loss lost": None})
    assert "no longer in this kdbench: loss lost" in one.message
