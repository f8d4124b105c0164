"""Maps of the two models, pair by pair, brought to one size. Not a loss."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from kdbench.losses._base import Taps
from kdbench.losses._gram import averaged


def one_size(student: Taps, teacher: Taps, tap: str) -> Iterator[tuple[Float[Tensor, "n c_s h w"], Float[Tensor, "n c_t h w"]]]:
    """The maps of a tap, student's and teacher's, each averaged to the smaller height and the smaller width of the two."""
    sides = (value if isinstance(value, tuple) else (value,) for value in (getattr(student, tap), getattr(teacher, tap)))
    for x, y in zip(*sides, strict=True):
        height, width = (min(x.shape[axis], y.shape[axis]) for axis in (2, 3))
        yield tuple(one if one.shape[2:] == (height, width) else averaged(one, height, width) for one in (x, y))  # type: ignore[misc]
