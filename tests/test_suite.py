"""Suites: what they may contain, what it means, and which errors are reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import SuiteError, nearest
from kdbench.plan import matrix, probe
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read
from kdbench.plan.summary import power_lines
from kdbench.plan.yaml import suite_name
from kdbench.stats.power import paired_power

SUITES = Path(__file__).parents[1] / "suites"
CELLS = {"quickstart": 144, "cifar100_small": 71, "cifar100_table1": 294, "cifar100_crd": 441, "tiny_imagenet": 43, "imagenet1k": 44}
CELLS |= {"tiny_imagenet20": 13, "bccd_pcka": 51, "imagenet160": 25, "imagenet100": 19, "imagenet_r34_r18": 31, "imagenet_r50_mv1": 31}
CELLS |= {"claims_saha": 183, "claims_rcka": 183, "cifar100_shelf": 740}
CELLS |= {"bccd_pcka": 51, "coco_table3_frcnn": 22, "coco_table3_retinanet": 22, "coco_table3_fcos": 22, "digit_scenes": 22}
"""Every shipped suite and how many cells it has."""


def errors_of(path: Path) -> list[str]:
    """What reading, expanding and probing a suite reports, without the folder."""
    with pytest.raises(SuiteError) as caught:
        probe.probe(matrix.expand(read(path)))
    return [line.replace(f"{path.parent}/", "") for line in caught.value.errors]


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_suite_plans_to_its_stated_number_of_cells_without_a_refusal(path: Path) -> None:
    plan = matrix.expand(read(path))

    assert len(plan.cells) == CELLS[plan.suite.name]
    if " cells" in plan.suite.description:
        assert f" {len(plan.cells)} cells" in plan.suite.description
    probe.probe(plan)


def test_a_suite_is_resolved_with_every_default_written_out(plan_of: Callable[..., Plan]) -> None:
    config = plan_of().rows[-1].cell.config

    assert config["recipe"]["momentum"] == 0.9
    assert config["dataset"]["options"] == {"per_class": 4, "validation": 0.0, "split_seed": 0, "padding": 1}
    assert config["objective"]["terms"][0]["options"] == {"temperature": 4.0, "squared_temperature": True, "transform": "none"}


def test_an_objective_without_teacher_is_trained_once_a_student_and_stands_in_every_pair(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(teachers="{a: {model: small_mobile}, b: {model: cifar_resnet}}")

    assert sum(row.objective == "ce" for row in plan.rows) == 2
    assert plan.compared.count(("small", "a", "ce")) == plan.compared.count(("small", "b", "ce")) == 1


def test_numbers_and_words_that_bite_in_other_yaml_are_what_they_look_like(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(recipe="{name: short, epochs: 012, weight_decay: 1e-3, lr: 5E-2}", assumed='[no, 10:30, "on"]')

    recipe = plan.suite.students["small"].recipe
    assert (recipe["epochs"], recipe["weight_decay"], recipe["lr"]) == (12, 0.001, 0.05)
    assert plan.suite.assumed == ["no", "10:30", "on"]


def test_a_duplicate_key_is_refused_with_its_line(write_suite: Callable[..., Path]) -> None:
    path = write_suite()
    path.write_text(path.read_text() + "repeats: 9\n")

    assert errors_of(path) == [
        f"tiny.yaml:{len(path.read_text().splitlines())}: repeats: the key 'repeats' is given twice, first in line 10"
    ]


def test_errors_of_schema_and_names_are_reported_together_with_line_and_nearest_name(write_suite: Callable[..., Path]) -> None:
    path = write_suite(
        """
        name: typing errors
        dataset: {name: digit, per_class: 4}
        recipe: {name: short, epoch: 3}
        teachers: {big: {model: small_mobil}}
        students: {small: {model: small_mobile, widths: wide}}
        objectives: {ce: , rdk: , kd: {temprature: 2}, cka: }
        repeat: 3
        baselines: [ce, kdd]
        """
    )

    assert errors_of(path) == [
        "tiny.yaml:2: name: 'typing errors': a suite's name has at most 100 letters, digits, '_', '.' and '-', and does not end with .yaml",
        "tiny.yaml:3: dataset: there is no dataset 'digit'; did you mean 'digits'?",
        "tiny.yaml:4: recipe.epoch: the recipe 'short' has no option 'epoch'; did you mean 'epochs'?",
        "tiny.yaml:5: teachers.big.model: neither kdbench nor timm has a model 'small_mobil'; did you mean 'small_mobile'?",
        "tiny.yaml:6: students.small.widths: 'wide': expected a list",
        "tiny.yaml:7: objectives.rdk: there is no loss 'rdk'; did you mean 'rkd'?",
        "tiny.yaml:7: objectives.kd.temprature: the loss 'kd' has no option 'temprature'; did you mean 'temperature'?",
        "tiny.yaml:7: objectives.cka: 'cka' has no published weight: give `weight:` and `weight_from:` (released, tuned or assumed)",
        "tiny.yaml:8: repeat: unknown key; did you mean 'repeats'?",
        "tiny.yaml:9: baselines.1: 'kdd' is not among the suite's objectives; did you mean 'kd'?",
    ]


def test_text_in_place_of_a_truth_value_is_reported_as_yaml_reads_it(write_suite: Callable[..., Path]) -> None:
    path = write_suite(**{"+kd": "yes"})

    assert [line.partition(": ")[2] for line in errors_of(path)] == ["+kd: 'yes' is text in YAML 1.2: write true or false"]


def test_all_pairs_that_a_loss_refuses_are_reported_together(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(FLAT)
    path = write_suite(
        students="{small: {model: small_mobile}, flat: {model: flat.py:Flat}}",
        objectives="{ce: , sp: , kd: , staged: {loss: sp, tap: stages}}",
    )

    assert [line.partition(": ")[2] for line in errors_of(path)] == [
        "objectives.staged: small <- big: the loss 'sp' cannot be used: it compares stage by stage: the student has 3, the teacher 2",
        "objectives.sp: flat <- big: the loss 'sp' cannot be used: it needs the tap 'last', which the student does not have",
        "objectives.staged: flat <- big: the loss 'sp' cannot be used: it needs the tap 'stages', which the student does not have",
    ]


def test_a_students_own_recipe_cannot_break_the_shared_stream(write_suite: Callable[..., Path], plan_of: Callable[..., Plan]) -> None:
    own = plan_of(students="{small: {model: small_mobile, recipe: {lr: 0.01}}}").suite.students["small"].recipe
    assert own["lr"] == 0.01 and own["batch_size"] == 16

    path = write_suite(students="{small: {model: small_mobile, recipe: {batch_size: 8}}}")
    assert "a student's own 'batch_size' would break the data stream" in errors_of(path)[0]


def test_x_plus_kd_stands_beside_x(plan_of: Callable[..., Plan]) -> None:
    objectives = plan_of(objectives="{ce: , kd: , sp: , rkd: {+kd: false}}", **{"+kd": "true"}).suite.objectives

    assert list(objectives) == ["ce", "kd", "sp", "sp+kd", "rkd"]
    sp, kd = objectives["sp+kd"].config["terms"]
    assert (sp["loss"], sp["weight"], kd["loss"], kd["weight"], kd["options"]["temperature"]) == ("sp", 3000, "kd", 1, 4)
    assert objectives["sp+kd"].config["task"] == 1


def test_a_preset_brings_its_options_and_further_terms(plan_of: Callable[..., Plan]) -> None:
    config = plan_of(objectives="{ce: , rkd:official_cls: }").suite.objectives["rkd:official_cls"].config

    rkd, kd = config["terms"]
    assert rkd["options"]["l2"] == "both"
    assert (kd["loss"], kd["weight"], kd["options"]["squared_temperature"]) == ("kd", 16, False)


def test_objectives_can_be_put_together_from_terms_with_schedules(plan_of: Callable[..., Plan]) -> None:
    text = "{ce: , both: {task: 0.5, terms: [{loss: kd, weight: 2}, {loss: sp, weight: {0: 0, 10: 3000}, tap: pooled}]}}"
    config = plan_of(objectives=text).suite.objectives["both"].config

    assert config["task"] == 0.5
    assert [term["weight"] for term in config["terms"]] == [2, [[0, 0], [10, 3000]]]
    assert config["terms"][1]["options"]["tap"] == "pooled"


def test_an_exclude_removes_what_it_matches_and_one_that_matches_nothing_is_an_error(
    write_suite: Callable[..., Path], plan_of: Callable[..., Plan]
) -> None:
    plan = plan_of(objectives="[ce, kd, sp]", exclude="[{student: small, objective: [sp, kd]}]")
    assert {row.objective for row in plan.rows} == {"ce"}

    path = write_suite(exclude="[{teacher: big, objective: ce}]")
    assert errors_of(path) == [f"tiny.yaml:{len(path.read_text().splitlines())}: exclude.0: the rule matches no cell"]


def test_pairs_can_be_named_one_by_one(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(
        students="{s: {model: small_mobile}, r: {model: cifar_resnet}}",
        teachers="{a: {model: small_mobile}, b: {model: cifar_resnet}}",
        pairs="{s: a, r: [a, b]}",
    )

    assert plan.suite.pairs == [("s", "a"), ("r", "a"), ("r", "b")]


def test_a_timm_name_is_a_model(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(students="[resnet18]", dataset="{name: digits, per_class: 4}")

    assert plan.suite.students["resnet18"].model == {
        "name": "timm",
        "version": 1,
        "options": {"architecture": "resnet18", "drop_rate": 0.0, "drop_path_rate": 0.0, "stem": "own"},
    }
    probe.probe(plan)


def test_the_error_of_a_missing_suite_lists_the_suites_that_exist(tmp_path: Path, write_suite: Callable[..., Path]) -> None:
    write_suite()

    assert errors_of(tmp_path / "other.yaml") == ["there is no file other.yaml; did you mean 'tiny.yaml'?"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pairs": "{small: [big, big]}"}, "pairs.small: 'big' is given twice"),
        ({"baselines": "[ce, ce]"}, "baselines.1: 'ce' is given twice"),
        ({"objectives": "[ce, {kd: {temperature: 2}, weight: 3}]"}, "objectives.1: expected one name with its options, not kd, weight"),
        ({"objectives": "[ce, {}]"}, "objectives.1: expected one name with its options, not nothing"),
        ({"objectives": "{ce: , kd: {weight: .nan}}"}, "objectives.kd.weight: .nan is not a finite number of 64 bits"),
        (
            {"objectives": "{ce: , x: {terms: [{loss: kd, task: 0.1}]}}"},
            "objectives.x.terms.0.task: 'task' belongs to the objective, not to a term",
        ),
        ({"objectives": "{ce: , 'rdk:official_cls': }"}, "there is no loss and no module 'rdk'; did you mean 'rkd'?"),
        ({"recipe": "{name: short, warmup_epochs: -3}"}, "warmup_epochs must not be negative, and is -3"),
        (
            {"recipe": "{name: short, batch_size: 500, drop_last: true}"},
            "40 training images are less than a batch of 500, and `drop_last` drops it",
        ),
        ({"dataset": "{name: digits, per_class: 500}"}, "per_class must be between 1 and 80"),
        ({"dataset": "{name: digits, validation: 3.0}"}, "validation is the share of held-out training images"),
        ({"objectives": "{ce: , sp: {wieght: 3}}"}, "the loss 'sp' has no option 'wieght'; did you mean 'weight'?"),
        ({"+kd": "{weight: abc}", "objectives": "[ce, sp]"}, "+kd.weight: 'abc': expected a number"),
    ],
    ids=str,
)
def test_contradictions_and_impossible_values_are_reported(write_suite: Callable[..., Path], changes: dict[str, str], told: str) -> None:
    assert any(told in line for line in errors_of(write_suite(**changes)))


def test_an_objective_of_several_terms_carries_their_variants_and_the_weakest_claim(plan_of: Callable[..., Plan]) -> None:
    text = "{ce: , both: {terms: [{loss: cka, weight: 1, weight_from: assumed}, {loss: cc}]}}"
    both = plan_of(objectives=text, baselines="[ce]").suite.objectives["both"]

    assert both.label == "both (cka (centred), cc (taylor))"
    assert both.weight_from == "assumed"


def test_a_refused_pair_of_listed_objectives_is_reported_at_its_own_line(write_suite: Callable[..., Path]) -> None:
    path = write_suite(
        objectives="""
        - ce
        - kd
        - both:
            terms: [{loss: kd, weight: 1}, {loss: sp, weight: 1, tap: stages}]
        """,
        teachers="{big: {model: small_mobile, widths: [4, 6, 8]}}",
    )
    line = path.read_text().splitlines().index("  - both:") + 1

    assert errors_of(path)[0].startswith(f"tiny.yaml:{line}: objectives.both: small <- big: the loss 'sp' cannot be used")


FLAT = '''
from torch import nn
from kdbench.losses._base import Taps
from kdbench.models._base import Model


class Flat(Model):
    """A linear model: it has logits and nothing else."""

    def build(self, inputs, outputs):
        self.layer = nn.Linear(inputs[0] * inputs[1] * inputs[2], outputs)

    def forward(self, inputs):
        return Taps(logits=self.layer(inputs.flatten(1)))
'''


def test_the_margin_is_given_in_points_and_stored_like_the_metric(plan_of: Callable[..., Plan]) -> None:
    assert plan_of().manifest().margin == pytest.approx(0.002)
    said = plan_of(margin="0.5")
    assert said.manifest().margin == pytest.approx(0.005)
    assert list(said.cells) == list(plan_of().cells)  # what matters to a reader is no part of a training


def test_a_margin_of_zero_is_refused(write_suite: Callable[..., Path]) -> None:
    with pytest.raises(SuiteError) as told:
        read(write_suite(margin="0"))
    assert "margin" in str(told.value)


# Files that are no plain suite


def test_any_yaml_that_is_no_plain_data_is_refused_with_a_sentence(write_suite: Callable[..., Path]) -> None:
    refused = {
        "objectives: &a {x: *a}": "the anchor &a contains itself",
        "objectives: &a [ce, *a]": "the anchor &a contains itself",
        "x: &x {<<: *x}": "the anchor &x contains itself",
        "x: &x {<<: [{a: 1}, *x]}": "the anchor &x contains itself",
        "x: {<<: 5}": "`<<` merges a mapping, or a list of mappings",
        "x: {<<: [{a: 1}, text]}": "`<<` merges a mapping, or a list of mappings",
        "objectives: !!omap [ce: ]": "objectives: the tag !!omap is not supported",
        "objectives: !!set {ce, kd}": "objectives: the tag !!set is not supported",
        "repeats: !!binary Mw==": "repeats: the tag !!binary is not supported",
        "repeats: !mine 3": "repeats: the tag !mine is not supported",
        "objectives: !python/object:os.system [ce]": "the tag !python/object:os.system is not supported",
        "repeats: !!int many": "repeats: 'many' cannot be read as a number",
        "repeats: !!float ''": "repeats: '' cannot be read as a number",
        "repeats: !!bool 3": "repeats: '3' cannot be read as a number or truth value",
        "seed: 99999999999999999999": "seed: 99999999999999999999 is not a finite number of 64 bits",
        "seed: " + "9" * 5000: "cannot be read as a number",
        "margin: .inf": "margin: .inf is not a finite number",
        "margin: 1e999": "margin: 1e999 is not a finite number",
        "true: 3": "a key is text or a whole number, not 'true'",
        "null: 3": "a key is text or a whole number, not 'null'",
        "? \n: 3": "a key is text or a whole number, not empty",
        "1.5: 3": "a key is text or a whole number, not '1.5'",
        "[a]: 3": "a key is text or a whole number, not a list",
        "{a: b}: 3": "a key is text or a whole number, not a mapping",
        "1: 3": "1: unknown key",
        "'': 3": "the name '' is empty or has spaces at its ends",
        "' repeats': 3": "the name ' repeats' is empty or has spaces at its ends",
        '"a\\nb": 3': r"the name 'a\nb' has a line break or a tab",
        '"a\\tb": 3': r"the name 'a\tb' has a line break or a tab",
        "k" * 300 + ": 3": "has 300 characters, and the limit is 200",
        "e\u0301: 3": "is in decomposed Unicode",
        'description: "\\e[31mred"': "description: the character U+001B is not allowed",
        'description: "\\0"': "description: the character U+0000 is not allowed",
        'description: "\\ud800"': "description: the character U+D800 is not allowed",
        "description: \u202etxet": "the character U+202E is not allowed",
        "description: \x1b[31m": "the character U+001B is not allowed",
        "description: \x00": "the character U+0000 is not allowed",
        "description: " + "x" * 10_001: "a text has at most 10,000 characters, not 10,001",
        "x: " + "[" * 3000: "nested more than 30 deep",
        "x: " + "[" * 40 + "]" * 40: "nested more than 30 deep",
        "x: " + "{a: " * 40 + "}" * 40: "nested more than 30 deep",
        "- " * 2000: "nested more than 30 deep",
        "x: [" + "1," * 20_000 + "]": "more than 20,000 values",
        "x: " + "y" * 100_001: "larger than 100 kB",
        "\tname: x": "cannot start any token",
        "name: *nowhere": "undefined alias",
        "a: 1\n---\nb: 2": "expected a single document",
        "": "not empty",
        "[a]": "not a list",
        "text": "not text",
        "!!set {name}": "a suite is a mapping",
    }
    path = write_suite()
    for text, expected in refused.items():
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(SuiteError) as caught:
            read(path)
        assert expected in str(caught.value), (text[:60], str(caught.value)[:200])
        assert str(caught.value).isprintable() or "\n" in str(caught.value)


def test_aliases_that_multiply_are_counted_before_they_are_expanded(write_suite: Callable[..., Path]) -> None:
    path = write_suite()
    lists = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 20))
    for text in (lists, merges):
        path.write_text(text)
        with pytest.raises(SuiteError, match="more than 20,000 values, with its aliases expanded"):
            read(path)


def test_aliases_merges_and_other_line_ends_are_plain_data(write_suite: Callable[..., Path], plan_of: Callable[..., Plan]) -> None:
    path = write_suite()
    expected = list(matrix.expand(read(path)).cells)
    text = path.read_text()
    for other in (text.replace("\n", "\r\n"), text.replace("\n", "\r"), "\ufeff" + text, f"%YAML 1.2\n---\n{text}...\n"):
        path.write_bytes(other.encode())
        assert list(matrix.expand(read(path)).cells) == expected

    net = "{model: small_mobile, widths: [9, 9]}"
    students = plan_of(students=f"{{a: &a {net}, b: {{<<: [{{widths: [4, 6]}}, *a]}}, c: {{widths: [5, 7], <<: *a}}}}").suite.students
    assert [net.model["options"]["widths"] for net in students.values()] == [[9, 9], [4, 6], [5, 7]]


def test_a_misspelt_key_that_was_merged_is_reported_where_it_was_written(write_suite: Callable[..., Path]) -> None:
    path = write_suite(
        teachers="{big: &net {model: small_mobile, widhts: [8, 12], min_top1: 0.0}}", students="{small: {<<: *net}}", objectives="[ce]"
    )
    assert any(
        "students.small.widhts: the model 'small_mobile' has no option 'widhts'; did you mean 'widths'?" in one for one in errors_of(path)
    )


def test_what_is_no_regular_utf_8_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"name: x\ndescription: caf\xe9\n")
    (tmp_path / "wide.yaml").write_bytes("name: x\n".encode("utf-16"))
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    refused = {
        str(tmp_path / "fifo.yaml"): "is not a regular file",
        str(tmp_path / "folder.yaml"): "is a folder, not a file",
        str(tmp_path / "latin.yaml"): "latin.yaml:2: the file is not UTF-8",
        str(tmp_path / "wide.yaml"): "the file is not UTF-8",
        str(tmp_path / "loop.yaml"): "loop.yaml",
        str(tmp_path / ("x" * 300)): "cannot be read: File name too long",
        "/dev/zero": "is not a regular file",
        "quickstart": "`kdbench init NAME --from quickstart` writes a copy of the shipped suite",
    }
    for path, expected in refused.items():
        with pytest.raises(SuiteError) as caught:
            read(path)
        assert expected in str(caught.value)


def test_a_file_that_may_not_be_read_is_reported(write_suite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_suite()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SuiteError, match=r"tiny\.yaml cannot be read: Permission denied"):
        read(path)


def test_a_suite_that_is_too_large_is_refused_before_it_is_expanded(write_suite: Callable[..., Path]) -> None:
    many = ", ".join(f"n{number}: {{model: small_mobile}}" for number in range(200))
    refused = [
        (
            {"repeats": "1000000"},
            "2,000,001 cells before `exclude` (1 pairs, 2 objectives, 1000000 repeats, 1 of each teacher), and the limit is 20,000",
        ),
        ({"teacher_seeds": "1000000"}, "3,000,002 cells before `exclude`"),
        ({"teacher_seeds": "1e6"}, "teacher_seeds: 1000000.0: expected a whole number"),
        ({"students": f"{{{many}}}", "teachers": f"{{{many}}}"}, "200 students with 200 teachers are too many pairs"),
        ({"students": f"[{', '.join(f's{i}' for i in range(1001))}]"}, "students: expected 1 to 1,000 names, not 1001"),
        ({"objectives": f"[{', '.join(f's{i}' for i in range(1001))}]"}, "objectives: expected at most 1,000 objectives, not 1001"),
        ({"exclude": f"[{', '.join(['{objective: kd}'] * 201)}]"}, "exclude: expected at most 200 rules, not 201"),
    ]
    for changes, expected in refused:
        assert any(expected in line for line in errors_of(write_suite(**changes))), changes


def test_after_a_hundred_errors_the_rest_is_not_looked_for(write_suite: Callable[..., Path]) -> None:
    lines = errors_of(write_suite(baselines=f"[{', '.join(f'b{i}' for i in range(500))}]"))

    assert len(lines) == 101 and lines[-1] == "there may be more errors: only the first 100 are shown"


# Where an error is, and what is right instead


def test_an_error_inside_an_option_has_its_full_path_and_the_nearest_right_key_or_value(write_suite: Callable[..., Path]) -> None:
    reported = [
        ({"dataset": "{name: cifar100, subset: {perclass: 5}}"}, "dataset.subset.perclass: unknown key; did you mean 'per_class'?"),
        ({"dataset": "{name: cifar100, subset: {classes: few}}"}, "dataset.subset.classes: 'few': expected "),
        ({"students": "{s: {model: resnet18, stem: smal}}"}, "students.s.stem: 'smal': expected 'own' or 'small'; did you mean 'small'?"),
        ({"students": "{s: {model: small_mobile, widths: [4, six]}}"}, "students.s.widths.1: 'six': expected a whole number"),
        (
            {"students": "{s: {model: small_mobile, head: keep, weights: x.pth}}"},
            "students.s.head: 'keep': expected 'kept' or 'new'; did you mean 'kept'?",
        ),
        ({"numerics": "exakt"}, "numerics: 'exakt': expected 'exact' or 'fast'; did you mean 'exact'?"),
        ({"exclude": "[{studnet: small}]"}, "exclude.0.studnet: unknown key; did you mean 'student'?"),
        ({"exclude": "[{student: 3}]"}, "exclude.0.student: 3: expected text or a list"),
        (
            {"objectives": "{ce: , kd: {weight_from: asumed}}"},
            "objectives.kd.weight_from: 'asumed': expected 'published', 'released', 'tuned' or 'assumed'; did you mean 'assumed'?",
        ),
        ({"objectives": "{ce: , kd: {weight: {0: 1, 5: much}}}"}, "objectives.kd.weight.5: 'much': expected a number"),
        ({"objectives": "{ce: , kd: {weight: {5: 1, 0: 1}}}"}, "objectives.kd.weight: a schedule of weights is a mapping from epoch"),
        ({"objectives": "{ce: , kd: {temperature: hot}}"}, "objectives.kd.temperature: 'hot': expected a number"),
        (
            {"objectives": "{ce: , x: {terms: [{loss: kd, temprature: 3}]}}"},
            "objectives.x.terms.0.temprature: the loss 'kd' has no option 'temprature'; did you mean 'temperature'?",
        ),
        ({"objectives": "{ce: , x: {terms: [kd]}}"}, "objectives.x.terms.0: 'kd': expected a mapping"),
        ({"objectives": "{ce: , kd: {1: 2}}"}, "objectives.kd.1: a key here is text: put it in quotes"),
        (
            {"objectives": "{ce: , kd: {pairing: shufled}}"},
            "objectives.kd.pairing: 'shufled': expected 'matched', 'shuffled', 'shuffled_globally' or 'shuffled_in_class'; did you mean 'shuffled'?",
        ),
        ({"recipe": "{name: short, epochs: 3.5}"}, "recipe.epochs: 3.5: expected a whole number"),
        ({"recipe": "{epochs: 3}"}, "recipe: the key 'name' is missing"),
        ({"repeats": "0"}, "repeats: 0: expected a number of at least 1"),
        ({"teachers": "5", "pairs": "{small: big}"}, "teachers: 5: expected a list or a mapping"),
        ({"teachers": "{big: 5}"}, "teachers.big: 5: expected a mapping"),
        ({"baselines": "[nothing]"}, "baselines.0: 'nothing' is not among the suite's objectives; available: ce, kd"),
    ]
    for changes, expected in reported:
        lines = errors_of(write_suite(**changes))
        assert any(expected in line for line in lines), (changes, lines)
        assert not any("Value error" in line or "Input should" in line or "ce, ce" in line for line in lines)


def test_a_suite_named_after_its_file_has_a_name_that_can_be_a_folder(write_suite: Callable[..., Path]) -> None:
    for file in ("my suite.yaml", "-x.yaml"):
        assert any("a suite's name has at most 100 letters" in line for line in errors_of(write_suite(file=file, name=None)))
    assert any("does not end with .yaml" in line for line in errors_of(write_suite(name="tiny.yaml")))
    for name in ("../x", "''", "[a]", "5 6"):
        with pytest.raises(SuiteError, match="a suite's name has at most 100 letters"):
            suite_name(str(write_suite(name=name)))
    assert suite_name(str(write_suite(name="5"))) == "5" and suite_name("any") == "any"
    with pytest.raises(SuiteError, match="any is neither the name of a suite nor its YAML file"):
        suite_name("../any")
    home = write_suite().parent / "measured"
    home.mkdir()
    (home / "frame.csv").write_text("")
    with pytest.raises(SuiteError, match=r"measured is neither the name .*; did you mean .*measured/frame.csv\?"):
        suite_name(str(home))


def test_a_path_names_the_yaml_file_of_a_suite_also_without_its_ending(write_suite: Callable[..., Path], monkeypatch: Any) -> None:
    path = write_suite(file="mine.yaml", name="other")
    monkeypatch.chdir(path.parent)
    (path.parent / "bare").write_text(path.read_text())
    stored = Path("results", "suites", "old")
    stored.mkdir(parents=True)
    (stored / "manifest.json").write_text("{}")
    for text in ("./mine", "./mine.yaml", str(path.with_suffix("")), f"../{path.parent.name}/mine", "./bare", "bare"):
        assert suite_name(text) == "other" and read(Path(text)).name == "other"
    assert suite_name("mine") == "mine" and suite_name(str(stored)) == suite_name("./results/suites/old") == "old"
    Path("mine").mkdir()
    assert suite_name("./mine") == "other"
    for text in ("./none", "./results", "./mine.txt"):
        with pytest.raises(SuiteError, match="neither the name of a suite nor its YAML file"):
            suite_name(text)


def test_the_beginning_of_a_name_is_the_nearest_guess() -> None:
    assert nearest("temp", ["terms", "temperature"]) == "; did you mean 'temperature'?"
    assert nearest("cifar", ["cifar10", "cifar100"]) == "; did you mean 'cifar10'?" and nearest("t", ["temperature"]).startswith(
        "; available"
    )


def test_what_kdbench_cannot_read_of_a_users_part_is_one_error(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from kdbench.losses._base import Loss\n\n\nclass Odd(Loss):\n    def __init__(self, *, x: int = 1):\n        raise ZeroDivisionError('x')\n"
    )
    for loss, expected in (
        ("odd.py:Odd", "cannot be built with these options: x"),
        ("odd.py:", "has no ''"),
        ("x" * 300 + ".py:X", "File name too long"),
        ("sys:path", "sys"),
        ("..x:y", "failed"),
        (":", "failed"),
    ):
        lines = errors_of(write_suite(objectives=f"{{ce: , x: {{loss: '{loss}', weight: 1}}}}"))
        assert len(lines) == 1 and expected in lines[0], (loss, lines)


# Names


def test_an_objective_that_plus_kd_would_replace_is_an_error_that_names_both(write_suite: Callable[..., Path]) -> None:
    for objectives in ("{ce: , sp: , sp+kd: {loss: kd}}", "{ce: , sp+kd: {loss: kd}, sp: }", "[ce, sp, sp+kd: {loss: kd}]"):
        lines = errors_of(write_suite(objectives=objectives, **{"+kd": "true"}))
        assert len(lines) == 1
        assert (
            "`+kd` adds an objective 'sp+kd', and the suite has one of that name: rename 'sp+kd', or write `+kd: false` for 'sp'"
            in lines[0]
        )


def test_two_objectives_that_tables_would_print_alike_are_an_error(write_suite: Callable[..., Path], plan_of: Callable[..., Plan]) -> None:
    lines = errors_of(write_suite(objectives="{ce: , cc: , cc (taylor): {loss: kd}}"))
    assert len(lines) == 1 and "'cc (taylor)' and 'cc' have the same label in tables, 'cc (taylor)': rename one" in lines[0]
    lines = errors_of(write_suite(objectives="{ce: , cc: , cc (taylor)+kd: {loss: kd}}", **{"+kd": "true"}))
    assert any("have the same label in tables, 'cc (taylor)+kd'" in line for line in lines)
    assert any("'kd' is given twice" in line for line in errors_of(write_suite(objectives="[ce, kd, kd]")))
    assert any("'small_mobile' is given twice" in line for line in errors_of(write_suite(students="[small_mobile, small_mobile]")))


def test_words_of_the_program_can_be_names(plan_of: Callable[..., Plan]) -> None:
    words = ("teacher", "student", "dataset", "repeat", "objective", "role", "id", "overall", "None", "nan", "ce+kd")
    nets = f"{{{', '.join(f'{word}: {{model: small_mobile, widths: [4, {place + 4}]}}' for place, word in enumerate(words))}}}"
    losses = f"{{ce: , kd: , {', '.join(f'{word}: {{loss: kd, temperature: {place + 2}}}' for place, word in enumerate(words))}}}"
    plan = plan_of(students=nets, teachers=nets, objectives=losses, repeats="1")

    assert set(words) < set(plan.suite.objectives) and set(words) == set(plan.suite.students) == set(plan.suite.teachers)
    assert len(plan.rows) == len(words) * (1 + 1 + len(words) * (1 + len(words)))


def test_plan_shows_what_the_repeats_find_and_warns_below_five(plan_of: Callable[..., Plan]) -> None:
    """kd and sp each against ce, sp against kd: 3 comparisons in a pair, 3 for the mean over the pairs."""
    two_pairs = {"objectives": "[ce, kd, sp]", "teachers": "{a: {model: small_mobile}, b: {model: cifar_resnet}}"}
    few = power_lines(plan_of(**two_pairs, repeats="3"))
    sd = 0.3 * 2**0.5
    overall, single = paired_power(2**0.5 / sd, 3, 0.05 / 3), paired_power(1 / sd, 3, 0.05 / 6)

    assert few[1].startswith("  mean over all 2 pairs: 4 sd (") and "3 comparisons" in few[1]
    assert few[2].startswith("  one pair: ") and "6 comparisons" in few[2]
    assert f"3 repeats are few: they find a true difference of 1 point with a probability of {100 * overall:.0f} %" in few[3]
    assert f"{100 * single:.0f} % (one pair)" in few[3]
    assert "Use 5 or more repeats" in few[4] and "0.3 points" in few[4] and "0.42 points" in few[5]

    assert not any("warning" in line for line in power_lines(plan_of(**two_pairs, repeats="5")))
    assert power_lines(plan_of(**two_pairs, repeats="1")) == ["warning: with 1 repeat no difference is tested. Use 5 or more repeats."]
    one_pair = power_lines(plan_of(objectives="[ce, kd]", repeats="4"))
    assert "mean over all" not in "".join(one_pair) and "(strictest step of Holm, 1 comparisons)" not in "".join(one_pair)
    assert power_lines(plan_of(objectives="[sp]", baselines="[]")) == ["no comparisons: the suite has no baseline, or no other objective"]


def test_values_in_the_wrong_unit_and_negative_weights_are_errors(write_suite: Callable[..., Path]) -> None:
    per_cent = "it must be between 0 and 1; is it in per cent? Divide by 100"
    assert [per_cent in line for line in errors_of(write_suite(min_top1="90"))] == [True]
    nets = "{big: {model: small_mobile, min_top1: 90}}"
    assert [per_cent in line for line in errors_of(write_suite(teachers=nets))] == [True]
    read(write_suite(min_top1="1", teachers="{big: {model: small_mobile, min_top1: 0}}"))
    for weight in ("-1", "{0: 1, 3: -2}"):
        told = errors_of(write_suite(objectives=f"{{ce: , sp: {{weight: {weight}, weight_from: assumed}}}}", baselines="[ce]"))
        assert len(told) == 1 and "a weight is a number of at least 0" in told[0], told


def test_a_misspelt_model_with_options_is_named_with_its_nearest(write_suite: Callable[..., Path]) -> None:
    told = errors_of(write_suite(teachers="{big: {model: cifar_resnett, dpth: 20}}"))
    assert [line.partition(": ")[2] for line in told] == [
        "teachers.big.model: neither kdbench nor timm has a model 'cifar_resnett'; did you mean 'cifar_resnet'?"
    ]
