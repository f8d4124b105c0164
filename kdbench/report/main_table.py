"""The main tables, one a baseline: what each loss reached, and by how much it differs from the baseline, first over all pairs."""

from __future__ import annotations

import re

from kdbench.report import entries, sentences
from kdbench.report.controls import control_notes
from kdbench.report.notes import UNTESTED, incomplete_notes, untested_notes
from kdbench.report.study import Place, Study
from kdbench.report.table import ABSENT, EMPTY, Column, Entry, Group, Table, row

MAIN = "vs_"
"""The names of the main tables begin so."""


def main_tables(study: Study) -> list[Table]:
    """One table a baseline, in the order of the suite; one without differences where the suite compares nothing."""
    tested = {name for comparison in study.all_pairs.tests for name in comparison}
    words, notes = sentences.caption(study), sentences.table_notes(study)
    baselines = [baseline for baseline in study.manifest.baselines if baseline in tested]
    return [_table(study, baseline, words, notes) for baseline in baselines or [""]]


def _table(study: Study, baseline: str, words: tuple[str, ...], notes: tuple[str, ...]) -> Table:
    manifest, metric = study.manifest, study.manifest.primary
    columns = [Column("loss", numeric=False), Column(f"{metric.label}{', %' if metric.percent else ''}", essential=not baseline)]
    title, name = f"{metric.label} of the students", f"{MAIN}nothing"
    if baseline:
        label = manifest.labels[baseline]
        title, name = f"{metric.label} compared with {label}", MAIN + re.sub(r"[^\w.-]+", "-", baseline)
        columns += [
            Column(f"Δ to {label}{entries.points(manifest)} [{entries.confidence(manifest)} CI]"),
            Column("p (Holm)", essential=False),
            Column("verdict", numeric=False),
        ]
    return Table(title, tuple(columns), tuple(_group(study, place, baseline) for place in study.places), words, notes, name)


def _group(study: Study, place: Place, baseline: str) -> Group:
    labels = study.manifest.labels
    incomplete = incomplete_notes({labels[name]: (runs, place.summaries[name]) for name, runs in place.runs.items()})
    rows = tuple(_row(study, place, name, baseline) for name in place.runs if name in {one.name for one in study.manifest.compared})
    notes = (*incomplete, *untested_notes(place.against(baseline), labels), *(control_notes(study) if place is study.all_pairs else ()))
    return Group(place.title, rows, sentences.teacher_fact(study, place), notes)


def _row(study: Study, place: Place, name: str, baseline: str) -> tuple[Entry, ...]:
    manifest = study.manifest
    known = row(place.ids(name), Entry(manifest.labels[name]), entries.mean(manifest, place.summaries[name]))
    line = place.compared(name, baseline) if baseline else None
    if line is None:  # the baseline itself, or a comparison that the suite excludes
        return (*known, EMPTY, EMPTY, EMPTY) if baseline else known
    p = Entry(ABSENT, marks=(UNTESTED,)) if line["why"] else entries.p(manifest, line["p_holm"])
    return *known, *row(place.ids(name, baseline), entries.difference(manifest, line), p, entries.verdict(line))
