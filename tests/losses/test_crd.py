"""What CRD draws and keeps, beyond the stored values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench import parts
from kdbench.losses._base import Loss, Pair

from . import toys


def bound(labels: Tensor, **options: Any) -> Loss:
    part = parts.load("loss", "crd")
    loss = part.build(part.options({"dimensions": 3, **options}))
    given = toys.pair()
    loss.prepare(Pair(given.student, given.teacher, labels=labels))
    return loss.double()


def test_negatives_are_of_other_classes_all_different_and_every_one_equally_likely() -> None:
    labels, index = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2]), torch.tensor([0, 4])
    loss = bound(labels, negatives=4)
    torch.manual_seed(0)
    counts = torch.zeros(2, 10)
    for _ in range(2000):
        drawn = loss._drawn(index)
        assert (labels[drawn] != labels[index][:, None]).all()
        assert all(len(set(row)) == 4 for row in drawn.tolist())
        counts.scatter_add_(1, drawn, torch.ones(2, 4))
    assert torch.allclose(counts[0, 3:] / 2000, torch.tensor(4 / 7), atol=0.05)
    assert torch.allclose(counts[1, [0, 1, 2, 5, 6, 7, 8, 9]] / 2000, torch.tensor(4 / 8), atol=0.05)


def test_where_there_are_too_few_negatives_they_are_drawn_with_replacement() -> None:
    labels, index = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2]), torch.tensor([0, 9])
    for negatives in (6, 500):  # the first image has 7 of other classes, the other one 5
        loss = bound(labels, negatives=negatives)
        torch.manual_seed(0)
        drawn = loss._drawn(index)
        assert drawn.shape == (2, negatives) and (labels[drawn] != labels[index][:, None]).all()
        assert len(set(drawn[1].tolist())) < negatives
    assert set(drawn[0].tolist()) == {3, 4, 5, 6, 7, 8, 9} and set(drawn[1].tolist()) == {0, 1, 2, 3, 4}


def test_normalisers_are_those_of_the_first_batch_and_memories_change_for_its_images_alone() -> None:
    loss, batch = bound(toys.LABELS, negatives=8), toys.batch(6)
    before = loss.student_memory.clone()
    assert (loss.normalisers == -1).all()
    loss(toys.taps(6, 4, 1), toys.taps(6, 6, 2), batch)
    fixed, changed = loss.normalisers.clone(), (loss.student_memory != before).any(1)
    assert (fixed > 0).all() and changed.nonzero().flatten().tolist() == sorted(batch.index.tolist())
    assert torch.allclose(loss.student_memory[batch.index].norm(dim=1), torch.ones(6, dtype=torch.float64))
    loss(toys.taps(6, 4, 3), toys.taps(6, 6, 4), batch)
    assert torch.equal(loss.normalisers, fixed)


def test_labels_that_are_not_one_class_an_image_are_refused() -> None:
    given = toys.pair()
    shares = Pair(given.student, given.teacher, labels=torch.rand(40, 5))
    assert "one class for each training image" in (toys.made("crd", "crd").missing(shares) or "")
