"""The trials of tuned objectives, in long format: what was tried, what it reached on the images held out, and what was chosen."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from contextlib import suppress
from typing import Any

import pandas as pd

from kdbench import choice
from kdbench.errors import KdbenchError
from kdbench.manifest import Manifest, ManifestCell
from kdbench.record import Record
from kdbench.store import Store

COLUMNS = (
    *("student", "teacher", "objective", "label", "trial", "repeat", "id", "score", "weight", "factor", "options"),
    *("has_source", "chosen", "edge", "asked", "finals_at"),
)


def trials(store: Store, manifest: Manifest) -> pd.DataFrame | None:
    """One row a trial that has a record, in the order of the manifest; None for a suite that tunes nothing.

    Returns:
        student, teacher, objective, label, trial (its number in the search), repeat, id; score (the metric on the images held out, at the
        last epoch; null: it diverged), weight (of the first term; null for a schedule), factor (of the weights of the objective), options
        (`temperature 2`); has_source (1 or 0: whether these weights are known; else the factor is of 1), chosen (1 or 0: whether the final
        runs are at this point; 0 until the search is complete), edge (`smallest` or `largest` where the chosen value is the end of what
        was tried), asked (trainings of the search), finals_at (at how many points the final runs are: one, unless trials were trained
        again).
    """
    if manifest.tuning is None:
        return None
    searches: dict[tuple[str, str | None, str], list[ManifestCell]] = defaultdict(list)
    for cell in manifest.cells:
        if cell.role == "trial" and cell.objective is not None:
            searches[cell.student, cell.teacher, cell.objective].append(cell)
    finals: dict[tuple[str, str | None, str], Counter[str]] = defaultdict(Counter)
    for cell in manifest.cells:
        if cell.role == "student" and cell.objective is not None and (record := _record(store, cell.id)):
            finals[cell.student, cell.teacher, cell.objective][json.dumps(record.result["tuned"])] += 1
    metric, rows = manifest.primary, []
    for key, cells in searches.items():
        read = [(cell, record) for cell in cells if (record := _record(store, cell.id))]
        chosen, edge = None, ""
        # What the final runs are at, by most of them; before there are any, what the trials choose.
        mine = finals[key] if manifest.tuning.pair is None else sum((finals[one] for one in [*finals] if one[2] == key[2]), Counter())
        with suppress(KdbenchError):  # the final runs say why nothing can be chosen
            tried = choice.candidates([record for _, record in read], metric.name, metric.higher_is_better)
            if tried and (mine or len(read) == len(cells)):
                chosen = json.loads(mine.most_common(1)[0][0]) if mine else choice.best(tried).point
                edge = choice.at_edge(tried, chosen)
        # A range of gradients is given where no weight is known.
        first = [record.config["objective"] for _, record in read]
        has_source = not any("gradient" in (one["tuned"].get("point") or {}) and one["terms"][0]["weight"] == 1 for one in first)
        shared = {"has_source": int(has_source), "label": manifest.labels[key[2]], "asked": len(cells), "finals_at": len(mine)}
        for cell, record in read:
            names = {name: getattr(cell, name) for name in ("student", "teacher", "objective", "trial", "repeat", "id")}
            is_chosen = chosen is not None and record.result["tuned"] == chosen
            own = {"chosen": int(is_chosen), "edge": edge if is_chosen else ""}
            rows.append({**names, **_values(record, metric.name), **shared, **own})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _record(store: Store, cell_id: str) -> Record | None:
    """A trial's record; None without a sound one: its state is said where the final runs are blocked by it."""
    with suppress(KdbenchError):
        record = store.record(cell_id)
        return record if record and record.result.get("tuned") else None
    return None


def _values(record: Record, metric: str) -> dict[str, Any]:
    objective, point = record.config["objective"], record.result["tuned"]
    first = choice.applied(objective, point)["terms"][0]
    options = {name: first["options"][name] for name in point if name in first["options"]}
    history = record.result["history"]
    score = (history[-1].get("val") or {}).get(metric) if record.outcome == "finished" and history else None
    return {
        "score": score,
        "weight": first["weight"] if isinstance(first["weight"], float) else math.nan,
        "factor": point.get("weight", 1.0),
        "options": ", ".join(f"{name} {value:.3g}" for name, value in options.items()),
    }
