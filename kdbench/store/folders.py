"""Folders under the results folder: listed, copied, removed, and exchanged behind a symbolic link."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from kdbench.errors import StoreError
from kdbench.store.files import Files, explained


class Folders(Files):
    """What a report needs to appear whole or not at all."""

    def make_folder(self, folder: Path) -> None:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def entries(self, folder: Path) -> list[Path]:
        """What lies in a folder, hidden things too; nothing where there is none."""
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files_under(self, folder: Path) -> list[str]:
        """Every file (or link) in and below a folder, relative to it, with `/`; without what a killed writer left."""
        found = []
        for here, folders, names in os.walk(folder):
            names += [name for name in folders if os.path.islink(os.path.join(here, name))]
            found += [(Path(here) / name).relative_to(folder).as_posix() for name in names if not _is_temporary(name)]
        return sorted(found)

    def remove_tree(self, path: Path) -> None:
        """Remove a file or a whole folder, as far as possible; nothing happens where it does not exist. Nobody sees half a folder: it is
        renamed first."""
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
                os.rename(path, gone)
                shutil.rmtree(gone, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def is_folder(self, path: Path) -> bool:
        return path.is_dir()

    def age_s(self, path: Path) -> float:
        """How long ago a file, link or folder was last written, by the file system's own clock; 0 where there is none."""
        try:
            return self.now(path.parent) - path.lstat().st_mtime
        except OSError:
            return 0.0

    def carry(self, source: Path, target: Path) -> None:
        """Put a file in a second place, too: a hard link where the file system has them, else a copy. Raises FileNotFoundError,
        FileExistsError, NotADirectoryError: `source` is gone, or `target` is taken."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target, follow_symlinks=False)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    def can_link(self, folder: Path) -> bool:
        """Whether the file system has symbolic links. Raises StoreError where the folder cannot be written at all."""
        probe = folder / f".probe.{uuid.uuid4().hex}"
        try:
            os.symlink("nowhere", probe)
            probe.unlink()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                with explained(folder):
                    raise
            return False
        return True

    def link_target(self, place: Path) -> Path | None:
        """What a link points to, which need not exist; None where `place` is no link."""
        try:
            return Path(os.path.normpath(place.parent / os.readlink(place)))
        except OSError:
            return None

    def link(self, place: Path, folder: Path) -> None:
        """Make `place` a link to a folder beside or below it, in one moment, with all that is in the folder on disk before. A link that
        was there is replaced; a folder or file is not. Raises StoreError: it cannot be written, or `place` is a folder or a file."""
        if place.exists() and not place.is_symlink():
            raise StoreError(f"{place} is in the way of a link: move it elsewhere")
        prepared = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        with explained(place):
            try:
                for here, _, names in os.walk(folder):
                    for one in (here, *(os.path.join(here, name) for name in names)):
                        sync(one)
                sync(folder.parent)
                os.symlink(os.path.relpath(folder, place.parent), prepared)
                os.replace(prepared, place)
                sync(place.parent)
            except OSError:
                with suppress(OSError):
                    prepared.unlink(missing_ok=True)
                raise

    def put_file(self, source: Path, target: Path) -> None:
        """A copy of a file, whole or not at all, also on another disk. Raises StoreError."""
        self.write_bytes(target, source.read_bytes())


def sync(path: Path | str) -> None:
    """Have a file, or the names in a folder, on disk now, where the file system can."""
    if os.path.islink(path):
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # another user's
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):  # some cannot for folders
            raise
    finally:
        os.close(descriptor)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def is_folder(path: Path) -> bool:
    """Whether a path names a folder, and not the YAML file of the same name beside it."""
    return path.is_dir() and not Path(f"{path}.yaml").is_file()
