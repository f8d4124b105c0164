"""Image files in one folder per class: listed and selected. Not a dataset."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from kdbench.datasets._base import Subset
from kdbench.datasets._memory import kept, split_off
from kdbench.datasets._packed import Inside
from kdbench.datasets._reading import EncodedImage
from kdbench.errors import DataError

SUFFIXES = tuple([".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"])
"""Endings of images, in lower case. Files with other endings are passed over."""

OF_SYSTEMS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that systems make and that may hold copies of images: passed over, like hidden files and folders."""

LISTERS = 16
"""Threads that list folders and read files, since a network disk is slow to respond."""

MOST_NAMED = 5


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels. `paths` are relative to `home`, as bytes; `sizes` in bytes. Arrays instead of lists, since a million
    Python strings would be copied into every reading process."""

    home: Path | Inside
    paths: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: np.ndarray) -> ImageFiles:
        return ImageFiles(self.home, self.paths[index], self.labels[index], self.sizes[index])

    def name(self, place: int) -> str:
        return os.fsdecode(self.paths[place])

    def path(self, place: int) -> Path | EncodedImage:
        path = self.home / os.fsdecode(self.paths[place])
        return path.opened() if isinstance(path, Inside) else path

    def digests(self) -> list[bytes] | None:
        """The SHA-256 of each file, where a pack has them."""
        if not isinstance(self.home, Inside) or (known := self.home.archive.digests) is None:
            return None
        return [known[place].tobytes() for place in self.home.archive.places(self.paths)]

    def check_sizes(self, *others: ImageFiles) -> None:
        """Raises DataError if an image here or in `others` is empty."""
        empty = [files.path(place) for files in (self, *others) for place in np.flatnonzero(files.sizes == 0).tolist()]
        if empty:
            raise together([f"{path.absolute()} is empty (zero bytes): its copy was cut short. Copy it again" for path in empty])

    def keys(self) -> list[bytes]:
        """The paths with composed characters (NFC), by which images are ordered and recognised on every system."""
        return [path if path.isascii() else os.fsencode(composed(os.fsdecode(path))) for path in self.paths.tolist()]


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC). macOS may store a name decomposed (NFD), which looks the same."""
    return unicodedata.normalize("NFC", name)


def on_disk(folder: Path, name: str) -> Path:
    """A path inside a folder, in the spelling that the disk has (`composed`)."""
    for part in PurePosixPath(name).parts:
        if not part.isascii() and folder.is_dir() and not (folder / part).exists():
            part = next((one.name for one in folder.iterdir() if composed(one.name) == composed(part)), part)
        folder /= part
    return folder


def checked_folder(folder: str, option: str = "folder") -> str:
    plain = PurePosixPath(folder)
    if plain.is_absolute() or ".." in plain.parts or str(plain) != folder or folder == ".":
        raise ValueError(
            f"{option} must be a name inside the data folder (as 'flowers' or 'sets/flowers'), not {folder!r}: the data folder itself is "
            "set by --data or $KDBENCH_DATA"
        )
    return folder


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in OF_SYSTEMS


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def ending(name: str) -> str:
    """What a name that is not an image's ends in, as a message shows it."""
    last = os.path.splitext(name)[1].lower()
    return last if re.fullmatch(r"\.[a-z0-9_~-]{1,12}", last) else "other endings" if last else "without an ending"


def entries(folder: Path | Inside, below: str = "") -> Iterator[tuple[str, int | None, str]]:
    """(relative name, size, kind) of what a folder and its sub-folders hold; the size is None for what is not an image. Reads no image.
    Raises DataError if a folder cannot be listed, or an image is a link to nothing."""
    if isinstance(folder, Inside):
        yield from ((name, size, "") for name, size in folder.images())
        return
    try:
        with os.scandir(folder) as found:
            for entry in found:
                name = below + entry.name
                if is_hidden(entry.name):
                    yield name, None, "hidden"
                elif entry.is_dir():
                    # A link to a folder above would be listed without end.
                    loop = entry.is_symlink() and folder.resolve().is_relative_to(Path(entry).resolve())
                    inside = [] if loop else list(entries(Path(entry), f"{name}/"))
                    holds = any(size is not None for _, size, _ in inside)
                    yield from inside if holds else [(name, None, "folders without images")]
                elif is_image(name) and stat.S_ISREG((info := entry.stat()).st_mode):
                    yield name, info.st_size, ""
                else:
                    yield name, None, ending(entry.name)
    except OSError as error:
        raise DataError(f"{folder.absolute()} cannot be listed: {error}") from error


