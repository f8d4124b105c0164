from __future__ import annotations

from collections.abc import Mapping
from math import expm1, log
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._stagewise import check_place, smaller, unmatched

EPS = 1e-5


class VID(Loss):
    """Variational information distillation: the teacher's maps should be likely under a Gaussian whose mean the student's maps predict.

    sum over the stages from `first_stage` on of mean( 1/2 ( (F_t - mu(F_s))^2 / v + log v ) ), the mean over all elements;
    mu three 1x1 convolutions without bias, with ReLU between them and as many channels as F_t; v = softplus(a) + 1e-5, one learned number
    per channel, 5 at the start.

    Shapes: F_s n x c_s x h_s x w_s and F_t n x c_t x h_t x w_t. The higher map is first averaged to the other's size. The models must
    have the same number of stages; stage 0 is in most nets the stem.

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019.
    Defaults: every stage after the stem, each with weight 1, as in github.com/HobbitLong/RepDistiller (distiller_zoo/VID.py) and
        github.com/megvii-research/mdistiller.
    Departs: the paper sums over channels and positions, the released code takes the mean over them. mdistiller never trains a, because it
        keeps it in a plain list; here a is trained, as in RepDistiller. The Knowledge-Distillation-Zoo adds 1e-6 instead of 1e-5.
        Of maps that are not square the released code pools both sides to the height; here each side to its own.
        The authors' own program is not public.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -b 1; the same weight in mdistiller and SimKD", weight=1.0)
    }

    needs = frozenset({"stages"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(self, *, first_stage: int = 1, variance: float = 5.0):
        super().__init__()
        check_place(first_stage)
        if variance <= EPS:
            raise ValueError(f"variance, the one at the start, must be above {EPS:g}, not {variance}")
        self.first_stage = first_stage
        self.variance = variance

    def refuses(self, pair: Pair) -> str | None:
        return unmatched(pair, "stages", self.first_stage)

    def bind(self, pair: Pair) -> None:
        widths = [[one.shape[1] for one in taps.stages[self.first_stage :]] for taps in (pair.student, pair.teacher)]
        self.regressors = nn.ModuleList(_regressor(*pair) for pair in zip(*widths, strict=True))
        start = log(expm1(self.variance - EPS))
        self.log_scales = nn.ParameterList(nn.Parameter(torch.full((width,), start)) for width in widths[1])

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        pairs = zip(student.stages[self.first_stage :], teacher.stages[self.first_stage :], strict=True)
        values = []
        for (x, y), regressor, log_scale in zip(pairs, self.regressors, self.log_scales, strict=True):
            x, y = smaller(x, y)
            values.append(_unlikely(regressor(x), y, functional.softplus(log_scale) + EPS))
        return torch.stack(values).sum()


def _unlikely(mean: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"], variance: Float[Tensor, " c"]) -> Float[Tensor, ""]:
    variance = variance.view(-1, 1, 1)
    return 0.5 * ((mean - y).square() / variance + variance.log()).mean()


def _regressor(into: int, out: int) -> nn.Sequential:
    layers = [nn.Conv2d(one, out, 1, bias=False) for one in (into, out, out)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
