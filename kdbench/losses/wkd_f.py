from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import fields
from kdbench.losses._projection import BatchNorm


class WKDF(Loss):
    """Wasserstein distance of features: in each field of a grid over the last map, the mean and the standard deviation of each channel
    should equal the teacher's.

    ratio * D(mu) + D(sigma), with D(v) = the mean over images and fields of the sum over channels of (v(P(F_s)) - v(F_t))^2, which is
    the squared 2-Wasserstein distance of normal distributions with diagonal covariances. mu and sigma are the mean and
    sqrt(variance + 1e-5), the variance with (positions - 1). The grid has grid x grid fields, those of adaptive pooling, which overlap
    where grid does not divide the size of the map. P is a 1x1 convolution, batch norm and ReLU, or with `hidden` a 1x1 convolution to so
    many channels, a 3x3 and a 1x1 one, batch norm and ReLU. Convolutions have a bias.

    Shapes: last maps F, n x c x h x w; both models may differ in c, h and w. Each field must have at least 2 positions.

    Source: Lv, Yang and Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024,
        github.com/JiamingLv/WKD, distillers/WKD.py.
    Defaults: grid 1, ratio 4, weight 0.08 and no `hidden`, as in that code for CIFAR-100, resnet32x4 to resnet8x4.
    Departs: a grid whose fields have one position (4 on a map of 4 x 4) is refused; the code gives NaN. The last map is compared; the
        ImageNet configurations of the code may name another stage. A batch with one value for each channel has no batch statistics:
        its norm gives the bias. Variances are computed in float64.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar": Preset(
            "github.com/JiamingLv/WKD, CIFAR-100, resnet32x4 to resnet8x4: 0.08, ratio 4, grid 1, cosine decay from epoch 150 of 240",
            weight=0.08,
            decay=(150.0, 240.0),
            epochs=240,
        ),
        "cifar_shufflenet": Preset(
            "github.com/JiamingLv/WKD, CIFAR-100, wrn_40_2 to ShuffleV1: 0.3, ratio 3, grid 4, cosine decay from epoch 150 of 240",
            weight=0.3,
            options={"grid": 4, "ratio": 3.0},
            decay=(150.0, 240.0),
            epochs=240,
        ),
        "imagenet_r18": Preset(
            "github.com/JiamingLv/WKD, ImageNet, R34 to R18: 0.02, ratio 2, grid 4, 256 hidden channels, decay from epoch 0 of 100",
            weight=0.02,
            options={"grid": 4, "ratio": 2.0, "hidden": 256},
            decay=(0.0, 100.0),
            epochs=100,
        ),
        "imagenet_mv1": Preset(
            "github.com/JiamingLv/WKD, ImageNet, R50 to MV1: 0.005, ratio 2, grid 4, 256 hidden channels, decay from epoch 30 of 100",
            weight=0.005,
            options={"grid": 4, "ratio": 2.0, "hidden": 256},
            decay=(30.0, 100.0),
            epochs=100,
        ),
    }

    needs = frozenset({"last"})

    def __init__(self, *, grid: int = 1, ratio: float = 4.0, hidden: int | None = None):
        super().__init__()
        if grid < 1:
            raise ValueError(f"grid must be at least 1, not {grid}")
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {hidden}")
        self.grid = grid
        self.ratio = ratio
        self.hidden = hidden

    @property
    def laws(self) -> frozenset[str]:
        # A vector added to every position disappears in the batch norm, but not where a 3x3 convolution sees the border.
        return frozenset({"permutation", *({"translation"} if self.hidden is None else set())})

    def refuses(self, pair: Pair) -> str | None:
        for whose, side in (("student", pair.student), ("teacher", pair.teacher)):
            assert side.last is not None
            height, breadth = side.last.shape[2:]
            if self._smallest(height) * self._smallest(breadth) < 2:
                return f"a {self.grid} x {self.grid} grid over the {whose}'s last map, {height} x {breadth}, has fields of one position"
        return None

    def bind(self, pair: Pair) -> None:
        assert pair.student.last is not None and pair.teacher.last is not None
        own, other, inner = pair.student.last.shape[1], pair.teacher.last.shape[1], self.hidden
        if inner is None:
            layers = [nn.Conv2d(own, other, 1)]
        else:
            layers = [nn.Conv2d(own, inner, 1), nn.Conv2d(inner, inner, 3, padding=1), nn.Conv2d(inner, other, 1)]
        self.projector = nn.Sequential(*layers, BatchNorm(other), nn.ReLU())

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        x, y = self._moments(self.projector(student.last)), self._moments(teacher.last)
        mean, deviation = ((a - b).square().sum(1).mean().to(student.last.dtype) for a, b in zip(x, y, strict=True))
        return {"mean": self.ratio * mean, "deviation": deviation}

    def _moments(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c _ _"], Float[Tensor, "n c _ _"]]:
        """Means and standard deviations of the fields."""
        x = x.double()
        down, across = (fields(size, self.grid, x) for size in x.shape[2:])
        about = x.mean((2, 3), keepdim=True)
        x = x - about
        mean = down @ x @ across.T
        variance = (down @ x.square() @ across.T - mean.square()).clamp_min(0)
        # Each row of a matrix has 1/k in k places.
        positions = 1 / (down.amax(1)[:, None] * across.amax(1))
        return mean + about, (variance * positions / (positions - 1) + 1e-5).sqrt()

    def _smallest(self, size: int) -> int:
        """How many positions the smallest field has along a side."""
        return min(-(-(field + 1) * size // self.grid) - field * size // self.grid for field in range(self.grid))
