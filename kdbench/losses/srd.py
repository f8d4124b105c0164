from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import centred, nothing, unit_rows
from kdbench.losses._soft import divergence

LEAST = 1e-30


class SRD(Loss):
    """A simple recipe: the student's features, mapped linearly and normalised over the batch, should equal the teacher's so normalised.

    form="power":       feature = 2 log( sum over samples and channels of (B(W x_i + b) - B(y_i))^4 ), and with the weight `kl`,
                        logits = 1/n sum_i KL( softmax(z_t,i) || softmax(z_s,i) ), in parts of these names;
    form="correlation": log( sum over channels c of (1 - r_c)^4 + 1e-5 ), r_c the correlation over the batch of channel c of W x + b
                        and of y (another loss of the same repository).
    B subtracts each channel's mean over the batch and divides by the root of its variance + 1e-4. W and b are learned.

    Shapes: x n x d_s and y n x d_t: with `power` the averages over the positions of the last map, with `correlation` `pooled`. Logits z
    n x classes.

    Source: Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024;
        github.com/roymiles/Simple-Recipe-Distillation, imagenet (power) and deit/models.py (correlation).
    Defaults: `power` with weight 1, as in the ImageNet code; github.com/yoshitomo-matsubara/torchdistill, SRDLoss, computes the same.
    Departs: equal features would give log 0: the sum is at least 1e-30, and below that it has no gradient. The released code computes B by
        batch norms in training mode, of the teacher, too; here B keeps no running statistics, which nothing reads. The DeiT class
        cannot be constructed as released; its batch norm has an epsilon of 0, where here a constant channel has r = 0 and no gradient.
        A batch of one image has a feature part of 0.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "official": Preset("github.com/roymiles/Simple-Recipe-Distillation, imagenet: CE 1, the loss 1", weight=1.0),
        "deit": Preset(
            "github.com/roymiles/Simple-Recipe-Distillation, deit/models.py: no weight is known here",
            weight=None,
            options={"form": "correlation"},
        ),
    }

    def __init__(self, *, form: Literal["power", "correlation"] = "power", kl: float = 1.0):
        super().__init__()
        if form == "correlation" and kl != 1.0:
            raise ValueError("`kl` has no effect with the form 'correlation': add a term `kd` to the objective")
        self.form = form
        self.kl = kl

    @property
    def variant(self) -> str:
        return self.form if self.kl else f"{self.form}, features alone"

    @property
    def _with_logits(self) -> bool:
        return self.form == "power" and self.kl != 0

    @property
    def needs(self) -> frozenset[str]:
        features = "last" if self.form == "power" else "pooled"
        return frozenset({features, *(["logits"] if self._with_logits else [])})

    @property
    def laws(self) -> frozenset[str]:
        moved = set() if self._with_logits else {"translation"}
        return frozenset({"permutation", *moved, *({"scale"} if self.form == "correlation" else set())})

    def bind(self, pair: Pair) -> None:
        widths = [self._features(taps).shape[1] for taps in (pair.student, pair.teacher)]
        self.embed = nn.Linear(*widths)

    def _features(self, taps: Taps) -> Float[Tensor, "n _"]:
        found = taps.last.mean((2, 3)) if self.form == "power" and taps.last is not None else taps.pooled
        assert found is not None
        return found

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        x, y = self.embed(self._features(student)), self._features(teacher)
        parts = {"feature": _correlation(x, y) if self.form == "correlation" else _power(x, y)}
        if self._with_logits:
            assert student.logits is not None and teacher.logits is not None
            parts["logits"] = self.kl * divergence(student.logits, teacher.logits, 1.0)
        return parts


def _power(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    if len(x) == 1:
        return nothing(x)
    difference = _standardised(x) - _standardised(y)
    return 2 * difference.pow(4).sum().clamp_min(LEAST).log()


def _standardised(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    x = centred(x)
    return x * (x.square().mean(0) + 1e-4).rsqrt()


def _correlation(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    if len(x) == 1:
        return nothing(x)
    correlations = (unit_rows(centred(x).T) * unit_rows(centred(y).T)).sum(1)
    return ((1 - correlations).pow(4).sum() + 1e-5).log()
