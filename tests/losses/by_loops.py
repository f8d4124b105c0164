"""Each loss with any of its options, in loops: what the options mean, said a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdbench.losses._base import Loss, Taps

from . import slow, toys


def stages(some: Taps, tap: str) -> list[Tensor]:
    value = getattr(some, tap)
    return list(value) if isinstance(value, tuple) else [value]


def kd(loss: Any, s: Taps, t: Taps) -> float:
    if loss.tap == "dense_logits":
        pairs = zip(s.dense_logits, t.dense_logits, strict=True)
        return loss.temperature**2 * sum(dense_kd(x, y, loss.temperature) for x, y in pairs)
    x, y = map(slow.rows, toys.logits_of_regions(s, t) if loss.tap == "regions" else (s.logits, t.logits))
    if loss.transform == "zscore":
        x, y = slow.standardised(x), slow.standardised(y)
    value = (slow.kd if loss.form == "divergence" else slow.soft_cross_entropy)(x, y, loss.temperature)
    return value * (loss.temperature**2 if loss.squared_temperature else 1)


def dense_kd(x: Tensor, y: Tensor, temperature: float) -> float:
    """Of one level: of each logit, two classes whose logits are it and 0."""
    pairs = zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
    return sum(slow.kd([[a, 0.0]], [[b, 0.0]], temperature) for a, b in pairs) / (x.numel() / x.shape[1])


def sp(loss: Any, s: Taps, t: Taps) -> float:
    norm = {"row_l2": slow.unit, "frobenius": slow.whole}[loss.norm]
    value = slow.sp_of_means if loss.compared == "means" else slow.sp
    pairs = zip(stages(s, loss.tap), stages(t, loss.tap), strict=True)
    total = sum(value(slow.rows(x), slow.rows(y), norm) for x, y in pairs)
    return total * (len(s.pooled) / 64 if loss.rescale == "batch" else 1)


def cc(loss: Any, s: Taps, t: Taps) -> float:
    x, y = slow.rows(s.pooled), slow.rows(t.pooled)
    if loss.embed is not None:
        x = slow.linear(x, slow.rows(loss.student_embed.weight), loss.student_embed.bias.tolist())
        if loss.embedded != "student":
            y = slow.linear(y, slow.rows(loss.teacher_embed.weight), loss.teacher_embed.bias.tolist())
    if loss.l2:
        x, y = slow.unit(x), slow.unit(y)
    if loss.kernel == "lag1":
        return slow.neighbours(x, y)
    reduce = {"mean_square": lambda total, n: total / n**2, "fro_over_n2": slow.norm_over_squared}[loss.reduction]
    if loss.kernel == "taylor":
        return slow.cc(x, y, loss.gamma, loss.order, norm=list, reduce=reduce)
    if loss.kernel == "bilinear":
        return slow.kernels(x, y, slow.dot, reduce)
    return slow.kernels(x, y, lambda u, v: slow.gaussian(u, v, loss.gamma), reduce)


def rkd(loss: Any, s: Taps, t: Taps) -> float:
    x, y = slow.rows(getattr(s, loss.tap)), slow.rows(getattr(t, loss.tap))
    x = slow.unit(x) if loss.l2 == "both" else x
    y = slow.unit(y) if loss.l2 != "none" else y
    n, total = len(x), 0.0
    if loss.distance:
        mean = slow.rkd_distance(x, y, power=2 if loss.squared_distances else 1)
        total += loss.distance * mean * (n / (n - 1) if loss.mean == "valid" else 1)
    if loss.angle:
        vertices = None if loss.vertices is None else torch.randperm(n)[: loss.vertices].tolist()
        total += loss.angle * slow.rkd_angle(x, y, vertices, distinct=loss.mean == "valid")
    return total


def cka(loss: Any, s: Taps, t: Taps) -> float:
    def likeness(x: Tensor, y: Tensor) -> float:
        k, m = (kernel(samples(z)) for z in (x, y))
        if loss.norms == "teacher":
            return 1 - slow.relative_square(*(centre(one) for one in (k, m))) / 2
        if loss.estimator == "unbiased":
            return slow.hsic1(k, m) / (slow.hsic1(k, k) * slow.hsic1(m, m)) ** 0.5
        return slow.cosine(*(centre(one) for one in (k, m)))

    def samples(x: Tensor) -> slow.Rows:
        return slow.rows(x) if loss.pool == "flatten" or x.ndim == 2 else slow.grid(x, 1 if loss.pool == "gap" else loss.pool)

    kernel = {"linear": slow.gram, "rbf": slow.rbf}[loss.kernel]
    centre = {"biased": slow.double_centred, "uncentred": list, "unbiased": slow.u_centred}[loss.estimator]
    form = {"one_minus": lambda a: 1 - a, "neg": lambda a: -a, "sqrt": lambda a: 1 - a**0.5}[loss.form]
    return sum(form(likeness(x, y)) for x, y in zip(stages(s, loss.tap), stages(t, loss.tap), strict=True))


def rcka(loss: Any, s: Taps, t: Taps) -> float:
    def unlike(x: slow.Rows, y: slow.Rows) -> float:
        if loss.centred:
            x, y = slow.less_mean(x), slow.less_mean(y)
        k, m = (norm(slow.gram(z)) for z in (x, y))
        return (0 if loss.negated else 1) - slow.cosine(k, m)

    def features(x: Tensor) -> slow.Rows:
        return slow.unit(slow.gram(slow.rows(x))) if loss.feature_form == "gram_of_gram" else slow.rows(x)

    norm = {"none": list, "row_half": slow.half_rows, "cosine": slow.cosine_rows}[loss.gram_norm]
    x, y = slow.rows(s.logits), slow.rows(t.logits)
    inter = loss.intra if loss.official_bugs else loss.inter
    total = loss.intra * unlike(x, y) + (inter * unlike(slow.transposed(x), slow.transposed(y)) if loss.inter else 0)
    pairs = list(zip(stages(s, loss.tap), stages(t, loss.tap), strict=True))[loss.first_stage :]
    return total + loss.feature * sum(unlike(features(a), features(b)) for a, b in pairs)


LOOPS: dict[str, Callable[[Loss, Taps, Taps], float]] = {"kd": kd, "sp": sp, "cc": cc, "rkd": rkd, "cka": cka, "rcka": rcka}
