"""MGD's masks."""

from __future__ import annotations

import torch

from . import toys


def test_masks_are_of_whole_channels_and_drawn_anew() -> None:
    loss, pair = toys.bound("mgd", "{'mask': 0.5}")
    kept = []
    loss.generation[0].register_forward_pre_hook(lambda module, given: kept.append((given[0] != 0).flatten(2)))
    torch.manual_seed(0)
    for _ in range(2):
        loss(pair.student, pair.teacher, toys.batch(6))
    for one in kept:
        assert (one.all(2) | ~one.any(2)).all() and 0 < one.any(2).sum() < one[..., 0].numel()
    assert not torch.equal(*kept)


def test_maps_of_different_size_are_refused() -> None:
    given = toys.pair()
    other = given.student.map(lambda x: x[..., :1] if x.ndim == 4 else x)
    assert "the student's is 2x1, the teacher's 2x2" in (toys.made("mgd", "cifar").missing(type(given)(other, given.teacher)) or "")
