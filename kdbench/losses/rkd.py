from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Preset, Taps
from kdbench.losses._gram import centred, matrices, unit_rows, unit_scale

SHORT = 1e-3
"""An edge shorter than this part of the root mean square of all edges is taken for zero: rounding decides its direction."""


class RKD(Loss):
    """Relational knowledge distillation: distances between samples, and angles of triplets, are to be the teacher's.

    distance * 1/n^2 sum_ij h( |x_i - x_j| / mu_s, |y_i - y_j| / mu_t ), mu the mean distance of distinct samples;
    angle * 1/n^3 sum_abc h( <e_ab, e_ac>_s, <e_ab, e_ac>_t ), e_ab = (x_b - x_a) / |x_b - x_a|;
    h(u, v) = Huber's function of u - v with delta 1. Two named parts; one of weight 0 is not computed.

    Shapes: x and y are rows of n x d, the pooled features or another tap (a map flattened); models may differ in d. `l2` divides
    each sample by its norm first: of both models, of the teacher alone, or of none. Memory: n x n and a bounded block of triplets.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019; github.com/lenscloth/RKD, metric/loss.py.
    Defaults: 25 and 50 on features as they are, github.com/HobbitLong/RepDistiller and github.com/megvii-research/mdistiller.
    Departs: the means run over all n^2 pairs and n^3 triplets, the degenerate ones (0 or 1 in both models) included, as in all
        public code; the paper sums over distinct ones. The authors' code for classification normalises features: `official_cls`.
        An edge shorter than 1e-3 of the root mean square edge counts as 0 and gets no gradient, where the original divided by
        1e-12; so does a sample of zeros under `l2`. A batch of one is 0, not NaN (two are 0 by definition). Squared distances are
        computed in float64.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -b 1; distiller_zoo/RKD.py: 25 and 50", weight=1.0),
        "official_cls": Preset(
            "github.com/lenscloth/RKD, branch classification, run_distill_classification.py: with 16 x KL at T 4",
            weight=1.0,
            options={"l2": "both"},
            terms=(("kd", 16.0, {"temperature": 4.0, "squared_temperature": False}),),
        ),
        "official_metric": Preset(
            "github.com/lenscloth/RKD, examples/*.sh: metric learning, by distillation alone",
            weight=1.0,
            task=0.0,
            options={"distance": 1.0, "angle": 2.0, "l2": "teacher"},
        ),
    }

    def __init__(
        self,
        *,
        distance: float = 25.0,
        angle: float = 50.0,
        l2: Literal["none", "both", "teacher"] = "none",
        tap: Literal["pooled", "last", "logits"] = "pooled",
    ):
        super().__init__()
        if not (distance or angle):
            raise ValueError("of distance and angle at least one has a weight")
        self.distance = distance
        self.angle = angle
        self.l2 = l2
        self.tap = tap

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    @property
    def laws(self) -> frozenset[str]:
        own = "sample_scale" if self.l2 == "both" else "translation"
        return frozenset({"permutation", "scale", "rotation", own})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        (x,), (y,) = matrices(student, self.tap), matrices(teacher, self.tap)
        x = unit_rows(x) if self.l2 == "both" else x
        y = unit_rows(y) if self.l2 != "none" else y
        (squares_s, short_s), (squares_t, short_t) = _squares(x), _squares(y)
        parts = {}
        if self.distance:
            psi_s, psi_t = _distances(squares_s, short_s), _distances(squares_t, short_t)
            parts["distance"] = self.distance * functional.smooth_l1_loss(psi_s, psi_t)
        if self.angle:
            inverse_s, inverse_t = _inverse(squares_s.detach(), short_s), _inverse(squares_t, short_t)
            parts["angle"] = self.angle * _Angles.apply(squares_s, inverse_s, squares_t, inverse_t)
        return parts


def _squares(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n n"], Bool[Tensor, "n n"]]:
    """Squared distances, and which of them are too short to have a direction (the diagonal is).

    Neither translation nor scale changes the loss: centred first, the Gram matrix keeps the digits of the differences; in float64,
    those of near neighbours too, whose gradient is the largest.
    """
    dtype = x.dtype
    x = unit_scale(centred(x.double()))
    gram = x @ x.T
    own = gram.diagonal()
    squares = (own[:, None] + own[None, :] - 2 * gram).to(dtype)
    return squares, squares.detach() <= SHORT**2 * squares.detach().mean()


def _distances(squares: Float[Tensor, "n n"], short: Bool[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Distances over the mean of those between distinct samples."""
    n = len(squares)
    distances = squares.masked_fill(short, 1.0).sqrt().masked_fill(short, 0.0)
    mean = distances.sum() / max(n * (n - 1), 1)
    return distances / torch.where(mean == 0, torch.ones_like(mean), mean)


def _inverse(squares: Float[Tensor, "n n"], short: Bool[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return squares.masked_fill(short, 1.0).rsqrt().masked_fill(short, 0.0)


class _Angles(torch.autograd.Function):
    """1/n^3 sum_abc h(psi_s, psi_t), psi = (D_ab + D_ac - D_bc) / 2 / (d_ab d_ac), block by block of vertices a.

    The gradient by D is summed while a block is at hand, so that nothing of size n^3 outlives its block. With w = h' and
    W_a = w_a / (d_ab d_ac): by D_ab it is sum_c W_abc - sum_c w_abc psi_abc / D_ab, by D_bc it is -1/2 sum_a W_abc.
    """

    @staticmethod
    def forward(ctx: Any, squares_s: Tensor, inverse_s: Tensor, squares_t: Tensor, inverse_t: Tensor) -> Tensor:
        n = len(squares_s)
        value, gradient = squares_s.new_zeros(()), torch.zeros_like(squares_s)
        # A block that stays in a core's cache, or fills a GPU.
        rows = max(1, (2**24 if squares_s.is_cuda else 2**17) // n**2)
        for first in range(0, n, rows):
            block = slice(first, first + rows)
            psi = _cosines(squares_s, inverse_s, block)
            difference = psi - _cosines(squares_t, inverse_t, block)
            slope = difference.clamp(-1, 1)
            value += (difference.sub_(slope, alpha=0.5).mul_(slope)).sum()
            if ctx.needs_input_grad[0]:
                inverse = inverse_s[block]
                gradient[block] -= psi.mul_(slope).sum(2) * inverse.square()
                gradient[block] += torch.bmm(slope, inverse[:, :, None])[:, :, 0] * inverse
                gradient -= slope.mul_(inverse[:, :, None]).mul_(inverse[:, None, :]).sum(0).mul_(0.5)
        ctx.save_for_backward(gradient.fill_diagonal_(0.0).div_(n**3))
        return value / n**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None


def _cosines(squares: Float[Tensor, "n n"], inverse: Float[Tensor, "n n"], block: slice) -> Float[Tensor, "m n n"]:
    edges = inverse[block]
    cosines = squares[block, :, None] + squares[block, None, :]
    return cosines.sub_(squares).mul_(edges[:, :, None]).mul_(edges[:, None, :] * 0.5)
