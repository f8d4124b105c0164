from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdbench.losses._base import Taps

from .. import toys

GOLDEN: list[Any] = []  # its stored values are those of detection.npz: test_pyramids.py
FURTHER: list[dict[str, Any]] = [{"levels": [1, 2], "temperature": 1.3}]


def slowly(loss: Any, s: Taps, t: Taps) -> float:
    """Image after image, the masks filled box after box."""
    total = 0.0
    for align, own, other, x, y in zip(loss.align, loss.student_context, loss.teacher_context, s.levels, t.levels, strict=True):
        x = align(x)
        objects = toys.objects(len(x))
        for a, b, boxes, size in zip(x, y, objects.boxes, objects.sizes, strict=True):
            places, channels = attention(b, loss.temperature)
            there, here = attention(a, loss.temperature)
            squares = (a - b).square() * places * channels.view(-1, 1, 1)
            foreground, background = masks(boxes, size, a.shape[1:])
            value = loss.foreground * (squares * foreground).sum() + loss.background * (squares * background).sum()
            value += loss.attention * ((there - places).abs().sum() + (here - channels).abs().sum())
            value += loss.context * (with_context(own, a) - with_context(other, b)).square().sum()
            total += value.item() / len(x)
    return total


def attention(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    places, channels = (z.abs().mean(0) / temperature).exp(), (z.abs().mean((1, 2)) / temperature).exp()
    return places / places.mean(), channels / channels.mean()


def masks(boxes: Tensor, size: tuple[int, int], wanted: Any) -> tuple[Tensor, Tensor]:
    foreground = torch.zeros(*wanted, dtype=torch.float64)
    for left, top, right, bottom in boxes.tolist():
        first, last = math.floor(top / size[0] * wanted[0]), math.ceil(bottom / size[0] * wanted[0])
        start, end = math.floor(left / size[1] * wanted[1]), math.ceil(right / size[1] * wanted[1])
        touched = foreground[first : last + 1, start : end + 1]
        touched.clamp_(min=1 / (last + 1 - first) / (end + 1 - start))
    background = (foreground == 0).double()
    return foreground, background / max(background.sum().item(), 1)


def with_context(module: Any, z: Tensor) -> Tensor:
    weight, bias = module.mask.weight[0, :, 0, 0], module.mask.bias
    share = ((weight.view(-1, 1, 1) * z).sum(0) + bias).exp()
    return z + module.add((z * share / share.sum()).sum((1, 2)).view(1, -1, 1, 1))[0]


SLOW = {"retinanet": slowly}
