"""Losses by their formulas, as one writes them at first: what kdbench is compared with where no other code is given.

Each gets the loss of kdbench, whose learnable parts and options it uses, the taps of both models and the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.losses._base import Taps

Formula = Callable[[Any, Taps, Taps, Tensor], Tensor]


def kl(x: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(x, 1), F.softmax(y, 1), reduction="batchmean")


def kd(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    return loss.temperature**2 * kl(s.logits / loss.temperature, t.logits / loss.temperature)


def dkd(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    own = F.one_hot(target, s.logits.shape[1]).bool()
    p, q = (F.softmax(z.logits / loss.temperature, 1) for z in (s, t))
    two = [torch.stack([one[own], 1 - one[own]], 1) for one in (p, q)]
    of_target = (two[1] * (two[1].log() - two[0].log())).sum(1).mean()
    rest = [z.logits[~own].view(len(target), -1) / loss.temperature for z in (s, t)]
    return loss.temperature**2 * (loss.alpha * of_target + loss.beta * kl(*rest))


def nkd(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    own = F.one_hot(target, s.logits.shape[1]).bool()
    of_target = -(F.softmax(t.logits, 1)[own] * F.log_softmax(s.logits, 1)[own]).mean()
    x, y = (z.logits[~own].view(len(target), -1) / loss.temperature for z in (s, t))
    return of_target - loss.gamma * loss.temperature**2 * (F.softmax(y, 1) * F.log_softmax(x, 1)).sum(1).mean()


def logits_mse(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    return (s.logits - t.logits).pow(2).mean()


def dist(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    p, q = (F.softmax(z.logits / loss.tau, 1) for z in (s, t))

    def unlike(p: Tensor, q: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True), dim=1).mean()

    return loss.tau**2 * (loss.beta * unlike(p, q) + loss.gamma * unlike(p.T, q.T))


def sp(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    x, y = (F.normalize(z.flatten(1) @ z.flatten(1).T) for z in (s.last, t.last))
    return (x - y).pow(2).sum() / len(x) ** 2


def cc(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    def kernel(z: Tensor) -> Tensor:  # row by row, as in public code
        z = F.normalize(z)
        power = [math.exp(-2 * loss.gamma) * (2 * loss.gamma) ** p / math.factorial(p) for p in range(loss.order + 1)]
        return torch.stack([sum(factor * (z @ row).pow(p) for p, factor in enumerate(power)) for row in z])

    return (kernel(s.pooled) - kernel(t.pooled)).pow(2).mean()


def lag1(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    delta = (loss.student_embed(s.pooled) - loss.teacher_embed(t.pooled)).abs()
    return (delta[:-1] * delta[1:]).sum(1).mean()


def rkd(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    def distances(z: Tensor) -> Tensor:
        squares = z.pow(2).sum(1)
        found = (squares[:, None] + squares[None] - 2 * z @ z.T).clamp(min=1e-12).sqrt()
        found = found * (1 - torch.eye(len(z), device=z.device))
        return found / found[found > 0].mean()

    def angles(z: Tensor) -> Tensor:
        edges = F.normalize(z[None] - z[:, None], dim=2)
        return edges @ edges.mT

    x, y = s.pooled, t.pooled
    return loss.distance * F.smooth_l1_loss(distances(x), distances(y)) + loss.angle * F.smooth_l1_loss(angles(x), angles(y))


def cka(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    x, y = s.last.flatten(1), t.last.flatten(1)
    centring = torch.eye(len(x), dtype=x.dtype, device=x.device) - 1 / len(x)
    k, m = (centring @ (z @ z.T) @ centring for z in (x, y))
    return 1 - (k * m).sum() / (k.norm() * m.norm())


def pkt(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    def probabilities(z: Tensor) -> Tensor:
        z = z / (z.norm(dim=1, keepdim=True) + 1e-7)
        alike = (z @ z.T + 1) / 2
        return alike / alike.sum(1, keepdim=True)

    p, q = probabilities(s.pooled), probabilities(t.pooled)
    return (q * ((q + 1e-7) / (p + 1e-7)).log()).mean()


def at(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    def attention(z: Tensor) -> Tensor:
        return F.normalize(z.pow(2).mean(1).flatten(1))

    return sum((attention(x) - attention(y)).pow(2).mean() for x, y in zip(s.stages[1:], t.stages[1:], strict=True))


def nst(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:  # over pairs of channels, each as a product of maps
        return (a[:, None] * b[:, :, None]).sum(-1).pow(2).mean()

    found = []
    for one, other in zip(s.stages[1:], t.stages[1:], strict=True):
        x, y = (F.normalize(z.flatten(2), dim=2) for z in (one, other))
        found.append(mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    return sum(found)


def fsp(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    def flow(one: Tensor, following: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(one, following.shape[2:]).flatten(2)
        return (x[:, None] * following.flatten(2)[:, :, None]).mean(-1)

    pairs = zip(pairwise(s.stages), pairwise(t.stages), strict=True)
    return sum((flow(*one) - flow(*other)).pow(2).mean() for one, other in pairs)


def ickd(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    x, y = (F.normalize(z.flatten(2) @ z.flatten(2).mT, dim=2) for z in (loss.student_embed(s.last), t.last))
    return (x - y).pow(2).sum() / (len(x) * x.shape[1])


def wkd_f(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    x, y = loss.projector(s.last).flatten(2), t.last.flatten(2)
    mean = (x.mean(2) - y.mean(2)).pow(2).sum(1).mean()
    deviation = ((x.var(2) + 1e-5).sqrt() - (y.var(2) + 1e-5).sqrt()).pow(2).sum(1).mean()
    return loss.ratio * mean + deviation


def pcka(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    def patches(z: Tensor) -> Tensor:  # c x patches x (n patch patch)
        cut = F.unfold(z.transpose(0, 1), loss.patch, stride=loss.patch)
        return cut.unflatten(1, (len(z), -1)).flatten(1, 2).mT

    found = []
    for x, y in zip(patches(s.last), patches(t.last), strict=True):  # a channel at a time
        k, m = x @ x.T, y @ y.T
        found.append((k * m).sum() / (k.norm() * m.norm()))
    return loss.intra * (1 - torch.stack(found).mean())


def fitnet(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    return (F.relu(loss.bn(loss.conv(s.stages[loss.hint]))) - t.stages[loss.hint]).pow(2).mean()


def vid(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    found = []
    for x, y, regressor, scale in zip(s.stages[1:], t.stages[1:], loss.regressors, loss.log_scales, strict=True):
        variance = ((1 + scale.exp()).log() + 1e-5).view(1, -1, 1, 1)
        found.append((0.5 * ((regressor(x) - y).pow(2) / variance + variance.log())).mean())
    return sum(found)


def ft(loss: Any, s: Taps, t: Taps, target: Tensor) -> Tensor:
    x, y = (F.normalize(z.pow(2).mean(1).flatten(1)) for z in (loss.translator(s.last), loss.paraphraser(t.last)))
    return (x - y).abs().mean()


FORMULAS: Mapping[str, Formula] = {
    "kd": kd, "dkd": dkd, "nkd": nkd, "logits_mse": logits_mse, "dist": dist, "sp": sp, "cc": cc, "cc:crd": lag1, "rkd": rkd, "cka": cka,
    "pkt": pkt, "at": at, "nst": nst, "fsp": fsp, "ickd": ickd, "wkd_f": wkd_f, "pcka": pcka, "fitnet": fitnet, "vid": vid, "ft": ft,
}  # fmt: skip
"""By the name of the loss in kdbench, with its preset where it is not the default one."""
