from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import SuiteError
from kdbench.plan import matrix
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read
from kdbench.store import Store

TINY = """
name: tiny
dataset: {name: digits, per_class: 4}
recipe: {name: short, epochs: 3, batch_size: 16, lr: 0.02, milestones: [2]}
teachers:
  big: {model: small_mobile, widths: [8, 12], min_top1: 0.0}
students:
  small: {model: small_mobile, widths: [4, 6]}
objectives: [ce, kd]
repeats: 2
"""
"""Forty images, three epochs with a ragged last batch: a whole matrix in seconds."""


class After:
    """Stops once after a few steps, as a signal would."""

    def __init__(self, steps: int) -> None:
        self.steps, self.asked = steps, False

    def __call__(self) -> bool:
        self.steps -= 1
        self.asked = self.steps < 0
        return self.asked


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    """Write a suite file; keyword arguments replace whole top-level keys of the tiny one (None takes a key away)."""

    def write(text: str | None = None, /, file: str = "tiny.yaml", **changes: str | None) -> Path:
        body = textwrap.dedent(TINY if text is None else text)
        for key, value in changes.items():
            body = replaced(body, key, value)
        path = tmp_path / file
        path.write_text(body)
        return path

    return write


def replaced(body: str, key: str, value: str | None) -> str:
    kept, inside = [], False
    for line in body.splitlines():
        if line.startswith(f"{key}:"):
            inside = True
        elif line and not line.startswith((" ", "-")):
            inside = False
        if not inside:
            kept.append(line)
    added = (
        []
        if value is None
        else [
            f"{key}: {value.strip()}" if "\n" not in value.strip() else f"{key}:\n{textwrap.indent(textwrap.dedent(value).strip(), '  ')}"
        ]
    )
    return "\n".join([*kept, *added]) + "\n"


@pytest.fixture
def refusal(write_suite: Callable[..., Path]) -> Callable[..., str]:
    """The errors of a suite that cannot be read, as one text."""

    def refusal(**changes: str | None) -> str:
        with pytest.raises(SuiteError) as error:
            read(write_suite(**changes))
        return str(error.value)

    return refusal


@pytest.fixture
def plan_of(write_suite: Callable[..., Path]) -> Callable[..., Plan]:
    def plan(text: str | None = None, /, **changes: str | None) -> Plan:
        return matrix.expand(read(write_suite(text, **changes)))

    return plan


@pytest.fixture
def train(store: Store, tmp_path: Path) -> Callable[..., int]:
    """Train cells of a plan in this process: all of them, or those that are given."""

    def train(plan: Plan, ids: list[str] | None = None, store: Store = store, provider: str = "live", **options: object) -> int:
        from kdbench.run import local
        from kdbench.train.worker import work

        local.prepare(plan, store)
        wanted = list(plan.cells) if ids is None else ids
        levels = {cell_id: len(plan.cells[cell_id].depends) for cell_id in wanted}
        tables = {row.cell.id for row in plan.rows if row.objective is None} if provider == "table" else ()
        status = 0
        for level in sorted(set(levels.values())):  # what others depend on comes first
            chosen = [cell_id for cell_id in wanted if levels[cell_id] == level]
            status |= work(store, chosen, tmp_path, "cpu", tables=tables, **options)  # type: ignore[arg-type]
        return status

    return train
