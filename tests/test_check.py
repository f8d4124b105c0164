"""The verb `check` finds what would fail, before the sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kdbench.cli import main
from kdbench.train import timing
from kdbench.train.check import Checked, bundle_mib
from kdbench.train.member import Member

BAD = '''
"""Losses that do what they must not."""

import torch

from kdbench import Loss


class Mine(Loss):
    """Mean squared difference of the logits."""

    needs = frozenset({"logits"})

    def forward(self, student, teacher, batch):
        return (student.logits - teacher.logits).square().mean()


class Raises(Mine):
    """Fails on the ragged batch."""

    needs = frozenset({"logits", "target"})

    def forward(self, student, teacher, batch):
        if batch.target.device.type != "meta" and len(batch.target) < 16:
            raise RuntimeError(f"a batch of {len(batch.target)}")
        return super().forward(student, teacher, batch)


class Endless(Mine):
    """Not a number at the second step."""

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) / (1 - batch.step)


class Lazy(Mine):
    """Makes a layer in its first call."""

    def forward(self, student, teacher, batch):
        if not hasattr(self, "scale"):
            self.scale = torch.nn.Linear(10, 10)
        return (self.scale(student.logits) - teacher.logits).square().mean()


class Counts(Mine):
    """Counts its calls where no checkpoint sees it."""

    calls = 0

    def forward(self, student, teacher, batch):
        self.calls += 1
        return super().forward(student, teacher, batch) * min(1.0, self.calls / 100)


class Detached(Mine):
    """Does not depend on the student as far as a gradient sees."""

    def forward(self, student, teacher, batch):
        return (student.logits.detach() - teacher.logits).square().mean()


class Forgets(Mine):
    """Saves zeros for what it has learnt."""

    def bind(self, pair):
        self.scale = torch.nn.Parameter(torch.ones(()))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "scale"] = torch.zeros(())

    def forward(self, student, teacher, batch):
        return self.scale * super().forward(student, teacher, batch)
'''


@pytest.fixture
def check(tmp_path: Path, write_suite: Callable[..., Path]) -> Callable[..., Result]:
    (tmp_path / "bad.py").write_text(BAD)

    def run(*flags: str, **changes: str) -> Result:
        suite = write_suite(**changes)
        return CliRunner().invoke(main, ["check", str(suite), "--results", str(tmp_path / "results"), "--device", "cpu", *flags])

    return run


def found(result: Result) -> list[dict[str, Any]]:
    return json.loads(result.stdout[result.stdout.index("[\n") :])


def test_every_pair_and_objective_takes_a_whole_and_a_ragged_step_and_only_step_times_are_written(
    check: Callable[..., Result], tmp_path: Path
) -> None:
    result = check("--json", teachers="{a: {model: small_mobile}, b: {model: cifar_resnet}}", objectives="[ce, kd, rkd]")

    assert result.exit_code == 0, result.output
    told = found(result)
    boxes = [(one["student"], one["teacher"], one["objective"]) for one in told]
    assert boxes == [("small", None, "ce"), *(("small", teacher, name) for teacher in ("a", "b") for name in ("kd", "rkd"))]
    assert "batches of 16; the last one of an epoch has 8" in result.stderr
    for one in told:
        assert not one["wrong"]
        assert one["step_s"] > 0 and one["weights_mib"] > 0 and one["saved_mib"] > 0 and one["loss"] > 0
    assert [sorted(one["ratios"]) for one in told[:3]] == [[], ["kd"], ["rkd.angle", "rkd.distance"]]
    assert [path.name for path in (tmp_path / "results").rglob("*") if path.is_file()] == ["step_times.json"]


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ("{loss: 'bad.py:Lazy', weight: 1}", "weights that a loss creates in `forward` are never trained (objective.losses.0.scale.weight"),
        ("{loss: 'bad.py:Raises', weight: 1}", "RuntimeError: a batch of 8 (bad.py:"),
        ("{loss: 'bad.py:Endless', weight: 1}", "a value is not finite at step 2 (the last batch)"),
        ("{loss: 'bad.py:Forgets', weight: 1}", "a checkpoint does not restore the weights"),
    ],
)
def test_what_will_not_work_is_said_and_the_others_are_checked_all_the_same(
    objective: str, told: str, check: Callable[..., Result]
) -> None:
    result = check("--json", objectives=f"{{bad: {objective}, kd: {{}}}}")

    assert result.exit_code == 1, result.output
    bad, kd = found(result)
    assert any(told in text for text in bad["wrong"]), bad
    assert not kd["wrong"]


@pytest.mark.parametrize(("weight", "told"), [("1e-9", "is negligible"), ("1e9", "dominates the task")])
def test_a_term_without_measure_is_noted(weight: str, told: str, check: Callable[..., Result]) -> None:
    result = check(objectives=f"{{mine: {{loss: 'bad.py:Mine', weight: {weight}}}}}")

    assert result.exit_code == 0
    assert "note: Mine" in result.output.replace("bad.py:", "") and told in result.output


def test_gradient_sizes_are_those_of_a_whole_batch(check: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last two images, relational losses have gradients that are a thousand times smaller."""
    measured: list[int] = []
    real = Member._add_gradients

    def noted(self: Member, *given: Any) -> None:
        measured.append(self.seen)
        real(self, *given)

    monkeypatch.setattr(Member, "_add_gradients", noted)
    monkeypatch.setattr(timing, "time_student", lambda *_, **__: 0.1)
    objectives = "{cka: {weight: 1, weight_from: assumed}, sp: , 'rkd:official_cls': , 'cc:crd': , mine: {loss: 'bad.py:Mine', weight: 1}}"
    recipe = "{name: short, epochs: 1, batch_size: 19}"
    result = check("--json", objectives=objectives, recipe=recipe, teachers="{big: {model: cifar_resnet, depth: 8, min_top1: 0.0}}")

    assert "batches of 19; the last one of an epoch has 2" in result.stderr
    assert measured == [19] * 5, "after one step on 19 images"
    assert not any("negligible" in note for one in found(result) for note in one["notes"]), result.output


