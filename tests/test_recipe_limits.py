"""Recipes that a task, a dataset, a loss or a training cannot follow are refused when planning; the others keep the ids of their cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch

from kdbench.cli import main
from kdbench.errors import SuiteError
from kdbench.losses._base import Batch
from kdbench.parts import Part, load
from kdbench.plan import probe
from kdbench.plan.matrix import Plan
from kdbench.plan.recipe_limits import slow_averages
from kdbench.plan.suite import read
from kdbench.recipes._base import Recipe
from kdbench.recipes.short import Short
from kdbench.store import Store
from kdbench.timm_adapter import make_optimizer
from kdbench.train import check, profile

PARTS = """
from kdbench import Loss
from kdbench.datasets.digits import Digits
from kdbench.tasks.classification import Classification


class Hard(Loss):
    needs = frozenset({"logits", "target"})

    def forward(self, student, teacher, batch):
        return -student.logits.log_softmax(1).gather(1, batch.target[:, None]).mean()


class Soft(Hard):
    takes_mixed = True

    def forward(self, student, teacher, batch):
        return -(batch.target * student.logits.log_softmax(1)).sum(1).mean()


class Bank(Loss):
    needs = frozenset({"logits", "index"})
    couples = "sample"

    def forward(self, student, teacher, batch):
        return student.logits.square().mean()


class Bare(Classification):
    mix = Classification.__mro__[1].mix
    couples = "batch"

    def __init__(self):
        super().__init__()


class Other(Digits):
    augments = False
    task = "own.py:Bare"
