from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import nothing
from kdbench.losses._stagewise import check_place, unequal, unmatched
from kdbench.losses._svd import right_vectors

Vectors = Float[Tensor, "n _ _"]


class KDSVD(Loss):
    """Singular vectors: how the main directions of neighbouring stages lie to each other should be the same in both models.

    sum over neighbouring stages (l, l+1) from `first_stage` on of
    1/n sum over images, components, a and b of ( exp(-(V_l+1,a - V_l,b)^2 / 8)_s - exp(-(V_l+1,a - V_l,b)^2 / 8)_t )^2.
    V_t are the teacher's `k` largest right singular vectors of an image's map, each times its singular value over the norm of all k values.
    V_s is for each of these the one of the student's k + 3 vectors with the largest absolute cosine, with the cosine's sign, times
    the teacher's factor. The matrix of a map is
    matrix="channels": hw x c, one row a position; V has an entry for each channel;
    matrix="rows":     (c h) x w, one column for each column of the image; V has w entries.

    Shapes: `stages`, n x c x h x w. The models need the same number of stages and, in each, equal channels (rows: equal breadths).

    Source: Lee, Kim and Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018.
    Defaults: channels and k 1, as in github.com/HobbitLong/RepDistiller, distiller_zoo/KDSVD.py, whose scripts give it no weight.
    Departs: the loss depends on the sign of the teacher's vectors, which an SVD does not define; in the released code it varies
        with library and device. Here a vector's entries have a sum of at least 0, which is so of the first one of maps after a
        ReLU. With k 1 the factor is 1, and singular values have no effect. github.com/megvii-research/mdistiller decomposes other
        matrices under this name (rows), in float32. Here all is in float64, from the eigenvectors of the smaller product
        of the matrix with itself; vectors of a singular value of zero are zero, and nearly equal singular values get no
        gradient from each other, where the released code has NaN. The authors' code has other gradients and does not divide by n.
    """

    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, distiller_zoo/KDSVD.py: its scripts give no weight", weight=None),
        "mdistiller": Preset(
            "github.com/megvii-research/mdistiller, distillers/KDSVD.py: 1, another matrix", weight=1.0, options={"matrix": "rows"}
        ),
    }

    needs = frozenset({"stages"})
    couples = "sample"

    def __init__(self, *, matrix: Literal["channels", "rows"] = "channels", k: int = 1, first_stage: int = 1):
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1 singular vector, not {k}")
        check_place(first_stage)
        self.matrix = matrix
        self.k = k
        self.first_stage = first_stage

    @property
    def variant(self) -> str:
        return self.matrix

    @property
    def laws(self) -> frozenset[str]:
        # With `rows` the channels are rows of the matrix, and its right vectors do not depend on their basis.
        return frozenset({"permutation", "scale", "sample_scale", *({"rotation"} if self.matrix == "rows" else set())})

    def refuses(self, pair: Pair) -> str | None:
        if (why := unmatched(pair, "stages", self.first_stage, fewest=2)) is not None:
            return why
        axis, what = (1, "channels") if self.matrix == "channels" else (3, "breadths")
        if (why := unequal(pair, "stages", self.first_stage, axis, what)) is not None:
            return why
        for place, (_, c, h, w) in enumerate(one.shape for one in pair.teacher.stages):
            most = min(c, h * w) if self.matrix == "channels" else min(c * h, w)
            if place >= self.first_stage and most < self.k:
                return f"k is {self.k}, and the teacher's stage {place} has {most} singular vectors"
        return None

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        used = student.stages[self.first_stage :]
        pairs = zip(used, teacher.stages[self.first_stage :], strict=True)
        vectors = [self._vectors(x, y, place) for place, (x, y) in enumerate(pairs)]
        values = []
        for (x, y), (x_next, y_next) in zip(vectors, vectors[1:], strict=False):
            values.append((_kernel(x_next, x) - _kernel(y_next, y)).square().sum() / len(x))
        # NaN for a model that has diverged.
        return torch.stack(values).sum().to(student.stages[0]) + nothing(torch.stack([one.sum() for one in used]))

    def _vectors(self, x: Float[Tensor, "n _ _ _"], y: Float[Tensor, "n _ _ _"], place: int) -> tuple[Vectors, Vectors]:
        _, v_s = right_vectors(self._matrices(x), self.k + 3)
        sizes, v_t = right_vectors(self._matrices(y), self.k)
        v_t = self._signed(v_t, place)
        cosine = v_s.mT @ v_t
        size = cosine.abs()
        v_s = v_s @ torch.where(size == size.amax(1, keepdim=True), cosine.sign(), 0.0).detach()
        factors = functional.normalize(sizes, dim=1)[:, None]
        return v_s * factors, v_t * factors

    def _matrices(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ _"]:
        return x.double().flatten(2).mT if self.matrix == "channels" else x.double().flatten(1, 2)

    def _signed(self, vectors: Vectors, place: int) -> Vectors:
        """With the sign that makes the sum of the entries positive."""
        return torch.where(vectors.sum(1, keepdim=True) < 0, -vectors, vectors)


def _kernel(following: Vectors, vectors: Vectors) -> Float[Tensor, "n _ _ k"]:
    return (-(following[:, :, None] - vectors[:, None]).square() / 8).exp()
