"""Files under the results folder: written whole or not at all, and a damaged file is distinguished from a missing one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kdbench.errors import DamagedError, StoreError

DIGEST_BYTES = 32
CLOCK_S = 30.0
"""How long the difference between the file system's clock and this host's is taken to be the same."""
TAIL_BYTES = 20_000


class Files:
    """All reading and writing below `root`. `guards` are called before anything in their folder is written or removed, and again just
    before it takes effect: whoever holds a claim on the folder checks there that it still does."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.guards: dict[Path, Callable[[], None]] = {}
        self._clock = (float("-inf"), 0.0)

    def check_guard(self, path: Path) -> None:
        if guard := self.guards.get(path.parent):
            guard()

    def write_bytes(self, path: Path, *data: bytes) -> None:
        """Write so that `path` holds either what it held or all of `data`, whatever happens in between. Raises StoreError: the disk
        is full, or the folder cannot be written."""
        self.check_guard(path)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        with explained(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(temporary, "xb") as file:
                    file.writelines(data)
                    file.flush()
                    os.fsync(file.fileno())
                self.check_guard(path)
                self._replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise

    def _replace(self, temporary: Path, path: Path) -> None:
        try:
            os.replace(temporary, path)
        except OSError:
            if not path.is_dir() or path.is_symlink():
                raise
            self.set_aside(path)  # a folder where a file belongs
            os.replace(temporary, path)

    def write_text(self, path: Path, text: str) -> None:
        self.write_bytes(path, text.encode())

    def write_json(self, path: Path, data: Any) -> None:
        # Without NaN: a metric that is not a number is written as null by whoever computes it.
        self.write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    def write_sealed(self, path: Path, data: bytes) -> None:
        """Write bytes behind their own SHA-256, so that `read_sealed` can tell a damaged file."""
        self.write_bytes(path, hashlib.sha256(data).digest(), data)

    def append_line(self, path: Path, data: Mapping[str, Any]) -> None:
        """One line of JSON at the end of a log. A line that a kill cut short is ended first, and `lines` skips it."""
        with self.open_log(path) as file:
            end = file.seek(0, os.SEEK_END)
            cut = b""
            if end:
                file.seek(end - 1)
                cut = b"" if file.read(1) == b"\n" else b"\n"
            self.check_guard(path)
            with explained(path):
                file.write(cut + json.dumps(data).encode() + b"\n")
                file.flush()

    def open_log(self, path: Path) -> IO[bytes]:
        """A file to append to; also for the output of a process. Raises StoreError."""
        self.check_guard(path)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                self.set_aside(path)
            return open(path, "a+b")

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged file out of the way, so that it can be examined. Raises StoreError."""
        self.check_guard(path)
        aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:6]}")
        with explained(path):
            os.replace(path, aside)
        return aside

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there. A folder in its place is set aside. Raises StoreError."""
        self.check_guard(path)
        if path.is_dir() and not path.is_symlink():
            self.set_aside(path)
        elif path.exists() or path.is_symlink():  # asked first: a read-only file system refuses to remove what is not there
            with explained(path):
                path.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Raises StoreError, before any work is done, when nothing can be written under the results folder."""
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is not a folder: choose another results folder with --results")
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        self.write_bytes(probe, b"kdbench")
        self.remove(probe)

    def read_bytes(self, path: Path) -> bytes | None:
        """A file's content; None when there is no file. Raises DamagedError: there is a folder in its place; StoreError: it cannot be
        read."""
        try:
            with open(path, "rb", buffering=0) as file:
                return file.readall()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError:
            raise DamagedError(f"{path} is damaged: it is a folder, not a file") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror or error})") from error

    def read_json(self, path: Path) -> Any:
        """What a small file holds; None when there is no file. Raises DamagedError: it is no JSON; StoreError: it cannot be read."""
        raw = self.read_bytes(path)
        try:
            return None if raw is None else parse(raw)
        except ValueError as error:
            raise DamagedError(f"{path} is damaged ({len(raw or b'')} bytes, not valid JSON: {error})") from error

    def json(self, path: Path) -> Any:
        """As `read_json`; None for a damaged file, too."""
        try:
            return self.read_json(path)
        except StoreError:
            return None

    def lines(self, path: Path) -> list[Any]:
        """The values in a log that `append_line` wrote; what is no whole line of JSON (torn by a kill) is skipped."""
        found = []
        for line in self._raw(path).split(b"\n"):
            with suppress(ValueError):
                found.append(parse(line))
        return found

    def last_lines(self, path: Path) -> list[str]:
        """The lines at the end of a text, as far as it can be read."""
        return self._raw(path)[-TAIL_BYTES:].decode(errors="replace").splitlines()

    def _raw(self, path: Path) -> bytes:
        try:
            return self.read_bytes(path) or b""
        except StoreError:
            return b""

    def read_sealed(self, path: Path) -> bytes | None:
        """What `write_sealed` wrote; None when there is no file. Raises DamagedError: the file is truncated or altered; StoreError: it
        cannot be read."""
        raw = self.read_bytes(path)
        if raw is None:
            return None
        digest, data = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise DamagedError(f"{path} is damaged ({len(raw)} bytes, wrong checksum): it is truncated or was changed")
        return data

    def now(self, folder: Path) -> float:
        """The time by the file system's own clock: hosts that share a disk need not agree on the time. Looked up now and then; where
        nothing can be written, this host's clock is used."""
        asked, ahead_s = self._clock
        if time.monotonic() - asked > CLOCK_S:
            probe = folder / f".clock-{uuid.uuid4().hex}"
            try:
                probe.touch()
                ahead_s = probe.stat().st_mtime - time.time()
                probe.unlink(missing_ok=True)
            except OSError:
                ahead_s = 0.0
            self._clock = (time.monotonic(), ahead_s)
        return time.time() + ahead_s


def parse(raw: bytes) -> Any:
    """JSON in UTF-8. Raises ValueError for anything else, also where Python's reader gives up in other ways."""
    try:
        return json.loads(raw.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raises StoreError, which says what to do, for an operating system's error while `path` is written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"no space left for {path}: nothing that was finished is lost; free some space and run again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = f"{path} cannot be written ({error.strerror}): choose another folder with --results, or make it writable"
        else:
            text = f"{path} cannot be written: {error}"
        raise StoreError(text) from error
