from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._projection import BatchNorm

SOURCE = "github.com/WangYZ1608/Knowledge-Distillation-via-ND"


def _preset(where: str, norm_and_direction: float, kd: float, projector: bool = False, imagenet: bool = False) -> Preset:
    options, own = {"temperature": 1.0} if imagenet else {}, {"projector": True} if projector else {}
    schedule = {"warm_up": 5.0 if imagenet else 20.0, "of_epochs": 100 if imagenet else 240}
    return Preset(
        f"{SOURCE}, {where}: ND {norm_and_direction:g}, KD {kd:g}", norm_and_direction, options=own, terms=(("kd", kd, options, schedule),)
    )


class KDPP(Loss):
    """KD++, the norm-and-direction term: the student's feature should be long, and point to the teacher's mean feature of its class.

    1/n sum_i ( 1 - <s_i, c_i> / (|c_i| max(|s_i|, |t_i|)) ), with c_i the mean of the teacher's features over the training images of
    the class of image i. The gradient also flows through |s_i| where it is the larger norm.

    Shapes: pooled features s n x d_s and t n x d_t, class means classes x d_t. With `projector`, which unequal widths need, s
    is mapped: batch norm, dropout 0.5, Linear(d_s, d_t).

    Source: Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction" (arXiv 2305.17007),
        github.com/WangYZ1608/Knowledge-Distillation-via-ND.
    Defaults: ND 2 and KD 3.5 at T 4, whose weight warms up in 20 epochs, as that code has for ResNet32x4 to ResNet8x4; the other presets
        are those of its other pairs.
    Departs: class means are of the images without augmentation, as in the released code, which rounds them to 4 decimals. Norms are at
        least 1e-12. A class without training images counts 1 for each of its images, without a gradient.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar100": _preset("CIFAR: ResNet32x4 to ResNet8x4", 2.0, 3.5),
        "cifar100_resnet": _preset("CIFAR: ResNet56 to ResNet20", 2.0, 1.0),
        "cifar100_wrn": _preset("CIFAR: WRN-40-2 to WRN-40-1", 1.5, 1.0, projector=True),
        "cifar100_mobilenet": _preset("CIFAR: ResNet50 to MobileNetV2", 0.5, 3.0, projector=True),
        "cifar100_shufflev1": _preset("CIFAR: to ShuffleNetV1", 1.5, 2.5, projector=True),
        "cifar100_shufflev2": _preset("CIFAR: to ShuffleNetV2", 0.5, 4.0, projector=True),
        "imagenet": _preset("ImageNet: ResNet34 to ResNet18", 1.0, 2.5, imagenet=True),
        "imagenet_resnet50": _preset("ImageNet: ResNet50 to ResNet18 and MobileNetV1", 1.0, 4.0, projector=True, imagenet=True),
    }

    needs = frozenset({"pooled", "target", "labels", "teacher_features"})

    @property
    def laws(self) -> frozenset[str]:
        # The projector's norm removes a common vector; its dropout has another mask for each place in the batch.
        return frozenset({"translation"} if self.projector else {"permutation"})

    @property
    def couples(self) -> Literal["sample", "batch"]:  # type: ignore[override]
        return "batch" if self.projector else "sample"

    def __init__(self, *, projector: bool = False):
        super().__init__()
        self.projector = projector
        self.map: nn.Module = nn.Identity()

    def refuses(self, pair: Pair) -> str | None:
        widths = [side.pooled.shape[1] for side in (pair.student, pair.teacher) if side.pooled is not None]
        if self.projector or widths[0] == widths[1]:
            return None
        return f"the features have {widths[0]} and {widths[1]} channels: set `projector: true`, which maps the student's"

    def bind(self, pair: Pair) -> None:
        assert pair.student.pooled is not None and pair.teacher.pooled is not None and pair.labels is not None
        features = pair.teacher_features
        assert isinstance(features, Tensor)
        labels = pair.labels.to(features.device).long()
        sums = features.new_zeros(pair.n_classes, features.shape[1]).index_add(0, labels, features)
        means = sums / features.new_zeros(pair.n_classes, 1).index_add(0, labels, torch.ones_like(features[:, :1])).clamp(min=1)
        self.register_buffer("class_means", means)
        if self.projector:
            widths = pair.student.pooled.shape[1], pair.teacher.pooled.shape[1]
            self.map = nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), BatchNorm(widths[0]), nn.Flatten(), nn.Dropout(0.5), nn.Linear(*widths))

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.pooled is not None and teacher.pooled is not None
        x, y, means = self.map(student.pooled), teacher.pooled, self.class_means[batch.target].to(student.pooled)
        longest = torch.maximum(_norm(x), _norm(y))
        return (1 - (x * means).sum(1) / (_norm(means) * longest)).mean()


def _norm(rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-12)
