from __future__ import annotations

from typing import Any

from ._stored import Stored

GOLDEN: list[Stored] = []
FIRST: list[tuple[str, dict[str, Any]]] = [
    ("logits/dist/beta1_gamma1_tau1", {"tau": 1.0}),
    ("logits/dist/beta2_gamma2_tau4", {"beta": 2.0, "gamma": 2.0}),
]
FURTHER: list[dict[str, Any]] = [{"beta": 0.0, "gamma": 2.0}, {"gamma": 0.0, "tau": 2.0}]
