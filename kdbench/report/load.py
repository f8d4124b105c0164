"""Rows of a suite for whoever works in Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import KdbenchError
from kdbench.report.frame import frame
from kdbench.report.from_file import SUFFIXES, read_rows
from kdbench.report.manifest import checked
from kdbench.store import Store

if TYPE_CHECKING:
    import pandas as pd


def load_frame(path: Path | str) -> pd.DataFrame:
    """One row a cell, as `frame.frame` describes them.

    Args:
        path: a suite's folder (`results/suites/<name>`), read from its records as they are now; or a frame file (.parquet, .csv).

    Raises:
        KdbenchError: it is neither.
    """
    path = Path(path).resolve()
    if path.suffix in SUFFIXES and path.is_file():
        return read_rows(path)
    if (path / "manifest.json").is_file():
        store = Store(path.parents[1])
        return frame(store, checked(store.manifest(path.name)))
    raise KdbenchError(f"{path} is neither a suite's folder (results/suites/<name>) nor a frame file (.parquet, .csv)")
