from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import averaged
from kdbench.losses._soft import cross_entropy, divergences, divided, of_target, one_class, positive

LEVELS = (1, 2, 4)
SOURCE = "github.com/shicaiwei123/SDD-CVPR2024"


class SDD(Loss):
    """Scale-decoupled distillation: a loss of logits for each cell of the last map, at several scales.

    1/(n P) sum_i sum_p w_ip l(z_s,ip, z_t,ip), over the P cells of the grids m x m with m = 1, 2, 4, up to `finest`. A cell's logits are
    the model's classifier applied to the average of the last map in it. w is `apart` where the teacher is right about the cell and wrong
    about the whole image or the other way round, else 1. l is, for one row of logits, T^2 KL(softmax(z_t / T) || softmax(z_s / T))
    (`base: kd`); that of `dkd`; or that of `nkd` with the cross-entropy over all classes in place of the other ones.

    Shapes: last maps n x c x h x w, whose averages the linear classifiers of both models take; the target is a class for each image. The
    student's classifier is its own, and gets a gradient.

    Source: Wei, Luo and Luo, "Scaled Decoupled Distillation", CVPR 2024, github.com/shicaiwei123/SDD-CVPR2024.
    Defaults: that code's with KD: 0.9 (0.1 for the task), T 4, grids of 1, 2 and 4 cells a side, `apart` 2.
    Departs: as in the code, all cells, and the one of the whole image, are averages of a 4 x 4 average pool; where the height is no
        multiple of 4 its windows overlap, and the whole image's logits are not those of the model. In the paper the non-target part of
        NKD leaves the target out; the code does not.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "kd": Preset(f"{SOURCE}, CIFAR-100 and ImageNet with KD: 0.1 and 0.9, T 4", weight=0.9, task=0.1),
        "kd_two_scales": Preset(f"{SOURCE}, CIFAR-100 with KD: M [1, 2] for some pairs", weight=0.9, task=0.1, options={"finest": 2}),
        "dkd": Preset(f"{SOURCE}, CIFAR-100 with DKD: alpha 1, beta 8, T 4", weight=1.0, options={"base": "dkd"}, warm_up=20.0, epochs=240),
        "nkd_cifar100": Preset(
            f"{SOURCE}, CIFAR-100 with NKD: gamma as DKD's beta of the pair, T 4",
            weight=1.0,
            options={"base": "nkd", "gamma": 8.0},
            warm_up=20.0,
            epochs=240,
        ),
        "nkd": Preset(
            f"{SOURCE}, ImageNet with NKD: gamma 0.5, T 1 (ResNet34 to ResNet18)",
            weight=1.0,
            options={"base": "nkd", "gamma": 0.5, "temperature": 1.0},
        ),
    }

    needs = frozenset({"last", "classifier", "target"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(
        self,
        *,
        base: Literal["kd", "dkd", "nkd"] = "kd",
        finest: Literal[1, 2, 4] = 4,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        gamma: float = 1.5,
        apart: float = 2.0,
    ):
        super().__init__()
        positive(temperature=temperature)
        self.base = base
        self.finest = finest
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.apart = apart

    @property
    def variant(self) -> str:
        return self.base

    def refuses(self, pair: Pair) -> str | None:
        for side, taps in (("student", pair.student), ("teacher", pair.teacher)):
            assert taps.last is not None
            if taps.last.shape[1] != taps.classifier[0].shape[1]:
                return f"the {side}'s classifier does not take vectors of the {taps.last.shape[1]} channels of its last map"
        return one_class(pair)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        (x, whole), (y, whole_y) = (self._cells(side) for side in (student, teacher))
        target = batch.target.to(x.device)
        differ = (y.argmax(2) == target[:, None]) != (whole_y.argmax(1) == target)[:, None]
        weights = torch.where(differ, self.apart, 1.0).to(x)
        rows = self._rows(x.flatten(0, 1), y.flatten(0, 1), target.repeat_interleave(x.shape[1]))
        return (rows * weights.flatten()).mean()

    def _cells(self, side: Taps) -> tuple[Float[Tensor, "n cells classes"], Float[Tensor, "n classes"]]:
        """The logits of every cell, and those of the whole image."""
        assert side.last is not None
        weight, bias = (one.to(side.last) for one in side.classifier)
        grid = averaged(side.last, (LEVELS[-1], LEVELS[-1]))
        cells = torch.cat([averaged(grid, (level, level)).flatten(2) for level in LEVELS if level <= self.finest], 2).transpose(1, 2)
        return cells @ weight.T + bias, grid.mean((2, 3)) @ weight.T + bias

    def _rows(self, x: Float[Tensor, "m classes"], y: Float[Tensor, "m classes"], target: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        square = self.temperature**2
        soft = [functional.log_softmax(z / self.temperature, 1) for z in (x, y)]
        if self.base == "kd":
            return square * divergences(*soft)
        if self.base == "dkd":
            (two_x, rest_x), (two_y, rest_y) = (divided(z, target) for z in soft)
            return square * (self.alpha * divergences(two_x, two_y) + self.beta * divergences(rest_x, rest_y))
        confidence = of_target(functional.softmax(y, 1), target)
        of_class = -(confidence * of_target(functional.log_softmax(x, 1), target))[:, 0]
        return of_class + self.gamma * square * cross_entropy(x, y, self.temperature)
