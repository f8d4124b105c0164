from __future__ import annotations

from typing import Any

from torch import Tensor

from kdbench.losses._base import Loss

from ._stored import CASES, NUMBERS, Stored

# The release keeps K, T, both normalisers and the momentum in one tensor; ours are the normalisers.
for key in [one for one in NUMBERS if one.endswith("/contrast.params")]:
    NUMBERS[key] = NUMBERS[key][2:4]

STATE = {
    "embed_s.linear.": "student_embed.",
    "embed_t.linear.": "teacher_embed.",
    "contrast.params": "normalisers",
    "contrast.memory_v1": "student_memory",
    "contrast.memory_v2": "teacher_memory",
}


def stored(case: str, key: str, call: str) -> Stored:
    options = {"negatives": int(NUMBERS[f"{case}/crd/option/K"]), "dimensions": NUMBERS[f"{case}/crd/state/contrast.memory_v1"].shape[1]}

    def labels(inputs: Any) -> dict[str, Any]:
        # Of no account: the negatives are the stored ones.
        return {"labels": inputs["target"].new_zeros(int(NUMBERS[f"{case}/crd/option/n_data"]))}

    def draw(loss: Loss, inputs: Any) -> None:
        compared: Tensor = inputs[f"crd_contrast_index{call}"]
        assert (compared[:, 0] == inputs[f"crd_index{call}"]).all()
        loss._drawn = lambda index: compared[:, 1:]  # type: ignore[assignment,method-assign]

    return Stored(
        key,
        options,
        student={"pooled": f"student_pooled{call}"},
        teacher={"pooled": f"teacher_pooled{call}"},
        target=None,
        state=STATE,
        pair=labels,
        batch=lambda inputs: {"index": inputs[f"crd_index{call}"]},
        prepare=draw,
        cases=(case,),
    )


GOLDEN = [stored(case, key, call) for case in CASES for key, call in (("crd", ""), ("crd_second", "_second"))]
FURTHER: list[dict[str, Any]] = [{"negatives": 5, "dimensions": 4, "momentum": 0.9, "temperature": 0.1}, {"negatives": 35, "dimensions": 3}]
