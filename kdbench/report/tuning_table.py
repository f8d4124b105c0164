"""The table of tuning, and what it warns of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from kdbench.manifest import Tuning
from kdbench.report.study import Study, lines, plural, some
from kdbench.report.table import Column, Entry, Group, Table


def tuning_table(study: Study) -> Table | None:
    """What was chosen for each tuned loss, one group a pair; None where nothing is tuned or no search is complete."""
    how, found = study.manifest.tuning, study.trials
    if how is None or found is None or not (found["chosen"] > 0).any():
        return None
    metric = study.manifest.primary
    percent = metric.percent
    groups = []
    for (student, teacher), mine in found.groupby(["student", "teacher"], sort=False):
        rows = []
        for _, search in mine.groupby("objective", sort=False):
            chosen = search[search["chosen"] > 0]
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
            rows.append(
                (Entry(line["label"], runs=tuple(search["id"])), *values, score, Entry(f"{len(search)} of {line['asked']:.0f}"), edge)
            )
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
            text = f"{where}: the final runs are at {line['finals_at']:.0f} points of the search, since trials were trained again"
            yield "tuned-at-edge", f"{text}: remove the records of these runs and run the suite again"
        if lacking := line["asked"] - len(mine):
            yield "incomplete", f"{where}: {lacking:.0f} of {line['asked']:.0f} trials of the search have no record: run the suite again"
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
