from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._projection import BatchNorm
from kdbench.losses._regressor import by_sizes, unserved


class FitNet(Loss):
    """Hints: a learned regressor of one of the student's maps should equal the teacher's map of the same stage.

    mean( (r(F_s) - F_t)^2 ) over all elements, with r = ReLU(BN(conv(F_s))). The convolution has a bias and is chosen by the heights:
    1x1 for equal maps; 3x3 of stride 2 where the student's is twice as high; a transposed 4x4 of stride 2 where it is half as high; else,
    for a larger map, a kernel of (1 + h_s - h_t) x (1 + w_s - w_t).

    Shapes: F_s n x c_s x h_s x w_s and F_t n x c_t x h_t x w_t, the stage `hint`, counted from 0 (in most nets, 0 is the stem).

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.
    Defaults: hint 2 and weight 100, as in github.com/HobbitLong/RepDistiller (models/util.py, ConvReg; distiller_zoo/FitNet.py) and
        github.com/megvii-research/mdistiller.
    Departs: the paper trains the student's lower half on the hint first, and then the whole with KD; the released code has one stage.
        The paper's regressor has no norm, and its activation is that of the net; the released one ends in batch norm and ReLU. A
        student's map that is smaller than the teacher's, but not half as high, is refused (the released code fails there;
        SimKD and SemCKD pool the teacher's map in such pairs and use a 3x3 convolution).
        With one image and a map of 1x1, the norm gives its bias where PyTorch raises.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "crd": Preset("github.com/HobbitLong/RepDistiller, scripts: -b 100, hint layer 2", weight=100.0),
        "simkd": Preset(
            "github.com/DefangChen/SimKD and SemCKD, scripts: 100, with KD of weight 1", weight=100.0, terms=(("kd", 1.0, {}),)
        ),
        "semckd_imagenet": Preset(
            "github.com/DefangChen/SemCKD, ImageNet script: 100, hint layer 1, with KD of weight 1",
            weight=100.0,
            options={"hint": 1},
            terms=(("kd", 1.0, {}),),
        ),
    }

    needs = frozenset({"stages"})

    def __init__(self, *, hint: int = 2):
        super().__init__()
        if hint < 0:
            raise ValueError(f"hint is the place of a stage, counted from 0, not {hint}")
        self.hint = hint

    @property
    def laws(self) -> frozenset[str]:
        # The norm removes the mean. Not where the convolution pads with zeros.
        convolution = getattr(self, "conv", None)
        unpadded = isinstance(convolution, nn.Conv2d) and convolution.padding == (0, 0)
        return frozenset({"permutation", *({"translation"} if unpadded else set())})

    def refuses(self, pair: Pair) -> str | None:
        for side, taps in (("student", pair.student), ("teacher", pair.teacher)):
            if self.hint >= len(taps.stages):
                return f"hint is {self.hint}, counted from 0, and the {side} has {len(taps.stages)} stages"
        return unserved(*(taps.stages[self.hint].shape for taps in (pair.student, pair.teacher)))

    def bind(self, pair: Pair) -> None:
        shapes = [taps.stages[self.hint].shape for taps in (pair.student, pair.teacher)]
        convolution = by_sizes(*shapes)
        assert convolution is not None
        self.conv, self.bn = convolution, BatchNorm(shapes[1][1])

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        regressed = torch.relu(self.bn(self.conv(student.stages[self.hint])))
        return functional.mse_loss(regressed, teacher.stages[self.hint])
