"""The report of a suite: frames, tables in every format, figures, the page; and the tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from kdbench import parts
from kdbench.errors import KdbenchError
from kdbench.report import from_file, latex
from kdbench.report.accuracy import accuracy, gather
from kdbench.report.beside import beside
from kdbench.report.blocks import across_blocks
from kdbench.report.cost import cost
from kdbench.report.differences import differences
from kdbench.report.document import Document, Figure, Owed
from kdbench.report.folder import fresh_report, put_at_the_end
from kdbench.report.frame import costs, frame, write_frame
from kdbench.report.history import histories, terms
from kdbench.report.images import load_images, predictions_table
from kdbench.report.manifest import Manifest, checked
from kdbench.report.notes import STATES
from kdbench.report.paper import paper_table
from kdbench.report.study import Study, study
from kdbench.report.table import Table
from kdbench.report.text import markdown, terminal
from kdbench.report.warnings import as_json, warnings

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.report.figures.draw import Drawing
    from kdbench.store import Store

ON_TERMINAL = ("accuracy", "paper", "across", "beside", "cost")
"""Tables that are printed; the others stand in the files."""


MOST_ROWS_IN_PRINT = 1000
"""Nobody prints a longer table: it stands in Markdown, on the page and as CSV."""


@dataclass(frozen=True)
class Asked:
    """What a report is to hold besides frames and tables.

    `layout`: long (a row an objective) or paper (a row a pair, a column an objective). `beside`: the name of a published table.
    `images`: whether stored predictions are read. `tensorboard`: a folder for TensorBoard events.
    """

    layout: str = "long"
    beside: str | None = None
    figures: bool = False
    page: bool = False
    histories: bool = False
    images: bool = True
    tensorboard: Path | None = None


@dataclass(frozen=True)
class Reported:
    """`folders` holds the report folder of each suite that was reported; `problems` one message for each that could not be;
    `warnings` what their readers are owed."""

    folders: dict[str, Path]
    problems: dict[str, str]
    warnings: dict[str, tuple[Owed, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where a study comes from: the store that has its cells, if any."""

    study: Study
    store: Store | None


def report(store: Store, suites: Sequence[str] | None, out: TextIO, width: int | None = None, asked: Asked | None = None) -> Reported:
    """Write the report of each suite into its report folder, and print its tables.

    The folder is replaced as a whole: a report that is stopped in the middle leaves the former one. A suite that cannot be reported
    does not stop the others.

    Args:
        suites: names of suites; None: every suite that was run under the results folder.
        width: of the printed tables, in characters; None: as the terminal is.

    Raises:
        StoreError: nothing can be written (disk full, no permission).
    """
    asked = asked or Asked()
    done = Reported({}, {})
    for suite in store.suites() if suites is None else suites:
        try:
            manifest = checked(store.manifest(suite))
            found = from_store(store, manifest, asked)
            document, drawn = compose(found, asked)
        except KdbenchError as error:
            done.problems[suite] = str(error)
            out.write(f"{suite}: no report: {error}\n")
            continue
        with fresh_report(store, suite) as folder:
            write(found, document, drawn, store, folder, asked)
        done.folders[suite], done.warnings[suite] = store.suite_folder(suite) / "report", document.warnings
        terminal(printed(document), out, width)
    if not done.folders and not done.problems:
        out.write(f"No suite was run under {store.root}: there is nothing to report.\n")
    return done


def report_file(read: from_file.FromFile, to: Path | None, out: TextIO, width: int | None = None, asked: Asked | None = None) -> Reported:
    """The same report from a frame file, or from a published table, written into the folder `to` (None: only printed).

    Raises:
        StoreError: nothing can be written.
    """
    from kdbench.store import Store

    asked = asked or Asked()
    whole = replace(study(read.runs, read.costs, read.manifest), histories=read.histories, terms=read.terms, images=read.images)
    found = Source(whole, None)
    document, drawn = compose(found, asked)
    if to is not None:
        with put_at_the_end(Store(to.parent), to.resolve()) as folder:
            write(found, document, drawn, Store(folder), folder, asked)
    terminal(printed(document), out, width)
    suite = read.manifest["suite"]
    return Reported({} if to is None else {suite: to}, {}, {suite: document.warnings})


def from_store(store: Store, manifest: Manifest, asked: Asked) -> Source:
    """Read and compute what a report needs: epochs only where they are asked for, since reading them takes longest."""
    whole = study(frame(store, manifest), costs(store, manifest), manifest)
    wants = asked.figures or asked.page or asked.histories
    return Source(
        replace(
            whole,
            images=load_images(store, manifest, whole.students, whole.comparisons) if asked.images else None,
            histories=histories(store, manifest) if wants else None,
            terms=terms(store, manifest) if wants or asked.beside else None,
        ),
        store,
    )


