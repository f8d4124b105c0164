"""The second noun: what a finished cell leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1
MANIFEST_SCHEMA = 1
"""Of `results/suites/<name>/manifest.json`, which a plan writes and a report reads."""

OUTCOMES = ("finished", "diverged")


@dataclass(frozen=True)
class Record:
    """`result` is the same for any two honest runs of the cell; `circumstance` may differ between them (times, host, restarts).

    `result` holds: `metrics` (`<metric>_last`, `<primary>_best_val`, `<primary>_best_test`), `history` (one entry an epoch),
    `n_train`, `n_test`, `data_fingerprint`, `weights_digest`, `predictions_digest`, `diverged_at_step`.
    """

    id: str
    config: Mapping[str, Any]
    outcome: str
    result: Mapping[str, Any]
    circumstance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Raises ValueError when a field is missing or the outcome is not one of `OUTCOMES`."""
        wanted = ("id", "config", "outcome", "result", "circumstance")
        missing = [name for name in wanted if name not in data]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        if data["outcome"] not in OUTCOMES:
            raise ValueError(f"its outcome is {data['outcome']!r}, which is none of {', '.join(OUTCOMES)}")
        return cls(**{name: data[name] for name in wanted})
