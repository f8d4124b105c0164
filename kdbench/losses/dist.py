from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Preset, Taps
from kdbench.losses._soft import positive

SOURCE = "github.com/hunto/image_classification_sota"


class DIST(Loss):
    """Distillation from a stronger teacher: predictions should correlate with the teacher's, over classes and over samples.

    tau^2 ( beta (1 - 1/n sum_i r(row i)) + gamma (1 - 1/classes sum_c r(column c)) ): r is Pearson's correlation of a row or column
    of softmax(z_s / tau) with that of softmax(z_t / tau), <a, b> / (|a| |b| + 1e-8) of centred a and b.
    The loss reports its two parts: `inter` compares the classes of one sample, `intra` the samples of a batch in one class. A part of
    weight 0 is not computed.

    Shapes: logits z_s and z_t, n x classes.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536); github.com/hunto/DIST_KD.
    Defaults: beta 1, gamma 1, tau 4 and weight 2, as the authors have for CIFAR-100; tau 1 for ImageNet.
    Departs: the factor tau^2 is in the authors' code and not in the paper's. As in their code, constant predictions have r = 0 (a batch
        of one image gives tau^2 gamma for `intra`, with gradient 0), and a very large gradient if only the student's are constant.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar100": Preset(f"{SOURCE}: CIFAR-100, twice (beta 1, gamma 1), tau 4", weight=2.0),
        "imagenet": Preset(f"{SOURCE}: ImageNet, twice (beta 1, gamma 1), tau 1", weight=2.0, options={"tau": 1.0}),
    }

    needs = frozenset({"logits"})
    laws = frozenset({"permutation"})

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, tau: float = 4.0):
        super().__init__()
        positive(tau=tau)
        if not (beta or gamma):
            raise ValueError("beta and gamma are both 0: at least one must have a weight")
        self.beta = beta
        self.gamma = gamma
        self.tau = tau
        self.couples: Literal["sample", "batch"] = "batch" if gamma else "sample"

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        assert student.logits is not None and teacher.logits is not None
        p, q = (functional.softmax(logits / self.tau, 1) for logits in (student.logits, teacher.logits))
        parts = {}
        if self.beta:
            parts["inter"] = self.tau**2 * self.beta * _unlike(p, q)
        if self.gamma:
            parts["intra"] = self.tau**2 * self.gamma * _unlike(p.T, q.T)
        return parts


def _unlike(p: Float[Tensor, "rows m"], q: Float[Tensor, "rows m"]) -> Float[Tensor, ""]:
    """1 - the mean correlation of rows."""
    p, q = (one - one.mean(1, keepdim=True) for one in (p, q))
    norms = [torch.linalg.vector_norm(one, dim=1) for one in (p, q)]
    return 1 - ((p * q).sum(1) / (norms[0] * norms[1] + 1e-8)).mean()
