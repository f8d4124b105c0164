from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Taps

from ._stored import Stored

GOLDEN: list[Stored] = []  # its stored values are those of detection.npz: test_pcka.py
FURTHER: list[dict[str, Any]] = [
    {"patch": 2, "grouping": "image", "tap": "stages"},
    {"patch": 4, "grouping": "offset", "centred": True, "inter": 3.0},
    {"patch": 4, "centred": True, "inter": 3.0},
    {"patch": 1, "grouping": "image", "inter": 2.0, "intra": 0.0},
    {"patch": 1, "grouping": "image", "centred": True},
    {"patch": 4, "tap": "levels", "inter": 2.0, "levels": [1, 3]},
    {"patch": 4, "gram_norm": "row_half"},
]
GROUPS = {"channel": "bcuhvw->cuvbhw", "image": "bcuhvw->buvchw", "offset": "bcuhvw->hwuvbc"}


def slowly(loss: Any, s: Taps, t: Taps) -> float:
    """From whole Gram matrices, centred on both sides, of patches cut from maps that PyTorch resizes."""
    sides = [[side.last] if loss.tap == "last" else list(getattr(side, loss.tap)) for side in (s, t)]
    if loss.tap == "levels":  # of these, the ones with enough patches
        few = 2 if loss.centred else 1
        levels = [place for place in loss.levels or range(len(sides[0])) if loss._patches(sides[0][place]) > few]
        sides = [[side[place] for place in levels] for side in sides]
    total = 0.0
    for x, y in zip(*sides, strict=True):
        groups = list(zip(grouped(loss, x), grouped(loss, y), strict=True))
        for weight, turned in ((loss.intra, False), (loss.inter, True)):
            if weight:
                cosines = [cosine(*(gram(z.T if turned else z, loss) for z in pair)) for pair in groups]
                total += weight * (1 - sum(cosines) / len(groups))
    return total


def grouped(loss: Any, z: Tensor) -> list[Tensor]:
    size = [-(-one // loss.patch) * loss.patch for one in z.shape[2:]]
    z = functional.interpolate(z.detach(), size=size, mode="bilinear")
    cut = z.view(*z.shape[:2], size[0] // loss.patch, loss.patch, size[1] // loss.patch, loss.patch)
    n, c, u, _, v, _ = cut.shape
    count = {"channel": c, "image": n, "offset": loss.patch**2}[loss.grouping]
    return list(torch.einsum(GROUPS[loss.grouping], cut).reshape(count, u * v, -1))


def gram(z: Tensor, loss: Any) -> Tensor:
    k = z @ z.T
    k = k / z.norm(dim=1, keepdim=True) if loss.gram_norm == "row_half" else k
    return k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() if loss.centred else k


def cosine(k: Tensor, m: Tensor) -> float:
    return ((k * m).sum() / (k.norm() * m.norm())).item()


SLOW = {case: slowly for case in ("released", "faster_rcnn", "centred", "fpn", "fpn_faster_rcnn", "fpn_centred", *map(str, FURTHER))}
