"""What an objective reaches against what its training step costs, and which objectives no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kdbench.report.figures.placement import Put, Rectangle, placed
from kdbench.report.figures.seeds import interval
from kdbench.report.figures.sheet import Box, Key, Sheet, bar, goes_on, limits, number_axis, printed, sheets
from kdbench.report.figures.study import Drawn, Leaf, by_block, lines, place_of, sentences
from kdbench.report.figures.style import BLUE, GREY, INK
from kdbench.report.figures.words import width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = dict[str, Any]

HAIR = 0.01
"""Inches beside a line that stay free."""

LOG = 8.0
"""Times that differ by more than this factor stand on a logarithmic axis."""


def absent(study: Drawn) -> str:
    if study.costs is None or not (study.costs["state"] == "measured").any():
        return "no cost was measured"
    return "" if any(_points(study)) else "no objective has both a measured step and a finished run"


def leaves(study: Drawn) -> Iterator[Leaf]:
    """A panel a block, a point an objective; names stand beside the points where there is room for all, else numbers do."""
    found = [(block, points) for block, points in zip(study.blocks, _points(study), strict=True) if points]
    there = {line["objective"] for _, points in found for line in points}
    numbers = {name: str(place) for place, name in enumerate((name for name in study.names if name in there), 1)}
    key: list[Key] = [(f"{number}  {study.names[name]}", None) for name, number in numbers.items()]
    drawn = list(_drawn(study, found, study.names, []))
    if not all(fits for _, fits in drawn):
        drawn = list(_drawn(study, found, numbers, key))
    yield from (leaf for leaf, _ in drawn)


def _points(study: Drawn) -> list[list[Line]]:
    """For each block of the suite, its objectives with a measured step and a mean."""
    from kdbench.report.manifest import block_frame
    from kdbench.stats.repeats import spread_over_blocks

    assert study.costs is not None
    measured = study.costs[(study.costs["state"] == "measured") & study.costs["step_ms"].notna()]
    costs = by_block(spread_over_blocks(measured, block_frame(study.manifest)))
    means = by_block(study.summaries[study.summaries["n"] > 0])
    found: list[list[Line]] = []
    for block in study.blocks:
        where = place_of(block)
        if where not in costs or where not in means:
            found.append([])
            continue
        both = means[where].merge(costs[where].drop(columns=["dataset", "teacher", "student"]), on="objective")
        found.append(sorted(lines(both), key=lambda line: list(study.names).index(line["objective"])))
    return found


def _drawn(study: Drawn, found: Sequence[tuple[Any, list[Line]]], names: dict[str, str], key: list[Key]) -> Iterator[tuple[Leaf, bool]]:
    def box(wide: float) -> Box:
        return Box(1.9, 0.55, 0.5, 0.1, 2)

    titles = [study.title(block) for block, _ in found]
    for sheet in sheets(titles, box, "time of a training step, ms", study.quantity, key):
        fits = True
        for place in range(len(sheet.axes)):
            fits &= _panel(sheet, place, found[sheet.first + place][1], study, names)
        caption = _caption(study, found, sheet.figure, bool(key), fits)
        yield Leaf(sheet.figure, f"{study.metric['label']} against the cost of a training step", caption), fits


def _panel(sheet: Sheet, place: int, points: list[Line], study: Drawn, names: dict[str, str]) -> bool:
    axes, size = sheet.axes[place], sheet.panel
    mean = [study.scale * line["mean"] for line in points]
    times = [line["step_ms"] for line in points]
    intervals = [interval(line, study) for line in points]
    across, up = _time_axis(axes, points, size[0]), _roomy(*limits(mean, intervals))
    number_axis(axes, "y", *up, size[1])
    for line, y, found in zip(points, mean, intervals, strict=True):
        axes.plot([line["step_ms_q1"], line["step_ms_q3"]], [y, y], color=GREY, linewidth=0.6, zorder=1)
        bar(axes, line["step_ms"], *found, upright=True, color=GREY, linewidth=0.6, zorder=1)
    front = [] if _mixed(points) else pareto(times, mean, study.metric["higher_is_better"])
    if front:
        # Level to the next point's time, then upright: what lies between two points was not measured.
        corners = [(times[one], mean[one]) for one in front[:1]]
        for before, one in zip(front, front[1:], strict=False):
            corners += [(times[one], mean[before]), (times[one], mean[one])]
        xs, ys = zip(*corners, strict=True)
        axes.plot(xs, ys, color=BLUE, linewidth=0.9, linestyle="--", zorder=2, label="front")
    for one, (x, y) in enumerate(zip(times, mean, strict=True)):
        shape: Line = {"marker": "D", "markerfacecolor": BLUE} if one in front else {"marker": "o", "markerfacecolor": "white"}
        axes.plot([x], [y], markeredgecolor=BLUE, markersize=4.2, markeredgewidth=0.8, zorder=3, label=f"point {one}", **shape)
    at = [(across(x) * size[0], (y - up[0]) / (up[1] - up[0]) * size[1]) for x, y in zip(times, mean, strict=True)]
    said = [names[line["objective"]] for line in points]
    puts = placed(at, said, size, _drawn_lines(axes, size))
    for point, name, put in zip(at, said, puts, strict=True):
        if put is not None:
            _name(axes, point, name, put, size)
    return None not in puts


def _drawn_lines(axes: Axes, size: tuple[float, float]) -> list[Rectangle]:
    """The boxes, in inches from the panel's corner, of the level and upright lines drawn so far."""
    found = []
    to_share = axes.transData + axes.transAxes.inverted()
    for line in axes.lines:
        corners = [(float(x) * size[0], float(y) * size[1]) for x, y in to_share.transform(line.get_path().vertices)]
        for (x, y), (after, other) in zip(corners, corners[1:], strict=False):
            found.append((min(x, after) - HAIR, min(y, other) - HAIR, max(x, after) + HAIR, max(y, other) + HAIR))
    return found


