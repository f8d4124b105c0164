from __future__ import annotations

from collections.abc import Mapping
from math import comb, exp, factorial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._congruence import Congruence
from kdbench.losses._gram import nothing


class CC(Loss):
    """Correlation congruence: the student's kernel matrix of a batch should equal the teacher's.

    taylor:   1/n^2 || P(F_t) - P(F_s) ||^2 with P_ij = sum_{p <= order} exp(-2 gamma) (2 gamma)^p / p! (f_i . f_j)^p, which for
              vectors of norm 1 is the Taylor polynomial of exp(-gamma |f_i - f_j|^2).
    rbf:      the same with that exponential itself; bilinear: with f_i . f_j.
    lag1:     1/(n-1) sum_i <delta_i, delta_{i+1}> with delta = |f_s - f_t|: products of neighbours in the batch. It is not a kernel
              and depends on the order of the samples.
    The reduction `fro_over_n2` is the Frobenius norm, not squared, over n^2.

    Shapes: f is a row of the pooled features, n x d, mapped by `embed` (a trainable Linear(d, embed) for each model; None: no map),
    then divided by its norm with `l2`. `embedded` gives the models whose features are mapped (`frozen_teacher`: both, but the
    teacher's map is not trained).
    lag1 needs equal widths.

    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019. lag1: the class Correlation of
        github.com/HobbitLong/RepDistiller (according to the author of RepDistiller, the authors of CC provided it); the rows CC in
        the tables of the CRD protocol use it. Without norm and with fro_over_n2: github.com/yoshitomo-matsubara/torchdistill.
    Defaults: github.com/AberHu/Knowledge-Distillation-Zoo: order 2, gamma 0.4, features of norm 1, no map, weight 100.
    Departs: from the paper: no soft targets (add the term `kd`), no class-uniform sampler, no MMD kernel. From the code for lag1: a
        batch of one image gives 0 instead of NaN. If both maps are trained, both can become zero, as in the released code;
        `embedded="student"` and `embedded="frozen_teacher"` prevent this and are additions of kdbench. Norms are at least 1e-12, as
        in the released code, so a sample of zeros gets a finite but very large gradient. Without `l2`,
        kernel matrices are computed in float64.
    """

    version = 2
    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "zoo": Preset("github.com/AberHu/Knowledge-Distillation-Zoo, example_train_script.sh: CC, 100", weight=100.0),
        "crd": Preset(
            "github.com/HobbitLong/RepDistiller, scripts: correlation, -b 0.02",
            weight=0.02,
            options={"kernel": "lag1", "l2": False, "embed": 128},
        ),
        "torchdistill": Preset(
            "github.com/yoshitomo-matsubara/torchdistill, configs/sample/ilsvrc2012/cckd/resnet18_from_resnet50.yaml: weight 0.003, "
            "with KL at T 1 and without cross-entropy (KDLoss has alpha 0). The file contains an error (`key` instead of `type` for the "
            "kernel), so torchdistill cannot build it",
            weight=0.003,
            task=0.0,
            options={"l2": False, "embed": 128, "reduction": "fro_over_n2"},
            terms=(("kd", 1.0, {"temperature": 1.0}),),
        ),
        "torchdistill_bilinear": Preset(
            "github.com/yoshitomo-matsubara/torchdistill, CCKDLoss: its other kernel, for which it gives no weight",
            weight=None,
            options={"kernel": "bilinear", "l2": False, "embed": 128, "reduction": "fro_over_n2"},
        ),
        "rbf": Preset("defined by kdbench: the kernel that the paper expands into a polynomial", weight=None, options={"kernel": "rbf"}),
    }

    needs = frozenset({"pooled"})

    def __init__(
        self,
        *,
        kernel: Literal["taylor", "rbf", "bilinear", "lag1"] = "taylor",
        gamma: float = 0.4,
        order: int = 2,
        l2: bool = True,
        embed: int | None = None,
        reduction: Literal["mean_square", "fro_over_n2"] = "mean_square",
        embedded: Literal["both", "student", "frozen_teacher"] = "both",
    ):
        super().__init__()
        if embed is None and embedded != "both":
            raise ValueError(f"`embedded: {embedded}` needs a width: set `embed`")
        self.kernel = kernel
        self.gamma = gamma
        self.order = order
        self.l2 = l2
        self.embed = embed
        self.reduction = reduction
        self.embedded = embedded
        self.student_embed: nn.Module = nn.Identity()
        self.teacher_embed: nn.Module = nn.Identity()

    @property
    def variant(self) -> str:
        return self.kernel if self.l2 or self.kernel == "lag1" else f"{self.kernel}, not normalised"

    @property
    def laws(self) -> frozenset[str]:
        if self.kernel == "lag1":
            return frozenset()
        if self.embed is not None:
            return frozenset({"permutation"})
        unit = {"scale", "sample_scale"} if self.l2 else set()
        moved = {"translation"} if self.kernel == "rbf" and not self.l2 else set()
        return frozenset({"permutation", "rotation", *unit, *moved})

    def refuses(self, pair: Pair) -> str | None:
        if self.kernel != "lag1" or (self.embed is not None and self.embedded != "student"):
            return None
        widths = [taps.pooled.shape[1] for taps in (pair.student, pair.teacher) if taps.pooled is not None]
        if self.embed is None and widths[0] != widths[1]:
            return f"lag1 subtracts features, of widths {widths[0]} and {widths[1]}: set `embed` to map both to one width"
        if self.embed is not None and self.embed != widths[1]:
            return f"lag1 subtracts features, and only the student's are mapped: set `embed` to the teacher's width, {widths[1]}"
        return None

    def bind(self, pair: Pair) -> None:
        if self.embed is None:
            return
        assert pair.student.pooled is not None and pair.teacher.pooled is not None
        self.student_embed = nn.Linear(pair.student.pooled.shape[1], self.embed)
        if self.embedded != "student":
            self.teacher_embed = nn.Linear(pair.teacher.pooled.shape[1], self.embed)
            self.teacher_embed.requires_grad_(self.embedded == "both")

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        x, y = self.student_embed(student.pooled), self.teacher_embed(teacher.pooled)
        if self.kernel == "lag1":
            return _neighbours(*(functional.normalize(z, dim=1) if self.l2 else z for z in (x, y)))
        dtype = x.dtype
        if not self.l2:
            x, y = x.double(), y.double()
        total = Congruence.apply(x, y, self._kernel, self._slope, self.l2, self.kernel != "rbf")
        if self.reduction == "mean_square":
            return (total / len(x) ** 2).to(dtype)
        equal = total == 0  # there, the root has no gradient
        return (total.masked_fill(equal, 1.0).sqrt().masked_fill(equal, 0.0) / len(x) ** 2).to(dtype)

    def _kernel(self, inner: Tensor) -> Tensor:
        """The entries of the kernel matrix, less a constant."""
        if self.kernel == "bilinear":
            return inner.clone()
        if self.kernel == "rbf":
            return (2 * self.gamma * inner).expm1_()
        *lower, highest = self._coefficients()
        total = highest * inner
        for coefficient in reversed(lower):
            total.add_(coefficient).mul_(inner)
        return total

    def _slope(self, inner: Tensor) -> Tensor:
        """The derivative of `_kernel`."""
        if self.kernel == "bilinear":
            return torch.ones_like(inner)
        if self.kernel == "rbf":
            return (2 * self.gamma * inner).exp_().mul_(2 * self.gamma)
        *lower, highest = (p * coefficient for p, coefficient in enumerate(self._coefficients(), 1))
        total = torch.full_like(inner, highest)
        for coefficient in reversed(lower):
            total.mul_(inner).add_(coefficient)
        return total

    def _coefficients(self) -> list[float]:
        """Those of the powers 1 to `order` of the products; with `l2` of the products less 1."""
        by_power = [exp(-2 * self.gamma) * (2 * self.gamma) ** p / factorial(p) for p in range(self.order + 1)]
        if self.l2:
            by_power = [sum(by_power[p] * comb(p, k) for p in range(k, self.order + 1)) for k in range(self.order + 1)]
        return by_power[1:] or [0.0]


def _neighbours(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    if len(x) == 1:
        return nothing(x) + nothing(y)
    delta = (x - y).abs()
    return (delta[:-1] * delta[1:]).sum(1).mean()
