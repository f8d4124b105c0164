"""Image files that a table names: the paths of its rows, and the files behind them. Not a dataset."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath

import numpy as np

from kdbench.datasets._files import LISTERS, ImageFiles, composed, on_disk
from kdbench.datasets._tables import TableRows, refuse, some
from kdbench.errors import DataError

AT_ONCE = 1000
"""Files whose sizes a thread asks for in one piece of work."""


def paths_of(home: Path, tables: Mapping[str, TableRows], roles: Mapping[str, list[str]]) -> list[str]:
    """The path of each row relative to the data folder. Raises DataError for a path that is none, is not inside of the data folder, or
    stands in two rows."""
    found: list[str] = []
    seen: dict[str, tuple[str, int]] = {}
    for role, table in tables.items():
        problems = []
        base = table.path.parent.relative_to(home).as_posix()
        for place, (given, split) in enumerate(zip((row[0] for row in table.rows), roles[role], strict=True)):
            plain = posixpath.normpath(posixpath.join(base, str(given).replace("\\", "/")))
            first, row = seen.setdefault(composed(plain), (role, place))
            if not isinstance(given, str) or not given:
                problems.append((table.at(place), f"the path is {given!r}"))
            elif PureWindowsPath(given).drive or given[0] in "/\\":
                problems.append((table.at(place), f"the path {given!r} is absolute: write it relative to {table.path.parent.absolute()}"))
            elif plain.startswith("../"):
                problems.append((table.at(place), f"the path {given!r} leads out of the data folder {home.absolute()}"))
            elif (first, row) != (role, place):
                other, there = roles[first][row], f"{tables[first].path.relative_to(home).as_posix()}, {tables[first].at(row)}"
                again = f"is an image of {split}, and also of {other} (" if other != split else "is listed a second time (first in "
                problems.append((table.at(place), f"{given!r} {again}{there})"))
            found.append(plain)
        refuse(table.path, problems)
    return found


def files_of(home: Path, paths: Sequence[str], labels: Sequence[int], where: str) -> ImageFiles:
    """The files of a split in canonical order. Raises DataError for those that are not there."""

    def sizes(start: int) -> list[tuple[str, int]]:
        return [_found(home, path) for path in paths[start : start + AT_ONCE]]

    with ThreadPoolExecutor(LISTERS) as pool:
        there = [one for some in pool.map(sizes, range(0, len(paths), AT_ONCE)) for one in some]
    if missing := [path for path, (_, size) in zip(paths, there, strict=True) if size < 0]:
        named = some([str((home / path).absolute()) for path in missing])
        raise DataError(f"{where} lists {len(missing)} of {len(paths)} files that are not there: {named}")
    files = ImageFiles(home, np.array([os.fsencode(path) for path, _ in there]), np.array(labels), np.array([size for _, size in there]))
    return files.take(np.argsort(np.array(files.keys())))


def _found(home: Path, path: str) -> tuple[str, int]:
    """The path in the spelling of the disk, and the size; -1 if there is no such file."""
    try:
        if not path.isascii() and not (home / path).exists():
            path = on_disk(home, path).relative_to(home).as_posix()
        return path, os.stat(home / path).st_size if (home / path).is_file() else -1
    except (OSError, ValueError):  # a name that no file can have
        return path, -1
