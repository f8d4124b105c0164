from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import gram, matrices, nothing
from kdbench.losses._stagewise import unmatched


class SP(Loss):
    """Similarity preserving: the student's similarities between the samples of a batch should equal the teacher's.

    sum over the tapped maps of 1/n^2 || G_t - G_s ||^2 (Frobenius), where G = F F^T with each row divided by its norm.
    With `row_l2` this is 2/n (1 - mean_i cos(row i of G_s, row i of G_t)), which decreases as 1/n; `rescale="batch"` multiplies it by n/64,
    so that a weight for batches of 64 is valid for other batch sizes.
    With `compared="means"` it is (mean of the entries of G_t - mean of those of G_s)^2, which by Jensen's inequality is never larger.

    Shapes: F is n x d, a map (n x c x h x w) flattened; both models may differ in c, h and w.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
    Defaults: rows normalised, the last map, weight 3000, as in github.com/HobbitLong/RepDistiller (which states that the
        author verified it) and github.com/megvii-research/mdistiller. SimKD and the Knowledge-Distillation-Zoo have the same 3000.
    Departs: the paper sums over pairs of layers; these defaults use the last map alone (`tap="stages"` sums over the stages).
        `frobenius` divides G by its own norm, a variant in a comment of RepDistiller; `rescale` and `compared` are additions of kdbench. A
        batch of one image gives 0. Norms are at least 1e-12, as in the released code, so a sample of zeros gets a finite but very large
        gradient.
    """

    version = 2
    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -b 3000", weight=3000.0),
        "torchdistill": Preset(
            "github.com/yoshitomo-matsubara/torchdistill, configs/sample/ilsvrc2012/spkd/resnet18_from_resnet34.yaml: layer4, weight 1",
            weight=1.0,
        ),
        "frobenius": Preset(
            "github.com/HobbitLong/RepDistiller, distiller_zoo/SP.py, in a comment: another loss, without a published weight",
            weight=None,
            options={"norm": "frobenius"},
        ),
        "rescaled": Preset(
            "defined by kdbench: at any batch size, the strength that the loss has at a batch size of 64",
            weight=None,
            options={"rescale": "batch"},
        ),
        "mmd": Preset(
            "defined by kdbench, after Theorem 2 of Zhou et al., IJCAI 2024: 1 - CKA (uncentred) is n^2/2 times the loss `frobenius`, and "
            "this loss, their MMD term, is a lower bound of that",
            weight=None,
            options={"norm": "frobenius", "compared": "means"},
        ),
    }
    added: ClassVar[Mapping[str, Any]] = {"compared": "entries"}

    laws = frozenset({"permutation", "scale", "rotation"})

    def __init__(
        self,
        *,
        norm: Literal["row_l2", "frobenius"] = "row_l2",
        tap: Literal["last", "pooled", "stages"] = "last",
        rescale: Literal["none", "batch"] = "none",
        compared: Literal["entries", "means"] = "entries",
    ):
        super().__init__()
        self.norm = norm
        self.tap = tap
        self.rescale = rescale
        self.compared = compared

    @property
    def variant(self) -> str | None:
        found = [*(["frobenius"] if self.norm == "frobenius" else []), *(["rescaled"] if self.rescale == "batch" else [])]
        found += ["means"] if self.compared == "means" else []
        return ", ".join(found) or None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    def refuses(self, pair: Pair) -> str | None:
        return unmatched(pair, self.tap)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        pairs = list(zip(matrices(student, self.tap), teacher.known, strict=True))
        value = torch.stack([self._between(x, y) for x, y in pairs]).sum()
        return value if self.rescale == "none" else value * (len(pairs[0][0]) / 64)

    def of_teacher(self, teacher: Taps) -> list[Float[Tensor, "n n"]]:
        return [self._similarity(y) for y in matrices(teacher, self.tap)]

    def _between(self, x: Float[Tensor, "n d_s"], wanted: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
        if len(x) == 1:
            return nothing(x)  # G = 1 for both
        difference = wanted - self._similarity(x)
        return difference.mean().square() if self.compared == "means" else difference.square().mean()

    def _similarity(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
        found = gram(x)
        return functional.normalize(found, dim=1) if self.norm == "row_l2" else functional.normalize(found.flatten(), dim=0).view_as(found)
