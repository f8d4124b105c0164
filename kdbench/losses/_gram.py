"""Batches as matrices of samples, and the similarity of two batches by their Gram matrices. Not a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdbench.losses._base import Taps

Estimator = Literal["biased", "unbiased", "uncentred"]
GramNorm = Literal["none", "row_half", "cosine"]
Kernel = Literal["linear", "rbf"]
Norms = Literal["own", "teacher"]
FEWEST = {"biased": 3, "unbiased": 4, "uncentred": 1}
"""The smallest batch for which CKA is informative: below it, it is 1 (or 0/0) for all features."""


def matrices(taps: Taps, tap: str, pool: str | int = "flatten") -> tuple[Float[Tensor, "n _"], ...]:
    """The samples of a tap as rows, one matrix a stage: maps flattened, averaged over positions (`gap`), or over each field of a
    grid of so many by so many (a number) and then flattened."""
    value = getattr(taps, tap)
    maps = value if isinstance(value, tuple) else (value,)
    return tuple(one.flatten(1) if pool == "flatten" or one.ndim != 4 else _pooled(one, pool) for one in maps)


def _pooled(x: Float[Tensor, "n c h w"], pool: str | int) -> Float[Tensor, "n _"]:
    if isinstance(pool, str):
        return x.mean((2, 3))
    return averaged(x, (pool, pool)).flatten(1)


def averaged(x: Float[Tensor, "n c _ _"], size: Sequence[int]) -> Float[Tensor, "n c _ _"]:
    """Adaptive average pooling to (height, breadth), as products of matrices: PyTorch's has no deterministic gradient on a GPU."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    down, across = (fields(before, after, x) for before, after in zip(x.shape[2:], size, strict=True))
    return down @ x @ across.T


