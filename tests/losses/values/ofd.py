from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdbench.losses._base import Taps

from ._stored import Stored

STUDENT = {"preact": tuple(f"ofd_student_stage{stage}" for stage in (1, 2, 3))}
TEACHER = {"preact": tuple(f"ofd_teacher_stage{stage}" for stage in (1, 2, 3))}
DOUBLE = {"preact": tuple(f"ofd_teacher_stage{stage}_double" for stage in (1, 2, 3))}


class Teacher(nn.Module):
    """Three maps, each that of a batch norm with the stored weights."""

    def __init__(self, inputs: Mapping[str, Tensor]):
        super().__init__()
        self.norms, self.convolutions, into = nn.ModuleList(), nn.ModuleList(), 3
        for stage in (1, 2, 3):
            weight = inputs[f"ofd_teacher_bn{stage}_weight"]
            norm = nn.BatchNorm2d(len(weight)).to(weight.dtype)
            norm.load_state_dict({"weight": weight, "bias": inputs[f"ofd_teacher_bn{stage}_bias"]}, strict=False)
            self.norms.append(norm)
            self.convolutions.append(nn.Conv2d(into, len(weight), 1, dtype=weight.dtype))
            into = len(weight)

    def forward(self, images: Tensor) -> Taps:
        preact: list[Tensor] = []
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            preact.append(norm(convolution(preact[-1].relu() if preact else images)))
        return Taps(preact=preact)


def entry(key: str, teacher: Mapping[str, Any], connectors: str, case: str, factor: float) -> Stored:
    return Stored(
        key,
        {"first_stage": 0},
        STUDENT,
        teacher,
        state={f"{connectors}.": "connectors."},
        pair=lambda inputs: {"teacher_model": Teacher(inputs)},
        cases=(case,),
        factor=factor,
    )


GOLDEN = [
    # The release of the authors divides by n outside of the module.
    *(entry("ofd", TEACHER, "Connectors", case, 1 / n) for case, n in (("n8", 8), ("n13", 13))),
    *(entry("ofd_mdistiller", TEACHER, "connectors", case, 1.0) for case in ("n8", "n13")),
    *(entry("ofd_mdistiller_pool_teacher", DOUBLE, "connectors", case, 1.0) for case in ("n8", "n13")),
    Stored(
        "ofd_zoo",
        {"form": "zoo", "first_stage": 0},
        {"preact": ("student_map",)},
        {"preact": ("teacher_map",)},
        state={"connector.": "connectors.0."},
    ),
]
FURTHER: list[dict[str, Any]] = [{"first_stage": 0}, {"form": "zoo", "first_stage": 0}]
