"""The batch plan: the images and views of each batch, a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdbench.datasets._base import Data
from kdbench.errors import DataError
from kdbench.recipes._base import Recipe, steps_per_epoch
from kdbench.tasks._base import Task
from kdbench.train.mix import Mixing
from kdbench.train.ranks import Ranks
from kdbench.train.seeds import Streams, seed_of

Place = tuple[np.ndarray, np.ndarray]
"""(index, views) of a batch: its images and the view of each."""


@dataclass(frozen=True)
class BatchPlan:
    """The data stream of a bundle. `steps` is the number of steps of one epoch."""

    data: Data
    streams: Streams
    batch_size: int
    drop_last: bool
    class_uniform: int = 0
    mixing: Mixing | None = None
    second: bool = False
    """Whether its views are second ones, with draws of their own."""
    groups: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any], data: Data) -> BatchPlan:
        recipe = Recipe.complete(config["recipe"])
        if recipe["drop_last"] and data.size("train") < recipe["batch_size"]:
            message = f"{data.size('train')} training images make no batch of {recipe['batch_size']}, and drop_last drops the rest"
            raise DataError(f"{message}: nothing would be trained")
        fields = (recipe[name] for name in ("batch_size", "drop_last", "class_uniform"))
        return cls(data, Streams.of(config), *fields, Mixing.of(recipe), groups=recipe["bn_groups"])

    @property
    def steps(self) -> int:
        return steps_per_epoch(self.data.size("train"), self.batch_size, self.drop_last)

    def second_views(self, augmentation: str) -> BatchPlan:
        """The same images in the same order, each in a second view, augmented so and not as the recipe says. Raises DataError: the dataset
        has no such views."""
        return replace(self, data=self.data.augmented(augmentation, 0.0), second=True)

    def epoch(self, epoch: int, pairing: str = "matched") -> Iterator[Place]:
        """The batches of an epoch; with another pairing, the images in their place, each in its own view."""
        # Sorting raw draws gives a permutation that no release of NumPy can change.
        draws = np.random.Philox(seed_of(self.streams.order, epoch)).random_raw(self.data.size("train"))
        order = np.argsort(draws, kind="stable")
        if self.class_uniform:
            order = order[_by_class(self.data.targets("train").cpu().numpy()[order], self.class_uniform)]
        partners = order if pairing == "matched" else self._partners(epoch, pairing)
        seed = seed_of(*(["second_view"] if self.second else []), self.streams.augment, epoch)
        views = self.data.draw_views(np.random.Generator(np.random.Philox(seed)))
        for step in range(self.steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            index = index if pairing == "matched" else partners[index]
            yield index, views[index]

    def _partners(self, epoch: int, pairing: str) -> np.ndarray:
        """For each training image another one, a permutation: of all images, or within each class."""
        draws = np.random.Philox(seed_of("pairing", pairing, self.streams.order, epoch)).random_raw(self.data.size("train"))
        if pairing == "shuffled_globally":
            return np.argsort(draws, kind="stable")
        labels = self.data.targets("train").cpu().numpy()
        partners = np.empty(len(labels), dtype=np.int64)
        partners[np.argsort(labels, kind="stable")] = np.lexsort((draws, labels))
        return partners

    def divided(self, place: Place, ranks: Ranks) -> list[tuple[int, Place]]:
        """The groups of a batch that this rank has, each with its number; of small batches some are empty, and left out."""
        if self.groups == 1:
            return [(0, place)]
        indices, views = (np.array_split(rows, self.groups) for rows in place)
        return [(number, (indices[number], views[number])) for number in ranks.share(self.groups) if len(indices[number])]

    def mixed(self, inputs: Any, targets: Any, task: Task, total_step: int, *group: int) -> tuple[Any, Any]:
        """A batch, or a group of it, as students and teacher see it: a pure function of the images, the seed and the step."""
        if self.mixing is None:
            return inputs, targets
        return self.mixing.mixed(inputs, targets, task, self.data, seed_of("mix", self.streams.augment, total_step, *group))


def _by_class(labels: np.ndarray, together: int) -> np.ndarray:
    """Positions in a random order, rearranged so that `together` images of a class are consecutive; incomplete groups come last. A group
    is at the place of its first image, so that no further draw is needed."""
    sorted_by_label = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    within = np.empty(len(labels), dtype=np.int64)
    within[sorted_by_label] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    group = within // together
    first = np.full((len(counts), int(group.max(initial=0)) + 1), len(labels))
    np.minimum.at(first, (labels, group), np.arange(len(labels)))
    short = (group + 1) * together > counts[labels]
    return np.lexsort((within, first[labels, group], short))
