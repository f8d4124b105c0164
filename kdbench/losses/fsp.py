from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import averaged
from kdbench.losses._stagewise import check_place, largest, smaller, unequal, unmatched


class FSP(Loss):
    """The flow between stages: the products of neighbouring stages' channels should be the same in both models.

    sum over neighbouring stages (l, l+1) from `first_stage` on of the distance of M_s and M_t, with
    M = 1/(hw) F_l F_(l+1)^T for each image (c_l x c_(l+1)), the larger of the two maps first pooled to the size of the other.
    distance="mean_square":  mean( (M_s - M_t)^2 ) over all elements;
    distance="column_norms": 1/n sum over images and columns of | column of M_s - M_t |, not squared.
    pool="average" or "max": how the larger map is pooled.

    Shapes: F_l n x c_l x h_l x w_l, `stages`. The models need equal channels and the same number of stages, and may differ in h and w.

    Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.
    Defaults: average, mean squares, all stages with the stem, as in github.com/HobbitLong/RepDistiller, distiller_zoo/FSP.py.
    Departs: one stage of training, beside the task, but for the preset `crd_two_stage`. The paper and RepDistiller train FSP first, alone
        (there for 30 epochs at a constant learning rate and weight 1: the -b 50 of its script has no effect), and then the task alone. The
        paper pools by the maximum, as torchdistill does, whose
        loss of this name has column norms. RepDistiller has the transpose of M, which changes nothing.
    """

    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -b 50 (without effect), here in one stage", weight=None),
        "crd_two_stage": Preset(
            "github.com/HobbitLong/RepDistiller, helper/pretrain.py: weight 1, alone for 30 epochs, then the task alone",
            weight=1.0,
            two_stages={"epochs": 30, "schedule": "constant", "then": []},
        ),
        "torchdistill": Preset(
            "github.com/yoshitomo-matsubara/torchdistill, losses/mid_level.py FSPLoss: no weight is known here",
            weight=None,
            options={"pool": "max", "distance": "column_norms"},
        ),
        "paper": Preset("Yim et al., CVPR 2017: pooled by the maximum; no weight is known here", weight=None, options={"pool": "max"}),
    }

    needs = frozenset({"stages"})
    couples = "sample"
    laws = frozenset({"permutation"})

    def __init__(
        self,
        *,
        pool: Literal["average", "max"] = "average",
        distance: Literal["mean_square", "column_norms"] = "mean_square",
        first_stage: int = 0,
    ):
        super().__init__()
        check_place(first_stage)
        self.pool = pool
        self.distance = distance
        self.first_stage = first_stage

    @property
    def variant(self) -> str:
        return self.distance.replace("_", " ")

    def refuses(self, pair: Pair) -> str | None:
        return unmatched(pair, "stages", self.first_stage, fewest=2) or unequal(pair, "stages", self.first_stage)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        flows = zip(self._flows(student), self._flows(teacher), strict=True)
        return torch.stack([self._distance(one - other) for one, other in flows]).sum()

    def _flows(self, taps: Taps) -> list[Float[Tensor, "n _ _"]]:
        pool = averaged if self.pool == "average" else largest
        found = []
        for one, following in pairwise(taps.stages[self.first_stage :]):
            x, y = (each.flatten(2) for each in smaller(one, following, pool))
            found.append(x @ y.mT / x.shape[2])
        return found

    def _distance(self, difference: Float[Tensor, "n _ _"]) -> Float[Tensor, ""]:
        if self.distance == "mean_square":
            return difference.square().mean()
        return torch.linalg.vector_norm(difference, dim=1).sum() / len(difference)
