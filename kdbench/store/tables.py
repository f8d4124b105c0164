"""Tables that a user names: read strictly, so that every error says which value is wrong, and where."""

from __future__ import annotations

import csv
import io
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.errors import KdbenchError, nearest, shown

SUFFIXES = (".csv", ".parquet")
EMPTY = ("", "NA", "NaN", "nan", "N/A", "None", "none", "null", "-")
"""How tables write that a number is not there."""
MOST = 1e12
"""No whole number, and no metric, is larger; beyond it, squares lose digits or overflow."""


def read_table(path: Path) -> pd.DataFrame:
    """A .csv file, its boxes as text and indexed by line, or a .parquet file.

    Raises:
        KdbenchError: there is no such file, or it is no table.
    """
    if not path.is_file():
        folder = next((one for one in (path, path.with_suffix("")) if one.is_dir()), None)
        files = [one.name for one in (folder or path.parent).glob("*") if one.suffix in SUFFIXES and one.is_file()]
        if folder is None:
            raise KdbenchError(f"there is no file {path}{nearest(path.name, files)}")
        named = f"; did you mean {folder / min(files, key=lambda name: not name.startswith('frame'))}?" if files else ""
        raise KdbenchError(f"{path} is no file: {folder} is a folder{named}")
    with about(path):
        if path.suffix == ".csv":
            return read_csv(path)
        try:
            found = pd.read_parquet(path)
        except (ValueError, OSError, TypeError, KeyError, NotImplementedError) as error:
            raise KdbenchError(f"it is no Parquet file ({str(error).splitlines()[0]})") from error
        return found.reset_index(drop=not any(found.index.names))


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except KdbenchError as error:
        raise KdbenchError(f"{path}: {error}") from error
    except OSError as error:
        raise KdbenchError(f"{path} cannot be read ({error.strerror or error})") from error


def read_csv(path: Path) -> pd.DataFrame:
    """The boxes as text. Lines before the header that begin with `#` are comments; further on, `#` is a character like any other."""
    raw = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\0" in raw:
        raise KdbenchError("it holds zero bytes: it is UTF-16, or no text at all; save it as UTF-8")
    try:
        content, skipped = raw.decode("utf-8-sig"), 0
    except UnicodeDecodeError as error:
        raise KdbenchError(f"line {raw[: error.start].count(10) + 1} is not UTF-8: save the file as UTF-8") from error
    while content.startswith("#"):
        content, skipped = content.partition("\n")[2], skipped + 1
    reader = csv.reader(io.StringIO(content), strict=True)
    header: list[str] = []
    rows: dict[int, list[str]] = {}
    try:
        for boxes in reader:
            line, stripped = skipped + reader.line_num, [box.strip() for box in boxes]
            if not any(stripped):
                continue
            if stripped == header:
                raise KdbenchError(f"line {line} is the header again: remove it")
            if header and len(boxes) != len(header):
                raise KdbenchError(f"line {line} has {len(boxes)} values, and the header has {len(header)} columns")
            if header:
                rows[line] = boxes
            header = header or stripped
    except csv.Error as error:
        raise KdbenchError(f"line {skipped + reader.line_num} is not CSV ({error}): is a quote or a line end missing before it?") from error
    if not header:
        raise KdbenchError("the file is empty")
    return pd.DataFrame([*rows.values()], columns=header, index=pd.Index([*rows], name="line", dtype=int), dtype=object)


def typed(rows: pd.DataFrame, kind_of: Callable[[str], str]) -> pd.DataFrame:
    """Each column as its kind: `name` (text of visible characters), `text` (others are escaped), `number` (float64, NaN where a box is
    empty) or `whole` (Int64). Text has no blanks around it, and is None where a box is empty. Raises KdbenchError."""
    make = {"name": _names, "text": _texts, "number": _numbers, "whole": _whole}
    return rows.assign(**{str(name): make[kind_of(str(name))](rows[name]) for name in rows})


def refuse(cells: pd.Series, wrong: Any, must: str) -> None:
    """Raise KdbenchError with the first wrong value of a column, and where it is."""
    for place, value in itertools.compress(cells.items(), wrong):
        held = "is empty" if text(value) is None else f"is {shown(repr(value) if isinstance(value, str) else str(value))}"
        raise KdbenchError(f"{cells.name} {held} ({cells.index.name} {place}): it must {must}")


def null(value: Any) -> Any:
    """A missing value of pandas' as None."""
    return None if value is None or str(value) in ("<NA>", "NaT") or (isinstance(value, float) and value != value) else value


def text(value: Any) -> str | None:
    """A value as text without blanks around it; None for an empty one."""
    value = null(value)
    whole = isinstance(value, float) and value.is_integer()
    return None if value is None else unicodedata.normalize("NFC", str(int(value) if whole else value)).strip() or None


def number(value: Any) -> float | None:
    """A value as a float, NaN for an empty one; None for what is no number."""
    held = text(value) or ""
    try:
        return math.nan if held in EMPTY else None if "_" in held else float(held)
    except ValueError:
        return None


def _names(cells: pd.Series) -> pd.Series:
    found = pd.Series([text(value) for value in cells], cells.index, object, cells.name)
    refuse(found, [held is not None and not held.isprintable() for held in found], "have visible characters only")
    return found


def _texts(cells: pd.Series) -> pd.Series:
    def seen(held: str | None) -> str | None:
        return held if held is None or held.replace("\n", " ").isprintable() else "\n".join(map(shown, held.splitlines()))

    return pd.Series([seen(text(value)) for value in cells], cells.index, object, cells.name)


def _numbers(cells: pd.Series) -> pd.Series:
    refuse(cells, [number(value) is None for value in cells], "be a number")
    return cells.map(number).astype("float64")


def _whole(cells: pd.Series) -> pd.Series:
    found = _numbers(cells)
    refuse(cells, found.notna() & ~((found % 1 == 0) & found.between(0, MOST)), f"be a whole number from 0 to {MOST:g}")
    return found.astype("Int64")