"""


@pytest.fixture
def problems(plan_of: Callable[..., Plan], tmp_path: Path) -> Callable[..., str]:
    """What planning says against a recipe; empty if it accepts it."""
    (tmp_path / "own.py").write_text(PARTS)

    def told(recipe: str, **changes: str) -> str:
        whole = f"{{name: short, epochs: 3, batch_size: 16, lr: 0.02, milestones: [2]{recipe and ', '}{recipe}}}"
        try:
            probe.probe(plan_of(recipe=whole, repeats="1", **changes))
        except SuiteError as error:
            return str(error)
        return ""

    return told


LOSSES = (
    "{ce: , kd: , hard: {loss: 'own.py:Hard', weight: 1}, soft: {loss: 'own.py:Soft', weight: 1}, bank: {loss: 'own.py:Bank', weight: 1}}"
)


def test_losses_of_single_classes_or_indices_are_refused_with_mixed_images_unless_they_take_them(problems: Callable[..., str]) -> None:
    for recipe in ("mixup: 0.2", "cutmix: 1", "mixup: 0.2, cutmix: 1, mix_probability: 0.5"):
        said = problems(recipe, objectives=LOSSES)
        assert [line.split(":")[2].strip() for line in said.splitlines()] == ["objectives.hard", "objectives.bank"]
        assert said.count("mixed images have two: leave mixup and cutmix out of the recipe") == 2
    without = LOSSES.replace(", soft: {loss: 'own.py:Soft', weight: 1}", "")
    assert problems("mixup: 0.2", objectives="{soft: {loss: 'own.py:Soft', weight: 1}}") == ""
    assert problems("label_smoothing: 0.1, random_erasing: 0.2, ema: 0.5", objectives=without) == ""
    assert (
        problems("mixup: 0.2", objectives="[ce, kd, sp, cc, 'cc:crd', rkd, 'rcka:released', {cka: {weight: 1, weight_from: assumed}}]")
        == ""
    )


def test_losses_that_compare_images_are_refused_with_accumulation(problems: Callable[..., str]) -> None:
    said = problems("accumulate: 4", objectives="[ce, kd, sp, cc, rkd, 'rcka:released', {cka: {weight: 1, weight_from: assumed}}]")
    assert [line.split(":")[2].strip() for line in said.splitlines()] == [
        f"objectives.{name}" for name in ("sp", "cc", "rkd", "rcka", "cka")
    ]
    assert said.count("accumulate would give it parts of the batch") == 5
    assert "outputs for other images of its batch" in problems("accumulate: 4", objectives="{control: {loss: kd, pairing: shuffled}}")
    assert "objectives.hard: the loss 'own.py:Hard' compares the images" in problems("accumulate: 4", objectives=LOSSES)
    assert problems("accumulate: 4", objectives="{ce: , kd: , bank: {loss: 'own.py:Bank', weight: 1}}") == ""


def test_what_a_task_or_a_dataset_does_not_have_is_refused_with_its_line(problems: Callable[..., str]) -> None:
    recipe = "mixup: 0.2, cutmix: 1, label_smoothing: 0.1, task_loss: binary_cross_entropy, rand_augment: rand-m5, random_erasing: 0.1"
    said = problems(f"{recipe}, accumulate: 2", dataset="{name: 'own.py:Other', per_class: 4}", objectives="[ce]")
    for words in (
        *(f"the task 'Bare' has no {option}" for option in ("label_smoothing", "task_loss")),
        *(f"the task 'Bare' has no mixed images: leave {option} out" for option in ("mixup", "cutmix")),
        *(f"the dataset 'own.py:Other' has no {option}" for option in ("rand_augment", "random_erasing")),
        "the loss of the task 'Bare' needs whole batches",
    ):
        assert words.replace("'Bare'", "'own.py:Bare'") in said, words
    assert len(said.splitlines()) == 14  # of the student and of the teacher
    assert problems("ema: 0.5", dataset="{name: 'own.py:Other', per_class: 4}", objectives="[ce]") == ""
    own = "{small: {model: small_mobile, widths: [4, 6], recipe: {label_smoothing: 0.2}}}"
    said = problems("", dataset="{name: 'own.py:Other', per_class: 4}", objectives="[ce]", students=own)
    assert len(said.splitlines()) == 1 and "students.small: the task 'own.py:Bare' has no label_smoothing" in said


def test_a_first_stage_follows_a_recipe_of_its_own(problems: Callable[..., str]) -> None:
    def told(words: str, recipe: str = "", dataset: str = "own.py:Other", loss: str = "loss: at") -> list[str]:
        objectives = f"ce:\nkd:\nmine:\n  {loss}\n  two_stages:\n    epochs: 1\n    " + "\n    ".join(words.split(", "))
        return problems(recipe, dataset=f"{{name: '{dataset}', per_class: 4}}", objectives=objectives).splitlines()

    few = "40 training images are less than a batch of 64"
    for words, dataset, expected in (
        ("rand_augment: rand-m5", "own.py:Other", "the dataset 'own.py:Other' has no rand_augment: leave it out"),
        ("random_erasing: 0.5", "own.py:Other", "the dataset 'own.py:Other' has no random_erasing: leave it out"),
        ("mixup: 0.5", "own.py:Other", "the task 'own.py:Bare' has no mixed images: leave mixup out"),
        ("label_smoothing: 0.1", "own.py:Other", "the task 'own.py:Bare' has no label_smoothing: leave it out"),
        ("accumulate: 2", "own.py:Other", "the loss of the task 'own.py:Bare' needs whole batches"),
        ("batch_size: 64, drop_last: true", "digits", few),
        ("layer_decay: 0.5", "digits", "`layer_decay` needs a model that states its layers"),
    ):
        (line,) = told(words, dataset=dataset)
        assert "objectives.mine.two_stages: " in line and expected in line, words
        # The line of the option that is wrong, the last one.
        lines = (said := line.partition(".yaml:")[2]).partition(":")[0]
        assert int(lines) == 16 + len(words.split(", ")), (words, said)
    # What is wrong with the recipe of both stages is told once, and what the first changes in its own place.
    both = told("lr: 0.1", "rand_augment: rand-m5, layer_decay: 0.5")
    assert len(both) == 4 and not [line for line in both if "two_stages" in line]
    assert [few in line and "two_stages" in line for line in told("batch_size: 64", "drop_last: true", "digits")] == [True]
    assert not told("rand_augment: rand-m5", dataset="digits") and not told("batch_size: 64", dataset="digits")
    assert told("rand_augment: null", "rand_augment: rand-m5") and "two_stages" not in "".join(told("lr: 0.1", "rand_augment: rand-m5"))
    # A loss is tried with the targets of its own stage, which mixed images change.
    soft = "loss: 'own.py:Soft'\n  weight: 1"
    assert not told("mixup: 0.5", "mixup: 0.5", "digits", soft)
    assert "objectives.mine" in "".join(told("mixup: 0.0", "mixup: 0.5", "digits", soft))
    assert "objectives.mine" in "".join(told("mixup: 0.5", "", "digits", soft))


def test_a_net_that_is_not_trained_follows_no_recipe(problems: Callable[..., str], tmp_path: Path) -> None:
    teachers = "{big: {model: small_mobile, widths: [8, 12], train: false, min_top1: 0.0}}"
    assert problems("", dataset="{name: 'own.py:Other', per_class: 4}", objectives="[ce, kd]", teachers=teachers) == ""


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        *((name, -0.1, f"{name} must not be negative") for name in ("mixup", "cutmix")),
        *((name, value, f"{name} is a probability") for name in ("random_erasing", "mix_probability") for value in (-0.1, 1.1)),
        *(("label_smoothing", value, "label_smoothing must be at least 0 and below 1") for value in (-0.1, 1.0)),
        *(("ema", value, "ema is the decay of the average, between 0 and 1") for value in (0.0, 1.0, 1.5)),
        *(("accumulate", value, "accumulate must") for value in (0, -2, 5, 64)),
        *((name, 1e-9, f"{name} is the alpha of a beta distribution, 0 or at least 0.001") for name in ("mixup", "cutmix")),
        ("mix_probability", 0.5, "mix_probability is only for mixup and cutmix"),
        ("switch_probability", 0.3, "switch_probability chooses between mixup and cutmix"),
        ("target_threshold", 0.2, "only for `task_loss: binary_cross_entropy`"),
    ],
)
def test_values_without_a_meaning_are_refused(option: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Short(**{option: value})


def test_a_student_cannot_change_what_all_students_see(problems: Callable[..., str]) -> None:
    for option, value in (("mixup", 0.2), ("cutmix", 1.0), ("rand_augment", "rand-m5"), ("random_erasing", 0.1), ("accumulate", 2)):
        own = f"{{small: {{model: small_mobile, widths: [4, 6], recipe: {{{option}: {value}}}}}}}"
        assert f"a student's own '{option}' would break the data stream" in problems("", students=own)
    own = "{small: {model: small_mobile, widths: [4, 6], recipe: {ema: 0.5, label_smoothing: 0.1, task_loss: binary_cross_entropy}}}"
    assert problems("mixup: 0.1", students=own) == ""


def test_neutral_values_leave_the_ids_as_they_were_and_each_other_value_changes_them(plan_of: Callable[..., Plan]) -> None:
    def ids(options: str) -> set[str]:
        return set(plan_of(recipe=f"{{name: short, epochs: 3, batch_size: 16{options}}}").cells)

    words = {None: "null"}
    neutral = "".join(f", {name}: {words.get(value, value)}" for name, value in Recipe.added.items())
    assert ids(neutral) == ids("")
    for option in ("label_smoothing: 0.1", "mixup: 0.1", "cutmix: 0.1", "rand_augment: rand", "random_erasing: 0.1", "ema: 0.9"):
        assert not ids(f", {option}") & ids("")
    for option in ("accumulate: 2", "task_loss: binary_cross_entropy"):
        assert not ids(f", {option}") & ids("")
    assert not ids(", mixup: 0.1, mix_probability: 0.5") & ids(", mixup: 0.1")


def test_a_recipe_that_declares_later_options_of_its_own_keeps_those_of_its_base() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later(Short):
        added: ClassVar[dict[str, Any]] = {"extra": 0}
        extra: int = 1

    assert Part("recipe", "later", Later, 1).options({"extra": 0}) == Part("recipe", "short", Short, 1).options()
    assert Part("recipe", "later", Later, 1).build({}).extra == 0


def test_an_average_that_is_too_slow_for_its_training_is_warned_of(plan_of: Callable[..., Plan]) -> None:
    def warned(decay: float) -> list[str]:
        return slow_averages(plan_of(recipe=f"{{name: short, epochs: 3, batch_size: 16, ema: {decay}}}"), 40)

    (line,) = warned(0.9)
    assert line.startswith(
        "warning: after the 9 updates of a training, 39 % of its average with decay 0.9 (`ema`) are still initial weights"
    )
    assert warned(0.5) == [] == slow_averages(plan_of(), 40)
    assert slow_averages(plan_of(recipe="{name: short, epochs: 3, batch_size: 16, ema: 0.999}"), None) == []


def test_check_and_profile_take_the_steps_of_training(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = "{name: short, epochs: 1, batch_size: 16, lr: 0.02, milestones: [], mixup: 0.8, cutmix: 1, ema: 0.9, accumulate: 4, random_erasing: 0.5}"
    plan = plan_of(recipe=recipe, repeats="1", objectives="[ce, kd]")
    given: list[tuple[str, torch.Tensor]] = []
    now = ""
    step = check.Member.step

    def spied(self: Any, inputs: Any, targets: Any, batch: Batch, *more: Any, **options: Any) -> None:
        assert torch.equal(batch.target, targets) and targets.shape == (len(inputs), 10)
        if batch.step == 0 and self.cell.role == "student":
            given.append((now, inputs.clone()))
        step(self, inputs, targets, batch, *more, **options)

    monkeypatch.setattr(check.Member, "step", spied)
    monkeypatch.setattr(profile, "MEASURED_STEPS", 2)
    for now in ("train", "check", "profile"):
        if now == "train":
            assert train(plan) == 0
        elif now == "check":
            for found in check.check(plan, store, tmp_path, torch.device("cpu"), lambda _: None):
                assert found.wrong == [] and found.weights_mib
        else:
            cell = next(row.cell for row in plan.rows if row.objective == "kd")
            assert profile.measure(store, cell, tmp_path, torch.device("cpu")).result["loss_ms"]["median"] > 0

    first = given[0][1]
    assert {name for name, _ in given} == {"train", "check", "profile"}
    assert all(torch.equal(inputs, first) for _, inputs in given)


def test_the_plan_is_told_in_the_terminal(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    from click.testing import CliRunner

    recipe = "{name: short, epochs: 3, batch_size: 16, rand_augment: rand-m9-x3, mixup: 0.2}"
    said = CliRunner().invoke(main, ["plan", str(write_suite(recipe=recipe))])

    assert said.exit_code != 0 and "rand_augment 'rand-m9-x3' is not understood: write 'rand'" in said.output


def test_an_option_without_effect_is_refused_where_it_is_written(write_suite: Callable[..., Path]) -> None:
    wrong = {
        "{name: short, optimizer: adamw, lr: 0.001, momentum: 0.5}": ("recipe.momentum", "the optimizer 'adamw' does not use it"),
        "{name: short, optimizer: lion, lr: 0.001, eps: 0.001}": ("recipe.eps", "the optimizer 'lion' does not use it"),
        "{name: short, schedule: cosine, milestones: [2]}": ("recipe.milestones", "the schedule 'cosine' does not use it"),
        "{name: short, schedule: constant, decay_rate: 0.3}": ("recipe.decay_rate", "the schedule 'constant' does not use it"),
        "{name: short, lr_min: 0.001}": ("recipe.lr_min", "the schedule 'step' does not use it"),
        "{name: short, warmup_lr: 0.001}": ("recipe.warmup_lr", "give `warmup_epochs` or `warmup_steps` as well"),
        "{name: short, momentum: 1.5}": ("recipe", "momentum must be below 1"),
        "{name: short, rand_augment: rand-m15}": ("recipe", "rand-m15"),
        "{name: short, rand_augment: rand-m9-t3a-tweights}": ("recipe", "one of tweights and t3a"),
        "{name: short, rand_augment: rand-m0-mmax0}": ("recipe", "rand-m0-mmax0"),
    }
    for recipe, (where, text) in wrong.items():
        with pytest.raises(SuiteError) as caught:
            read(write_suite(recipe=recipe))
        assert where in str(caught.value) and text in str(caught.value), (recipe, str(caught.value))
    # A student's own optimiser leaves the suite's momentum without effect on it, which is no mistake.
    read(write_suite(recipe="{name: short, momentum: 0.8}", students="{s: {model: small_mobile, recipe: {optimizer: adamw, lr: 0.001}}}"))


def test_a_recipes_own_file_decides_where_its_cosine_starts(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom kdbench.recipes._base import Recipe\n\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Recipe):\n    epochs: int = 10\n    batch_size: int = 16\n    lr: float = 0.1\n    schedule: str = 'cosine'\n"
        "    warmup_epochs: int = 2\n    cosine_after_warmup: bool = False\n"
    )
    suite = read(write_suite(recipe="{name: mine.py:Mine}"))
    assert not Recipe.complete(suite.students["small"].recipe)["cosine_after_warmup"]


def test_without_decay_of_norms_and_biases_the_same_parameters_are_spared_as_by_timm() -> None:
    for name, arguments in (
        ("test_vit", {"img_size": 32}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}),
    ):
        net = timm.create_model(name, num_classes=3, **arguments)
        theirs = timm.optim.create_optimizer_v2(net, "adamw", lr=0.1, weight_decay=0.05).param_groups
        recipe = load("recipe", "short").options({"optimizer": "adamw", "weight_decay": 0.05, "decay_norms_and_biases": False})
        ours = make_optimizer(torch.nn.ModuleDict({"student": net, "objective": torch.nn.Linear(2, 2)}), recipe).param_groups
        spared = [{id(one) for group in groups if not group["weight_decay"] for one in group["params"]} for groups in (theirs, ours)]
        assert spared[0] <= spared[1] and len(spared[1]) == len(spared[0]) + 1  # and the bias of the objective
