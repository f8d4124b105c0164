"""Sheets of panels laid out in inches, so that what is measured beforehand is what stands on paper."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.report.figures.style import COLUMN, INK, LARGE, LINE, PAGE, PANELS, RESOLUTION, SMALL, TALL, TALLEST
from kdbench.report.figures.words import width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EDGE = 0.06
TICKS = 0.2
HANDLE, LEAD = 0.3, 0.36
SLACK = 0.12
"""Inches: a sheet's empty edge; a row of tick labels; a line in the key, and from its start to its name; how far a tick's label may
stick out."""

Key = tuple[str, dict[str, Any] | None]
"""A name and the line that it explains (None: it is only words)."""


@dataclass(frozen=True)
class Box:
    """Inches of a panel and around it: `left` of the first column, `between` columns, `right` of each."""

    height: float
    left: float
    between: float
    right: float
    columns: int
    """The most panels side by side on a sheet of two columns."""


@dataclass(frozen=True)
class Sheet:
    """One figure, the panels that it shows (`first` and the ones after it) in so many columns, and their size in inches."""

    figure: Figure
    axes: list[Axes]
    first: int
    columns: int
    panel: tuple[float, float]


def sheets(titles: Sequence[str], box: Callable[[float], Box], xlabel: str, ylabel: str = "", key: Sequence[Key] = ()) -> Iterator[Sheet]:
    """As many figures as the panels need: one column wide if they fit below each other, else both.

    Args:
        titles: one a panel; broken over lines where a panel is narrow.
        box: the panel's sizes on a sheet of the given width.
        key: explained at the foot of each sheet.
    """
    wide, columns = COLUMN, 1
    if _height(titles, box(COLUMN), COLUMN, 1, key) > TALL:
        wide, columns = PAGE, min(len(titles), box(PAGE).columns)
    sizes = box(wide)
    across = _panel_width(sizes, wide, columns)
    heads = [wrapped(title, across + sizes.right, LARGE) for title in titles]
    head = max(_head(lines) for lines in heads)
    foot = foot_height(key, wide) + LINE + 0.06
    most = max(1, int((TALLEST - foot) / (head + sizes.height + TICKS)))
    each = columns * max(1, min(most, PANELS // columns))
    for first in range(0, len(titles), each):
        shown = heads[first : first + each]
        yield _sheet(shown, first, sizes, wide, columns, across, foot, (xlabel, ylabel), key)


def _panel_width(box: Box, wide: float, columns: int) -> float:
    return (wide - 2 * EDGE - box.left - box.between * (columns - 1)) / columns - box.right


def _height(titles: Sequence[str], box: Box, wide: float, columns: int, key: Sequence[Key]) -> float:
    across = _panel_width(box, wide, columns)
    heads = max(_head(wrapped(title, across, LARGE)) for title in titles)
    return len(titles) * (heads + box.height + TICKS) + foot_height(key, wide) + LINE


def _head(lines: Sequence[str]) -> float:
    return 1.15 * LARGE / 72 * len(lines) + 0.08


def _sheet(
    heads: Sequence[list[str]],
    first: int,
    box: Box,
    wide: float,
    columns: int,
    across: float,
    foot: float,
    said: tuple[str, str],
    key: Sequence[Key],
) -> Sheet:
    above = [max(_head(title) for title in heads[start : start + columns]) for start in range(0, len(heads), columns)]
    figure = blank(wide, sum(above) + len(above) * (box.height + TICKS) + foot + EDGE)
    tall = figure.get_figheight()
    axes = []
    for place, title in enumerate(heads):
        row, column = divmod(place, columns)
        x = EDGE + box.left + column * (across + box.right + box.between)
        top = tall - EDGE - sum(above[: row + 1]) - row * (box.height + TICKS)
        panel = panel_at(figure, x, top - box.height, across, box.height)
        write(figure, x, top + 0.05, "\n".join(title), fontsize=LARGE, va="bottom")
        axes.append(panel)
    middle = EDGE + box.left + (wide - 2 * EDGE - box.left - box.right) / 2
    # A long label is centred where it fits, which may be left of the panels' middle.
    middle = min(max(middle, EDGE + width(said[0]) / 2), max(wide - EDGE - width(said[0]) / 2, wide / 2))
    write(figure, middle, foot, said[0], ha="center", va="top")
    if said[1]:
        write(figure, EDGE + 0.01, (tall + foot) / 2, said[1], rotation=90, ha="left", va="center")
    explain(figure, key)
    return Sheet(figure, axes, first, columns, (across, box.height))


def blank(wide: float, tall: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, tall), facecolor="white")


def panel_at(figure: Figure, x: float, y: float, wide: float, tall: float) -> Axes:
    """Axes whose lower left corner and size are given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((x / across, y / up, wide / across, tall / up))


