"""The verb `report`: suites by name or file, frame files, published tables; and what fails it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from kdbench.errors import RequestError, nearest
from kdbench.report import published
from kdbench.report.from_file import SUFFIXES, FromFile, of_rows, read
from kdbench.report.lint import findings_text
from kdbench.report.warnings import CODES, unaccepted
from kdbench.report.write import Asked, Reported, report, report_file
from kdbench.store import Store

PUBLISHED = "published:"
"""`report published:crd` reports a table of the literature."""


def run(
    results: Path,
    named: Sequence[str],
    suites: Sequence[str],
    to: Path | None,
    asked: Asked,
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
        RequestError: a code that no warning has, or `--to` with a suite.
    """
    for code in accepted:
        if code not in CODES:
            raise RequestError(f"no warning has the code '{code}'{nearest(code, CODES)}")
    files = [name for name in named if is_table(name)]
    if to is not None and not files:
        raise RequestError("--to is for frame files: the report of a suite lies in results/suites/<name>/report")
    if files and to is None and (asked.figures or asked.page or asked.histories):
        raise RequestError("the report of a frame file is only printed: say with --to where its figures and pages are to go")
    if files and asked.tensorboard is not None:
        raise RequestError("TensorBoard events are written from the records of a suite, which a frame file has not")
    if to is not None and any(Path(name).resolve().parent == to.resolve() for name in files if not name.startswith(PUBLISHED)):
        raise RequestError(f"{to} holds the frame file itself, which a report would write anew: name another folder")
    if len(files) > 1 and to is not None:
        raise RequestError(f"--to is one folder, and {len(files)} frame files were named: report them one by one")
    done = [report_file(_read(name), to, out, asked=asked) for name in files]
    if suites or not files:
        done.append(report(Store(results), list(suites) or None, out, asked=asked))
    failed = any(one.problems for one in done)
    if strict:
        failed |= _told(done, tuple(accepted), out)
    return int(failed)


def is_table(name: str) -> bool:
    """Whether an argument of `report` is a frame file or a published table, and no suite."""
    return name.startswith(PUBLISHED) or name.endswith(SUFFIXES)


def published_text(table: str | None, lint: bool) -> tuple[str, bool]:
    """The list of published tables, the rows of one, or what a lint finds in one or all; and whether it found anything.

    Raises:
        KdbenchError: there is no such table.
    """
    if lint:
        findings = published.lint_published(table)
        return findings_text(findings), bool(findings)
    if table is None:
        return "".join(f"{name:<22}{words}\n" for name, words in published.tables()), False
    return published.table(table).to_csv(index=False, lineterminator="\n"), False


def _read(name: str) -> FromFile:
    if name.startswith(PUBLISHED):
        table = name.removeprefix(PUBLISHED)
        return of_rows(published.as_runs(table), table)
    return read(Path(name))


def _told(done: Sequence[Reported], accepted: tuple[str, ...], out: TextIO) -> bool:
    found = [(suite, owed) for one in done for suite, all_of_it in one.warnings.items() for owed in unaccepted(all_of_it, accepted)]
    if found:
        codes = sorted({owed.code for _, owed in found})
        suites = ", ".join(dict.fromkeys(suite for suite, _ in found))
        out.write(f"strict: {len(found)} warning{'s' * (len(found) > 1)} of {suites}, not accepted: {', '.join(codes)}\n")
    return bool(found)
