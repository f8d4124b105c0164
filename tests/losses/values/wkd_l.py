from __future__ import annotations

from typing import Any

from ._stored import Stored

# The stored values have the target term beside the transport: tests/losses/test_wkd_l.py compares them with the sum of two terms.
GOLDEN: list[Stored] = []
FURTHER: list[dict[str, Any]] = [{"temperature": 2.0, "regularisation": 0.1, "iterations": 3}]
