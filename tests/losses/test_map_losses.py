"""Losses of maps and of pooled features in loops, and what their forms have in common."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench import parts
from kdbench.losses._base import Loss, Pair, Taps

from . import slow, toys
from .toys import each


def built(name: str, **options: Any) -> Loss:
    part = parts.load("loss", name)
    return part.build(part.options(options))


def maps(width: int, height: int, breadth: int, seed: int) -> Tensor:
    return toys.random(4, width, height, breadth, seed=seed).relu() + 0.1


def at(x: Tensor, y: Tensor) -> float:
    def attention(image: Tensor) -> list[float]:
        channels = slow.rows(image)
        return slow.unit([[math.fsum(a * a for a in place) for place in slow.transposed(channels)]])[0]

    differences = [slow.minus(attention(a), attention(b)) for a, b in zip(x, y, strict=True)]
    return math.fsum(slow.dot(d, d) for d in differences) / (len(x) * len(differences[0]))


def nst(x: Tensor, y: Tensor) -> float:
    def kernel(a: slow.Rows, b: slow.Rows) -> float:
        return math.fsum(slow.dot(u, v) ** 2 for u in a for v in b) / (len(a) * len(b))

    total = 0.0
    for s, t in ((slow.unit(slow.rows(a)), slow.unit(slow.rows(b))) for a, b in zip(x, y, strict=True)):
        total += kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)
    return total / len(x)


@pytest.mark.parametrize(("name", "loop"), [("at", at), ("nst", nst)])
def test_maps_of_two_sizes_are_averaged_to_the_smaller_height_and_width(name: str, loop: Any) -> None:
    # Channels fewer than positions and more: NST has a form for each.
    for widths in ((2, 3), (9, 11)):
        for sizes in (((6, 6), (6, 6)), ((6, 6), (4, 4)), ((3, 4), (5, 4)), ((5, 3), (4, 6))):
            with toys.case(widths, sizes):
                x, y = (maps(width, *size, seed=width) for width, size in zip(widths, sizes, strict=True))
                smaller = [min(lengths) for lengths in zip(*sizes, strict=True)]
                pooled = [torch.nn.functional.adaptive_avg_pool2d(z, smaller) for z in (x, y)]
                got = built(name, tap="last")(Taps(last=x), Taps(last=y)).item()
                assert toys.near(got, loop(*pooled), 1e-10)


@each([("at", at), ("nst", nst)])
def test_over_the_stages_it_is_the_sum_over_those_after_the_stem(name: str, loop: Any) -> None:
    # Without a channel of zeros, which has no direction.
    s, t = (side.map(lambda tensor: tensor + 0.1) for side in (toys.taps(6, 4, 1), toys.taps(6, 6, 2)))
    each_stage = [loop(a, b) for a, b in zip(s.stages, t.stages, strict=True)]
    assert toys.near(built(name)(s, t).item(), sum(each_stage[1:]), 1e-10)
    assert toys.near(built(name, first_stage=0)(s, t).item(), sum(each_stage), 1e-10)
    shorter = Pair(Taps(stages=s.stages[1:]), t)
    assert "stage by stage" in (built(name).missing(shorter) or "")


def test_pkt_is_what_loops_compute() -> None:
    s, t = toys.taps(6, 4, 1), toys.taps(6, 6, 2)

    def probabilities(x: slow.Rows) -> slow.Rows:
        rows = [[a / (slow.size(u) + 1e-7) for a in u] for u in x]
        similar = [[(slow.dot(u, v) + 1) / 2 for v in rows] for u in rows]
        return [[a / math.fsum(u) for a in u] for u in similar]

    p, q = (probabilities(slow.rows(side.pooled)) for side in (s, t))
    terms = [b * math.log((b + 1e-7) / (a + 1e-7)) for u, v in zip(p, q, strict=True) for a, b in zip(u, v, strict=True)]
    assert toys.near(built("pkt")(s, t).item(), math.fsum(terms) / 36, 1e-10)


def test_pkt_keeps_its_digits_in_float32_where_all_samples_are_alike() -> None:
    x, y = (15 + toys.random(64, 128, seed=seed).float().double() for seed in (1, 2))
    wanted, got = (built("pkt")(Taps(pooled=a), Taps(pooled=b)).item() for a, b in ((x, y), (x.float(), y.float())))
    assert toys.near(got, wanted, 1e-4)


@each([("at",), ("nst",), ("pkt",)])
def test_of_the_teacher_itself_nothing_is_left(name: str) -> None:
    same = toys.taps(6, 4, 1)
    assert abs(built(name)(same, same).item()) < 1e-12


def test_nst_of_many_positions_needs_no_matrix_of_them() -> None:
    x, y = (torch.rand(2, width, 96, 96) for width in (4, 6))
    with torch.autograd.graph.saved_tensors_hooks(_smaller_than(96**4), lambda tensor: tensor):
        built("nst", tap="last")(Taps(last=x.requires_grad_()), Taps(last=y)).backward()


def _smaller_than(entries: int) -> Any:
    def pack(tensor: Tensor) -> Tensor:
        assert tensor.numel() < entries
        return tensor

    return pack
