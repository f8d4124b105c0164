from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._pyramid import compared, unpaired
from kdbench.losses._soft import positive

SOURCE = "github.com/hunto/image_classification_sota"
DENSE = {"tau": 1.0, "tap": "dense_logits"}


class DIST(Loss):
    """Distillation from a stronger teacher: predictions should correlate with the teacher's, over classes and over samples.

    tau^2 ( beta (1 - 1/n sum_i r(row i)) + gamma (1 - 1/classes sum_c r(column c)) ): r is Pearson's correlation of a row or column
    of softmax(z_s / tau) with that of softmax(z_t / tau), <a, b> / (|a| |b| + 1e-8) of centred a and b.
    The loss reports its parts: `inter` compares the classes of one sample, `intra` the samples of a batch in one class. A part of
    weight 0 is not computed.
    With `plus` two parts of the last map are added, which torchdistill gives as those of DIST+:
    channel: iota times the mean over samples and positions of r over the channels (`torchdistill`), or of 1 - r (`corrected`);
    spatial: kappa (1 - mean over positions of r over the samples), of the maps summed over channels.

    With `tap: dense_logits`, for detectors, each part is the sum over the levels: the rows are the positions of all images, the columns the
    classes of all anchors of a position, and the sigmoid stands for the softmax.

    Shapes: logits z_s and z_t, n x classes; with `plus` last maps of equal shapes, n x c x h x w. Dense logits n x (anchors classes) x h x
        w, of the levels with equal strides.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536); github.com/hunto/DIST_KD;
        plus: Huang et al., "DIST+: Knowledge Distillation From a Stronger Adaptive Teacher", TPAMI 2025, as in
        github.com/yoshitomo-matsubara/torchdistill, losses/mid_level.py (no release by its authors was found); dense logits:
        github.com/hunto/MasKD, mmrazor/models/losses/dist_kd.py.
    Defaults: beta 1, gamma 1, tau 4 and weight 2, as the authors have for CIFAR-100; tau 1 for ImageNet. On dense logits tau 1
        and weight 1, as they have for RetinaNet.
    Departs: the factor tau^2 is in the authors' code and not in the paper's. As in their code, constant predictions have r = 0 (a batch
        of one image gives tau^2 gamma for `intra`, with gradient 0), and a very large gradient if only the student's are constant. With
        plus: torchdistill adds the channels' correlation where the other parts have 1 - r, so that training makes the channels of the two
        models unlike; `corrected` has the other sign, and is defined by kdbench. There, r has max(|a|, 1e-8) max(|b|, 1e-8) for
        |a| |b| + 1e-8, but for the part `channel`.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar100": Preset(f"{SOURCE}: CIFAR-100, twice (beta 1, gamma 1), tau 4", weight=2.0),
        "imagenet": Preset(f"{SOURCE}: ImageNet, twice (beta 1, gamma 1), tau 1", weight=2.0, options={"tau": 1.0}),
        "plus_torchdistill": Preset(
            "github.com/yoshitomo-matsubara/torchdistill, ImageNet sample: twice (beta 2, gamma 2, iota 1, kappa 1), tau 1",
            weight=2.0,
            options={"beta": 2.0, "gamma": 2.0, "tau": 1.0, "plus": "torchdistill"},
        ),
        "retinanet": Preset(
            "github.com/hunto/MasKD, dist configuration of RetinaNet X101 to R50: beta 1, gamma 1, the sigmoid of the class logits",
            weight=1.0,
            options=DENSE,
        ),
        "retinanet_mimic": Preset(
            "github.com/hunto/MasKD, dist+mimic configuration of RetinaNet X101 to R50: beside it the mean squared error of the levels",
            weight=1.0,
            options=DENSE,
            terms=(("mimic", 1.0, {}),),
        ),
    }
    added: ClassVar[Mapping[str, Any]] = {"plus": "none", "iota": 1.0, "kappa": 1.0, "tap": "logits"}

    laws = frozenset({"permutation"})

    def __init__(
        self,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        tau: float = 4.0,
        plus: Literal["none", "torchdistill", "corrected"] = "none",
        iota: float = 1.0,
        kappa: float = 1.0,
        tap: Literal["logits", "dense_logits"] = "logits",
    ):
        super().__init__()
        positive(tau=tau)
        if not (beta or gamma):
            raise ValueError("beta and gamma are both 0: at least one must have a weight")
        if tap != "logits" and plus != "none":
            raise ValueError("`plus` is for the logits of an image, and not for dense_logits")
        self.beta = beta
        self.gamma = gamma
        self.tau = tau
        self.plus = plus
        self.iota = iota
        self.kappa = kappa
        self.tap = tap
        self.couples: Literal["sample", "batch"] = "batch" if gamma or (plus != "none" and kappa) else "sample"

    @property
    def variant(self) -> str | None:
        return None if self.plus == "none" else f"plus, {self.plus}"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap} if self.plus == "none" else {"logits", "last"})

    def refuses(self, pair: Pair) -> str | None:
        if self.plus == "none":
            return None if self.tap == "logits" else unpaired(pair, self.tap)
        assert pair.student.last is not None and pair.teacher.last is not None
        sizes = ["x".join(map(str, side.last.shape[1:])) for side in (pair.student, pair.teacher) if side.last is not None]
        return (
            None if sizes[0] == sizes[1] else f"`plus` needs last maps of equal size: the student's is {sizes[0]}, the teacher's {sizes[1]}"
        )

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        parts = {}
        pairs = self._predictions(student, teacher)
        if self.beta:
            parts["inter"] = self.tau**2 * self.beta * torch.stack([self._unlike(p, q) for p, q in pairs]).sum()
        if self.gamma:
            parts["intra"] = self.tau**2 * self.gamma * torch.stack([self._unlike(p.T, q.T) for p, q in pairs]).sum()
        if self.plus == "none":
            return parts
        assert student.last is not None and teacher.last is not None
        if self.iota:
            alike = _correlations(student.last, teacher.last).mean()
            parts["channel"] = self.iota * (alike if self.plus == "torchdistill" else 1 - alike)
        if self.kappa:
            parts["spatial"] = self.kappa * self._unlike(*(one.sum(1).flatten(1).T for one in (student.last, teacher.last)))
        return parts

    def _predictions(self, student: Taps, teacher: Taps) -> list[tuple[Float[Tensor, "rows m"], Float[Tensor, "rows m"]]]:
        """Student's and teacher's, of each level."""
        if self.tap == "logits":
            assert student.logits is not None and teacher.logits is not None
            p, q = (functional.softmax(logits / self.tau, 1) for logits in (student.logits, teacher.logits))
            return [(p, q)]
        rows = [[one.movedim(1, 3).flatten(0, 2) for one in pair] for pair in compared(student, teacher, self.tap).values()]
        return [(torch.sigmoid(x / self.tau), torch.sigmoid(y / self.tau)) for x, y in rows]

    def _unlike(self, p: Float[Tensor, "rows m"], q: Float[Tensor, "rows m"]) -> Float[Tensor, ""]:
        """1 - the mean correlation of rows."""
        if self.plus == "none":
            return 1 - _correlations(p, q).mean()
        return 1 - functional.cosine_similarity(*(one - one.mean(1, keepdim=True) for one in (p, q)), eps=1e-8).mean()


def _correlations(p: Float[Tensor, "n c *place"], q: Float[Tensor, "n c *place"]) -> Float[Tensor, " n *place"]:
    """Over the second dimension."""
    p, q = (one - one.mean(1, keepdim=True) for one in (p, q))
    norms = [torch.linalg.vector_norm(one, dim=1) for one in (p, q)]
    return (p * q).sum(1) / (norms[0] * norms[1] + 1e-8)
