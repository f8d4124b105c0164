"""Images read from files, in this process or by processes that read ahead. Not a dataset."""

from __future__ import annotations

import atexit
import io
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.datasets._decode import decoder, fast_pixels
from kdbench.datasets._views import Box, Seen
from kdbench.errors import DataError

Turn = Image.Transpose
NOT_READ = ("EPS",)
"""Formats that Pillow reads by running a program."""

Transform = Callable[[Image.Image], Tensor]
Wanted = tuple[np.ndarray, np.ndarray | None]
"""(which images, in which views) of a batch."""


UPRIGHT = {
    **{2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE},
    **{6: Turn.ROTATE_270, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_90},
}
"""What makes an image upright, by its EXIF orientation (1 is upright)."""


@dataclass(frozen=True)
class Decoding:
    """How files become pixels. The defaults are those of the literature: pixels as they are stored, without their transparency."""

    orientation: Literal["exif", "ignored"] = "ignored"
    transparency: Literal["white", "dropped"] = "dropped"


class EncodedImage(io.BytesIO):
    """The bytes of an image that is in no file of its own. `name` is what messages call it."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name

    def absolute(self) -> str:
        return self.name


class StoredImages(Protocol):
    """Images with their labels: in files, or inside of larger files."""

    @property
    def labels(self) -> np.ndarray: ...
    def __len__(self) -> int: ...
    def take(self, index: np.ndarray) -> StoredImages: ...
    def path(self, place: int) -> Path | EncodedImage: ...


def read_rgb(
    path: Path | EncodedImage, decoding: Decoding = Decoding(), part: Callable[[tuple[int, int]], Box] | None = None
) -> Image.Image:
    """An image (of several, the first) converted to RGB; or only the `part` of an image of this (breadth, height). Raises DataError if it
    is missing, truncated, not an image, or has more than 8 bits per channel."""
    with warnings.catch_warnings(action="ignore"):  # each reader would print Pillow's in each epoch
        return opened_rgb(path, decoding, part)


def opened_rgb(
    path: Path | EncodedImage, decoding: Decoding = Decoding(), part: Callable[[tuple[int, int]], Box] | None = None
) -> Image.Image:
    """`read_rgb` with Pillow's warnings, which one thread alone can switch off for all."""
    try:
        with Image.open(path) as image:
            if image.format in NOT_READ:
                raise ValueError(f"it is {image.format}")
            # To hand a whole image over to Pillow takes longer than a faster decoder saves.
            if part is not None and (pixels := fast_pixels(image)) is not None:
                left, top, right, bottom = part(image.size)
                return Image.fromarray(pixels[top:bottom, left:right])
            image.load()
            depth = image.mode
            if not depth.startswith(("I", "F")):
                upright = _rgb(image, decoding)
                return upright if part is None else upright.crop(part(upright.size))
    except FileNotFoundError as error:
        raise DataError(f"{path.absolute()} was removed after its folder was listed") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path.absolute()} is too large ({error}): make it smaller beforehand") from error
    except Exception as error:  # a damaged image may raise anything
        raise DataError(f"{path.absolute()} is truncated or not an image ({type(error).__name__}: {error}). Copy it again") from error
    raise DataError(f"{path.absolute()} has more than 8 bits a channel (mode {depth}), which would be clipped: convert it beforehand")


def _rgb(image: Image.Image, decoding: Decoding) -> Image.Image:
    if decoding.orientation == "exif":
        try:
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
        except Exception:  # damaged EXIF data raise anything, and the pixels can still be read
            turn = None
        image = image if turn is None else image.transpose(turn)
    if decoding.transparency == "white" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # `convert` copies an image that is in RGB already.
    return image if image.mode == "RGB" and image.format == "JPEG" else image.convert("RGB")


class Reader(Dataset):
    """Pixels (uint8, n x c x h x w) of image files. `plain` makes an image's pixels without augmentation, `seen` those of a view."""

    def __init__(
        self, files: StoredImages, shape: tuple[int, ...], plain: Transform, seen: Seen | None = None, decoding: Decoding = Decoding()
    ):
        self.files, self.shape, self.plain, self.seen, self.decoding = files, shape, plain, seen, decoding

    def _decoded(self, place: int, view: int | None) -> Image.Image:
        part = None if view is None or self.seen is None else partial(self.seen.box, view)
        return read_rgb(self.files.path(place), self.decoding, part)

    def _transformed(self, image: Image.Image, view: int | None) -> Tensor:
        return self.plain(image) if view is None or self.seen is None else self.seen(image, view)

    def read(self, index: np.ndarray, views: np.ndarray | None) -> Tensor:
        # Written into one block, so that the memory layout is n x c x h x w: stacked, it would be PIL's.
        batch = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        for row, place in enumerate(index):
            view = None if views is None else int(views[row])
            pixels = self._transformed(self._decoded(place, view), view)
            if pixels.shape != self.shape:
                there, asked = (" x ".join(str(side) for side in shape[1:]) for shape in (pixels.shape, self.shape))
                raise DataError(f"{self.files.path(place).absolute()} has {there} pixels, and not {asked}")
            batch[row] = pixels
        return batch

    def rates(self, index: np.ndarray, views: np.ndarray) -> dict[str, float]:
        """How many of these images one process decodes in a second, and how many decoded ones it transforms."""
        wanted = [(place, int(view)) for place, view in zip(index.tolist(), views, strict=True)]
        began = time.perf_counter()
        images = [self._decoded(*one) for one in wanted]
        decoded = time.perf_counter()
        for image, (_, view) in zip(images, wanted, strict=True):
            self._transformed(image, view)
        ended = time.perf_counter()
        return {"decode_images_per_s": len(wanted) / (decoded - began), "transform_images_per_s": len(wanted) / (ended - decoded)}

    def wrong(self) -> list[str]:
        """What is wrong with the images that cannot be read."""
        found = (self[np.array([place]), None] for place in range(len(self.files)))
        return [str(one) for one in found if isinstance(one, DataError)]

    def __getitem__(self, wanted: Wanted) -> Tensor | DataError:
        """A batch for a loader's process. An error is returned, since torch would put its text into a traceback."""
        try:
            return self.read(*wanted)
        except DataError as error:
            return error


def read_ahead(reader: Reader, wanted: Sequence[Wanted], workers: int, pinned: bool = False) -> Generator[Tensor, None, None]:
    """The batches in order, read by `workers` processes, which end with the last batch, an error, or the end of this generator."""
    decoder()  # imported once here, and not by each reader
    loader: DataLoader = DataLoader(
        reader,
        batch_size=None,
        sampler=wanted,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=_deaf,
        generator=torch.Generator(),  # or it would draw from the global one
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    with warnings.catch_warnings():
        # Python warns about a fork with threads. These processes only decode images, without GPU or our locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        batches = iter(loader)
    end = batches._shutdown_workers  # type: ignore[attr-defined]
    atexit.register(end)  # a traceback can keep this generator alive to the end, and the readers ignore signals
    try:
        for left in reversed(range(len(wanted))):
            batch = next(batches)
            if isinstance(batch, DataError):
                raise batch
            if not left:
                end()  # also if no further batch is requested
            yield batch
    finally:
        end()
        atexit.unregister(end)


def _deaf(_: int) -> None:
    """Ignore signals to the process group: the parent saves, then ends its readers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
