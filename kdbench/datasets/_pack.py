"""A folder of images as one file: `kdbench pack` writes it, and datasets read it, or a tar file, in the folder's place. Not a dataset.

A pack is a header of 4096 bytes (a line that says what it is, and JSON), the files one after another as they are, and the index: their
relative paths in sorted order (padded with zero bytes), their sizes (8 bytes each, the lowest first) and their SHA-256.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from kdbench.datasets._content import read_image
from kdbench.datasets._files import LISTERS, ending, entries, is_hidden, is_image, notes_on, on_disk, together
from kdbench.datasets._packed import Archive, Blob, Inside
from kdbench.datasets._reading import EncodedImage, opened_rgb
from kdbench.errors import DataError

MARK, HEADER = b"kdbench pack 1\n", 4096
AT_ONCE = 256
"""Images that are read at once when a pack is written or checked."""
CHECKED, CHECKED_ONE_IN = 100, 1000
"""How many images of a pack are compared with their SHA-256 when it is opened: at least so many, and one in so many."""
Progress = Callable[[float], None]
"""Is told the share of the images that was done."""

MOST_KINDS = 100
"""Kinds of other files that a header has room for."""
QUALITY = 95
"""Of JPEG images that are written again because they were resized."""


def no_progress(share: float) -> None:
    pass


def located(folder: Path, name: str, resized: int | None) -> tuple[Path | Inside, tuple[str, ...]]:
    """A dataset's folder in the data folder, or the pack or tar file in its place (NAME.pack, NAME.tar; NAME-256.pack if it is resized to
    256), and notes on it. Raises DataError if that file is damaged, or resized otherwise."""
    home = on_disk(folder, name)
    names = (f"{home.name}.pack", f"{home.name}.tar") if resized is None else (f"{home.name}-{resized}.pack",)
    there = [path for path in (home, *(home.with_name(one) for one in names)) if path.is_file()]
    if home.is_dir() and resized is None:
        return home, tuple(f"{path.name} is not read, since the folder {home.name} lies beside it" for path in there)
    if not there:
        if resized is not None:
            raise DataError(
                f"{home.with_name(names[0]).absolute()} is missing: the option `resized: {resized}` needs what `kdbench pack {home} "
                f"{home.with_name(names[0])} --resize {resized}` writes"
            )
        return home, ()
    archive = opened(there[0])
    if archive.resized != resized:
        asked = "leave out `resized`" if archive.resized is None else f"write `resized: {archive.resized}`"
        what = "has images in their own size" if archive.resized is None else f"has images resized to a shorter side of {archive.resized}"
        raise DataError(f"{there[0].absolute()} {what}: {asked} in the suite's dataset, which is another one, with other ids")
    return Inside(archive), (f"images are read from {there[0].name}",)


def opened(path: Path) -> Archive:
    """Raises DataError if the file is neither a pack nor a tar file, or is damaged."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEADER)
        return _opened_pack(path, start) if start.startswith(MARK) else _opened_tar(path)
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read: {error}") from error


