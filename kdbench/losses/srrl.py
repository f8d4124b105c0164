from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._projection import convolution, unlike_head


class SRRL(Loss):
    """Softmax regression representation learning: the student's features, mapped to the teacher's width, should equal the teacher's, and
    should give the same logits with the teacher's classifier.

    feature * mean (x - y)^2 + logits * mean (head(x) - head(y))^2, both means over all elements of the n rows; `head` is the teacher's
    classifier, which is not trained.
    map:    x is the average over positions of P(last map of the student), y that of the teacher's last map.
    pooled: x is P(pooled features of the student), y the teacher's pooled features.
    P is a 1x1 convolution without bias, batch norm and ReLU.

    Shapes: maps n x c x h x w, pooled features n x d; both models may differ in c, h, w and d.

    Source: Yang, Martinez, Bulat and Tzimiropoulos, "Knowledge distillation via softmax regression representation learning", ICLR 2021,
        github.com/jingyang2017/KD_SRRL, distiller_zoo/AIN.py; pooled: github.com/DefangChen/SimKD, models/util.py.
    Defaults: the last map, both parts with weight 1, as in the authors' code for ImageNet. They publish no CIFAR-100 weight; others do
        (presets `simkd` and `cls_kd`).
    Departs: as in the code, map compares averages, not maps. It uses the classifier on the average of the last map: for a teacher that
        changes that average before its classifier (as ConvNeXt's norm does), the logits are not the teacher's, and `tap="pooled"` is
        right. A batch with one value for each channel has no batch statistics: its norm gives the bias.
    """

    compares = "features"
    presets: ClassVar[Mapping[str, Preset]] = {
        "srrl": Preset("github.com/jingyang2017/KD_SRRL, ImageNet: cross-entropy and both parts with weight 1", weight=1.0),
        "cls_kd": Preset("github.com/yzd-v/cls_KD, dis_losses/srrl.py: features 1, logits 5", weight=1.0, options={"logits": 5.0}),
        "simkd": Preset(
            "github.com/DefangChen/SimKD, CIFAR-100: pooled features, weight 1, and KD at T 4 with weight 1",
            weight=1.0,
            options={"tap": "pooled"},
            terms=(("kd", 1.0, {}),),
        ),
    }

    # A vector added to every position disappears in the batch norm.
    laws = frozenset({"permutation", "translation"})

    def __init__(self, *, tap: Literal["map", "pooled"] = "map", feature: float = 1.0, logits: float = 1.0):
        super().__init__()
        if not (feature or logits):
            raise ValueError("of feature and logits at least one has a weight")
        self.tap = tap
        self.feature = feature
        self.logits = logits

    @property
    def variant(self) -> str:
        return self.tap

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"last" if self.tap == "map" else "pooled", "teacher_head"})

    def refuses(self, pair: Pair) -> str | None:
        return unlike_head(pair) if self.tap == "map" else None

    def bind(self, pair: Pair) -> None:
        student, teacher = (self._features(side).shape[1] for side in (pair.student, pair.teacher))
        self.projector = nn.Sequential(*convolution(student, teacher))
        assert pair.teacher_head is not None
        self.head = pair.teacher_head.requires_grad_(False)

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        x, y = self._features(student), self._features(teacher)
        self.head.eval()
        x, y = self.projector(x).mean((2, 3)), y.mean((2, 3))
        parts = {}
        if self.feature:
            parts["feature"] = self.feature * functional.mse_loss(x, y)
        if self.logits:
            parts["logits"] = self.logits * functional.mse_loss(self.head(x), self.head(y))
        return parts

    def _features(self, side: Taps) -> Float[Tensor, "n c h w"]:
        if self.tap == "map":
            assert side.last is not None
            return side.last
        assert side.pooled is not None
        return side.pooled[:, :, None, None]
