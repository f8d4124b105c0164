from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Preset, Taps
from kdbench.losses._soft import cross_entropy, positive


class WSLD(Loss):
    """Weighted soft labels: soft targets, with more weight where the student is worse than the teacher.

    T^2 1/n sum_i w_i H( softmax(z_t,i / T), softmax(z_s,i / T) ), H(p, q) = -sum_c p_c log q_c, with the weight
    w_i = 1 - exp( -H_s,i / (H_t,i + 1e-7) ), where H_s,i and H_t,i are the cross-entropies of student and teacher with the target, at T 1.
    No gradient flows through w_i.

    Shapes: logits z_s and z_t, n x classes; the target is a class for each image.

    Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021 (arXiv
        2102.00650); github.com/bellymonster/Weighted-Soft-Label-Distillation, knowledge_distiller.py, and github.com/yzd-v/cls_KD.
    Defaults: T 2 and weight 2.5, as in the authors' code for ImageNet.
    Departs: the paper has no 1e-7, which is the released code's. The authors' program leaves the teacher in training mode; kdbench
        evaluates it in evaluation mode.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "imagenet": Preset("github.com/bellymonster/Weighted-Soft-Label-Distillation: ImageNet, alpha 2.5, T 2", weight=2.5),
        "cifar100": Preset("github.com/yzd-v/cls_KD: CIFAR-100, alpha 2.25, T 4", weight=2.25, options={"temperature": 4.0}),
    }

    needs = frozenset({"logits", "target"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(self, *, temperature: float = 2.0):
        super().__init__()
        positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        x, y = student.logits, teacher.logits
        soft = cross_entropy(x, y, self.temperature)
        return self.temperature**2 * (self._weights(x.detach(), y, batch.target) * soft).mean()

    def _weights(self, x: Float[Tensor, "n classes"], y: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        hard_x, hard_y = (functional.cross_entropy(z, target.to(z.device), reduction="none") for z in (x, y))
        return -torch.expm1(-hard_x / (hard_y + 1e-7))
