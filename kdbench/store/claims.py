"""Claims: a file that says which process works on something, refreshed while it does, so that no two do at once.

A claim counts while its owner lives. An owner on this host, boot and process namespace is looked up by its process number; any other
one counts while the claim was refreshed within `STALE_S`. A process that was suspended for longer may lose its claim to another one:
before each write it reads whether the claim still has its token, and writes nothing where it has not.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from kdbench import process
from kdbench.errors import ClaimError, LostClaimError, StoreError
from kdbench.store.files import Files, explained, parse
from kdbench.validation import Strict, from_json

HEARTBEAT_S = 10.0
STALE_S = 120.0
YOUNG_S = 10.0
"""A claim that is no whole JSON is taken to be in the middle of its writing for so long; then it is damaged."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""Errors of file systems without hard links."""


@dataclass(frozen=True)
class Owner(Strict):
    """The process that has a claim. `job` is its SLURM job (id and how often it was restarted)."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: float | None
    job: process.SlurmJob | None
    token: str

    @classmethod
    def this_process(cls) -> Owner:
        pid = os.getpid()
        return cls(**process.place(), pid=pid, started=process.started(pid), job=process.slurm_job(), token=uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether its process number means something to this process."""
        return (self.host, self.boot, self.namespace) == tuple(process.place().values())

    def lives(self, silent_s: float) -> bool:
        """Whether it is alive, when its claim was last refreshed so long ago."""
        mine = process.slurm_job()
        if self.job and mine and self.job["id"] == mine["id"] and self.job["restart"] < mine["restart"]:
            return False  # this very job, before SLURM started it again, perhaps on another host
        return process.lives(self.pid, self.started) if self.is_here else silent_s < STALE_S


BEGINNING = Owner("this or another host", "", "", 0, None, None, "")
"""Whoever is writing a claim at this moment."""


class Claim:
    """A claim that this process has taken."""

    def __init__(self, path: Path, token: str):
        self.path, self.token = path, token

    def check(self) -> None:
        """Raises LostClaimError when another process has taken it over, StoreError when that cannot be known."""
        try:
            token = self._read_token()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read ({error.strerror or error})") from error
        if token != self.token:
            name = self.path.parent.name
            raise LostClaimError(f"another process took over {name} while this one was suspended or unreachable: this one stops")

    def refresh(self) -> None:
        if self._read_token() == self.token:
            os.utime(self.path)

    def release(self) -> None:
        if self._read_token() == self.token:
            self.path.unlink(missing_ok=True)

    def _read_token(self) -> str | None:
        """None when the file is gone or no claim any more."""
        try:
            return from_json(Owner, parse(self.path.read_bytes())).token
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return None


class Claims(Files):
    """Files that say which process works on something."""

    def owner_of(self, path: Path) -> Owner | None:
        """Who has the claim; None when nobody alive does."""
        return self._judged(path)[1]

    @contextmanager
    def holding(self, path: Path, what: str) -> Iterator[Claim]:
        """Have a claim, refreshed, until the block ends. Raises ClaimError: a live process has it; `what` says what that does."""
        claim = self._take(path, what)
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_S):
                with suppress(OSError):
                    claim.refresh()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield claim
        finally:
            stop.set()
            thread.join()
            with suppress(OSError):  # one that cannot be removed is stale soon
                claim.release()

    @contextmanager
    def awaited(self, path: Path, what: str, patience_s: float) -> Iterator[Claim]:
        """As `holding`, waiting while another process has it. Raises ClaimError when that takes longer than `patience_s`."""
        end = time.monotonic() + patience_s
        with ExitStack() as stack:
            while True:
                try:
                    claim = stack.enter_context(self.holding(path, what))
                    break
                except ClaimError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.2)
            yield claim

    def _take(self, path: Path, what: str) -> Claim:
        mine = Owner.this_process()
        prepared = path.with_name(f".claim.{mine.token}.tmp")
        with explained(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                prepared.write_text(json.dumps(asdict(mine)))
                for _ in range(3):
                    try:
                        _create(prepared, path)
                        return Claim(path, mine.token)
                    except FileExistsError:
                        raw, owner = self._judged(path)
                    if owner is not None:
                        raise ClaimError(f"{what} by {owner}")
                    _bury(path, raw)
                raise ClaimError(f"{path} cannot be claimed: other processes claim it all the time")
            finally:
                with suppress(OSError):
                    prepared.unlink(missing_ok=True)

    def _judged(self, path: Path) -> tuple[bytes | None, Owner | None]:
        """A claim's content (None where there is no file), and its owner if that is alive."""
        raw: bytes | None = None
        try:
            refreshed = path.stat().st_mtime
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None, None
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror or error})") from error
        silent_s = abs(self.now(path.parent) - refreshed)  # a time that lies ahead is no sign of life
        try:
            data = parse(raw)
        except ValueError:  # without hard links a claim appears before it is written
            return raw, BEGINNING if silent_s < YOUNG_S else None
        try:
            owner: Owner = from_json(Owner, data)
        except ValueError:
            return raw, None
        return raw, owner if owner.lives(silent_s) else None


def _create(prepared: Path, path: Path) -> None:
    """Make `path` hold what `prepared` holds, whole from the first moment on where the file system has hard links. Raises FileExistsError:
    there is one: whoever comes first has the claim."""
    try:
        os.link(prepared, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with open(path, "xb") as file:
            try:
                file.write(prepared.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                path.unlink(missing_ok=True)
                raise


def _bury(path: Path, judged: bytes | None) -> None:
    """Take away the claim that was found dead; put back what is there if, in between, a live process had taken it."""
    grave = path.with_name(f".claim.{uuid.uuid4().hex}.tmp")
    with suppress(FileNotFoundError):
        os.rename(path, grave)
        if grave.is_dir():  # a folder where a claim belongs
            shutil.rmtree(grave, ignore_errors=True)
            return
        if grave.read_bytes() != judged:
            with suppress(FileExistsError):
                _create(grave, path)
        grave.unlink()
