"""The table of comparisons: everything that was tested of each difference, and what these repeats could have shown."""

from __future__ import annotations

from typing import Any

from kdbench.report.accuracy import LEAST_P, Gathered, confidence, gather
from kdbench.report.manifest import Block, labels
from kdbench.report.notes import untested_notes
from kdbench.report.study import Study, block_name
from kdbench.report.table import Column, Entry, Group, Table
from kdbench.stats.power import detectable_difference, repeats_needed

MANY = 1000
"""Repeats beyond which their number is not worth saying."""


def differences(study: Study, gathered: Gathered | None = None) -> Table | None:
    """One row a comparison of the family, grouped by block; None where the suite compares nothing.

    Args:
        gathered: of the study, where it was gathered already.
    """
    manifest = study.manifest
    if not len(study.comparisons):
        return None
    gathered = gathered or gather(study)
    points = ", points" if gathered.metric["percent"] else ""
    level = confidence(manifest)
    columns = (
        Column("comparison", numeric=False),
        Column("test", numeric=False),
        Column("n"),
        Column(f"Δ{points} [{level} alone]"),
        Column(f"sim. {level} from"),
        Column("to"),
        Column("d_z"),
        Column("p"),
        Column("p (Holm)"),
        Column("p equal (Holm)"),
        Column("ρ"),
        Column(f"could see{points}"),
        Column("n needed"),
        Column("verdict", numeric=False),
    )
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for (key, _), line in gathered.differences.items():
        found.setdefault(key[:3], []).append({**line, "key": key})
    groups = [
        _group(block, found.get((block["dataset"], block["teacher"] or "", block["student"]), []), study, gathered)
        for block in manifest["blocks"]
    ]
    return Table(
        f"Comparisons of {gathered.metric['label']}",
        columns,
        tuple(group for group in groups if group.rows),
        _caption(study),
        name="comparisons",
    )


def _group(block: Block, found: list[dict[str, Any]], study: Study, gathered: Gathered) -> Group:
    names = labels(study.manifest)
    m = len(study.comparisons)
    rows = []
    for line in found:
        other = (*line["key"][:3], line["baseline"])
        runs = tuple(run["id"] for key in (line["key"], other) for run in gathered.runs.get(key, []))
        rows.append(_row(line, names, gathered, m, study.manifest.get("margin"), study.manifest["alpha"], runs))
    reasons = {line["verdict_why"] for line in found if line["verdict_why"] and not line["why"]}
    judged = [
        f"{names[line['objective']]} - {names[line['baseline']]}: {line['verdict_why']}" for line in found if line["verdict_why"] in reasons
    ]
    return Group(
        block_name(block["dataset"], block["teacher"], block["student"]), tuple(rows), notes=(*untested_notes(found, names), *judged)
    )


def _row(
    line: dict[str, Any], names: dict[str, str], gathered: Gathered, m: int, margin: float | None, alpha: float, runs: Any
) -> tuple[Entry, ...]:
    form, scale = f".{gathered.decimals}f", gathered.scale
    tested = not line["why"]
    paired = tested and line["test"] == "paired t"

    def number(value: float, how: str, **more: Any) -> Entry:
        return Entry(value if value == value else None, format=how, runs=runs, **more)

    def interval(low: float, high: float) -> tuple[float, float] | None:
        return (low, high) if low == low and high == high else None

    sees = line["sd"] * detectable_difference(int(line["n"]), alpha, m) if paired else float("nan")
    needed = needed_repeats(line["sd"], margin, alpha, m) if paired else None
    return (
        Entry(f"{names[line['objective']]} - {names[line['baseline']]}", runs=runs),
        Entry(line["test"] or "–", runs=runs),
        Entry(float(line["n"]), format=".0f", runs=runs),
        number(line["difference"], f"+z{form}", scale=scale, interval=interval(line["low"], line["high"])),
        number(line["low_all"], f"+z{form}", scale=scale),
        number(line["high_all"], f"+z{form}", scale=scale),
        number(line["d_z"], "+.2f"),
        number(line["p"], ".3f", least=LEAST_P),
        number(line["p_holm"], ".3f", least=LEAST_P),
        number(line["p_equal_holm"], ".3f", least=LEAST_P),
        number(line["correlation"], "+.2f"),
        number(sees, form, scale=scale),
        Entry(None if needed is None else f">{MANY}" if needed > MANY else float(needed), format=".0f", runs=runs),
        Entry(line["verdict"], runs=runs),
    )


def needed_repeats(sd: float, margin: float | None, alpha: float, m: int) -> int | None:
    """How many repeats would find a difference of the size of the margin with 80 % power at Holm's first step; None without a margin."""
    if margin is None or not sd > 0:
        return None
    difference = margin / sd
    if difference < LEAST_EFFECT:
        return MANY + 1
    return repeats_needed(round(difference, 3), alpha, m)


LEAST_EFFECT = 0.08
"""Effects (in sd) below this need more than `MANY` repeats."""


def _caption(study: Study) -> tuple[str, ...]:
    manifest = study.manifest
    m, margin = len(study.comparisons), manifest.get("margin")
    metric = manifest["metrics"][0]
    said = "" if margin is None else f"{100 * margin:g} points" if metric["percent"] else f"{margin:g}"
    needed = f"; n needed: the repeats that would show a difference of the margin, {said}, so" if said else ""
    return (
        "n: complete pairs. alone: the t interval of this comparison by itself; sim.: all of the family together, in agreement with the "
        "verdict. d_z: Δ over the standard deviation of the paired differences. ρ: the correlation of paired runs, which is what pairing "
        "gains.",
        f"p equal: that Δ is as large as the margin{f' of {said}' if said else ''} or larger (two one-sided t tests). p by Holm in each "
        f"direction at {manifest['alpha'] / 2:g}, p equal by Holm, over m = {m}.",
        f"could see: the least difference found with 80 % power at the observed spread, at Holm's first step{needed}.",
    )
