"""One small batch defined by a formula, and the value of a loss on it: a number that everybody can reproduce. Not a loss.

5 samples in 6 classes, in float64; k = 1, 2, 3 ... counts along the rows of each tensor:
pooled sin(k) of the student (5 x 3), cos(k) of the teacher (5 x 4); logits 2 sin(0.7 k) and 3 cos(0.9 k); targets and indices 0, 1, 2, 3,
4 in a training set of 30 with targets i mod 6. Two stages of maps: the earlier 5 x 2 x 4 x 4 and 5 x 3 x 4 x 4, sin(0.37 k) and
cos(0.53 k); the last 5 x 3 x 2 x 2 and 5 x 4 x 2 x 2, the same waves, each map shifted so that its average is `pooled`. `preact` are the
same maps. The second view has all of these again with k = 2, 3, 4 ... torch's generator is seeded with 0 before the loss and the teacher's
head are built, and again before the loss is called. A loss that refuses different widths gets the teacher's first 3 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Taps


def pair(width: int = 4) -> Pair:
    """The taps of both models on the reference batch, the teacher's pooled features and last map cut to `width`."""
    students, teachers = [], []
    for first in (1, 2):
        teacher = _taps(torch.cos, 0.53, 4, 3, 3, 0.9, first)
        cut = teacher.last[:, :width]
        teachers.append(Taps(teacher.logits, teacher.pooled[:, :width], cut, (teacher.stages[0], cut), (teacher.preact[0], cut)))
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
        return loss(given.student, given.teacher, Batch(torch.arange(5), torch.arange(5))).item()


def _taps(function: Callable[[Tensor], Tensor], step: float, width: int, earlier: int, size: int, slow: float, first: int) -> Taps:
    """`first` is the k of the first number of each tensor; `size` and `slow` are amplitude and step of the logits."""

    def wave(step: float, *shape: int) -> Tensor:
        places = torch.Size(shape)
        return function(step * torch.arange(first, places.numel() + first, dtype=torch.float64)).view(places)

    pooled = wave(1.0, 5, width)
    waves = wave(step, 5, width, 2, 2)
    last = waves - waves.mean((2, 3), keepdim=True) + pooled[:, :, None, None]
    stages = (wave(step, 5, earlier, 4, 4), last)
    return Taps(size * wave(slow, 5, 6), pooled, last, stages, stages)