def _time_axis(axes: Axes, points: list[Line], inches: float) -> Any:
    """Limits and ticks of the times; returns the share of the axis at which a time stands."""
    ends = [line[name] for line in points for name in ("step_ms", "step_ms_q1", "step_ms_q3") if line[name] == line[name]]
    least, most = min(ends), max(ends)
    if least <= 0 or most / least <= LOG:
        low, high = _roomy(*limits(ends), share=0.12)
        number_axis(axes, "x", low, high, inches)
        return lambda time: (time - low) / (high - low)
    low, high = least / 1.3, most * 1.6
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [factor * 10.0**power for power in range(-6, 10) for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    while sum(width(text) + 0.1 for text in printed(ticks)) > inches:
        ticks = ticks[::2]
    axes.set_xticks(ticks, printed(ticks))
    axes.set_xticks([], minor=True)
    return lambda time: math.log(time / low) / math.log(high / low)


def _roomy(low: float, high: float, share: float = 0.08) -> tuple[float, float]:
    return low - share * (high - low), high + share * (high - low)


def _name(axes: Axes, point: tuple[float, float], name: str, put: Put, size: tuple[float, float]) -> None:
    if put.lead:
        xs, ys = zip(point, put.lead, strict=True)
        axes.plot([x / size[0] for x in xs], [y / size[1] for y in ys], transform=axes.transAxes, color=INK, linewidth=0.4, zorder=2.5)
    # The corner is that of a whole line's box; descenders hang into it.
    x, y = put.corner[0] / size[0], (put.corner[1] + 0.025) / size[1]
    axes.text(x, y, name, transform=axes.transAxes, va="baseline", color=INK, label="name")


def pareto(times: Sequence[float], values: Sequence[float], higher_is_better: bool) -> list[int]:
    """The places of the points that no other beats: none is as fast and better, or faster and as good. In the order of their times."""
    sign = 1 if higher_is_better else -1
    kept, best = [], -math.inf
    for one in sorted(range(len(times)), key=lambda place: (times[place], -sign * values[place])):
        if sign * values[one] > best:
            kept.append(one)
            best = sign * values[one]
    return kept


def _mixed(points: list[Line]) -> bool:
    """Whether the times were measured on different devices."""
    return len({line["device"] for line in points if isinstance(line.get("device"), str)}) > 1


def _caption(study: Drawn, found: Sequence[tuple[Any, list[Line]]], figure: Figure, numbered: bool, fits: bool) -> str:
    mixed = any(_mixed(points) for _, points in found)
    return sentences(
        f"{study.metric['label']} (mean over the repeats; vertical line: its {study.confidence} t interval) against the time of a training "
        "step (median; horizontal line: quartiles), measured apart from the training runs.",
        "Diamonds joined by the dashed line are the Pareto front of the means: no other objective is as fast and better. The front ignores "
        "the intervals.",
        "A block whose objectives were measured on different devices has no front: their times cannot be compared." if mixed else "",
        goes_on(figure),
        "The numbers are explained below the panels." if numbered else "",
        "" if fits else "A point without a number has no room for one.",
        "Lower is better." if not study.metric["higher_is_better"] else "",
    )
