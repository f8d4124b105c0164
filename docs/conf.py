"""The documentation site: MyST pages, and a page of losses that is written from their docstrings while the site is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import loss_pages  # noqa: E402

from kdbench.version import VERSION  # noqa: E402

project = "kdbench"
release = VERSION
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"kdbench {VERSION}"


def _with_losses(app: Any, name: str, source: list[str]) -> None:
    source[0] = source[0].replace(loss_pages.MARKER, loss_pages.sections() if name == "losses" else loss_pages.MARKER)


def setup(app: Any) -> None:
    app.connect("source-read", _with_losses)
