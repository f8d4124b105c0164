"""Footnotes of a block: which runs are not there, and which comparisons could not be tested, with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

INCOMPLETE = "†"
UNTESTED = "‡"

STATES = ("diverged", "failed", "damaged", "blocked", "running", "missing")
NAMED = 3
"""So many runs of a kind are named one by one; the frame beside the report has them all."""
REASON_CHARACTERS = 160
IDLE = 0.01
"""A term whose gradient never reaches this share of the task's does nothing."""


def incomplete_notes(runs: Mapping[str, list[dict[str, Any]]], complete: Mapping[str, int]) -> list[str]:
    """One note for each way in which objectives are incomplete.

    Args:
        runs: the runs of each objective in this block, by printed label.
        complete: how many repeats of each are complete.
    """
    said: dict[str, list[str]] = defaultdict(list)
    for label, mine in runs.items():
        asked = len({run["repeat"] for run in mine})
        if asked and complete.get(label, 0) == asked:
            continue
        said[_what_is_lacking(mine, complete.get(label, 0), asked)].append(label)
    return [f"{INCOMPLETE} {', '.join(who)}: {what}" for what, who in said.items()]


def _what_is_lacking(runs: list[dict[str, Any]], complete: int, asked: int) -> str:
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        kinds[_state(run)].append(run)
    kept = [name for name in (*STATES, "without a value", "on different data") if name in kinds]
    return f"{complete} of {asked} repeats complete; " + "; ".join(_kind(name, kinds[name]) for name in kept)


def _state(run: Mapping[str, Any]) -> str:
    if run["state"] != "finished":
        return run["state"]
    if run.get("mixed_data"):
        return "on different data"
    return "finished" if run["value"] == run["value"] else "without a value"


def _kind(name: str, runs: list[dict[str, Any]]) -> str:
    if name in ("missing", "running", "without a value", "on different data"):
        return f"{len(runs)} {name}"
    if name == "blocked":
        return f"{len(runs)} blocked by {'; '.join(dict.fromkeys(_short(run['why']) for run in runs))}"
    reasons: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        reasons[_short(run["why"])].append(run)
    return f"{len(runs)} {name}: {'; '.join(_reason(why, mine) for why, mine in reasons.items())}"


def _reason(why: str, runs: list[dict[str, Any]]) -> str:
    named = ", ".join(f"repeat {run['repeat']} (run {run['id']})" for run in runs[:NAMED])
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    return f"{named}{more}{', ' if why else ''}{why}"


def _short(why: Any) -> str:
    # The first line says what happened; a traceback is in the failure file.
    lines = why.strip().splitlines() if isinstance(why, str) else []
    first = lines[0] if lines else ""
    return first if len(first) <= REASON_CHARACTERS else f"{first[:REASON_CHARACTERS]}…"


def untested_notes(tests: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """One note for each reason why comparisons of a block have no p value."""
    said: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        if test["why"]:
            said[test["why"]].append(f"{names[test['objective']]} - {names[test['baseline']]}")
    return [f"{UNTESTED} {', '.join(pairs)}: not tested, {why}" for why, pairs in said.items()]
