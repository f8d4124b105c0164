"""Notes below a group: which runs are not there, which comparisons could not be tested, and which have no verdict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdbench.store.frame import STATES

Line = Mapping[str, Any]

INCOMPLETE = "†"
UNTESTED = "‡"

NAMED = 3
"""So many runs of a kind are named one by one; the frame beside the report has them all."""
REASON_CHARACTERS = 160


def incomplete_notes(objectives: Mapping[str, tuple[Sequence[Line], Line]]) -> list[str]:
    """One note for each way in which objectives are incomplete.

    Args:
        objectives: the runs of each and its summary (n, n_asked), by printed label.
    """
    reasons = {label: f"{lacks(summary)}{_lacking(runs)}" for label, (runs, summary) in objectives.items() if lacks(summary)}
    return [f"{INCOMPLETE} {', '.join(who)}: {what}" for what, who in grouped(reasons.items()).items()]


def grouped(values: Iterable[tuple[str, Any]]) -> dict[Any, list[str]]:
    """The names that have the same value, by that value; each once."""
    found: dict[Any, list[str]] = defaultdict(list)
    for name, value in dict.fromkeys(values):
        found[value].append(name)
    return found


def lacks(summary: Line) -> str:
    """How many of its repeats, or of the suite's pairs, an objective has; empty where it has all."""
    kinds = {"pairs in the suite": ("n_pairs", "n_pairs_asked"), "repeats complete": ("n", "n_asked")}
    kinds["repeats with all trained teachers"] = ("n_taught", "n_taught_asked")
    found = {words: (summary.get(n, 0), summary.get(asked, 0)) for words, (n, asked) in kinds.items()}
    return "; ".join(f"{n} of {asked} {words}" for words, (n, asked) in found.items() if n < asked)


def fewer_pairs(test: Line) -> str:
    """`2 of 4 pairs`, where a comparison over all pairs has no more; else empty."""
    n, every = test.get("n_pairs_asked"), test.get("pairs")
    return f"{n} of {every} pairs" if n is not None and every is not None and n < every else ""


def _lacking(runs: Sequence[Line]) -> str:
    kinds: dict[str, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        kinds[state(run)][_short(run["why"])].append(run)
    kept = [kind for kind in (*STATES, "without a value", "on different data") if kind in kinds]
    return "".join(f"; {sum(map(len, kinds[kind].values()))} {kind}{_reasons(kind, kinds[kind])}" for kind in kept)


def state(run: Line) -> str:
    """What became of a run; a finished one may be without a value or on different data."""
    if run.get("mixed_data"):
        return "on different data"
    return "without a value" if run["state"] == "finished" and run["value"] != run["value"] else run["state"]


def _reasons(kind: str, reasons: Mapping[str, Sequence[Line]]) -> str:
    if kind in ("missing", "running", "without a value"):
        return ""
    if kind == "blocked":
        return f" by {'; '.join(why.removeprefix('blocked by ') for why in reasons)}"
    named = []
    for why, runs in reasons.items():
        first = ", ".join(f"repeat {run['repeat']} (run {run['id']})" for run in runs[:NAMED])
        more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
        named.append(f"{first}{more}{', ' if why else ''}{why}")
    return f": {'; '.join(named)}"


def _short(why: Any) -> str:
    # The first line says what happened; a traceback is in the failure file.
    first = next(iter(why.strip().splitlines()), "") if isinstance(why, str) else ""
    return first if len(first) <= REASON_CHARACTERS else f"{first[:REASON_CHARACTERS]}…"


def untested_notes(tests: Iterable[Line], names: Mapping[str, str]) -> list[str]:
    """One note for each reason why comparisons have no p value, and for each why a tested one has no verdict."""
    every = list(tests)
    several_baselines = len({test["baseline"] for test in every}) > 1
    labels, reasons = set(), []
    for test in every:
        label = names[test["objective"]] + (f" - {names[test['baseline']]}" if several_baselines else "")
        labels.add(label)
        if fewer_pairs(test):
            reasons.append((label, (f"{INCOMPLETE} ", f"Δ over the {fewer_pairs(test)} that have both losses")))
        if test.get("verdict") == "unstable":
            reasons.append((label, ("! ", f"no verdict, since {test['verdict_why']}")))
        elif test["why"]:
            reasons.append((label, (f"{UNTESTED} ", f"not tested: {test['why']}")))
        elif test.get("verdict_why"):
            reasons.append((label, ("", f"no verdict, since {test['verdict_why']}")))
    found = grouped(reasons).items()
    return [f"{mark}{'all' if len(who) == len(labels) > 1 else ', '.join(who)}: {words}" for (mark, words), who in found]
