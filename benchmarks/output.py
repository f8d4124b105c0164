"""A measured table as CSV and Markdown, with the machine and the command that made it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil
import torch

from kdbench.process import code_version
from kdbench.store.files import Files
from kdbench.train.circumstance import device_name
from kdbench.version import VERSION

LISTEN_S = 0.5


def others_at_work() -> float:
    """The share of the processors that other processes use while this one waits."""
    return psutil.cpu_percent(LISTEN_S) / 100


def header(device: torch.device, repetitions: str, beside: float) -> list[str]:
    """What a reader must know to repeat a measurement."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = ["python -m benchmarks", *map(_without_folders, sys.argv[1:])]
    return [
        f"command: {words[0]} {shlex.join(words[1:])}",
        f"machine: {device_name(device)}, {allowed} of {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        f"others at work before the measurement: {beside:.0%} of the cores",
        f"versions: torch {torch.__version__}, python {platform.python_version()}, kdbench {VERSION} ({code_version()})",
        f"repetitions: {repetitions}",
    ]


def _without_folders(word: str) -> str:
    """A path without the folders of this machine."""
    return Path(word).name if word.startswith(("/", "~")) else word


def write(
    folder: Path, name: str, table: pd.DataFrame, facts: Sequence[str], notes: Sequence[str], turns: pd.DataFrame | None = None
) -> str:
    """Write `name`.csv and `name`.md, and the single turns as `name`_turns.csv. Returns the Markdown."""
    files, head = Files(folder), "".join(f"# {line}\n" for line in (*facts, *notes))
    files.write_text(folder / f"{name}.csv", head + table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    if turns is not None:
        files.write_text(folder / f"{name}_turns.csv", head + turns.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    text = "\n".join([f"# {name}", "", *(f"- {line}" for line in facts), "", markdown(table), "", *(f"- {note}" for note in notes), ""])
    files.write_text(folder / f"{name}.md", text)
    return text


def markdown(table: pd.DataFrame) -> str:
    """A pipe table whose columns are aligned, so that it can be read in a terminal, too."""
    cells = [[str(name) for name in table.columns], *([_shown(value) for value in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
    right = [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    lines = [
        "| " + " | ".join(one.rjust(w) if r else one.ljust(w) for one, w, r in zip(row, widths, right, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value).replace("|", "/")
