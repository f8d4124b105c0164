"""The boxes of the tables: means, differences, p values and verdicts of a study as entries."""

from __future__ import annotations

from typing import Any

from kdbench.manifest import Manifest
from kdbench.report.notes import INCOMPLETE, fewer_pairs, lacks
from kdbench.report.study import Line
from kdbench.report.table import Entry

VERDICTS = {
    "better": ("▲", "better"),
    "better but below the margin": ("△", "better, below the margin"),
    "equal": ("=", "equal"),
    "worse but below the margin": ("▽", "worse, below the margin"),
    "worse": ("▼", "worse"),
    "unstable": ("!", "unstable"),
    "undecided": ("", ""),
}
"""The mark and the words of each verdict."""
LEAST_P = 0.001


def confidence(manifest: Manifest) -> str:
    return f"{100 * (1 - manifest.alpha):g} %"


def points(manifest: Manifest) -> str:
    """What stands after Δ in the title of a column."""
    return ", points" if manifest.primary.percent else ""


def difference_text(manifest: Manifest, value: float) -> str:
    """A difference, or a margin, in words: `0.2 points`."""
    return f"{100 * value:.2g} points" if manifest.primary.percent else f"{value:.2g}"


def number(manifest: Manifest, value: float | None, signed: bool = False, **more: Any) -> Entry:
    """A number of the primary metric as it is printed: per cent with two decimals, or as stored with four."""
    percent = manifest.primary.percent
    return Entry(value, format=f"{'+z' if signed else ''}.{2 if percent else 4}f", scale=100.0 if percent else 1.0, **more)


def interval(manifest: Manifest, low: float, high: float) -> Entry:
    """An interval by itself."""
    ends = [number(manifest, end, signed=True).text() for end in (low, high)]
    return Entry(f"[{ends[0]}, {ends[1]}]" if low == low else None)


def mean(manifest: Manifest, summary: Line, marks: tuple[str, ...] = ()) -> Entry:
    """Mean ± standard deviation over the complete repeats, marked where repeats or pairs are missing."""
    marks = (*marks, INCOMPLETE) if lacks(summary) else marks
    return number(manifest, summary["mean"], spread=summary["sd"], marks=marks, emphasis=summary["among_best"])


def difference(manifest: Manifest, line: Line, name: str = "difference", ends: str = "") -> Entry:
    """Δ with its own interval, where it has one; marked where it is not over all pairs."""
    marks = (INCOMPLETE,) if fewer_pairs(line) and not ends else ()
    return number(manifest, line[name], signed=True, interval=(line[f"{ends}low"], line[f"{ends}high"]), marks=marks)


def p(manifest: Manifest, value: float) -> Entry:
    """A p value with three decimals, or as many as show on which side of alpha it lies."""
    decimals, alpha = 3, manifest.alpha
    while value == value and round(value, decimals) == round(alpha, decimals) and value != alpha and decimals < 9:
        decimals += 1
    return Entry(value, format=f".{decimals}f", least=LEAST_P)


def verdict(line: Line) -> Entry:
    return Entry(" ".join(VERDICTS[line["verdict"]]).strip())
