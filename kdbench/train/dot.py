"""Distillation-oriented training: SGD with a momentum of its own for the gradient of the distillation terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Dot(Optimizer):
    """SGD with two momentum buffers: that of the task's gradient has momentum - delta, that of the distillation terms momentum + delta.

    Both buffers begin as their first gradient and are applied with one learning rate. Weight decay is part of the task's gradient. A
    parameter that gets one of the gradients alone has plain momentum; one that gets that of the distillation terms alone (as a loss's own)
    has weight decay from its second update on, as in the released code.
    Source: Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023, github.com/megvii-research/mdistiller, mdistiller/engine/dot.py.
    """

    def __init__(self, groups: Any, momentum: float, delta: float):
        self.distilled: dict[Tensor, Tensor] = {}
        super().__init__(groups, {"momentum": momentum, "delta": delta, "weight_decay": 0.0, "lr": 0.0})

    def add(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Add to the gradients of the distillation terms, which `step` uses and then drops. Those of the task are in `grad`."""
        for weight, gradient in gradients.items():
            self.distilled[weight] = self.distilled[weight] + gradient if weight in self.distilled else gradient

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                task, distilled, state = weight.grad, self.distilled.get(weight), self.state[weight]
                apart = group["delta"] if task is not None and distilled is not None else 0.0
                if task is not None:
                    gradient = task.add(weight, alpha=group["weight_decay"])
                    self._update(weight, state, "task", gradient, group["momentum"] - apart, group["lr"])
                if distilled is not None:
                    if task is None and "distilled" in state:
                        distilled = distilled.add(weight, alpha=group["weight_decay"])
                    self._update(weight, state, "distilled", distilled, group["momentum"] + apart, group["lr"])
        self.distilled = {}

    @staticmethod
    def _update(weight: Tensor, state: dict[str, Tensor], name: str, gradient: Tensor, momentum: float, lr: float) -> None:
        state[name] = state[name].mul(momentum).add(gradient) if name in state else gradient.clone()
        weight.sub_(state[name], alpha=lr)
