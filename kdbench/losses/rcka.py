from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import CKA, gram, matrices, unit_rows, unit_scale
from kdbench.losses._stagewise import unmatched


class RCKA(Loss):
    """Relation-based CKA: similarity of the logits over samples and over classes, and of the features over samples.

    intra C(Z_s, Z_t) + inter C(Z_s^T, Z_t^T) + feature sum over the tapped maps of C(F_s, F_t), with C = 1 - CKA (linear, biased).
    The released code has these options:
    centred=False:                C uses the cosine of the Gram matrices without centring;
    gram_norm="row_half":         row i of a Gram matrix is divided by the norm of (the centred) sample i, the columns are not;
                                  `cosine`, an addition of kdbench, also divides the columns;
    feature_form="gram_of_gram":  F is first replaced by its Gram matrix with rows of norm 1 (as in SP);
    negated:                      C = -CKA, which has the same gradient;
    first_stage=1:                with `tap="stages"`, the first stage (usually the stem) is left out;
    official_bugs:                the part inter uses the weight of intra (if inter has a weight), as in the released code.
    A part of weight 0 is not computed.

    Shapes: logits Z n x classes; F n x d, a map (n x c x h x w) flattened. Both models may differ in d.
    With centring, a matrix of fewer than 3 rows (samples; classes for inter) has CKA = 1 and gradient 0.

    Source: Zhou et al., "Rethinking Centered Kernel Alignment in Knowledge Distillation", IJCAI 2024; released:
        github.com/Klayand/Distill_Knowledge, distiller/CKASP.py (class DKCKA) and github.com/Klayand/PCKA, by its first author.
    Defaults: intra 15, inter 15 and feature 1, as in that code; the paper does not confirm them. The preset `centred`, with the last
        map, is defined by kdbench, because the paper's definition is centred. The code uses its weights for the uncentred form, so a
        suite must give a weight for `centred`.
    Departs: `released` and its two halves (`lcka`, `fcka`) follow the code with these exceptions. Traces of products are computed as
        sums over entries, with the same value. A sample of zeros gives 0 instead of NaN. In the code, inter is off unless it has a
        weight; here it is on. The code's option of softened logits is left out. Three differences are outside this loss or in other
        classes of the code: the teacher stays in evaluation mode, the accuracy is that of the whole test set, and no untrained
        convolution aligns features.
    """

    version = 2
    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "centred": Preset("defined by kdbench: the definition with centring, for which no weight was published", weight=None),
        "released": Preset(
            "github.com/Klayand/Distill_Knowledge, distiller/CKASP.py (class DKCKA), with its errors corrected",
            weight=1.0,
            options={
                "centred": False,
                "gram_norm": "row_half",
                "feature_form": "gram_of_gram",
                "tap": "stages",
                "first_stage": 1,
                "negated": True,
            },
        ),
        "lcka": Preset(
            "github.com/Klayand/Distill_Knowledge, distiller/CKA.py (class CenterKernelAlignmentRKD): "
            "logits alone, with the error of the code (`official_bugs`)",
            weight=1.0,
            options={"feature": 0.0, "centred": False, "gram_norm": "row_half", "negated": True, "official_bugs": True},
        ),
        "fcka": Preset(
            "github.com/Klayand/Distill_Knowledge, distiller/CKASP.py (class CKASP_bmvc, which the code "
            "attributes to Saha et al.): features alone",
            weight=1.0,
            options={
                "intra": 0.0,
                "inter": 0.0,
                "centred": False,
                "feature_form": "gram_of_gram",
                "tap": "stages",
                "first_stage": 1,
                "negated": True,
            },
        ),
    }

    def __init__(
        self,
        *,
        intra: float = 15.0,
        inter: float = 15.0,
        feature: float = 1.0,
        centred: bool = True,
        gram_norm: Literal["none", "row_half", "cosine"] = "none",
        feature_form: Literal["gram", "gram_of_gram"] = "gram",
        tap: Literal["last", "pooled", "stages"] = "last",
        negated: bool = False,
        official_bugs: bool = False,
        first_stage: int = 0,
    ):
        super().__init__()
        if first_stage < 0 or (first_stage and tap != "stages"):
            raise ValueError("first_stage is the place (from 0) of the first stage that counts, with the tap 'stages'")
        if not (intra or inter and not official_bugs or feature):
            raise ValueError("of intra, inter and feature at least one has a weight")
        self.intra = intra
        self.inter = inter
        self.feature = feature
        self.centred = centred
        self.gram_norm = gram_norm
        self.feature_form = feature_form
        self.tap = tap
        self.negated = negated
        self.official_bugs = official_bugs
        self.first_stage = first_stage

    @property
    def variant(self) -> str:
        logits = self.intra or self._inter
        # Of rows of norm 1, as gram_of_gram makes them, row_half is the same.
        as_released = (not logits or self.gram_norm == "row_half") and (not self.feature or self.feature_form == "gram_of_gram")
        form = "centred, ours" if self.centred else "released" if as_released else "uncentred, ours"
        return form if logits and self.feature else f"{'logits' if logits else 'features'} alone, {form}"

    @property
    def _inter(self) -> float:
        return self.intra if self.official_bugs and self.inter else self.inter

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({*(["logits"] if self.intra or self._inter else []), *([self.tap] if self.feature else [])})

    @property
    def laws(self) -> frozenset[str]:
        laws = {"permutation", "scale"}
        plain = self.feature_form == "gram" or not self.feature
        if not self._inter:  # the similarity over classes depends on which they are, and has samples as its columns
            laws |= {"rotation", *({"translation"} if self.centred and plain else set())}
            laws |= {"sample_scale"} if self.gram_norm == "cosine" and not self.centred and plain else set()
        return frozenset(laws)

    def refuses(self, pair: Pair) -> str | None:
        why = unmatched(pair, self.tap) if self.feature else None
        if why is None and self.feature and self.tap == "stages" and self.first_stage >= len(pair.student.stages):
            return f"no stage is left after the first {self.first_stage}: the student has {len(pair.student.stages)}"
        return why

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        known, dtype, parts = iter(teacher.known), student.tensors()[0].dtype, {}
        for name, weight, compared in self._compared(student):
            likenesses = [self._likeness.with_known(x, [next(known)]) for x in compared]
            unlike = [-one if self.negated else 1 - one for one in likenesses]
            parts[name] = weight * torch.stack([one.to(dtype) for one in unlike]).sum()
        return parts

    def of_teacher(self, teacher: Taps) -> list[Tensor]:
        return [self._likeness.known(y)[0] for _, _, compared in self._compared(teacher) for y in compared]

    def _compared(self, side: Taps) -> list[tuple[str, float, list[Float[Tensor, "rows _"]]]]:
        """(part, weight, what is compared) of one model."""
        found = []
        if self.intra:
            found.append(("intra", self.intra, [side.logits]))
        if self._inter:
            found.append(("inter", self._inter, [side.logits.T]))
        if self.feature:
            features = matrices(side, self.tap)[self.first_stage :]
            if self.feature_form == "gram_of_gram":
                # The Gram matrix of one that is nearly all ones: what it holds is in the last digits of float32.
                features = [unit_rows(gram(unit_scale(x.double()))) for x in features]
            found.append(("feature", self.feature, list(features)))
        return found

    @property
    def _likeness(self) -> CKA:
        return CKA("biased" if self.centred else "uncentred", self.gram_norm)
