"""Convolutions that turn a student's map into one of the teacher's shape. Not a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def by_sizes(student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:
    """A convolution from one shape (n, c, h, w) to another, chosen by the heights as in RepDistiller: 1x1 for equal ones, 3x3 of stride 2
    to half, a transposed 4x4 of stride 2 to twice, else a kernel as large as the difference. None if none gives the shape."""
    (_, into, *size), (_, out, *wanted) = student, teacher
    high, low = size[0], wanted[0]
    if high == 2 * low:
        given, made = [(one + 1) // 2 for one in size], nn.Conv2d(into, out, 3, stride=2, padding=1)
    elif high * 2 == low:
        given, made = [2 * one for one in size], nn.ConvTranspose2d(into, out, 4, stride=2, padding=1)
    elif high < low or size[1] < wanted[1]:
        return None
    else:
        kernel = [1 + one - other for one, other in zip(size, wanted, strict=True)]
        given, made = wanted, nn.Conv2d(into, out, tuple(kernel))
    return made if list(given) == list(wanted) else None


def unserved(student: Sequence[int], teacher: Sequence[int]) -> str | None:
    """Why `by_sizes` has no convolution between these shapes, if it has none."""
    with torch.device("meta"):
        made = by_sizes(student, teacher)
    size, wanted = ("x".join(map(str, shape[2:])) for shape in (student, teacher))
    return None if made is not None else f"none of its convolutions makes maps of {wanted}, as the teacher's, from the student's {size}"
