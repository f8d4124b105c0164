from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._projection import BatchNorm
from kdbench.losses._stagewise import smaller

SLOPE = 0.1
Map = Float[Tensor, "n _ _ _"]


class FT(Loss):
    """Factor transfer: the student's map, translated, should have the factor that a paraphraser makes of the teacher's map.

    factor * mean | g(translator(F_s)) - g(paraphraser(F_t)) | + reconstruction * mean( (decoder(paraphraser(F_t)) - F_t)^2 ),
    a part of weight 0 not computed. Translator and paraphraser are three 3x3 convolutions with biases, each with a leaky ReLU of slope .1,
    to (c, k c_t, k c_t) channels, c those of their input and k the `rate`; the decoder is the paraphraser backwards, with transposed
    convolutions. The larger factor is averaged to the smaller's size. With reconstruction 0 the paraphraser is frozen, else it is trained
    by the reconstruction alone, with distance="l1" by mean | decoder(paraphraser(F_t)) - F_t |. In the first of two stages, that is all.
    form="crd":      g(f) = normalised mean over channels of f^2 (one value a position); the translator has batch norm after each
                     convolution; k c_t is rounded down;
    form="official": g(f) = f, flattened and normalised; no batch norm; k c_t is rounded.

    Shapes: F_s n x c_s x h_s x w_s and F_t n x c_t x h_t x w_t, the last maps. official: they need the same height and breadth.

    Source: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018;
        github.com/Jangho-Kim/Factor-Transfer-pytorch.
    Defaults: k .5 and weight 200, as in github.com/HobbitLong/RepDistiller (models/util.py; distiller_zoo/FT.py). Its g loses the channels.
    Departs: in one stage, a frozen paraphraser has the weights that it is drawn with; `reconstruction` trains it beside the student, which
        no release does. Both releases train the paraphraser first, on the teacher's maps by the reconstruction alone, and then freeze it,
        as the presets with `two_stage` do: the official one by L1 and in 6 epochs (`--epoch 5`, which it counts from 0).
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset(
            "github.com/HobbitLong/RepDistiller, scripts: -b 200, here without the 30 epochs of the paraphraser before", weight=None
        ),
        "crd_two_stage": Preset(
            "github.com/HobbitLong/RepDistiller, scripts and helper/pretrain.py: -b 200, after 30 epochs of the paraphraser at .01",
            weight=200.0,
            two_stages={"epochs": 30, "lr": 0.01, "schedule": "constant", "weight": 1.0},
        ),
        "official": Preset(
            "github.com/Jangho-Kim/Factor-Transfer-pytorch, CIFAR-10: 500, here without the epochs of the paraphraser before",
            weight=None,
            options={"form": "official"},
        ),
        "official_two_stage": Preset(
            "github.com/Jangho-Kim/Factor-Transfer-pytorch, CIFAR-10: 500, after 6 epochs of the paraphraser at .1, by L1",
            weight=500.0,
            options={"form": "official", "distance": "l1"},
            two_stages={"epochs": 6, "lr": 0.1, "schedule": "constant", "weight": 1.0},
        ),
        "joint": Preset(
            "defined by kdbench: the paraphraser is trained beside the student, no weight was published",
            weight=None,
            options={"reconstruction": 1.0},
        ),
    }

    added: ClassVar[Mapping[str, Any]] = {"distance": "mse"}
    first_stage_options: ClassVar[Mapping[str, Any]] = {"factor": 0.0, "reconstruction": 1.0}
    needs = frozenset({"last"})
    laws = frozenset({"permutation"})

    def __init__(
        self,
        *,
        form: Literal["crd", "official"] = "crd",
        rate: float = 0.5,
        factor: float = 1.0,
        reconstruction: float = 0.0,
        distance: Literal["mse", "l1"] = "mse",
    ):
        super().__init__()
        if rate <= 0:
            raise ValueError(f"rate must be positive, not {rate}")
        if not (factor or reconstruction):
            raise ValueError("factor and reconstruction are both 0: at least one must have a weight")
        self.form = form
        self.rate = rate
        self.factor = factor
        self.reconstruction = reconstruction
        self.distance = distance

    @property
    def variant(self) -> str:
        return f"{self.form}{', joint' if self.reconstruction else ''}"

    @property
    def trains_student(self) -> bool:  # type: ignore[override]
        return bool(self.factor)

    @property
    def couples(self) -> Literal["sample", "batch"]:  # type: ignore[override]
        return "batch" if self.form == "crd" else "sample"

    def refuses(self, pair: Pair) -> str | None:
        assert pair.student.last is not None and pair.teacher.last is not None
        channels = pair.teacher.last.shape[1]
        if self._channels(channels) < 1:
            return f"rate {self.rate:g} leaves none of the {channels} channels of the teacher's last map"
        sizes = [tuple(taps.last.shape[2:]) for taps in (pair.student, pair.teacher) if taps.last is not None]
        if self.form == "official" and sizes[0] != sizes[1]:
            return f"the form 'official' needs last maps of equal size: the student's has {sizes[0]}, the teacher's {sizes[1]}"
        return None

    def _channels(self, channels: int) -> int:
        return int(self.rate * channels) if self.form == "crd" else round(self.rate * channels)

    def bind(self, pair: Pair) -> None:
        assert pair.student.last is not None and pair.teacher.last is not None
        own, theirs = pair.student.last.shape[1], pair.teacher.last.shape[1]
        between = self._channels(theirs)
        self.translator = _net(nn.Conv2d, (own, own, between, between), norm=self.form == "crd")
        self.paraphraser = _net(nn.Conv2d, (theirs, theirs, between, between), norm=False)
        if self.reconstruction:
            self.decoder = _net(nn.ConvTranspose2d, (between, between, theirs, theirs), norm=False)
        else:
            self.paraphraser.requires_grad_(False)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        parts, theirs = {}, self.paraphraser(teacher.last)
        if self.factor:
            x, y = smaller(self.translator(student.last), theirs.detach())
            parts["factor"] = self.factor * (self._compared(x) - self._compared(y)).abs().mean()
        if self.reconstruction:
            distance = functional.mse_loss if self.distance == "mse" else functional.l1_loss
            parts["reconstruction"] = self.reconstruction * distance(self.decoder(theirs), teacher.last)
        return parts

    def _compared(self, factor: Map) -> Float[Tensor, "n _"]:
        return functional.normalize((factor.square().mean(1) if self.form == "crd" else factor).flatten(1))


def _net(layer: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: tuple[int, ...], norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into, out in zip(widths, widths[1:], strict=False):
        layers += [layer(into, out, 3, padding=1), BatchNorm(out) if norm else nn.Identity(), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)
