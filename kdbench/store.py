"""The disk's one door: where things lie under the results folder, atomic writes, claims."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from kdbench.cell import Cell
from kdbench.errors import ClaimError, DamagedError, KdbenchError, StoreError
from kdbench.record import Record

HEARTBEAT_S = 10.0
STALE_S = 120.0
"""A claim whose holder cannot be asked (another host) is given up when its heartbeat is this old."""

DIGEST_BYTES = 32
CLOCK_S = 30.0
"""How long the file system's clock is trusted to go with this host's."""
YOUNG_S = 10.0
"""A file that was written so lately may be written again and bear the same times: file systems' clocks tick coarsely."""


class Store:
    """The results folder: `cells/ab/<id>/` (shared by all suites), `suites/<name>/`, `profiles/`."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self._clock = (float("-inf"), 0.0)

    # Where things lie

    def cell_folder(self, cell_id: str) -> Path:
        return self.root / "cells" / cell_id[:2] / cell_id

    def file(self, cell_id: str, name: str) -> Path:
        return self.root / f"cells/{cell_id[:2]}/{cell_id}/{name}"  # parsed at once: a report asks ten thousand times

    def suite_folder(self, suite: str) -> Path:
        return self.root / "suites" / suite

    def suites(self) -> list[str]:
        """Suites that have been run here."""
        return sorted(path.parent.name for path in self.root.glob("suites/*/manifest.json"))

    # Writing: whole or not at all

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Write so that `path` holds either what it held or all of `data`, whatever happens in between.

        Raises:
            StoreError: the disk is full, or the folder cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _explained(error, path) from error

    def write_text(self, path: Path, text: str) -> None:
        self.write_bytes(path, text.encode())

    def write_json(self, path: Path, data: Any) -> None:
        # Without NaN: a metric that is not a number is written as null by whoever computes it.
        self.write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    def append_line(self, path: Path, data: Mapping[str, Any]) -> None:
        """One line of JSON at the end of a log; a line torn by a kill is skipped by `lines`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(data) + "\n")
        except OSError as error:
            raise _explained(error, path) from error

    def lines(self, path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        found = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def write_sealed(self, path: Path, data: bytes) -> None:
        """Write bytes behind their own SHA-256, so that `read_sealed` can tell a damaged file."""
        self.write_bytes(path, hashlib.sha256(data).digest() + data)

    def read_sealed(self, path: Path) -> bytes | None:
        """What `write_sealed` wrote; None when there is no file.

        Raises:
            DamagedError: the file is truncated or altered.
        """
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, data = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise DamagedError(f"{path} is damaged ({len(raw)} bytes, its checksum does not fit): it is truncated or was altered")
        return data

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged file out of the way, keeping it for whoever wants to look."""
        aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:6]}")
        os.replace(path, aside)
        return aside

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Raises StoreError, before any work is done, when nothing can be written under the results folder."""
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        self.write_bytes(probe, b"kdbench")
        probe.unlink()

    # Folders behind a link: whole or not at all

    def make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explained(error, folder) from error

    def entries(self, folder: Path) -> list[Path]:
        """What lies in a folder, hidden things too; nothing where there is none."""
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files_under(self, folder: Path) -> list[str]:
        """Every file (or link) in and below a folder, relative to it, with `/`; without what a killed writing left."""
        found = []
        for here, folders, names in os.walk(folder):
            names += [name for name in folders if os.path.islink(os.path.join(here, name))]
            found += [(Path(here) / name).relative_to(folder).as_posix() for name in names if not _unfinished(name)]
        return sorted(found)

    def remove_tree(self, path: Path) -> None:
        """Remove a file or a whole folder, as far as it can be; no complaint where it is not there. Nobody sees half a folder: it is
        renamed first."""
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
                os.rename(path, gone)
                shutil.rmtree(gone, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def age_s(self, path: Path) -> float:
        """How long ago a file, link or folder was last written, by the file system's own clock; 0 where there is none."""
        try:
            return self._now(path.parent) - path.lstat().st_mtime
        except OSError:
            return 0.0

    def carry(self, source: Path, target: Path) -> None:
        """Have a file in a second place, too: a hard link where the file system has them, else a copy.

        Raises:
            FileNotFoundError, FileExistsError, NotADirectoryError: `source` is gone, or `target` is taken.
        """
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
                raise _explained(error, folder) from error
            return False
        return True

    def link_target(self, place: Path) -> Path | None:
        """What a link points to, which need not be there; None where `place` is no link."""
        try:
            return Path(os.path.normpath(place.parent / os.readlink(place)))
        except OSError:
            return None

    def link(self, place: Path, folder: Path) -> None:
        """Have `place` be a link to a folder beside or below it, from one moment to the next, all that is in the folder being on disk
        before. A link that was there is replaced; a folder or file is not.

        Raises:
            StoreError: it cannot be written, or `place` is a folder or a file.
        """
        if place.exists() and not place.is_symlink():
            raise StoreError(f"{place} is in the way: a link is to be there; move it elsewhere")
        prepared = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        try:
            for here, _, names in os.walk(folder):
                for one in (here, *(os.path.join(here, name) for name in names)):
                    _settle(one)
            _settle(folder.parent)
            os.symlink(os.path.relpath(folder, place.parent), prepared)
            os.replace(prepared, place)
            _settle(place.parent)
        except OSError as error:
            with suppress(OSError):
                prepared.unlink(missing_ok=True)
            raise _explained(error, place) from error

    def take_over(self, place: Path, folder: Path) -> None:
        """Rename the folder `place`, where it is one, to `folder`; and leave a link to `folder`, where there is one, and no `place`.

        A kill in between leaves it whole under its new name: calling again makes the link. Of several that do it at once, one renames.
        """
        try:
            if place.is_dir() and not place.is_symlink():
                with suppress(FileNotFoundError):
                    os.rename(place, folder)
            if folder.is_dir():
                with suppress(FileExistsError):
                    os.symlink(os.path.relpath(folder, place.parent), place)
                _settle(place.parent)
        except OSError as error:
            raise _explained(error, place) from error

    def put_file(self, source: Path, target: Path) -> None:
        """A copy of a file, whole or not at all, also on another disk. Raises StoreError."""
        self.write_bytes(target, source.read_bytes())

    def holding(self, path: Path, what: str) -> AbstractContextManager[None]:
        """Have the claim `path`, with a heartbeat, until the block ends. Raises ClaimError, with `what`, when a live process has it."""
        return self._held(path, what)

    def is_held(self, path: Path) -> bool:
        return self._judged(path)[1] is not None

    # Cells and records

    def put_cell(self, cell: Cell) -> None:
        path = self.file(cell.id, "cell.json")
        data = cell.to_json()
        if self._json(path, damaged_is_none=True) != json.loads(json.dumps(data)):
            self.write_json(path, data)

    def cell(self, cell_id: str) -> Cell:
        """Raises KdbenchError when there is no such cell here."""
        data = self._json(self.file(cell_id, "cell.json"))
        if data is None:
            raise KdbenchError(f"there is no cell {cell_id} under {self.root}: is this the results folder that the suite was run in?")
        cell = Cell.from_json(data)
        if cell.id != cell_id:
            raise DamagedError(
                f"{self.file(cell_id, 'cell.json')} describes the cell {cell.id}: it was altered, or another version of kdbench wrote it; "
                "run the suite again"
            )
        return cell

    def find(self, start: str) -> str:
        """The id of the one cell whose id begins with `start`. Raises KdbenchError for none or several."""
        ids = sorted(path.name for path in self.root.glob(f"cells/{start[:2]}*/{start}*"))
        if len(ids) != 1:
            raise KdbenchError(f"{len(ids) or 'no'} cells under {self.root} begin with '{start}'{': ' + ', '.join(ids[:5]) if ids else ''}")
        return ids[0]

    def put_record(self, record: Record) -> None:
        """The only proof of completion: written last."""
        self.write_json(self.file(record.id, "record.json"), record.to_json())

    def record(self, cell_id: str) -> Record | None:
        """The cell's record; None when it is not finished.

        Raises:
            DamagedError: there is a record, and it cannot be trusted.
        """
        path = self.file(cell_id, "record.json")
        try:
            with open(path, "rb", buffering=0) as file:
                raw = file.read()
            # Four times as quick as json: it reads whole numbers beyond 64 bits as floats, and a record's results have none.
            record = Record.from_json(orjson.loads(raw))
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise DamagedError(f"{path} is damaged ({len(raw)} bytes, not whole JSON: {error})") from error
        except (ValueError, TypeError) as error:
            raise DamagedError(f"{path} is damaged: {error}") from error
        if record.id != cell_id:
            raise DamagedError(f"{path} is the record of another cell, {record.id}")
        return record

    def stamp(self, cell_id: str) -> list[int] | None:
        """What changes whenever the record is written or replaced, without reading it: inode, size (bytes), times of the last change
        of its data and of its inode (ns). None when there is none, or one so young that its next writing might bear the same stamp."""
        try:
            found = os.stat(self.file(cell_id, "record.json"))
        except OSError:
            return None
        young = max(found.st_mtime_ns, found.st_ctime_ns) > time.time_ns() - YOUNG_S * 1e9
        return None if young else [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]

    def is_done(self, cell_id: str) -> bool:
        """Whether the record is there and whole to its last byte; quick enough for ten thousand cells."""
        try:
            with open(self.file(cell_id, "record.json"), "rb") as file:
                file.seek(-3, os.SEEK_END)
                # The brace that closes a record is the only one at the start of a line.
                return file.read().rstrip().endswith(b"\n}")
        except OSError:
            return False

    def put_failure(self, cell_id: str, failure: Mapping[str, Any]) -> None:
        """Failures are data: `class`, `message`, `traceback`, `last_lines`. The cell stays wanted."""
        self.write_json(self.file(cell_id, "failure.json"), failure)

    def failure(self, cell_id: str) -> dict[str, Any] | None:
        return self._json(self.file(cell_id, "failure.json"), damaged_is_none=True)

    def clear_failure(self, cell_id: str) -> None:
        self.remove(self.file(cell_id, "failure.json"))

    def epochs_seen(self, cell_id: str) -> list[dict[str, Any]]:
        """One entry for each epoch that was ever begun, also those that a kill made begin twice."""
        return self.lines(self.file(cell_id, "progress.jsonl"))

    # Suites and profiles

    def put_manifest(self, suite: str, manifest: Mapping[str, Any]) -> None:
        self.write_json(self.suite_folder(suite) / "manifest.json", manifest)

    def manifest(self, suite: str) -> dict[str, Any]:
        """Raises KdbenchError when the suite was never run here."""
        data = self._json(self.suite_folder(suite) / "manifest.json")
        if data is None:
            known = ", ".join(self.suites()) or "none"
            raise KdbenchError(f"the suite '{suite}' was never run under {self.root} (run here: {known}); run it first")
        return data

    def put_index(self, suite: str, index: Mapping[str, Any]) -> None:
        """What was read of a suite's records, so that the next reading is quick. Nothing is lost with it."""
        self.write_sealed(self.suite_folder(suite) / ".records.index", orjson.dumps(index))

    def index(self, suite: str) -> dict[str, Any]:
        """What `put_index` wrote; empty when there is none, or it is damaged or unreadable."""
        try:
            data = self.read_sealed(self.suite_folder(suite) / ".records.index")
        except (DamagedError, OSError):
            return {}
        return {} if data is None else orjson.loads(data)

    def put_profile(self, profile_id: str, profile: Mapping[str, Any]) -> None:
        self.write_json(self.root / "profiles" / f"{profile_id}.json", profile)

    def profile(self, profile_id: str) -> dict[str, Any] | None:
        return self._json(self.root / "profiles" / f"{profile_id}.json", damaged_is_none=True)

    # Claims: one worker a cell

    def claim_holder(self, cell_id: str) -> dict[str, Any] | None:
        """Who works on the cell at this moment; None when nobody does (a dead worker's claim counts for nothing)."""
        return self._judged(self.file(cell_id, "claim.json"))[1]

    def _judged(self, path: Path) -> tuple[str, dict[str, Any] | None]:
        """A claim's text, and its holder if that is alive."""
        text = ""
        try:
            beat = path.stat().st_mtime
            text = path.read_text()
            return text, self._living(json.loads(text), path, beat)
        except (FileNotFoundError, json.JSONDecodeError):  # claims are linked whole: one that is no JSON was damaged
            return text, None

    def _living(self, holder: dict[str, Any], path: Path, beat: float) -> dict[str, Any] | None:
        job, mine = holder.get("job"), slurm_job()
        if job and mine and job["id"] == mine["id"] and job["restart"] < mine["restart"]:
            return None  # this very job, before SLURM started it again, perhaps on another host
        if holder["host"] == socket.gethostname():
            return holder if _process_lives(holder["pid"], holder["started"]) else None
        return holder if self._now(path.parent) - beat < STALE_S else None

    def is_alive(self, cell_id: str) -> bool:
        return self.claim_holder(cell_id) is not None

    def claim(self, cell_id: str) -> AbstractContextManager[None]:
        """Hold a cell for this process, with a heartbeat, until the block ends.

        Raises:
            ClaimError: another live worker has it.
        """
        return self._held(self.file(cell_id, "claim.json"), f"cell {cell_id} is being trained")

    @contextmanager
    def submitting(self, patience_s: float = 300.0) -> Iterator[None]:
        """Hold the right to submit jobs for these results, waiting for whoever has it.

        Raises:
            ClaimError: somebody had it all the time.
        """
        end = time.monotonic() + patience_s
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(self._held(self.root / "submitting.json", "jobs for these results are being submitted"))
                    break
                except ClaimError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.2)
            yield

    @contextmanager
    def _held(self, path: Path, what: str) -> Iterator[None]:
        token = self._take(path, what)
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_S):
                with suppress(OSError):
                    os.utime(path)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if (self._json(path, damaged_is_none=True) or {}).get("token") == token:
                path.unlink(missing_ok=True)

    def _take(self, path: Path, what: str) -> str:
        token, pid = uuid.uuid4().hex, os.getpid()
        mine = json.dumps({"host": socket.gethostname(), "pid": pid, "started": _process_started(pid), "job": slurm_job(), "token": token})
        prepared = path.with_name(f".claim.{token}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            prepared.write_text(mine)
            for _ in range(3):
                try:
                    os.link(prepared, path)  # fails if there is one: whoever links first has the cell, and the file is whole
                    return token
                except FileExistsError:
                    text, holder = self._judged(path)
                    if holder is not None:
                        raise ClaimError(f"{what} by process {holder['pid']} on {holder['host']}") from None
                    self._bury(path, text)
            raise ClaimError(f"{path} changes hands too often to be taken")
        except OSError as error:
            raise _explained(error, path) from error
        finally:
            prepared.unlink(missing_ok=True)

    def _bury(self, path: Path, judged: str) -> None:
        """Take away the claim that was judged dead; give back what is there if, in between, a live worker had taken it."""
        grave = path.with_name(f".claim.{uuid.uuid4().hex}.dead")
        with suppress(FileNotFoundError):
            os.rename(path, grave)
            if grave.read_text() != judged:
                with suppress(FileExistsError):
                    os.link(grave, path)
            grave.unlink()

    def _now(self, folder: Path) -> float:
        """The time by the file system's own clock: hosts that share a disk need not agree on the time.

        Asked for now and then; where nothing can be written, this host's clock must do.
        """
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

    def json(self, path: Path) -> Any:
        """What a small file of ours holds; None when it is not there or damaged."""
        return self._json(path, damaged_is_none=True)

    def _json(self, path: Path, damaged_is_none: bool = False) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if damaged_is_none:
                return None
            raise DamagedError(f"{path} is damaged ({path.stat().st_size} bytes, not whole JSON: {error})") from error


def _explained(error: OSError, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left for {path}: nothing that was finished is lost; free some space and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"{path} cannot be written ({error.strerror}): choose another folder with --results, or make it writable")
    return StoreError(f"{path} cannot be written: {error}")


def _settle(path: Path | str) -> None:
    """Have the disk hold a file, or the names in a folder, now."""
    if os.path.islink(path):
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # somebody's own
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems that cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def _unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def slurm_job() -> dict[str, Any] | None:
    """The SLURM job (`12`, or an array's element, `12_3`) that this process is part of, and how often SLURM has started it again;
    None outside one."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{index}" if array and index else os.environ["SLURM_JOB_ID"]
    return {"id": name, "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0))}


def _process_started(pid: int) -> float | None:
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _process_lives(pid: int, started: float | None) -> bool:
    """Whether this very process is alive, and not another that was given its number (or a zombie)."""
    import psutil

    try:
        process = psutil.Process(pid)
        same = started is None or abs(process.create_time() - started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
