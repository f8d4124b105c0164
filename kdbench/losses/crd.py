from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps


class CRD(Loss):
    """Contrastive representation distillation: an image's student and teacher embeddings should agree, and those of images of other
    classes should not.

    1/n sum_i [ c(s_i, M_t) + c(t_i, M_s) ], where for an anchor a, with the memory M of the other model's embeddings, N training images
    and K negatives drawn among the images of other classes:
        c(a, M) = - log( p(i) / (p(i) + K/N + eps) ) - sum_{k drawn} log( (K/N) / (p(k) + K/N + eps) ),
        p(j) = exp(a . M_j / temperature) / Z,  eps 1e-7.
    s and t are Linear(d, dimensions) of the pooled features, divided by their norms; both maps are trained. Z, one for each memory, is N
    times the mean of exp(a . M_j / temperature) over the first batch, and constant from then on. After the value is computed, the
    memories of the batch's images become momentum M_i + (1 - momentum) times the new embedding, divided by its norm.

    Shapes: pooled features n x d; memories N x dimensions. Negatives are drawn without replacement where there are at least K, else with
    replacement, anew in each step.

    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, github.com/HobbitLong/RepDistiller, crd/.
    Defaults: that code's: 16384 negatives, temperature 0.07, momentum 0.5, 128 dimensions, weight 0.8; its mode `exact` (the positive is
        the image itself). github.com/megvii-research/mdistiller has the same.
    Departs: the paper uses a learned critic with a constant; as in the code, Z is fixed at the first batch, and the memories start as
        uniform numbers, not as embeddings. The code draws negatives in its data loader; here they are drawn from the stream of the
        loss. In float32 the code rounds the temperature to 0.07000000029802322. Norms are at least 1e-12. An image that is twice in one
        batch keeps one of its two embeddings, as in the code. The sums are computed with logarithms of p.
    """

    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -b 0.8, K 16384, T 0.07, momentum 0.5, 128 dimensions", weight=0.8)
    }

    needs = frozenset({"pooled", "index", "labels"})
    laws = frozenset()

    def __init__(self, *, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5, dimensions: int = 128):
        super().__init__()
        if negatives < 1 or dimensions < 1:
            raise ValueError(f"negatives and dimensions must be at least 1, not {negatives} and {dimensions}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and less than 1, not {momentum}")
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.dimensions = dimensions

    def refuses(self, pair: Pair) -> str | None:
        if pair.labels is not None and pair.labels.ndim != 1:
            return "it draws negatives from other classes, and needs one class for each training image"
        return None

    def bind(self, pair: Pair) -> None:
        assert pair.student.pooled is not None and pair.teacher.pooled is not None
        self.student_embed = nn.Linear(pair.student.pooled.shape[1], self.dimensions)
        self.teacher_embed = nn.Linear(pair.teacher.pooled.shape[1], self.dimensions)
        largest = math.sqrt(3 / self.dimensions)
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_memory", torch.empty(pair.n_train, self.dimensions).uniform_(-largest, largest))
        # Negative: not yet fixed. First that of the student's anchors, then that of the teacher's.
        self.register_buffer("normalisers", torch.full((2,), -1.0))
        self.register_buffer("labels", pair.labels, persistent=False)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert batch.index is not None
        index = batch.index.long()
        anchors = [functional.normalize(x, dim=1) for x in (self.student_embed(student.pooled), self.teacher_embed(teacher.pooled))]
        # Read before they are updated; each anchor meets the memory of the other model.
        memories = [self.teacher_memory.clone(), self.student_memory.clone()]
        compared = torch.cat([index[:, None], self._drawn(index)], 1)
        values = [self._contrast(place, a, m, compared) for place, (a, m) in enumerate(zip(anchors, memories, strict=True))]
        with torch.no_grad():
            for memory, a in ((self.student_memory, anchors[0]), (self.teacher_memory, anchors[1])):
                memory[index] = functional.normalize(self.momentum * memory[index] + (1 - self.momentum) * a, dim=1)
        return torch.stack(values).sum()

    def _contrast(
        self, place: int, anchor: Float[Tensor, "n d"], memory: Float[Tensor, "images d"], compared: Int[Tensor, "n drawn"]
    ) -> Float[Tensor, ""]:
        # The products with the whole memory: a memory row for each negative of each image would take far more.
        scores = (anchor @ memory.T).gather(1, compared) / self.temperature
        with torch.no_grad():
            first = (scores.flatten().logsumexp(0) - math.log(scores.numel())).exp() * len(memory)
            self.normalisers[place] = torch.where(self.normalisers[place] < 0, first, self.normalisers[place])
            logarithm = self.normalisers[place].log()
        log_p, noise = scores - logarithm, self.negatives / len(memory)
        beside = torch.logaddexp(log_p, torch.full_like(log_p, math.log(noise + 1e-7)))
        return ((beside - log_p)[:, 0].sum() + (beside[:, 1:] - math.log(noise)).sum()) / len(anchor)

    def _drawn(self, index: Int[Tensor, " n"]) -> Int[Tensor, "n negatives"]:
        """Images of other classes than each image's."""
        others = self.labels[index][:, None] != self.labels
        again = self._with_replacement(others)
        if self.negatives > others.shape[1]:
            return again
        order = torch.rand(others.shape, device=others.device).masked_fill(~others, -1.0)
        largest = order.topk(self.negatives, sorted=False)
        enough = (largest.values >= 0).all(1, keepdim=True)
        return torch.where(enough, largest.indices, again)

    def _with_replacement(self, others: Bool[Tensor, "n images"]) -> Int[Tensor, "n negatives"]:
        """The m-th image of another class, for random m."""
        count = others.cumsum(1)
        m = (torch.rand(len(others), self.negatives, device=others.device, dtype=torch.float64) * count[:, -1:]).long() + 1
        return torch.searchsorted(count, m).clamp_max(others.shape[1] - 1)
