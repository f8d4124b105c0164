"""The batch plan: a pure function of (seed, epoch) giving which images come, in which view, in which batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdbench.datasets._base import Data
from kdbench.run.draws import Streams, seed_of


@dataclass(frozen=True)
class BatchPlan:
    """The data stream of a bundle. `steps` are those of one epoch; the small last batch stays unless the recipe drops it."""

    data: Data
    streams: Streams
    batch_size: int
    drop_last: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], data: Data) -> BatchPlan:
        return cls(data, Streams.of(config), config["recipe"]["batch_size"], config["recipe"]["drop_last"])

    @property
    def steps(self) -> int:
        whole = self.data.size("train") / self.batch_size
        return math.floor(whole) if self.drop_last else math.ceil(whole)

    def epoch(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(index, views) of each batch of an epoch."""
        # Sorting raw draws gives a permutation that no release of NumPy can change.
        draws = np.random.Philox(seed_of(self.streams.order, epoch)).random_raw(self.data.size("train"))
        order = np.argsort(draws, kind="stable")
        views = self.data.draw_views(np.random.Generator(np.random.Philox(seed_of(self.streams.augment, epoch))))
        for step in range(self.steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield index, views[index]
