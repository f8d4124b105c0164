"""Maps of two models, stage by stage: which stages are compared, and maps of different sizes made equal. Not a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.losses._base import Pair, Taps
from kdbench.losses._gram import averaged

Map = Float[Tensor, "n _ _ _"]


def unmatched(pair: Pair, tap: str, first: int = 0, fewest: int = 1) -> str | None:
    """Why the stages of the two models from place `first` on cannot be compared one by one, if they cannot."""
    sides = [getattr(side, tap) for side in (pair.student, pair.teacher)]
    if not isinstance(sides[0], tuple):
        return None  # one map
    counts = [*map(len, sides)]
    if counts[0] != counts[1]:
        return f"it compares stage by stage: the student has {counts[0]}, the teacher {counts[1]}"
    if counts[0] - first < fewest:
        return f"it needs at least {fewest} stage(s) from `first_stage` {first} on (counted from 0), and the models have {counts[0]} in all"
    return None


def check_place(first_stage: int) -> None:
    """Raises ValueError for what is no place of a stage."""
    if first_stage < 0:
        raise ValueError(f"first_stage is the place of a stage, counted from 0, not {first_stage}")


def unequal(pair: Pair, tap: str, first: int = 0, axis: int = 1, what: str = "channels") -> str | None:
    """Why stages cannot be compared without a learned map: the first one whose size along `axis` differs."""
    for place, (one, other) in enumerate(zip(getattr(pair.student, tap), getattr(pair.teacher, tap), strict=True)):
        if place >= first and one.shape[axis] != other.shape[axis]:
            return f"it needs equal {what}: in stage {place} the student has {one.shape[axis]}, the teacher {other.shape[axis]}"
    return None


def at_most(x: Float[Tensor, "n c _ _"], size: Sequence[int]) -> Float[Tensor, "n c h w"]:
    """Averaged to so many positions where it has more, as adaptive pooling does; a side that is smaller stays."""
    return averaged(x, [min(own, other) for own, other in zip(x.shape[2:], size, strict=True)])


def largest(x: Map, size: Sequence[int]) -> Map:
    """Adaptive max pooling to (height, breadth), along one side after the other: PyTorch's has no deterministic gradient on a GPU."""
    for axis, (before, after) in enumerate(zip(x.shape[2:], size, strict=True), 2):
        if before != after:
            field = torch.arange(after, device=x.device)[:, None]
            start, end = field * before // after, -(-(field + 1) * before // after)
            longest = max(-(-(one + 1) * before // after) - one * before // after for one in range(after))
            at = torch.minimum(start + torch.arange(longest, device=x.device), end - 1)  # a shorter field has its last place again
            x = x.index_select(axis, at.flatten()).unflatten(axis, (after, longest)).amax(axis + 1)
    return x


def smaller(x: Map, y: Map, pool: Callable[[Map, Sequence[int]], Map] = averaged) -> tuple[Map, Map]:
    """Both with the size of the one of smaller height, as the released code decides it: the other one pooled."""
    if x.shape[2] > y.shape[2]:
        return pool(x, y.shape[2:]), y
    return x, pool(y, x.shape[2:])


def one_size(student: Taps, teacher: Taps, tap: str, first: int = 0) -> Iterator[tuple[Map, Map]]:
    """The maps of a tap, student's and teacher's, each averaged to the smaller height and the smaller width of the two; stages from place
    `first` on."""
    sides = (value[first:] if isinstance(value, tuple) else (value,) for value in (getattr(student, tap), getattr(teacher, tap)))
    for x, y in zip(*sides, strict=True):
        yield at_most(x, y.shape[2:]), at_most(y, x.shape[2:])
