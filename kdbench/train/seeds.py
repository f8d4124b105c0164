"""Common random numbers: the seed of a draw is a hash of its purpose, independent of grouping and resuming; no state is saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def seed_of(*what: Any) -> int:
    """A 63-bit seed from JSON values."""
    text = json.dumps(what, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Streams:
    """One cell's seeds. `order` and `augment` depend on the data and the repeat; `init` and `dropout` also on the student; only `loss` (a
    loss's own parameters and draws) also on the objective. None depends on the teacher. Teachers have separate seeds."""

    order: int
    augment: int
    init: int
    dropout: int
    loss: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Streams:
        shared = [config["role"], config["seed"], config["dataset"], config["repeat"]]
        own = [*shared, config["student"]]
        # All points of a search draw the same.
        objective = {name: value for name, value in config["objective"].items() if name != "tuned"}
        seeds = {"order": [shared], "augment": [shared], "init": [own], "dropout": [own], "loss": [own, objective]}
        return cls(**{name: seed_of(name, *parts) for name, parts in seeds.items()})
