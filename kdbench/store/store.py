"""Where things lie under the results folder: `cells/ab/<id>/` (shared by all suites), `suites/<name>/`, `profiles/`, `features/`."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from kdbench.cell import Cell
from kdbench.errors import ClaimError, DamagedError, KdbenchError, StoreError
from kdbench.failure import Failure
from kdbench.manifest import Manifest
from kdbench.record import Profile, Record
from kdbench.store.claims import Claim, Claims, Owner
from kdbench.store.folders import Folders
from kdbench.store.rows import room_bytes

Noun = TypeVar("Noun")
RESULT_FILES = ("weights.bin", "predictions.npz")
"""What a finished cell leaves beside its record."""


class Store(Folders, Claims):
    """The results folder. A cell that is claimed through this object is written to only while the claim lasts."""

    def cell_folder(self, cell_id: str) -> Path:
        return self.root / "cells" / cell_id[:2] / cell_id

    def file(self, cell_id: str, name: str) -> Path:
        return self.root / f"cells/{cell_id[:2]}/{cell_id}/{name}"  # parsed at once: a report asks ten thousand times

    def suite_folder(self, suite: str) -> Path:
        return self.root / "suites" / suite

    def tables_folder(self, teacher: str) -> Path:
        """Where the tables of a teacher's outputs lie."""
        return self.root / "tables" / teacher

    def table_bytes(self, teacher: str) -> int:
        """What the tables of a teacher take of the disk."""
        found = 0
        for path in self.matching(f"tables/{teacher}/*.rows"):
            with suppress(FileNotFoundError):  # a worker may set it aside
                found += path.stat().st_blocks * 512
        return found

    def room_bytes(self) -> int:
        """What tables may still take of the disk."""
        return room_bytes(self.root)

    def suites(self) -> list[str]:
        """Suites that have been run here."""
        return [path.parent.name for path in self.matching("suites/*/manifest.json")]

    def matching(self, pattern: str) -> list[Path]:
        """Paths under the results folder that match a pattern, in order."""
        return sorted(self.root.glob(pattern))

    def put_cell(self, cell: Cell) -> None:
        path = self.file(cell.id, "cell.json")
        data = cell.to_json()
        if self.json(path) != json.loads(json.dumps(data)):
            self.write_json(path, data)

    def cell(self, cell_id: str) -> Cell:
        """Raises KdbenchError when there is no such cell here."""
        path = self.file(cell_id, "cell.json")
        cell = self._noun(path, Cell.from_json)
        if cell is None:
            raise KdbenchError(f"there is no cell {cell_id} under {self.root}: was the suite run with another --results folder?")
        if cell.id != cell_id:
            raise DamagedError(f"{path} is damaged: it describes the cell {cell.id}; run the suite again")
        return cell

    def _noun(self, path: Path, read: Callable[[Any], Noun]) -> Noun | None:
        """What a file holds; None when there is no file. Raises DamagedError when `read` raises ValueError, or it is not JSON."""
        try:
            data = self.read_json(path)
            return None if data is None and not path.exists() else read(data)
        except DamagedError as error:
            raise DamagedError(f"{error}; run the suite again") from error
        except ValueError as error:
            raise DamagedError(f"{path} is damaged: {error}; run the suite again") from error

    def find(self, start: str) -> str:
        """The id of the one cell whose id begins with `start`. Raises KdbenchError for none or several."""
        ids = sorted(path.name for path in self.root.glob(f"cells/{start[:2]}*/{start}*"))
        if len(ids) != 1:
            found = f"{len(ids)} cell ids under {self.root} begin with '{start}': {', '.join(ids[:5])}"
            raise KdbenchError(found if ids else f"no cell id under {self.root} begins with '{start}'")
        return ids[0]

    def put_record(self, record: Record) -> None:
        """The only proof of completion: written last."""
        self.write_json(self.file(record.id, "record.json"), record.to_json())

    def record(self, cell_id: str) -> Record | None:
        """The cell's record; None when it is not finished. Raises DamagedError: there is a record, and it cannot be trusted."""
        path = self.file(cell_id, "record.json")
        raw = self.read_bytes(path)
        if raw is None:
            return None
        try:
            # Four times as quick as json: it reads whole numbers beyond 64 bits as floats, and a record's results have none.
            record = Record.from_json(orjson.loads(raw))
        except orjson.JSONDecodeError as error:
            raise DamagedError(f"{path} is damaged ({len(raw)} bytes, not valid JSON: {error})") from error
        except (ValueError, TypeError) as error:
            raise DamagedError(f"{path} is damaged: {error}") from error
        if record.id != cell_id:
            raise DamagedError(f"{path} is the record of another cell, {record.id}")
        return record

    def is_done(self, cell_id: str) -> bool:
        """Whether the record is there and whole to its last byte; quick enough for ten thousand cells."""
        try:
            with open(self.file(cell_id, "record.json"), "rb") as file:
                file.seek(-3, os.SEEK_END)
                end = file.read().rstrip()
        except OSError:
            return False
        # The brace that closes a record is the only one at the start of a line, unless another program wrote the record again.
        if end.endswith(b"\n}") or not end.endswith(b"}"):
            return end.endswith(b"\n}")
        with suppress(DamagedError):
            return self.record(cell_id) is not None
        return False

    def sizes_and_digests(self, cell_id: str) -> dict[str, list[Any]]:
        """[bytes, SHA-256] of each file that a cell leaves beside its record, for `sound_record` to compare with."""
        paths = {name: self.file(cell_id, name) for name in RESULT_FILES}
        return {name: [path.stat().st_size, _digest_of(path)] for name, path in paths.items() if path.is_file()}

    def sound_record(self, cell_id: str) -> Record | None:
        """As `record`, with a look at the files beside it. Quick enough for ten thousand cells: sizes are compared always, contents only
        of a file that may have been changed after the record was written. Raises DamagedError: the record, or a file that belongs to it,
        is damaged or missing."""
        record = self.record(cell_id)
        if record is None:
            return None
        try:
            why = self._damage_beside(record)
        except OSError as error:
            raise StoreError(f"{self.cell_folder(cell_id)} cannot be read ({error.strerror or error})") from error
        if why:
            raise DamagedError(why)
        return record

    def _damage_beside(self, record: Record) -> str:
        files = record.circumstance.get("files", {})
        recorded_ns = self.file(record.id, "record.json").stat().st_mtime_ns
        if not isinstance(files, Mapping) or not all(isinstance(one, list) and len(one) == 2 for one in files.values()):
            return f"{self.file(record.id, 'record.json')} is damaged: circumstance.files holds no sizes and digests"
        for name, (size, digest) in files.items():
            path, now = self.file(record.id, name), None
            with suppress(FileNotFoundError, NotADirectoryError):  # asked once: the disk may be far away
                now = path.stat()
            if now is None or not stat.S_ISREG(now.st_mode):
                return f"{path} is missing, but its record exists"
            if now.st_size != size:
                return f"{path} is damaged: it has {now.st_size} bytes, and its record states {size}"
            if now.st_mtime_ns >= recorded_ns and _digest_of(path) != digest:
                return f"{path} is damaged: it was changed after its record was written"
        return ""

    def set_aside_result(self, cell_id: str, check: Callable[[str], object]) -> str:
        """Rename what a damaged cell has left, so that it is trained again. `check` raises DamagedError where it is damaged; it is called
        while the cell is claimed. Returns what is wrong; nothing happens where nothing is, or while somebody is training the cell."""
        try:
            with self.claim(cell_id):
                try:
                    check(cell_id)
                    return ""
                except DamagedError as error:
                    for name in ("record.json", *RESULT_FILES):
                        if (path := self.file(cell_id, name)).exists():
                            self.set_aside(path)
                    return str(error)
        except ClaimError:
            return ""

    def put_failure(self, cell_id: str, failure: Failure) -> None:
        """The cell stays wanted."""
        self.write_json(self.file(cell_id, "failure.json"), failure.to_json())

    def failure(self, cell_id: str) -> Failure | None:
        """The cell's failure; for a file that cannot be trusted a failure that says so."""
        path = self.file(cell_id, "failure.json")
        try:
            data = self.read_json(path)
            return None if data is None else Failure.from_json(data)
        except StoreError as error:
            return Failure("disk", str(error))
        except ValueError as error:
            return Failure("disk", f"{path} is damaged: {error}")

    def clear_failure(self, cell_id: str) -> None:
        self.remove(self.file(cell_id, "failure.json"))

    def epochs_seen(self, cell_id: str) -> list[dict[str, Any]]:
        """One entry for each epoch that was ever begun, also those that a kill made begin twice."""
        return [line for line in self.lines(self.file(cell_id, "progress.jsonl")) if _is_epoch(line)]

    def put_manifest(self, suite: str, manifest: Manifest) -> None:
        self.write_json(self.suite_folder(suite) / "manifest.json", manifest.to_json())

    def manifest(self, suite: str) -> Manifest:
        """Raises KdbenchError when the suite was never run here, and DamagedError when its manifest is not as `plan` writes it."""
        found = self._noun(self.suite_folder(suite) / "manifest.json", Manifest.from_json)
        if found is None:
            known = ", ".join(self.suites()) or "none"
            raise KdbenchError(f"the suite '{suite}' has no results under {self.root} (suites with results: {known})")
        return found

    def profile_file(self, profile_id: str) -> Path:
        return self.root / "profiles" / f"{profile_id}.json"

    def put_profile(self, profile_id: str, profile: Profile) -> None:
        self.write_json(self.profile_file(profile_id), profile.to_json())

    def profile(self, profile_id: str) -> Profile | None:
        """Raises DamagedError when there is one, and it cannot be trusted."""
        return self._noun(self.profile_file(profile_id), Profile.from_json)

    @contextmanager
    def claim(self, cell_id: str) -> Iterator[Claim]:
        """Have a cell for this process, until the block ends. Whatever this object then writes in the cell's folder is written only while
        the claim is still this process's: else LostClaimError is raised. Raises ClaimError: another live worker has it."""
        folder = self.cell_folder(cell_id)
        with self.holding(folder / "claim.json", f"cell {cell_id} is being trained") as claim:
            self.guards[folder] = claim.check
            try:
                yield claim
            finally:
                del self.guards[folder]

    def claim_holder(self, cell_id: str) -> Owner | None:
        """Who works on the cell at this moment; None when nobody does (a dead worker's claim counts for nothing)."""
        return self.owner_of(self.file(cell_id, "claim.json"))

    def is_alive(self, cell_id: str) -> bool:
        return self.claim_holder(cell_id) is not None

    def submitting(self, patience_s: float = 300.0) -> AbstractContextManager[Claim]:
        """Have the right to submit jobs for these results, waiting for whoever has it. Raises ClaimError: somebody had it all the time."""
        return self.awaited(self.root / "submitting.json", "jobs for these results are being submitted", patience_s)

    def is_held(self, path: Path) -> bool:
        return self.owner_of(path) is not None


def _digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_epoch(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("at", 0)) not in (int, float):
        return False
    return all(type(line.get(name)) is int for name in ("epoch", "of")) and 0 <= line["epoch"] < line["of"]
