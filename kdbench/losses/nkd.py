from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._soft import cross_entropy, of_target, one_class, others, positive


class NKD(Loss):
    """Normalised knowledge distillation: cross-entropy by the teacher's confidence, and soft targets among the other classes.

    1/n sum_i -p_t,i(y_i) log p_s,i(y_i) + gamma T^2 1/n sum_i -sum_{c != y_i} q_t,i(c) log q_s,i(c): p_i = softmax(z_i), and q_i is
    the softmax of z_i / T over the classes other than the target y_i.
    The loss reports its two parts, `target` and `non_target`. With gamma 0, only the first is computed.

    Shapes: logits z_s and z_t, n x classes; the target is a class for each image.

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and
        Customized Soft Labels", ICCV 2023 (arXiv 2303.13005); github.com/yzd-v/cls_KD, dis_losses/nkd.py.
    Defaults: gamma 1.5 and T 1, as there for ImageNet; the preset for CIFAR-100 has 3.5 and 3.
    Departs: nothing is known. As in the released code, the first part has T 1 and no factor T^2, and the second is a
        cross-entropy, so a student equal to its teacher does not have the value 0. A pair with one class is refused.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "imagenet": Preset("github.com/yzd-v/cls_KD: ImageNet, gamma 1.5, T 1", weight=1.0),
        "cifar100": Preset("github.com/yzd-v/cls_KD: CIFAR-100, gamma 3.5, T 3", weight=1.0, options={"gamma": 3.5, "temperature": 3.0}),
    }

    needs = frozenset({"logits", "target"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(self, *, gamma: float = 1.5, temperature: float = 1.0):
        super().__init__()
        positive(temperature=temperature)
        self.gamma = gamma
        self.temperature = temperature

    def refuses(self, pair: Pair) -> str | None:
        return one_class(pair)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        assert student.logits is not None and teacher.logits is not None
        x, y = student.logits, teacher.logits
        confidence = of_target(functional.softmax(y, 1), batch.target)
        parts = {"target": -(confidence * of_target(functional.log_softmax(x, 1), batch.target)).mean()}
        if self.gamma:
            rest = [others(z, batch.target) for z in (x, y)]
            parts["non_target"] = self.gamma * self.temperature**2 * cross_entropy(*rest, self.temperature).mean()
        return parts
