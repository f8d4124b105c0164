"""Angles of triplets of samples, student's against teacher's. Not a loss."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Angles(torch.autograd.Function):
    """The mean of h(psi_s, psi_t), psi = (D_ab + D_ac - D_bc) / 2 / (d_ab d_ac), block by block of vertices a (None: all).

    The gradient by D is summed while a block is at hand, so that nothing of size n^3 outlives its block. With w = h' and
    W_a = w_a / (d_ab d_ac): by D_ab it is sum_c W_abc - sum_c w_abc psi_abc / D_ab, by D_bc it is -1/2 sum_a W_abc.
    """

    @staticmethod
    def forward(
        ctx: Any, squares_s: Tensor, inverse_s: Tensor, squares_t: Tensor, inverse_t: Tensor, vertices: Tensor | None, distinct: bool
    ) -> Tensor:
        n = len(squares_s)
        count = _triplets(n, vertices, distinct)
        value, gradient = squares_s.new_zeros(()), torch.zeros_like(squares_s)
        # A block that stays in a core's cache, or fills a GPU.
        rows = max(1, (2**24 if squares_s.is_cuda else 2**17) // n**2)
        blocks = [slice(first, first + rows) for first in range(0, n, rows)] if vertices is None else vertices.split(rows)
        for block in blocks:
            psi = _cosines(squares_s, inverse_s, block)
            difference = psi - _cosines(squares_t, inverse_t, block)
            if distinct:  # b = c: 1 in both models, but for an edge that only one of them takes for zero
                difference.diagonal(dim1=1, dim2=2).zero_()
            slope = difference.clamp(-1, 1)
            value += (difference.sub_(slope, alpha=0.5).mul_(slope)).sum()
            if ctx.needs_input_grad[0]:
                inverse = inverse_s[block]
                gradient[block] -= psi.mul_(slope).sum(2) * inverse.square()
                gradient[block] += torch.bmm(slope, inverse[:, :, None])[:, :, 0] * inverse
                gradient -= slope.mul_(inverse[:, :, None]).mul_(inverse[:, None, :]).sum(0).mul_(0.5)
        ctx.save_for_backward(gradient.fill_diagonal_(0.0).div_(count))
        return value / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None, None


def _cosines(squares: Float[Tensor, "n n"], inverse: Float[Tensor, "n n"], block: slice | Tensor) -> Float[Tensor, "m n n"]:
    edges = inverse[block]
    cosines = squares[block, :, None] + squares[block, None, :]
    return cosines.sub_(squares).mul_(edges[:, :, None]).mul_(edges[:, None, :] * 0.5)


def released_angles(
    x: Float[Tensor, "n d_s"], y: Float[Tensor, "n d_t"], vertices: Int[Tensor, " m"] | None, distinct: bool
) -> Float[Tensor, ""]:
    edges = [functional.normalize(z[None] - (z if vertices is None else z[vertices])[:, None], dim=2) for z in (x, y)]
    psi_s, psi_t = (edge @ edge.mT for edge in edges)
    if distinct:
        psi_s, psi_t = (psi.tril(-1) + psi.triu(1) for psi in (psi_s, psi_t))
    return functional.smooth_l1_loss(psi_s, psi_t, reduction="sum") / _triplets(len(x), vertices, distinct)


def _triplets(n: int, vertices: Int[Tensor, " m"] | None, distinct: bool) -> int:
    """How many the mean is over: for each vertex all pairs of samples, or those of two others."""
    return (n if vertices is None else len(vertices)) * (max((n - 1) * (n - 2), 1) if distinct else n**2)
