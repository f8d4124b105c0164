"""Images read from files, in this process or by processes that read ahead. Not a dataset."""

from __future__ import annotations

import atexit
import io
import random
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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


def read_rgb(path: Path | EncodedImage, decoding: Decoding = Decoding()) -> Image.Image:
    """An image (of several, the first) converted to RGB. Raises DataError if it is missing, truncated, not an image, or has more than 8
    bits per channel."""
    try:
        # Pillow's warnings are ignored, since each reader would print them in each epoch.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.format in NOT_READ:
                raise ValueError(f"it is {image.format}")
            image.load()
            depth = image.mode
            if not depth.startswith(("I", "F")):
                return _rgb(image, decoding)
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
    return image.convert("RGB")


def as_it_is(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Reader(Dataset):
    """Pixels (uint8, n x c x h x w) of image files. `plain` makes an image's pixels without augmentation, `seen` with draws from Python's
    and torch's global generators, which are seeded with the view."""

    def __init__(
        self, files: StoredImages, shape: tuple[int, ...], plain: Transform, seen: Transform | None = None, decoding: Decoding = Decoding()
    ):
        self.files, self.shape, self.plain, self.seen, self.decoding = files, shape, plain, seen, decoding

    def read(self, index: np.ndarray, views: np.ndarray | None) -> Tensor:
        # Written into one block, so that the memory layout is n x c x h x w: stacked, it would be PIL's.
        batch = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        python, torchs = random.getstate(), torch.get_rng_state()
        try:
            for row, place in enumerate(index):
                image = read_rgb(self.files.path(place), self.decoding)
                if views is None or self.seen is None:
                    pixels = self.plain(image)
                else:
                    random.seed(int(views[row]))
                    torch.default_generator.manual_seed(int(views[row]))  # the CPU's alone: torch.manual_seed would reach the GPU's
                    pixels = self.seen(image)
                if pixels.shape != self.shape:
                    there, asked = (" x ".join(str(side) for side in shape[1:]) for shape in (pixels.shape, self.shape))
                    raise DataError(f"{self.files.path(place).absolute()} has {there} pixels, and not {asked}")
                batch[row] = pixels
        finally:
            random.setstate(python)
            torch.set_rng_state(torchs)
        return batch

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
