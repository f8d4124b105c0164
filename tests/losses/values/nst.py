from __future__ import annotations

from typing import Any

from ._stored import Stored

GOLDEN: list[Stored] = []
FIRST: list[tuple[str, dict[str, Any]]] = [("map/nst", {"tap": "last"})]
FURTHER: list[dict[str, Any]] = []
JUMPS = True
"""A channel that is zero in an image has no direction: the least change gives it one. The kernel is even, so the change of one entry up and
down gives the same value, but that of all entries at once moves the others where that channel is not zero."""
