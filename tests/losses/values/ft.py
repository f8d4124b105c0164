from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdbench.losses._base import Loss

from ._stored import Stored

SIDES = ({"last": "student_map"}, {"last": "teacher_map"})
FACTORS = {
    "same": ("student_map", "teacher_map_same_channels"),
    "pool_student": ("student_map_double", "teacher_map"),
    "pool_teacher": ("student_map", "teacher_map_double"),
}


def on_factors(loss: Loss, inputs: Mapping[str, Tensor]) -> None:
    """The maps are the factors."""
    loss.translator = loss.paraphraser = nn.Identity()


GOLDEN = [
    Stored("ft", {}, *SIDES, state={"translator.encoder.": "translator.", "paraphraser.encoder.": "paraphraser."}),
    Stored(
        "ft_official",
        {"form": "official"},
        *SIDES,
        state={f"{net}.conv{place}.": f"{net}.{3 * place}." for net in ("translator", "paraphraser") for place in range(3)},
    ),
    Stored("ft_paraphraser", {"factor": 0.0, "reconstruction": 1.0}, *SIDES, state={"encoder.": "paraphraser.", "decoder.": "decoder."}),
    *(
        Stored(f"ft_factors_{size}", {}, {"last": student}, {"last": teacher}, prepare=on_factors)
        for size, (student, teacher) in FACTORS.items()
    ),
]
FURTHER: list[dict[str, Any]] = [{"reconstruction": 1.0, "distance": "l1"}]
