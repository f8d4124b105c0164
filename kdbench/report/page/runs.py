"""What the page shows of each run: its place in the suite, configuration, curve and failure; and the table of all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.report.table import Column, Entry, Group, Table
from kdbench.store.frame import IDENTITY, KINDS

if TYPE_CHECKING:
    from kdbench.manifest import Manifest
    from kdbench.store import Store

WITH_FAILURE = ("failed", "blocked", "damaged")
"""States that a failure file explains. The file of a running or finished run belongs to an earlier attempt."""
OPTIONAL = {"teacher": str, "label": str, "repeat": int, "teacher_seed": int}
CHOICES = ("student", "teacher", "loss", "state")
"""What the rows of the page can be filtered by."""


@dataclass(frozen=True)
class Curve:
    """A quantity of one run by the number of epochs trained: 1 is the end of the first. `label` names the unit of `values`."""

    label: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class RunDetails:
    """One run. `metrics` holds the entry of each metric by its title, `circumstance` the rest of the run's row (images, device, code
    version, seconds); `config` is the configuration, or the reason why there is none."""

    id: str
    role: str
    dataset: str
    student: str
    state: str
    why: str
    teacher: str | None
    label: str | None
    repeat: int | None
    teacher_seed: int | None
    metrics: Mapping[str, Entry]
    circumstance: Mapping[str, Any]
    config: Mapping[str, Any] | str = ""
    curve: Curve | None = None
    failure: Mapping[str, Any] | None = None

    @property
    def choices(self) -> tuple[str | None, ...]:
        """Values of `CHOICES`. A teacher's run is a run of that teacher, with no student and no loss to compare."""
        if self.role == "student":
            return self.student, self.teacher, self.label, self.state
        return None, self.student, None, self.state

    @property
    def identity(self) -> dict[str, Any]:
        student, teacher, loss, _ = self.choices
        names = {"role": self.role, "dataset": self.dataset, "student": student, "teacher": teacher, "loss": loss}
        return {**names, "repeat": self.repeat, "teacher seed": self.teacher_seed}

    def shown(self) -> dict[str, Any]:
        """The run as the script of the page reads it, numbers as they are printed."""
        metrics = {name: None if one.value is None else one.text() for name, one in self.metrics.items()}
        facts = {name: value for name, value in {**metrics, **self.identity, **self.circumstance}.items() if value is not None}
        names = self.label if self.role == "student" else self.role, self.student, self.teacher and f"teacher {self.teacher}"
        brief = "" if self.repeat is None else f"repeat {self.repeat}", *list(metrics.values())[:1]
        return {
            **{"id": self.id, "title": " · ".join(filter(None, names)), "brief": [*filter(None, brief)], "choices": self.choices},
            "series": self.label or "" if self.role == "student" else f"{self.role} {self.student}",
            "facts": [(name, f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in facts.items()],
            **{name: getattr(self, name) for name in ("state", "why", "config", "curve", "failure")},
        }


def run_details(
    store: Store | None, manifest: Manifest | None, table: pd.DataFrame, histories: pd.DataFrame | None = None
) -> list[RunDetails]:
    """What is known of each run, in the order of the rows.

    Args:
        store: where configurations and failures are read; None where there are only frames.
        manifest: names and units of the metrics; None: the first metric column is the primary one, printed as stored.
        table: one row a run, as `frame.frame` makes it or as it was read from a file.
        histories: as `histories.histories` makes it; without it there are no curves.
    """
    metrics = [str(name) for name in table.columns if str(name).endswith(KINDS)]
    percent = {f"{one.name}{kind}" for one in (manifest.metrics if manifest else ()) if one.percent for kind in KINDS}
    printed = {name: (f"{name}, %", ".2f", 100) if name in percent else (name, ".5g", 1) for name in metrics}
    curves = {} if histories is None else _curves(histories, manifest, metrics)
    found = []
    for row in table.astype(object).where(table.notna(), None).to_dict(orient="records"):
        run_id = str(row["id"])
        names: dict[str, Any] = {name: str(row.get(name) or "") for name in ("role", "dataset", "student", "state", "why")}
        names |= {name: None if row.get(name) is None else kind(row[name]) for name, kind in OPTIONAL.items()}
        names["metrics"] = {title: Entry(row[name], format=digits, scale=scale) for name, (title, digits, scale) in printed.items()}
        names["circumstance"] = {str(name): value for name, value in row.items() if name not in (*IDENTITY, *metrics, "why")}
        names["config"] = _config(store, run_id)
        failure = store.failure(run_id) if store and row["state"] in WITH_FAILURE else None
        found.append(RunDetails(run_id, **names, curve=curves.get(run_id), failure=failure.to_json() if failure else None))
    return found


def runs_table(runs: Sequence[RunDetails]) -> Table:
    """All runs, one row a run, with the columns that any run fills."""
    lines = [
        {"run": Entry(run.id, runs=(run.id,))}
        | {name: Entry("" if value is None else value, format="g") for name, value in {**run.identity, "state": run.state}.items()}
        | {**run.metrics, "reason": Entry(run.why)}
        for run in runs
    ]
    titles = [title for title in lines[0] if any(line[title].value not in (None, "") for line in lines)]
    numeric, essential = {*runs[0].metrics, "repeat", "teacher seed"}, {"run", "loss", "state", *[*runs[0].metrics][:1]}
    columns = tuple(Column(title, title in numeric, title in essential) for title in titles)
    rows = tuple(tuple(line[title] for title in titles) for line in lines)
    return Table(f"All runs ({len(runs)})", columns, (Group("", rows),), ("The metrics have the names of their columns in frame.csv.",))


def _config(store: Store | None, run_id: str) -> Mapping[str, Any] | str:
    try:
        return store.cell(run_id).config if store else "the report was made from a frame file, which holds no configurations"
    except KdbenchError as error:
        return str(error)


def _curves(histories: pd.DataFrame, manifest: Manifest | None, metrics: Sequence[str]) -> dict[str, Curve]:
    """By run: the primary metric on the test set over the epochs, or the training loss where the metric was never evaluated."""
    name = manifest.primary.name if manifest else next((one.removesuffix("_last") for one in metrics if one.endswith("_last")), "")
    label, percent = (manifest.primary.label, manifest.primary.percent) if manifest else (name, False)
    epochs = histories[histories["term"] == "task"].sort_values("epoch", kind="stable")
    tested = (f"test_{name}", f"test {label}, %", 100) if percent else (f"test_{name}", f"test {label}", 1)
    found: dict[str, Curve] = {}
    for column, title, scale in (("loss", "training loss", 1), tested):
        kept = epochs[np.isfinite(epochs[column].astype("float64"))] if column in epochs else epochs[:0]
        for run_id, mine in kept.groupby("id", sort=False):
            values = tuple(float(f"{scale * value:.5g}") for value in mine[column])
            found[str(run_id)] = Curve(title, tuple(int(epoch) + 1 for epoch in mine["epoch"]), values)
    return found
