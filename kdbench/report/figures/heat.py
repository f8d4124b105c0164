"""Objectives by pairs: the difference to a baseline in each box, coloured by its size, marked by its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.report.figures.sheet import EDGE, Key, blank, explain, foot_height, panel_at, printed, round_ticks, write
from kdbench.report.figures.study import Drawn, Leaf, Place, by_block, lines, listed, place_of, sentences
from kdbench.report.figures.style import COLUMN, GREY, INK, LARGE, LINE, MARKS, PAGE, TALLEST, key_of_marks
from kdbench.report.figures.words import plain, width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    from kdbench.report.manifest import Block

    Colours = tuple[Colormap, Normalize]

Line = dict[str, Any]
Where = tuple[str, Place, str]
"""A box: baseline, block, objective."""

NAME = {COLUMN: 1.0, PAGE: 1.7}
"""The most inches of an objective's name."""

BAR = 0.5
"""Inches to the right of the boxes: the bar of colours with its numbers."""


@dataclass(frozen=True)
class Plan:
    """The sizes of a heat map in inches, and its words broken over lines."""

    wide: float
    box: tuple[float, float]
    left: float
    names: dict[str, list[str]]
    pairs: dict[Place, list[str]]
    upright: bool

    @property
    def head(self) -> float:
        if self.upright:
            return 0.08 + LINE * max(len(pair) for pair in self.pairs.values())
        return 0.08 + max(width(line) for pair in self.pairs.values() for line in pair)


@dataclass(frozen=True)
class Map:
    """What one map shows: its rows (objectives) and columns (pairs)."""

    baseline: str
    rows: list[str]
    blocks: list[Block]


def absent(study: Drawn) -> str:
    from kdbench.report.figures.differences import absent as none

    return none(study)


def leaves(study: Drawn) -> Iterator[Leaf]:
    """A map a baseline, below each other while there is room; one with too many pairs or objectives goes on in another."""
    found: dict[Where, Line] = {}
    for place, part in by_block(study.comparisons).items():
        found |= {(line["baseline"], place, line["objective"]): line for line in lines(part)}
    plan = _plan(study, found)
    sheets: list[list[Map]] = []
    for one in _maps(study, plan, found):
        if not sheets or sum(_tall(study, plan, other) for other in (*sheets[-1], one)) > TALLEST - 1:
            sheets.append([])
        sheets[-1].append(one)
    for some in sheets:
        figure = _drawn(study, plan, some, found, _colours(study))
        baselines = list(dict.fromkeys(study.names[one.baseline] for one in some))
        yield Leaf(figure, f"Differences in {study.metric['label']} to {' and '.join(baselines)}, by pair", _caption(study, baselines))


def _maps(study: Drawn, plan: Plan, found: dict[Where, Line]) -> Iterator[Map]:
    """The maps of each baseline, as many objectives and pairs in one as a page holds."""
    across = max(1, int((PAGE - 2 * EDGE - plan.left - BAR) / plan.box[0]))
    down = max(1, int((TALLEST - plan.head - 1.2) / plan.box[1]))
    blocks = [block for block in study.blocks if any(place == place_of(block) for _, place, _ in found)]
    for baseline in dict.fromkeys(study.manifest["baselines"]):
        rows = [name for name in study.names if any((baseline, place_of(block), name) in found for block in blocks)]
        for top in range(0, len(rows), down):
            for first in range(0, len(blocks), across):
                yield Map(baseline, rows[top : top + down], blocks[first : first + across])


def _plan(study: Drawn, found: dict[Where, Line]) -> Plan:
    need = max([width(_number(study, line)) for line in found.values()] + [0.3]) + 0.08
    blocks = [block for block in study.blocks if any(place == place_of(block) for _, place, _ in found)]
    compared = {name for _, _, name in found}
    for wide in (COLUMN, PAGE):
        names = {name: wrapped(label, NAME[wide]) for name, label in study.names.items() if name in compared}
        left = max(width(line) for name in names.values() for line in name) + 0.1
        room = (wide - 2 * EDGE - left - BAR) / len(blocks)
        if room >= need or wide == PAGE:
            break
    across = min(max(room, need), 0.95)
    titles = {place_of(block): study.title(block) for block in blocks}
    words = [word for title in titles.values() for word in title.split()]
    pairs = {place: wrapped(title, across - 0.06) for place, title in titles.items()}
    upright = max(len(pair) for pair in pairs.values()) <= 3 and max(width(word) for word in words) <= across - 0.06
    if not upright:
        pairs = {place: wrapped(title, 1.5) for place, title in titles.items()}
        across = max(across, LINE * max(len(pair) for pair in pairs.values()) + 0.04)
    tall = max(2 * LINE + 0.06, LINE * max(len(name) for name in names.values()) + 0.04)
    return Plan(wide, (across, tall), left, names, pairs, upright)


def _heading(study: Drawn, plan: Plan, one: Map) -> list[str]:
    text = f"difference to {study.names[one.baseline]} in {plain(study.metric['label'])}{study.unit}{study.direction}"
    return wrapped(text, plan.wide - 2 * EDGE, LARGE)


def _above(study: Drawn, plan: Plan, one: Map) -> float:
    """Inches above a map's boxes: its heading and the names of its pairs."""
    return 1.15 * LARGE / 72 * len(_heading(study, plan, one)) + 0.06 + plan.head


def _tall(study: Drawn, plan: Plan, one: Map) -> float:
    """Inches that a map takes."""
    return _above(study, plan, one) + plan.box[1] * len(one.rows) + 0.12


