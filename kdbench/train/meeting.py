"""How the ranks of a worker find each other, and what is known of one that was lost."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from kdbench import failure
from kdbench.errors import RankLostError
from kdbench.failure import Failure
from kdbench.process_log import log
from kdbench.store import Store
from kdbench.train.ranks import ALONE, Ranks, Together

LOCAL = "127.0.0.1"
POLL_S = 0.05
JOIN_S = 600.0
"""How long a rank waits for the first one to say where it is: on a cluster, nodes may start minutes apart."""
TELL_S = 10.0
"""How long the first rank waits for what a lost one has to say."""
PR_SET_PDEATHSIG = 1
INTERFACES = {"linux": "lo", "darwin": "lo0"}


@dataclass
class Meeting:
    """The meeting of `world` ranks. The files in `folder` say where the first rank is, and why another one has ended. `host` is where the
    first one can be reached, `place` that of this one among the ranks of its machine."""

    store: Store
    folder: Path
    rank: int = 0
    world: int = 1
    host: str = LOCAL
    place: int = -1
    started: dict[int, subprocess.Popen[bytes] | int] = field(default_factory=dict)
    """The ranks that this process has started: their process, or its number."""
    ended: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place = self.rank if self.place < 0 else self.place

    @property
    def address(self) -> Path:
        return self.folder / "address.json"

    def start_others(self, main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
        """Start the other ranks on this machine, with the same arguments."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for rank in range(1, self.world):
            own = [*arguments, "--rank", str(rank), "--meeting", self.folder.name]
            if sys.platform != "linux":  # libraries do not outlive a fork
                self.started[rank] = subprocess.Popen([sys.executable, "-m", "kdbench.train.worker", *own], stdin=subprocess.DEVNULL)
            elif pid := os.fork():
                self.started[rank] = pid
            else:
                status = 1
                try:
                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nothing outlives the first rank
                    status = main(own)
                except BaseException:
                    traceback.print_exc()
                finally:
                    for stream in (sys.stdout, sys.stderr):
                        stream.flush()
                    os._exit(status)

    def ranks(self, device: torch.device) -> Ranks:
        """Meet the others. Raises RankLostError."""
        if self.world == 1:
            return ALONE
        if self.host == LOCAL and sys.platform in INTERFACES:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACES[sys.platform])
        if not self.rank:
            return Together.first_of(self.world, device, self.host, self._say, self._check_others)
        parent, until = os.getppid(), time.monotonic() + JOIN_S
        while not (said := self.store.json(self.address)):
            if time.monotonic() > until or (self.host == LOCAL and os.getppid() != parent):
                raise RankLostError(f"rank {self.rank} did not find the first rank, which should be named in {self.address}")
            time.sleep(POLL_S)
        return Together.joining(self.rank, self.world, device, said["host"], said["port"])

    def _say(self, port: int) -> None:
        self.store.write_json(self.address, {"host": self.host, "port": port})

    def _check_others(self) -> None:
        """Raises RankLostError: a rank has ended before all have met."""
        ended = [rank for rank in self.started if self._status(rank) is not None]
        if ended or self._told():
            raise RankLostError(f"rank {min(ended, default=1)} ended before the ranks had met")

    def tell(self, error: BaseException) -> None:
        """Leave the error of this rank for the first one."""
        self.store.write_json(self.folder / f"rank{self.rank}.json", failure.describe(error, traceback.format_exc()).to_json())

    def why_lost(self) -> Failure | None:
        """What a lost rank has left; None if it left nothing, as a process that was killed."""
        until = time.monotonic() + TELL_S
        while not (told := self._told()) and time.monotonic() < until and not self._killed():
            time.sleep(POLL_S)
        return told

    def _told(self) -> Failure | None:
        for rank in range(1, self.world):
            if told := self.store.json(self.folder / f"rank{rank}.json"):
                found = Failure.from_json(told)
                return replace(found, message=f"rank {rank}: {found.message}")
        return None

    def _killed(self) -> str:
        """Which of the ranks that were started here ended by a signal."""
        statuses = {rank: self._status(rank) or 0 for rank in self.started}
        return ", ".join(f"rank {rank} ended with {signal.Signals(-status).name}" for rank, status in statuses.items() if status < 0)

    def _status(self, rank: int) -> int | None:
        """Of a rank that was started here; None while it runs."""
        process = self.started[rank]
        if isinstance(process, subprocess.Popen):
            return process.poll()
        if rank not in self.ended:
            pid, status = os.waitpid(process, os.WNOHANG)
            if not pid:
                return None
            self.ended[rank] = os.waitstatus_to_exitcode(status)
        return self.ended[rank]

    def end(self, is_lost: bool = False) -> None:
        """Wait for the ranks that were started here; where one was lost, the others end by themselves, or are ended."""
        if is_lost and (killed := self._killed()):
            log(killed)
        until = time.monotonic() + TELL_S
        for rank, process in self.started.items():
            while self._status(rank) is None:
                if is_lost and time.monotonic() > until:
                    os.kill(process.pid if isinstance(process, subprocess.Popen) else process, signal.SIGKILL)
                time.sleep(POLL_S)
        if not self.rank:
            self.store.remove_tree(self.folder)
