from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import gram
from kdbench.losses._projection import BatchNorm


class ICKD(Loss):
    """Inter-channel correlation: the similarities between the channels of the student's last map should equal the teacher's.

    1/(n c_t) sum_i || G_t,i - G_s,i ||^2 (Frobenius), where G_i = F_i F_i^T with each row divided by its norm.
    With `embed`, F_s is first BN(conv 1x1 (F_s)), without bias, with the teacher's channels; without it both need the same channels.
    reduction="n_squared" divides once more by n.

    Shapes: F_i is c x hw, an image's last map (n x c x h x w) flattened; both models may differ in h and w. G is n x c_t x c_t.

    Source: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021.
    Defaults: embedded, weight 2.5, as in github.com/ADLab-AutoDrive/ICKD (Cifar100; its README says 2.5, its script 4).
    Departs: the module that the released code calls l2norm is a batch norm. The ImageNet code of the same repository has no embedding and
        divides by n^2 c; the preset `torchdistill` has that form. The released code also makes an embedding for the
        teacher, which it never uses. A channel that is zero in an image gets no gradient; there, one of up to 1e12.
    """

    version = 2
    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "official": Preset("github.com/ADLab-AutoDrive/ICKD, Cifar100/README.md: 2.5", weight=2.5),
        "official_kd": Preset(
            "github.com/ADLab-AutoDrive/ICKD, Cifar100/README.md: 2.5, with KD of weight 1", weight=2.5, terms=(("kd", 1.0, {}),)
        ),
        "official_script": Preset("github.com/ADLab-AutoDrive/ICKD, Cifar100, script: 4", weight=4.0),
        "torchdistill": Preset(
            "github.com/yoshitomo-matsubara/torchdistill, losses/mid_level.py ChSimLoss and its ImageNet sample: 500",
            weight=500.0,
            options={"embed": False, "reduction": "n_squared"},
        ),
    }

    needs = frozenset({"last"})

    def __init__(self, *, embed: bool = True, reduction: Literal["n", "n_squared"] = "n"):
        super().__init__()
        self.embed = embed
        self.reduction = reduction
        self.student_embed: nn.Module = nn.Identity()

    @property
    def variant(self) -> str:
        return f"{'embedded' if self.embed else 'not embedded'}{', over n squared' if self.reduction == 'n_squared' else ''}"

    @property
    def couples(self) -> Literal["sample", "batch"]:  # type: ignore[override]
        return "batch" if self.embed or self.reduction == "n_squared" else "sample"

    @property
    def laws(self) -> frozenset[str]:
        # Batch norm takes the mean of the 1x1 convolution away.
        return frozenset({"permutation", *({"translation"} if self.embed else {"scale", "sample_scale"})})

    def refuses(self, pair: Pair) -> str | None:
        widths = [taps.last.shape[1] for taps in (pair.student, pair.teacher) if taps.last is not None]
        if not self.embed and widths[0] != widths[1]:
            return f"without `embed` it needs equal channels: the student's last map has {widths[0]}, the teacher's {widths[1]}"
        return None

    def bind(self, pair: Pair) -> None:
        if self.embed:
            assert pair.student.last is not None and pair.teacher.last is not None
            into, out = pair.student.last.shape[1], pair.teacher.last.shape[1]
            self.student_embed = nn.Sequential(nn.Conv2d(into, out, 1, bias=False), BatchNorm(out))

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert teacher.last is not None
        n, channels = teacher.last.shape[:2]
        difference = _correlation(self.student_embed(student.last)) - _correlation(teacher.last)
        return difference.square().sum() / (n * channels * (n if self.reduction == "n_squared" else 1))


def _correlation(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c c"]:
    channels = x.flatten(2)
    products = gram(channels)
    norm = torch.linalg.vector_norm(products, dim=2, keepdim=True)
    dead = norm <= torch.finfo(x.dtype).eps * norm.detach().amax(1, keepdim=True)
    return (products / norm.masked_fill(dead, 1.0)).masked_fill(dead, 0.0)
