"""The report of a suite: frames, tables in every format, figures, the page; and the tables on the terminal."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pandas as pd

from kdbench import parts
from kdbench.errors import KdbenchError, StoreError
from kdbench.manifest import Manifest
from kdbench.report import latex
from kdbench.report.across_table import across_table
from kdbench.report.beside import beside
from kdbench.report.claim_table import claim_table
from kdbench.report.class_table import class_table
from kdbench.report.comparison_table import comparison_table
from kdbench.report.controls import control_table
from kdbench.report.cost_table import cost_table
from kdbench.report.document import Document, Figure, ReportWarning
from kdbench.report.feature_tables import cka_table, probe_tables
from kdbench.report.main_table import MAIN, main_tables
from kdbench.report.metric_table import metric_table
from kdbench.report.paper import paper_table
from kdbench.report.predictions_table import predictions_table
from kdbench.report.sentences import findings
from kdbench.report.study import Study, study
from kdbench.report.table import Group, Table
from kdbench.report.text import markdown, terminal
from kdbench.report.tuning_table import tuning_table
from kdbench.report.warnings import warnings
from kdbench.stats.predictions import KINDS, image_statistics
from kdbench.store import features, from_file
from kdbench.store.frame import costs, frame, write_frame
from kdbench.store.histories import histories, terms
from kdbench.store.predictions import read_predictions
from kdbench.store.trials import trials
from kdbench.store.whole_folder import fresh_report, put_at_the_end

if TYPE_CHECKING:
    from kdbench.store import Store

ASKED_FOR = ("claims", "paper", "beside")
"""Tables that are printed whole, since the suite or an option asks for them."""
SHORT = 60
"""About so many lines are printed without `--full`."""
HINT = "--full prints all tables: pair by pair, across pairs, comparisons and costs."
MOST_ROWS_IN_PRINT = 1000
"""A longer table is not set in LaTeX: it is in Markdown, on the page and in CSV."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds besides frames and tables.

    `layout`: long (a row an objective) or paper (also a row a pair, a column an objective). `beside`: the name of a published table.
    `images`: whether stored predictions are read. `tensorboard`: a folder for TensorBoard events. `full`: print every table. `metric`: the
    name of the metric that is compared (None: the suite's).
    """

    layout: str = "long"
    beside: str | None = None
    figures: bool = False
    page: bool = False
    histories: bool = False
    images: bool = True
    metric: str | None = None
    tensorboard: Path | None = None
    full: bool = False


@dataclass(frozen=True)
class ReportOutcome:
    """`folders` holds the report folder of each suite that was written; `problems` one message for each that could not be reported;
    `warnings` those of each suite."""

    folders: dict[str, Path] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, tuple[ReportWarning, ...]] = field(default_factory=dict)


def report(
    store: Store, suites: Sequence[str] | None, out: TextIO, width: int | None = None, options: ReportOptions | None = None
) -> ReportOutcome:
    """Print the tables of each suite, and write its report into its report folder.

    The folder is replaced as a whole: a report that is stopped in the middle leaves the former one. A suite that cannot be reported
    does not stop the others. Where the results folder may not be written to, the tables are printed and nothing is written.

    Args:
        suites: names of suites; None: every suite that was run under the results folder.
        width: of the printed tables, in characters; None: as the terminal is.

    Raises:
        StoreError: something else prevents writing (a full disk).
    """
    options, done = options or ReportOptions(), ReportOutcome()
    for suite in store.suites() if suites is None else suites:
        try:
            manifest = store.manifest(suite)
            whole = from_store(store, manifest.compared_by(options.metric, options.images) if options.metric else manifest, options)
            if (whole.runs["state"] == "missing").all() and store.matching(f"suites/{suite}/report"):
                raise KdbenchError(f"none of its runs is under {store.root}, and the report that is there is kept")
            document = compose(whole, options)
        except KdbenchError as error:
            done.problems[suite] = str(error)
            out.write(f"error: {suite} cannot be reported: {error}\n")
            continue
        terminal(printed(whole, document, options.full), out, width)
        done.warnings[suite] = document.warnings
        try:
            with fresh_report(store, suite) as folder:
                write(whole, document, store, folder, options, store)
            _written(done, suite, store.suite_folder(suite) / "report", out)
        except StoreError as error:
            if getattr(error.__cause__, "errno", None) not in READ_ONLY:
                raise
            out.write(f"Nothing was written: {error}\n")
            if options.figures or options.page or options.histories or options.tensorboard:  # files that were asked for
                done.problems[suite] = str(error)
    if not done.warnings and not done.problems:
        out.write(f"There is nothing to report: the results folder {store.root} has no suite. `kdbench run SUITE` trains one.\n")
    return done


def report_file(
    read: from_file.FromFile, to: Path | None, out: TextIO, width: int | None = None, options: ReportOptions | None = None
) -> ReportOutcome:
    """The same report from a frame file, or from a published table, written into the folder `to` (None: only printed).

    Raises:
        StoreError: it cannot be written; the tables are printed nevertheless.
    """
    from kdbench.store import Store

    options, done = options or ReportOptions(), ReportOutcome()
    beside = {name: getattr(read, name) for name in ("histories", "terms", "images", "trials", "features")}
    whole = replace(study(read.runs, read.costs, read.manifest), **beside)
    document = compose(whole, options)
    terminal(printed(whole, document, options.full), out, width)
    done.warnings[document.title] = document.warnings
    if to is not None:
        with put_at_the_end(Store(to.parent), to.resolve()) as folder:
            write(whole, document, Store(folder), folder, options)
        _written(done, document.title, to, out)
    return done


def _written(done: ReportOutcome, suite: str, folder: Path, out: TextIO) -> None:
    done.folders[suite] = folder
    out.write(f"All tables, with notes, are in {folder / 'report.md'}.\n")


def from_store(store: Store, manifest: Manifest, options: ReportOptions) -> Study:
    """Read and compute what a report needs: epochs only where an option needs them, since reading them takes longest."""
    runs = frame(store, manifest)
    runs, read = read_predictions(store, manifest, runs) if options.images else (runs, {})
    whole = study(runs, costs(store, manifest), manifest)
    epochs = options.figures or options.page or options.histories
    by_image = whole.comparisons if manifest.primary.per_image in KINDS else whole.comparisons[:0]
    return replace(
        whole,
        images=image_statistics(whole.students, by_image, read, whole.teacher_ids, manifest.alpha) if read else None,
        histories=histories(store, manifest) if epochs else None,
        terms=terms(store, manifest) if epochs or options.beside else None,
        trials=trials(store, manifest),
        features=features.frames(store, manifest, runs),
    )


def compose(whole: Study, options: ReportOptions) -> Document:
    """The report as a document, with its figures as drawn."""
    manifest = whole.manifest
    drawn: tuple[Figure, ...] = ()
    if options.figures or options.page:
        from kdbench.report.figures.draw import FigureData, figures

        data = FigureData(manifest, whole.students, whole.summaries, whole.comparisons, whole.costs, whole.histories, whole.overall)
        data = replace(data, trials=whole.trials, cka=whole.features.get("cka"))
        drawn = tuple(figures(data, every_page=options.figures))
    facts = (*findings(whole), *((manifest.description,) if manifest.description else ()))
    return Document(manifest.suite, facts, tuple(report_tables(whole, options)), warnings(whole, _sources_now(whole.runs)), drawn)


def report_tables(whole: Study, options: ReportOptions | None = None) -> list[Table]:
    """The tables of a suite: the main ones, those that an option asks for, across pairs, comparisons, predictions, and costs."""
    options = options or ReportOptions()
    found = [
        *main_tables(whole),
        claim_table(whole),
        paper_table(whole) if options.layout == "paper" else None,
        beside(options.beside, whole) if options.beside else None,
        across_table(whole),
        comparison_table(whole),
        predictions_table(whole.images, whole.manifest, whole.unstable) if whole.images is not None else None,
        metric_table(whole),
        class_table(whole),
        cka_table(whole),
        *probe_tables(whole),
        control_table(whole),
        tuning_table(whole),
        cost_table(whole.costs, whole.manifest),
    ]
    return [table for table in found if table is not None]


def printed(whole: Study, document: Document, full: bool = False) -> Document:
    """What of a document is printed on a terminal: all of it where it is `full`; else the main tables, with all pairs and, as long as it
    remains short, pair by pair, and one caption below the last of them. Where only single pairs can be tested, they alone are printed."""
    if full:
        return replace(document, figures=())
    asked = [table for table in document.tables if table.name in ASKED_FOR]
    main = [replace(table, notes=(HINT,)) for table in document.tables if table.name.startswith(MAIN)]
    start = 1 if not whole.all_pairs.tested and any(pair.tested for pair in whole.pairs.values()) and len(whole.pairs) > 1 else 0
    end = len(whole.places)
    rest = 12 + 2 * (len(document.facts) + len(document.warning_lines)) + (SHORT if asked else 0)
    while end > start + 1 and rest + sum(_lines(table.groups[start:end]) for table in main) > SHORT:
        end = end - 1 if start else 1
    main = [replace(table, groups=table.groups[start:end]) for table in main]
    return replace(document, tables=(*(replace(table, caption=(), notes=()) for table in main[:-1]), *main[-1:], *asked), figures=())


def _lines(groups: Sequence[Group]) -> int:
    return sum(5 + len(group.rows) + len(group.facts) + len(group.notes) for group in groups)


def write(whole: Study, document: Document, store: Store, folder: Path, options: ReportOptions, records: Store | None = None) -> None:
    """Every file of a report into `folder`.

    Args:
        store: writes into the folder.
        records: the store that holds the cells; None where there are only frames.
    """
    texts = {
        "manifest.json": json.dumps(whole.manifest.to_json(), indent=1) + "\n",
        "warnings.json": json.dumps([asdict(one) for one in document.warnings], indent=1, ensure_ascii=False) + "\n",
        "report.md": markdown(document),
        **{f"{name}.csv": rows.to_csv(index=False, lineterminator="\n", float_format="%.6g") for name, rows in frames(whole, options)},
    }
    fragments = []
    for table in document.tables:
        length = sum(len(group.rows) for group in table.groups)
        if length > MOST_ROWS_IN_PRINT:
            fragments.append(latex.left_out(table, length))
            continue
        fragments.append(latex.table(table, latex.label(document.title, table.name)))
        texts[f"tables/{table.name}.tex"] = fragments[-1]
    texts["report.tex"] = latex.document(document, document.title, fragments)
    if options.page:
        from kdbench.report.page.page import page
        from kdbench.report.page.runs import run_details

        details = run_details(records, whole.manifest, whole.runs, whole.histories)
        texts["report.html"] = page(document, details, {one.name: one.svg for one in document.figures})
    write_frame(store, folder, whole.runs)
    for name, text in texts.items():
        store.write_text(folder / name, text)
    for one in document.figures:
        store.write_bytes(folder / "figures" / f"{one.name}.pdf", one.pdf)
        store.write_bytes(folder / "figures" / f"{one.name}.png", one.png)
    if options.tensorboard is not None and records is not None:
        from kdbench.tensorboard_adapter import write_events

        write_events(records, whole.manifest, options.tensorboard / document.title)


def frames(whole: Study, options: ReportOptions) -> Iterator[tuple[str, pd.DataFrame]]:
    """The tables behind the tables, by file name."""
    names = ["summaries", "comparisons", "overall", "costs", "trials", "controls", "claims"]
    names += ["terms", "histories"] if options.histories else []
    held = [(name, getattr(whole, name)) for name in names]
    held += [(f"images_{name}", getattr(whole.images, name)) for name in from_file.IMAGE_FRAMES] if whole.images is not None else []
    held += [(f"features_{name}", table) for name, table in whole.features.items()]
    return ((name, table) for name, table in held if table is not None and len(table))


def _sources_now(runs: pd.DataFrame) -> dict[str, str | None]:
    """The digest of each part's source as it is now; None for one that is no longer here."""
    texts = [str(text) for text in runs["sources"].dropna().unique()] if "sources" in runs else []
    names = [entry.rpartition(" ")[0].partition(" ") for text in texts for entry in text.split("; ")]
    return {f"{kind} {name}": parts.source_digest(kind, name) for kind, _, name in names if kind in parts.KINDS}
