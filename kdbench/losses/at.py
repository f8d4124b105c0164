from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._stagewise import check_place, one_size, unmatched


class AT(Loss):
    """Attention transfer: the student should have large activations at the same positions as the teacher.

    sum over the tapped maps of 1/(n h w) sum_i | a_s,i - a_t,i |^2: a_i is the vector of h w means over channels of the squared
    activations of image i, divided by its norm.

    Shapes: maps n x c x h x w, of `stages` those from `first_stage` on; the models may differ in c. Where they differ in h or w, the larger
    map is averaged over fields (adaptive average pooling) to the smaller size first.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928);
        github.com/szagoruyko/attention-transfer.
    Defaults: the stages without the stem and weight 1000, as in github.com/HobbitLong/RepDistiller (`feat[1:-1]`).
    Departs: the paper has the norm of the difference of the vectors; all public code has the mean of its square. The sum over channels
        is a mean here, which the norm cancels. Norms are at least 1e-12, as in the released code. RepDistiller pools by the heights
        alone, to squares: the same for square maps.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: attention, -b 1000", weight=1000.0)
    }

    couples = "sample"
    laws = frozenset({"permutation", "scale", "sample_scale", "rotation"})

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
        pairs = one_size(student, teacher, self.tap, self.first_stage)
        return torch.stack([(_attention(x) - _attention(y)).square().mean() for x, y in pairs]).sum()


def _attention(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h*w"]:
    return functional.normalize(x.square().mean(1).flatten(1), dim=1)
