"""The key `claims` of a suite: sentences, such as those of a paper, as comparisons of its objectives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from kdbench.manifest import ClaimComparison, Metric, PaperClaim
from kdbench.plan.schema import MAX_CLAIMS, ClaimFields, Names
from kdbench.plan.yaml import Where

WITH_THAN = ("better", "not_worse", "cheaper")
FORMS = "`better`, `not_worse` or `cheaper` with `than`, or `equal`"
MOST_EQUAL = 10
"""So many losses can be called equal in one claim: each is compared with each."""


class Reader(Protocol):
    """What notes errors, and knows the names of a section."""

    def error(self, where: Where, text: str) -> None: ...

    def known(self, where: Where, name: str, known: Mapping[str, Any], section: str) -> None: ...


def read(
    reader: Reader, given: list[ClaimFields] | None, objectives: Mapping[str, Any], metric: Metric | None, margin: float | None
) -> tuple[PaperClaim, ...]:
    """The claims of a suite, resolved; errors are noted in `reader`.

    Args:
        margin: the suite's, as the metric is stored.
    """
    if len(given or ()) > MAX_CLAIMS:
        reader.error(("claims",), f"expected at most {MAX_CLAIMS} claims, not {len(given or ())}")
        return ()
    found: list[PaperClaim] = []
    for place, one in enumerate(given or ()):
        where: Where = ("claims", place)
        own = margin if one.margin is None else one.margin / (100 if metric and metric.percent else 1)
        comparisons = tuple(_comparisons(reader, where, one, objectives))
        if one.claim in (other.claim for other in found):
            reader.error((*where, "claim"), "the same sentence is another claim, too: join them, or word them differently")
        found.append(PaperClaim(one.claim.strip(), one.source.strip(), comparisons, own))
    return tuple(found)


def _comparisons(reader: Reader, where: Where, one: ClaimFields, objectives: Mapping[str, Any]) -> Iterator[ClaimComparison]:
    sides = {key: _names(getattr(one, key)) for key in (*WITH_THAN, "than", "equal")}
    for key, names in sides.items():
        for place, name in enumerate(names):
            at: Where = (*where, key) if isinstance(getattr(one, key), str) else (*where, key, place)
            reader.known(at, name, objectives, "objectives")
            if name in names[:place]:
                reader.error(at, f"'{name}' is given twice")
    first = [key for key in WITH_THAN if sides[key]]
    if not any(sides.values()):
        reader.error(where, f"the claim compares nothing: give {FORMS}")
    if bool(first) != bool(sides["than"]):
        has, lacks = (f"`{first[0]}`", "than") if first else ("`than`", "better`, `not_worse` or `cheaper")
        reader.error(where, f"{has} needs `{lacks}`: which losses are compared?")
    if one.cost and not sides["cheaper"]:
        reader.error((*where, "cost"), "`cost` says what is cheaper, and this claim has no `cheaper`")
    if one.margin and first == ["cheaper"] and not sides["equal"]:
        reader.error((*where, "margin"), "a margin is for accuracies: costs are not tested")
    if len(sides["equal"]) > MOST_EQUAL:
        reader.error((*where, "equal"), f"expected at most {MOST_EQUAL} losses, not {len(sides['equal'])}")
        return
    for key, relation in (("better", "better"), ("not_worse", "not worse"), ("cheaper", one.cost or "time")):
        for name, other in itertools.product(sides[key], sides["than"]):
            if name == other:
                reader.error((*where, "than"), f"'{name}' is compared with itself")
            yield ClaimComparison(relation, name, other)  # type: ignore[arg-type]
    yield from (ClaimComparison("equal", name, other) for name, other in itertools.combinations(sides["equal"], 2))


def _names(given: Names | None) -> list[str]:
    return [given] if isinstance(given, str) else given or []
