from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.losses._base import Batch, Loss, Preset, Taps
from kdbench.losses._gram import matrices

EPS = 1e-7


class PKT(Loss):
    """Probabilistic knowledge transfer: the student's similarities of each sample to the batch, as probabilities, should be the teacher's.

    1/n^2 sum_ij q_ij log( (q_ij + 1e-7) / (p_ij + 1e-7) ): p_ij = k_ij / sum_j k_ij of the student, q of the teacher, with
    k_ij = (cos(f_i, f_j) + 1) / 2, where f is divided by its norm plus 1e-7.

    Shapes: f is a row of n x d, the pooled features or another tap (a map is flattened); the models may differ in d. Memory: n x n.

    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018;
        github.com/passalis/probabilistic_kt.
    Defaults: pooled features, weight 30000, as in github.com/HobbitLong/RepDistiller.
    Departs: the mean over all n^2 entries, as in all public code: the paper sums. With it, the loss decreases about as 1/n for larger
        batches, and a weight is valid for one batch size. A sample of zeros has the similarity 1/2 to all, and no gradient (NaN in the
        released code). Computed in float64, since the logarithms of a row nearly cancel.
    """

    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -b 30000", weight=30000.0),
        "zoo": Preset("github.com/AberHu/Knowledge-Distillation-Zoo, example_train_script.sh: 10000", weight=10000.0),
    }

    # Not "scale": the 1e-7 beside the norms matters for small features.
    laws = frozenset({"permutation", "rotation"})

    def __init__(self, *, tap: Literal["pooled", "last", "logits"] = "pooled"):
        super().__init__()
        self.tap = tap

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        (x,), (y,) = matrices(student, self.tap), matrices(teacher, self.tap)
        p, q = _similarities(x), _similarities(y)
        return (q * ((q + EPS) / (p + EPS)).log()).mean().to(x.dtype)


def _similarities(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """In float64, rows with the sum 1."""
    x = x.double()
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    x = (x / (norm + EPS)).masked_fill(norm == 0, 0.0)
    similar = (x @ x.T + 1) / 2
    return similar / similar.sum(1, keepdim=True)