def images_in(folder: Path | Inside, subfolders: bool = False) -> tuple[list[tuple[str, int]], Counter[str]]:
    """(relative name, size) of every image in a class's folder, and how many other entries of each kind it holds. Raises DataError if it
    holds no image, or (without `subfolders`) if a sub-folder holds one."""
    images, passed = [], Counter[str]()
    for name, size, kind in entries(folder):
        if size is None:
            passed[kind] += 1
        else:
            images.append((name, size))
    if not images:
        raise DataError(f"{folder.absolute()} holds no image{f' ({in_words(passed)})' if passed else ''}")
    nested = sorted(name for name, _ in images if "/" in name)
    if nested and not subfolders:
        raise DataError(
            f"{(folder / nested[0]).parent.absolute()} is a folder with images inside a class's folder (images there: {len(nested)}). "
            "Move it elsewhere; or, if they belong to the class, write `subfolders: read` (an option of the dataset `folder`)"
        )
    return images, passed


def in_words(passed: Counter[str]) -> str:
    """The kinds that were passed over, the commonest first."""
    named = [f"{kind} {count}" for kind, count in sorted(passed.items(), key=lambda one: (-one[1], one[0]))]
    return ", ".join([*named[:MOST_NAMED], *["..."] * (len(named) > MOST_NAMED)])


def notes_on(passed: Counter[str]) -> tuple[str, ...]:
    """The note of a dataset (`Data.notes`) on what was passed over."""
    return (f"passed over ({passed.total()} in all): {in_words(passed)}",) if passed else ()


def together(problems: Sequence[str]) -> DataError:
    """One error for all images that cannot be used."""
    if len(problems) == 1:
        return DataError(problems[0])
    more = len(problems) - MOST_NAMED
    return DataError(f"{len(problems)} images cannot be used: {'; '.join(problems[:MOST_NAMED])}{f'; and {more} others' * (more > 0)}")


@dataclass(frozen=True)
class ClassFolders:
    """The folders of a split by their composed name, under which a class may have two spellings; those that hold no image are also in
    `empty`. `passed` counts what else lies beside them."""

    by_name: dict[str, list[str]]
    empty: set[str]
    passed: Counter[str]

    @property
    def filled(self) -> set[str]:
        return set(self.by_name) - self.empty


def class_folders(place: Path | Inside, only: Collection[str] | None = None) -> ClassFolders:
    """The folders in `place`, those of other names than `only` left out."""
    folders, passed = [], Counter[str]()
    for one in sorted(place.iterdir(), key=attrgetter("name")):
        if is_hidden(one.name):
            passed["hidden"] += 1
        elif one.is_dir():
            folders += [one] if only is None or one.name in only else []
        else:
            passed["images outside a class's folder" if is_image(one.name) else ending(one.name)] += 1
    with ThreadPoolExecutor(LISTERS) as pool:
        filled = list(pool.map(lambda folder: any(size is not None for _, size, _ in entries(folder)), folders))
    every: dict[str, list[str]] = {}
    known: dict[str, list[str]] = {}
    for one, has_images in zip(folders, filled, strict=True):
        for names in (every, known) if has_images else (every,):
            names.setdefault(composed(one.name), []).append(one.name)
    return ClassFolders(every | known, set(every) - set(known), passed)


def listed(
    home: Path | Inside, folders: Sequence[str], labels: Sequence[int] | None = None, subfolders: bool = False
) -> tuple[ImageFiles, Counter[str]]:
    """The images of these folders (relative to `home`), sorted by relative path, and what was passed over (`images_in`). `labels` are
    those of the folders; without them, their positions. Raises DataError as `images_in`."""
    with ThreadPoolExecutor(LISTERS) as pool:
        found = list(pool.map(lambda folder: images_in(home / folder, subfolders), folders))
    paths = np.array([os.fsencode(f"{folder}/{name}") for folder, (images, _) in zip(folders, found, strict=True) for name, _ in images])
    each = np.arange(len(folders)) if labels is None else np.asarray(labels)
    sizes = np.array([size for images, _ in found for _, size in images])
    files = ImageFiles(home, paths, np.repeat(each, [len(images) for images, _ in found]), sizes)
    files = files.take(np.lexsort((paths, np.array(files.keys()))))
    return files, sum((passed for _, passed in found), Counter[str]())


def choose(
    keys: Sequence[bytes], labels: np.ndarray, names: list[str], subset: Subset, validation: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions of the images to train on and of the held-out ones (`split_off`). `keys` are in canonical order."""
    chosen = kept(torch.from_numpy(labels), subset, names)
    if not validation:
        return chosen, None
    by_class = labels[chosen] if subset.imbalance else None
    rest, held = split_off((keys[place] for place in chosen.tolist()), validation, split_seed, by_class)
    return chosen[rest], chosen[held]
