"""The search for the weights of a suite's objectives: what `tune` may say, and the points that are tried first."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from kdbench.choice import is_factor_of, rounded
from kdbench.errors import nearest
from kdbench.manifest import Tuning
from kdbench.plan.reading import FileReader
from kdbench.plan.schema import ObjectiveSpec, Search
from kdbench.plan.yaml import Where

FURTHER = 1
AGAIN = 3
MORE_REPEATS = 2
"""After the first trials: one more point, then the best three on two more repeats."""
FACTORS = (0.1, 10.0)
"""The range of the weight where a suite gives none, times the source's weight."""
GRADIENTS = (0.01, 10.0)
"""The range of a loss without a weight: the size of its gradient at the first step relative to that of the task's loss."""
WEIGHTS = ("weight", "gradient")
"""The dimensions that are not options."""


LEAST, MOST = 1e-9, 1e9
CLOSEST = 1.01
"""Two values of a search differ at least by this factor."""
MOST_TRAININGS = 1_000
"""Of one search."""


def _increasing(value: Any) -> Any:
    if isinstance(value, list) and (len(value) < 2 or not LEAST <= value[0] <= value[-1] <= MOST or sorted(value) != value):
        raise ValueError(f"the values of a search are at least two, increasing, from {LEAST:g} to {MOST:g}")
    return value


class Range(BaseModel, strict=True, extra="forbid"):
    low: float = Field(alias="from", ge=LEAST, le=MOST)
    high: float = Field(alias="to", ge=LEAST, le=MOST)


Dimension = Annotated[Range | list[Annotated[float, Field(allow_inf_nan=False)]], AfterValidator(_increasing)]


class Share(BaseModel, strict=True, extra="forbid"):
    pair: Annotated[list[str], Field(min_length=2, max_length=2)]


class TuneFields(BaseModel, strict=True, extra="allow"):
    """The keys of `tune` that are not dimensions of the search."""

    trials: Annotated[int, Field(ge=AGAIN, le=200)] = 6
    repeats: Annotated[int, Field(ge=1)] = 1
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    share: Share | None = None


WORDS = (*WEIGHTS, *TuneFields.model_fields)
"""What `tune` may say besides options of losses."""


@dataclass(frozen=True)
class Tune:
    """`dimensions` are those that the suite gives for all objectives; `used` those that some objective has."""

    how: Tuning
    dimensions: Mapping[str, list[float]]
    used: set[str]


def read(reader: FileReader, given: Any, dataset: Any, students: Mapping[str, Any], teachers: Mapping[str, Any]) -> Tune | None:
    """What a suite's `tune` says; None without it, or after its errors were noted."""
    if given is None:
        return None
    where: Where = ("tune",)
    fields = reader.checked(where, TuneFields, given)
    if fields is None:
        return None
    pair = None
    if fields.share:
        for place, (name, known, section) in enumerate(zip(fields.share.pair, (students, teachers), ("students", "teachers"), strict=True)):
            if name not in known:
                reader.error((*where, "share", "pair", place), f"'{name}' is not among the suite's {section}{nearest(name, known)}")
        pair = (fields.share.pair[0], fields.share.pair[1])
    if dataset is not None and "validation" not in dataset["options"]:
        problem = f"the dataset '{dataset['name']}' has no option `validation`, so no images can be held out for the trials"
        reader.error(where, problem)
    elif dataset is not None and dataset["options"]["validation"]:
        reader.error(("dataset", "validation"), "with `tune` the final trainings use all images: write the share under `tune`")
    trainings = (fields.trials + FURTHER) * fields.repeats
    if trainings > MOST_TRAININGS:
        reader.error(where, f"each search would have {trainings:,} trainings, and the limit is {MOST_TRAININGS:,}")
        return None
    how = Tuning(fields.trials, fields.repeats, FURTHER, AGAIN, MORE_REPEATS, fields.validation, pair)
    return Tune(how, _dimensions(reader, where, fields.model_extra or {}, how), set())


