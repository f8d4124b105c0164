"""How every figure looks: sizes for a paper's column, colours that the colour-blind tell apart, and marks that need no colour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

SMALL = 7.0
"""Points; no text of a figure is smaller."""

LARGE = 8.0
"""Titles. They are not bold: each face more is a third of a second more in a PDF."""

COLUMN, PAGE = 3.3, 6.9
"""Widths in inches: one column of a paper, and both."""

TALL, TALLEST = 7.0, 9.0
"""Heights in inches: what one column may grow to before a figure takes both, and what a page holds."""

LINE = 0.125
"""Inches from one line of small text to the next."""

PANELS = 12
"""The most panels of one figure."""

RESOLUTION = 200
"""Dots per inch of a PNG."""

COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#949494", "#56b4e9")
"""seaborn's palette "colorblind" without its pink and yellow, which white paper swallows."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES = ("-", "--", "-.", ":")

BLUE, GREEN, VERMILION = COLOURS[0], COLOURS[2], COLOURS[3]
INK, GREY, PALE = "#000000", "#707070", "#d9d9d9"

MARKS = {
    "better": "▲",
    "better but below the margin": "△",
    "equal": "=",
    "worse": "▼",
    "worse but below the margin": "▽",
    "undecided": "",
}
"""Each verdict's mark, as in the tables."""

INCOMPLETE = "†"


def key_of_marks(verdicts: Iterable[str]) -> list[str]:
    """Each mark that stands in a figure, with what it says."""
    there = set(verdicts)
    return [f"{mark or 'no mark:'} {verdict}" for verdict, mark in MARKS.items() if verdict in there]


def look(place: int) -> dict[str, Any]:
    """Colour, marker and line of the objective or term at this place: 24 different ones before colour and marker come again."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place // len(COLOURS) % len(LINES)],
    }


@contextmanager
def applied(salt: str) -> Iterator[None]:
    """Matplotlib with our settings and nobody else's; afterwards everything is as it was.

    Args:
        salt: what the ids inside an SVG are made from, so that they are the same each time.
    """
    import matplotlib

    ours: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": SMALL,
        **dict.fromkeys(("axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), SMALL),
        "text.parse_math": False,  # a `$` in a name is a dollar
        "text.usetex": False,
        "axes.unicode_minus": True,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "hatch.linewidth": 0.5,
        "hatch.color": GREY,
        **dict.fromkeys(("xtick.major.width", "ytick.major.width"), 0.6),
        **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
        **dict.fromkeys(("xtick.major.pad", "ytick.major.pad"), 2.0),
        "pdf.fonttype": 42,  # text stays text
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "savefig.facecolor": "white",
        "savefig.bbox": None,
        "figure.dpi": 100,
    }
    kept = ("backend", "backend_fallback", "interactive", "toolbar")
    plain: dict[str, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in kept}
    settings: Any = {**plain, **ours}
    with matplotlib.rc_context(settings):
        yield
