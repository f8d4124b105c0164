"""What training and evaluation see of an image, as a function of the image and of the number of its view. Not a dataset.

Draws are raw outputs of a counter-based generator, and pixels are resized by Pillow: neither depends on releases of torch and torchvision.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

TRIES = 10


class Seen(Protocol):
    """What training sees: `box` of an image of this (breadth, height), then a function of its pixels there."""

    def box(self, view: int, size: tuple[int, int]) -> Box: ...
    def __call__(self, part: Image.Image, view: int) -> Tensor: ...


def as_it_is(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class _Philox(threading.local):
    """A generator of each thread: it takes several times as long to make one as to draw from it."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=0)


_philox = _Philox()


def draws(view: int, count: int) -> list[int]:
    """The first 64-bit numbers of `np.random.Philox(key=view)`, which are the same in every release of NumPy."""
    state = {"counter": np.zeros(4, np.uint64), "key": np.array([view, 0], np.uint64)}
    rest = {"buffer": np.zeros(4, np.uint64), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
    _philox.generator.state = {"bit_generator": "Philox", "state": state, **rest}
    return _philox.generator.random_raw(count).tolist()


def uniform(draw: int, low: float, high: float) -> float:
    return low + (draw >> 11) / 2**53 * (high - low)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image with a random share of its area and a random ratio of breadth to height (uniform in its logarithm), resized; and
    a flip with probability 1/2. The distribution is that of torchvision's RandomResizedCrop and RandomHorizontalFlip, also where no
    part of ten fits: then the largest central one is taken."""

    size: int
    scale: tuple[float, ...]
    ratio: tuple[float, ...]
    flip: bool
    interpolation: str

    def box(self, view: int, size: tuple[int, int]) -> Box:
        breadth, height = size
        _, *drawn = draws(view, 1 + 4 * TRIES)
        for place in range(0, 4 * TRIES, 4):
            area = breadth * height * uniform(drawn[place], *self.scale)
            ratio = math.exp(uniform(drawn[place + 1], *map(math.log, self.ratio)))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= breadth and 0 < high <= height:
                top, left = (height - high + 1) * drawn[place + 2] >> 64, (breadth - wide + 1) * drawn[place + 3] >> 64
                return left, top, left + wide, top + high
        # At least one pixel: torchvision rounds the smaller side of a line of pixels to 0.
        wide, high = min(breadth, max(1, round(height * self.ratio[1]))), min(height, max(1, round(breadth / self.ratio[0])))
        left, top = (breadth - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high

    def __call__(self, part: Image.Image, view: int) -> Tensor:
        image = part.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()])
        if self.flip and draws(view, 1)[0] >> 63:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return as_it_is(image)


@dataclass(frozen=True)
class CentreCrop:
    """The centre of the image, whose shorter side is resized to floor(size / crop_pct)."""

    size: int
    crop_pct: float
    interpolation: str

    def __call__(self, image: Image.Image) -> Tensor:
        short, least = math.floor(self.size / self.crop_pct), min(image.size)
        resized = image.resize((short * image.width // least, short * image.height // least), Image.Resampling[self.interpolation.upper()])
        left, top = round((resized.width - self.size) / 2), round((resized.height - self.size) / 2)
        return as_it_is(resized.crop((left, top, left + self.size, top + self.size)))
