from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._soft import decoupled, divergence, one_class, positive, transformed

SOURCE = "github.com/zhengli97/CTKD"


class CTKD(Loss):
    """Curriculum temperature: soft targets at one learnable temperature, which is trained to make the loss larger.

    T^2 1/n sum_i KL( softmax(z_t,i / T) || softmax(z_s,i / T) ) with T = t_start + t_end sigmoid(theta), or the two parts of `dkd` at
    this T with `inside="dkd"`. The gradient by theta is multiplied by lambda = -(1 - cos( pi min(e / reversal_epochs, 1) )) / 2 in epoch
    e, counted from 1: from 0 to -1, so that theta ascends while the student descends.
    `transform="zscore"` is that of `kd`.

    Shapes: logits z_s and z_t, n x classes; with dkd the target is a class for each image. theta is one number.

    Source: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023 (arXiv 2211.16231); github.com/zhengli97/CTKD.
    Defaults: t_start 1, t_end 20, 10 epochs, weights 0.1 and 0.9, as there for CIFAR-100.
    Departs: the paper's temperature for each sample is left out; this is its global one. As in the released code, theta starts at 1
        (T = 15.62), the gradient by theta flows through T^2 and through the teacher's predictions, and the recipe's weight decay
        applies to theta. With dkd, the released code can give theta a NaN gradient (0 log 0, where it masks the target); here the
        target is left out. `reversal_epochs` does not scale with the length of the training.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar100": Preset(f"{SOURCE}, scripts for CIFAR-100: 0.1 CE + 0.9 KD, 10 epochs", weight=0.9, task=0.1),
        "imagenet": Preset(f"{SOURCE}, scripts for ImageNet: CE + KD, 5 epochs", weight=1.0, options={"reversal_epochs": 5}),
        "dkd": Preset(f"{SOURCE}, train_student.py: alpha 1, beta 2; no weight", weight=None, options={"inside": "dkd", "beta": 2.0}),
    }

    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(
        self,
        *,
        inside: Literal["kd", "dkd"] = "kd",
        alpha: float = 1.0,
        beta: float = 8.0,
        t_start: float = 1.0,
        t_end: float = 20.0,
        reversal_epochs: int = 10,
        transform: Literal["none", "zscore"] = "none",
    ):
        super().__init__()
        positive(t_start=t_start, t_end=t_end, reversal_epochs=reversal_epochs)
        self.inside = inside
        self.alpha = alpha
        self.beta = beta
        self.t_start = t_start
        self.t_end = t_end
        self.reversal_epochs = reversal_epochs
        self.transform = transform

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits", *(["target"] if self.inside == "dkd" else [])})

    @property
    def variant(self) -> str | None:
        found = [*(["dkd"] if self.inside == "dkd" else []), *([self.transform] if self.transform != "none" else [])]
        return ", ".join(found) or None

    def refuses(self, pair: Pair) -> str | None:
        return one_class(pair) if self.inside == "dkd" else None

    def bind(self, pair: Pair) -> None:
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        x, y = (transformed(logits, self.transform) for logits in (student.logits, teacher.logits))
        temperature = self.temperature(batch.epoch)
        if self.inside == "kd":
            return temperature**2 * divergence(x, y, temperature)
        target_class, non_target = decoupled(x, y, batch.target, temperature)
        return temperature**2 * (self.alpha * target_class + self.beta * non_target)

    def temperature(self, epoch: int) -> Float[Tensor, ""]:
        """T, whose gradient by theta is multiplied by the factor of this epoch."""
        fixed = self.theta.detach()
        return self.t_start + self.t_end * (fixed + self.reversal(epoch) * (self.theta - fixed)).sigmoid()

    def reversal(self, epoch: int) -> float:
        """lambda in an epoch, counted from 0."""
        return (math.cos(math.pi * min((epoch + 1) / self.reversal_epochs, 1.0)) - 1) / 2
