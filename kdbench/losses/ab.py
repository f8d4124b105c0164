from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._projection import BatchNorm
from kdbench.losses._regressor import by_sizes, unserved
from kdbench.losses._stagewise import check_place, unequal, unmatched


class AB(Loss):
    """Activation boundaries: the student's neurons should be active where the teacher's are, by a margin.

    sum over the stages l = 1..L from `first_stage` on of 2^(l-L) 1/n sum over elements of
    (s + m)^2 [ s > -m and t <= 0 ] + (s - m)^2 [ s <= m and t > 0 ], where s = c(F_s), t = F_t and m is `margin`.
    c is BN(convolution), the convolution with a bias and by the sizes of the maps as in `fitnet`, or nothing for a stage of equal
    channels and height. With `connect: false` there is no c, and the maps must have equal shapes.
    reduction="mean": the mean over the elements of a map and over the maps, without 2^(l-L).

    Shapes: F_s n x c_s x h_s x w_s and F_t n x c_t x h_t x w_t, `preact`. The models must have the same number of stages; stage 0 is in
    most nets the stem.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019;
        github.com/bhheo/AB_distillation.
    Defaults: as in github.com/HobbitLong/RepDistiller (distiller_zoo/AB.py; models/util.py, Connector), margin 1. That code multiplies
        by 3/1000, which is part of the weight here.
    Departs: one stage of training, beside the task, but for the preset `crd_two_stage`. The authors and RepDistiller train this loss
        first, alone (there for 30 epochs), and then the task (the authors: KD alone, without T^2). In RepDistiller's first stage the
        learning rate is constant, and its -b has no effect. The authors' connectors are 1x1 convolutions without bias, with a norm. The
        preset `zoo` is another loss of this name, of one map; whether its script adds or averages the maps was not checked.
        With one image and a map of 1x1, a batch norm gives its bias where PyTorch raises.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, distiller_zoo/AB.py: 3/1000 in a first stage, here in one stage", weight=None),
        "crd_two_stage": Preset(
            "github.com/HobbitLong/RepDistiller, helper/pretrain.py: 3/1000, alone for 30 epochs, then the task alone",
            weight=0.003,
            two_stages={"epochs": 30, "schedule": "constant", "then": []},
        ),
        "torchdistill": Preset("github.com/yoshitomo-matsubara/torchdistill, ImageNet sample: 1, without 3/1000", weight=1.0),
        "zoo": Preset(
            "github.com/AberHu/Knowledge-Distillation-Zoo, kd_losses/ab.py and its script for CIFAR-10: 10, margin 2",
            weight=10.0,
            options={"margin": 2.0, "reduction": "mean", "connect": False},
        ),
    }

    needs = frozenset({"preact"})
    laws = frozenset({"permutation"})

    def __init__(self, *, margin: float = 1.0, reduction: Literal["sum", "mean"] = "sum", connect: bool = True, first_stage: int = 1):
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin must be at least 0, not {margin}")
        check_place(first_stage)
        self.margin = margin
        self.reduction = reduction
        self.connect = connect
        self.first_stage = first_stage

    @property
    def variant(self) -> str:
        return f"{self.reduction}{'' if self.connect else ', not connected'}"

    @property
    def couples(self) -> Literal["sample", "batch"]:  # type: ignore[override]
        return "batch" if self.connect else "sample"

    def refuses(self, pair: Pair) -> str | None:
        if (why := unmatched(pair, "preact", self.first_stage)) is not None:
            return why
        if not self.connect:
            axes = ((1, "channels"), (2, "heights"), (3, "breadths"))
            found = (unequal(pair, "preact", self.first_stage, axis, what) for axis, what in axes)
            return next((one for one in found if one is not None), None)
        shapes = ([one.shape for one in taps.preact[self.first_stage :]] for taps in (pair.student, pair.teacher))
        return next((why for one, other in zip(*shapes, strict=True) if (why := unserved(one, other)) is not None), None)

    def bind(self, pair: Pair) -> None:
        shapes = ([one.shape for one in taps.preact[self.first_stage :]] for taps in (pair.student, pair.teacher))
        self.connectors = nn.ModuleList(
            _connector(one, other) if self.connect else nn.Identity() for one, other in zip(*shapes, strict=True)
        )

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        values = []
        maps = zip(student.preact[self.first_stage :], teacher.preact[self.first_stage :], strict=True)
        for place, ((x, y), connector) in enumerate(zip(maps, self.connectors, strict=True)):
            squares = self._squares(connector(x), y)
            halvings = len(self.connectors) - 1 - place
            values.append(squares.mean() if self.reduction == "mean" else squares.sum() / (len(x) * 2**halvings))
        total = torch.stack(values).sum()
        return total / len(values) if self.reduction == "mean" else total

    def _squares(self, x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        m = self.margin
        return (x + m).square() * ((x > -m) & (y <= 0)) + (x - m).square() * ((x <= m) & (y > 0))


def _connector(student: torch.Size, teacher: torch.Size) -> nn.Module:
    if student[1:3] == teacher[1:3]:
        return nn.Identity()
    convolution = by_sizes(student, teacher)
    assert convolution is not None
    return nn.Sequential(convolution, BatchNorm(teacher[1]))
