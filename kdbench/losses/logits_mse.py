from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Preset, Taps


class LogitsMSE(Loss):
    """Logit regression: the mean squared difference of the logits.

    1/(n classes) sum_i | z_s,i - z_t,i |^2.

    Shapes: logits z_s and z_t, n x classes.

    Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014 (arXiv 1312.6184).
    Defaults: the mean over samples and classes, as github.com/AberHu/Knowledge-Distillation-Zoo, kd_losses/logits.py, has it. We know
        no weight for it: a suite must set one.
    Departs: the paper sums over classes, takes half of it, and trains with it alone.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "zoo": Preset("github.com/AberHu/Knowledge-Distillation-Zoo, kd_losses/logits.py: the loss; we know no weight", weight=None)
    }

    needs = frozenset({"logits"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        return functional.mse_loss(student.logits, teacher.logits)
