"""The squared distance of two kernel matrices. Not a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 128
"""Rows of the matrices that are in memory at a time: so few that a block of them stays in a core's cache."""
SMALLEST = 1e-12
"""What a norm is at least."""

Kernel = Callable[[Tensor], Tensor]


class Congruence(torch.autograd.Function):
    """sum_ij ( k(g_ij) - k(h_ij) )^2, g of the rows f of x and h of those of y, with `unit` divided by their norms. g_ij is of products
    f_i . f_j (with `unit` less 1), else -|f_i - f_j|^2 / 2. `slope` is the derivative of k.

    Both are u_i . u_j - a_i - a_j with u the features less their mean, which keeps the digits of features with a large mean (products
    without `unit`: u = f, a = 0). The matrices are symmetric, so that of a block of rows only the columns from the block on are computed.
    The gradient is summed block by block: with w_ij = (k(g_ij) - k(h_ij)) k'(g_ij), it is 4 sum_j w_ij (u_j - u_i) by f_i.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kernel: Kernel, slope: Kernel, unit: bool, products: bool) -> Tensor:
        n, value = len(x), x.new_zeros(())
        about_mean = unit or not products
        sides = [_Side(z, unit, products, wanted) for z, wanted in zip((x, y), ctx.needs_input_grad, strict=False)]
        for first in range(0, n, ROWS):
            rows, later = slice(first, first + ROWS), slice(first + ROWS, n)
            inner = [torch.addmm(-one.a[first:], one.u[rows], one.u[first:].T).sub_(one.a[rows, None]) for one in sides]
            difference = kernel(inner[0]).sub_(kernel(inner[1]))
            # An entry beside the first square stands for two.
            squares = difference.square()
            value += squares.sum() if first + ROWS >= n else 2 * squares.sum() - squares[:, :ROWS].sum()
            for one, entries in zip(sides, inner, strict=True):
                if not one.wanted:
                    continue
                w = slope(entries).mul_(difference)
                one.sums[rows] += w.sum(1)
                one.gradient[later].addmm_(w[:, ROWS:].T, one.u[rows], beta=float(first > 0))
                one.sums[later] += w[:, ROWS:].sum(0)
                if about_mean:
                    w.diagonal().sub_(one.sums[rows])  # they are complete: the entries before the diagonal came with earlier blocks
                one.gradient[rows].addmm_(w, one.u[first:], beta=float(first > 0))
        ctx.products = products
        ctx.save_for_backward(*(one for side, z in zip(sides, (x, y), strict=True) for one in side.saved(z)))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        pulled = (_pulled_back(factor * upstream, *side, ctx.products) for factor, side in ((4, saved[:5]), (-4, saved[5:])))
        return *pulled, *[None] * 4


class _Side:
    """u and a of one model, and its sums over the blocks."""

    def __init__(self, x: Float[Tensor, "n d"], unit: bool, products: bool, wanted: bool):
        self.wanted, self.inverse, self.dead = wanted, None, None
        if products and not unit:
            self.u, self.a = x, x.new_zeros(len(x))
        elif unit:
            norm = torch.linalg.vector_norm(x, dim=1)
            self.inverse = norm.clamp_min(SMALLEST).reciprocal_()
            self.u = torch.addcmul(-(self.inverse @ x).div_(len(x)), x, self.inverse[:, None])
            self.a = torch.linalg.vector_norm(self.u, dim=1).square_().div_(2)
            self.dead = norm < SMALLEST
            if products:  # of a sample (nearly) of zeros, whose norm is not 1
                self.a += ((1 - (norm * self.inverse).square_()) / 2).masked_fill_(~self.dead, 0.0)
        else:
            self.u = x - x.mean(0)
            self.a = torch.linalg.vector_norm(self.u, dim=1).square_().div_(2)
        self.gradient, self.sums = (torch.empty_like(self.u), torch.zeros_like(self.a)) if wanted else (None, None)

    def saved(self, x: Tensor) -> tuple[Tensor | None, ...]:
        return (x, self.inverse, self.dead, self.gradient, self.sums) if self.wanted else (None,) * 5


def _pulled_back(factor: Tensor, x: Any, inverse: Any, dead: Any, gradient: Any, sums: Any, products: bool) -> Tensor | None:
    """The gradient by x from that by its rows of norm 1."""
    if inverse is None:
        return None if gradient is None else gradient * factor
    along = torch.linalg.vecdot(x, gradient).mul_(inverse)
    along = torch.where(dead, -sums if products else 0 * sums, along)
    scale = factor * inverse
    return (gradient * scale[:, None]).addcmul_(x, (scale * inverse * along)[:, None], value=-1)
