"""Every figure of a report, from its data to its files.

Matplotlib's objects are used without pyplot, so that nothing is chosen for, or left behind in, the program that asks.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdbench.report.figures import cost, curves, differences, gradients, heat, seeds
from kdbench.report.figures.sheet import write_out
from kdbench.report.figures.study import Drawing, Drawn
from kdbench.report.figures.style import applied

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["KINDS", "Drawing", "Drawn", "absent", "figures"]

KINDS: dict[str, ModuleType] = {
    "seeds": seeds,
    "differences": differences,
    "cost": cost,
    "heat": heat,
    "curves": curves,
    "gradients": gradients,
}


def figures(study: Drawn) -> Iterator[Drawing]:
    """Every figure whose data are there, written as PDF, PNG and SVG; one of many blocks goes on as `<name>-2` and so on.

    The same study gives the same bytes with the same version of matplotlib.
    """
    for name, kind in KINDS.items():
        if kind.absent(study):
            continue
        leaves = kind.leaves(study)
        told: Counter[str] = Counter()
        for count in itertools.count(1):
            numbered = name if count == 1 else f"{name}-{count}"
            # Inside no `yield`: whoever asks shall not run with our settings.
            with applied(numbered):
                leaf = next(leaves, None)
                if leaf is None:
                    break
                told[leaf.title] += 1
                title = leaf.title if told[leaf.title] == 1 else f"{leaf.title} ({told[leaf.title]})"
                drawn = write_out(leaf.figure, numbered, title)
            yield Drawing(numbered, title, leaf.caption, *drawn)


def absent(study: Drawn) -> dict[str, str]:
    """The figures that are not drawn, and why."""
    return {name: why for name, kind in KINDS.items() if (why := kind.absent(study))}
