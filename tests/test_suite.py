"""Suites: what may be said, what it means, and what a mistaken one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import SuiteError
from kdbench.plan import matrix, probe
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read

SUITES = Path(__file__).parents[1] / "suites"
CELLS = {
    "quickstart": 71,
    "cifar100_small": 71,
    "cifar100_table1": 294,
    "cifar100_crd": 441,
    "tiny_imagenet": 43,
    "imagenet1k": 44,
}
"""Every shipped suite and how many cells it has."""


def mistakes(path: Path) -> list[str]:
    """What reading, expanding and probing a suite complains of, without the folder."""
    with pytest.raises(SuiteError) as caught:
        probe.probe(matrix.expand(read(path)))
    return [line.replace(f"{path.parent}/", "") for line in caught.value.mistakes]


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_suite_plans_to_its_stated_number_of_cells_without_a_refusal(path: Path) -> None:
    plan = matrix.expand(read(path))

    assert len(plan.cells) == CELLS[plan.suite.name]
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

    assert mistakes(path) == [
        f'tiny.yaml:{len(path.read_text().splitlines())}: found duplicate key "repeats" with value "9" (original value: "2")'
    ]


def test_mistakes_of_schema_and_names_are_told_together_with_line_and_nearest_name(write_suite: Callable[..., Path]) -> None:
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

    assert mistakes(path) == [
        "tiny.yaml:2: name: 'typing errors': Value error, a suite's name becomes a folder: letters, digits, '_', '.' and '-' only",
        "tiny.yaml:8: repeat: a suite has no such key; did you mean 'repeats'?",
        "tiny.yaml:3: dataset: there is no dataset 'digit'; did you mean 'digits'?",
        "tiny.yaml:4: recipe.epoch: the recipe 'short' has no option 'epoch'; did you mean 'epochs'?",
        "tiny.yaml:6: students.small: the model 'small_mobile' takes no 'wide' for 'widths': Input should be a valid array",
        "tiny.yaml:5: teachers.big.model: neither kdbench nor timm has a model 'small_mobil'; did you mean 'small_mobile'?",
        "tiny.yaml:7: objectives.rdk: there is no loss 'rdk'; did you mean 'rkd'?",
        "tiny.yaml:7: objectives.kd.temprature: the loss 'kd' has no option 'temprature'; did you mean 'temperature'?",
        "tiny.yaml:7: objectives.cka: no weight was ever published for 'cka': say `weight:`, and `weight_from:` released, tuned or assumed",
        "tiny.yaml:9: baselines.1: 'kdd' is not among the suite's objectives; did you mean 'kd'?",
    ]


def test_text_where_a_truth_value_belongs_is_told_how_yaml_reads_it(write_suite: Callable[..., Path]) -> None:
    path = write_suite(**{"+kd": "yes"})

    assert [line.partition(": ")[2] for line in mistakes(path)] == ["+kd: 'yes' is text in YAML 1.2: write true or false"]


def test_then_all_pairs_that_a_loss_refuses_are_told_together(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(FLAT)
    path = write_suite(
        students="{small: {model: small_mobile}, flat: {model: flat.py:Flat}}",
        objectives="{ce: , sp: , kd: , staged: {loss: sp, tap: stages}}",
    )

    assert [line.partition(": ")[2] for line in mistakes(path)] == [
        "objectives.staged: small <- big: the loss 'sp' refuses: it compares stage by stage: the student has 3, the teacher 2",
        "objectives.sp: flat <- big: the loss 'sp' refuses: it needs the tap 'last', which the student does not have",
        "objectives.staged: flat <- big: the loss 'sp' refuses: it needs the tap 'stages', which the student does not have",
    ]


def test_a_students_own_recipe_cannot_break_the_shared_stream(write_suite: Callable[..., Path], plan_of: Callable[..., Plan]) -> None:
    own = plan_of(students="{small: {model: small_mobile, recipe: {lr: 0.01}}}").suite.students["small"].recipe
    assert own["lr"] == 0.01 and own["batch_size"] == 16

    path = write_suite(students="{small: {model: small_mobile, recipe: {batch_size: 8}}}")
    assert "a student's own 'batch_size' would break the data stream" in mistakes(path)[0]


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


def test_an_exclude_takes_out_what_it_matches_and_one_that_matches_nothing_is_a_mistake(
    write_suite: Callable[..., Path], plan_of: Callable[..., Plan]
) -> None:
    plan = plan_of(objectives="[ce, kd, sp]", exclude="[{student: small, objective: [sp, kd]}]")
    assert {row.objective for row in plan.rows} == {"ce"}

    path = write_suite(exclude="[{teacher: big, objective: ce}]")
    assert mistakes(path) == [f"tiny.yaml:{len(path.read_text().splitlines())}: exclude.0: it matches nothing in the matrix"]


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


def test_a_missing_suite_is_told_with_the_suites_that_there_are(tmp_path: Path, write_suite: Callable[..., Path]) -> None:
    write_suite()

    assert mistakes(tmp_path / "other.yaml") == ["there is no file other.yaml; there is: tiny.yaml"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pairs": "{small: [big, big]}"}, "pairs.small: 'big' stands twice"),
        ({"baselines": "[ce, ce]"}, "baselines.1: 'ce' stands twice"),
        ({"objectives": "[ce, {kd: {temperature: 2}, weight: 3}]"}, "objectives.1: one name with its options stands here, not kd, weight"),
        ({"objectives": "[ce, {}]"}, "objectives.1: one name with its options stands here, not nothing"),
        ({"objectives": "{ce: , kd: {weight: .nan}}"}, "objectives.kd.weight: nan is no number to compute with"),
        (
            {"objectives": "{ce: , x: {terms: [{loss: kd, task: 0.1}]}}"},
            "objectives.x.terms.0.task: 'task' is the objective's, not a term's",
        ),
        ({"objectives": "{ce: , 'rdk:official_cls': }"}, "there is neither a loss 'rdk' nor a module of that name; did you mean 'rkd'?"),
        ({"recipe": "{name: short, warmup_epochs: -3}"}, "warmup_epochs must not be negative, and is -3"),
        (
            {"recipe": "{name: short, batch_size: 500, drop_last: true}"},
            "40 training images make no batch of 500, and drop_last drops the rest",
        ),
        ({"dataset": "{name: digits, per_class: 500}"}, "per_class must be between 1 and 80"),
        ({"dataset": "{name: digits, validation: 3.0}"}, "validation is the share that is held out"),
        ({"objectives": "{ce: , sp: {wieght: 3}}"}, "the loss 'sp' has no option 'wieght'; did you mean 'weight'?"),
        ({"+kd": "{weight: abc}", "objectives": "[ce, sp]"}, "+kd.weight: 'abc': Input should be a valid number"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_told(write_suite: Callable[..., Path], changes: dict[str, str], told: str) -> None:
    assert any(told in line for line in mistakes(write_suite(**changes)))


def test_an_objective_of_several_terms_carries_their_variants_and_the_weakest_claim(plan_of: Callable[..., Plan]) -> None:
    text = "{ce: , both: {terms: [{loss: cka, weight: 1, weight_from: assumed}, {loss: cc}]}}"
    both = plan_of(objectives=text, baselines="[ce]").suite.objectives["both"]

    assert both.label == "both (cka (centred), cc (taylor))"
    assert both.weight_from == "assumed"


def test_a_refused_pair_of_listed_objectives_is_told_at_its_own_line(write_suite: Callable[..., Path]) -> None:
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

    assert mistakes(path)[0].startswith(f"tiny.yaml:{line}: objectives.both: small <- big: the loss 'sp' refuses")


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


def test_the_margin_is_said_in_points_and_kept_as_the_metric_is(plan_of: Callable[..., Plan]) -> None:
    assert plan_of().manifest()["margin"] == pytest.approx(0.002)
    said = plan_of(margin="0.5")
    assert said.manifest()["margin"] == pytest.approx(0.005)
    assert list(said.cells) == list(plan_of().cells)  # what matters to a reader is no part of a training


def test_a_margin_that_is_none_is_refused(write_suite: Callable[..., Path]) -> None:
    with pytest.raises(SuiteError) as told:
        read(write_suite(margin="0"))
    assert "margin" in str(told.value)
