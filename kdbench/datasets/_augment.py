"""RandAugment and random erasing of training images: each image by its own view. Not a dataset."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.datasets._fixmatch import NAME as FIXMATCH
from kdbench.datasets._fixmatch import fixmatch
from kdbench.datasets._views import Box, Seen
from kdbench.errors import DataError


@contextmanager
def own_draws() -> Iterator[None]:
    """What is drawn inside leaves the generators of Python, NumPy and torch (of the CPU) as they were."""
    python, numpys, torchs = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)


def draw_from(view: int, purpose: str) -> None:
    """Seed these generators from a view. Draws for different purposes are independent."""
    seed = int.from_bytes(hashlib.sha256(f"{purpose} {view}".encode()).digest()[:8], "big")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would reach the GPU's


@dataclass(frozen=True)
class RandAugment:
    """timm's RandAugment as its training script uses it: new pixels have the mean colour, translations are at most 0.45 of the image, and
    each operation interpolates bilinearly or bicubically, by chance. Or, where `config` is `fixmatch`, the augmentation of that name. A
    grey image is augmented as a colour image of equal channels."""

    config: str
    size: int
    mean: tuple[float, ...]

    @cached_property
    def change(self) -> Any:
        if self.config == FIXMATCH:
            return fixmatch
        from kdbench.timm_adapter import make_rand_augment

        return make_rand_augment(self.config, self.size, self.mean)

    def __call__(self, pixels: Tensor, view: int) -> Tensor:
        """One image (uint8, c x h x w), with the draws of its view."""
        channels = len(pixels)
        if channels not in (1, 3):
            raise DataError(f"rand_augment works on images with 1 or 3 channels, not {channels}")
        draw_from(view, "rand_augment")
        image = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        return torch.from_numpy(np.array(self.change(image))).permute(2, 0, 1)[:channels]


@dataclass(frozen=True)
class AlsoRandAugment:
    """What training sees, and RandAugment after it."""

    first: Seen
    then: RandAugment

    def box(self, view: int, size: tuple[int, int]) -> Box:
        return self.first.box(view, size)

    def __call__(self, part: Image.Image, view: int) -> Tensor:
        with own_draws():
            return self.then(self.first(part, view), view)


def erased(inputs: Tensor, views: np.ndarray, probability: float) -> Tensor:
    """Normalised inputs, changed in place: with this probability a rectangle of an image (2 % to a third of its area) becomes normal noise.
    timm's random erasing, in the mode `pixel`."""
    from kdbench.timm_adapter import make_random_erasing

    erase = make_random_erasing(probability)
    with own_draws():
        for image, view in zip(inputs, views.tolist(), strict=True):
            draw_from(view, "random_erasing")
            erase(image)
    return inputs
