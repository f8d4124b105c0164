"""Measured beside published: a difference only between numbers of the same thing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kdbench.errors import KdbenchError
from kdbench.published import table as read
from kdbench.published import variants
from kdbench.record import Record
from kdbench.report import beside as module
from kdbench.report.beside import DIFFERS, GAINS_ONLY, beside
from kdbench.report.study import study
from kdbench.store.frame import costs, frame

OBJECTIVES = (("ce", "ce", "published"), ("kd", "kd", "published"), ("cc:crd", "cc:crd", "published"), ("mine", "mine", "assumed"))
# resnet32x4 -> resnet8x4 as RepDistiller has it: 72.50 alone, KD 73.33, CC 72.97.
VALUES = {"ce": 0.7260, "kd": 0.7383, "cc:crd": 0.7301, "mine": 0.7400}
FULL = {"n_train": 50_000, "n_test": 10_000}


def measured(made, values=VALUES, teacher="resnet32x4", student="resnet8x4", objectives=OBJECTIVES, images=FULL, dataset="cifar100"):
    """A suite of one block with two repeats, 0.1 points below and above the given values."""
    suite = made(teachers=(teacher,), students=(student,), repeats=2, objectives=objectives)
    for line in (*suite.manifest["blocks"], *suite.manifest["cells"]):
        line["dataset"] = dataset
    for cell in suite.manifest["cells"]:
        value = 0.79 if cell["role"] == "teacher" else values[cell["objective"]] + 0.001 * (2 * cell["repeat"] - 1)
        suite.finish(cell["id"], value, **images)
    return suite


def table_of(suite, name="crd", terms=None):
    return beside(name, replace(studied(suite), terms=terms))


def studied(suite, **columns):
    """The study of a suite's runs, of which columns are changed."""
    manifest = suite.checked()
    return study(frame(suite.store, manifest).assign(**columns), costs(suite.store, manifest), manifest)


def rows_of(table, group=0):
    """{objective: {column: text}}; what was only published stands under its own name."""
    titles = [column.title for column in table.columns]
    found = {}
    for row in table.groups[group].rows:
        line = dict(zip(titles, [entry.text() for entry in row], strict=True))
        found[line["loss"] if line["loss"] != "–" else line["published as"]] = line
    return found


def difference(table, objective):
    return rows_of(table)[objective]["difference, points"]


def stored_terms(**variant_of_objective):
    """The terms of objectives that are presets, as `histories.terms` makes them."""
    import pandas as pd

    preset = variants()
    parts = [
        preset[preset["variant"] == variant].drop(columns="variant").assign(objective=name, label=name, pairing="matched")
        for name, variant in variant_of_objective.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_a_difference_is_printed_where_variant_selection_and_images_agree(made):
    table = table_of(measured(made))
    assert table.name == "beside" and len(table.columns) == 8
    rows = rows_of(table)
    assert rows["kd"] == {
        "loss": "kd",
        "variant": "kd:crd",
        "measured, %": "73.83 ± 0.14",
        "n": "2/2",
        "published as": "KD",
        "published, %": "73.33",
        "n published": "–",
        "difference, points": "+0.50",
    }
    assert rows["cc:crd"]["difference, points"] == "+0.04" and rows["ce"]["difference, points"] == "+0.10"
    group = table.groups[0]
    assert group.title == "cifar100 · student resnet8x4 · teacher resnet32x4"
    assert "Published teacher: 79.42 %." in group.facts and "Cross-entropy alone: 0.10 points apart." in group.facts
    assert not group.notes


def test_published_numbers_stand_apart_and_measured_ones_do_not(made):
    table = table_of(measured(made))
    titles = [column.title for column in table.columns]
    for row in table.groups[0].rows:
        line = dict(zip(titles, row, strict=True))
        assert not line["measured, %"].apart and not line["difference, points"].apart
        assert line["published, %"].apart
        assert (line["published, %"].value is None) == (line["published as"].text() == "–")
    kd = dict(zip(titles, table.groups[0].rows[1], strict=True))
    assert kd["difference, points"].value == pytest.approx(0.005)
    assert len(kd["measured, %"].runs) == 2 and not kd["published, %"].runs


def test_another_variant_is_no_difference_and_the_note_names_both(made):
    suite = measured(made, objectives=OBJECTIVES[:2] + (("cc", "cc (taylor)", "published"),), values={**VALUES, "cc": 0.73})
    table = table_of(suite)
    assert rows_of(table)["cc (taylor)"]["published, %"] == "72.97"
    assert difference(table, "cc (taylor)") == f"–{DIFFERS}"
    assert table.groups[0].notes == (f"{DIFFERS} cc (taylor): variant cc:zoo against cc:crd",)


def test_the_terms_decide_the_variant_and_not_the_name(made):
    suite = measured(made)
    assert difference(table_of(suite, terms=stored_terms(kd="kd:crd", mine="rkd:crd")), "mine") == "+2.10"
    table = table_of(suite, terms=stored_terms(kd="kd:simkd"))
    assert difference(table, "kd") == f"–{DIFFERS}"
    assert f"{DIFFERS} kd: variant kd:simkd against kd:crd" in table.groups[0].notes
    changed = stored_terms(kd="kd:crd").assign(options=json.dumps({"temperature": 2.0}))
    assert f"{DIFFERS} kd: variant another one against kd:crd" in table_of(suite, terms=changed).groups[0].notes


def test_another_selection_rule_is_no_difference(made):
    suite = measured(made, teacher="resnet20", student="resnet110")
    zoo = measured(
        made,
        teacher="resnet110",
        student="resnet20",
        objectives=(("ce", "ce", "published"), ("kd:zoo", "kd:zoo", "published")),
        values={"ce": 0.685, "kd:zoo": 0.69},
    )
    table = table_of(zoo, "zoo")
    assert difference(table, "kd:zoo") == f"–{DIFFERS}"
    assert f"{DIFFERS} ce, kd:zoo: last epoch against best test epoch" in table.groups[0].notes
    assert "zoo has no numbers for this student and teacher." in table_of(suite, "zoo").groups[0].facts


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ({"n_train": 5_000, "n_test": 10_000}, "n_train 5,000 against 50,000"),
        ({"n_train": 50_000, "n_test": 2_000}, "n_test 2,000 against 10,000"),
    ],
)
def test_other_images_are_no_difference(made, images, told):
    table = table_of(measured(made, images=images))
    assert difference(table, "kd") == difference(table, "ce") == f"–{DIFFERS}"
    assert table.groups[0].notes == (f"{DIFFERS} ce, kd, cc:crd: {told}",)


