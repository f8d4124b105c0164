from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.losses import _gram
from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import matrices
from kdbench.losses._stagewise import unmatched


class CKA(Loss):
    """Centred kernel alignment: the cosine between the two models' centred similarity matrices of a batch.

    sum over the tapped maps of 1 - HSIC(K, L) / sqrt( HSIC(K, K) HSIC(L, L) ), K of the student's samples, L of the teacher's, with
    biased:    HSIC = tr(K H L H), H = I - 1/n (its factor cancels);
    unbiased:  HSIC_1 of Song et al. 2012 (no diagonal), in the form of U-centred matrices: the loss is in [0, 2];
    uncentred: H = I, as in the public code of this name.
    K = F F^T (linear; computed from d x d matrices where these are smaller, with the same value), or
    exp(-|f_i - f_j|^2 / (2 m)) with m the median of all n^2 squared distances (rbf). `form` is 1 - CKA, -CKA
    (neg; it has the same gradient) or 1 - sqrt(CKA) (sqrt).
    1 - CKA is 1/2 |K - L|^2 of the (centred) matrices, each divided by its own norm. With `norms="teacher"` both are divided by the norm
    of L, so that the loss also compares their scale.

    Shapes: F is n x d; a map (n x c x h x w) is flattened, averaged over positions with `pool="gap"`, or over the fields of a grid
    of k x k with `pool=k`, then flattened. Models may differ in c, h and w. With fewer than 3 samples (unbiased: 4),
    CKA is always 1 or is undefined. kdbench then uses CKA = 1 with gradient 0.

    Source: Saha, Bialkowski and Khalifa, "Distilling Representational Similarity using Centered Kernel Alignment", BMVC 2022; the
        measure, with the median: Kornblith et al., ICML 2019, github.com/google-research/google-research,
        representation_similarity.
    Defaults: chosen by kdbench. Neither the code nor the weight of the paper is public. The linear kernel follows from the paper's Gram
        matrices. The biased estimator and the last map are assumed.
    Departs: unknown, since the paper gives no more detail. Features that are constant (within rounding) give CKA = 0 and gradient 0
        instead of NaN (with `norms="teacher"`, such a teacher gives the loss 1/2). The biased value increases with d/n, so do not compare
        it between batch sizes or widths. With rbf, the gradient includes that of the median. `norms` is an addition of kdbench.
    """

    version = 2
    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "saha": Preset("Saha et al., BMVC 2022: the loss; its weight was not published", weight=None),
        "unbiased": Preset(
            "defined by kdbench: the loss with the estimator of Song et al., JMLR 2012", weight=None, options={"estimator": "unbiased"}
        ),
        "rbf": Preset(
            "defined by kdbench: the loss with the other kernel of Kornblith et al., ICML 2019", weight=None, options={"kernel": "rbf"}
        ),
        "sqrt": Preset(
            "used in public code that matches hidden states of language models; we know no paper that defines it",
            weight=None,
            options={"form": "sqrt"},
        ),
        "uncentred": Preset(
            "github.com/Klayand/Distill_Knowledge, distiller/CKA.py (class NormalizedSimpleCKA of its first versions): no weight",
            weight=None,
            options={"estimator": "uncentred"},
        ),
        "unnormalised": Preset(
            "defined by kdbench: the loss without its invariance to the scale of the student's features",
            weight=None,
            options={"norms": "teacher"},
        ),
    }
    added: ClassVar[Mapping[str, Any]] = {"norms": "own"}

    def __init__(
        self,
        *,
        estimator: Literal["biased", "unbiased", "uncentred"] = "biased",
        tap: Literal["last", "pooled", "logits", "stages"] = "last",
        pool: Literal["flatten", "gap"] | int = "flatten",
        kernel: Literal["linear", "rbf"] = "linear",
        form: Literal["one_minus", "neg", "sqrt"] = "one_minus",
        norms: Literal["own", "teacher"] = "own",
    ):
        super().__init__()
        if isinstance(pool, int) and pool < 1:
            raise ValueError(f"pool must be at least 1 field per side, not {pool}")
        if form == "sqrt" and estimator == "unbiased":
            raise ValueError("the unbiased CKA can be negative, so it has no square root: use another form")
        if form == "sqrt" and norms == "teacher":
            raise ValueError("without its own norm CKA can be negative, so it has no square root: use another form")
        self.estimator = estimator
        self.tap = tap
        self.pool = pool
        self.kernel = kernel
        self.form = form
        self.norms = norms

    @property
    def variant(self) -> str:
        estimator = "centred" if self.estimator == "biased" else self.estimator
        kernel = [self.kernel] if self.kernel != "linear" else []
        norms = ["unnormalised, ours"] if self.norms == "teacher" else []
        return ", ".join([estimator, *kernel, *(["sqrt"] if self.form == "sqrt" else []), *norms])

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    @property
    def laws(self) -> frozenset[str]:
        # The rbf kernel sees distances alone, so that it need not be centred for this.
        moved = {"translation"} if self.estimator != "uncentred" or self.kernel == "rbf" else set()
        scaled = {"scale"} if self.norms == "own" or self.kernel == "rbf" else set()
        return frozenset({"permutation", "rotation", *scaled, *moved})

    def refuses(self, pair: Pair) -> str | None:
        return unmatched(pair, self.tap)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        tapped, each = matrices(student, self.tap, self.pool), self._likeness.n_known
        known = [teacher.known[place * each : (place + 1) * each] for place in range(len(tapped))]
        likenesses = [(x.dtype, self._likeness.with_known(x, y)) for x, y in zip(tapped, known, strict=True)]
        return torch.stack([self._loss(likeness).to(dtype) for dtype, likeness in likenesses]).sum()

    def of_teacher(self, teacher: Taps) -> list[Tensor]:
        return [one for y in matrices(teacher, self.tap, self.pool) for one in self._likeness.known(y)]

    @property
    def _likeness(self) -> _gram.CKA:
        return _gram.CKA(self.estimator, kernel=self.kernel, norms=self.norms)

    def _loss(self, likeness: Float[Tensor, ""]) -> Float[Tensor, ""]:
        if self.form == "neg":
            return -likeness
        if self.form == "sqrt":
            # At 0 (constant features) the root has no gradient.
            none = likeness <= torch.finfo(likeness.dtype).eps
            return 1 - likeness.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0)
        return 1 - likeness
