"""All metrics of a task of detection beside each other: AP by threshold, and of small, medium and large objects."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

import pandas as pd

from kdbench.manifest import Metric
from kdbench.report.study import Study
from kdbench.report.table import Column, Entry, Group, Table

CAPTION = (
    "In points, on the test set at the last epoch: mean ± standard deviation over repeats, without tests (`kdbench report --metric` tests "
    "another metric than the first). –: there are no such objects."
)


def metric_table(study: Study) -> Table | None:
    """Rows are the teacher and the losses, columns the metrics, one group a pair; None where the task is not detection."""
    metrics = study.manifest.metrics
    if not any(metric.per_image == "hits" for metric in metrics):
        return None
    runs = study.runs[study.runs["state"] == "finished"].drop_duplicates("id").set_index("id")
    groups = []
    for place in study.pairs.values():
        teachers = tuple(run["id"] for run in study.teachers_of(place))
        rows = [_row("teacher", teachers, runs, metrics)] if teachers else []
        rows += [_row(one.label, place.ids(one.name), runs, metrics) for one in study.manifest.compared if one.name in place.runs]
        groups.append(Group(place.title, tuple(rows)))
    return Table(
        "AP by threshold and size",
        (Column("loss", numeric=False), *(Column(one.label) for one in metrics)),
        tuple(groups),
        (CAPTION,),
        name="metrics",
    )


def _row(label: str, ids: Sequence[str], runs: pd.DataFrame, metrics: Sequence[Metric]) -> tuple[Entry, ...]:
    there = tuple(one for one in dict.fromkeys(ids) if one in runs.index)
    entries = [Entry(label)]
    for metric in metrics:
        values = [value for value in runs.loc[list(there), f"{metric.name}_last"] if value == value]
        spread = stdev(values) if len(values) > 1 else None
        scale = 100.0 if metric.percent else 1.0
        entries.append(Entry(fmean(values) if values else None, spread, format=".2f", scale=scale, runs=there))
    return tuple(entries)
