"""Text in a figure: how wide it is, where it breaks, and what the font cannot print."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from kdbench.report.figures.style import SMALL

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

UNKNOWN = "�"
BREAKS = "_-/·.,:;)]"
"""Characters after which a word may be cut."""


@functools.cache
def _font() -> FT2Font:
    from pathlib import Path

    import matplotlib
    from matplotlib.ft2font import FT2Font

    return FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))


@functools.cache
def _printable() -> frozenset[int]:
    return frozenset(_font().get_charmap())


def plain(text: str) -> str:
    """Text on one line that the font can print: what it lacks becomes �."""
    return "".join(one if ord(one) in _printable() and one.isprintable() else UNKNOWN for one in " ".join(str(text).split()))


@functools.lru_cache(maxsize=4096)
def width(text: str, size: float = SMALL) -> float:
    """The width in inches of a line of text at `size` points."""
    from matplotlib.ft2font import LoadFlags

    font = _font()
    font.set_size(size, 72)
    font.set_text(text, 0.0, flags=LoadFlags.NO_HINTING)
    # 26.6 fixed point, at 72 dots an inch.
    return float(font.get_width_height()[0]) / 64 / 72


def wrapped(text: str, most: float, size: float = SMALL) -> list[str]:
    """Lines of at most `most` inches that together are the whole text: broken at spaces; within a word only where it is wider than a
    line, and there after an underscore or hyphen, else anywhere."""
    found = [""]
    for word in text.split(" "):
        joined = f"{found[-1]} {word}" if found[-1] else word
        if width(joined, size) <= most:
            found[-1] = joined
            continue
        first, *rest = _pieces(word, most, size)
        found[-1:] = [found[-1], first, *rest] if found[-1] else [first, *rest]
    return found


def _pieces(word: str, most: float, size: float) -> list[str]:
    """A word cut so that each piece fits a line."""
    found = []
    while len(word) > 1 and width(word, size) > most:
        fits = max((end for end in range(1, len(word)) if width(word[:end], size) <= most), default=1)
        natural = [end for end in range(fits // 3 + 1, fits + 1) if word[end - 1] in BREAKS]
        end = natural[-1] if natural else fits
        found.append(word[:end])
        word = word[end:]
    return [*found, word]
