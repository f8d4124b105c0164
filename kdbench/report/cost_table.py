"""The table of costs: what a training step of each loss takes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pandas as pd

from kdbench.manifest import Block, Manifest
from kdbench.report.table import Column, Entry, Group, Table, row
from kdbench.stats.repeats import spread_over_blocks
from kdbench.store.frame import block_frame, line_key

Line = dict[str, Any]

TIMES = ("teacher_ms", "student_ms", "loss_ms", "optimizer_ms")
OTHERS = (("images_per_s", ",.0f", 1.0), ("peak_mem_gib", ",.1f", 1024.0), ("added_parameters", ",.0f", 1.0), ("added_flops", ",.2f", 1e-6))
"""Columns of the frame with their format and scale: memory in MiB, FLOPs in millions."""

COLUMNS = (
    Column("loss", numeric=False),
    Column("step [quartiles], ms"),
    *(Column(f"{part}, ms", essential=False) for part in ("teacher", "student", "loss", "optim.")),
    Column("images /s", essential=False),
    Column("peak, MiB"),
    Column("added params", essential=False),
    Column("added MFLOPs", essential=False),
)

CAPTION = (
    "One training step of each loss, measured apart from the training runs: medians, in brackets the quartiles of the step. "
    "The parts are separate medians and need not add up to the step. –: not measured.",
    "peak: the largest memory of a step beyond weights, optimiser state and data. added: trained parameters and FLOPs of the "
    "distillation loss, beyond those of the student.",
)


def cost_table(table: pd.DataFrame, manifest: Manifest) -> Table | None:
    """The table of costs, one group a pair; None when nothing was measured.

    Args:
        table: as `frame.costs` makes it.
    """
    if not table["state"].isin(("measured", "damaged")).any():
        return None
    by_block: dict[tuple[str, ...], dict[str, Line]] = defaultdict(dict)
    for found in spread_over_blocks(table, block_frame(manifest)).to_dict(orient="records"):
        *block, objective = line_key(found)
        by_block[tuple(block)][objective] = {str(name): value for name, value in found.items()}
    groups = [_group(block, by_block[block.key], manifest) for block in manifest.blocks]
    return Table("Cost of a training step", COLUMNS, tuple(group for group in groups if group.rows), CAPTION, name="cost")


def _group(block: Block, lines: dict[str, Line], manifest: Manifest) -> Group:
    kept = [lines[objective.name] for objective in manifest.objectives if objective.name in lines]
    measured = [line for line in kept if line["state"] == "measured"]
    largest = max((line["step_ms"] for line in measured), default=0.0)
    decimals = 2 if largest < 100 else 1 if largest < 1000 else 0
    devices = sorted({line["device"] for line in measured if isinstance(line["device"], str)})
    mixed = ["The losses were measured on different devices, so their times cannot be compared."] if len(devices) > 1 else []
    damaged = [f"No cost of {line['label']}: {line['why']}" for line in kept if line["state"] == "damaged"]
    facts = (f"Measured on {'; '.join(devices)}.",) if devices else ()
    return Group(block.title, tuple(_row(line, decimals) for line in kept), facts, (*mixed, *damaged))


def _row(line: Line, decimals: int) -> tuple[Entry, ...]:
    form = f".{decimals}f"
    step = Entry(line["step_ms"], interval=(line["step_ms_q1"], line["step_ms_q3"]), format=form)
    times = (Entry(line[name], format=form) for name in TIMES)
    return row((line["id"],), Entry(line["label"]), step, *times, *(Entry(line[name], format=f, scale=s) for name, f, s in OTHERS))
