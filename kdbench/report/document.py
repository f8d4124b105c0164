"""What a report consists of, before any renderer has seen it."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.report.table import Table


@dataclass(frozen=True)
class ReportWarning:
    """A warning. `code` is stable and for machines (`report --strict`, `--accept`)."""

    code: str
    message: str


@dataclass(frozen=True)
class Figure:
    """A rendered figure: `name` is its file's stem; `caption` says in words what it shows and stands in for it where it cannot be seen.
    `pdf`, `png`, `svg` (one `<svg>` element): its files."""

    name: str
    title: str
    caption: str
    pdf: bytes = b""
    png: bytes = b""
    svg: str = ""


@dataclass(frozen=True)
class Document:
    """A report of one suite: every renderer prints all of it. `facts`: what was compared, what was found, what cannot be said; then the
    tables, then the warnings."""

    title: str
    facts: tuple[str, ...]
    tables: tuple[Table, ...]
    warnings: tuple[ReportWarning, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def warning_lines(self) -> tuple[tuple[str, str], ...]:
        """(code, text) of the warnings, one line a code, in their order."""
        grouped: dict[str, list[str]] = {}
        for warning in self.warnings:
            grouped.setdefault(warning.code, []).append(warning.message)
        return tuple((code, "; ".join(texts)) for code, texts in grouped.items())
