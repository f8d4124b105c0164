from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Preset, Taps
from kdbench.losses._gram import centred, matrices, unit_rows, unit_scale
from kdbench.losses._triplets import Angles, released_angles

SHORT = 1e-3
"""An edge shorter than this fraction of the root mean square of all edges counts as zero, since rounding decides its direction."""


class RKD(Loss):
    """Relational knowledge distillation: the student's distances between samples and angles of triplets should equal the teacher's.

    distance * 1/n^2 sum_ij h( |x_i - x_j| / mu_s, |y_i - y_j| / mu_t ), mu the mean distance of distinct samples;
    angle * 1/n^3 sum_abc h( <e_ab, e_ac>_s, <e_ab, e_ac>_t ), e_ab = (x_b - x_a) / |x_b - x_a|;
    h(u, v) = Huber's function of u - v with delta 1.
    The loss reports its two parts, `distance` and `angle`, separately. A part of weight 0 is not computed.

    Shapes: x and y are rows of n x d, the pooled features or another tap (a map is flattened); the models may differ in d. `l2`
    divides each sample by its norm first, for both models, the teacher only, or none. Memory: n x n and a block of triplets of limited
    size.

    squared_distances: |.|^2 instead of |.| in the first part. mean="valid": both means are over pairs and triplets of distinct samples.
    vertices=m: only triplets with a in m random samples, drawn in each call; the expected loss is the same.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019; github.com/lenscloth/RKD, metric/loss.py.
    Defaults: 25 and 50 on features as they are, github.com/HobbitLong/RepDistiller and github.com/megvii-research/mdistiller.
    Departs: the means are over all n^2 pairs and n^3 triplets, as in all public code; the paper sums over distinct samples. A pair or
        triplet with a sample twice has the same value (0 or 1) in both models, so it adds nothing to the sum. The authors' code for
        classification normalises features; the preset `official_cls` does so, too. An edge shorter than 1e-3 of the root mean square
        edge counts as 0 and gets no gradient. The original divides by at least 1e-12, and so does `eps="released"`, which needs
        n x n x d memory and has very large gradients for nearly equal samples. With `l2`, a sample of zeros stays 0. A batch of one
        image gives 0 instead of NaN; a batch of two gives 0 by the formula. Squared distances are computed in float64.
        `squared_distances` is an option of the authors' code that none of their scripts sets; `vertices` is an addition of kdbench.
    """

    version = 2
    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -b 1; distiller_zoo/RKD.py: 25 and 50", weight=1.0),
        "mmrazor": Preset(
            "github.com/open-mmlab/mmrazor, configs/distill/mmcls/rkd/rkd_neck_resnet34_resnet18_8xb32_in1k.py: 25 and 50, normalised",
            weight=1.0,
            options={"l2": "both"},
        ),
        "torchdistill": Preset(
            "github.com/yoshitomo-matsubara/torchdistill, configs/sample/ilsvrc2012/rkd/resnet18_from_resnet34.yaml: layer4, 1 and 2 "
            "(its `kd` term has alpha 1, so it is only cross-entropy)",
            weight=1.0,
            options={"distance": 1.0, "angle": 2.0, "tap": "last"},
        ),
        "official_cls": Preset(
            "github.com/lenscloth/RKD, branch classification, run_distill_classification.py: with 16 x KL at T 4",
            weight=1.0,
            options={"l2": "both"},
            terms=(("kd", 16.0, {"temperature": 4.0, "squared_temperature": False}),),
        ),
        "official_metric": Preset(
            "github.com/lenscloth/RKD, examples/*.sh: metric learning, by distillation alone",
            weight=1.0,
            task=0.0,
            options={"distance": 1.0, "angle": 2.0, "l2": "teacher"},
        ),
    }

    def __init__(
        self,
        *,
        distance: float = 25.0,
        angle: float = 50.0,
        l2: Literal["none", "both", "teacher"] = "none",
        tap: Literal["pooled", "last", "logits"] = "pooled",
        squared_distances: bool = False,
        mean: Literal["all", "valid"] = "all",
        vertices: int | None = None,
        eps: Literal["ours", "released"] = "ours",
    ):
        super().__init__()
        if not (distance or angle):
            raise ValueError("distance and angle are both 0: at least one must have a weight")
        if vertices is not None and vertices < 1:
            raise ValueError(f"vertices must be at least 1, not {vertices}")
        self.distance = distance
        self.angle = angle
        self.l2 = l2
        self.tap = tap
        self.squared_distances = squared_distances
        self.mean = mean
        self.vertices = vertices
        self.eps = eps

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    @property
    def laws(self) -> frozenset[str]:
        # Vertices are drawn by their place in the batch.
        drawn = self.angle and self.vertices is not None
        own = "sample_scale" if self.l2 == "both" else "translation"
        return frozenset({"scale", "rotation", own, *(set() if drawn else {"permutation"})})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        (x,), (y,) = matrices(student, self.tap), matrices(teacher, self.tap)
        x = unit_rows(x) if self.l2 == "both" else x
        y = unit_rows(y) if self.l2 != "none" else y
        n, distinct = len(x), self.mean == "valid"
        drawn = self.angle and self.vertices is not None and self.vertices < n
        vertices = torch.randperm(n)[: self.vertices].to(x.device, non_blocking=True) if drawn else None
        parts = {}
        if self.eps == "released":
            if self.distance:
                psi_s, psi_t = (_released_distances(z, self.squared_distances) for z in (x, y))
                parts["distance"] = functional.smooth_l1_loss(psi_s, psi_t)
            if self.angle:
                parts["angle"] = released_angles(x, y, vertices, distinct)
        else:
            (squares_s, short_s), (squares_t, short_t) = _squares(x), _squares(y)
            if self.distance:
                psi_s, psi_t = (_distances(*one, self.squared_distances) for one in ((squares_s, short_s), (squares_t, short_t)))
                parts["distance"] = functional.smooth_l1_loss(psi_s, psi_t)
            if self.angle:
                inverse_s, inverse_t = _inverse(squares_s.detach(), short_s), _inverse(squares_t, short_t)
                parts["angle"] = Angles.apply(squares_s, inverse_s, squares_t, inverse_t, vertices, distinct)
        if distinct and self.distance:
            parts["distance"] = parts["distance"] * (n / max(n - 1, 1))
        return {name: getattr(self, name) * part for name, part in parts.items()}