def test_of_saha_nothing_is_known_that_a_difference_needs(made):
    objectives = (("ce", "ce", "published"), ("cc", "cc (taylor)", "published"), ("cka", "cka", "assumed"), ("kd", "kd", "published"))
    suite = measured(made, {"ce": 0.73, "cc": 0.74, "cka": 0.75, "kd": 0.76}, "resnet50", "mobilenetv2_100", objectives)
    table = table_of(suite, "saha2022_table1")
    rows = rows_of(table)
    assert [rows[name]["published, %"] for name in ("ce", "cc (taylor)", "cka", "kd")] == ["73.12", "74.18", "75.19", "–"]
    assert {rows[name]["difference, points"] for name in ("ce", "cc (taylor)", "cka")} == {f"–{DIFFERS}"}
    assert f"{DIFFERS} cc (taylor), cka: variant unknown; selection rule unknown; n_train unknown; n_test unknown" in table.groups[0].notes
    assert {"sp", "rkd"} <= set(rows), "what only the paper has is shown"
    assert rows["sp"]["measured, %"] == "–" and rows["sp"]["difference, points"] == "–"


@pytest.mark.parametrize(("off", "gains"), [(0.006, True), (-0.006, True), (0.005, False), (0.004, False), (-0.004, False)])
def test_where_cross_entropy_alone_is_off_by_more_than_half_a_point_only_gains_stand(made, off, gains):
    table = table_of(measured(made, {**VALUES, "ce": 0.7250 + off}))
    assert table.groups[0].title.endswith(GAINS_ONLY) == gains
    assert difference(table, "kd") == ("" if gains else "+0.50")
    assert ("measured gain, points" in rows_of(table)["kd"]) == gains
    if gains:
        line = rows_of(table)["kd"]
        assert line["measured gain, points"] == f"{100 * (0.7383 - 0.7250 - off):+.2f}"
        assert line["published gain, points"] == "+0.83"
        assert rows_of(table)["ce"]["published gain, points"] == "" and rows_of(table)["CRD"]["published gain, points"] == "+3.01"
        assert line["measured, %"] == "73.83 ± 0.14" and line["published, %"] == "73.33"


def test_without_cross_entropy_on_both_sides_it_is_said_that_baselines_are_not_known_to_agree(made):
    suite = measured(made, objectives=OBJECTIVES[1:])
    assert any("this suite" in fact and "it is unknown" in fact for fact in table_of(suite).groups[0].facts)
    assert any("ls_logs_last" in fact for fact in table_of(measured(made), "ls_logs_last").groups[0].facts)


