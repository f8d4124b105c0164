"""Images read from their files, by processes that read ahead where that is asked. Not a dataset."""

from __future__ import annotations

import atexit
import random
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.datasets._files import Files
from kdbench.errors import DataError

Wanted = tuple[np.ndarray, np.ndarray | None]
"""(which images, in which views) of a batch."""


def read_rgb(path: Path) -> Image.Image:
    """An image in three colours; grey and CMYK ones are converted.

    Raises:
        DataError: it is gone, truncated, no image, or would lose what it holds.
    """
    try:
        with Image.open(path) as image:
            depth = image.mode
            if not depth.startswith(("I", "F")):
                return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{path.absolute()} was there when its folder was listed, and is gone") from error
    except Exception as error:  # a damaged image may raise anything
        raise DataError(f"{path.absolute()} is truncated or no image ({type(error).__name__}: {error}). Bring it again") from error
    raise DataError(f"{path.absolute()} has more than 8 bits a channel (mode {depth}), which would be clipped: convert it beforehand")


def as_it_is(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Reader(Dataset):
    """Pixels (uint8, n x c x h x w) of image files: all that a reading process needs, and nothing that lies on a device.

    `plain` makes an image's pixels without chance, `seen` with it: from Python's and torch's global generators, seeded with the view.
    """

    def __init__(
        self,
        files: Files,
        shape: tuple[int, ...],
        plain: Callable[[Image.Image], Tensor],
        seen: Callable[[Image.Image], Tensor] | None = None,
    ):
        self.files, self.shape, self.plain, self.seen = files, shape, plain, seen

    def read(self, index: np.ndarray, views: np.ndarray | None) -> Tensor:
        # Written into one block, so that the batch lies as n x c x h x w: stacked, it would take the order in which PIL keeps pixels.
        batch = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        python, torchs = random.getstate(), torch.get_rng_state()
        try:
            for row, place in enumerate(index):
                image = read_rgb(self.files.path(place))
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

    def __getitem__(self, wanted: Wanted) -> Tensor | DataError:
        """A batch, as a loader's process gives it: an error travels as a value, or torch would bury its text in a traceback."""
        try:
            return self.read(*wanted)
        except DataError as error:
            return error


def read_ahead(reader: Reader, wanted: Sequence[Wanted], workers: int, pinned: bool = False) -> Generator[Tensor, None, None]:
    """The batches in order, read by so many processes; none of them outlives the last batch, an error, or the end of this generator."""
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
        # Python warns of forking beside threads. These children decode images and touch neither GPU nor locks of ours.
        warnings.simplefilter("ignore", DeprecationWarning)
        batches = iter(loader)
    end = batches._shutdown_workers  # type: ignore[attr-defined]
    atexit.register(end)  # where a traceback keeps this generator alive to the last: deaf processes would never be ended
    try:
        for left in reversed(range(len(wanted))):
            batch = next(batches)
            if isinstance(batch, DataError):
                raise batch
            if not left:
                end()  # nobody need ask for one more
            yield batch
    finally:
        end()
        atexit.unregister(end)


def _deaf(_: int) -> None:
    """A signal for the whole group (a terminal's, a scheduler's) is the parent's to answer: it saves, then ends its readers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
