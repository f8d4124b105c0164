from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import cka, matrices, unmatched


class CKA(Loss):
    """Centred kernel alignment with a linear kernel: the cosine of the two centred matrices of similarities between samples.

    sum over the tapped maps of 1 - HSIC(K, L) / sqrt( HSIC(K, K) HSIC(L, L) ), K = F_s F_s^T, L = F_t F_t^T, with
    biased:    HSIC = tr(K H L H), H = I - 1/n (its factor cancels);
    unbiased:  HSIC_1 of Song et al. 2012 (no diagonal), in the form of U-centred matrices: the loss is in [0, 2];
    uncentred: H = I, which is what the public codes that carry the name compute.
    Taken from n x n matrices, or from d x d ones where these are smaller (biased, uncentred): the same value.

    Shapes: F is n x d; a map (n x c x h x w) is flattened, or averaged over positions with `pool="gap"`. Models may differ in d.
    A batch of fewer than 3 samples (unbiased: 4) has the value 0 and gradient 0: CKA is 1 or undefined there.

    Source: Saha, Bialkowski and Khalifa, "Distilling Representational Similarity using Centered Kernel Alignment", BMVC 2022; the
        measure: Kornblith et al., ICML 2019.
    Defaults: ours. Neither code nor weight of the paper is public; that the kernel is linear follows from its Gram matrices, the
        biased estimator and the last map are assumed.
    Departs: cannot be said of the paper in more detail. Constant features (to rounding) have likeness 0 and gradient 0, not NaN.
        The biased value grows towards likeness with d/n: it does not compare between batch sizes or widths.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "saha": Preset("Saha et al., BMVC 2022: the loss; its weight was not published", weight=None),
        "uncentred": Preset(
            "github.com/Klayand/Distill_Knowledge, distiller/CKASP.py: a third party's version, weight 1, not centred",
            weight=1.0,
            options={"estimator": "uncentred"},
        ),
    }

    def __init__(
        self,
        *,
        estimator: Literal["biased", "unbiased", "uncentred"] = "biased",
        tap: Literal["last", "pooled", "logits", "stages"] = "last",
        pool: Literal["flatten", "gap"] = "flatten",
    ):
        super().__init__()
        self.estimator = estimator
        self.tap = tap
        self.pool = pool

    @property
    def variant(self) -> str:
        return "centred" if self.estimator == "biased" else self.estimator

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    @property
    def laws(self) -> frozenset[str]:
        moved = set() if self.estimator == "uncentred" else {"translation"}
        return frozenset({"permutation", "scale", "rotation", *moved})

    def refuses(self, pair: Pair) -> str | None:
        return unmatched(pair, self.tap)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        pairs = zip(matrices(student, self.tap, self.pool), matrices(teacher, self.tap, self.pool), strict=True)
        return torch.stack([(1 - cka(x, y, self.estimator)).to(x.dtype) for x, y in pairs]).sum()