def test_nothing_is_dropped_on_either_side(made):
    table = table_of(measured(made))
    rows = rows_of(table)
    assert rows["mine"]["published, %"] == "–" and rows["mine"]["measured, %"].startswith("74.00")
    assert {"FitNet", "AT", "SP", "VID", "RKD", "PKT", "AB", "FT", "FSP", "NST", "CRD"} <= set(rows)
    others = table.groups[-1]
    assert others.title == "published in crd, not measured here" and len(others.rows) == 12
    assert all(len(row) == len(table.columns) for group in table.groups for row in group.rows)
    said = [entry.text() for entry in others.rows[0]]
    assert said[0] == "cifar100 · student wrn_16_2 · teacher wrn_40_2" and said[4].startswith("KD, FitNet, AT, SP, CC")


def test_a_pair_of_other_nets_and_another_dataset_match_nothing(made):
    fact = "crd has no numbers for this student and teacher."
    assert table_of(measured(made, student="resnet8")).groups[0].facts == (fact,)
    assert table_of(measured(made, dataset="cifar10")).groups[0].facts == (fact,)
    objectives = (("ce", "ce", "published"), ("kd", "kd", "published"))
    hsakd = measured(made, teacher="vgg13", student="mobilenetv2", objectives=objectives)
    assert "no numbers" in table_of(hsakd, "hsakd").groups[0].facts[0], "another net of the same name"
    assert rows_of(table_of(hsakd))["kd"]["published, %"] == "67.37"


def test_printed_spread_and_number_of_runs_come_along(made):
    objectives = (("ce", "ce", "published"), ("kd:simkd", "kd:simkd", "published"))
    table = table_of(measured(made, {"ce": 0.73, "kd:simkd": 0.74}, objectives=objectives), "semckd")
    assert rows_of(table)["kd:simkd"]["published, %"] == "74.42 ± 0.05"
    assert rows_of(table)["SP (+KD)"]["published, %"] == "74.29 ± 0.07"
    of_ls = table_of(measured(made), "ls")
    assert (rows_of(of_ls)["kd"]["published as"], rows_of(of_ls)["kd"]["n published"]) == ("KD+LS", "4")
    assert f"{DIFFERS} kd: variant kd:crd against kd:lskd; last epoch against best test epoch" in of_ls.groups[0].notes


def test_of_several_published_variants_each_objective_gets_its_own(made):
    objectives = (("ce", "ce", "published"), ("kd", "kd", "published"), ("kd:lskd", "kd:lskd", "published"))
    suite = measured(made, {"ce": 0.73, "kd": 0.74, "kd:lskd": 0.76}, "resnet32x4", "shufflenetv2", objectives)
    rows = rows_of(table_of(suite, "ls"))
    assert (rows["kd"]["published as"], rows["kd:lskd"]["published as"]) == ("KD", "KD+LS")
    assert rows["kd"]["difference, points"] == "-0.45" and rows["kd:lskd"]["difference, points"] == f"–{DIFFERS}"


def test_an_objective_without_a_complete_repeat_has_no_difference(made):
    suite = made(teachers=("resnet32x4",), students=("resnet8x4",), repeats=2, objectives=OBJECTIVES)
    for line in (*suite.manifest["blocks"], *suite.manifest["cells"]):
        line["dataset"] = "cifar100"
    rows = rows_of(table_of(suite))
    assert rows["kd"]["measured, %"] == "–" and rows["kd"]["n"] == "0/2" and rows["kd"]["difference, points"].startswith("–")


def test_the_order_of_the_rows_changes_nothing(made):
    suite = measured(made)
    whole = studied(suite)
    shuffled = replace(whole, summaries=whole.summaries.sample(frac=1, random_state=0))
    assert beside("crd", shuffled) == beside("crd", whole)


def test_standings_are_kept_as_emphasis(made):
    suite = measured(made)
    whole = studied(suite)
    best = ["best" if name == "mine" else "" for name in whole.summaries["objective"]]
    table = beside("crd", replace(whole, summaries=whole.summaries.assign(among_best=best)))
    assert [row[2].emphasis for row in table.groups[0].rows[:4]] == ["", "", "", "best"]


def test_what_cannot_stand_beside_is_refused(made):
    suite = measured(made)
    with pytest.raises(KdbenchError, match="did you mean 'crd'"):
        table_of(suite, "crdd")
    with pytest.raises(KdbenchError, match="holds no top-1"):
        table_of(suite, "coco")
    suite.manifest["metrics"] = suite.manifest["metrics"][::-1]
    with pytest.raises(KdbenchError, match="primary metric is NLL"):
        table_of(suite)
    assert module.MEASURED_SELECTION == "last epoch"


