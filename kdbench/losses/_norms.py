"""The batch norm before each map of a model's `preact`, and the margins of OFD that follow from it. Not a loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.errors import RefusedError


def norms_before(model: nn.Module, count: int) -> list[nn.Module]:
    """The batch norm whose output is each of the model's `count` preact maps, or a summand of it: the first one where there are several (a
    block's own comes before that of its shortcut). Found by a call on the meta device, from the graph that autograd keeps.

    Raises RefusedError if the model cannot be called so, or if something else than a sum is between a norm and its map.
    """
    twin = copy.deepcopy(model).to("meta", torch.float32).eval().requires_grad_(True)
    channels = next((one.in_channels for one in twin.modules() if isinstance(one, nn.Conv2d)), 3)
    try:
        with torch.enable_grad(), torch.device("meta"):
            maps = twin(torch.zeros(2, channels, 64, 64, dtype=torch.float32)).preact
    except Exception as error:
        raise RefusedError(f"it looks for the batch norms of the teacher by a call without data, which fails: {error}") from error
    by_weight = {id(one.weight): name for name, one in twin.named_modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)}
    names = [next((by_weight[id(one)] for one in _leaves(each.grad_fn) if id(one) in by_weight), None) for each in maps]
    if len(names) != count or None in names:
        place = names.index(None) if None in names else len(names)
        raise RefusedError(f"its margins are those of the batch norm before each map, and the teacher's map {place} of `preact` has none")
    return [model.get_submodule(name) for name in names if name is not None]


def _leaves(node: Any) -> Iterator[Tensor]:
    """The parameters of the batch norms that this node is, or sums."""
    if node is None:
        return
    if node.name().startswith("Add"):
        for summand, _ in node.next_functions:
            yield from _leaves(summand)
    elif "BatchNorm" in node.name():
        yield from (leaf.variable for leaf, _ in node.next_functions[1:] if hasattr(leaf, "variable"))


def margin(norm: nn.Module) -> Float[Tensor, " c"]:
    """Per channel, the mean of the negative values of a Gaussian with deviation |weight| and mean bias; -3 |weight| where at
    most one in a thousand is negative. Of a weight of zero, the limit: the bias where it is negative, else 0."""
    assert isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)
    deviation, mean = norm.weight.detach().double().abs(), norm.bias.detach().double()
    none = deviation == 0
    ratio = mean / deviation.masked_fill(none, 1.0)
    # In float64 and scaled form, because far below zero the density and the share are both tiny and their quotient is not.
    share = torch.special.ndtr(-ratio)
    quotient = torch.exp(-ratio.square() / 2 - torch.special.log_ndtr(-ratio)) / math.sqrt(2 * math.pi)
    found = torch.where(share > 0.001, mean - deviation * quotient, -3 * deviation)
    return torch.where(none, mean.clamp_max(0.0), found).to(norm.weight.dtype)
