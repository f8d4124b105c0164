from __future__ import annotations

from typing import Any

from ._stored import Stored

GOLDEN: list[Stored] = []
FIRST: list[tuple[str, dict[str, Any]]] = [("pooled/pkt", {})]
FURTHER: list[dict[str, Any]] = [{"tap": "last"}, {"tap": "logits"}]