def by_rule(made, rules, name="crd"):
    """The table where the frame says by which rule the two repeats of every objective were taken."""
    suite = measured(made)
    return beside(name, studied(suite, selection=lambda runs: [rules[(repeat or 0) % 2] for repeat in runs["repeat"]]))


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (("best test epoch",) * 2, "best test epoch against last epoch"),
        (("best val", "last epoch"), "best val and last epoch against last epoch"),
        (("best val", None), "best val and last epoch against last epoch"),
        (("unknown",) * 2, "selection rule unknown"),
    ],
)
def test_a_rule_that_the_frame_names_and_the_published_table_has_not_is_no_difference(made, rules, told):
    table = by_rule(made, rules)
    assert difference(table, "kd") == difference(table, "ce") == f"–{DIFFERS}"
    assert table.groups[0].notes == (f"{DIFFERS} ce, kd, cc:crd: {told}",)


def test_an_unknown_number_of_images_is_no_difference(made):
    suite = measured(made)
    table = beside("crd", studied(suite, n_train=lambda runs: runs["n_train"].mask(runs["n_train"].notna())))
    assert table.groups[0].notes == (f"{DIFFERS} ce, kd, cc:crd: n_train unknown",)


@pytest.mark.parametrize("rules", [("last epoch",) * 2, (None, None)])
def test_a_rule_that_is_the_published_one_or_is_not_named_leaves_the_difference(made, rules):
    assert difference(by_rule(made, rules), "kd") == "+0.50"


def test_measured_best_test_epochs_stand_beside_published_ones(made):
    table = by_rule(made, ("best test epoch",) * 2, "ls")
    assert f"{DIFFERS} kd: variant kd:crd against kd:lskd" in table.groups[0].notes


def test_top1_that_is_no_fraction_is_refused_beside_per_cent(made):
    suite = measured(made)
    suite.manifest["metrics"][0]["percent"] = False
    with pytest.raises(KdbenchError, match="published tables hold top-1 in per cent"):
        table_of(suite)


def detectors(made, student="fcos_r50", teacher="fcos_r101"):
    objectives = (("detection", "detection", "published"), ("pkd", "pkd", "published"))
    suite = made(teachers=(teacher,), students=(student,), repeats=2, objectives=objectives)
    suite.manifest["metrics"] = [{"name": "ap", "label": "AP", "percent": True, "higher_is_better": True}]
    for line in (*suite.manifest["blocks"], *suite.manifest["cells"]):
        line["dataset"] = "coco"
    for cell in suite.manifest["cells"]:
        result = {"metrics": {"ap_last": 0.4}, "history": [], "n_train": 9, "n_test": 9, "data_fingerprint": "f00d"}
        suite.store.put_record(Record(cell["id"], {}, "finished", result, {"device": "cpu"}))
    return suite


def test_every_published_ap_stands_apart_with_its_teacher_schedule_and_inheritance_and_measured_pairs_are_new_ones(made):
    table = table_of(detectors(made), "coco")
    assert table.groups[0].facts == ("coco has no numbers for this student and teacher.",), "also where a suite takes a published name"
    assert any("measured pairs are new pairs, and reproduce no published number" in note for note in table.notes)
    titles = [column.title for column in table.columns]
    assert titles[-3:] == ["schedule", "inherits", "source"] and all(len(row) == len(titles) for one in table.groups for row in one.rows)
    (group,) = [one for one in table.groups if one.title.startswith("coco · student fcos_r50 · teacher fcos_r101 · published in coco")]
    assert group.facts == ("Published teacher: 40.8 %.",)
    lines = [dict(zip(titles, row, strict=True)) for row in group.rows]
    found = [(one["published as"].text(), one["published, %"].text(), one["schedule"].text(), one["inherits"].text()) for one in lines]
    assert ("FGD", "42.1", "unknown", "unknown") in found and ("FGD", "42.7", "2x", "neck+head") in found
    assert ("CrossKD", "41.1", "2x+ms", "unknown") in found and ("Student", "38.5", "2x", "none") in found
    assert all(one["published, %"].apart and one["measured, %"].text() == "–" for one in lines)
    assert {one["variant"].text() for one in lines} >= {"detection", "fgd:fcos", "pcka:fpn"}
    published = sum(len(one.rows) for one in table.groups[1:])
    assert published >= len(read("coco").query("role == 'distilled'")) and not any("Cross-entropy" in text for text in group.facts)


def test_top1_and_ap_do_not_stand_beside_each_other(made):
    with pytest.raises(KdbenchError, match="the published table 'crd' holds no AP"):
        table_of(detectors(made), "crd")
