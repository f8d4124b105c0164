"""What a search for the weights of an objective chooses, from the records of its trials: a pure function of them.

A tuned objective holds `tuned`: what it is of the search. `{"point": {...}}` is a trial of a given point; `{"pick": "further"}` is one
more trial, beyond the best of the first ones where that is the first or the last of them, else between the best and the better of its
neighbours; `{"pick": k}` is the trial at place k (from 0) by the mean of what was seen so far; `{"pick": "best"}` is the best of those
that were tried on the most repeats.

A point gives a factor for each dimension: `weight` for the weights of the objective, the others for options of its losses. In place of
`weight`, the first trials may have `gradient`: the size of the distillation gradient relative to the task's at the first
step, which the training turns into a weight; the record holds that weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.errors import DataError
from kdbench.record import Record

Point = dict[str, float]
WORD = "choose."
"""How the roles of the trials begin in a cell's `depends`: they are numbered."""


@dataclass
class Candidate:
    """A point that was tried, with one score a repeat, higher is better; minus infinity where the training diverged."""

    point: Point
    scores: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


def candidates(records: Iterable[Record], metric: str, higher_is_better: bool = True) -> list[Candidate]:
    """The points of some trials, in the order in which they first appear. `metric` is read at the last epoch, on the images held out of
    training. A trial whose first stage diverged says nothing of its point, which is of the second. Raises DataError: a record has no such
    metric, or no trial reached its second stage."""
    found: list[Candidate] = []
    for record in records:
        point = record.result.get("tuned")
        if point is None:
            raise DataError(f"the trial {record.id} does not say which point it tried")
        if "diverged_in" in record.result:
            continue
        score = -math.inf
        if record.outcome == "finished":
            held_out = record.result["history"][-1].get("val") or {}
            if metric not in held_out:
                raise DataError(f"the trial {record.id} has no {metric} on images held out of training")
            if held_out[metric] is not None:  # it is null where it is not finite
                score = held_out[metric] if higher_is_better else -held_out[metric]
        same = next((one for one in found if one.point == point), None)
        if same is None:
            found.append(same := Candidate(dict(point)))
        same.scores.append(score)
    if not found:
        raise DataError("the first stage of every trial diverged: give `two_stages` a smaller `lr` or `weight`")
    return found


def ranked(tried: Sequence[Candidate]) -> list[Candidate]:
    """Best first; the first of equals."""
    return sorted(tried, key=lambda one: -one.mean)


def best(tried: Sequence[Candidate]) -> Candidate:
    """The best of those that were tried on the most repeats. Raises DataError: all of them diverged."""
    most = max(len(one.scores) for one in tried)
    found = ranked([one for one in tried if len(one.scores) == most])[0]
    if found.mean == -math.inf:
        raise DataError("every trial that was repeated diverged: give a smaller range of weights")
    return found


def at_edge(tried: Sequence[Candidate], chosen: Point) -> str:
    """`smallest` or `largest` where the first dimension of a point is the end of what was tried; else empty."""
    name = _first(chosen)
    values = [one.point[name] for one in tried]
    return "smallest" if chosen[name] == min(values) else "largest" if chosen[name] == max(values) else ""


def picked(tuned: Mapping[str, Any], records: Iterable[Record]) -> Point:
    """The point of a tuned objective. `records` are those of the trials that its cell depends on. Raises DataError: they do not tell."""
    if "point" in tuned:
        return dict(tuned["point"])
    tried = candidates(records, tuned["metric"], tuned["higher_is_better"])
    if tuned["pick"] == "best":
        return best(tried).point
    return _further(tried) if tuned["pick"] == "further" else ranked(tried)[tuned["pick"]].point


def _further(tried: Sequence[Candidate]) -> Point:
    """One more point: beyond the end of the first dimension where the best is there, else halfway to the better neighbour, as ratios."""
    name = _first(tried[0].point)
    order = sorted(tried, key=lambda one: one.point[name])
    values = [one.point[name] for one in order]
    place = order.index(ranked(tried)[0])
    step = (values[-1] / values[0]) ** (1 / (len(values) - 1))
    if place == 0:
        value = values[0] / step
    elif place == len(values) - 1:
        value = values[-1] * step
    else:
        neighbour = max((place - 1, place + 1), key=lambda one: order[one].mean)
        value = math.sqrt(values[place] * values[neighbour])
    return order[place].point | {name: rounded(value)}


def _first(point: Mapping[str, float]) -> str:
    return "weight" if "weight" in point else next(iter(point))


def rounded(value: float) -> float:
    """Four digits: they are hashed, and no library or processor changes them."""
    return float(f"{value:.4g}")


def applied(objective: Mapping[str, Any], point: Mapping[str, float]) -> dict[str, Any]:
    """An objective at a point: the weights and options of its first `tuned["terms"]` terms times the factors of the point."""
    terms = list(objective["terms"])
    for place, term in enumerate(terms[: objective["tuned"]["terms"]]):
        factor = point.get("weight", 1.0)
        weight = term["weight"]
        scaled = [[epoch, factor * one] for epoch, one in weight] if isinstance(weight, list) else factor * weight
        own = {name: _times(term["options"][name], value) for name, value in point.items() if is_factor_of(term["options"].get(name))}
        terms[place] = {**term, "weight": scaled, "options": {**term["options"], **own}}
    return {**{name: value for name, value in objective.items() if name != "tuned"}, "terms": terms}


def is_factor_of(option: Any) -> bool:
    """Whether an option is a number above 0, which a factor can change."""
    return type(option) in (int, float) and option > 0


def _times(option: float, factor: float) -> float:
    return max(1, round(option * factor)) if type(option) is int else option * factor
