"""CKA of two trained networks, layer by layer, from sums of the unbiased HSIC over batches of images.

    CKA = sum_b w_b HSIC_1(K_b, L_b) / sqrt( sum_b w_b HSIC_1(K_b, K_b)  sum_b w_b HSIC_1(L_b, L_b) ),    K = F F^T of a batch,
    HSIC_1(K, L) = 1 / (n (n - 3)) ( tr(K~ L~) + 1'K~1 1'L~1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K~L~1 ),    K~: K without its diagonal

(Song et al. 2012, as Nguyen, Raghu and Kornblith 2021 use it). The weight w_b is the number n of images of the batch, so that a small last
batch, whose estimate varies most, counts least; with batches of one size it cancels. `u_centred` gives HSIC_1 as a sum of products.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.losses._base import Taps
from kdbench.losses._gram import FEWEST, centred, u_centred

FEWEST_IMAGES = FEWEST["unbiased"]
Grams = dict[str, Tensor]
"""The U-centred Gram matrix of each layer of a network for one batch, by the layer's name, as `gram` makes it."""
COLUMNS = 8192
"""So many features are converted to float64 at once: maps of early layers have many."""


def layers(taps: Taps) -> dict[str, Tensor]:
    """The features that are compared, by name: every stage (or the last map of a net without stages), pooled features and logits."""
    maps = {f"stage {place}": one for place, one in enumerate(taps.stages, start=1)} if taps.has("stages") else {}
    others = {"last map": None if maps else taps.last, "pooled": taps.pooled, "logits": taps.logits}
    return {**maps, **{name: one for name, one in others.items() if one is not None}}


def gram(features: Float[Tensor, "n ..."]) -> Float[Tensor, " pairs"]:
    """The U-centred Gram matrix of a batch in float64, as a vector of its n^2 entries. Maps are flattened."""
    rows = features.flatten(1)
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], COLUMNS):
        part = centred(rows[:, start : start + COLUMNS].double())  # the same value, with the digits of features with a large mean
        found += part @ part.T
    return u_centred(found).flatten()


class LayerSums:
    """The three sums of every pair of layers. `skipped` counts the images of batches that are too small."""

    def __init__(self) -> None:
        self.n_images = self.skipped = 0
        self.names: tuple[list[str], list[str]] = ([], [])
        self.cross = self.teacher = self.student = torch.zeros((), dtype=torch.float64)

    def add(self, teacher: Grams, student: Grams, n: int) -> None:
        """One batch of n images."""
        if n < FEWEST_IMAGES:
            self.skipped += n
            return
        self.names, self.n_images = (list(teacher), list(student)), self.n_images + n
        theirs, mine = torch.stack(list(teacher.values())), torch.stack(list(student.values()))
        weight = 1 / (n - 3)  # n HSIC_1 is the sum of products over n - 3
        self.cross = self.cross + weight * (theirs @ mine.T).cpu()
        self.teacher = self.teacher + weight * theirs.square().sum(1).cpu()
        self.student = self.student + weight * mine.square().sum(1).cpu()

    def cka(self) -> list[list[float | None]]:
        """Rows are layers of the teacher, columns of the student; None where the features of a layer are constant, or not finite."""
        found = self.cross / (self.teacher[:, None] * self.student[None, :]).sqrt()
        return [[value if abs(value) < 2 else None for value in line] for line in found.tolist()]


def compared(teacher: Iterable[Grams], student: Iterable[Grams], batches: Sequence[Sized]) -> LayerSums:
    """The sums over all batches."""
    sums = LayerSums()
    for theirs, mine, batch in zip(teacher, student, batches, strict=True):
        sums.add(theirs, mine, len(batch))
    return sums


def grams(batches: Iterable[Taps]) -> Iterator[Grams]:
    """The Gram matrices of each batch by layer."""
    for taps in batches:
        yield {name: gram(one) for name, one in layers(taps).items()}
