"""The table of costs: what a training step of each objective takes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from kdbench.report.manifest import Block, Manifest, block_frame
from kdbench.report.table import Column, Entry, Group, Table
from kdbench.stats.repeats import spread_over_blocks

if TYPE_CHECKING:
    import pandas as pd

Line = dict[str, Any]

TIMES = ("teacher_ms", "student_ms", "loss_ms", "optimizer_ms")
MEGA = 1e-6
MEBI_OF_GIBI = 1024.0

COLUMNS = (
    Column("objective", numeric=False),
    Column("step [quartiles], ms"),
    Column("teacher, ms"),
    Column("student, ms"),
    Column("loss, ms"),
    Column("optim., ms"),
    Column("images /s"),
    Column("peak, MiB"),
    Column("added params"),
    Column("added MFLOPs"),
)

CAPTION = (
    "One training step of each objective, measured apart from the training runs: medians, in brackets the quartiles of the step. "
    "The parts are medians of their own and need not add up to the step. – is not measured.",
    "peak: the most memory that a step held at once, beyond weights, optimiser state and data. added: trained parameters and FLOPs of "
    "the distillation loss, beyond the student's own.",
)


def cost(table: pd.DataFrame, manifest: Manifest) -> Table | None:
    """The table of costs, one group a block; None when nothing was measured.

    Args:
        table: as `frame.costs` makes it.
    """
    if not (table["state"] == "measured").any():
        return None
    lines: dict[tuple[str, str, str], dict[str, Line]] = defaultdict(dict)
    for found in spread_over_blocks(table, block_frame(manifest)).to_dict(orient="records"):
        line = {str(name): value for name, value in found.items()}
        lines[line["dataset"], line["teacher"] if isinstance(line["teacher"], str) else "", line["student"]][line["objective"]] = line
    groups = [_group(block, lines[block["dataset"], block["teacher"] or "", block["student"]], manifest) for block in manifest["blocks"]]
    return Table("Cost of a training step", COLUMNS, tuple(group for group in groups if group.rows), CAPTION, name="cost")


def _group(block: Block, lines: dict[str, Line], manifest: Manifest) -> Group:
    kept = [lines[objective["name"]] for objective in manifest["objectives"] if objective["name"] in lines]
    measured = [line for line in kept if line["state"] == "measured"]
    largest = max((line["step_ms"] for line in measured), default=0.0)
    decimals = 2 if largest < 100 else 1 if largest < 1000 else 0
    devices = sorted({line["device"] for line in measured if isinstance(line["device"], str)})
    return Group(
        title=" · ".join([block["dataset"], f"student {block['student']}", *([f"teacher {block['teacher']}"] if block["teacher"] else [])]),
        rows=tuple(_row(line, decimals) for line in kept),
        facts=(f"Measured on {'; '.join(devices)}.",) if devices else (),
        notes=("The objectives were measured on different devices: their times cannot be compared.",) if len(devices) > 1 else (),
    )


def _row(line: Line, decimals: int) -> tuple[Entry, ...]:
    ids = (line["id"],)
    form = f".{decimals}f"
    low, high = line["step_ms_q1"], line["step_ms_q3"]
    step = Entry(_known(line["step_ms"]), interval=(low, high) if low == low and high == high else None, format=form, runs=ids)
    times = [Entry(_known(line[name]), format=form, runs=ids) for name in TIMES]
    return (
        Entry(line["label"], runs=ids),
        step,
        *times,
        Entry(_known(line["images_per_s"]), format=",.0f", runs=ids),
        Entry(_known(line["peak_mem_gib"]), format=",.1f", scale=MEBI_OF_GIBI, runs=ids),
        Entry(_known(line["added_parameters"]), format=",.0f", runs=ids),
        Entry(_known(line["added_flops"]), format=",.2f", scale=MEGA, runs=ids),
    )


def _known(value: float) -> float | None:
    return None if value != value else value
