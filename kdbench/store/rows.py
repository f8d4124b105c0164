"""Rows of equal size in one file, by number. Any number of processes fill it without an order or a lock, and it may be cut or deleted at
any time: a row carries a check of its bytes and its number, so that one that is torn, of another place or never written is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from kdbench.errors import StoreError

CHECK_BYTES = 8
KEY_BYTES = 16
"""Of a digest in a row that says what the row is of."""
SPARE_BYTES = 2**30
"""What the whole file must leave free on its disk."""


def padded(size: int) -> int:
    """A number of bytes, as a multiple of 8."""
    return -(-size // 8) * 8


def room_bytes(folder: Path) -> int:
    """What files of rows may still take of the disk of a folder, which need not exist yet. Raises StoreError."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        return shutil.disk_usage(there).free - SPARE_BYTES
    except OSError as error:
        raise StoreError(f"the disk of {there} cannot be asked for its free space ({error.strerror or error})") from error


class Rows:
    """`n_rows` rows of `width` bytes, a multiple of 8."""

    def __init__(self, path: Path, n_rows: int, width: int):
        """Opens the file, or makes it. Raises StoreError."""
        self.row_bytes = CHECK_BYTES + width
        # Odd factors: a change of one word always changes the sum.
        self.factors = np.random.Philox(0).random_raw(width // 8) | np.uint64(1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            there = os.fstat(self.file).st_blocks * 512
            self.is_full = room_bytes(path.parent) + there < n_rows * self.row_bytes
        except OSError as error:
            raise StoreError(f"{path} cannot be opened ({error.strerror or error})") from error
        self.folder, self.written = path.parent, 0

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)

    def there(self, numbers: np.ndarray) -> np.ndarray:
        """Which rows have been written (n, bool). Whether one is whole is known only when it is read."""
        try:
            found = [os.pread(self.file, CHECK_BYTES, number * self.row_bytes) for number in numbers.tolist()]
        except OSError:
            return np.zeros(len(numbers), bool)
        return np.array([any(one) for one in found], bool)

    def get(self, numbers: np.ndarray) -> np.ndarray | None:
        """The rows (n x width, bytes); None if one of them is missing."""
        try:
            # One read for each row: a process that maps a file ends when another one cuts it.
            found = b"".join(os.pread(self.file, self.row_bytes, number * self.row_bytes) for number in numbers.tolist())
        except OSError:
            return None
        if len(found) != len(numbers) * self.row_bytes:
            return None
        words = np.frombuffer(found, np.uint64).reshape(len(numbers), -1)
        if not np.array_equal(words[:, 0], self._checks(words[:, 1:], numbers)):
            return None
        return np.ascontiguousarray(words[:, 1:]).view(np.uint8)

    def put(self, numbers: np.ndarray, values: np.ndarray) -> None:
        """Write rows: none where the disk has no room for the whole file, or has refused a row."""
        self.written += len(numbers) * self.row_bytes
        if self.written > SPARE_BYTES // 16:  # other files grow, too
            self.written, self.is_full = 0, self.is_full or room_bytes(self.folder) < 0
        words = np.ascontiguousarray(values).view(np.uint64)
        rows = np.concatenate([self._checks(words, numbers)[:, None], words], axis=1)
        try:
            for number, row in () if self.is_full else zip(numbers.tolist(), rows, strict=True):
                os.pwrite(self.file, row.tobytes(), number * self.row_bytes)
        except OSError:
            self.is_full = True

    def _checks(self, words: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """One for each row, never 0, so that a hole in the file is no row."""
        with np.errstate(over="ignore"):
            sums = (words * self.factors).sum(1, dtype=np.uint64)
            return (sums ^ (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))) | np.uint64(1)