def write(figure: Figure, x: float, y: float, text: str, **looks: Any) -> None:
    """Text at a place in inches from the figure's lower left corner."""
    figure.text(x, y, text, transform=figure.dpi_scale_trans, **{"fontsize": SMALL, "color": INK, "linespacing": 1.15, **looks})


def explain(figure: Figure, key: Sequence[Key]) -> None:
    """The key at the foot of a figure, its names one after the other, in as many lines as they need."""
    from matplotlib.lines import Line2D

    wide = figure.get_figwidth()
    y = foot_height(key, wide)
    for row in _rows(key, wide):
        for x, lines, looks in row:
            lead = 0.0
            if looks is not None:
                along = [x, x + HANDLE / 2, x + HANDLE]
                shown = {"marker": "", "linewidth": 1.0, "markersize": 3.2, **looks}
                figure.add_artist(Line2D(along, [y - LINE / 2] * 3, transform=figure.dpi_scale_trans, markevery=[1], **shown))
                lead = LEAD
            write(figure, x + lead, y - 0.75 * LINE, "\n".join(lines), va="baseline", label="key")
        y -= LINE * max(len(lines) for _, lines, _ in row)


def _rows(key: Sequence[Key], wide: float) -> list[list[tuple[float, list[str], dict[str, Any] | None]]]:
    """Where each name of the key begins, broken over lines where it is wider than the figure; line by line."""
    found: list[list[tuple[float, list[str], dict[str, Any] | None]]] = []
    x = wide
    for name, looks in key:
        lead = LEAD if looks is not None else 0.0
        lines = wrapped(name, wide - 2 * EDGE - lead)
        needs = lead + max(width(line) for line in lines)
        if not found or x + needs > wide - EDGE:
            found.append([])
            x = EDGE
        found[-1].append((x, lines, looks))
        x += needs + 0.16
    return found


def foot_height(key: Sequence[Key], wide: float) -> float:
    """Inches that the key takes at the foot of a figure, with the edge below it."""
    lines = sum(max(len(lines) for _, lines, _ in row) for row in _rows(key, wide))
    return EDGE + LINE * lines


def printed(values: Sequence[float]) -> list[str]:
    """Round numbers with the same decimals each, and a true minus."""
    shortest = [f"{value:.6g}" if abs(value) > 1e-12 else "0" for value in values]
    if any("e" in one for one in shortest):
        return [one.replace("-", "−") for one in shortest]
    decimals = max((len(one.partition(".")[2]) for one in shortest), default=0)
    return [f"{value:z.{decimals}f}".replace("-", "−") for value in values]


