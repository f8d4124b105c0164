from __future__ import annotations

from typing import Any

from ._stored import Stored

GOLDEN: list[Stored] = []  # its stored values are those of detection.npz: test_pcka.py
FURTHER: list[dict[str, Any]] = [
    {"patch": 2, "grouping": "image", "tap": "stages"},
    {"patch": 4, "grouping": "offset", "centred": True, "inter": 3.0},
    {"patch": 4, "centred": True, "inter": 3.0},
    {"patch": 1, "grouping": "image", "inter": 2.0, "intra": 0.0},
    {"patch": 1, "grouping": "image", "centred": True},
]
