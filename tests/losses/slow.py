"""The losses once more, from their definitions, one number at a time: slow, and written apart from the package."""

from __future__ import annotations

import math
import statistics
from typing import Any

from torch import Tensor

Rows = list[list[float]]


def rows(x: Tensor) -> Rows:
    return x.detach().double().flatten(1).tolist()


def transposed(x: Rows) -> Rows:
    return [list(column) for column in zip(*x, strict=True)]


def dot(u: list[float], v: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(u, v, strict=True))


def size(u: list[float]) -> float:
    return math.sqrt(dot(u, u))


def unit(x: Rows) -> Rows:
    return [[a / size(u) for a in u] for u in x]


def minus(u: list[float], v: list[float]) -> list[float]:
    return [a - b for a, b in zip(u, v, strict=True)]


def huber(d: float) -> float:
    return d * d / 2 if abs(d) < 1 else abs(d) - 0.5


def gram(x: Rows) -> Rows:
    return [[dot(u, v) for v in x] for u in x]


def half_rows(k: Rows) -> Rows:
    return [[a / math.sqrt(k[i][i]) for a in k[i]] for i in range(len(k))]


def double_centred(k: Rows) -> Rows:
    n = len(k)
    row = [math.fsum(one) / n for one in k]
    column = [math.fsum(one) / n for one in transposed(k)]
    total = math.fsum(row) / n
    return [[k[i][j] - row[i] - column[j] + total for j in range(n)] for i in range(n)]


def cosine(k: Rows, m: Rows) -> float:
    flat = [[a for one in matrix for a in one] for matrix in (k, m)]
    return dot(*flat) / (size(flat[0]) * size(flat[1]))


def hsic1(k: Rows, m: Rows) -> float:
    """The unbiased estimator as Song et al. print it: matrices without diagonal, three terms."""
    n = len(k)
    k = [[0.0 if i == j else k[i][j] for j in range(n)] for i in range(n)]
    m = [[0.0 if i == j else m[i][j] for j in range(n)] for i in range(n)]
    trace = math.fsum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    sums = math.fsum(map(math.fsum, k)) * math.fsum(map(math.fsum, m)) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * math.fsum(math.fsum(k[i]) * math.fsum(m[i]) for i in range(n))
    return (trace + sums - cross) / (n * (n - 3))


def rkd_distance(x: Rows, y: Rows, power: int = 1) -> float:
    n = len(x)

    def relative(z: Rows) -> Rows:
        d = [[size(minus(u, v)) ** power for v in z] for u in z]
        mu = math.fsum(a for one in d for a in one) / (n * (n - 1))
        return [[a / mu for a in one] for one in d]

    s, t = relative(x), relative(y)
    return math.fsum(huber(s[i][j] - t[i][j]) for i in range(n) for j in range(n)) / n**2


def rkd_angle(x: Rows, y: Rows, vertices: list[int] | None = None, distinct: bool = False) -> float:
    n = len(x)

    def angle(z: Rows, a: int, b: int, c: int) -> float:
        u, v = minus(z[b], z[a]), minus(z[c], z[a])
        return dot(u, v) / (size(u) * size(v)) if size(u) and size(v) else 0.0

    every = [(a, b, c) for a in (range(n) if vertices is None else vertices) for b in range(n) for c in range(n)]
    triples = [one for one in every if len(set(one)) == 3 or not distinct]
    return math.fsum(huber(angle(x, *t) - angle(y, *t)) for t in triples) / len(triples)


def whole(k: Rows) -> Rows:
    norm = math.sqrt(math.fsum(a * a for one in k for a in one))
    return [[a / norm for a in one] for one in k]


