from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.errors import RefusedError
from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._projection import convolution
from kdbench.losses._stagewise import at_most, check_place

Maps = Sequence[Float[Tensor, "n _ _ _"]]


class SemCKD(Loss):
    """Cross-layer distillation with semantic calibration: each stage of the student learns from all stages of the teacher, in shares that
    are learnt for each image.

    1/(n L) sum_i sum_l sum_m a_ilm mean ( P_lm(F_s,l)_i - F_t,m,i )^2, the mean over channels and positions; L is the number of the
    student's stages. a_il. = softmax over m of < q_l(row i of G_s,l), k_m(row i of G_t,m) >, with G = F F^T of the flattened stage
    (n x n), and for each stage a map q or k: Linear(batch_size, 2 h), ReLU, Linear(2 h, h), divided by its norm, h = batch_size // 4.
    P_lm is a 1x1 convolution to twice the channels of teacher stage m, a 3x3 one, and a 1x1 one to its channels; the first two are
    without bias and followed by batch norm and ReLU, the last one is without bias and without both.

    Shapes: stages n x c x h x w, those from `first_stage` on; both models may differ in their number, c, h and w. Of two maps of different
    size the larger one is averaged to the size of the other, the student's before P.

    Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, github.com/DefangChen/SemCKD,
        distiller_zoo/SemCKD.py.
    Defaults: the stages without the stem, weight 400 and KD at T 4 with weight 1 beside it, batches of 64, as in that code for CIFAR-100.
    Departs: q and k take a row of a matrix of the batch, so the batch size is an option. The code leaves out a smaller last batch; here
        the rows of a smaller batch are filled up with zeros, and a larger batch is an error. As in the code, the Gram matrices are not
        normalised. A batch with one value for each channel has no batch statistics: its norm gives the bias.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "semckd": Preset(
            "github.com/DefangChen/SemCKD, scripts: -b 400, and KD at T 4 with weight 1, batches of 64",
            weight=400.0,
            terms=(("kd", 1.0, {}),),
        )
    }

    needs = frozenset({"stages"})
    laws = frozenset()

    def __init__(self, *, batch_size: int = 64, first_stage: int = 1):
        super().__init__()
        if batch_size < 4:
            raise ValueError(f"batch_size must be at least 4, not {batch_size}")
        check_place(first_stage)
        self.batch_size = batch_size
        self.first_stage = first_stage

    def refuses(self, pair: Pair) -> str | None:
        fewest = min(len(side.stages) for side in (pair.student, pair.teacher))
        return None if fewest > self.first_stage else f"no stage is left after the first {self.first_stage}: a model has {fewest}"

    def bind(self, pair: Pair) -> None:
        student, teacher = ([one.shape[1] for one in side.stages[self.first_stage :]] for side in (pair.student, pair.teacher))
        self.queries = nn.ModuleList(_row_map(self.batch_size) for _ in student)
        self.keys = nn.ModuleList(_row_map(self.batch_size) for _ in teacher)
        self.projectors = nn.ModuleList(nn.ModuleList(_projector(own, other) for other in teacher) for own in student)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        own, others = (side.stages[self.first_stage :] for side in (student, teacher))
        n = len(own[0])
        if n > self.batch_size:
            raise RefusedError(f"SemCKD is made for batches of {self.batch_size} and gets {n} images: set its `batch_size` to the recipe's")
        rows = [
            torch.stack([_apart(project, x, y) for project, y in zip(projectors, others, strict=True)], 1)
            for projectors, x in zip(self.projectors, own, strict=True)
        ]
        apart: Float[Tensor, "n student teacher"] = torch.stack(rows, 1)
        return (self._shares(own, others) * apart).sum() / (n * len(own))

    def _shares(self, student: Maps, teacher: Maps) -> Float[Tensor, "n student teacher"]:
        queries, keys = self._embedded(self.queries, student), self._embedded(self.keys, teacher)
        return torch.einsum("nlh,nmh->nlm", queries, keys).softmax(2)

    def _embedded(self, maps: nn.ModuleList, stages: Maps) -> Float[Tensor, "n stages h"]:
        rows = [functional.pad(x.flatten(1) @ x.flatten(1).T, (0, self.batch_size - len(x))) for x in stages]
        return torch.stack([functional.normalize(embed(row), dim=1) for embed, row in zip(maps, rows, strict=True)], 1)


def _row_map(batch_size: int) -> nn.Module:
    inner = batch_size // 4
    return nn.Sequential(nn.Linear(batch_size, 2 * inner), nn.ReLU(), nn.Linear(2 * inner, inner))


def _projector(own: int, other: int) -> nn.Module:
    return nn.Sequential(*convolution(own, 2 * other), *convolution(2 * other, 2 * other, 3), nn.Conv2d(2 * other, other, 1, bias=False))


def _apart(project: nn.Module, x: Float[Tensor, "n _ _ _"], y: Float[Tensor, "n _ _ _"]) -> Float[Tensor, " n"]:
    x = project(at_most(x, y.shape[2:]))
    return (x - at_most(y, x.shape[2:])).square().mean((1, 2, 3))
