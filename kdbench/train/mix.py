"""Mixup and CutMix: each image of a batch is mixed with another one, once for all students and their teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.datasets._base import Data
from kdbench.errors import DataError
from kdbench.isolation import isolated
from kdbench.tasks._base import Task
from kdbench.timm_adapter import draw_box


@dataclass(frozen=True)
class Mixing:
    """Mixed images, as timm's `Mixup` makes them with one draw a batch.

    The partner of image i of n is image n - 1 - i. Since the order of the images is random, it is a random image; the middle one of an odd
    batch is its own partner, and stays as it is. With probability `probability` the batch is mixed, otherwise the share is 1. The share of
    each image is drawn from Beta(alpha, alpha). Mixup: share * image + (1 - share) * partner. CutMix: a box of this size, at a random place
    and cut by the border, comes from the partner, and the share becomes that of the pixels outside of the box. Where both are on,
    `switch` is the probability of CutMix.
    Source: mixup, Zhang et al. 2018; CutMix, Yun et al. 2019; timm.data.Mixup with mode 'batch'. Departs: timm refuses odd batches. That
    the teacher gets the mixed image, and not the outputs for its parts, is the consistent teaching of Beyer et al. 2022.
    """

    mixup: float
    cutmix: float
    probability: float
    switch: float

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Mixing | None:
        if not (recipe["mixup"] or recipe["cutmix"]):
            return None
        return cls(recipe["mixup"], recipe["cutmix"], recipe["mix_probability"], recipe["switch_probability"])

    def mixed(self, inputs: Any, targets: Any, task: Task, data: Data, seed: int) -> tuple[Any, Any]:
        """A batch after mixing, with the draws of `seed`. What was given stays as it is."""
        if not isinstance(inputs, Tensor) or inputs.dim() != 4:
            raise DataError("mixup and cutmix need images as one tensor, n x channels x height x breadth: leave them out of the recipe")
        box, share = self.draw(tuple(inputs.shape), seed)
        partner = torch.arange(len(inputs) - 1, -1, -1, device=inputs.device)
        if share < 1:
            inputs = _pasted(inputs, partner, box) if box else inputs * share + inputs[partner] * (1 - share)
        return inputs, task.mix(targets, partner, share, data)

    def draw(self, shape: tuple[int, ...], seed: int) -> tuple[tuple[int, int, int, int] | None, float]:
        """The box of CutMix (None: mixup, or nothing) and the share of each image. The draws are timm's, in its order."""
        with isolated(seed):
            if np.random.rand() >= self.probability:
                return None, 1.0
            cut = bool(self.cutmix) and (not self.mixup or np.random.rand() < self.switch)
            alpha = self.cutmix if cut else self.mixup
            share = float(np.random.beta(alpha, alpha))
            return draw_box(shape, share) if cut else (None, share)


def _pasted(inputs: Tensor, partner: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    top, bottom, left, right = box
    inputs = inputs.clone()
    inputs[..., top:bottom, left:right] = inputs[partner][..., top:bottom, left:right]
    return inputs