@pytest.mark.parametrize(("section", "other"), [("students", "teachers"), ("teachers", "students")])
def test_a_last_batch_of_one_image_that_stops_batch_norm_is_said_with_what_to_do(
    section: str, other: str, check: Callable[..., Result]
) -> None:
    """After three poolings of 8x8 pixels, one image has one value in each channel."""
    nets = {section: "{vgg: {model: cifar_vgg8}}", other: "{mobile: {model: small_mobile}}"}
    recipe = "{name: short, epochs: 1, batch_size: 13}"
    told = found(check("--json", objectives="[kd]", recipe=recipe, **nets))[0]["wrong"]
    expected = "batch 4, the last of each epoch, has one image, and batch norm cannot be trained on one image: write `drop_last: true`"
    assert len(told) == 1 and expected in told[0], told
    assert told[0].startswith("its teacher: ") == (section == "teachers")

    for says in ("{name: short, epochs: 1, batch_size: 13, drop_last: true}", "{name: short, epochs: 1, batch_size: 12}"):
        assert not found(check("--json", objectives="[kd]", recipe=says, **nets))[0]["wrong"]
    both = check("--json", objectives="[kd]", recipe=recipe)
    assert "the last one of an epoch has 1" in both.stderr and not found(both)[0]["wrong"], "maps of 2x2 have four values"


def test_what_was_not_tried_is_listed(check: Callable[..., Result]) -> None:
    objectives = "{kd: , warm: {loss: sp, weight: {0: 0, 5: 3000}}}"
    result = check("--json", objectives=objectives)

    for text in (
        "the training of teachers (big): losses were checked with teachers of initial weights",
        "the gradient of sp in warm: its weight is 0 in epoch 0",
        "whole epochs, evaluation and saving of results; repeats other than the first; 2 settings together in bundles",
        "jobs on SLURM",
    ):
        assert f"not tried: {text}" in result.stderr
    assert not any("no gradient for the student" in note for one in found(result) for note in one["notes"])
    assert "several processes" not in result.stderr


def test_a_loss_without_gradient_or_with_state_that_is_not_saved_is_noted(check: Callable[..., Result]) -> None:
    objectives = "{counts: {loss: 'bad.py:Counts', weight: 1}, detached: {loss: 'bad.py:Detached', weight: 1}, kd: {}}"
    counts, detached, kd = found(check("--json", objectives=objectives))

    assert not counts["wrong"] and not detached["wrong"]
    assert any("'Counts' changes 'calls' while it trains" in note for note in counts["notes"]), counts
    assert any("no gradient for the student" in note for note in detached["notes"]), detached
    assert not any("changes" in note for note in kd["notes"])


def test_a_teacher_that_cannot_be_made_spoils_its_pairs_and_no_other(check: Callable[..., Result], tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    result = check(
        "--json", teachers="{a: {model: small_mobile, weights: x.pth, train: false}, b: {model: small_mobile}}", objectives="[kd]"
    )

    assert result.exit_code == 1
    spoilt, whole = found(result)
    assert spoilt["wrong"][0].startswith("its teacher: ") and "does not fit the model" in spoilt["wrong"][0]
    assert not whole["wrong"]


def test_data_that_are_not_there_are_told_before_anything_is_tried(check: Callable[..., Result], tmp_path: Path) -> None:
    result = check("--data", str(tmp_path / "nothing"), dataset="cifar100", students="{small: {model: cifar_resnet}}")

    assert result.exit_code == 2
    assert (
        f"there is no folder {tmp_path / 'nothing' / 'cifar-100-python'}" in result.stderr and "kdbench download cifar100" in result.stderr
    )


def test_the_memory_of_a_bundle_is_all_of_its_weights_and_one_step(check: Callable[..., Result]) -> None:
    each = [Checked("s", "t", str(place), weights_mib=place, saved_mib=10.0 * place) for place in range(1, 21)]

    assert bundle_mib(each) == sum(range(5, 21)) + 200.0
    assert bundle_mib([Checked("s", "t", "failed")]) == 0.0