def round_ticks(low: float, high: float, inches: float, along: bool = True) -> list[float]:
    """Round numbers between the limits, as many as their printed labels leave room for.

    Args:
        inches: the axis's length.
        along: labels stand along the axis, so that their width counts, else their height.
    """
    from matplotlib.ticker import MaxNLocator

    slack = 1e-9 * max(abs(low), abs(high))
    kept: list[tuple[float, float, float]] = []
    for wanted in range(7, 0, -1):
        steps = MaxNLocator(wanted, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks = [float(tick) for tick in steps if low - slack <= tick <= high + slack]
        at = [(tick - low) / (high - low) * inches for tick in ticks]
        sizes = [width(text) if along else LINE for text in printed(ticks)]
        placed = zip(ticks, at, sizes, strict=True)
        kept = [one for one in placed if not along or (one[1] - one[2] / 2 > -SLACK and one[1] + one[2] / 2 < inches + SLACK)]
        if kept and _keep_apart(kept):
            break
    while not _keep_apart(kept):
        kept = kept[1::2]
    return [tick for tick, _, _ in kept]


def _keep_apart(ticks: Sequence[tuple[float, float, float]]) -> bool:
    """Whether labels, as (number, place, size), leave room between each other."""
    return all(x + size / 2 + 0.06 <= after - other / 2 for (_, x, size), (_, after, other) in itertools.pairwise(ticks))


def number_axis(axes: Axes, name: str, low: float, high: float, inches: float) -> None:
    """Limits and round ticks of the axis `x` or `y`."""
    ticks = round_ticks(low, high, inches, along=name == "x")
    axes.set(**{f"{name}lim": (low, high)})
    getattr(axes, f"set_{name}ticks")(ticks, printed(ticks))


def limits(points: Sequence[float], intervals: Sequence[tuple[float, float]] = (), always: Sequence[float] = ()) -> tuple[float, float]:
    """Limits that hold every point, and every interval but those more than four times as long as the usual one (two repeats make
    such), which would squeeze all others."""
    halves = sorted(abs(high - low) for low, high in intervals if math.isfinite(low) and math.isfinite(high))
    usual = halves[len(halves) // 2] if halves else 0.0
    ends = [end for low, high in intervals if abs(high - low) <= 4 * usual for end in (low, high)]
    held = [value for value in (*points, *ends, *always) if math.isfinite(value)]
    low, high = min(held, default=0.0), max(held, default=1.0)
    pad = 0.05 * (high - low) or 0.01 * abs(high) or 1.0
    return low - pad, high + pad


GOES_ON = "goes on"


def bar(axes: Axes, at: float, low: float, high: float, upright: bool = False, **looks: Any) -> None:
    """An interval, level at the height `at` or upright; where it leaves the panel, an arrowhead says that it goes on."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return
    least, most = sorted(axes.get_ylim() if upright else axes.get_xlim())
    drawn = [max(low, least), min(high, most)]
    axes.plot(*(([at, at], drawn) if upright else (drawn, [at, at])), solid_capstyle="butt", **looks)
    for beyond, end, marker in ((low < least, least, "v" if upright else "<"), (high > most, most, "^" if upright else ">")):
        if beyond:
            head = {"markersize": 3.5, "markeredgewidth": 0, "color": looks.get("color", INK)}
            axes.plot(*(([at], [end]) if upright else ([end], [at])), marker=marker, clip_on=False, label=GOES_ON, **head)


def goes_on(figure: Figure) -> str:
    """The sentence that a figure with a cut interval owes."""
    cut = any(line.get_label() == GOES_ON for axes in figure.axes for line in axes.lines)
    return "An arrowhead: the interval goes on beyond the panel." if cut else ""


def write_out(figure: Figure, name: str, title: str) -> tuple[bytes, bytes, str]:
    """The figure as PDF, PNG and one SVG element; the same figure gives the same bytes."""
    files = {}
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "Title": title},
        "png": {"Software": None, "Title": title},
        "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    }
    for form, said in metadata.items():
        into = io.BytesIO()
        figure.savefig(into, format=form, dpi=RESOLUTION if form == "png" else 72, metadata=said)
        files[form] = into.getvalue()
    return files["pdf"], files["png"], _element(files["svg"].decode(), name)


def _element(svg: str, name: str) -> str:
    """The SVG without prolog, its ids made the figure's own: one page holds several figures."""
    start = svg[svg.index("<svg") :]

    def own(tag: re.Match[str]) -> str:
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag[0])

    return re.sub(r"<[^!>][^>]*>", own, start).replace("<svg ", '<svg role="img" ', 1).strip()
