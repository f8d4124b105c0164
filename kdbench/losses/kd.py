from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._pyramid import compared, unpaired
from kdbench.losses._soft import coupled, cross_entropy, divergence, named, positive, predictions, transformed


class KD(Loss):
    """Soft targets: the divergence of the student's softened predictions from the teacher's.

    T^2 * 1/n sum_i KL( softmax(z_t,i / T) || softmax(z_s,i / T) ), the factor T^2 with `squared_temperature`.
    With `transform="zscore"` (logit standardisation), the mean of z_i over the classes is first subtracted, then z_i is divided by its
    standard deviation (with classes - 1) plus 1e-7.
    With `form="cross_entropy"`, -sum_c softmax(z_t,i / T)_c log softmax(z_s,i / T)_c stands for KL: it adds the teacher's entropy to the
    value, and has the same gradient.
    With `tap: dense_logits`, for detectors, each logit is a prediction of its own: T^2 times the sum over the levels of the mean over the
    images and positions of sum_k KL( sigmoid(z_t,k / T) || sigmoid(z_s,k / T) ) over the classes k of all anchors, KL that of yes and no.
    With `tap: regions`, for detectors with two stages, i are the regions that the student drew for its own losses, in all images of the
    batch, with the background as one more class. The teacher's second stage gives z_t for them, from its own levels.

    Shapes: logits z_s and z_t, n x classes; dense logits n x (anchors classes) x h x w, of the levels with equal strides; of regions
        regions x (classes + 1).

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop 2014 (arXiv 1503.02531); zscore:
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, github.com/sunshangquan/logit-standardization-KD.
    Defaults: temperature 4 with T^2, as in the CIFAR-100 protocol of CRD (github.com/HobbitLong/RepDistiller).
    Departs: the divergence instead of the soft cross-entropy (the same gradient; they differ by the teacher's entropy); sum over
        classes and mean over the batch, as in all public code. With zscore, a sample with equal logits gets a finite but very large
        gradient, as in the released code. `form="cross_entropy"` is the value of github.com/yzd-v/cls_KD. For dense logits there is no
        agreed form, and this one is defined by kdbench. On regions no release was found: github.com/megvii-research/mdistiller, detection,
        which has DKD there, has no KD; `tap: regions` is KD on its regions.
    """

    added: ClassVar[Mapping[str, Any]] = {"form": "divergence", "tap": "logits"}

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -r 0.1 -a 0.9, T 4", weight=0.9, task=0.1),
        "simkd": Preset("github.com/DefangChen/SimKD, run_distill.sh: both terms with weight 1, T 4", weight=1.0),
        "zoo": Preset("github.com/AberHu/Knowledge-Distillation-Zoo, example_train_script.sh: 0.1, T 4", weight=0.1),
        "mdistiller_imagenet": Preset(
            "github.com/megvii-research/mdistiller, configs/imagenet/r34_r18/kd.yaml", weight=0.5, task=0.5, options={"temperature": 1.0}
        ),
        "rkd_official": Preset(
            "github.com/lenscloth/RKD, branch classification: 16 x KL at T 4 (the weight 16 is T^2)",
            weight=16.0,
            options={"squared_temperature": False},
        ),
        "lskd": Preset(
            "github.com/sunshangquan/logit-standardization-KD: 0.1 CE + 9 KD, T 2 (its files have weights of 6 to 18 "
            "and T of 2 to 4, chosen for each pair)",
            weight=9.0,
            task=0.1,
            options={"temperature": 2.0, "transform": "zscore"},
        ),
        "dot": Preset(
            "github.com/megvii-research/mdistiller, configs/cifar100/dot: KD 0.1 and 0.9, T 4, delta 0.075", weight=0.9, task=0.1, dot=0.075
        ),
        "dot_imagenet": Preset(
            "github.com/megvii-research/mdistiller, DOT on ImageNet: KD 0.5 and 0.5, T 1, delta 0.09",
            weight=0.5,
            task=0.5,
            options={"temperature": 1.0},
            dot=0.09,
        ),
        "dense": Preset(
            "defined by kdbench: the binary divergence of a detector's class logits at each position, for which no weight was published",
            weight=None,
            options={"temperature": 1.0, "tap": "dense_logits"},
        ),
        "regions": Preset(
            "defined by kdbench: KD on the regions that mdistiller's DKD for detection compares, for which no weight was published",
            weight=None,
            options={"temperature": 1.0, "tap": "regions"},
        ),
    }

    # Not "scale": the 1e-7 of zscore matters for small logits.
    laws = frozenset({"permutation"})

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        squared_temperature: bool = True,
        transform: Literal["none", "zscore"] = "none",
        form: Literal["divergence", "cross_entropy"] = "divergence",
        tap: Literal["logits", "dense_logits", "regions"] = "logits",
    ):
        super().__init__()
        positive(temperature=temperature)
        if tap == "dense_logits" and (transform, form) != ("none", "divergence"):
            raise ValueError("`transform` and `form` are for logits of which one class is true, and not for dense_logits")
        self.temperature = temperature
        self.squared_temperature = squared_temperature
        self.transform = transform
        self.form = form
        self.tap = tap
        self.couples = coupled(tap)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    @property
    def variant(self) -> str | None:
        return "dense" if self.tap == "dense_logits" else named(self.tap, self.transform)

    def refuses(self, pair: Pair) -> str | None:
        return unpaired(pair, self.tap) if self.tap == "dense_logits" else None

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        if self.tap == "dense_logits":
            levels = compared(student, teacher, self.tap).values()
            value = torch.stack([self._binary(x, y).sum(1).mean() for x, y in levels]).sum()
            return value * self.temperature**2 if self.squared_temperature else value
        x, y = (transformed(logits, self.transform) for logits in predictions(student, teacher, self.tap))
        value = divergence(x, y, self.temperature) if self.form == "divergence" else cross_entropy(x, y, self.temperature).mean()
        return value * self.temperature**2 if self.squared_temperature else value

    def _binary(self, x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Of each logit KL( sigmoid(y / T) || sigmoid(x / T) ), of yes and no."""
        x, y = x / self.temperature, y / self.temperature
        yes, no = (torch.sigmoid(z) * (functional.logsigmoid(z) - functional.logsigmoid(s)) for z, s in ((y, x), (-y, -x)))
        return yes + no
