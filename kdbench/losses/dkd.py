from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from kdbench.losses._base import Batch, Loss, Pair, Preset, Taps
from kdbench.losses._soft import coupled, decoupled, named, one_class, positive, predictions, transformed

SOURCE = "github.com/megvii-research/mdistiller, configs"


class DKD(Loss):
    """Decoupled knowledge distillation: soft targets in two parts, each with a weight of its own.

    alpha T^2 1/n sum_i KL( b_t,i || b_s,i ) + beta T^2 1/n sum_i KL( q_t,i || q_s,i ): b_i has the probability of the target in
    softmax(z_i / T) and that of all other classes together; q_i is the softmax of z_i / T over the classes other than the target.
    The loss reports the two parts, with their weights: `target_class` and `non_target`.
    `transform="zscore"` is that of `kd`: it comes first, for all classes together.
    With `tap: regions`, for detectors with two stages, i are the regions that the student drew for its own losses, in all images of the
    batch, with the background as one more class: it is the target of a region without an object, and such regions count as the others do.
    The teacher's second stage gives z_t for these regions, from its own levels.

    Shapes: logits z_s and z_t, n x classes; the target is a class for each image. Of regions: regions x (classes + 1).

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679); github.com/megvii-research/mdistiller,
        distillers/DKD.py, and detection/model/rcnn.py for regions. zscore: github.com/sunshangquan/logit-standardization-KD.
    Defaults: alpha 1, beta 8 and T 4 with a warm-up of 20 epochs, as mdistiller has for most pairs of CIFAR-100. On regions alpha 1, beta
        0.25 and T 1 without a warm-up, as its detection/model/config.py has for all pairs.
    Departs: the released code subtracts 1000 from the target's logit instead of leaving the target out (the same value unless logits
        differ by hundreds times T), and takes the logarithm of summed probabilities, which can be -inf in low precision. A pair with
        one class is refused. On regions, that code runs the student's second stage a second time, with the same result; its background
        is the last class, here the first; its RoIAlign and its samples are detectron2's, here torchvision's.
    """

    compares = "logits"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cifar100": Preset(f"{SOURCE}/cifar100/dkd, most pairs (ResNet32x4 to ResNet8x4)", weight=1.0, warm_up=20.0, epochs=240),
        "cifar100_vgg_wrn": Preset(
            f"{SOURCE}/cifar100/dkd: VGG13 and the WRN pairs", weight=1.0, options={"beta": 6.0}, warm_up=20.0, epochs=240
        ),
        "cifar100_resnet": Preset(
            f"{SOURCE}/cifar100/dkd: ResNet56 to 20 and ResNet110 to 32", weight=1.0, options={"beta": 2.0}, warm_up=20.0, epochs=240
        ),
        "imagenet": Preset(
            f"{SOURCE}/imagenet/r34_r18/dkd.yaml", weight=1.0, options={"beta": 0.5, "temperature": 1.0}, warm_up=1.0, epochs=100
        ),
        "imagenet_mobilenet": Preset(
            f"{SOURCE}/imagenet/r50_mv1/dkd.yaml", weight=1.0, options={"beta": 2.0, "temperature": 1.0}, warm_up=1.0, epochs=100
        ),
        "detection": Preset(
            "github.com/megvii-research/mdistiller, detection: Faster R-CNN, R101 to R18, R101 to R50 and R50 to MobileNetV2",
            weight=1.0,
            options={"beta": 0.25, "temperature": 1.0, "tap": "regions"},
        ),
    }
    added: ClassVar[Mapping[str, Any]] = {"tap": "logits"}

    laws = frozenset({"permutation"})

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        transform: Literal["none", "zscore"] = "none",
        tap: Literal["logits", "regions"] = "logits",
    ):
        super().__init__()
        positive(temperature=temperature)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.transform = transform
        self.tap = tap
        self.couples = coupled(tap)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"regions"} if self.tap == "regions" else {"logits", "target"})

    @property
    def variant(self) -> str | None:
        return named(self.tap, self.transform)

    def refuses(self, pair: Pair) -> str | None:
        return one_class(pair) if self.tap == "logits" else None

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        x, y = (transformed(logits, self.transform) for logits in predictions(student, teacher, self.tap))
        regions = student.regions if self.tap == "regions" else None
        target = batch.target if regions is None else regions.labels
        target_class, non_target = decoupled(x, y, target, self.temperature)
        square = self.temperature**2
        return {"target_class": self.alpha * square * target_class, "non_target": self.beta * square * non_target}
