from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import gram, nothing
from kdbench.losses._pyramid import Pairs, check_levels, compared, unpaired


class PCKA(Loss):
    """Patch-wise centred kernel alignment: the patches of the student's map should be as similar to each other as those of the teacher's.

    sum over the tapped maps of intra * (1 - mean_g C(X_s, X_t)) + inter * (1 - mean_g C(X_s^T, X_t^T)), where C(X, Y) is the cosine of
    the Gram matrices X X^T and Y Y^T, and with `centred` of those of X and Y less the means of their columns (CKA). A map, n x c x h x w,
    is resized (bilinear) to the next multiples of `patch` and cut into patches. Each row of X is one patch; g are the groups:
    channel: each channel, with n * patch^2 columns;  image: each image, with c * patch^2;  offset: each place within a patch, with n * c.
    A group whose (centred) values are constant has C = 0 and gradient 0. A part of weight 0 is not computed.
    With `gram_norm: row_half` row i of each Gram matrix of patches is first divided by the norm of patch i; a patch of zeros is left out.

    Shapes: both models need the same channels and the same number of patches, at least 2, and 3 if centred (else C is 1 for all maps). Of
        `tap: levels` a level with fewer is skipped: its parts are 0 with gradient 0, and the buffer `skipped` counts it, once a batch. The
        parts of each level are reported apart; `levels` are places among the levels of equal stride, counted from 0 at the finest.

    Source: Zhou et al., "Rethinking Centered Kernel Alignment in Knowledge Distillation", IJCAI 2024; github.com/Klayand/PCKA,
        mmrazor/models/losses/cka_loss.py.
    Defaults: patches of 16, channels, not centred, intra 10 and no inter, as in the configurations of that code for RetinaNet, FCOS and
        RepPoints, which have it on the four finest levels of a feature pyramid (`fpn`). For classifiers no weight is published. The presets
        `centred` and `fpn_centred` are defined by kdbench.
    Departs: the code gives -C, with the same gradient. It multiplies inter by the weight of intra, which changes nothing in its
        configurations, where both are 10. It fails where a map has a single patch. inter is computed from X_s X_t^T, with the same value.
        Its division of rows by their norms (`gram_norm`), which its configurations for detection do not use, is offered for intra alone.
        Levels are paired by stride, in the code by place.
    """

    version = 2
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
        "fpn": Preset(
            "github.com/Klayand/PCKA, configurations of RetinaNet, FCOS and RepPoints: intra 10 on levels 0 to 3",
            weight=1.0,
            options={"tap": "levels", "levels": [0, 1, 2, 3]},
        ),
        "fpn_faster_rcnn": Preset(
            "github.com/Klayand/PCKA, configurations of Faster R-CNN, Mask R-CNN and GFL: intra 10, inter 10 on levels 0 to 3",
            weight=1.0,
            options={"tap": "levels", "levels": [0, 1, 2, 3], "inter": 10.0},
        ),
        "fpn_centred": Preset(
            "defined by kdbench: CKA with centring on all levels, patches of 4, for which no weight was published",
            weight=None,
            options={"tap": "levels", "patch": 4, "intra": 1.0, "centred": True},
        ),
    }
    added: ClassVar[Mapping[str, Any]] = {"levels": None, "gram_norm": "none"}

    skipped: Tensor

    def __init__(
        self,
        *,
        patch: int = 16,
        intra: float = 10.0,
        inter: float = 0.0,
        centred: bool = False,
        grouping: Literal["channel", "image", "offset"] = "channel",
        tap: Literal["last", "stages", "levels"] = "last",
        levels: list[int] | None = None,
        gram_norm: Literal["none", "row_half"] = "none",
    ):
        super().__init__()
        check_levels(levels)
        if patch < 1:
            raise ValueError(f"patch must be at least 1 position high and broad, not {patch}")
        if not (intra or inter):
            raise ValueError("of intra and inter at least one has a weight")
        if gram_norm != "none" and (inter or centred):
            raise ValueError("gram_norm is for intra without centring: set inter to 0 and centred to false")
        self.patch = patch
        self.intra = intra
        self.inter = inter
        self.centred = centred
        self.grouping = grouping
        self.tap = tap
        self.levels = levels
        self.gram_norm = gram_norm
        if tap == "levels":
            self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))

    @property
    def variant(self) -> str:
        more = [] if self.grouping == "channel" else [f"by {self.grouping}"]
        more += (["with inter"] if self.inter else []) + (["rows divided"] if self.gram_norm != "none" else [])
        return ", ".join(["centred, ours" if self.centred else "released", *more])

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
        if (why := unpaired(pair, self.tap, self.levels, any_size=True)) is not None:
            return why
        pairs, few = self._pairs(pair.student, pair.teacher), []
        for name, (x, y) in pairs.items():
            counts = [self._patches(z) for z in (x, y)]
            if counts[0] != counts[1]:
                return f"{name} of the student has {counts[0]} patches of {self.patch}, that of the teacher {counts[1]}"
            if counts[0] < self._fewest:
                few.append(f"{name}, {'x'.join(map(str, x.shape[2:]))}, has {counts[0]} patches of {self.patch}")
        if len(few) < (len(pairs) if self.tap == "levels" else 1):
            return None
        return f"{'; '.join(few)}, and it needs {self._fewest}: set a smaller `patch`"

    def notes(self, pair: Pair) -> list[str]:
        found = []
        for name, (x, _) in self._pairs(pair.student, pair.teacher).items():
            if (count := self._patches(x)) < self._fewest:
                patches = "1 patch" if count == 1 else f"{count} patches"
                found.append(f"skips level {name} ({patches} of {self.patch}, and it needs {self._fewest}): a smaller `patch` has more")
        return found

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        pairs = self._pairs(student, teacher)
        unlike = {name: self._unlike(x, y) for name, (x, y) in pairs.items()}
        if self.tap != "levels":
            unlike = {"": torch.stack([*unlike.values()]).sum(0)}
        kind = next(iter(pairs.values()))[0].dtype
        weights = {"intra": self.intra, "inter": self.inter}
        return {
            f"{part}_{name}".strip("_"): weight * one
            for name, value in unlike.items()
            for (part, weight), one in zip(weights.items(), value.to(kind), strict=True)
            if weight
        }

    def _pairs(self, student: Taps, teacher: Taps) -> Pairs:
        return compared(student, teacher, self.tap, self.levels)

    @property
    def _fewest(self) -> int:
        return 3 if self.centred else 2

    def _patches(self, x: Float[Tensor, "n c h w"]) -> int:
        return -(-x.shape[2] // self.patch) * -(-x.shape[3] // self.patch)

    def _rows(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "groups patches columns"]:
        x = _resized(x, [-(-size // self.patch) * self.patch for size in x.shape[2:]])
        cut = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # n c u h v w
        order = {"channel": (1, 2, 4, 0, 3, 5), "image": (0, 2, 4, 1, 3, 5), "offset": (3, 5, 2, 4, 0, 1)}[self.grouping]
        groups = 2 if self.grouping == "offset" else 1
        return cut.permute(order).flatten(groups + 2).flatten(groups, groups + 1).flatten(0, groups - 1)

    def _unlike(self, x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, 2]:
        """1 less the mean cosines of the Gram matrices of rows and of columns; 0 of a level with too few patches."""
        if self.tap == "levels" and self._patches(x) < self._fewest:
            self.skipped += 1
            return nothing(x).expand(2)
        return 1 - self._alike(self._rows(x), self._rows(y))

    def _alike(self, x: Float[Tensor, "groups patches _"], y: Float[Tensor, "groups patches _"]) -> Float[Tensor, 2]:
        """The mean cosines of the Gram matrices of rows and of columns; 0 of a part that is not asked for."""
        if self.gram_norm != "none":
            return functional.pad(_divided_cosines(x, y).mean()[None], (0, 1))
        if not self.centred:
            return _Cosines.apply(x, y, None, bool(self.intra), bool(self.inter)).mean(1)
        parts = [_Cosines.apply(x, y, axis, axis == 1, axis == 2).mean(1) for axis, weight in ((1, self.intra), (2, self.inter)) if weight]
        return torch.stack(parts).sum(0)


def _divided_cosines(x: Float[Tensor, "groups patches _"], y: Float[Tensor, "groups patches _"]) -> Float[Tensor, " groups"]:
    """Of the Gram matrices of rows, with each row divided by the norm of its patch; in float64. 0 where one of them is 0."""
    sides = []
    for z in (x, y):
        k = gram(z.double())
        own = k.diagonal(dim1=1, dim2=2)[:, :, None]
        dead = own <= torch.finfo(z.dtype).eps ** 2 * own.detach().amax(1, keepdim=True)
        k = (k / own.masked_fill(dead, 1.0).sqrt()).masked_fill(dead, 0.0)
        norm = torch.linalg.vector_norm(k, dim=(1, 2), keepdim=True)
        sides.append(k / norm.masked_fill(norm == 0, 1.0))
    return (sides[0] * sides[1]).sum((1, 2))


class _Cosines(torch.autograd.Function):
    """For each group <K, L> / (|K| |L|), and the same of the Gram matrices of columns, which is |N|^2 / (|K| |L|): K = X X', L = Y Y',
    N = X Y', so that no matrix has more rows than there are patches. 0 where X or Y is. Both are less their mean over
    `centred`: 1 (their mean row), 2 or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, centred: int | None, of_rows: bool, of_columns: bool) -> Tensor:
        sides = [_Side(z, centred) for z in (x, y)]
        k, m = (one.products(one) for one in sides)
        squares = [one.square().sum((1, 2), keepdim=True) for one in (k, m)]
        dead = torch.stack([square <= one.floor**2 for square, one in zip(squares, sides, strict=True)]).any(0)
        norm_k, norm_m = (square.masked_fill(dead, 1.0).sqrt() for square in squares)
        k, m = ((one / norm).masked_fill_(dead, 0.0) for one, norm in ((k, norm_k), (m, norm_m)))
        rows = (k * m).sum((1, 2), keepdim=True) if of_rows else torch.zeros_like(norm_k)
        root = (norm_k * norm_m).sqrt()
        cross = (sides[0].products(sides[1]) / root).masked_fill_(dead, 0.0) if of_columns else None
        columns = torch.zeros_like(norm_k) if cross is None else cross.square().sum((1, 2), keepdim=True)
        ctx.wanted = of_rows, of_columns
        ctx.centred, ctx.sides, ctx.found = centred, sides, (k, m, norm_k, root, rows, cross, columns)
        return torch.stack([rows, columns]).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (x, y), (k, m, norm, root, rows, cross, columns) = ctx.sides, ctx.found
        by_row, by_column = (2 * wanted * one[:, None, None] for wanted, one in zip(ctx.wanted, upstream, strict=True))
        found = x.weighted((by_row * m - (by_row * rows + by_column * columns) * k) / norm)
        if cross is not None:
            found += y.weighted(by_column * cross / root)
        found /= x.largest
        return found - found.mean(ctx.centred, keepdim=True) if ctx.centred else found, *[None] * 4


class _Side:
    """The rows of one model, divided by the largest entry of their group, on which nothing depends. They are split into the mean row m
    and the rest V, whose products keep the digits of rows that are nearly equal. What has only patches for rows and columns is in float64.
    """

    def __init__(self, x: Float[Tensor, "groups patches columns"], centred: int | None):
        largest = torch.maximum(x.amax((1, 2), keepdim=True), -x.amin((1, 2), keepdim=True))  # without a copy, as abs() makes one
        self.largest = torch.where(largest == 0, 1.0, largest)
        self.v = x / self.largest
        if centred == 2:
            _less_mean(self.v, 2)
        mean = _less_mean(self.v, 1)
        self.mean = None if centred == 1 else mean
        self.floor = x[0].numel() * (16 * torch.finfo(x.dtype).eps) ** 2
        """What rounding leaves of the Gram matrix of constant values whose largest entry is 1."""

    def products(self, other: _Side) -> Float[Tensor, "groups patches patches"]:
        """Those of each row with each row of another side."""
        found = (self.v @ other.v.mT).double()
        if self.mean is None or other.mean is None:
            return found
        found += (self.v @ other.mean.mT).double() + (other.v @ self.mean.mT).double().mT
        return found.add_((self.mean.double() * other.mean.double()).sum(2, keepdim=True))

    def weighted(self, weights: Float[Tensor, "groups patches patches"]) -> Float[Tensor, "groups patches columns"]:
        """Sums of the rows."""
        if self.mean is None:
            return weights.to(self.v.dtype) @ self.v
        return torch.baddbmm(weights.sum(2, keepdim=True).to(self.v.dtype) * self.mean, weights.to(self.v.dtype), self.v)


def _less_mean(x: Float[Tensor, "groups patches columns"], axis: int) -> Tensor:
    """Take the mean off, in place, and return it. Taking off an entry first makes equal ones exactly zero."""
    first = x.narrow(axis, 0, 1).clone()
    x -= first
    mean = x.mean(axis, keepdim=True)
    x -= mean
    return first + mean


def _resized(x: Float[Tensor, "n c _ _"], size: Sequence[int]) -> Float[Tensor, "n c _ _"]:
    """Linearly in both directions; on a GPU by products of matrices, since the gradient of PyTorch's operation is not deterministic."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if x.device.type == "cpu":
        return functional.interpolate(x, size=list(size), mode="bilinear", align_corners=False)
    down, across = (_lines(before, after, x) for before, after in zip(x.shape[2:], size, strict=True))
    return down @ x @ across.T


def _lines(size: int, wanted: int, like: Tensor) -> Float[Tensor, "wanted size"]:
    unit = torch.eye(size, dtype=like.dtype, device=like.device)
    return functional.interpolate(unit[None], size=wanted, mode="linear", align_corners=False)[0].T
