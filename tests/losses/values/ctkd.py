from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .. import slow
from ._stored import Stored
from .dkd import decoupled

LOGITS = {"student": {"logits": "student_logits"}, "teacher": {"logits": "teacher_logits"}}


def in_epoch(epoch: int) -> Any:
    def batch(inputs: Mapping[str, Any]) -> dict[str, int]:
        return {"epoch": epoch - 1}

    return batch


def zscored(loss: Any, s: Any, t: Any) -> float:
    from ..toys import batch

    x, y = (slow.standardised(slow.rows(z.logits)) for z in (s, t))
    temperature = 1 + 20 / (1 + math.exp(-1))
    if loss.inside == "kd":
        return temperature**2 * slow.kd(x, y, temperature)
    target_class, non_target = decoupled(x, y, batch(len(x)).target.tolist(), temperature)
    return temperature**2 * (loss.alpha * target_class + loss.beta * non_target)


GOLDEN = [
    # lambda is -1 from epoch 10 on; (cos(pi/3) - 1) / 2 = -1/4 and (cos(pi/2) - 1) / 2 = -1/2.
    Stored("ctkd_theta1_lambda-1", {}, **LOGITS, state={"global_T": "theta"}, batch=in_epoch(10)),
    Stored("ctkd_theta-0.3_lambda-0.25", {"reversal_epochs": 3}, **LOGITS, state={"global_T": "theta"}, batch=in_epoch(1)),
    Stored(
        "ctkd_dkd_alpha1_beta2_theta-1.5_lambda-0.5",
        {"inside": "dkd", "beta": 2.0, "reversal_epochs": 2},
        **LOGITS,
        state={"global_T": "theta"},
        batch=in_epoch(1),
    ),
]
FURTHER: list[dict[str, Any]] = [{"transform": "zscore"}, {"inside": "dkd", "transform": "zscore", "alpha": 2.0}]
SLOW = {str(options): zscored for options in FURTHER}
