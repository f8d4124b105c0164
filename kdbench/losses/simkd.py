from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._projection import bottleneck, unlike_head
from kdbench.losses._stagewise import at_most


class SimKD(Loss):
    """Distillation with a reused teacher classifier: the student's last map, mapped to the teacher's channels, should equal the teacher's,
    and the student predicts with the teacher's classifier.

    mean ( P(F_s) - F_t )^2 over all elements. P is a 1x1 convolution to c_t / factor channels, a 3x3 one, and a 1x1 one to c_t channels,
    each without bias and followed by batch norm and ReLU. The deployed model is head(p(P(F_s))), where `head` is the teacher's
    classifier, which is not trained, and p averages over positions; it has the student and P, and its `pooled` is p(P(F_s)).

    Shapes: last maps F, n x c x h x w; both models may differ in c. A map with more positions than the other one is averaged to the size
    of the other: the student's before P.

    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, github.com/DefangChen/SimKD,
        models/util.py.
    Defaults: factor 2, weight 1, neither cross-entropy nor KD, as in that code.
    Departs: the student's own classifier stays in the deployed model, untrained and without use. The classifier is used on the average
        of the last map, as in the code: a teacher that changes that average before its classifier (as ConvNeXt's norm does) would
        predict with other features than it was trained for. A batch with one value for each channel has no batch statistics: its norm
        gives the bias.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "simkd": Preset("github.com/DefangChen/SimKD, run_distill.sh: -c 0 -d 0 -b 1, factor 2", weight=1.0, task=0.0)
    }

    needs = frozenset({"last", "teacher_head"})
    # A vector added to every position disappears in the first batch norm.
    laws = frozenset({"permutation", "translation"})

    def __init__(self, *, factor: int = 2):
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be at least 1, not {factor}")
        self.factor = factor

    def refuses(self, pair: Pair) -> str | None:
        assert pair.teacher.last is not None
        if pair.teacher.last.shape[1] < self.factor:
            return f"its projector has 1/{self.factor} of the teacher's {pair.teacher.last.shape[1]} channels, which is none"
        return unlike_head(pair)

    def bind(self, pair: Pair) -> None:
        assert pair.student.last is not None and pair.teacher.last is not None and pair.teacher_head is not None
        channels = pair.teacher.last.shape[1]
        self.projector = nn.Sequential(*bottleneck(pair.student.last.shape[1], channels // self.factor, channels))
        self.head = pair.teacher_head.requires_grad_(False)
        self.size = pair.teacher.last.shape[2:]

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.last is not None and teacher.last is not None
        x = self.projector(at_most(student.last, teacher.last.shape[2:]))
        return functional.mse_loss(x, at_most(teacher.last, x.shape[2:]))

    def deployed(self, student: nn.Module) -> nn.Module:
        return _WithTeachersClassifier(student, self.projector, self.head, self.size)


class _WithTeachersClassifier(nn.Module):
    def __init__(self, student: nn.Module, projector: nn.Module, head: nn.Module, size: torch.Size):
        super().__init__()
        self.student, self.projector, self.head = student, projector, head
        self.size = size

    def forward(self, images: Any) -> Taps:
        taps: Taps = self.student(images)
        assert taps.last is not None
        last: Float[Tensor, "n c h w"] = self.projector(at_most(taps.last, self.size))
        pooled = last.mean((2, 3))
        return Taps(self.head.eval()(pooled), pooled, last)
