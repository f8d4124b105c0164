"""Every figure of a report, from its data to its files.

seaborn draws into Figure objects that are made without pyplot, so no figure stays open, no display is needed, and the caller's
settings do not change. Importing this package loads seaborn: import it where figures are drawn.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from kdbench.report import document
from kdbench.report.figures import differences, epochs, similarity, tuning, values
from kdbench.report.figures.figure_data import Content, FigureData
from kdbench.report.figures.panels import GREY, SMALL

__all__ = ["KINDS", "FigureData", "figures"]

KINDS: dict[str, Callable[[FigureData], Content | None]] = {
    "differences": differences.forest,
    "heat": differences.heat_map,
    "seeds": values.repeats,
    "cost": values.costs,
    "curves": epochs.curves,
    "gradients": epochs.gradients,
    "tuning": tuning.tuning,
    "cka": similarity.layers,
}
"""By the name of its files: what a figure shows; None where its data are not there."""


MOST_PAIRS = 40
"""With more pairs than this, only the first page of each figure is drawn unless all are asked for, which takes minutes."""


def figures(study: FigureData, every_page: bool = True) -> Iterator[document.Figure]:
    """Every figure whose data are there, as PDF, PNG and SVG; one of many pairs continues as `<name>-2` and so on.

    The same study gives the same bytes with the same versions of matplotlib and seaborn.
    """
    many = len(study.manifest.blocks) > MOST_PAIRS and not every_page
    for name, content in KINDS.items():
        # Not around the `yield`: the caller's settings hold between two figures.
        with applied(name):
            title, caption, pages = content(study) or ("", "", iter(()))
            drawn = [rendered(page, title) for page in itertools.islice(pages, 1 if many else None)]
        caption += f" Only the first page is drawn, since there are more than {MOST_PAIRS} pairs; --figures draws all." if many else ""
        for page, files in enumerate(drawn, start=1):
            number, counted = (f"-{page}", f" ({page})") if page > 1 else ("", "")
            yield document.Figure(name + number, title + counted, caption, *files)


@contextmanager
def applied(salt: str) -> Iterator[None]:
    """Matplotlib with these settings only; afterwards the caller's settings are back.

    Args:
        salt: seeds the ids inside an SVG, so that they are the same each time.
    """
    ours: dict[str, Any] = {
        "font.family": "DejaVu Sans",
        **{f"{part}size": SMALL for part in ("font.", "axes.label", "axes.title", "legend.font", "figure.label")},
        **{f"{axis}tick.{part}": size for axis in "xy" for part, size in (("labelsize", SMALL), ("major.size", 2.5), ("major.pad", 2.0))},
        "axes.titlelocation": "left",
        "axes.linewidth": 0.6,
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "axes.formatter.useoffset"), False),
        "text.parse_math": False,  # a `$` in a name is a dollar
        "hatch.linewidth": 0.5,
        "hatch.color": GREY,
        "legend.borderaxespad": 0.2,
        "pdf.fonttype": 42,  # text stays text
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
    }
    with matplotlib.style.context(ours, after_reset=True), warnings.catch_warnings():  # type: ignore[arg-type]
        # A letter that the font lacks is a box.
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield


def rendered(figure: Figure, title: str) -> tuple[bytes, bytes, str]:
    """The figure as PDF, PNG and one SVG element, without dates."""
    files = {}
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "Title": title},
        "png": {"Software": None, "Title": title},
        "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    }
    for form, facts in metadata.items():
        into = io.BytesIO()
        figure.savefig(into, format=form, dpi=200 if form == "png" else 72, metadata=facts)
        files[form] = into.getvalue()
        # The layout is computed once, for the PDF.
        figure.set_layout_engine("none")
    svg = files["svg"].decode()
    return files["pdf"], files["png"], svg[svg.index("<svg") :].strip()
