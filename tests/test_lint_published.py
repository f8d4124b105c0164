"""The lint of printed tables: it finds what is known to be wrong, and nothing where all is well."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmarks.lint_published import earlier, findings_text, lint, lint_published
from kdbench.errors import KdbenchError
from kdbench.published import table, tables

PAIRS = ("big -> small", "big -> tiny", "huge -> small", "huge -> tiny")


def printed(source, rows, **more):
    """A table of {method: a value a pair}; None where nothing is printed."""
    cells = []
    for method, values in rows.items():
        for pair, value in zip(PAIRS, values, strict=False):
            teacher, student = pair.split(" -> ")
            cells.append({"source": source, "dataset": "cifar100", "teacher": teacher, "student": student, "method": method, "top1": value})
    return pd.DataFrame(cells).assign(**more)


ORIGINAL = printed("first", {"KD": [70.1, 71.2, 72.3, 73.4], "SP": [69.1, 70.7, 71.9, 72.8]})


def kinds(findings):
    return [(one.kind, one.where) for one in findings]


def test_the_known_copy_errors_of_rcka_are_found():
    found = {one.where: one for one in lint_published("rcka")}
    copied = {where: (one.printed, one.expected) for where, one in found.items() if one.kind == "copied"}
    assert copied == {
        "AT, resnet110 -> resnet32": (70.55, 72.31),
        "VID, resnet110 -> resnet32": (70.38, 72.61),
        "AT, resnet32x4 -> ShuffleV1": (72.73, 71.73),
        "ReviewKD, resnet110 -> resnet32": (71.89, 73.89),
    }
    assert "resnet56 -> resnet20" in found["ReviewKD, resnet110 -> resnet32"].message
    assert "resnet32x4 -> ShuffleV2" in found["AT, resnet32x4 -> ShuffleV1"].message
    rest = {where: one.kind for where, one in found.items() if one.kind != "copied"}
    assert rest == {"DIST, wrn_40_2 -> ShuffleV1": "suspect", "ReviewKD, resnet32x4 -> ShuffleV1": "misquoted"}
    assert found["ReviewKD, resnet32x4 -> ShuffleV1"].expected == 77.45


def test_the_misprint_of_kdpp_is_found_and_the_delta_that_does_not_follow_from_it():
    findings = lint_published("kdpp")
    assert kinds(findings) == [("delta", "KD++, ResNet50 -> MobileNetV2"), ("misquoted", "KD, ResNet50 -> MobileNetV2")]
    assert (findings[1].printed, findings[1].expected) == (67.65, 67.35)
    assert (findings[0].printed, findings[0].expected) == (2.35, 2.45)


def test_three_of_the_eighteen_deltas_of_sdd_are_wrong():
    deltas = table("sdd").query("dataset == 'cifar100'")["delta"].notna().sum()
    findings = lint_published("sdd")
    assert deltas == 18
    assert [(one.where, one.printed, one.expected) for one in findings] == [
        ("SD-KD, ResNet50 -> MobileNetV2", 2.10, 2.20),
        ("SD-KD, resnet32x4 -> ShuffleV2", 2.32, 2.22),
        ("SD-NKD, vgg13 -> MobileNetV2", 0.82, 0.78),
    ]
    assert {one.kind for one in findings} == {"delta"}


def test_no_other_published_table_has_a_finding():
    assert {name for name, _ in tables() if lint_published(name)} == {"rcka", "kdpp", "sdd", "coco"}
    assert len(lint_published()) == 11 + len(lint_published("coco"))


def test_numbers_of_detection_that_do_not_compare_are_found():
    findings = lint_published("coco")
    teachers = {(one.where, one.printed, one.expected) for one in findings if one.kind == "teacher"}
    assert teachers == {
        ("Teacher, faster_rcnn_r101 -> faster_rcnn_r101", 39.8, 39.4),
        ("Teacher, gfl_r101 -> gfl_r101", 44.9, 44.7),
        ("Teacher, retinanet_r101 -> retinanet_r101", 40.6, 38.9),
    }
    inherits = {(one.where, one.printed): one.message for one in findings if one.kind == "inheritance"}
    assert set(inherits) == {
        ("MGD, retinanet_x101 -> retinanet_r50", 41.0),
        ("FGD, retinanet_x101 -> retinanet_r50", 40.7),
        ("FGD, fcos_r101 -> fcos_r50", 42.7),
        ("FGD, gfl_r101 -> gfl_r50", 43.5),
        ("FGD, reppoints_x101 -> reppoints_r50", 42.0),
    }
    assert (
        "neck+head; not so, or not known, of this pair: CrossKD, CrossKD+PKD, FGD, FRS, FitNet"
        in inherits["FGD, fcos_r101 -> fcos_r50", 42.7]
    )
    flags = {one.message for one in findings if one.kind == "flag"}
    assert any("Swin-S" in one and "Swin-T" in one for one in flags) and any("class head" in one and "neck" in one for one in flags)
    assert {one.kind for one in findings} == {"teacher", "inheritance", "flag"}
    with pytest.raises(KdbenchError, match="did you mean 'rcka'"):
        lint_published("rkca")


def test_the_order_of_the_rows_changes_no_finding():
    shuffled = lint(table("rcka").sample(frac=1, random_state=1), earlier("rcka"))
    assert set(shuffled) == set(lint_published("rcka"))


def test_a_faithful_copy_has_no_finding():
    assert lint(ORIGINAL.assign(source="second"), [ORIGINAL]) == []


def test_a_cell_with_its_neighbours_value_is_told_with_both():
    across = printed("second", {"KD": [70.1, 71.2, 73.4, 73.4]})
    (found,) = lint(across, [ORIGINAL])
    assert (found.kind, found.where, found.printed, found.expected) == ("copied", "KD, huge -> small", 73.4, 72.3)
    down = printed("second", {"KD": [70.1, 70.7, 72.3, 73.4]})
    (found,) = lint(down, [ORIGINAL])
    assert found.kind == "copied" and "SP, big -> tiny" in found.message


def test_equal_values_by_chance_are_no_error_where_the_original_has_them_too():
    original = printed("first", {"KD": [70.1, 71.2, 72.3, 72.3], "SP": [70.1, 71.2, 70.0, 72.3]})
    assert lint(original.assign(source="second"), [original]) == []


def test_a_new_run_of_the_same_methods_is_no_quotation():
    again = printed("second", {"KD": [70.4, 71.2, 72.8, 71.2], "SP": [69.9, 70.2, 71.1, 72.1]})
    assert lint(again, [ORIGINAL]) == []


def test_the_last_digit_is_rounding():
    assert lint(printed("second", {"KD": [70.1, 71.2, 72.31, 73.39]}), [ORIGINAL]) == []
    assert kinds(lint(printed("second", {"KD": [70.1, 71.2, 72.3, 73.38]}), [ORIGINAL])) == [("misquoted", "KD, huge -> tiny")]


def test_a_value_that_any_earlier_table_prints_there_is_no_error():
    corrected = printed("corrected", {"KD": [70.0, 71.0, 73.4, 73.0]})
    assert lint(printed("second", {"KD": [70.1, 71.2, 73.4, 73.4]}), [ORIGINAL, corrected]) == []


def test_one_wrong_delta_is_found_and_rounding_is_not():
    rows = printed("one", {"KD": [70.10, 71.20, 72.30], "Ours": [71.00, 72.00, 73.00]})
    ours = rows["method"] == "Ours"
    rows["delta"] = rows["method"].map({"Ours": 1.0}).where(ours)
    rows.loc[ours, "delta"] = [0.90, 0.81, 0.60]
    rows["delta_to"] = None
    rows.loc[ours, "delta_to"] = "KD"
    (found,) = lint(rows)
    assert (found.kind, found.where, found.printed, found.expected) == ("delta", "Ours, huge -> small", 0.60, 0.70)


def test_two_values_for_one_cell_are_a_contradiction_and_the_same_value_twice_is_not():
    twice = pd.concat([ORIGINAL, ORIGINAL.head(1)])
    assert lint(twice) == []
    twice = pd.concat([ORIGINAL, ORIGINAL.head(1).assign(top1=70.2)])
    assert kinds(lint(twice)) == [("contradiction", "KD, big -> small")]


def test_the_text_names_sources_once():
    text = findings_text(lint_published("sdd"))
    assert text.startswith("3 findings\n") and text.count("SDD-CVPR2024 repo cifar100.png") == 1
    assert "  delta: SD-NKD, vgg13 -> MobileNetV2: +0.82 is printed, 69.50 - 68.72 (NKD) is +0.78\n" in text
    assert findings_text([]) == "0 findings\n"


def test_earlier_tables_are_of_earlier_years():
    sources = {name: table(name)["source"].iloc[0] for name, _ in tables()}
    assert {one["source"].iloc[0] for one in earlier("rcka")} >= {sources["crd"], sources["saha2022_table1"]}
    assert all(sources["rcka"] != one["source"].iloc[0] for one in earlier("rcka"))
    assert earlier("crd") == []
