from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._soft import one_class, one_hot, positive

SOURCE = "github.com/JiamingLv/WKD"
FLOOR = 1e-8
ROWS = 16


def _preset(where: str, weight: float, temperature: float, sharpen: float, start: float, epochs: int) -> Preset:
    options = {"temperature": temperature, "sharpen": sharpen}
    target = (("nkd", 1.0, {"gamma": 0.0}),)
    return Preset(f"{SOURCE}, {where}", weight, options=options, terms=target, decay=(start, float(epochs)), epochs=epochs)


class WKDL(Loss):
    """Wasserstein distance of predictions: the cost of moving the teacher's probabilities of the other classes to the student's, where a
    class costs more the less alike it is.

    1/n sum_i sum_jk flow_jk cost_jk, with flow_i = diag(u) exp(-cost / regularisation) diag(v) the entropic transport plan between the
    predictions softmax(z / T) over the classes other than the target, from `iterations` steps of Sinkhorn, the last for the student's
    marginal. cost_jk = 1 - exp(-sharpen d_jk) and d_jk = 1 - CKA (linear, centred) of the teacher's features of the training images of
    classes j and k, paired in order.

    Shapes: logits n x classes; the teacher's features n_train x width; the target is a class for each image.

    Source: Lv, Yang and Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024,
        github.com/JiamingLv/WKD, WKD-L.
    Defaults: that code's: weight 600 and T 8 (ResNet32x4 to ResNet8x4), which falls to 0 from epoch 150 to 240, beside the target term of
        weight 1, which is `nkd` with gamma 0. Regularisation 0.05, 10 iterations.
    Departs: no T^2, as in the code. Every class has n_train / classes images in the cost: of a larger class the first, of a smaller one
        some twice (the code's sets are balanced). The code computes the cost from its own teacher's features of training images; here
        they are without augmentation. Costs and denominators have 1e-8 added, as in the code; all is computed in float64 (code: float32).
        The target is left out by a probability of zero.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar100": _preset("CIFAR-100: ResNet32x4 to ResNet8x4", 600.0, 8.0, 1.0, 150.0, 240),
        "cifar100_shufflev1": _preset("CIFAR-100: WRN-40-2 to ShuffleNetV1", 200.0, 6.0, 1.0, 150.0, 240),
        "imagenet": _preset("ImageNet: ResNet34 to ResNet18", 30.0, 2.0, 1.0, 0.0, 100),
        "imagenet_mobilenet": _preset("ImageNet: ResNet50 to MobileNetV1", 25.0, 2.0, 2.0, 0.0, 100),
    }

    needs = frozenset({"logits", "target", "labels", "teacher_features"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(self, *, temperature: float = 8.0, sharpen: float = 1.0, regularisation: float = 0.05, iterations: int = 10):
        super().__init__()
        positive(temperature=temperature, sharpen=sharpen, regularisation=regularisation, iterations=iterations)
        self.temperature = temperature
        self.sharpen = sharpen
        self.regularisation = regularisation
        self.iterations = iterations

    def refuses(self, pair: Pair) -> str | None:
        return one_class(pair)

    def bind(self, pair: Pair) -> None:
        assert isinstance(pair.teacher_features, Tensor) and pair.labels is not None
        self.register_buffer("distance", _distances(_by_class(pair.teacher_features.double(), pair.labels.long(), pair.n_classes)))

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        dtype = student.logits.dtype
        apart = one_hot(batch.target, student.logits.shape[1], student.logits).bool()
        x, y = (
            functional.softmax((z.double() / self.temperature).masked_fill(apart, -torch.inf), 1) for z in (student.logits, teacher.logits)
        )
        cost = 1 - torch.exp(-self.sharpen * self.distance.clamp(min=0).double()) + FLOOR
        kernel = torch.exp(-cost / self.regularisation)
        # The target has no probability: its entries of u and v are zero, so that all images share one matrix.
        u = (~apart).double() / (apart.shape[1] - 1)
        for _ in range(self.iterations):
            v = y / (u @ kernel + FLOOR)
            u = x / (v @ kernel.T + FLOOR)
        return ((u @ (kernel * cost)) * v).sum(1).mean().to(dtype)


def _by_class(features: Float[Tensor, "images width"], labels: Tensor, classes: int) -> Float[Tensor, "classes each width"]:
    """As many features of each class, in the order of the images; no shape depends on the labels."""
    each = max(len(features) // classes, 1)
    counts = labels.new_zeros(classes).index_add(0, labels, torch.ones_like(labels))
    starts = counts.cumsum(0) - counts
    place = starts[:, None] + torch.arange(each, device=labels.device) % counts.clamp(min=1)[:, None]
    return features[labels.argsort(stable=True)[place.clamp(max=len(features) - 1)]]


def _distances(features: Float[Tensor, "classes each width"]) -> Float[Tensor, "classes classes"]:
    """1 - linear centred CKA of each two classes; 0 of a class with itself, also where its features are all equal."""
    centred = features - features.mean(1, keepdim=True)
    alike = features.new_zeros(len(features), len(features))
    for rows in torch.arange(features.shape[1], device=features.device).split(ROWS):  # some rows of all Gram matrices at a time
        part = (centred[:, rows] @ centred.transpose(1, 2)).flatten(1)
        alike = alike + part @ part.T
    norms = alike.diagonal().clamp(min=torch.finfo(alike.dtype).tiny).sqrt()
    return (1 - alike / (norms[:, None] * norms)) * (1 - torch.eye(len(alike), dtype=alike.dtype, device=alike.device))
