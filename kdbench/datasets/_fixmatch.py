"""The strong augmentation of FixMatch's followers, which they call RandAugment: another one than timm's. Not a dataset."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

NAME = "fixmatch"
COUNT = 2
GREY = (125, 123, 114)
LARGEST_SQUARE = 0.5


def _moved(image: Image.Image, *row: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, row)


OPERATIONS: tuple[tuple[Callable[[Image.Image, float], Image.Image], float, float], ...] = (
    (lambda image, _: ImageOps.autocontrast(image), 0, 1),
    (lambda image, value: ImageEnhance.Brightness(image).enhance(value), 0.05, 0.95),
    (lambda image, value: ImageEnhance.Color(image).enhance(value), 0.05, 0.95),
    (lambda image, value: ImageEnhance.Contrast(image).enhance(value), 0.05, 0.95),
    (lambda image, _: ImageOps.equalize(image), 0, 1),
    (lambda image, _: image, 0, 1),
    (lambda image, value: ImageOps.posterize(image, int(value)), 4, 8),
    (lambda image, value: image.rotate(value), -30, 30),
    (lambda image, value: ImageEnhance.Sharpness(image).enhance(value), 0.05, 0.95),
    (lambda image, value: _moved(image, 1, value, 0, 0, 1, 0), -0.3, 0.3),
    (lambda image, value: _moved(image, 1, 0, 0, value, 1, 0), -0.3, 0.3),
    (lambda image, value: ImageOps.solarize(image, int(value)), 0, 256),
    (lambda image, value: _moved(image, 1, 0, value * image.size[0], 0, 1, 0), -0.3, 0.3),
    (lambda image, value: _moved(image, 1, 0, 0, 0, 1, value * image.size[1]), -0.3, 0.3),
)
"""Each with its least and largest strength, of which one is drawn uniformly: autocontrast, brightness, colour, contrast, equalize, none,
posterize, rotate, sharpness, shear (x, y), solarize, translate (x, y)."""


def fixmatch(image: Image.Image) -> Image.Image:
    """Two operations out of 14, each with a random strength, and then a grey square with a random centre and a side of up to half the
    breadth. Draws from Python's and NumPy's generators.

    Source: `RandAugment(2, 10)` of github.com/Jin-Ying/Multi-Level-Logit-Distillation, mdistiller/dataset/cifar100.py (its second argument
    has no effect), as in PyTorch versions of FixMatch (Sohn et al. 2020)."""
    for change, least, most in random.choices(OPERATIONS, k=COUNT):
        image = change(image, least + (most - least) * random.random())
    breadth, height = image.size
    side = random.random() * LARGEST_SQUARE * breadth
    left, top = (int(max(0.0, np.random.uniform(length) - side / 2)) for length in (breadth, height))
    image = image.copy()
    ImageDraw.Draw(image).rectangle((left, top, min(breadth, left + side), min(height, top + side)), GREY)
    return image