def compose(found: Source, asked: Asked) -> tuple[Document, list[Drawing]]:
    """The report as a document, and its figures as drawn."""
    whole = found.study
    manifest = whole.manifest
    owed = warnings(whole, _sources_now(whole.runs))
    drawn: list[Drawing] = []
    if asked.figures or asked.page:
        from kdbench.report.figures.draw import Drawn, figures

        drawn = list(figures(Drawn(manifest, whole.students, whole.summaries, whole.comparisons, whole.costs, whole.histories)))
    facts = tuple(fact for fact in (manifest.get("description"), progress(whole.runs)) if fact)
    pictures = tuple(Figure(one.name, one.title, one.caption) for one in drawn)
    return Document(manifest["suite"], facts, tuple(report_tables(whole, asked)), owed, pictures), drawn


def report_tables(whole: Study, asked: Asked | None = None) -> list[Table]:
    """The tables of a suite: accuracies, comparisons, across blocks, beside published ones, predictions, and costs."""
    asked = asked or Asked()
    teachers = whole.runs[whole.runs["role"] != "student"]
    gathered = gather(whole)
    main = (
        paper_table(whole.summaries, whole.students, whole.comparisons, whole.manifest, teachers)
        if asked.layout == "paper"
        else accuracy(whole, gathered=gathered)
    )
    found = [
        main,
        across_blocks(whole),
        beside(asked.beside, whole.summaries, whole.students, whole.manifest, whole.terms) if asked.beside else None,
        differences(whole, gathered),
        predictions_table(whole.images, whole.manifest) if whole.images is not None else None,
        cost(whole.costs, whole.manifest),
    ]
    return [table for table in found if table is not None]


def printed(document: Document) -> Document:
    """What of a document is printed on a terminal."""
    return replace(document, tables=tuple(table for table in document.tables if table.name in ON_TERMINAL), figures=())


def write(found: Source, document: Document, drawn: Sequence[Drawing], store: Store, folder: Path, asked: Asked) -> None:
    """Every file of a report into `folder`."""
    whole = found.study
    write_frame(store, folder, whole.runs)
    store.write_text(folder / "manifest.json", json.dumps(whole.manifest, indent=1) + "\n")
    store.write_text(folder / "warnings.json", json.dumps(as_json(document.warnings), indent=1, ensure_ascii=False) + "\n")
    for name, rows in frames(whole, asked.histories).items():
        store.write_text(folder / f"{name}.csv", rows.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    store.write_text(folder / "report.md", markdown(document))
    suite = document.title
    fragments = []
    for table in document.tables:
        rows_of_it = sum(len(group.rows) for group in table.groups)
        if rows_of_it > MOST_ROWS_IN_PRINT:
            fragments.append(latex.left_out(table, rows_of_it))
            continue
        fragments.append(latex.table(table, latex.label(suite, table.name)))
        store.write_text(folder / "tables" / f"{table.name}.tex", fragments[-1])
    store.write_text(folder / "report.tex", latex.document(document, suite, fragments))
    for one in drawn:
        store.write_bytes(folder / "figures" / f"{one.name}.pdf", one.pdf)
        store.write_bytes(folder / "figures" / f"{one.name}.png", one.png)
    if asked.page:
        from kdbench.report.page.page import page
        from kdbench.report.page.runs import run_details

        details = run_details(found.store, whole.manifest, whole.runs, whole.histories)
        store.write_text(folder / "report.html", page(document, details, {one.name: one.svg for one in drawn}))
    if asked.tensorboard is not None and found.store is not None:
        from kdbench.report.tensorboard import write_events

        write_events(found.store, whole.manifest, asked.tensorboard / suite)


def frames(whole: Study, with_histories: bool) -> dict[str, pd.DataFrame]:
    """The tables behind the tables, by file name."""
    found = {"summaries": whole.summaries, "comparisons": whole.comparisons, "across": whole.across, "costs": whole.costs}
    if whole.images is not None:
        found |= {f"images_{name}": getattr(whole.images, name) for name in from_file.IMAGES}
    if with_histories:
        found |= {"terms": whole.terms, "histories": whole.histories}
    return {name: table for name, table in found.items() if table is not None and len(table)}


def _sources_now(runs: pd.DataFrame) -> dict[str, str | None]:
    """The digest of each part's source as it is now; None for one that is no longer here."""
    texts = [str(text) for text in runs["sources"].dropna().unique()] if "sources" in runs else []
    names = [entry.rpartition(" ")[0].partition(" ") for text in texts for entry in text.split("; ")]
    return {f"{kind} {name}": parts.source_digest(kind, name) for kind, _, name in names if kind in parts.KINDS}


def progress(runs: pd.DataFrame) -> str:
    """`36 of 40 runs finished; 1 diverged, 3 missing.`"""
    counts = runs["state"].value_counts()
    rest = [f"{counts[state]} {state}" for state in STATES if counts.get(state, 0)]
    return f"{counts.get('finished', 0)} of {len(runs)} runs finished{'; ' if rest else ''}{', '.join(rest)}."