def fields(size: int, fields: int, like: Tensor) -> Float[Tensor, "fields size"]:
    """The average over each of so many fields, which cover all positions and overlap where their number does not divide the size."""
    at, field = torch.arange(size, device=like.device), torch.arange(fields, device=like.device)[:, None]
    within = (at >= field * size // fields) & (at < -(-(field + 1) * size // fields))
    return (within.double() / within.sum(1, keepdim=True)).to(like.dtype)


def nothing(x: Tensor) -> Float[Tensor, ""]:
    """A zero that depends on x, so that a batch too small for a loss still has a gradient (of zero)."""
    return (x * 0).sum()


def gram(x: Float[Tensor, "*groups n d"]) -> Float[Tensor, "*groups n n"]:
    """The products of each two rows."""
    return _Gram.apply(x) if x.requires_grad else x @ x.mT


class _Gram(torch.autograd.Function):
    """Its gradient is one product, (g + g') x, where that of `x @ x.mT` is two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (upstream + upstream.mT) @ x


def centred(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Less the mean of the batch. Taking off a sample first keeps the digits of features with a large mean, and makes equal
    samples exactly zero; being a constant that the mean takes away again, it needs no gradient."""
    x = x - x[:1].detach()
    return x - x.mean(0)


def unit_scale(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Divided by its largest entry, held constant: exact, value and gradient, for what does not depend on the scale."""
    return x / _largest(x)


def _largest(x: Tensor) -> Float[Tensor, ""]:
    """The largest absolute entry; 1 if all are 0."""
    low, high = x.detach().aminmax()
    largest = torch.maximum(-low, high)  # without a copy, as abs() makes one
    return torch.where(largest == 0, 1.0, largest)


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of norm 1. A row that is zero beside the largest (a dead sample) stays zero and gets no gradient, rather than 1/eps."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    dead = norm <= torch.finfo(x.dtype).eps * norm.detach().amax()
    return (x / norm.masked_fill(dead, 1.0)).masked_fill(dead, 0.0)


@dataclass(frozen=True)
class CKA:
    """The cosine of two kernel matrices, centred or not; 0 for constant features, 1 for batches smaller than `FEWEST`.

    `gram_norm` divides row i of each Gram matrix by the norm of (the centred) sample i, and with `cosine` column i too.
    Uncentred, it is 1 but for the last digits when features have a large mean: it is computed and returned in float64.
    With `norms` "teacher" it is 1 - |K - L|^2 / (2 |L|^2), which depends on the scale of x: the cosine is this with each matrix divided by
    its own norm.
    """

    estimator: Estimator
    gram_norm: GramNorm = "none"
    kernel: Kernel = "linear"
    norms: Norms = "own"

    def __call__(self, x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"]) -> Float[Tensor, ""]:
        return self.with_known(x, self.known(y))

    def known(self, y: Float[Tensor, "n d_y"]) -> Sequence[Tensor]:
        """What is needed of y: its matrix divided by its norm, or its features where these are less. Of `norms` "teacher" also the scale of
        its features and that norm, 0 if they are constant."""
        if len(y) < FEWEST[self.estimator]:
            return (y[:, :0], *[y.new_zeros(())] * 2)[: self.n_known]
        y = y.double() if self.estimator == "uncentred" else y
        if self._may_be_thin and len(y) > y.shape[1]:
            return (self._prepared(y),)
        kernel = self._kernel(y)
        if self.norms == "own":
            return (kernel / _norm(kernel, self._floor(y)),)
        square = kernel.square().sum()
        dead = square <= self._floor(y) ** 2
        return kernel / square.masked_fill(dead, 1.0).sqrt(), _largest(y), square.masked_fill(dead, 0.0).sqrt()

    @property
    def n_known(self) -> int:
        """The number of tensors that `known` gives."""
        return 1 if self.norms == "own" else 3

    def with_known(self, x: Float[Tensor, "n d_x"], known: Sequence[Tensor]) -> Float[Tensor, ""]:
        n, m = len(x), known[0]
        if n < FEWEST[self.estimator]:
            return 1 + nothing(x)
        x, floor = (x.double() if self.estimator == "uncentred" else x), self._floor(x)
        if self.norms == "teacher":
            return _nearness(self._kernel(x, known[1]), m, known[2])
        if self._may_be_thin and n > m.shape[1]:
            if n > x.shape[1] + m.shape[1]:
                # <xx', yy'> = |x'y|^2 and |xx'| = |x'x|: the same value from d x d matrices.
                x = self._prepared(x)
                cross = x.T @ m
                return (cross / _norm(gram(x.T), floor) * (cross / _norm(gram(m.T), self._floor(m)))).sum()
            kernel = gram(m)
            m = kernel / _norm(kernel, self._floor(m))
        return _Cosine.apply(self._kernel(x), m, floor)

    @property
    def _may_be_thin(self) -> bool:
        return self.norms == "own" and self.estimator != "unbiased" and self.gram_norm == "none" and self.kernel == "linear"

    def _floor(self, x: Float[Tensor, "n d"]) -> float:
        """What rounding leaves of the Gram matrix of constant features whose largest entry is 1: anything smaller is zero."""
        entries = len(x) ** 2 if self.kernel == "rbf" else x.numel()
        exact = self.kernel == "rbf" or self.estimator == "uncentred"
        return entries * (16 * torch.finfo(torch.float64 if exact else x.dtype).eps) ** 2

    def _prepared(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        x = unit_scale(x)
        return x if self.estimator == "uncentred" else centred(x)

    def _kernel(self, x: Float[Tensor, "n d"], largest: Tensor | None = None) -> Float[Tensor, "n n"]:
        """`largest` is what x is divided by, if not by its own largest entry."""
        if self.kernel == "rbf":
            return _centred_kernel(_rbf(x), self.estimator)
        if self.gram_norm == "none":
            found = _UnitGram.apply(x, _largest(x) if largest is None else largest, self.estimator != "uncentred")
        else:
            x = self._prepared(x)
            rows = unit_rows(x)
            found = gram(rows) if self.gram_norm == "cosine" else rows @ x.T
        return u_centred(found) if self.estimator == "unbiased" else found


class _UnitGram(torch.autograd.Function):
    """gram(centred(x / largest)) or, without `about_mean`, that of what is not centred. It goes through the features as seldom as can
    be: in place, and for the gradient once, since a matrix of n x n can be centred instead of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, largest: Tensor, about_mean: bool) -> Tensor:
        ctx.largest, ctx.about_mean = largest, about_mean
        u = x / ctx.largest
        if about_mean:
            u -= u[:1].clone()
            u -= u.mean(0)
        ctx.save_for_backward(u)
        return u @ u.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        both = (upstream + upstream.T).div_(ctx.largest)
        return (both - both.mean(0) if ctx.about_mean else both) @ u, None, None


class _Cosine(torch.autograd.Function):
    """<k, m> / |k|, for m of norm 1. Each is divided by its own norm: the product of the two squared norms overflows float32."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, m: Tensor, floor: float) -> Tensor:
        norm = _norm(k, floor)
        k = k / norm
        value = (k * m).sum()
        ctx.save_for_backward(k, m, norm, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        k, m, norm, value = ctx.saved_tensors
        return torch.addcmul(m, k, value, value=-1).mul_(upstream / norm), None, None


def _nearness(k: Float[Tensor, "n n"], m: Float[Tensor, "n n"], norm: Tensor) -> Float[Tensor, ""]:
    """1 - |k / norm - m|^2 / 2, m that of the teacher divided by its norm; 1/2 where that is 0. An entry of k beyond 1e15 times the norm
    counts as that, with no gradient, since its square has no place in float32."""
    dead = norm == 0
    return (1 - ((k / norm.masked_fill(dead, 1.0)).clamp(-1e15, 1e15) - m).square().sum() / 2).masked_fill(dead, 0.5)


def _rbf(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """exp( -|x_i - x_j|^2 / (2 median) ), the median that of all n^2 squared distances; in float64, which keeps near neighbours apart."""
    x = unit_scale(centred(x.double()))
    products = gram(x)
    own = products.diagonal()
    squares = (own[:, None] + own[None, :] - 2 * products).clamp_min(0)
    ordered = squares.flatten().sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    # Zero to rounding when most samples are equal: then the largest entry stands for the width.
    none = median <= 16 * x.shape[1] * torch.finfo(x.dtype).eps
    return (-squares / (2 * torch.where(none, torch.ones_like(median), median))).exp()


def _centred_kernel(kernel: Float[Tensor, "n n"], estimator: Estimator) -> Float[Tensor, "n n"]:
    if estimator == "biased":
        rows = kernel.mean(1)
        return kernel - rows[:, None] - rows[None, :] + rows.mean()
    return u_centred(kernel) if estimator == "unbiased" else kernel


def _norm(kernel: Tensor, floor: float) -> Tensor:
    return (kernel.square().sum() + floor**2).sqrt()


def u_centred(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Without diagonal, and centred so that the sum of products is an unbiased HSIC times n(n-3)."""
    n = len(kernel)
    off = 1 - torch.eye(n, dtype=kernel.dtype, device=kernel.device)
    kernel = kernel * off
    rows = kernel.sum(1)
    return (kernel - (rows[:, None] + rows[None, :]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))) * off
