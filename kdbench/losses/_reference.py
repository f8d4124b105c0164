"""One small batch defined by a formula, and the value of a loss on it: a number that everybody can reproduce. Not a loss.

5 samples in 6 classes, in float64; k = 1, 2, 3 ... counts along the rows of each tensor:
pooled sin(k) of the student (5 x 3), cos(k) of the teacher (5 x 4); logits 2 sin(0.7 k) and 3 cos(0.9 k); targets and indices 0, 1, 2, 3,
4 in a training set of 30 with targets i mod 6. Two stages of maps: the earlier 5 x 2 x 4 x 4 and 5 x 3 x 4 x 4, sin(0.37 k) and
cos(0.53 k); the last 5 x 3 x 2 x 2 and 5 x 4 x 2 x 2, the same waves, each map shifted so that its average is `pooled`. `preact` are the
same maps. Four levels with strides of 8, 16, 32 and 64: 32, 16, 8 and 4 positions high and broad, of 3 and of 4 channels, the waves of the
maps; at each position 12 dense logits (2 anchors, 6 classes), the waves of the logits. Two regions in each image with 7 logits, the waves
of the logits, of the classes 0, 1, 2 ... 6, 0, 1, 2. For losses on these the target is one object in each image of 256 x 256: of image
i = 0, 1, 2, 3, 4 the box from (16 i, 8 i) to (16 i + 64, 8 i + 96), of class i. The second view has all of these again with k = 2, 3, 4
... torch's generator is seeded with 0 before the loss and the teacher's head are built, and again before the loss is called. A loss that
refuses different widths gets the teacher's first 3 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.losses._base import OF_SCENES, Batch, Loss, Pair, Regions, Taps
from kdbench.scenes import Objects


def pair(width: int = 4) -> Pair:
    """The taps of both models on the reference batch, the teacher's pooled features, last map and levels cut to `width`."""
    students, teachers = [], []
    for first in (1, 2):
        teacher = _taps(torch.cos, 0.53, 4, 3, 3, 0.9, first)
        cut = teacher.last[:, :width]
        maps = {name: (getattr(teacher, name)[0], cut) for name in ("stages", "preact")}
        levels = [one[:, :width] for one in teacher.levels]
        teachers.append(replace(teacher, pooled=teacher.pooled[:, :width], last=cut, levels=levels, **maps))
        students.append(_taps(torch.sin, 0.37, 3, 2, 2, 0.7, first))
    student, teacher = (replace(one, second_view=second) for one, second in (students, teachers))
    return Pair(student, teacher, labels=torch.arange(30) % 6, teacher_head=nn.Linear(width, 6, dtype=torch.float64))


def bound(make: Callable[[], Loss]) -> tuple[Loss, Pair]:
    """The loss, bound to the reference batch with the first of the teacher's widths that it does not refuse. Raises ValueError, with the
    reason, if it refuses both."""
    for width in (4, 3):
        torch.manual_seed(0)
        loss, given = make(), pair(width)
        reason = loss.missing(given)
        if reason is None:
            loss.bind(given)
            return loss.double(), given
    raise ValueError(reason)


def value(make: Callable[[], Loss]) -> float:
    """The unweighted loss on the reference batch. Leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        loss, given = bound(make)
        torch.manual_seed(0)
        boxes = tuple(torch.tensor([[16.0 * i, 8.0 * i, 16.0 * i + 64, 8.0 * i + 96]]) for i in range(5))
        objects = Objects(boxes, tuple(torch.tensor([i]) for i in range(5)), ((256, 256),) * 5)
        target = objects if loss.needs & set(OF_SCENES) else torch.arange(5)
        return loss(given.student, given.teacher, Batch(target, torch.arange(5))).item()


def _taps(function: Callable[[Tensor], Tensor], step: float, width: int, earlier: int, size: int, slow: float, first: int) -> Taps:
    """`first` is the k of the first number of each tensor; `size` and `slow` are amplitude and step of the logits."""

    def wave(step: float, *shape: int) -> Tensor:
        places = torch.Size(shape)
        return function(step * torch.arange(first, places.numel() + first, dtype=torch.float64)).view(places)

    pooled = wave(1.0, 5, width)
    waves = wave(step, 5, width, 2, 2)
    last = waves - waves.mean((2, 3), keepdim=True) + pooled[:, :, None, None]
    stages = (wave(step, 5, earlier, 4, 4), last)
    levels = [wave(step, 5, width, side, side) for side in (32, 16, 8, 4)]
    dense = [size * wave(slow, 5, 12, *one.shape[2:]) for one in levels]
    regions = Regions((torch.tensor([[0.0, 0.0, 64.0, 96.0]] * 2),) * 5, size * wave(slow, 10, 7), torch.arange(10) % 7)
    scenes: dict[str, Any] = {"levels": levels, "dense_logits": dense, "regions": regions, "strides": (8, 16, 32, 64)}
    return Taps(size * wave(slow, 5, 6), pooled, last, stages, stages, **scenes)
