"""Lists of images in CSV and Parquet: read, with the line of each row for messages. Not a dataset."""

from __future__ import annotations

import codecs
import csv
import io
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import DataError, nearest

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
SEPARATORS = (",", ";", "\t", "|")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""The encodings that a file names in its first bytes."""
MOST_NAMED = 5


@dataclass(frozen=True)
class TableRows:
    """The wanted columns of a table, row by row: text in CSV, other types in Parquet. `lines` are the lines of a CSV file, and elsewhere
    the numbers of the rows from 1; `unit` says which."""

    path: Path
    rows: list[tuple[Any, ...]]
    lines: Sequence[int]
    unit: str = "line"

    def at(self, place: int) -> str:
        return f"{self.unit} {self.lines[place]}"


def read_table(path: Path, wanted: Sequence[str]) -> TableRows:
    """Raises DataError if there is no such table, it cannot be read, lacks a wanted column, or has a row with too few or too many
    fields."""
    try:
        parquet = path.suffix.lower() in SUFFIXES[3:]
        found = _parquet(path, wanted) if parquet else _csv(path, path.read_bytes(), wanted)
    except FileNotFoundError as error:
        others = sorted(one.name for one in path.parent.iterdir() if one.suffix.lower() in SUFFIXES) if path.parent.is_dir() else []
        raise DataError(f"there is no table {path.absolute()}{nearest(path.name, others) if others else ''}") from error
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read: {error}") from error
    if not found.rows:
        raise DataError(f"{path.absolute()} has no rows")
    return found


def refuse(path: Path, problems: Iterable[tuple[str, str]], what: str = "rows", todo: str = "") -> None:
    """Raises DataError with the first of the problems, which are (line, what is wrong), and their number; nothing where there is none.
    `todo` is what the reader may do about them."""
    found = [f"{line}: {text}" for line, text in problems]
    if found:
        count = f": {len(found)} {what} cannot be used" if len(found) > 1 else ""
        more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise DataError(f"{path.absolute()}{count}: {'; '.join(found[:MOST_NAMED])}{more}{todo}")


def some(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - MOST_NAMED} others" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _csv(path: Path, raw: bytes, wanted: Sequence[str]) -> TableRows:
    encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = sum(1 for _ in io.StringIO(raw[: error.start].decode(encoding, "replace") + "?", newline=""))
        raise DataError(f"{path.absolute()}, line {line}: it is not {encoding.upper()}. Save the table as UTF-8") from None
    # Lines may end in \n, \r\n or \r, and blank ones (of spaces and separators) may stand above the header.
    first = next((line for line in io.StringIO(text, newline="") if line.strip("".join(SEPARATORS) + string.whitespace)), "")

    def fit(separator: str) -> tuple[int, int]:
        names = _names(next(csv.reader([first], delimiter=separator), []))
        return len({*wanted} & {*names}), len(names)

    rows, lines, problems, places, line = [], [], [], None, 1
    try:
        separator = max(SEPARATORS, key=fit)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
        for row in reader:
            start, line = line, reader.line_num + 1
            if not any(field.strip() for field in row):
                continue
            if places is None:
                header, places = row, _places(path, _names(row), wanted)
            elif len(row) != len(header):
                problems.append((f"line {start}", f"it has {len(row)} fields, and the first line has {len(header)}"))
            else:
                rows.append(tuple(row[place].strip() for place in places))
                lines.append(start)
    except csv.Error as error:
        problems.append((f"line {line}", f"{error}; is a quotation mark open?"))
    refuse(path, problems)
    return TableRows(path, rows, lines)


def _names(header: Iterable[str]) -> list[str]:
    return [name.strip() for name in header]


def _places(path: Path, header: list[str], wanted: Sequence[str]) -> list[int]:
    if lacking := [name for name in wanted if name not in header]:
        near = nearest(lacking[0], header)
        hint = f"{near}. The first line must hold the names of the columns; options of the dataset name other columns"
        raise DataError(f"{path.absolute()} has no column {' and no column '.join(map(repr, lacking))}{hint}")
    if twice := [name for name in wanted if header.count(name) > 1]:
        raise DataError(f"{path.absolute()} has the column {twice[0]!r} twice: rename one of them")
    return [header.index(name) for name in wanted]


def _parquet(path: Path, wanted: Sequence[str]) -> TableRows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _places(path, file.schema_arrow.names, wanted)
            columns = [file.read([name]).column(0).to_pylist() for name in wanted]
    except (pyarrow.ArrowException, NotImplementedError) as error:
        raise DataError(f"{path.absolute()} is truncated or not a Parquet file ({type(error).__name__}: {error})") from error
    rows = [tuple(one.strip() if isinstance(one, str) else one for one in row) for row in zip(*columns, strict=True)]
    return TableRows(path, rows, range(1, len(rows) + 1), "row")
