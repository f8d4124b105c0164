"""The losses once more, from their definitions, one number at a time: slow, and written apart from the package."""

from __future__ import annotations

import math

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


def rkd_distance(x: Rows, y: Rows) -> float:
    n = len(x)

    def relative(z: Rows) -> Rows:
        d = [[size(minus(u, v)) for v in z] for u in z]
        mu = math.fsum(a for one in d for a in one) / (n * (n - 1))
        return [[a / mu for a in one] for one in d]

    s, t = relative(x), relative(y)
    return math.fsum(huber(s[i][j] - t[i][j]) for i in range(n) for j in range(n)) / n**2


def rkd_angle(x: Rows, y: Rows) -> float:
    n = len(x)

    def angle(z: Rows, a: int, b: int, c: int) -> float:
        u, v = minus(z[b], z[a]), minus(z[c], z[a])
        return dot(u, v) / (size(u) * size(v)) if size(u) and size(v) else 0.0

    triples = [(a, b, c) for a in range(n) for b in range(n) for c in range(n)]
    return math.fsum(huber(angle(x, *t) - angle(y, *t)) for t in triples) / n**3


def sp(x: Rows, y: Rows) -> float:
    n = len(x)
    s, t = unit(gram(x)), unit(gram(y))
    return math.fsum((s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def kd(x: Rows, y: Rows, temperature: float) -> float:
    def soft(z: list[float]) -> list[float]:
        e = [math.exp(a / temperature) for a in z]
        return [a / math.fsum(e) for a in e]

    return math.fsum(b * math.log(b / a) for u, v in zip(x, y, strict=True) for a, b in zip(soft(u), soft(v), strict=True)) / len(x)


def cc(x: Rows, y: Rows, gamma: float, order: int) -> float:
    n = len(x)

    def kernel(z: Rows) -> Rows:
        z = unit(z)
        terms = range(order + 1)
        weights = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in terms]
        return [[math.fsum(weights[p] * dot(u, v) ** p for p in terms) for v in z] for u in z]

    s, t = kernel(x), kernel(y)
    return math.fsum((s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def neighbours(x: Rows, y: Rows) -> float:
    delta = [[abs(a) for a in minus(u, v)] for u, v in zip(x, y, strict=True)]
    return math.fsum(dot(delta[i], delta[i + 1]) for i in range(len(x) - 1)) / (len(x) - 1)


def linear(x: Rows, weight: Rows, bias: list[float]) -> Rows:
    return [[dot(u, w) + b for w, b in zip(weight, bias, strict=True)] for u in x]
