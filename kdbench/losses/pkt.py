from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

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

    version = 2
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
        (x,), (q,) = matrices(student, self.tap), teacher.known
        return _Divergence.apply(x, q)

    def of_teacher(self, teacher: Taps) -> list[Float[Tensor, "n n"]]:
        return [_shares(y)[3] for y in matrices(teacher, self.tap)]


class _Divergence(torch.autograd.Function):
    """The mean of q log( (q + e) / (p + e) ), p and q the rows (cosine + 1) / 2 of student and teacher divided by their sums.

    Since p and q nearly cancel, all is written with their difference: as sum (p - q) = 0, it is the mean of q (r - log(1 + r)) + e r with
    r = (p - q) / (q + e), and 1 can be added to the derivative -q / (p + e), of which the sum over a row takes it away again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor) -> Tensor:
        norm, inverse, u, p, sums = _shares(x)
        difference = p - q
        if ctx.needs_input_grad[0]:
            given = p.to(x.dtype)
            slope = (difference + EPS).to(x.dtype).div_(given + EPS)
            slope.sub_(torch.linalg.vecdot(slope, given)[:, None]).div_((sums * p.numel()).to(x.dtype))
            ctx.save_for_backward(x, norm, inverse, u, slope + slope.T)
        r = difference.div_(q + EPS)
        excess = r - r.log1p()
        return ((torch.dot(excess.flatten(), q.flatten()) + EPS * r.sum()) / p.numel()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        x, norm, inverse, u, slopes = ctx.saved_tensors
        total = slopes.sum(1, keepdim=True)
        # The gradient by a sample's direction is `found` and `total` times that direction, which changes its norm alone.
        found = (slopes @ u).addcmul_(u, total, value=-1)
        along = torch.linalg.vecdot(x, found)[:, None] / norm.masked_fill(norm == 0, 1.0)
        radial = (EPS * total.double() * inverse.double() ** 3).to(u.dtype) - along * inverse**2
        return found.mul_(upstream * inverse).addcmul_(x, upstream * radial).masked_fill_(norm == 0, 0.0), None


def _shares(x: Float[Tensor, "n d"]) -> tuple[Tensor, ...]:
    """(norms |f|, 1 / (|f| + e), directions u less their mean, probabilities, what they were divided by).

    With a_i = (|u_i|^2 - (|f_i| / (|f_i| + e))^2) / 2, cosines are u_i . u_j - a_i - a_j, which keeps the digits of features with a large
    mean. What is n x n is in float64, which costs little.
    """
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    inverse = (norm + EPS).reciprocal_()
    u = torch.addcmul(-(inverse.T @ x).div_(len(x)), x, inverse)
    length = norm.double() / (norm.double() + EPS)
    a = (torch.linalg.vector_norm(u, dim=1, keepdim=True).double().square_() - length.square_()) / 2
    similar = (u @ u.T).double().sub_(a - 1).sub_(a.T)
    sums = similar.sum(1, keepdim=True)
    return norm, inverse, u, similar.div_(sums), sums