def _drawn(study: Drawn, plan: Plan, maps: Sequence[Map], found: dict[Where, Line], colours: Colours) -> Figure:
    boxes = [found.get((one.baseline, place_of(block), name)) for one in maps for name in one.rows for block in one.blocks]
    key: list[Key] = [(mark, None) for mark in key_of_marks(line["verdict"] for line in boxes if line)]
    key += [("hatched: no comparison", None)] if any(_is_missing(line) for line in boxes) else []
    foot = foot_height(key, plan.wide)
    figure = blank(plan.wide, EDGE + foot + sum(_tall(study, plan, one) for one in maps))
    top = figure.get_figheight() - EDGE
    for one in maps:
        write(figure, EDGE, top, "\n".join(_heading(study, plan, one)), fontsize=LARGE, va="top")
        size = plan.box[0] * len(one.blocks), plan.box[1] * len(one.rows)
        low = top - _above(study, plan, one) - size[1]
        axes = panel_at(figure, EDGE + plan.left, low, *size)
        _names(axes, plan, one)
        for row, name in enumerate(one.rows):
            for column, block in enumerate(one.blocks):
                _box(axes, (column, row), found.get((one.baseline, place_of(block), name)), study, colours)
        _colour_bar(figure, EDGE + plan.left + size[0] + 0.1, low, size[1], colours)
        top -= _tall(study, plan, one)
    explain(figure, key)
    return figure


def _names(axes: Axes, plan: Plan, one: Map) -> None:
    axes.set(xlim=(0, len(one.blocks)), ylim=(len(one.rows), 0))
    rows = ["\n".join(plan.names[name]) for name in one.rows]
    axes.set_yticks([row + 0.5 for row in range(len(rows))], rows, linespacing=1.1)
    axes.xaxis.tick_top()
    turned: Line = {} if plan.upright else {"rotation": 90, "va": "bottom", "ha": "center", "multialignment": "left"}
    pairs = ["\n".join(plan.pairs[place_of(block)]) for block in one.blocks]
    axes.set_xticks([column + 0.5 for column in range(len(pairs))], pairs, linespacing=1.1, **turned)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colours(study: Drawn) -> Colours:
    """From red (worse) to blue (better), white at 0; one box far from all others does not bleach the rest."""
    import matplotlib
    from matplotlib.colors import Normalize

    sizes = sorted(abs(study.scale * value) for value in study.comparisons["difference"] if math.isfinite(value))
    usual = sizes[len(sizes) // 2] if sizes else 1.0
    most = min(sizes[-1], 4 * usual) if sizes and usual > 0 else (sizes[-1] if sizes else 0.0)
    colours = matplotlib.colormaps["RdBu" if study.metric["higher_is_better"] else "RdBu_r"]
    return colours, Normalize(-(most or 1.0), most or 1.0, clip=True)


def _box(axes: Axes, at: tuple[int, int], line: Line | None, study: Drawn, colours: Colours) -> None:
    from matplotlib.patches import Rectangle

    column, row = at
    edge: Line = {"linewidth": 0.8, "edgecolor": "white"}
    if line is None or _is_missing(line):
        axes.add_patch(Rectangle(at, 1, 1, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0.0, label="missing"))
        return
    face = colours[0](float(colours[1](study.scale * line["difference"])))
    axes.add_patch(Rectangle(at, 1, 1, facecolor=face, label="box", **edge))
    text = f"{_number(study, line)}\n{MARKS.get(line['verdict'], '')}".strip()
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink(face), linespacing=1.05)


def _is_missing(line: Line | None) -> bool:
    return line is None or not line["n"] or not math.isfinite(line["difference"])


def _number(study: Drawn, line: Line) -> str:
    value = study.scale * line["difference"]
    return f"{value:+z.{study.decimals}f}".replace("-", "−") if math.isfinite(value) else ""


def ink(face: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast with the colour (WCAG 2's relative luminance)."""
    light = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in face[:3]]
    luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
    return INK if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def _colour_bar(figure: Figure, x: float, y: float, tall: float, colours: Colours) -> None:
    from matplotlib.patches import Rectangle

    shades, norm = colours
    axes = panel_at(figure, x, y, 0.1, tall)
    low, high = float(norm.vmin or 0), float(norm.vmax or 1)
    steps = 41
    for step in range(steps):
        bottom, height = low + (high - low) * step / steps, (high - low) / steps
        axes.add_patch(Rectangle((0, bottom), 1, height, facecolor=shades((step + 0.5) / steps), linewidth=0))
    axes.set(xlim=(0, 1), ylim=(low, high), xticks=[])
    ticks = round_ticks(low, high, tall, along=False)
    axes.yaxis.tick_right()
    axes.set_yticks(ticks, printed(ticks))


def _caption(study: Drawn, baselines: Sequence[str]) -> str:
    table, margin = study.comparisons, study.margin
    points = " points" if study.metric["percent"] else ""
    within = f", the margin being ±{study.scale * margin:.4g}{points}" if margin is not None else ""
    cut = (study.scale * table["difference"].abs() > (_colours(study)[1].vmax or 0) * (1 + 1e-9)).any()
    lower = not study.metric["higher_is_better"]
    return sentences(
        f"{study.metric['label']} of each objective minus that of {' and of '.join(baselines)} on {study.datasets}, for each pair of "
        f"teacher and student; n = {listed(table.loc[table['n'] > 0, 'n'])}.",
        "Lower is better: blue is lower than the baseline, red higher." if lower else "Blue is better, red is worse.",
        "The colours stop at the ends of the bar, the numbers do not." if cut else "",
        f"A mark is a verdict at {study.confidence} over the suite's {len(table)} comparisons{within}; no mark: undecided, which is not "
        "equal.",
        "Hatched boxes have no comparison." if (table["n"] == 0).any() else "",
    )