def _squares(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n n"], Bool[Tensor, "n n"]]:
    """Squared distances, and which of them are too short to have a direction (as the diagonal).

    Centring and scaling do not change the loss. They and float64 keep the digits of small distances, whose gradient is the largest.
    """
    dtype = x.dtype
    x = unit_scale(centred(x.double()))
    gram = x @ x.T
    own = gram.diagonal()
    squares = (own[:, None] + own[None, :] - 2 * gram).to(dtype)
    return squares, squares.detach() <= SHORT**2 * squares.detach().mean()


def _distances(squares: Float[Tensor, "n n"], short: Bool[Tensor, "n n"], squared: bool) -> Float[Tensor, "n n"]:
    """Distances over the mean of those between distinct samples."""
    return _over_mean(squares if squared else squares.masked_fill(short, 1.0).sqrt().masked_fill(short, 0.0))


def _over_mean(distances: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    n = len(distances)
    mean = distances.sum() / max(n * (n - 1), 1)
    return distances / torch.where(mean == 0, torch.ones_like(mean), mean)


def _released_distances(x: Float[Tensor, "n d"], squared: bool) -> Float[Tensor, "n n"]:
    dtype = x.dtype
    x = centred(x.double())
    gram = x @ x.T
    own = gram.diagonal()
    squares = (own[:, None] + own[None, :] - 2 * gram).clamp_min(1e-12)
    others = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    return _over_mean((squares if squared else squares.sqrt()) * others).to(dtype)


def _inverse(squares: Float[Tensor, "n n"], short: Bool[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return squares.masked_fill(short, 1.0).rsqrt().masked_fill(short, 0.0)
