from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._stored import NUMBERS, Stored


def with_stored_signs(key: str) -> Callable[[Any, Mapping[str, Tensor]], None]:
    """The loss with the signs that the release's SVD gave to the teacher's vectors, which it leaves open."""

    def prepare(loss: Any, inputs: Mapping[str, Tensor]) -> None:
        case = f"n{len(inputs['student_map'])}"

        def signed(vectors: Tensor, place: int) -> Tensor:
            stored = torch.tensor(NUMBERS[f"{case}/{key}/part/teacher_v{place + 1}"]).to(vectors)
            cosine = (vectors * stored).sum(1, keepdim=True)
            assert (cosine.abs() - 1).abs().max() < 1e-6
            return vectors * cosine.sign()

        loss._signed = signed

    return prepare


def stages(prefix: str, suffix: str) -> list[Mapping[str, Any]]:
    return [{"stages": tuple(f"{prefix}{side}_stage{stage}{suffix}" for stage in (1, 2, 3))} for side in ("student", "teacher")]


GOLDEN = [
    Stored("kdsvd", {"first_stage": 0}, *stages("", "_same"), prepare=with_stored_signs("kdsvd")),
    Stored("kdsvd_mdistiller", {"matrix": "rows", "first_stage": 0}, *stages("svd_", ""), prepare=with_stored_signs("kdsvd_mdistiller")),
]
FURTHER: list[dict[str, Any]] = [{"k": 2}, {"matrix": "rows", "k": 2, "first_stage": 0}]
