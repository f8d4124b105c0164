"""Random draws are keyed, not streamed: every draw's seed is a hash of what it is for, so that no generator's state needs saving
and neither grouping nor resuming nor another loss can shift it (common random numbers)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.cell import without_neutral


def seed_of(*what: Any) -> int:
    """A 63-bit seed from JSON values."""
    text = json.dumps(what, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Streams:
    """One cell's seeds. `order` and `augment` know the data and the repeat alone; `init` and `dropout` the student besides; only
    `loss` (a loss's own parameters and draws) knows the objective. None knows the teacher. Teachers draw from a namespace of their own."""

    order: int
    augment: int
    init: int
    dropout: int
    loss: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Streams:
        config = without_neutral(config)  # a field that came later must not move the draws of older cells
        shared = [config["role"], config["seed"], config["dataset"], config["repeat"]]
        own = [*shared, config["student"]]
        return cls(
            order=seed_of("order", shared),
            augment=seed_of("augment", shared),
            init=seed_of("init", own),
            dropout=seed_of("dropout", own),
            loss=seed_of("loss", own, config["objective"]),
        )
