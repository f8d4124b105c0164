"""Angles of triplets of samples, student's against teacher's. Not a loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS = 64
"""The samples b of a block of triplets."""
TRIPLETS = 2**17
"""How many triplets a block has at most: few enough for a core's cache. On a GPU a block has many more, to fill it."""


class Angles(torch.autograd.Function):
    """The mean of h(psi_s, psi_t), psi = (D_ab + D_ac - D_bc) / 2 / (d_ab d_ac), block by block of pairs b, c and vertices a (None: all).

    With e = 1 / d, 0 for edges too short to have a direction, psi is (d_ab e_ac + e_ab d_ac - D_bc e_ab e_ac) / 2. It is symmetric in
    b and c: of pairs with b in another block than c, only those with b < c are computed. With w = h', the derivatives by d_ab, e_ab and
    D_bc are sum_c w e_ac, sum_c w (d_ac - D_bc e_ac) and -1/2 sum_a w e_ab e_ac. They are summed while a block is at hand, so that
    nothing of size n^3 is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, squares_s: Tensor, inverse_s: Tensor, squares_t: Tensor, inverse_t: Tensor, vertices: Tensor | None, distinct: bool
    ) -> Tensor:
        n, like, wanted = len(squares_s), squares_s, ctx.needs_input_grad[0]
        count = _triplets(n, vertices, distinct)
        e_s, e_t = (inverse if vertices is None else inverse[vertices] for inverse in (inverse_s, inverse_t))
        d_s, d_t = ((squares if vertices is None else squares[vertices]) * e for squares, e in ((squares_s, e_s), (squares_t, e_t)))
        outer = torch.stack([d_s, e_s, -d_t, -e_t], 2).div_(2), torch.stack([e_s, d_s, e_t, d_t], 1)
        both = outer[1][:, :2]  # one row each: MKL takes four times as long for products with one or two columns
        value, by_edge, by_square = like.new_zeros((), dtype=torch.float64), torch.zeros_like(both), torch.zeros_like(like)
        rows, largest = (512, 2**24) if like.is_cuda else (ROWS, TRIPLETS)
        memory = like.new_empty(3, max(largest, min(rows, n) * n))
        for b, c in _pairs(n, rows):
            square, times = b == c, 1 if b == c else 2
            half_s, half_t = squares_s[b, c] / 2, squares_t[b, c] / 2
            shape = half_s.shape
            step = max(1, largest // half_s.numel())
            for a in (slice(first, first + step) for first in range(0, len(e_s), step)):
                edges = e_s[a, b]
                difference, w, further = memory[:, : len(edges) * half_s.numel()].view(3, len(edges), *shape).unbind()
                torch.bmm(outer[0][a, b], outer[1][a, :, c], out=difference)
                for half, e, sign in ((half_s, e_s, -1), (half_t, e_t, 1)):
                    difference.addcmul_(torch.mul(half, e[a, None, c], out=w), e[a, b, None], value=sign)
                if distinct and square:  # b = c: 1 in both models, but for an edge that only one of them takes for zero
                    difference.diagonal(dim1=1, dim2=2).zero_()
                torch.clamp(difference, -1, 1, out=w)
                flat = w.flatten()
                value += times * (torch.dot(flat, difference.flatten()) - torch.dot(flat, flat) / 2)
                if not wanted:
                    continue
                torch.mul(w, half_s, out=further)
                by_edge[a, :, b] += torch.bmm(both[a, :, c], w.mT)
                by_edge[a, 1, b] -= torch.bmm(2 * e_s[a, None, c], further.mT)[:, 0]
                if not square:
                    by_edge[a, :, c] += torch.bmm(both[a, :, b], w)
                    by_edge[a, 1, c] -= torch.bmm(2 * e_s[a, None, b], further)[:, 0]
                w.mul_(e_s[a, None, c])
                by_square[b, c] -= torch.bmm(edges.T[:, None, :], w.transpose(0, 1))[:, 0] * (times / 2)
        # d and e are the root of D and its inverse.
        edge = e_s * (by_edge[:, 0] - e_s.square() * by_edge[:, 1]) / 2
        by_square[slice(None) if vertices is None else vertices] += edge
        ctx.save_for_backward(by_square.fill_diagonal_(0.0).div_(count))
        return (value / count).to(like.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None, None


def _pairs(n: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of samples b and c that have every pair once: b and c the same samples, and all later ones for c."""
    for first in range(0, n, rows):
        b = slice(first, min(first + rows, n))
        yield b, b
        if b.stop < n:
            yield b, slice(b.stop, n)


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
