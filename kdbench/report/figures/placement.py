"""Where the names of points go: beside them, on nothing else, the same way each time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdbench.report.figures.style import LINE
from kdbench.report.figures.words import width

DOT = 0.045
NEAR = 0.035
"""Inches: half a marker, and from a marker's edge to its name."""

FAR = (0.12, 0.2, 0.3, 0.45, 0.65, 0.9, 1.2)
"""How far a name may go from its point, in inches, when there is no room beside it; a line then leads to it."""

TRIES = 8
"""How often the order of the names is changed for one that found no place."""

Rectangle = tuple[float, float, float, float]
"""Left, bottom, right, top."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Put:
    """A name's lower left corner, and the end of the line that leads to its point (None: it stands right beside it)."""

    corner: Point
    lead: Point | None


def placed(points: Sequence[Point], names: Sequence[str], panel: Point, blocked: Sequence[Rectangle] = ()) -> list[Put | None]:
    """A place for each name, in inches from the panel's lower left corner; None for a name that has none.

    The first place that is free is taken, from the left point to the right: beside the point, then further and further away. A name
    that finds none is tried before all others. A name overlaps no other name, no marker and no line that leads to another, stays in
    the panel, and where no line leads to it is nearest to its own point.

    Args:
        points: inches from the panel's lower left corner.
        panel: its width and height in inches.
        blocked: what no name shall cover while there is another place; the lines that lead to names may cross it.
    """
    found: list[Put | None] = []
    for loose in (False, True):
        order = sorted(range(len(points)), key=lambda place: (points[place], place))
        for _ in range(TRIES):
            found = _attempt(points, names, panel, blocked, order, loose)
            stuck = [place for place in order if found[place] is None]
            if not stuck:
                return found
            order.remove(stuck[0])
            order.insert(0, stuck[0])
    return found


@dataclass(frozen=True)
class _Taken:
    """What is on a panel already: names, and the lines that lead to them."""

    points: Sequence[Point]
    panel: Point
    boxes: list[Rectangle]
    leads: list[tuple[Point, Point]]

    def has_room(self, one: int, box: Rectangle, lead: Point | None) -> bool:
        """Whether the name of a point can stand in the box."""
        point, others = self.points[one], [other for place, other in enumerate(self.points) if place != one]
        if box[0] < 0 or box[1] < 0 or box[2] > self.panel[0] or box[3] > self.panel[1]:
            return False
        if not lead and _away(point, box) > min((_away(other, box) for other in others), default=math.inf):
            return False
        if any(_overlap(box, other) for other in (*self.boxes, *map(_dot, self.points))):
            return False
        if any(_crosses(*other, box) for other in self.leads):
            return False
        return not lead or not any(_crosses(point, lead, other) for other in (*self.boxes, *map(_dot, others)))


def _attempt(
    points: Sequence[Point], names: Sequence[str], panel: Point, blocked: Sequence[Rectangle], order: Sequence[int], loose: bool
) -> list[Put | None]:
    """The names placed one after the other. `loose`: one that finds no place beside what is blocked may cover it."""
    taken = _Taken(points, panel, [], [])
    found: list[Put | None] = [None] * len(points)
    for one in order:
        chosen = None
        for box, lead in _candidates(points[one], width(names[one]) + 0.02):
            covers = any(_overlap(box, other) for other in blocked)
            if (covers and (chosen or not loose)) or not taken.has_room(one, box, lead):
                continue
            chosen = box, lead
            if not covers:
                break
        if chosen:
            box, lead = chosen
            taken.boxes.append(box)
            taken.leads.extend([(points[one], lead)] if lead else [])
            found[one] = Put((box[0] + 0.01, box[1] + 0.01), lead)
    return found


def _dot(point: Point) -> Rectangle:
    return point[0] - DOT, point[1] - DOT, point[0] + DOT, point[1] + DOT


def _candidates(point: Point, wide: float) -> Iterator[tuple[Rectangle, Point | None]]:
    x, y = point
    out = DOT + NEAR
    corners = [
        (x + out, y - LINE / 2),
        (x - out - wide, y - LINE / 2),
        (x - wide / 2, y + out),
        (x - wide / 2, y - out - LINE),
        *((x + side * out - (wide if side < 0 else 0), y + up * out - (LINE if up < 0 else 0)) for up in (1, -1) for side in (1, -1)),
    ]
    for left, bottom in corners:
        yield (left, bottom, left + wide, bottom + LINE), None
    for away in FAR:
        for step in range(24):
            angle = 2 * math.pi * step / 24
            end = (x + away * math.cos(angle), y + away * math.sin(angle))
            left = end[0] if math.cos(angle) > 0.3 else end[0] - wide if math.cos(angle) < -0.3 else end[0] - wide / 2
            bottom = end[1] if math.sin(angle) > 0.9 else end[1] - LINE if math.sin(angle) < -0.9 else end[1] - LINE / 2
            yield (left, bottom, left + wide, bottom + LINE), end


def _away(point: Point, box: Rectangle) -> float:
    """How far a point is from a box."""
    return math.hypot(*(max(box[axis] - point[axis], 0.0, point[axis] - box[axis + 2]) for axis in (0, 1)))


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _crosses(start: Point, end: Point, box: Rectangle) -> bool:
    """Whether the line from `start` to `end` passes through the box (Liang and Barsky's clipping)."""
    first, last = 0.0, 1.0
    for axis in (0, 1):
        step = end[axis] - start[axis]
        low, high = box[axis] - start[axis], box[axis + 2] - start[axis]
        if step == 0:
            if low >= 0 or high <= 0:
                return False
            continue
        near, far = sorted((low / step, high / step))
        first, last = max(first, near), min(last, far)
    return first < last
