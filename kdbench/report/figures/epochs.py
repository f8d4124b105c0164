"""Lines over epochs, each a mean over runs with a band: what the curves and the gradients share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdbench.report.figures.sheet import Box, Key, number_axis
from kdbench.report.figures.study import Drawn, Place, by_block
from kdbench.report.figures.style import look

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MARKED = 7
"""About so many markers stand on a line."""

ENDS = "ends early"


def of_blocks(study: Drawn, column: str) -> dict[Place, pd.DataFrame]:
    """The rows of the students' histories that have a value in `column`, in each block that their run belongs to."""
    if study.histories is None or column not in study.histories:
        return {}
    rows = study.histories.loc[study.histories["epoch"] >= 0, ["id", "epoch", "term", column]].dropna(subset=[column])
    # Runs that saw other data are never averaged with these.
    runs = study.students.loc[~study.students["mixed_data"].astype(bool), ["dataset", "teacher", "student", "objective", "id"]]
    return by_block(runs.merge(rows, on="id"))


def band(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean, least and most over the runs at each epoch, as far as all of them go: a mean over those that survived would be one over
    other runs.

    Returns:
        epoch, mean, min, max, count (runs).
    """
    found = rows.groupby("epoch")[column].agg(["mean", "min", "max", "count"]).reset_index()
    return found[found["count"] == found["count"].max()]


def line_box(wide: float) -> Box:
    return Box(1.8, 0.55, 0.42, 0.1, 3)


def lines_key(names: Mapping[str, str], places: Mapping[str, int]) -> list[Key]:
    return [(label, look(places[name])) for name, label in names.items()]


def draw_line(axes: Axes, found: pd.DataFrame, place: int, last: int, scale: float, floor: float | None = None) -> None:
    """A mean with its band; a line that ends before the last epoch gets a cross.

    Args:
        floor: what is smaller is drawn there (a logarithmic axis has no zero).
    """
    mean, least, most = (scale * found[name].to_numpy() for name in ("mean", "min", "max"))
    if floor is not None:
        mean, least, most = mean.clip(floor), least.clip(floor), most.clip(floor)
    looks: dict[str, Any] = look(place)
    every = max(1, -(-len(found) // MARKED))
    axes.fill_between(found["epoch"], least, most, color=looks["color"], alpha=0.15, linewidth=0, zorder=1)
    fixed: dict[str, Any] = {"linewidth": 1.0, "markersize": 3.0, "markeredgewidth": 0.0, "markevery": (place % every, every)}
    axes.plot(found["epoch"], mean, zorder=2, label=f"line {place}", **fixed, **looks)
    if found["epoch"].iloc[-1] < last:
        end: dict[str, Any] = {"marker": "x", "color": looks["color"], "markersize": 5, "markeredgewidth": 1.2}
        axes.plot([found["epoch"].iloc[-1]], [mean[-1]], zorder=3, label=ENDS, **end)


def epoch_axis(axes: Axes, tables: list[pd.DataFrame], inches: float) -> int:
    """Limits and ticks of the epochs; returns the last one."""
    first = min(int(found["epoch"].min()) for found in tables)
    last = max(int(found["epoch"].max()) for found in tables)
    pad = 0.03 * (last - first) or 0.5
    number_axis(axes, "x", first - pad, last + pad, inches)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick == round(tick)])
    axes.set_xticks(axes.get_xticks(), [f"{tick:.0f}" for tick in axes.get_xticks()])
    return last


def ends_early(axes: list[Axes]) -> str:
    """The sentence that a figure with a line that stops owes."""
    cut = any(line.get_label() == ENDS for one in axes for line in one.lines)
    return "A cross: a line ends where its first run does." if cut else ""
