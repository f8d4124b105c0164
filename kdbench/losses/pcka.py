from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._stagewise import unmatched


class PCKA(Loss):
    """Patch-wise centred kernel alignment: the patches of the student's map should be as similar to each other as those of the teacher's.

    sum over the tapped maps of intra * (1 - mean_g C(X_s, X_t)) + inter * (1 - mean_g C(X_s^T, X_t^T)), where C(X, Y) is the cosine of
    the Gram matrices X X^T and Y Y^T, and with `centred` of those of X and Y less the means of their columns (CKA). A map, n x c x h x w,
    is resized (bilinear) to the next multiples of `patch` and cut into patches. Each row of X is one patch; g are the groups:
    channel: each channel, with n * patch^2 columns;  image: each image, with c * patch^2;  offset: each place within a patch, with n * c.
    A group whose (centred) values are constant has C = 0 and gradient 0. A part of weight 0 is not computed.

    Shapes: both models need the same channels and the same number of patches, at least 2, and 3 if centred (else C is 1 for all maps).

    Source: Zhou et al., "Rethinking Centered Kernel Alignment in Knowledge Distillation", IJCAI 2024; github.com/Klayand/PCKA,
        mmrazor/models/losses/cka_loss.py.
    Defaults: patches of 16, channels, not centred, intra 10 and no inter, as in the configurations of that code for RetinaNet, FCOS and
        RepPoints, on maps of a feature pyramid. For classifiers no weight is published. The preset `centred` is defined by kdbench.
    Departs: the code gives -C, with the same gradient. It multiplies inter by the weight of intra, which changes nothing in its
        configurations, where both are 10. It fails where a map has a single patch. Its division of rows by their norms is left out, as in
        its configurations for detection. inter is computed from X_s X_t^T, with the same value. The sums are computed in float64.
    """

    compares = "relations"
    presets: ClassVar[Mapping[str, Preset]] = {
        "released": Preset("github.com/Klayand/PCKA, configurations of RetinaNet, FCOS and RepPoints: intra 10", weight=1.0),
        "faster_rcnn": Preset(
            "github.com/Klayand/PCKA, configurations of Faster R-CNN and GFL: intra 10, inter 10", weight=1.0, options={"inter": 10.0}
        ),
        "centred": Preset(
            "defined by kdbench: CKA with centring, patches of 4, for which no weight was published",
            weight=None,
            options={"patch": 4, "intra": 1.0, "centred": True},
        ),
    }

    def __init__(
        self,
        *,
        patch: int = 16,
        intra: float = 10.0,
        inter: float = 0.0,
        centred: bool = False,
        grouping: Literal["channel", "image", "offset"] = "channel",
        tap: Literal["last", "stages"] = "last",
    ):
        super().__init__()
        if patch < 1:
            raise ValueError(f"patch must be at least 1 position high and broad, not {patch}")
        if not (intra or inter):
            raise ValueError("of intra and inter at least one has a weight")
        self.patch = patch
        self.intra = intra
        self.inter = inter
        self.centred = centred
        self.grouping = grouping
        self.tap = tap

    @property
    def variant(self) -> str:
        grouping = [] if self.grouping == "channel" else [f"by {self.grouping}"]
        return ", ".join(["centred, ours" if self.centred else "released", *grouping, *(["with inter"] if self.inter else [])])

    @property
    def couples(self) -> Literal["sample", "batch"]:  # type: ignore[override]
        return "sample" if self.grouping == "image" else "batch"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.tap})

    @property
    def laws(self) -> frozenset[str]:
        own = {"sample_scale"} if self.grouping == "image" else set()
        moved = {"translation"} if self.centred and (self.grouping == "channel" or not self.inter) else set()
        turned = {"rotation"} if self.grouping != "channel" and not self.inter else set()
        return frozenset({"permutation", "scale", *own, *moved, *turned})

    def refuses(self, pair: Pair) -> str | None:
        if (why := unmatched(pair, self.tap)) is not None:
            return why
        for place, (x, y) in enumerate(zip(self._maps(pair.student), self._maps(pair.teacher), strict=True)):
            where = "last map" if self.tap == "last" else f"stage {place}"
            if x.shape[1] != y.shape[1]:
                return f"it compares channel by channel: the {where} of the student has {x.shape[1]}, that of the teacher {y.shape[1]}"
            counts = [self._patches(z) for z in (x, y)]
            if counts[0] != counts[1]:
                return f"the {where} of the student has {counts[0]} patches of {self.patch}, that of the teacher {counts[1]}"
            if counts[0] < (fewest := 3 if self.centred else 2):
                size = "x".join(map(str, x.shape[2:]))
                return f"the {where}, {size}, has {counts[0]} patches of {self.patch}, and it needs {fewest}: set a smaller `patch`"
        return None

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        pairs = [(self._rows(x), self._rows(y)) for x, y in zip(self._maps(student), self._maps(teacher), strict=True)]
        found = {}
        for part, weight, axis in (("intra", self.intra, 1), ("inter", self.inter, 2)):
            if weight:
                alike = torch.stack([self._alike(x, y, axis).mean() for x, y in pairs])
                found[part] = (weight * (1 - alike).sum()).to(self._maps(student)[0].dtype)
        return found

    def _maps(self, side: Taps) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        value = getattr(side, self.tap)
        return value if isinstance(value, tuple) else (value,)

    def _patches(self, x: Float[Tensor, "n c h w"]) -> int:
        return -(-x.shape[2] // self.patch) * -(-x.shape[3] // self.patch)

    def _rows(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "groups patches columns"]:
        x = _resized(_resized(x.double(), self.patch).mT, self.patch).mT
        cut = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # n c u h v w
        order = {"channel": (1, 2, 4, 0, 3, 5), "image": (0, 2, 4, 1, 3, 5), "offset": (3, 5, 2, 4, 0, 1)}[self.grouping]
        groups = 2 if self.grouping == "offset" else 1
        return cut.permute(order).flatten(groups + 2).flatten(groups, groups + 1).flatten(0, groups - 1)

    def _alike(self, x: Float[Tensor, "groups patches _"], y: Float[Tensor, "groups patches _"], axis: int) -> Float[Tensor, " groups"]:
        """The cosines of the Gram matrices of rows (axis 1) or of columns (axis 2).

        <X'X, Y'Y> = |XY'|^2 and |X'X| = |XX'|, so that no matrix has more rows than there are patches.
        """
        floors = [_floor(z) for z in (x, y)]
        x, y = _unit_scale(x), _unit_scale(y)
        if self.centred:
            x, y = (z - z.mean(axis, keepdim=True) for z in (x, y))
        own = [_square(z @ z.mT) for z in (x, y)]
        dead = torch.stack([square <= floor**2 for square, floor in zip(own, floors, strict=True)]).any(0)
        product = (x @ x.mT * (y @ y.mT)).sum((1, 2)) if axis == 1 else _square(x @ y.mT)
        norms = [square.masked_fill(dead, 1.0).sqrt() for square in own]
        return (product / norms[0] / norms[1]).masked_fill(dead, 0.0)


def _resized(x: Float[Tensor, "n c h w"], patch: int) -> Float[Tensor, "n c _ w"]:
    """The height made a multiple of `patch`, linearly. As a product of matrices, whose gradient is deterministic on a GPU."""
    height = x.shape[2]
    wanted = -(-height // patch) * patch
    if wanted == height:
        return x
    unit = torch.eye(height, dtype=x.dtype, device=x.device)
    weights = functional.interpolate(unit[None], size=wanted, mode="linear", align_corners=False)[0].T
    return weights @ x


def _unit_scale(x: Float[Tensor, "groups rows columns"]) -> Float[Tensor, "groups rows columns"]:
    """Each group divided by its largest entry, held constant: the cosines do not depend on it."""
    largest = x.detach().abs().amax((1, 2), keepdim=True)
    return x / torch.where(largest == 0, torch.ones_like(largest), largest)


def _floor(x: Float[Tensor, "groups rows columns"]) -> float:
    """What rounding leaves of the Gram matrix of constant values whose largest entry is 1."""
    return x[0].numel() * (16 * torch.finfo(x.dtype).eps) ** 2


def _square(x: Float[Tensor, "groups _ _"]) -> Float[Tensor, " groups"]:
    return x.square().sum((1, 2))
