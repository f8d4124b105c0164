"""Published numbers as package data: they parse, say what they are of, and go the way of measured runs."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path

import pandas as pd
import pytest

import kdbench
from kdbench import parts
from kdbench.errors import KdbenchError
from kdbench.plan.objectives import _schedule
from kdbench.plan.schema import ObjectiveFields
from kdbench.published import NONE, OTHER, SELECTIONS, UNKNOWN, as_runs, counterparts, table, tables, variant_of, variants
from kdbench.report.comparison import student_runs
from kdbench.stats.repeats import summarise
from kdbench.store.from_file import of_rows

NAMES = [name for name, _ in tables()]
ACCURACIES = [name for name in NAMES if name != "coco"]
CC_OF_CRD = {"crd": 13, "rcka": 9}


def test_every_csv_of_the_folder_is_listed_and_every_listed_table_has_one():
    stored = {one.name.removesuffix(".csv") for one in (resources.files("kdbench") / "published").iterdir() if one.name.endswith(".csv")}
    assert {name for name in stored if not name.startswith("_")} == set(NAMES)
    assert {name for name in stored if name.startswith("_")} == {"_tables", "_sources", "_names", "_variants"}


def test_a_wheel_contains_the_tables():
    folder = Path(kdbench.__file__).parent
    says = tomllib.loads((folder.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["kdbench"]
    shipped = {path for pattern in says for path in folder.glob(pattern)}
    assert shipped >= {path for path in (folder / "published").iterdir() if path.suffix in (".csv", ".md")}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_parses_and_its_values_are_in_range(name):
    cells = table(name)
    value = "top1" if "top1" in cells else "AP"
    assert len(cells) and cells[value].notna().all() and cells[value].between(30, 97).all()
    assert cells["source"].notna().all() and cells["student"].notna().all() and cells["method"].notna().all()
    assert set(cells["selection"]) <= set(SELECTIONS)
    assert set(cells["n_train"].dropna()) <= {45_000, 50_000} and set(cells["n_test"].dropna()) <= {10_000}
    assert cells.loc[cells["role"] == "distilled", "teacher"].notna().all()
    if "std" in cells:
        assert cells["std"].dropna().between(0.01, 1).all() and cells["n_runs"].dropna().between(1, 5).all()
        assert cells["delta"].notna().eq(cells["delta_to"].notna()).all()


@pytest.mark.parametrize("name", NAMES)
def test_variants_are_presets_of_the_loss_or_say_why_not(name):
    known = set(variants()["variant"])
    for cell in table(name).itertuples():
        if cell.role != "distilled":
            assert cell.variant == "ce" == cell.loss
        elif not isinstance(cell.loss, str):
            assert cell.variant == NONE
        else:
            assert cell.variant in (UNKNOWN, OTHER) or (cell.variant in known and cell.variant.startswith(f"{cell.loss}:"))


@pytest.mark.parametrize("name", NAMES)
def test_files_are_utf_8_with_plain_line_ends(name):
    raw = (resources.files("kdbench") / "published" / f"{name}.csv").read_bytes()
    assert raw.decode("utf-8").endswith("\n") and b"\r" not in raw


def test_nothing_of_the_survey_is_lost():
    sizes = {name: len(table(name)) for name in NAMES}
    added = {"kdpp": 33, "sdd": 8, "rcka": 16}
    assert sum(sizes.values()) - sum(added.values()) == 1032 + 50 + 45 + 48
    assert sizes["crd"] == 177 and sizes["saha2022_table1"] == 48 and sizes["coco"] == 50 + 45


def test_every_number_of_detection_says_its_schedule_and_what_the_student_has_from_its_teacher():
    cells = table("coco")
    assert set(cells["schedule"]) == {"1x", "2x", "2x+ms", "unknown"} and set(cells["inherits"]) == {"none", "neck+head", "unknown"}
    begun = cells.query("inherits == 'neck+head'")
    assert set(begun["method"]) == {"FGD", "MGD"} and not begun["teacher"].str.startswith("cascade").any()
    assert set(cells.query("method in ['PKD', 'CWD', 'PCKA', 'FBKD']")["inherits"]) == {"none"}
    assert set(counterparts("coco")) == {*cells["student"], *cells["teacher"].dropna()} and not any(counterparts("coco").values())


def test_every_cc_of_the_crd_protocol_is_the_lag_1_product_and_everything_of_saha_is_unknown():
    for name, count in CC_OF_CRD.items():
        of_cc = table(name).query("method == 'CC' and dataset == 'cifar100'")
        assert len(of_cc) == count and set(of_cc["variant"]) == {"cc:crd"}
    options = variants().set_index("variant").loc["cc:crd", "options"]
    assert json.loads(options)["kernel"] == "lag1"
    saha = table("saha2022_table1").query("role == 'distilled'")
    assert set(saha["variant"]) == {UNKNOWN} and set(saha["selection"]) == {UNKNOWN} and saha["n_train"].isna().all()
    assert set(table("crd").query("method == 'RKD'")["variant"]) == {"rkd:crd"}


def test_the_stored_variants_are_the_presets_of_the_losses():
    expected = []
    for name in parts.names("loss"):
        part = parts.load("loss", name)
        for key, preset in part.make.presets.items():
            dot = {} if preset.dot is None else {"dot": preset.dot}
            terms = [(name, preset.weight, part.options(dict(preset.options)) | _schedule(ObjectiveFields(), preset) | dot)]
            for other, weight, options, *schedule in preset.terms:
                terms.append((other, weight, parts.load("loss", other).options(dict(options)) | dict(*schedule) | dot))
            if preset.two_stages:  # `then` is empty, or the terms of both stages are the same
                earlier = part.options({**preset.options, **part.make.first_stage_options})
                epochs = {"two_stages": {"epochs": preset.two_stages["epochs"]}}
                terms = terms if preset.two_stages.get("then", True) else []
                terms.append((name, preset.two_stages.get("weight", preset.weight), earlier | epochs))
            expected += [(f"{name}:{key}", preset.task, *term) for term in terms]
    stored = variants()
    found = [
        (line.variant, line.task, line.loss, None if pd.isna(line.weight) else line.weight, json.loads(line.options))
        for line in stored.itertuples()
    ]
    assert found == expected


def test_a_wrong_name_is_told_the_nearest():
    with pytest.raises(KdbenchError, match="no published table 'saha2022'; did you mean 'saha2022_table1'"):
        table("saha2022")
    with pytest.raises(KdbenchError, match="holds no accuracies"):
        as_runs("coco")


def test_a_name_of_ours_is_only_given_to_a_model_of_the_table():
    for name in NAMES:
        cells = table(name)
        assert set(counterparts(name)) <= {*cells["student"], *cells["teacher"].dropna()}
    assert counterparts("saha2022_table1") == {"mobilenetv2": "mobilenetv2_100"}
    assert counterparts("hsakd")["MobileNetV2"] == ""


@pytest.mark.parametrize("name", ACCURACIES)
def test_as_runs_keeps_every_printed_number_once(name):
    cells, runs = table(name), as_runs(name)
    assert runs["id"].is_unique and runs["id"].str.fullmatch("[0-9a-f]{12}").all()
    assert not runs.duplicated(["role", "dataset", "teacher", "student", "objective"]).any()
    assert (runs["state"] == "finished").all() and (runs["repeat"] == 0).all()
    printed = {(line.dataset, line.method, line.student, round(line.top1, 6)) for line in cells.itertuples()}
    kept = {(line.dataset, line.method, line.student, round(100 * line.top1_last, 6)) for line in runs.itertuples()}
    kept_of_teachers = {(d, m, v) for d, m, _, v in kept}
    assert {one for one in printed if one[1] != "teacher_alone"} == {one for one in kept if one[1] != "teacher_alone"}
    assert {(d, m, v) for d, m, _, v in printed} == kept_of_teachers
    assert as_runs(name)["id"].tolist() == runs["id"].tolist()
    students = runs[runs["role"] == "student"]
    assert len(students[["objective", "label"]].drop_duplicates()) == students["objective"].nunique() == students["label"].nunique()
    assert len(of_rows(runs, name).manifest.objectives) == students["objective"].nunique()


def test_published_runs_go_the_way_of_measured_ones():
    found = of_rows(as_runs("crd"), "crd")
    runs, manifest = found.runs, found.manifest
    assert manifest.baselines == ("ce", "kd") and manifest.repeats == 1 and len(manifest.blocks) == 13
    summary = summarise(student_runs(runs, manifest)).set_index(["teacher", "student", "objective"])["mean"]
    gain = summary.unstack("objective")
    # systems.md 4.5: mean gains over the student alone, and of CRD over KD.
    assert 100 * (gain["kd"] - gain["ce"]).mean() == pytest.approx(2.41, abs=0.005)
    assert 100 * (gain["crd"] - gain["kd"]).mean() == pytest.approx(1.08, abs=0.005)
    saha = as_runs("saha2022_table1")
    alone = saha.query("objective == 'ce'")
    assert alone["teacher"].isna().all()
    assert dict(zip(alone["student"], alone["top1_last"], strict=True)) == pytest.approx({"resnet18": 0.7798, "mobilenetv2": 0.7312})
    assert sorted(saha.query("role == 'teacher'")["student"]) == ["resnet101", "resnet18", "resnet34", "resnet50"]


def test_what_was_printed_of_spread_and_selection_comes_along():
    assert as_runs("semckd").query("objective == 'kd' and student == 'vgg8'")["published_sd"].tolist() == pytest.approx([0.0015, 0.0005])
    dkd = as_runs("dkd").query("objective == 'dkd' and dataset == 'cifar100'")
    assert set(dkd["published_n"]) == {5} and dkd["top1_best_test"].equals(dkd["top1_last"])
    assert as_runs("crd")["top1_best_test"].isna().all()


def test_an_objective_is_the_variant_that_it_is_in_every_weight_and_option():
    preset = variants().set_index("variant")

    def terms(variant, **changed):
        rows = preset.loc[[variant]].reset_index(drop=True).assign(objective="mine", pairing="matched", label="mine", version=1)
        return rows.assign(**changed)

    for name in dict.fromkeys(preset.index):
        given = terms(name)
        # A preset without a weight is meant by any weight that no other preset of the loss has.
        assert variant_of("mine", given.assign(weight=given["weight"].fillna(7.7))) == (name, name.partition(":")[0])
    assert variant_of("mine", terms("kd:crd", weight=0.8)) == (OTHER, "kd")
    assert variant_of("mine", terms("kd:crd", task=1.0)) == (OTHER, "kd")
    assert variant_of("mine", terms("kd:crd", pairing="shuffled")) == (OTHER, "kd")
    assert variant_of("mine", terms("kd:crd", weight="[[0, 1.0]]")) == (OTHER, "kd")
    assert variant_of("mine", terms("kd:crd", options=re.sub("4.0", "2.0", preset.loc["kd:crd", "options"]))) == (OTHER, "kd")
    assert variant_of("mine", terms("kd:crd", options=None)) == (UNKNOWN, "")
    assert variant_of("mine", terms("kd:crd", loss=None, options=None, weight=None, task=1.0)) == ("ce", "ce")


def test_without_terms_an_objective_goes_by_its_name():
    assert variant_of("ce") == ("ce", "ce")
    assert variant_of("cc") == ("cc:zoo", "cc")
    assert variant_of("cc:crd") == ("cc:crd", "cc")
    assert variant_of("mine") == (UNKNOWN, "")
