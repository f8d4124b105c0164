"""All runs as one JSON text: what runs share stands in it once, and a curve is written as differences of whole numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from kdbench.report.page.runs import Curve, RunDetails

WORDS = ("role", "dataset", "teacher", "student", "objective", "label", "state", "why")
DIGITS = 5
"""Significant digits of a curve's largest value: finer than a line that is a pixel wide."""
UNSAFE = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


class Pool:
    """Values that many runs share, each kept once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}
        self._seen: dict[int, tuple[Any, int]] = {}
        self._text = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode

    def put(self, value: Any) -> int:
        """The place of the value; equal values have the same."""
        if not isinstance(value, Mapping | list):
            return self._place((type(value), value), value)
        known = self._seen.get(id(value))
        if known is None:
            known = value, self._place(self._text(value), value)
            self._seen[id(value)] = known  # holds the value, so that its id stays its own
        return known[1]

    def _place(self, key: Any, value: Any) -> int:
        place = self._places.setdefault(key, len(self.values))
        if place == len(self.values):
            self.values.append(_finite(value))
        return place


def payload(runs: Sequence[RunDetails]) -> str:
    """The runs as JSON that may stand inside a `<script>` element.

    Every run is a list: id, the places of its words, repeat, teacher seed, metrics, circumstance, configuration (place of each
    top-level value, null where it has none), place of why there is none, curve, place of its failure.
    """
    pool = Pool()
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    circumstances = _kinds(runs)
    config_keys = list(dict.fromkeys(key for run in runs for key in run.config or {}))
    rows = [
        [
            run.id,
            [pool.put(getattr(run, name)) for name in WORDS],
            run.repeat,
            run.teacher_seed,
            [_finite(run.metrics.get(name)) for name in metrics],
            [_circumstance(run.circumstance.get(name), pooled, pool) for name, pooled in circumstances.items()],
            None if run.config is None else [pool.put(run.config[key]) if key in run.config else None for key in config_keys],
            pool.put(run.no_config),
            None if run.curve is None else _packed(run.curve, pool),
            None if run.failure is None else pool.put(run.failure),
        ]
        for run in runs
    ]
    whole = {
        "words": WORDS,
        "metrics": metrics,
        "percent": [any(name in run.percent for run in runs[:1]) for name in metrics],
        "circumstance": list(circumstances.items()),
        "config": config_keys,
        "shared": pool.values,
        "runs": rows,
    }
    return safe(json.dumps(whole, separators=(",", ":"), ensure_ascii=False, allow_nan=False))


def safe(text: str) -> str:
    """JSON that ends no `<script>` element, opens no comment in it, and breaks no line of JavaScript."""
    for character, escaped in UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def _kinds(runs: Sequence[RunDetails]) -> dict[str, bool]:
    """Each circumstance, and whether it is text (kept once) rather than numbers."""
    found: dict[str, bool] = {}
    for run in runs:
        for name, value in run.circumstance.items():
            found[name] = found.get(name, True) and isinstance(value, str)
    return found


def _circumstance(value: Any, pooled: bool, pool: Pool) -> Any:
    return _finite(value) if value is None or not pooled else pool.put(value)


def _packed(curve: Curve, pool: Pool) -> list[Any]:
    """Place of label and unit, place of the epochs, decimals, and the values times 10^decimals: the first, then differences."""
    import numpy as np

    values = np.array(curve.values)
    largest = np.abs(values).max()
    most = DIGITS - 1 - (math.floor(math.log10(largest)) if largest > 0 else 0)
    near = 10.0 ** (-most - 3)
    fewer = (d for d in range(min(0, most), most) if np.abs(np.round(values, d) - values).max() < near)
    decimals = next(fewer, most)
    whole = np.round(values * 10.0**decimals)
    steps = np.diff(whole, prepend=0.0).astype(np.int64).tolist()
    return [pool.put([curve.label, curve.percent]), pool.put(_spaced(curve.epochs)), decimals, steps]


@lru_cache(maxsize=64)
def _spaced(epochs: tuple[int, ...]) -> dict[str, int] | list[int]:
    """Epochs at one distance as first, step and count; others one by one."""
    step = epochs[1] - epochs[0] if len(epochs) > 1 else 1
    even = all(after - before == step for before, after in zip(epochs, epochs[1:], strict=False))
    return {"first": epochs[0], "step": step, "count": len(epochs)} if even else list(epochs)


def _finite(value: Any) -> Any:
    """The value as JSON may hold it: null for a number that is none."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
