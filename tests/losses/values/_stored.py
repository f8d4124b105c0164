"""One stored value of golden/shelf.npz, and how a loss of kdbench is made to compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Taps

SHELF = Path(__file__).parents[2] / "golden" / "shelf.npz"
with np.load(SHELF) as stored:
    NUMBERS: dict[str, np.ndarray] = {key: stored[key] for key in stored.files}
CASES = ("n8", "n13")

Names = str | tuple[str, ...] | Mapping[str, str]


@dataclass(frozen=True)
class Stored:
    """`key` is the stored name of the loss (`dkd_alpha1_beta2_T4`) and `options` those of ours.

    `student` and `teacher`: the taps, each with the name of its stored input, the names of its maps, or (`second_view`) taps again. `target`: the input that is the
    batch's target. `state`: our parameter or buffer for each stored `param/NAME` (a name that ends in `.` stands for all below it) and
    `state/NAME`; what the store has and this lacks is an error. `pair`: what else the pair has, from the inputs of a case. `prepare`:
    changes the bound loss before the call. `inputs`: names for stored parameters that belong to the student and are inputs of ours, as the
    weights of its classifier. `value`: the stored number that is ours, where it is a
    part of the stored loss; gradients are then not compared. `beside`: what the stored loss has beside ours, for the taps and the target,
    in units of ours. `factor`: our value over the stored one. `cases`: those with this key. `exact`: relative
    tolerance in float64 (looser only where the release itself computed in float32, which the entry then says).
    """

    key: str
    options: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Names] = field(default_factory=dict)
    teacher: Mapping[str, Names] = field(default_factory=dict)
    target: str | None = "target"
    state: Mapping[str, str] = field(default_factory=dict)
    pair: Callable[[Mapping[str, Tensor]], Mapping[str, Any]] = lambda inputs: {}
    batch: Callable[[Mapping[str, Tensor]], Mapping[str, Any]] = lambda inputs: {}
    prepare: Callable[[Loss, Mapping[str, Tensor]], None] = lambda loss, inputs: None
    inputs: Mapping[str, str] = field(default_factory=dict)
    value: str = "value"
    factor: float = 1.0
    beside: Callable[[Taps, Tensor], Tensor | float] = lambda student, target: 0.0
    parts: Mapping[str, str] = field(default_factory=dict)
    cases: tuple[str, ...] = CASES
    exact: float = 1e-9


def inputs_of(case: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs of a case by name; those of the student have a gradient."""
    prefix = f"{case}/input/"
    found = {key.removeprefix(prefix): torch.tensor(value) for key, value in NUMBERS.items() if key.startswith(prefix)}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}


def taps_of(names: Mapping[str, Names], inputs: Mapping[str, Tensor]) -> Taps:
    def of(one: Names) -> Any:
        if isinstance(one, Mapping):
            return taps_of(one, inputs)
        return inputs[one] if isinstance(one, str) else tuple(inputs[each] for each in one)

    return Taps(**{tap: of(one) for tap, one in names.items()})


def stored_names(names: Mapping[str, Names]) -> list[str]:
    """Of all inputs of some taps."""
    found: list[str] = []
    for one in names.values():
        found += stored_names(one) if isinstance(one, Mapping) else [one] if isinstance(one, str) else one
    return found


def fields(loss: Loss, one: Stored, kind: str, case: str) -> dict[str, Tensor]:
    """Our parameters and buffers by the stored name, for every stored `kind/NAME` of a key."""
    state, key = one.state, one.key
    own = {**dict(loss.named_parameters()), **dict(loss.named_buffers())}
    prefix, found = f"{case}/{key}/{kind}/", {}
    for stored in (name.removeprefix(prefix) for name in NUMBERS if name.startswith(prefix)):
        if stored in one.inputs.values():
            continue
        theirs = max((name for name in state if stored == name or name.endswith(".") and stored.startswith(name)), key=len, default=None)
        assert theirs is not None, f"{key}: the entry says nothing of the stored {kind} {stored}"
        ours = state[theirs] + stored.removeprefix(theirs) if theirs.endswith(".") else state[theirs]
        assert ours in own, f"{key}: the loss has no {ours} for the stored {kind} {stored}; it has {sorted(own)}"
        found[stored] = own[ours]
    return found


def computed(make: Any, one: Stored, case: str, dtype: torch.dtype) -> tuple[Loss, dict[str, Tensor], dict[str, Tensor]]:
    """The loss after the call, the parts of its value, and the inputs of the case with their gradients."""
    inputs = inputs_of(case, dtype)
    inputs |= {name: torch.tensor(NUMBERS[f"{case}/{one.key}/param/{stored}"], dtype=dtype) for name, stored in one.inputs.items()}
    for name in stored_names(one.student):
        inputs[name].requires_grad_(True)
    student, teacher = taps_of(one.student, inputs), taps_of(one.teacher, inputs)
    loss: Loss = make(one.options)
    loss.prepare(Pair(student, teacher, **one.pair(inputs)))
    loss.to(dtype)
    with torch.no_grad():
        for kind in ("param", "state"):
            for stored, ours in fields(loss, one, kind, case).items():
                ours.copy_(torch.tensor(NUMBERS[f"{case}/{one.key}/{kind}/{stored}"]).reshape(ours.shape))
    one.prepare(loss, inputs)
    loss.train()
    given = {"target": inputs[one.target]} if one.target else {}
    values = loss.parts(student, teacher, Batch(**{**given, **one.batch(inputs)}))
    total = torch.stack(list(values.values())).sum() + one.beside(student, inputs[one.target or "target"])
    total.backward()
    return loss, {**values, "": total}, inputs


def modules_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with these weights, as the teacher's classifier of a stored case."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
