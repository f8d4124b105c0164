"""The contract of a dataset, and what datasets of images share.

A dataset is declared by its options, which are its identity; `load` reads it. Images are put in an order that depends on their
content (or, streamed from a folder, on their relative path), so that split, subset and training order survive another copy with
its files in another order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from kdbench.errors import DataError


class Data:
    """A dataset in hand. `batch` gives what one step of the task eats; a view is an opaque, hashable thing of the dataset's own."""

    n_classes: int
    input_shape: tuple[int, ...]
    fingerprint: str
    from_files: bool = False
    """Whether images are read while training: by readers that keep ahead of it, where there are any."""

    def size(self, split: str) -> int:
        """How many images the split has; 0 when there is none (a validation split that nobody asked for)."""
        raise NotImplementedError

    def targets(self, split: str) -> Tensor:
        raise NotImplementedError

    def draw_views(self, rng: np.random.Generator) -> np.ndarray:
        """One view for each training image, in canonical order."""
        raise NotImplementedError

    def batch(self, split: str, index: np.ndarray, views: np.ndarray | None = None) -> tuple[Any, Any]:
        """(inputs, targets) of these images, on the data's device; as they are when `views` is None."""
        raise NotImplementedError

    def batches(self, split: str, wanted: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> Generator[tuple[Any, Any], None, None]:
        """`batch` of each (index, views), in order. A dataset that reads files may read ahead here."""
        for index, views in wanted:
            yield self.batch(split, index, views)

    def read_with(self, processes: int) -> None:
        """Have so many processes read ahead from now on, where reading is slow: circumstance, never science."""

    def to(self, device: torch.device) -> Data:
        raise NotImplementedError


class Dataset:
    """A declared dataset. Options are keyword-only, kept as attributes of the same name, and all of them are science."""

    version: ClassVar[int] = 1
    task: ClassVar[str] = "classification"

    @property
    def n_classes(self) -> int:
        raise NotImplementedError

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height, breadth."""
        raise NotImplementedError

    @property
    def n_train(self) -> int | None:
        """How many training images there will be; None where the declaration does not tell."""
        raise NotImplementedError

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, sd) per channel, of pixels between 0 and 1, that inputs were normalised with; None where that means nothing.

        A model with a normalisation of its own (a pretrained one) undoes this one first.
        """
        return None

    def load(self, folder: Path) -> Data:
        """Read it. `folder` is the data folder of this machine; a dataset that ships with a library does not need it.

        Raises:
            DataError: it is missing, truncated, mislabelled, or not the one that was asked.
        """
        raise NotImplementedError

    def download(self, folder: Path) -> Path:
        """Bring it into the data folder, and say where it lies.

        Raises:
            DataError: it cannot be downloaded.
        """
        raise DataError(f"{type(self).__name__} is not offered for download: its description says where it comes from (`kdbench show`)")


@dataclass(frozen=True)
class Subset:
    """A part of a dataset: the first `classes` labels, of each the first `per_class` training images in canonical order.

    The test set keeps all images of these classes.
    """

    classes: int | None = None
    per_class: int | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def of(cls, given: Any, classes: int, per_class: int | None) -> Subset:
        """What an option said, checked against what there is (`per_class`: in the smallest class, where that is known).

        Raises:
            ValueError: it asks for more, or for nothing.
        """
        subset = given if isinstance(given, Subset) else cls(**(given or {}))
        if given is not None and subset == cls():
            raise ValueError("subset names neither `classes` nor `per_class`: leave it out")
        for name, there in (("classes", classes), ("per_class", per_class)):
            asked = getattr(subset, name)
            if asked is not None and asked == there:
                raise ValueError(f"subset.{name} {asked} is all there is: leave it out")
            least = 2 if name == "classes" else 1
            if asked is not None and not least <= asked <= (there or max(asked, least)):
                allowed = f"between {least} and {there}" if there else f"at least {least}"
                raise ValueError(f"subset.{name} must be {allowed}, not {asked}")
        return subset


def checked_share(validation: float) -> float:
    if not 0 <= validation < 1:
        raise ValueError(f"validation is the share that is held out, between 0 and 1, not {validation}")
    return validation


def checked_seed(split_seed: int) -> int:
    if not 0 <= split_seed < 2**63:
        raise ValueError(f"split_seed must be between 0 and 2^63 - 1, not {split_seed}")
    return split_seed


def left_of(pool: int, validation: float) -> int:
    """How many of a pool are left to train on when a share of it is held out."""
    return pool - round(pool * validation)


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], white: float = 255.0) -> Tensor:
    """Whole-number pixels (n x c x h x w) as a model eats them. This order of operations gives the very bits of the usual to-tensor
    and normalise."""
    centre, spread = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (mean, std))
    return pixels.float().div_(white).sub_(centre).div_(spread)
