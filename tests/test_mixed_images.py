"""Mixup, CutMix and the targets of mixed images, against timm; what students and teacher see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from kdbench.errors import DataError
from kdbench.losses._base import Taps
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.tasks.classification import Classification
from kdbench.train.build import Setup
from kdbench.train.member import Member
from kdbench.train.mix import Mixing
from kdbench.train.stream import BatchPlan
from kdbench.train.teacher import LiveTeacher

CLASSES = 5


class Few:
    n_classes = CLASSES


def images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 7, 9, generator=draw), torch.randint(0, CLASSES, (n,), generator=draw)


def mixed(how: Mixing, n: int, seed: int) -> tuple[Tensor, Tensor]:
    return how.mixed(*images(n), Classification(), Few(), seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", [Mixing(0.2, 0, 1, 0.5), Mixing(0, 1.0, 1, 0.5), Mixing(0.1, 1.0, 0.7, 0.5), Mixing(0.8, 0.3, 0.9, 0.1)])
def test_a_batch_is_mixed_as_timm_mixes_it(how: Mixing) -> None:
    timms = Mixup(how.mixup, how.cutmix, None, how.probability, how.switch, "batch", True, label_smoothing=0.0, num_classes=CLASSES)
    changed = 0
    for seed in range(2**40, 2**40 + 40):
        np.random.seed(seed % 2**32)
        inputs, targets = images(8)
        before = inputs.clone()
        wanted, wanted_targets = timms(inputs, targets)
        found, found_targets = mixed(how, 8, seed)
        assert torch.equal(found, wanted)
        torch.testing.assert_close(found_targets, wanted_targets)
        changed += not torch.equal(found, before)
    assert changed > 20


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2, 0.6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_images_is_timms(smoothing: float, threshold: float | None) -> None:
    for share in (0.0, 0.3, 0.75, 1.0):
        labels, logits = torch.tensor([0, 4, 2, 2]), torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(1))
        soft = Classification().mix(labels, torch.tensor([3, 2, 1, 0]), share, Few())  # type: ignore[arg-type]
        timms = Mixup(1.0, label_smoothing=smoothing, num_classes=CLASSES, mode="batch")
        timms._params_per_batch = lambda share=share: (share, False)
        _, target = timms(torch.zeros(4, 3, 2, 2), labels)

        binary = loss_of(logits, soft, label_smoothing=smoothing, task_loss="binary_cross_entropy", target_threshold=threshold)
        torch.testing.assert_close(binary, BinaryCrossEntropy(smoothing, threshold)(logits, target))
        entropy = loss_of(logits, soft, label_smoothing=smoothing)
        torch.testing.assert_close(entropy, SoftTargetCrossEntropy()(logits, target))
        by_hand = share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels.flip(0))
        torch.testing.assert_close(loss_of(logits, soft), by_hand)


def test_the_loss_of_plain_images_is_timms() -> None:
    labels, logits = torch.tensor([0, 4, 2, 2]), torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(1))
    for smoothing, threshold in ((0.0, None), (0.3, None), (0.3, 0.2)):
        binary = loss_of(logits, labels, label_smoothing=smoothing, task_loss="binary_cross_entropy", target_threshold=threshold)
        torch.testing.assert_close(binary, BinaryCrossEntropy(smoothing, threshold)(logits, labels))
    assert torch.equal(loss_of(logits, labels), F.cross_entropy(logits, labels))
    assert torch.equal(loss_of(logits, labels, label_smoothing=0.1), F.cross_entropy(logits, labels, label_smoothing=0.1))


def loss_of(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    class Gives(nn.Module):
        def forward(self, inputs: Tensor) -> Taps:
            return Taps(logits=inputs)

    losses, _ = Classification(**options).step(Gives(), logits, targets)
    return sum(losses.values(), start=torch.zeros(()))


def test_odd_batches_and_batches_of_one_are_mixed() -> None:
    for how in (Mixing(1.0, 0, 1, 0.5), Mixing(0, 1.0, 1, 0.5)):
        for n in (1, 2, 5):
            plain, labels = images(n)
            changed = 0
            for seed in range(20):
                inputs, targets = mixed(how, n, seed)
                assert targets.shape == (n, CLASSES)
                torch.testing.assert_close(targets.sum(1), torch.ones(n))
                if n % 2:  # the middle image is its own partner
                    torch.testing.assert_close(inputs[n // 2], plain[n // 2])
                    torch.testing.assert_close(targets[n // 2], F.one_hot(labels[n // 2], CLASSES).float())
                changed += not torch.allclose(inputs, plain)
            assert changed == 0 if n == 1 else changed > 10


def test_the_share_of_cutmix_is_that_of_the_pixels_that_stay() -> None:
    how = Mixing(0, 1.0, 1, 0.5)
    for seed in range(50):
        box, share = how.draw((6, 3, 7, 9), seed)
        assert box
        top, bottom, left, right = box
        assert 0 <= top <= bottom <= 7 and 0 <= left <= right <= 9
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / 63)
        inputs, _ = mixed(how, 6, seed)
        assert float((inputs == images(6)[0]).float().mean()) == pytest.approx(share)


def test_shares_have_the_moments_of_their_distribution() -> None:
    for alpha in (0.2, 1.0, 4.0):
        shares = np.array([Mixing(alpha, 0, 1, 0.5).draw((8, 3, 32, 32), seed)[1] for seed in range(1000)])
        assert shares.mean() == pytest.approx(0.5, abs=0.04)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)
    draws = [Mixing(0.5, 0.5, 0.8, 0.25).draw((8, 3, 32, 32), seed) for seed in range(1000)]
    assert np.mean([share == 1 and box is None for box, share in draws]) == pytest.approx(0.2, abs=0.04)
    assert np.mean([box is not None for box, _ in draws]) == pytest.approx(0.8 * 0.25, abs=0.04)


def test_inputs_that_are_no_images_cannot_be_mixed() -> None:
    for inputs in ((torch.zeros(4, 3, 2, 2),), torch.zeros(4, 10), [torch.zeros(3, 2, 2)]):
        with pytest.raises(DataError, match="mixup and cutmix need images as one tensor"):
            Mixing(1.0, 0, 1, 0.5).mixed(inputs, torch.zeros(4), Classification(), Few(), 0)  # type: ignore[arg-type]


RECIPE = "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1], mixup: 0.8, cutmix: 1.0}"


def test_teacher_and_students_get_the_same_mixed_images_whatever_their_losses(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(recipe=RECIPE, objectives="[ce, kd, sp, 'cc:crd', rkd, 'rcka:released']", repeats="1")
    train(plan, [plan.teachers[0].cell.id])
    asked: list[tuple[Tensor, Taps]] = []
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    plain, step = LiveTeacher.taps, Member.step

    def taps(self: LiveTeacher, inputs: Tensor, place: Any = None) -> Taps:
        assert place is None  # no view of an image alone
        asked.append((inputs.clone(), plain(self, inputs)))
        return asked[-1][1]

    def spied(self: Member, inputs: Tensor, targets: Tensor, batch: Any, teacher: Taps | None, first: bool) -> None:
        assert batch.target is targets and (teacher is None or teacher is asked[-1][1])
        seen.setdefault(self.cell.id, []).append((inputs.clone(), targets.clone()))
        step(self, inputs, targets, batch, teacher, first)

    monkeypatch.setattr(LiveTeacher, "taps", taps)
    monkeypatch.setattr(Member, "step", spied)
    assert train(plan) == 0

    cell = next(row.cell for row in plan.rows if row.objective == "kd")
    setup = Setup.of(cell, tmp_path, torch.device("cpu")).with_teacher(store, cell)
    stream, total_step = BatchPlan.of(cell.config, setup.data), 0
    for epoch in range(2):
        for index, views in stream.epoch(epoch):
            inputs, targets = stream.mixed(*setup.data.batch("train", index, views), setup.task, total_step)
            assert torch.equal(asked[total_step][0], inputs)
            assert setup.teacher
            for mine, theirs in zip(setup.teacher.model(inputs).tensors(), asked[total_step][1].tensors(), strict=True):
                assert torch.equal(mine, theirs)
            for found in seen.values():
                assert all(torch.equal(*pair) for pair in zip(found[total_step], (inputs, targets), strict=True))
            total_step += 1
    assert len(seen) == 6 and {len(found) for found in seen.values()} == {total_step} == {len(asked)}
    assert any(0 < float(targets.max()) < 1 for _, targets in seen[cell.id])


def test_shares_are_paired_across_students_and_differ_between_steps_and_repeats(plan_of: Callable[..., Plan], tmp_path: Any) -> None:
    plan = plan_of(recipe=RECIPE, students="{small: {model: small_mobile, widths: [4, 6]}, wide: {model: small_mobile, widths: [6, 6]}}")
    shares: dict[tuple[str, str | None, int], list[Any]] = {}
    inputs, targets = images(16)
    for row in plan.rows:
        setup = Setup.of(row.cell, tmp_path, torch.device("cpu"))
        stream = BatchPlan.of(row.cell.config, setup.data)
        shares[row.student, row.objective, row.repeat] = [stream.mixed(inputs, targets, setup.task, step)[0][0].sum() for step in range(6)]
    mine = {repeat: {str(found) for (name, _, of), found in shares.items() if of == repeat and name != "big"} for repeat in (0, 1)}

    assert len(mine[0]) == len(mine[1]) == 1 and mine[0] != mine[1]
    assert len(set(map(float, shares["small", "kd", 0]))) == 6
    assert str(shares["big", None, 0]) not in mine[0]
