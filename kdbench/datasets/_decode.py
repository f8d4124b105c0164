"""The pixels of large, common JPEG images by a faster decoder than Pillow's where one is installed. Not a dataset.

Pillow is the reference. Another decoder is used only if it gives Pillow's pixels of `PROBES`, and only for images like them, so that what
is installed never changes a pixel.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Decoder = Callable[[bytes], Tensor]
"""From a JPEG file to uint8 (3 x height x breadth). Raises anything for a damaged one."""

LARGE = 2**20
"""Pixels of the images that other decoders read. Of smaller ones (those of ImageNet have a fifth), to hand the pixels over to Pillow, which
resizes them, takes longer than the decoder saves: with Pillow 13, torchcodec takes 1.1 times as long for 500 x 375 pixels."""

SAMPLED = ((1, 1), (2, 1), (2, 2))
"""The samples of luminance for each of chrominance, by columns and rows: 4:4:4, 4:2:2 and 4:2:0."""


def _torchcodec() -> Decoder:
    from torchcodec.decoders import decode_jpeg

    return lambda content: decode_jpeg(content, mode="RGB")


def _torchvision() -> Decoder:
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda content: decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)


MAKERS = {"torchcodec": _torchcodec, "torchvision": _torchvision}
"""In order of preference."""


def installed() -> dict[str, Decoder]:
    found = {}
    for name, make in MAKERS.items():
        with suppress(Exception):  # not installed, or without a library that it needs
            found[name] = make()
    return found


def probes() -> list[bytes]:
    """A small JPEG file for each entry of `SAMPLED`, with odd sides and much detail."""
    image = Image.fromarray((np.arange(47 * 33 * 3, dtype=np.int64) ** 2 % 251).astype(np.uint8).reshape(47, 33, 3))
    files = [io.BytesIO() for _ in SAMPLED]
    for subsampling, file in enumerate(files):
        image.save(file, "jpeg", quality=90, subsampling=subsampling)
    return [file.getvalue() for file in files]


def agrees(decode: Decoder) -> bool:
    """Whether a decoder gives Pillow's pixels of the probes."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torchvision announces that its decoders will be removed
            return all(np.array_equal(decode(one).permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(one)))) for one in probes())
    except Exception:
        return False


@cache
def decoder() -> Decoder | None:
    """The decoder to use beside Pillow; None: Pillow alone."""
    return next((decode for decode in installed().values() if agrees(decode)), None)


def is_common(image: Image.Image) -> bool:
    """Whether an opened image is like the probes: a baseline JPEG in YCbCr. One with EXIF data is not: torchcodec turns it upright."""
    if image.format != "JPEG" or image.mode != "RGB" or {"exif", "progressive"} & image.info.keys():
        return False
    first, *others = (tuple(one[1:3]) for one in getattr(image, "layer", ()) or ((),))
    # Without one of these marks, libraries guess the colours.
    marked = "jfif" in image.info or image.info.get("adobe_transform") == 1
    return marked and image.info.get("adobe_transform", 1) == 1 and first in SAMPLED and others == [(1, 1), (1, 1)]


def fast_pixels(image: Image.Image) -> np.ndarray | None:
    """The pixels (height x breadth x 3) of an image that was opened and not yet loaded; None where Pillow is to load it, which also says
    what is wrong with a damaged one."""
    decode, file = decoder(), getattr(image, "fp", None)
    if decode is None or file is None or image.width * image.height < LARGE or not is_common(image):
        return None
    file.seek(0)
    try:
        pixels = decode(file.read()).permute(1, 2, 0).numpy()
    except Exception:  # a damaged image may raise anything
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None
