"""The report of a suite: the frame, the tables as Markdown, and the same tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from kdbench.errors import KdbenchError
from kdbench.report.accuracy import accuracy
from kdbench.report.cost import cost
from kdbench.report.frame import costs, frame, write_frame
from kdbench.report.history import histories, terms
from kdbench.report.manifest import Manifest, checked
from kdbench.report.notes import STATES
from kdbench.report.table import Table
from kdbench.report.text import markdown, terminal

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.store import Store


@dataclass(frozen=True)
class Reported:
    """`folders` holds the report folder of each suite that was reported; `problems` one message for each that could not be."""

    folders: dict[str, Path]
    problems: dict[str, str]


def report(store: Store, suites: Sequence[str] | None, out: TextIO, width: int | None = None, with_histories: bool = False) -> Reported:
    """Write `frame.parquet`, `frame.csv` and `report.md` into the report folder of each suite, and print its tables.

    A suite that cannot be reported does not stop the others.

    Args:
        suites: names of suites; None: every suite that was run under the results folder.
        width: of the printed tables, in characters; None: as the terminal is.
        with_histories: write `histories.csv` (a row for each epoch and term) and `terms.csv` (what the objectives are made of), too.

    Raises:
        StoreError: nothing can be written (disk full, no permission).
    """
    folders: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for suite in store.suites() if suites is None else suites:
        try:
            manifest = checked(store.manifest(suite))
        except KdbenchError as error:
            problems[suite] = str(error)
            out.write(f"{suite}: no report: {error}\n")
            continue
        folders[suite] = _report_one(store, suite, manifest, out, width, with_histories)
    if not folders and not problems:
        out.write(f"No suite was run under {store.root}: there is nothing to report.\n")
    return Reported(folders, problems)


def _report_one(store: Store, suite: str, manifest: Manifest, out: TextIO, width: int | None, with_histories: bool) -> Path:
    runs = frame(store, manifest)
    tables = report_tables(runs, costs(store, manifest), manifest)
    facts = tuple(fact for fact in (manifest.get("description"), progress(runs)) if fact)
    folder = store.suite_folder(suite) / "report"
    write_frame(store, suite, runs)
    if with_histories:
        store.write_text(folder / "terms.csv", terms(store, manifest).to_csv(index=False))
        store.write_text(folder / "histories.csv", histories(store, manifest).to_csv(index=False, float_format="%.6g"))
    store.write_text(folder / "report.md", markdown(suite, facts, tables))
    terminal(suite, facts, tables, out, width)
    return folder


def report_tables(runs: pd.DataFrame, measured: pd.DataFrame, manifest: Manifest) -> list[Table]:
    """The tables of a suite: accuracies, and costs where any were measured.

    Args:
        runs: as `frame.frame` makes it.
        measured: as `frame.costs` makes it.
    """
    found = [accuracy(runs, manifest), cost(measured, manifest)]
    return [table for table in found if table is not None]


def progress(runs: pd.DataFrame) -> str:
    """`36 of 40 runs finished; 1 diverged, 3 missing.`"""
    counts = runs["state"].value_counts()
    rest = [f"{counts[state]} {state}" for state in STATES if counts.get(state, 0)]
    return f"{counts.get('finished', 0)} of {len(runs)} runs finished{'; ' if rest else ''}{', '.join(rest)}."
