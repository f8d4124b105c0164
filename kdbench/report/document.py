"""What a report consists of, before any renderer has seen it."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.report.table import Table


@dataclass(frozen=True)
class Owed:
    """A warning that the reader is owed. `code` is stable and for machines (`report --strict`, `--accept`); `where` names the block or
    objective, and is empty for the whole suite."""

    code: str
    message: str
    where: str = ""

    def text(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


@dataclass(frozen=True)
class Figure:
    """A rendered figure: `name` is its file's stem; `caption` says in words what it shows and stands in for it where it cannot be seen."""

    name: str
    title: str
    caption: str


@dataclass(frozen=True)
class Document:
    """A report of one suite: every renderer prints all of it."""

    title: str
    facts: tuple[str, ...]
    tables: tuple[Table, ...]
    warnings: tuple[Owed, ...] = ()
    figures: tuple[Figure, ...] = ()
