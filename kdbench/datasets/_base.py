"""The contract of a dataset, and what datasets of images share.

The options of a dataset are its identity; `load` reads it. The order of the images depends on their content (or, for images read
during training, on their relative path), so that split, subset and training order do not depend on the order of the files.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from kdbench.errors import DataError


class Data:
    """A dataset that was read. A view is a number that stands for one random augmentation of an image."""

    n_classes: int
    class_names: tuple[str, ...]
    """Of the classes in the order of their labels; absent where they have none but their numbers."""
    input_shape: tuple[int, ...]
    fingerprint: str
    from_files: bool = False
    """Whether images are read during training."""
    n_views: int | None = None
    """How many views an image has, numbered from 0; None where there is no such number, or it is large."""
    evaluation_batch: int = 256
    """How many images are evaluated at once."""
    notes: tuple[str, ...] = ()
    """What a user must know of the files, as that some were passed over. `run` and `check` print it once."""

    def size(self, split: str) -> int:
        """The number of images in a split; 0 if the split does not exist."""
        raise NotImplementedError

    def targets(self, split: str) -> Any:
        """The true labels of a split in canonical order: of a dataset for classification a tensor of classes, for detection `Objects`
        (kdbench/scenes.py) in pixels of the images as they are in their files."""
        raise NotImplementedError

    def draw_views(self, rng: np.random.Generator) -> np.ndarray:
        """One random view for each training image, in canonical order."""
        raise NotImplementedError

    def batch(self, split: str, index: np.ndarray, views: np.ndarray | None = None) -> tuple[Any, Any]:
        """(inputs, targets) of these images, on the data's device; not augmented if `views` is None."""
        raise NotImplementedError

    def batches(self, split: str, wanted: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> Generator[tuple[Any, Any], None, None]:
        """`batch` of each (index, views), in order. A dataset that reads files may read ahead."""
        for index, views in wanted:
            yield self.batch(split, index, views)

    def in_order(self, size: int) -> list[tuple[np.ndarray, None]]:
        """The first `size` images of a split as `batches` takes them, in batches as large as they are evaluated."""
        starts = range(0, size, self.evaluation_batch)
        return [(np.arange(start, min(start + self.evaluation_batch, size)), None) for start in starts]

    def augmented(self, rand_augment: str | None, random_erasing: float) -> Data:
        """The same data with these options of a recipe in place of any before: the training images, and no others, also change by them,
        each by its view. A second view has `fixmatch` or a text of `rand_augment` (`Loss.augmentation`)."""
        if rand_augment is None and not random_erasing:
            return self
        raise DataError(
            f"{type(self).__name__} has neither rand_augment nor random_erasing, nor a second view of an image: define `augmented`"
        )

    def read_with(self, processes: int) -> None:
        """Set the number of processes that read ahead. No result depends on it."""

    def reading_rates(self, index: np.ndarray, views: np.ndarray) -> dict[str, float]:
        """`decode_images_per_s` and `transform_images_per_s` of one process that reads these training images; empty where none are read."""
        return {}

    def to(self, device: torch.device) -> Data:
        raise NotImplementedError


class Dataset:
    """A dataset part. Options are keyword-only, and kept as attributes of the same name; results depend on all of them."""

    version: ClassVar[int] = 1
    added: ClassVar[Mapping[str, Any]] = {}
    """Options added after the first release (`Loss.added`)."""

    task: ClassVar[str] = "classification"
    augments: ClassVar[bool] = True
    """Whether the data have `rand_augment` and `random_erasing` (`Data.augmented`); where not, a recipe with them is refused, as is a loss
    that needs a second view."""

    n_classes: int
    input_shape: tuple[int, ...]
    """Channels, height, breadth; of images of many sizes those of the largest batch."""
    one_size: bool = True
    """Whether all batches have images of one size, so that the teacher's maps of other images fit the student's."""
    n_train: int | None
    """The number of training images; None if the options do not determine it."""
    test_images: int | None = None
    """The number of test images of the whole dataset; None if it is not known."""
    n_views: int | None = None
    """`n_views` of the data that `load` gives, before a recipe augments them further; None where they have none, or it is not known."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """(mean, sd) per channel, of pixels between 0 and 1, that the inputs are normalised with; None if there is none. A pretrained model
    with another normalisation undoes this one first."""

    def load(self, folder: Path) -> Data:
        """Read the dataset from the data folder. Raises DataError if it is missing, truncated, mislabelled, or another one."""
        raise NotImplementedError

    def download(self, folder: Path) -> Path:
        """Put the dataset into the data folder. Returns its own folder there. Raises DataError if it cannot be downloaded."""
        raise DataError(f"{type(self).__name__} cannot be downloaded by kdbench. {self.how_to_get_it()}")

    def example(self, n: int) -> tuple[Any, Any]:
        """(inputs, targets) of n images without content, on torch's default device (it may be the meta device), by which models and losses
        are tried before training. A dataset whose inputs are not one tensor defines it."""
        return torch.empty(n, *self.input_shape), torch.arange(n) % self.n_classes

    def how_to_get_it(self) -> str:
        """What a user does to put it into the data folder; a part of messages."""
        return "`kdbench show` describes where it comes from."

    def _keep(self, validation: float, split_seed: int, padding: int = 0, flip: bool | None = None) -> None:
        """Check and keep options that many datasets of images have. Raises ValueError. `flip` is for those that are kept in memory."""
        if not 0 <= padding < min(self.input_shape[1:]):
            raise ValueError(f"padding must be between 0 and {min(self.input_shape[1:]) - 1} pixels, not {padding}")
        if not 0 <= validation < 1:
            raise ValueError(f"validation is the share of held-out training images, at least 0 and below 1, not {validation}")
        if not 0 <= split_seed < 2**63:
            raise ValueError(f"split_seed must be between 0 and 2^63 - 1, not {split_seed}")
        self.validation, self.split_seed, self.padding = validation, split_seed, padding
        if flip is not None:
            self.n_views = n_crops(padding, flip)


@dataclass(frozen=True)
class Subset:
    """A part of a dataset: the first `classes` labels, of each the first `per_class` training images in canonical order.

    `imbalance` makes the classes long-tailed: of n images of class 0, class i of C keeps int(n imbalance^(-i / (C - 1))), so that the last
    class has `imbalance` times fewer than the first (Cao et al. 2019; they choose the images at random). n is `per_class`, else the size
    of the smallest class. `validation` then holds out its share of each class. The test set keeps all images of these classes.
    """

    classes: int | None = None
    per_class: int | None = None
    imbalance: float | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")
    added: ClassVar[Mapping[str, Any]] = {"imbalance": None}

    @classmethod
    def of(cls, given: Any, classes: int, per_class: int | None) -> Subset:
        """The value of the option `subset`, checked against the dataset (`per_class`: images of the smallest class, None if unknown).
        Raises ValueError if it is larger than the dataset, the whole of it, or empty."""
        subset = given if isinstance(given, Subset) else cls(**(given or {}))
        if given is not None and subset == cls():
            raise ValueError("subset sets neither `classes` nor `per_class` nor `imbalance`: leave it out")
        for name, there in (("classes", classes), ("per_class", per_class)):
            asked = getattr(subset, name)
            if asked is not None and asked == there:
                raise ValueError(f"subset.{name} {asked} is the whole dataset: leave it out")
            least = 2 if name == "classes" else 1
            if asked is not None and not least <= asked <= (there or max(asked, least)):
                allowed = f"between {least} and {there}" if there else f"at least {least}"
                raise ValueError(f"subset.{name} must be {allowed}, not {asked}")
        subset.check_imbalance(subset.per_class or per_class)
        return subset

    def check_imbalance(self, most: int | None) -> None:
        """Raises ValueError if `imbalance` does not fit a largest class of `most` images (None: unknown)."""
        if self.imbalance == 1:
            raise ValueError("imbalance 1 leaves the classes as they are: leave it out")
        if self.imbalance is not None and not 1 < self.imbalance <= (most or inf):
            limit = f" and at most {most}, the images of the first class, so that the last one has an image" if most else ""
            raise ValueError(f"imbalance must be above 1{limit}, not {self.imbalance:g}: how many times more images the first class has")

    def counts(self, n_classes: int, most: int) -> list[int]:
        """The number of images of each class, where the largest has `most`."""
        return [int(most / (self.imbalance or 1.0) ** (label / (n_classes - 1))) for label in range(n_classes)]

    def n_train(self, n_classes: int, most: int, validation: float) -> int:
        """The number of training images that remain of these classes when a share is held out."""
        counts = self.counts(n_classes, most)
        return left_of(sum(counts), validation) if self.imbalance is None else sum(count - held_of(count, validation) for count in counts)


def n_crops(padding: int, flip: bool) -> int:
    """The number of crops of an image with a margin, in either direction with `flip`."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def left_of(pool: int, validation: float) -> int:
    """The number of training images that remain when a share of a pool is held out."""
    return pool - round(pool * validation)


def held_of(images: int, share: float) -> int:
    """The number of images of one class that are held out: its share, and never all of them."""
    return min(round(images * share), images - 1)


def to_device(values: Any, device: torch.device) -> Tensor:
    """Numbers of the host as a tensor on a device. The host does not wait for what the device has still to do, as it would with
    `torch.as_tensor(values, device=device)`."""
    return torch.as_tensor(values).to(device, non_blocking=True)


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], white: float = 255.0) -> Tensor:
    """Integer pixels (n x c x h x w), normalised. The order of operations gives the same bits as torchvision's ToTensor and Normalize."""
    centre, spread = (to_device(values, pixels.device).view(-1, 1, 1) for values in (mean, std))
    return pixels.float().div_(white).sub_(centre).div_(spread)
