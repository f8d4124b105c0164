"""The trials of tuned objectives: what was tried, what it reached on the images held out, what was chosen; as a frame and as a table."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pandas as pd

from kdbench import choice
from kdbench.errors import KdbenchError
from kdbench.manifest import Manifest, ManifestCell, Tuning
from kdbench.record import Record
from kdbench.report.study import Study, lines, plural, some
from kdbench.report.table import Column, Entry, Group, Table
from kdbench.store import Store

COLUMNS = (
    *("student", "teacher", "objective", "label", "trial", "repeat", "id", "score", "weight", "factor", "options"),
    *("has_source", "chosen", "edge", "asked", "finals_at"),
)


def trials(store: Store, manifest: Manifest) -> pd.DataFrame | None:
    """One row a trial that has a record, in the order of the manifest; None for a suite that tunes nothing.

    Returns:
        student, teacher, objective, label, trial (its number in the search), repeat, id; score (the metric on the images held out, at the
        last epoch; null: it diverged), weight (of the first term; null for a schedule), factor (of the weights of the objective),
        has_source (whether these weights are known; else the factor is of 1), options (`temperature 2`), chosen (whether the final runs
        are at this point; false until the search is complete), edge (`smallest` or `largest` where the chosen value is the end of what was
        tried), asked (trainings of the search), finals_at (at how many points the final runs are: one, unless trials were trained again).
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
            if mine or len(read) == len(cells):
                chosen = json.loads(mine.most_common(1)[0][0]) if mine else choice.best(tried).point
                edge = choice.at_edge(tried, chosen)
        # A range of gradients is given where no weight is known.
        first = [record.config["objective"] for _, record in read]
        has_source = not any("gradient" in (one["tuned"].get("point") or {}) and one["terms"][0]["weight"] == 1 for one in first)
        shared = {"has_source": has_source, "label": manifest.labels[key[2]], "asked": len(cells), "finals_at": len(mine)}
        for cell, record in read:
            names = {name: getattr(cell, name) for name in ("student", "teacher", "objective", "trial", "repeat", "id")}
            is_chosen = chosen is not None and record.result["tuned"] == chosen
            own = {"chosen": is_chosen, "edge": edge if is_chosen else ""}
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


def tuning_table(study: Study) -> Table | None:
    """What was chosen for each tuned loss, one group a pair; None where nothing is tuned or no search is complete."""
    how, found = study.manifest.tuning, study.trials
    if how is None or found is None or not found["chosen"].any():
        return None
    metric = study.manifest.primary
    percent = metric.percent
    groups = []
    for (student, teacher), mine in found.groupby(["student", "teacher"], sort=False):
        rows = []
        for _, search in mine.groupby("objective", sort=False):
            chosen = search[search["chosen"]]
            if not len(chosen):
                continue
            line, runs = chosen.iloc[0], tuple(chosen["id"])
            score = Entry(float(chosen["score"].mean()), format=".2f" if percent else ".4g", scale=100.0 if percent else 1.0, runs=runs)
            values = (
                Entry(float(line["weight"]), format=".3g"),
                Entry(float(line["factor"]) if line["has_source"] else None, format=".3g"),
                Entry(line["options"]),
            )
            edge = Entry(f"the {line['edge']} tried" if line["edge"] else "")
            rows.append((Entry(line["label"], runs=tuple(search["id"])), *values, score, Entry(f"{len(search)} of {line['asked']}"), edge))
        groups.append(Group(f"student {student} · teacher {teacher}", tuple(rows)))
    titles = (
        "loss",
        "weight",
        "times the source's",
        "options",
        f"validation {metric.label}{', %' if percent else ''}",
        "trainings",
        "note",
    )
    numeric = (False, True, True, False, True, True, False)
    columns = tuple(
        Column(title, numeric=kind, essential=title not in ("options", "trainings")) for title, kind in zip(titles, numeric, strict=True)
    )
    return Table("Tuning", columns, tuple(groups), (caption(how),), name="tuning")


def tuning_warnings(study: Study) -> Iterator[tuple[str, str]]:
    """Codes and messages: what was chosen at an end, final runs at several points, and trials that are not there."""
    if study.trials is None:
        return
    ends: dict[str, dict[str, None]] = defaultdict(dict)
    for names, mine in study.trials.groupby(["student", "teacher", "label"], sort=False):
        line, where = lines(mine.iloc[:1])[0], "{2}, {0} <- {1}".format(*names)
        for edge in filter(None, mine["edge"]):
            ends[edge][line["label"]] = None
        if line["finals_at"] > 1:
            text = f"{where}: the final runs are at {line['finals_at']} points of the search, since trials were trained again between them"
            yield "tuned-at-edge", f"{text}: remove the records of these runs and run the suite again"
        if lacking := line["asked"] - len(mine):
            yield "incomplete", f"{where}: {lacking} of {line['asked']} trials of the search have no record: run the suite again"
    if ends:
        what = "; ".join(f"the {edge} for {some(labels)}" for edge, labels in ends.items())
        yield "tuned-at-edge", f"the best weight is at the end of what was tried: {what}; give these a wider range under `tune`"


def caption(how: Tuning) -> str:
    """How every loss was tuned: the same for all."""
    on = f" on the pair {how.pair[0]} <- {how.pair[1]}, for all pairs" if how.pair else ""
    repeats = "" if how.repeats == 1 else f" on {how.repeats} repeats"
    return (
        f"Every tuned loss was tried{on} at {how.trials} points{repeats}, at {plural(how.further, 'more point')} (beyond the end of the "
        f"range where the best was there, else next to the best), and the best {how.again} again on "
        f"{plural(how.more_repeats, 'other repeat')}: {how.trainings} trainings each. These students, and their teacher, were trained "
        f"without {100 * how.validation:g} % of the training images, which give the validation number (a mean over repeats). The final "
        "runs use all training images and other seeds. weight: of the first term of the loss."
    )
