"""The layout of a paper: a row a pair, a column an objective, as in Table 1 of Saha et al. (BMVC 2022)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import mean, stdev

from kdbench.report import entries, sentences
from kdbench.report.notes import INCOMPLETE, UNTESTED, incomplete_notes, untested_notes
from kdbench.report.study import Line, Place, Study
from kdbench.report.table import EMPTY, Column, Entry, Group, Table

REFERENCE = "kd"
"""The baseline that the marks compare with, where it is one."""


@dataclass(frozen=True)
class Layout:
    """`columns`: the objectives, those trained without a teacher (`alone`) first; `reference`: the baseline that the marks compare with."""

    study: Study
    columns: tuple[str, ...]
    alone: frozenset[str]
    reference: str

    def compared(self, place: Place, name: str) -> Line | None:
        return None if name == self.reference else place.compared(name, self.reference)

    def label(self, name: str, place: Place) -> str:
        """What a note calls an objective of a row: those trained without a teacher are the same in every row."""
        label, teacher = self.study.manifest.labels[name], place.block.teacher if place.block else None
        return label if name in self.alone or not teacher else f"{label} from {teacher}"


def paper_table(study: Study) -> Table:
    """One row a teacher, grouped by student: the student alone, each distillation objective, the teacher alone."""
    manifest, names = study.manifest, study.manifest.labels
    taught = {cell.objective for cell in manifest.cells if cell.role == "student" and cell.teacher is not None}
    alone = frozenset(cell.objective or "" for cell in manifest.cells if cell.role == "student") - taught
    reference = REFERENCE if REFERENCE in manifest.baselines else next(iter(manifest.baselines), "")
    layout = Layout(study, tuple(sorted(names, key=lambda name: name not in alone)), alone, reference)
    by_student: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for (dataset, _, student), place in study.pairs.items():
        by_student[dataset, student].append(place)
    datasets = list(dict.fromkeys(dataset for dataset, _ in by_student))
    one = len(datasets) == 1
    titles = [f"Student alone ({names[name]})" if name in alone else names[name] for name in layout.columns]
    return Table(
        f"{manifest.primary.label}{' in %' if manifest.primary.percent else ''} of students{f' on {datasets[0]}' if one else ''}, "
        "by teacher and loss",
        (Column("teacher", numeric=False), *map(Column, titles), *([Column("Teacher alone")] if study.teachers else [])),
        tuple(
            _group(places, layout, f"{'' if one else f'{dataset} · '}student {student}")
            for (dataset, student), places in by_student.items()
        ),
        _caption(layout),
        sentences.table_notes(study),
        "paper",
    )


def _group(places: list[Place], layout: Layout, title: str) -> Group:
    study, labels = layout.study, {layout.reference: layout.study.manifest.labels.get(layout.reference, "")}
    rows, runs, tests = [], {}, []
    facts: list[str] = []
    notes: list[str] = []
    for place in places:
        teacher, note = _teacher(place, study) if study.teachers else ((), [])
        notes += note
        rows.append(
            (Entry(place.block.teacher if place.block else None), *(_student(place, name, layout) for name in layout.columns), *teacher)
        )
        for name in place.runs:
            label = layout.label(name, place)
            runs[label], labels[label] = (place.runs[name], place.summaries[name]), label
            tests += [{**line, "objective": label}] if (line := layout.compared(place, name)) else []
        if any(line["state"] == "finished" and study.manifest.shortfall(line["id"], line) for line in study.teachers_of(place)):
            facts += sentences.teacher_fact(study, place)
    untested = untested_notes(tests, labels)
    return Group(title, tuple(rows), tuple(dict.fromkeys(facts)), (*incomplete_notes(runs), *untested, *dict.fromkeys(notes)))


def _student(place: Place, name: str, layout: Layout) -> Entry:
    if name not in place.runs:  # what the suite excludes
        return EMPTY
    line = layout.compared(place, name)
    mark = "" if line is None else entries.VERDICTS[line["verdict"]][0] or (UNTESTED if line["why"] else "")
    return replace(entries.mean(layout.study.manifest, place.summaries[name], (mark,) if mark else ()), runs=place.ids(name))


def _teacher(place: Place, study: Study) -> tuple[tuple[Entry], list[str]]:
    """The teacher by itself, as a mean over its trainings, and a note where some have no value."""
    if place.block is None or not place.block.teacher:
        return (EMPTY,), []
    trained = study.teachers_of(place)
    known = {line["id"]: line[f"{study.manifest.primary.name}_last"] for line in trained if line["state"] == "finished"}
    values = [value for value in known.values() if value == value]
    complete = trained and len(values) == len(trained)
    spread = stdev(values) if len(values) > 1 else None
    runs, marks = tuple(line["id"] for line in trained), () if complete else (INCOMPLETE,)
    entry = entries.number(study.manifest, mean(values) if values else None, spread=spread, runs=runs, marks=marks)
    lacking = [line for line in trained if not known.get(line["id"], float("nan")) > float("-inf")]
    reasons = "; ".join(f"run {line['id']} {line['state']}{', ' + line['why'] if line['why'] else ''}" for line in lacking)
    what = f"{len(values)} of {len(trained)} trainings have a value; {reasons}" if trained else "no run of it is here"
    return (entry,), [] if complete else [f"{INCOMPLETE} teacher {place.block.teacher}: {what}"]


def _caption(layout: Layout) -> tuple[str, ...]:
    """The caption of the main tables, where Δ has a column of its own, with what stands here instead."""
    first, *rest = sentences.caption(layout.study)
    reference = layout.study.manifest.labels.get(layout.reference, "")
    marks = (
        [f"Marks compare each loss with {reference} in the same pair, repeat by repeat where repeats pair (p: pair by pair)."]
        if reference
        else []
    )
    return (first.partition(" Δ: ")[0], *marks, *rest)
