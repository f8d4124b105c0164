"""What a step of the training gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdbench.losses._base import Batch, Taps


@dataclass(frozen=True)
class Part:
    """A group of a batch, or a whole batch without groups: what `Member.step` gets."""

    number: int
    inputs: Any
    targets: Any
    batch: Batch
    teacher: Taps | None


@dataclass(frozen=True)
class Given:
    """A step: the groups of this rank that have images, how many images each rank has, and of the whole batch what the losses need that
    compare images."""

    parts: tuple[Part, ...]
    counts: tuple[int, ...]
    batch: Batch
    teacher: Taps | None = None
