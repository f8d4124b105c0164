from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Preset, Taps


class KD(Loss):
    """Soft targets: the divergence of the student's softened predictions from the teacher's.

    T^2 * 1/n sum_i KL( softmax(z_t,i / T) || softmax(z_s,i / T) ), the factor T^2 with `squared_temperature`.
    With `transform="zscore"` (logit standardisation) each z_i is first taken less its mean over the classes, and divided by its
    standard deviation over them (that with classes - 1) plus 1e-7.

    Shapes: logits z_s and z_t, n x classes.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop 2014 (arXiv 1503.02531); zscore:
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, github.com/sunshangquan/logit-standardization-KD.
    Defaults: temperature 4 with T^2, as in the CIFAR-100 protocol of CRD (github.com/HobbitLong/RepDistiller).
    Departs: the divergence instead of the soft cross-entropy (the same gradient; they differ by the teacher's entropy).
        Sum over classes and mean over the batch, as every public implementation has it. A sample with equal
        logits gets under zscore, as released, a finite but huge gradient.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -r 0.1 -a 0.9, T 4", weight=0.9, task=0.1),
        "simkd": Preset("github.com/DefangChen/SimKD, run_distill.sh: both terms with weight 1, T 4", weight=1.0),
        "zoo": Preset("github.com/AberHu/Knowledge-Distillation-Zoo, example_train_script.sh: 0.1, T 4", weight=0.1),
        "mdistiller_imagenet": Preset(
            "github.com/megvii-research/mdistiller, configs/imagenet/r34_r18/kd.yaml",
            weight=0.5,
            task=0.5,
            options={"temperature": 1.0},
        ),
        "rkd_official": Preset(
            "github.com/lenscloth/RKD, branch classification: 16 x KL at T 4 (16 = T^2, put into the weight)",
            weight=16.0,
            options={"squared_temperature": False},
        ),
        "lskd": Preset(
            "github.com/sunshangquan/logit-standardization-KD: 0.1 CE + 9 KD, T 2 (its files have 6 to 18, and T 2 to 4, by pair)",
            weight=9.0,
            task=0.1,
            options={"temperature": 2.0, "transform": "zscore"},
        ),
    }

    def __init__(self, *, temperature: float = 4.0, squared_temperature: bool = True, transform: Literal["none", "zscore"] = "none"):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"a temperature is positive, not {temperature}")
        self.temperature = temperature
        self.squared_temperature = squared_temperature
        self.transform = transform

    @property
    def variant(self) -> str | None:
        return None if self.transform == "none" else self.transform

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits"})

    @property
    def laws(self) -> frozenset[str]:
        # Not "scale": what zscore adds to the deviation shows when logits are small.
        return frozenset({"permutation"})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        x, y = student.logits, teacher.logits
        if self.transform == "zscore":
            x, y = _standardised(x), _standardised(y)
        value = _divergence(x / self.temperature, y / self.temperature)
        return value * self.temperature**2 if self.squared_temperature else value


def _divergence(student: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    student, teacher = functional.log_softmax(student, 1), functional.log_softmax(teacher, 1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _standardised(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    # Less a logit of the sample first: equal ones become exactly zero.
    logits = logits - logits[:, :1].detach()
    logits = logits - logits.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(logits, dim=1, keepdim=True) / max(logits.shape[1] - 1, 1) ** 0.5
    return logits / (deviation + 1e-7)
