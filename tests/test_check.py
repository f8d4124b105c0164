"""The verb `check`: what would not work is said before the sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kdbench.cli import main
from kdbench.run.check import Checked, bundle_mib

BAD = '''
"""Losses that do what they must not."""

import torch

from kdbench import Loss


class Mine(Loss):
    """Mean squared difference of the logits."""

    needs = frozenset({"logits"})

    def forward(self, student, teacher, batch):
        return (student.logits - teacher.logits).square().mean()


class Meddles(Mine):
    """Moves the teacher's weights."""

    def bind(self, pair):
        self.held = [pair.teacher_model]

    def forward(self, student, teacher, batch):
        if batch.target.device.type != "meta":
            with torch.no_grad():
                next(self.held[0].parameters()).add_(1.0)
        return super().forward(student, teacher, batch)


class Raises(Mine):
    """Cannot do with the ragged batch."""

    def forward(self, student, teacher, batch):
        if batch.target.device.type != "meta" and len(batch.target) < 16:
            raise RuntimeError(f"a batch of {len(batch.target)}")
        return super().forward(student, teacher, batch)


class Endless(Mine):
    """Not a number at the second step."""

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) / (1 - batch.step)


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


def test_every_pair_and_objective_takes_a_whole_and_a_ragged_step_and_nothing_is_written(
    check: Callable[..., Result], tmp_path: Path
) -> None:
    result = check("--json", teachers="{a: {model: small_mobile}, b: {model: cifar_resnet}}", objectives="[ce, kd, rkd]")

    assert result.exit_code == 0, result.output
    told = found(result)
    boxes = [(one["student"], one["teacher"], one["objective"]) for one in told]
    assert boxes == [("small", None, "ce"), *(("small", teacher, name) for teacher in ("a", "b") for name in ("kd", "rkd"))]
    assert "batches of 16 and, last of an epoch, 8" in result.stderr
    for one in told:
        assert not one["wrong"]
        assert one["step_s"] > 0 and one["weights_mib"] > 0 and one["kept_mib"] > 0 and one["loss"] > 0
    assert [sorted(one["ratios"]) for one in told[:3]] == [[], ["kd"], ["rkd.angle", "rkd.distance"]]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ("{loss: 'bad.py:Meddles', weight: 1}", "the teacher is changed by training"),
        ("{loss: 'bad.py:Raises', weight: 1}", "RuntimeError: a batch of 8 (bad.py:"),
        ("{loss: 'bad.py:Endless', weight: 1}", "a number that is not finite came at step 2 (the ragged batch)"),
        ("{loss: 'bad.py:Forgets', weight: 1}", "a checkpoint does not bring the weights back"),
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


@pytest.mark.parametrize(("weight", "told"), [("1e-9", "says next to nothing"), ("1e9", "drowns the task")])
def test_a_term_without_measure_is_noted(weight: str, told: str, check: Callable[..., Result]) -> None:
    result = check(objectives=f"{{mine: {{loss: 'bad.py:Mine', weight: {weight}}}}}")

    assert result.exit_code == 0
    assert "note: Mine" in result.output.replace("bad.py:", "") and told in result.output


def test_a_teacher_that_cannot_be_made_spoils_its_pairs_and_no_other(check: Callable[..., Result], tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    result = check(
        "--json", teachers="{a: {model: small_mobile, weights: x.pth, train: false}, b: {model: small_mobile}}", objectives="[kd]"
    )

    assert result.exit_code == 1
    spoilt, whole = found(result)
    assert "its teacher: DataError" in spoilt["wrong"][0] and "does not fit the model" in spoilt["wrong"][0]
    assert not whole["wrong"]


def test_data_that_are_not_there_are_told_before_anything_is_tried(check: Callable[..., Result], tmp_path: Path) -> None:
    result = check("--data", str(tmp_path / "nothing"), dataset="cifar100", students="{small: {model: cifar_resnet}}")

    assert result.exit_code == 2
    assert (
        f"looked for the folder {tmp_path / 'nothing' / 'cifar-100-python'}" in result.stderr
        and "kdbench download cifar100" in result.stderr
    )


def test_the_memory_of_a_bundle_is_all_of_its_weights_and_one_step(check: Callable[..., Result]) -> None:
    each = [Checked("s", "t", str(place), weights_mib=place, kept_mib=10.0 * place) for place in range(1, 21)]

    assert bundle_mib(each) == sum(range(5, 21)) + 200.0
    assert bundle_mib([Checked("s", "t", "failed")]) == 0.0
