"""The batch plan: a pure function of (seed, epoch) giving which images come, in which view, in which batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdbench.datasets._base import Data
from kdbench.errors import DataError
from kdbench.run.draws import Streams, seed_of


@dataclass(frozen=True)
class BatchPlan:
    """The data stream of a bundle. `steps` are those of one epoch; the small last batch stays unless the recipe drops it."""

    data: Data
    streams: Streams
    batch_size: int
    drop_last: bool
    class_uniform: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], data: Data) -> BatchPlan:
        recipe = config["recipe"]
        if recipe["drop_last"] and data.size("train") < recipe["batch_size"]:
            told = f"{data.size('train')} training images make no batch of {recipe['batch_size']}, and drop_last drops the rest"
            raise DataError(f"{told}: nothing would be trained")
        return cls(data, Streams.of(config), recipe["batch_size"], recipe["drop_last"], recipe.get("class_uniform", 0))

    @property
    def steps(self) -> int:
        whole = self.data.size("train") / self.batch_size
        return math.floor(whole) if self.drop_last else math.ceil(whole)

    def epoch(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(index, views) of each batch of an epoch."""
        # Sorting raw draws gives a permutation that no release of NumPy can change.
        draws = np.random.Philox(seed_of(self.streams.order, epoch)).random_raw(self.data.size("train"))
        order = np.argsort(draws, kind="stable")
        if self.class_uniform:
            order = order[_by_class(self.data.targets("train").cpu().numpy()[order], self.class_uniform)]
        views = self.data.draw_views(np.random.Generator(np.random.Philox(seed_of(self.streams.augment, epoch))))
        for step in range(self.steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield index, views[index]


def _by_class(labels: np.ndarray, together: int) -> np.ndarray:
    """Places in a random order, rearranged so that `together` of a class come one after the other; what is left of each comes last.

    A group stands where its first image stood, so that no further draw is needed.
    """
    sorted_by_label = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    within = np.empty(len(labels), dtype=np.int64)
    within[sorted_by_label] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    group = within // together
    first = np.full((len(counts), int(group.max(initial=0)) + 1), len(labels))
    np.minimum.at(first, (labels, group), np.arange(len(labels)))
    short = (group + 1) * together > counts[labels]
    return np.lexsort((within, first[labels, group], short))