def _dimensions(reader: FileReader, where: Where, given: Mapping[str, Any], how: Tuning) -> dict[str, list[float]]:
    """Each dimension as its values: as many as there are trials where it is a range."""
    found = {}
    for name, value in given.items():
        dimension = reader.checked((*where, name), Dimension, value)
        if isinstance(dimension, Range) and dimension.low >= dimension.high:
            reader.error((*where, name), f"`from` is not below `to`: {dimension.low:g} and {dimension.high:g}")
        elif dimension is not None:
            found[name] = dimension if isinstance(dimension, list) else grid(dimension.low, dimension.high, how.trials)
            close = [pair for pair in itertools.pairwise(found[name]) if pair[1] < CLOSEST * pair[0]]
            if close:
                reader.error((*where, name), f"the values {close[0][0]:g} and {close[0][1]:g} of the search differ by less than 1 %")
    return found


def grid(low: float, high: float, count: int) -> list[float]:
    """Values between two ends, equal in their ratios."""
    return [rounded(low * (high / low) ** (place / (count - 1))) for place in range(count)]


def search(reader: FileReader, tune: Tune | None, objective: ObjectiveSpec, given: Any, terms: int, weighted: bool) -> Search | None:
    """The search of one objective, whose first `terms` terms are tuned. `given` is its own `tune`: false, or dimensions that replace those
    of the suite. `weighted`: whether its weight is known."""
    where: Where = (*objective.where, "tune")
    if given is not None and tune is None:
        reader.error(where, "the suite has no `tune`: write it at the top level first")
    if tune is None or given is False:
        return None
    if not terms:
        reader.error(objective.where, "no term is left in the second stage, so there is no weight to search for: write `tune: false`")
        return None
    own = _dimensions(reader, where, given, tune.how) if isinstance(given, dict) else {}
    # With two stages, options are those of both, and only the second is searched.
    options = [] if objective.first else [term["options"] for term in objective.config["terms"][:terms]]
    known = {name for some in options for name, value in some.items() if is_factor_of(value)}
    for name in own:
        if name not in (*WEIGHTS, *known):
            lacks = f"has no option '{name}' that is a number above 0{nearest(name, [*WEIGHTS, *known])}"
            lacks = f"has two stages, and only the weight of the second is searched for, not '{name}'" if objective.first else lacks
            reader.error((*where, name), f"'{objective.name}' {lacks}")
    if "weight" in own and "gradient" in own:
        reader.error(where, "`weight` and `gradient` are both ranges of the weight: give one of them")
    shared = {name: values for name, values in tune.dimensions.items() if name in (*WEIGHTS, *known)}
    first = next((name for name in WEIGHTS if name in own), "weight" if weighted else "gradient")
    usual = grid(*(FACTORS if first == "weight" else GRADIENTS), tune.how.trials)
    dimensions = {first: shared.get(first, usual)} | {name: values for name, values in shared.items() if name not in WEIGHTS} | own
    tune.used.update(dimensions)
    if any(not largest(term["weight"]) for term in objective.config["terms"][:terms]):
        reader.error(objective.where, "a weight of 0 is not searched around: leave it out, or write `tune: false`")
    if len(dimensions[first]) != tune.how.trials:
        at: Where = (*where, first) if first in own else ("tune", first)
        problem = f"{len(dimensions[first])} values for {tune.how.trials} trials: every loss gets the same number, so give as many values"
        reader.error(at, problem)
    return Search(dimensions, terms)


def largest(weight: Any) -> float:
    """A weight, or the largest of a schedule."""
    return max(one for _, one in weight) if isinstance(weight, list) else weight


def points(search: Search) -> list[dict[str, float]]:
    """The first trials: the first dimension's values in order and, where there are others, their values in the order of a quasi-random
    sequence (as in a Hammersley set), each equally often or nearly so."""
    (first, values), *others = search.dimensions.items()
    if not others:
        return [{first: value} for value in values]
    from scipy.stats import qmc

    sampler = qmc.Halton(len(others), scramble=False)
    sampler.fast_forward(1)  # the first point is a corner
    ranks = sampler.random(len(values)).argsort(axis=0).argsort(axis=0).tolist()
    return [
        {first: value} | {name: given[rank * len(given) // len(values)] for (name, given), rank in zip(others, mine, strict=True)}
        for value, mine in zip(values, ranks, strict=True)
    ]
