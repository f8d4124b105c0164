"""Singular vectors with a gradient that stays finite where singular values are equal. Not a loss."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

GAP = 1e-7
"""Eigenvalues that differ by less than this fraction of the largest count as equal: rounding decides their vectors, which get no gradient
from each other."""
DEAD = 1e-12
"""An eigenvalue below this fraction of the largest counts as zero."""


class Eigen(torch.autograd.Function):
    """Eigenvalues, largest first, and eigenvectors (columns) of symmetric matrices. The values carry no gradient."""

    @staticmethod
    def forward(ctx: Any, gram: Float[Tensor, "n d d"]) -> tuple[Tensor, Tensor]:
        # eigh raises for what is not finite; the caller makes the loss of a diverged model NaN.
        values, vectors = (one.flip(-1) for one in torch.linalg.eigh(gram.nan_to_num(0.0, 0.0, 0.0)))
        ctx.save_for_backward(values, vectors)
        ctx.mark_non_differentiable(values)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gap = values[:, None, :] - values[:, :, None]
        equal = gap.abs() <= GAP * values.amax(1).clamp_min(0.0)[:, None, None]
        inverse = gap.masked_fill(equal, 1.0).reciprocal().masked_fill(equal, 0.0)
        found = vectors @ (vectors.mT @ grad * inverse) @ vectors.mT
        return (found + found.mT) / 2


def right_vectors(x: Float[Tensor, "n m d"], count: int) -> tuple[Float[Tensor, "n _"], Float[Tensor, "n d _"]]:
    """The largest `count` singular values (fewer if there are no more) and their right vectors; those of a value of zero are zero."""
    tall = x.shape[1] >= x.shape[2]
    values, vectors = Eigen.apply(x.mT @ x if tall else x @ x.mT)
    values, vectors = values[:, :count], vectors[..., :count]
    dead = values <= DEAD * values[:, :1].clamp_min(0.0)
    roots = values.masked_fill(dead, 1.0).sqrt()
    if not tall:
        vectors = x.mT @ vectors
        norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        vectors = vectors / norms.masked_fill(dead[:, None], 1.0)
    return roots.masked_fill(dead, 0.0), vectors.masked_fill(dead[:, None], 0.0)
