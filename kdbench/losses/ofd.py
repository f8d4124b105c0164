from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdbench.errors import RefusedError
from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._gram import averaged
from kdbench.losses._norms import margin, norms_before
from kdbench.losses._projection import BatchNorm
from kdbench.losses._stagewise import check_place, unmatched


class OFD(Loss):
    """Overhaul of feature distillation: the student's maps before their ReLU should equal the teacher's, as far as that matters after it.

    sum over the stages l = 1..L from `first_stage` on of 2^(l-L) 1/n sum over elements of [ s > t or t > 0 ] (s - t)^2, where
    s = BN(conv 1x1 (F_s)), without bias, t = max(F_t, m), and m the expected negative value of each channel: of a Gaussian with the
    deviation |weight| and the mean bias of the teacher's batch norm before the map; -3 |weight| where it is negative with a probability
    of at most .001.
    form="zoo": m is the sum of the batch's negative values over their number + 1e-6, and the loss the mean over the elements of a map and
    over the maps.

    Shapes: F_s n x c_s x h_s x w_s and F_t n x c_t x h_t x w_t, `preact`; the teacher's larger map is averaged to the student's size.
    Both models must have the same number of stages; stage 0 is in most nets the stem.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019; github.com/clovaai/overhaul-distillation.
    Defaults: as in CIFAR-100/distiller.py there, where the sum is divided by n and by 1000 (the weight here).
    Departs: github.com/megvii-research/mdistiller writes the same function by three cases, and averages the teacher's larger map; with
        equal maps, as there, both releases agree. The preset `zoo` is another loss of this name, of one map; whether its script adds or
        averages the maps was not checked. Margins are computed in float64 (the release: float32), and that of a weight of zero is the
        limit. A student with larger maps is refused, as is a teacher whose maps do not come from a batch norm or from a sum with one (of a
        block with a shortcut, the norm of its own branch counts, as in the release).
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "official": Preset("github.com/clovaai/overhaul-distillation, CIFAR-100: / n / 1000; .001 in mdistiller", weight=0.001),
        "official_imagenet": Preset(
            "github.com/clovaai/overhaul-distillation, ImageNet: / n / 10000; .0001 in mdistiller (ResNet-50 to MobileNetV1)", weight=0.0001
        ),
        "zoo": Preset(
            "github.com/AberHu/Knowledge-Distillation-Zoo, kd_losses/ofd.py: no weight is known here", weight=None, options={"form": "zoo"}
        ),
    }

    laws = frozenset({"permutation", "translation"})

    def __init__(self, *, form: Literal["released", "zoo"] = "released", first_stage: int = 1):
        super().__init__()
        check_place(first_stage)
        self.form = form
        self.first_stage = first_stage

    @property
    def variant(self) -> str:
        return self.form

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"preact", *({"teacher_model"} if self.form == "released" else set())})

    def refuses(self, pair: Pair) -> str | None:
        if (why := unmatched(pair, "preact", self.first_stage)) is not None:
            return why
        for place, (x, y) in enumerate(zip(pair.student.preact, pair.teacher.preact, strict=True)):
            if place >= self.first_stage and (x.shape[2] > y.shape[2] or x.shape[3] > y.shape[3]):
                return f"the student's map {place} is larger than the teacher's: {tuple(x.shape[2:])}, {tuple(y.shape[2:])}"
        try:
            self._norms(pair)
        except RefusedError as error:
            return str(error)
        return None

    def bind(self, pair: Pair) -> None:
        widths = [[one.shape[1] for one in taps.preact[self.first_stage :]] for taps in (pair.student, pair.teacher)]
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(into, out, 1, bias=False), BatchNorm(out)) for into, out in zip(*widths, strict=True)
        )
        for place, norm in enumerate(self._norms(pair)):
            self.register_buffer(f"margin{place}", margin(norm).to(torch.get_default_device()))

    def _norms(self, pair: Pair) -> list[nn.Module]:
        if self.form == "zoo":
            return []
        assert pair.teacher_model is not None
        return norms_before(pair.teacher_model, len(pair.teacher.preact))[self.first_stage :]

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        values = []
        maps = zip(student.preact[self.first_stage :], teacher.preact[self.first_stage :], strict=True)
        for place, ((x, y), connector) in enumerate(zip(maps, self.connectors, strict=True)):
            x, y = connector(x), averaged(y, x.shape[2:])
            least = self.get_buffer(f"margin{place}").to(y).view(-1, 1, 1) if self.form == "released" else _of_batch(y)
            y = torch.maximum(y, least)
            squares = (x - y).square() * ((x > y) | (y > 0))
            halvings = len(self.connectors) - 1 - place
            values.append(squares.mean() if self.form == "zoo" else squares.sum() / (len(x) * 2**halvings))
        total = torch.stack(values).sum()
        return total / len(values) if self.form == "zoo" else total


def _of_batch(y: Float[Tensor, "n c h w"]) -> Float[Tensor, "c 1 1"]:
    negative = (y < 0).to(y)
    return (y * negative).sum((0, 2, 3)).view(-1, 1, 1) / (negative.sum((0, 2, 3)).view(-1, 1, 1) + 1e-6)