def _opened_pack(path: Path, start: bytes) -> Archive:
    blob = Blob(path)
    try:
        header = json.loads(start[len(MARK) :])
        n, width, index_at = header["images"], header["path_bytes"], header["index_at"]
        if index_at + n * (width + 40) != blob.state[1]:
            raise ValueError("its length is not the one that it states")
        index = blob.read(index_at, n * (width + 40))
        if _fingerprint(index, header["resized"]) != header["fingerprint"]:
            raise ValueError("its index was changed")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.absolute()} is truncated or damaged ({error}): copy it again, or make it anew by `kdbench pack`") from error
    sizes = np.frombuffer(index, "<i8", n, n * width)
    offsets = HEADER + np.concatenate([[0], np.cumsum(sizes[:-1])])
    digests = np.frombuffer(index, np.uint8, n * 32, n * (width + 8)).reshape(n, 32)
    paths = np.frombuffer(index, f"S{width}", n)
    archive = Archive(blob, paths, offsets, sizes, digests, Counter(header["passed"]), header["resized"])
    _check(archive, np.unique(np.linspace(0, n - 1, max(CHECKED, n // CHECKED_ONE_IN)).astype(int)).tolist())
    return archive


def _fingerprint(index: bytes, resized: int | None) -> str:
    return hashlib.sha256(json.dumps(resized).encode() + index).hexdigest()


def _check(archive: Archive, places: Sequence[int], progress: Progress = no_progress) -> None:
    """Raises DataError for images that have not the SHA-256 of the index."""
    assert archive.digests is not None
    digests = archive.digests

    def is_wrong(place: int) -> bool:
        return hashlib.sha256(archive.content(place)).digest() != digests[place].tobytes()

    wrong = []
    with ThreadPoolExecutor(LISTERS) as pool:
        for start in range(0, len(places), AT_ONCE):
            some = places[start : start + AT_ONCE]
            wrong += [place for place, bad in zip(some, pool.map(is_wrong, some), strict=True) if bad]
            progress((start + len(some)) / len(places))
    if wrong:
        raise together([f"{archive.name(place)} was changed since it was packed" for place in wrong])


def verified(path: Path, progress: Progress = no_progress) -> str:
    """Compare every image of a pack with its SHA-256. Raises DataError for those that differ, or if the file is no pack."""
    archive = opened(path)
    if archive.digests is None:
        raise DataError(f"{path.absolute()} is a tar file, which has no checksums: --verify is for what `kdbench pack` wrote")
    _check(archive, range(len(archive.paths)), progress)
    return f"{path}: all {len(archive.paths)} images are as they were packed"


def _opened_tar(path: Path) -> Archive:
    """A plain tar file of the folder, or of what it holds."""
    found: dict[str, tuple[int, int]] = {}
    passed = Counter[str]()
    try:
        with tarfile.open(path, "r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # a kilobyte for each image
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if any(map(is_hidden, name.split("/"))):
                    passed["hidden"] += 1
                elif not is_image(name):
                    passed[ending(name)] += 1
                elif not member.isreg() or member.issparse() or name in found:
                    raise tarfile.TarError(f"{name} is stored twice, or as a link: make the file by `tar --hard-dereference -h -cf`")
                else:
                    found[name] = member.offset_data, member.size
            tar.fileobj.seek(tar.offset)  # type: ignore[union-attr]
            if tar.fileobj.read(512) != b"\0" * 512:  # type: ignore[union-attr]
                raise tarfile.TarError("it has no end mark")
    except (tarfile.TarError, EOFError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"{path.absolute()} is truncated, or no plain tar file or pack ({said}); compressed ones are not read") from error
    tops = {name.partition("/")[0] for name in found}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""
    paths = np.array([os.fsencode(name[len(top) :]) for name in found], dtype=bytes)
    order = np.argsort(paths)
    offsets, sizes = np.array(list(found.values()), dtype=np.int64).reshape(-1, 2)[order].T
    return Archive(Blob(path), paths[order], offsets, sizes, passed=passed)


def packed(folder: Path, out: Path, resize: int | None = None, progress: Progress = no_progress) -> str:
    """Write all images below a folder into one file, completely or not at all. Raises DataError if an image cannot be used, the file
    exists, or it cannot be written."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder.absolute()}")
    if out.exists():
        raise DataError(f"{out.absolute()} exists: remove it, or give another name")
    names, passed = [], Counter[str]()
    for name, size, kind in entries(folder):
        if size is None:
            passed[kind] += 1
        else:
            names.append(os.fsencode(name))
    if not names:
        raise DataError(f"{folder.absolute()} holds no image")
    # Always the same name, so that what a killed process leaves is overwritten and not collected.
    partial = out.with_name(f".{out.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file, warnings.catch_warnings(action="ignore"):
            _lock(file, out)
            file.truncate(0)
            try:
                _write(file, folder, sorted(names), resize, passed, progress)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, out)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise DataError(f"{out.absolute()} cannot be written: {error}") from error
    said = "".join(f"; {note}" for note in notes_on(passed))
    return f"wrote {out}: {len(names)} images{f', resized to a shorter side of at most {resize}' if resize else ''}{said}"


def _lock(file: Any, out: Path) -> None:
    """Raises DataError if another process writes the same pack. Some network disks have no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"another process is writing {out.absolute()}") from None
    except OSError:
        return


def _write(file: Any, folder: Path, names: Sequence[bytes], resize: int | None, passed: Counter[str], progress: Progress) -> None:
    def read(name: bytes) -> tuple[bytes, str]:
        path = folder / os.fsdecode(name)
        content, problem = read_image(path)
        if problem or resize is None:
            return content, problem
        try:
            return _resized(EncodedImage(content, str(path.absolute())), resize), ""
        except DataError as error:
            return b"", str(error)

    file.write(b"\0" * HEADER)
    sizes, digests, wrong = [], [], []
    with ThreadPoolExecutor(LISTERS) as pool:
        for start in range(0, len(names), AT_ONCE):
            for content, problem in pool.map(read, names[start : start + AT_ONCE]):
                wrong += [problem] if problem else []
                sizes.append(len(content))
                digests.append(hashlib.sha256(content).digest())
                if not wrong:
                    file.write(content)
            progress(len(sizes) / len(names))
    if wrong:
        raise together(wrong)
    paths = np.array(names)
    index = paths.tobytes() + np.array(sizes, "<i8").tobytes() + b"".join(digests)
    kinds = Counter(dict(passed.most_common(MOST_KINDS)))
    kinds["other endings"] += passed.total() - kinds.total()
    header = {"images": len(names), "path_bytes": paths.itemsize, "index_at": HEADER + sum(sizes), "resized": resize}
    text = json.dumps({**header, "fingerprint": _fingerprint(index, resize), "passed": +kinds}).encode()
    file.write(index)
    file.seek(0)
    file.write((MARK + text).ljust(HEADER - 1) + b"\n")


def _resized(encoded: EncodedImage, short: int) -> bytes:
    """An image whose shorter side is at most `short`: as it was, or written again. A JPEG image stays one, with its EXIF orientation;
    others become PNG, with their transparency."""
    rgb, exif, out = opened_rgb(encoded), Image.Exif(), io.BytesIO()
    least = min(rgb.size)
    if least <= short:
        return encoded.getvalue()
    with Image.open(encoded) as image:
        image.load()
        with suppress(Exception):  # damaged EXIF data raise anything
            exif[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
        kind, whole = image.format, image.convert("RGBA") if image.has_transparency_data else image.copy() if image.mode == "L" else rgb
    smaller = whole.resize((short * whole.width // least, short * whole.height // least), Image.Resampling.LANCZOS)
    smaller.save(out, "jpeg" if kind in ("JPEG", "MPO") else "png", quality=QUALITY, exif=exif)
    return out.getvalue()
