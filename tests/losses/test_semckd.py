"""The batch size of SemCKD, and its shares."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import RefusedError

from . import toys


def test_a_batch_larger_than_its_batch_size_is_refused_and_a_smaller_one_is_filled_up() -> None:
    loss, pair = toys.bound("semckd", "{'batch_size': 8}")
    with pytest.raises(RefusedError, match="batches of 8 and gets 9 images"):
        loss(toys.taps(9, 4, 1), toys.taps(9, 6, 2), toys.batch(9))
    # With the further columns of the first layers, of which nothing is seen, a map for a larger batch is the same.
    larger = toys.made("semckd", "semckd")
    larger.bind(pair)
    larger.double()
    for ours, theirs in ((larger.queries, loss.queries), (larger.keys, loss.keys)):
        for one, other in zip(ours, theirs, strict=True):
            one[0].weight.data[:4, :8], one[0].bias.data[:4] = other[0].weight.data, other[0].bias.data
            one[0].weight.data[4:], one[0].bias.data[4:] = 0, 0
            one[2].weight.data[:2, :4], one[2].bias.data[:2] = other[2].weight.data, other[2].bias.data
            one[2].weight.data[2:], one[2].bias.data[2:] = 0, 0
    stages = pair.student.stages[1:], pair.teacher.stages[1:]
    assert torch.allclose(larger._shares(*stages), loss._shares(*stages), rtol=1e-12)


def test_the_shares_of_an_image_sum_to_one_for_each_stage_of_the_student() -> None:
    loss, pair = toys.bound("semckd", "semckd")
    shares = loss._shares(pair.student.stages[1:], pair.teacher.stages[1:])
    assert shares.shape == (6, 2, 2) and torch.allclose(shares.sum(2), torch.ones(6, 2, dtype=torch.float64))
