"""The verb `report`: suites by name or file, frame files, published tables; and what fails it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from kdbench import published
from kdbench.errors import UsageError, nearest
from kdbench.report.study import plural
from kdbench.report.warnings import CODES, RETIRED
from kdbench.report.write import ReportOptions, report, report_file
from kdbench.store import Store
from kdbench.store.folders import is_folder
from kdbench.store.from_file import FromFile, of_rows, read
from kdbench.store.tables import SUFFIXES

PUBLISHED = "published:"
"""`report published:crd` reports a table of the literature."""


def run(
    results: Path,
    named: Sequence[str],
    suites: Sequence[str],
    to: Path | None,
    options: ReportOptions,
    strict: bool,
    accepted: Sequence[str],
    out: TextIO,
) -> int:
    """Report suites and frame files. Returns 0, or 1 when something could not be reported or `strict` finds a warning.

    Args:
        named: as given on the command line; those that end in .csv or .parquet are frame files, `published:NAME` is a
            table of the literature.
        suites: the names of the others.
        accepted: codes of warnings that `strict` lets pass.

    Raises:
        UsageError: a code that no warning has, or `--to` with a suite.
    """
    for code in accepted:
        if code not in (*CODES, *RETIRED):
            raise UsageError(f"no warning has the code '{code}'{nearest(code, CODES)}")
    files = [name for name in named if is_table(name)]
    mistakes: dict[str, object] = {
        "--accept is for --strict: give both": bool(accepted) and not strict,
        "--to is for frame files; the report of a suite is written to results/suites/<name>/report": to is not None and not files,
        "the report of a frame file is only printed: name a folder for its figures and pages with --to FOLDER": (
            files and to is None and (options.figures or options.page or options.histories)
        ),
        "TensorBoard events are written from the records of a suite, and a frame file has no records": files and options.tensorboard,
        f"{to} holds the frame file, which the report would overwrite: name another folder": (
            to is not None and any(Path(name).resolve().parent == to.resolve() for name in files if not name.startswith(PUBLISHED))
        ),
        f"--to is one folder, and {len(files)} frame files were named: report them one by one": to is not None and len(files) > 1,
    }
    for name in set(named) - set(files):
        path = Path(name)
        if path.name != name and is_folder(path) and path.resolve().parent != (results / "suites").resolve():
            raise UsageError(f"{name} is a folder that is no suite of {results}; did you mean {path / 'frame.csv'}?")
    for text, made in mistakes.items():
        if made:
            raise UsageError(text)
    done = [report_file(_read(name, options.metric), to, out, options=options) for name in files]
    if suites or not files:
        done.append(report(Store(results), list(suites) or None, out, options=options))
    found = [
        (suite, one.code) for part in done for suite, warnings in part.warnings.items() for one in warnings if one.code not in accepted
    ]
    if strict and found:
        suites_of, codes = (", ".join(dict.fromkeys(names)) for names in zip(*found, strict=True))
        out.write(f"strict: {plural(len(found), 'warning')} of {suites_of}, not accepted: {codes}\n")
    return int(any(part.problems for part in done) or (strict and len(found) > 0))


def is_table(name: str) -> bool:
    """Whether an argument of `report` is a frame file or a published table, and no suite."""
    return name.startswith(PUBLISHED) or name.endswith(SUFFIXES)


def published_text(table: str | None) -> str:
    """The list of published tables, or the rows of one.

    Raises:
        KdbenchError: there is no such table.
    """
    if table is None:
        return "".join(f"{name:<22}{words}\n" for name, words in published.tables())
    return published.table(table).to_csv(index=False, lineterminator="\n")


def _read(name: str, metric: str | None) -> FromFile:
    if name.startswith(PUBLISHED):
        table = name.removeprefix(PUBLISHED)
        return of_rows(published.as_runs(table), table, metric)
    return read(Path(name), metric)
