"""A report is written whole or not at all: into a folder of its own, to which a link is turned at the end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import StoreError

if TYPE_CHECKING:
    from kdbench.store import Store

LISTING = ".written.json"
"""The names of the files that a report wrote, in its folder: all others there are the user's own."""
LEFTOVER_S = 3600.0
"""What a killed writer left is removed when it is this old."""


@contextmanager
def fresh_report(store: Store, suite: str) -> Iterator[Path]:
    """A new folder to write a suite's report into; when the block ends, `suites/<suite>/report` is that folder, all at once.

    `report` is a link to `reports/<token>/`. Killed at any moment, the former report is whole. After an exception the new folder is gone
    and the former report stays. Of several writers at once the last to end wins, and none touches what another writes.

    A file in the former report that no report wrote (a user's notes) is carried over to the new one, unless that has a file of its
    name; what a report wrote and the new one lacks goes with the former.

    On a file system without symbolic links, and where `report` is a folder or the user's own link to elsewhere, the files are put into
    `report/` one by one at the end (`put_at_the_end`).

    Raises:
        StoreError: the suite's folder cannot be written, or is full.
    """
    place = store.suite_folder(suite) / "report"
    shelf = place.with_name("reports")
    folder = shelf / uuid.uuid4().hex[:12]
    store.make_folder(shelf)
    former = store.link_target(place)
    own_place = store.is_folder(place) if former is None else former.parent != shelf
    if own_place or not store.can_link(shelf):
        _clean(store, place, shelf)
        with put_at_the_end(store, place, folder):
            yield folder
        return
    with store.holding(_claim(folder), f"{folder} is being written"):
        _clean(store, place, shelf)
        try:
            store.make_folder(folder)
            yield folder
            former = _turn(store, place, folder)
        except BaseException:
            if store.link_target(place) != folder:  # else what came, a Ctrl-C perhaps, came too late
                store.remove_tree(folder)
            raise
        if former is not None:
            store.remove_tree(former)


@contextmanager
def put_at_the_end(store: Store, place: Path, folder: Path | None = None) -> Iterator[Path]:
    """A folder to write a report into; when the block ends, its files are put into `place` one by one, and what only a former report
    wrote is removed. Killed before the end, `place` is as it was; killed later, each file is whole, but they may be of two reports.

    Raises:
        StoreError: `place` is a file, or cannot be written, or its disk is full.
    """
    folder = folder or place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}")
    if store.exists(place) and not store.is_folder(place):
        raise StoreError(f"{place} is a file: name a folder; nothing was written")
    done = "nothing was"
    try:
        store.make_folder(folder)
        yield folder
        written, former = {*store.files_under(folder), LISTING}, _written(store, place)
        store.write_json(place / LISTING, sorted(written | former))
        done = "not all files were"
        for name in sorted(written - {LISTING}):
            store.put_file(folder / name, place / name)
        for name in former.intersection(store.files_under(place)) - written:
            store.remove(place / name)
        store.write_json(place / LISTING, sorted(written))
    except StoreError as error:
        if not isinstance(cause := error.__cause__, OSError):
            raise
        raise StoreError(f"{place} cannot be written ({cause.strerror}): name another folder; {done} written") from cause
    finally:
        store.remove_tree(folder)


def _turn(store: Store, place: Path, folder: Path) -> Path | None:
    """Turn the link to the new folder, which gets the user's own files of the former one. Returns the former one."""
    store.write_json(folder / LISTING, [*store.files_under(folder), LISTING])
    while True:
        former = store.link_target(place)
        if former is not None:
            written = _written(store, former)
            for name in store.files_under(former):
                # Another writer may end just now and remove it: then the link is no longer the same, and this is done again.
                with suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
                    if name not in written:
                        store.carry(former / name, folder / name)
        if store.link_target(place) == former:
            break
    store.link(place, folder)
    return former


def _written(store: Store, folder: Path) -> set[str]:
    """The files of a report's folder that a report wrote."""
    listed = store.json(folder / LISTING)
    return {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()


def _claim(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.claim")


def _clean(store: Store, place: Path, shelf: Path) -> None:
    """Remove what killed writers left."""
    for entry in store.entries(shelf):
        folder = shelf / entry.name.lstrip(".").partition(".")[0]
        if store.age_s(entry) < LEFTOVER_S or store.is_held(_claim(folder)):
            continue
        # Asked last: a writer that held the folder until just now has turned the link, or is dead.
        if store.is_folder(place) and store.link_target(place) != folder:
            store.remove_tree(entry)