def sp(x: Rows, y: Rows, norm: Any = unit) -> float:
    n = len(x)
    s, t = norm(gram(x)), norm(gram(y))
    return math.fsum((s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def sp_of_means(x: Rows, y: Rows, norm: Any = unit) -> float:
    means = [math.fsum(a for one in norm(gram(z)) for a in one) / len(z) ** 2 for z in (x, y)]
    return (means[1] - means[0]) ** 2


def relative_square(k: Rows, m: Rows) -> float:
    """|k - m|^2 / |m|^2."""
    return math.fsum((a - b) ** 2 for u, v in zip(k, m, strict=True) for a, b in zip(u, v, strict=True)) / math.fsum(
        b * b for v in m for b in v
    )


def u_centred(k: Rows) -> Rows:
    n = len(k)
    rows = [math.fsum(u) - u[i] for i, u in enumerate(k)]
    total = math.fsum(rows) / ((n - 1) * (n - 2))
    return [[0.0 if i == j else k[i][j] - (rows[i] + rows[j]) / (n - 2) + total for j in range(n)] for i in range(n)]


def soft(z: list[float], temperature: float) -> list[float]:
    e = [math.exp(a / temperature) for a in z]
    return [a / math.fsum(e) for a in e]


def kd(x: Rows, y: Rows, temperature: float) -> float:
    pairs = ((a, b) for u, v in zip(x, y, strict=True) for a, b in zip(soft(u, temperature), soft(v, temperature), strict=True))
    return math.fsum(b * math.log(b / a) for a, b in pairs) / len(x)


def soft_cross_entropy(x: Rows, y: Rows, temperature: float) -> float:
    pairs = ((a, b) for u, v in zip(x, y, strict=True) for a, b in zip(soft(u, temperature), soft(v, temperature), strict=True))
    return math.fsum(-b * math.log(a) for a, b in pairs) / len(x)


def standardised(x: Rows, added: float = 1e-7) -> Rows:
    means = [math.fsum(u) / len(u) for u in x]
    centred = [[a - mean for a in u] for u, mean in zip(x, means, strict=True)]
    return [[a / (size(u) / math.sqrt(len(u) - 1) + added) for a in u] for u in centred]


def cc(x: Rows, y: Rows, gamma: float, order: int, norm: Any = unit, reduce: Any = lambda total, n: total / n**2) -> float:
    def kernel(u: list[float], v: list[float]) -> float:
        return math.fsum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * dot(u, v) ** p for p in range(order + 1))

    return kernels(norm(x), norm(y), kernel, reduce)


def kernels(x: Rows, y: Rows, kernel: Any, reduce: Any = lambda total, n: total / n**2) -> float:
    s, t = ([[kernel(u, v) for v in z] for u in z] for z in (x, y))
    return reduce(math.fsum((a - b) ** 2 for one, other in zip(s, t, strict=True) for a, b in zip(one, other, strict=True)), len(x))


def gaussian(u: list[float], v: list[float], gamma: float) -> float:
    return math.exp(-gamma * dot(minus(u, v), minus(u, v)))


def norm_over_squared(total: float, n: int) -> float:
    return math.sqrt(total) / n**2


def rbf(x: Rows) -> Rows:
    """The width as NumPy's median of all squared distances, those of a sample to itself among them."""
    squares = [[dot(minus(u, v), minus(u, v)) for v in x] for u in x]
    median = statistics.median(a for one in squares for a in one)
    return [[math.exp(-a / (2 * median)) for a in one] for one in squares]


def cosine_rows(k: Rows) -> Rows:
    return [[k[i][j] / math.sqrt(k[i][i] * k[j][j]) for j in range(len(k))] for i in range(len(k))]


def less_mean(x: Rows) -> Rows:
    mean = [math.fsum(column) / len(x) for column in transposed(x)]
    return [minus(u, mean) for u in x]


def grid(x: Tensor, k: int) -> Rows:
    """Maps averaged over k x k fields, from floor(i h / k) to ceil((i + 1) h / k), as adaptive pooling is documented."""

    def bounds(size: int) -> list[range]:
        return [range(i * size // k, -(-(i + 1) * size // k)) for i in range(k)]

    def average(one: list[list[float]], down: range, across: range) -> float:
        return math.fsum(one[i][j] for i in down for j in across) / (len(down) * len(across))

    fields = [(down, across) for down in bounds(x.shape[2]) for across in bounds(x.shape[3])]
    return [[average(one, *field) for one in sample for field in fields] for sample in x.detach().double().tolist()]


def neighbours(x: Rows, y: Rows) -> float:
    delta = [[abs(a) for a in minus(u, v)] for u, v in zip(x, y, strict=True)]
    return math.fsum(dot(delta[i], delta[i + 1]) for i in range(len(x) - 1)) / (len(x) - 1)


def linear(x: Rows, weight: Rows, bias: list[float]) -> Rows:
    return [[dot(u, w) + b for w, b in zip(weight, bias, strict=True)] for u in x]
