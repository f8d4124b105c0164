from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import gram
from kdbench.losses._stagewise import check_place, one_size, unmatched


class NST(Loss):
    """Neuron selectivity transfer: the positions at which the student's channels are active should be distributed as the teacher's.

    sum over the tapped maps of 1/n sum_i MMD^2_i with the kernel (u . v)^2: MMD^2 = mean_{a,b} (s_a . s_b)^2 + mean_{a,b} (t_a . t_b)^2
    - 2 mean_{a,b} (s_a . t_b)^2, where s_a is channel a of the student's map of image i, as a vector of h w positions, divided by its
    norm, and t_b one of the teacher's.

    Shapes: maps n x c x h x w, of `stages` those from `first_stage` on; the models may differ in c. Where they differ in h or w, the larger
    map is averaged over fields (adaptive average pooling) to the smaller size first. Memory: n times the smaller of (h w)^2 and
    c_s^2 + c_t^2 + c_s c_t; for the former, MMD^2 is the squared distance of the matrices 1/c sum_a s_a s_a^T and 1/c sum_b t_b t_b^T.

    Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219.
    Defaults: the stages without the stem and weight 50, as in github.com/HobbitLong/RepDistiller (`feat[1:-1]`).
    Departs: only the paper's polynomial kernel, with d 2 and c 0, which it prefers. Norms are at least 1e-12, as in the released code.
        RepDistiller pools by the heights alone, to squares: the same for square maps. It needs memory for n c_s c_t h w numbers; the
        Knowledge-Distillation-Zoo has the last map alone.
    """

    version = 2
    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: nst, -b 50", weight=50.0),
        "zoo": Preset(
            "github.com/AberHu/Knowledge-Distillation-Zoo, example_train_script.sh: 10, the last map", weight=10.0, options={"tap": "last"}
        ),
    }

    couples = "sample"
    laws = frozenset({"permutation", "scale", "sample_scale"})

    def __init__(self, *, tap: Literal["stages", "last"] = "stages", first_stage: int = 1):
        super().__init__()
        check_place(first_stage)
        self.tap = tap
        self.first_stage = first_stage

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    def refuses(self, pair: Pair) -> str | None:
        return unmatched(pair, self.tap, self.first_stage)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return torch.stack([_discrepancy(x, y) for x, y in one_size(student, teacher, self.tap, self.first_stage)]).sum()


def _discrepancy(x: Float[Tensor, "n c_s h w"], y: Float[Tensor, "n c_t h w"]) -> Float[Tensor, ""]:
    s, t = (functional.normalize(z.flatten(2), dim=2) for z in (x, y))
    (c_s, positions), c_t = s.shape[1:], t.shape[1]
    if positions**2 <= c_s**2 + c_t**2 + c_s * c_t:
        return (gram(s.mT) / c_s - gram(t.mT) / c_t).square().sum((1, 2)).mean()
    return gram(s).square().mean() + gram(t).square().mean() - 2 * (s @ t.mT).square().mean()
