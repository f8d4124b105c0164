"""A report is written whole or not at all: into a folder of its own, to which a link is turned at the end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.store import Store

LEFTOVER_S = 3600.0
"""What a killed writer left is removed when it is this old."""
EARLIER = "earlier-"
EARLIER_FILES = ("frame.parquet", "frame.csv", "report.md", "histories.csv", "terms.csv")
"""What releases before the link wrote into `report/`: whatever else lies there is somebody's own."""


@contextmanager
def fresh_report(store: Store, suite: str) -> Iterator[Path]:
    """A new folder to write a suite's report into; when the block ends, `suites/<suite>/report` is that folder, all at once.

    `report` is a link to `reports/<token>/`. Killed at any moment, the former report is whole (a folder of an earlier release, killed
    just while it is taken over, lies whole in `reports/earlier-…/`, and the next report begins by putting the link there). After an
    exception the new folder is gone and the former report stays. Of several writers at once the last to end wins, and none touches
    what another writes.

    A file in the former report that no report wrote (somebody's notes) is carried over to the new one, unless that has a file of its
    name; what a report wrote and the new one lacks goes with the former.

    On a file system without symbolic links, and where `report` is somebody's own link to elsewhere, the files are put into `report/`
    one by one at the end: each is whole, whenever killed, but they may then be of two reports.

    Raises:
        StoreError: the suite's folder cannot be written, or is full.
    """
    place = store.suite_folder(suite) / "report"
    shelf = place.with_name("reports")
    folder = shelf / uuid.uuid4().hex[:12]
    store.make_folder(shelf)
    former = store.link_target(place)
    if (former is not None and former.parent != shelf) or not store.can_link(shelf):
        with _removed_after(store, folder):
            _clean(store, place, shelf)
            yield folder
            _put_one_by_one(store, place, folder)
        return
    store.take_over(place, next(iter(_earlier(store, shelf)), shelf / f"{EARLIER}{folder.name}"))
    with store.holding(_claim(folder), f"{folder} is being written"):
        _clean(store, place, shelf)
        try:
            store.make_folder(folder)
            yield folder
            replaced = _turn(store, place, folder)
        except BaseException:
            if store.link_target(place) != folder:  # else what came, a Ctrl-C perhaps, came too late
                store.remove_tree(folder)
                store.remove_tree(_listing(folder))
            raise
        for one in replaced:
            store.remove_tree(one)
            store.remove_tree(_listing(one))


@contextmanager
def put_at_the_end(store: Store, place: Path) -> Iterator[Path]:
    """A folder to write a report into; when the block ends, its files are put into `place` one by one, each whole. What else lies in
    `place` stays. Killed before the end, `place` is as it was.

    Raises:
        StoreError: the folder around `place` cannot be written, or is full.
    """
    folder = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}")
    with _removed_after(store, folder):
        yield folder
        for name in store.files_under(folder):
            store.put_file(folder / name, place / name)


@contextmanager
def _removed_after(store: Store, folder: Path) -> Iterator[None]:
    store.make_folder(folder)
    try:
        yield
    finally:
        store.remove_tree(folder)


def _turn(store: Store, place: Path, folder: Path) -> list[Path]:
    """Turn the link to the new folder, with what is somebody's own in those that it replaces; and those."""
    store.write_json(_listing(folder), store.files_under(folder))
    while True:
        former = store.link_target(place)
        replaced = [*_earlier(store, folder.parent), *([former] if former is not None else [])]
        for one in replaced:
            for name in _own(store, one, folder.parent):
                # Another writer may end just now and remove it: then the link is no longer the same, and this is done again.
                with suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
                    store.carry(one / name, folder / name)
        if store.link_target(place) == former:
            break
    store.link(place, folder)
    return replaced


def _put_one_by_one(store: Store, place: Path, folder: Path) -> None:
    written = store.files_under(folder)
    for name in written:
        store.put_file(folder / name, place / name)
    for name in set(store.files_under(place)) - set(written) - set(_own(store, place, folder.parent)):
        store.remove(place / name)
    store.write_json(_listing(folder.with_name(place.name)), written)


def _earlier(store: Store, shelf: Path) -> list[Path]:
    """Folders of an earlier release that were taken over."""
    return [path for path in store.entries(shelf) if path.name.startswith(EARLIER) and path.is_dir()]


def _own(store: Store, folder: Path, shelf: Path) -> list[str]:
    """The files of a report's folder that no report wrote."""
    listings = [store.json(path) for path in store.entries(shelf) if path.suffix == ".json"]
    ours = set(EARLIER_FILES).union(*(names for names in listings if isinstance(names, list)))
    return [name for name in store.files_under(folder) if name not in ours]


def _listing(folder: Path) -> Path:
    """Where the names of the files stand that a report wrote into its folder."""
    return folder.with_name(f"{folder.name}.json")


def _claim(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.claim")


def _clean(store: Store, place: Path, shelf: Path) -> None:
    """Remove what killed writers left."""
    for entry in store.entries(shelf):
        folder = shelf / entry.name.lstrip(".").partition(".")[0]
        if folder.name == place.name or store.age_s(entry) < LEFTOVER_S or store.is_held(_claim(folder)):
            continue
        # Asked last: a writer that held the folder until just now has turned the link, or is dead.
        if place.is_dir() and store.link_target(place) != folder:
            store.remove_tree(entry)
