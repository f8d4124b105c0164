from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Preset, Taps
from kdbench.losses._soft import divergence, positive, transformed

FURTHER = (3.0, 5.0, 2.0, 6.0)
OF_FIRST_VIEW = 2
"""The number of temperatures, the last ones, at which the released code has the first view in place of the second."""
SOURCE = "github.com/Jin-Ying/Multi-Level-Logit-Distillation"
LSKD = "github.com/sunshangquan/logit-standardization-KD"


class MLKD(Loss):
    """Multi-level logit distillation: soft targets, relations between images and relations between classes, at five temperatures, with two
    views of each image.

    sum over T in (temperature, 3, 5, 2, 6) of
        `kd`:    m_b T^2 KL(x) + T^2 KL(x'), KL(x) = 1/n sum_i KL( softmax(y_i / T) || softmax(x_i / T) );
        `batch`: m_b / n |P P' - Q Q'|^2, with P = softmax(x / T) and Q = softmax(y / T), n x classes, ' the transpose;
        `class`: m_c / classes |P' P - Q' Q|^2.
    x and y are the student's and the teacher's logits of the first view; those of the second view are in KL(x') for the first three
    temperatures, and at 2 and 6 x' is x. m_b is the share of images whose largest teacher probability is at most the median of these, m_c
    that of classes whose sum of teacher probabilities is at most the median: 1/2 for an even number, else slightly more.
    `transform="zscore"` (that of `kd`) changes the logits of `kd` alone.
    The loss of the task is that of both views, each with the objective's weight of the task.

    Shapes: logits x and y, n x classes, and the same of a second view.

    Source: Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023, github.com/Jin-Ying/Multi-Level-Logit-Distillation,
        mdistiller/distillers/KD_ours.py; zscore: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024,
        github.com/sunshangquan/logit-standardization-KD, MLKD.py.
    Defaults: T 4 (and 3, 5, 2, 6), weights 0.1 (of the task) and 0.9, and the second view by `fixmatch`, as there for CIFAR-100. Its
        configurations train for 240, 480 or 960 epochs, by pair, with a learning rate of 0.025 or 0.01: its results cannot be compared with
        those of other losses after 240 epochs.
    Departs: the formula is that of the code, with its oddities. Its masks, meant to select images and classes, multiply values that are
        averaged already, and so are the factors m_b and m_c. Two of the terms of the second view have the logits of the first. Terms
        `batch` and `class` of the second view are computed there and not used. Batch norm is as there: the student makes one forward pass
        of each view, the first view first, with statistics of that view alone, and both update its running averages. With weight 0 (the
        control `zero`) the task's loss of both views stays: it is training on both views without a teacher. Mixup and CutMix, which the
        released code does not have, mix both views alike.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar100": Preset(f"{SOURCE}, configs/cifar100/ours: 0.1 CE of each view, 0.9, T 4", weight=0.9, task=0.1),
        "imagenet": Preset(
            f"{SOURCE}, configs/imagenet: 0.5 CE of each view, 0.5, T 1", weight=0.5, task=0.5, options={"temperature": 1.0}
        ),
        "lskd": Preset(
            f"{LSKD}, CIFAR-100: --logit-stand --base-temp 2 --kd-weight 9 (6 for some pairs)",
            weight=9.0,
            task=0.1,
            options={"temperature": 2.0, "transform": "zscore"},
        ),
    }

    # The target is not read: the task's loss of both views is the loop's.
    needs = frozenset({"logits", "second_view"})
    laws = frozenset({"permutation"})
    task_of_both_views = True

    def __init__(self, *, temperature: float = 4.0, transform: Literal["none", "zscore"] = "none", augmentation: str = "fixmatch"):
        super().__init__()
        positive(temperature=temperature)
        self.temperature = temperature
        self.transform = transform
        self.augmentation = augmentation

    @property
    def variant(self) -> str | None:
        return None if self.transform == "none" else self.transform

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        assert student.second_view is not None and teacher.second_view is not None
        first, second = (student.logits, teacher.logits), (student.second_view.logits, teacher.second_view.logits)
        x, y = first
        assert x is not None and y is not None
        certain = functional.softmax(y, 1)
        of_images, of_classes = _at_most_median(certain.amax(1)), _at_most_median(certain.sum(0))
        temperatures = (self.temperature, *FURTHER)
        views = [second] * (len(temperatures) - OF_FIRST_VIEW) + [first] * OF_FIRST_VIEW
        kd = [of_images * self._kd(first, T) + self._kd(view, T) for T, view in zip(temperatures, views, strict=True)]
        soft = [[functional.softmax(z / T, 1) for z in first] for T in temperatures]
        return {
            "kd": torch.stack(kd).sum(),
            "class": of_classes * torch.stack([_unlike(p.T @ p, q.T @ q) for p, q in soft]).sum(),
            "batch": of_images * torch.stack([_unlike(p @ p.T, q @ q.T) for p, q in soft]).sum(),
        }

    def _kd(self, logits: tuple[Tensor | None, Tensor | None], temperature: float) -> Float[Tensor, ""]:
        x, y = (transformed(one, self.transform) for one in logits if one is not None)
        return temperature**2 * divergence(x, y, temperature)


def _at_most_median(values: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """The share of values that are at most the median, of an even number the mean of the middle two."""
    inner = values.sort().values[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return (values <= inner[0] + (inner[-1] - inner[0]) / 2).to(values.dtype).mean()


def _unlike(p: Float[Tensor, "m m"], q: Float[Tensor, "m m"]) -> Float[Tensor, ""]:
    return (p - q).square().sum() / len(p)
