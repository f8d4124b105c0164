"""Datasets that are read from files while training. Not a dataset by itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.datasets._base import Data, normalised
from kdbench.datasets._files import Files
from kdbench.datasets._reading import Reader, Wanted, read_ahead


@dataclass(eq=False)
class StreamedData(Data):
    """Images that are decoded when they are asked for. A view is a 64-bit number: the seed of that image's own random crop and flip.

    `files` holds those of each split, in the order of their relative paths; `seen` is what training sees of an image, `plain` what
    evaluation does. A batch is a function of (index, views) alone: neither `workers` nor who else draws random numbers changes it.
    """

    files: dict[str, Files]
    n_classes: int
    input_shape: tuple[int, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seen: Callable[[Image.Image], Tensor]
    plain: Callable[[Image.Image], Tensor]
    device: torch.device = torch.device("cpu")
    workers: int = 0
    from_files: bool = True

    def __post_init__(self) -> None:
        self.labels = {split: torch.as_tensor(files.labels, device=self.device) for split, files in self.files.items()}
        self.readers = {split: Reader(files, self.input_shape, self.plain, self.seen) for split, files in self.files.items()}

    def size(self, split: str) -> int:
        return len(self.files[split]) if split in self.files else 0

    def targets(self, split: str) -> Tensor:
        return self.labels[split]

    def draw_views(self, rng: np.random.Generator) -> np.ndarray:
        return rng.bit_generator.random_raw(self.size("train"))

    def batch(self, split: str, index: np.ndarray, views: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        return self._placed(split, index, self.readers[split].read(index, views))

    def batches(self, split: str, wanted: Iterable[Wanted]) -> Generator[tuple[Tensor, Tensor], None, None]:
        listed = list(wanted)
        if not (self.workers and listed):
            yield from super().batches(split, listed)
            return
        with closing(read_ahead(self.readers[split], listed, self.workers, self.device.type == "cuda")) as ahead:
            for (index, _), pixels in zip(listed, ahead, strict=True):
                yield self._placed(split, index, pixels)

    def read_with(self, processes: int) -> None:
        self.workers = processes

    def to(self, device: torch.device) -> StreamedData:
        return replace(self, device=device)

    def _placed(self, split: str, index: np.ndarray, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes are brought to the device and normalised there: a quarter of the way's load."""
        there = pixels.to(self.device, non_blocking=True)
        return normalised(there, self.mean, self.std), self.labels[split][torch.as_tensor(index, device=self.device)]
