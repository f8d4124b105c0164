"""The shelf's losses against golden/shelf.npz: values, gradients of inputs and of learnable parts, and memories after the call."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench import parts

from .toys import case as named
from .values import modules
from .values._stored import NUMBERS, Stored, computed, fields

ENTRIES = {name: list(module.GOLDEN) for name, module in modules().items()}
FLOOR = 1e-12
"""A gradient that is zero, as of a bias before a batch norm, is compared absolutely."""


def cases(name: str) -> Iterator[tuple[Stored, str]]:
    for one in ENTRIES[name]:
        for case in one.cases:
            if f"{case}/{one.key}/value" in NUMBERS:
                yield one, case


def near(ours: Tensor, key: str, tolerance: float, scale: float = 0.0) -> bool:
    wanted = torch.tensor(NUMBERS[key]).double()
    scale = max(scale, float(wanted.norm()), FLOOR)
    return float((ours.detach().double().reshape(wanted.shape) - wanted).norm()) <= tolerance * scale


@pytest.mark.parametrize("name", ENTRIES)
def test_values_gradients_and_memories_are_those_of_the_released_code(name: str) -> None:
    part, compared = parts.load("loss", name), 0
    for one, case in cases(name):
        for dtype, tolerance in ((torch.float64, one.exact), (torch.float32, max(1e-4, one.exact))):
            with named(one.key, case, dtype):
                loss, values, inputs = computed(lambda options: part.build(part.options(dict(options))), one, case, dtype)
                stem = f"{case}/{one.key}"
                assert near(values[""] / one.factor, f"{stem}/{one.value}", tolerance), (values[""].item(), NUMBERS[f"{stem}/{one.value}"])
                grads = {key.split("/", 3)[3]: key for key in NUMBERS if key.startswith(f"{stem}/grad/") and one.value == "value"}
                size = max((float(np.linalg.norm(NUMBERS[key])) for key in grads.values()), default=0.0)
                for stored, key in grads.items():
                    grad = inputs[stored].grad
                    assert grad is not None, f"no gradient of {stored}"
                    assert near(grad / one.factor, key, tolerance), f"the gradient of {stored}"
                given = {stored: inputs[name] for name, stored in one.inputs.items()}
                for stored, ours in {**fields(loss, one, "param_grad", case), **given}.items():
                    assert ours.grad is not None, f"no gradient of {stored}"
                    # A bias before a norm has a gradient of zero, up to rounding of the terms that cancel.
                    assert near(ours.grad / one.factor, f"{stem}/param_grad/{stored}", tolerance, size), f"the gradient of {stored}"
                for stored, ours in fields(loss, one, "after", case).items():
                    assert near(ours, f"{stem}/after/{stored}", tolerance), f"{stored} after the call"
                for stored, ours_name in one.parts.items():
                    assert near(values[ours_name] / one.factor, f"{stem}/part/{stored}", tolerance), f"the part {stored}"
                compared += 1
    assert compared >= 2 * len(ENTRIES[name])
