"""The processes that train: forks of one process that has imported what they need (`kdbench.train.nursery`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from kdbench.process import lives, started_at

POLL_S = 0.05
PATIENCE_S = 60.0
UNSEEN = 1
"""The exit status of a worker whose end nobody saw."""


class Worker:
    """A worker, with those methods of a `subprocess.Popen` that are used here."""

    def __init__(self, nursery: Nursery):
        self.nursery = nursery
        self.pid: int | None = None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self.nursery.listen()
        return self.returncode

    def send_signal(self, number: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.poll() is None and self.pid is None and time.monotonic() < until:
            time.sleep(POLL_S)
        if self.returncode is None and self.pid is not None:
            self.nursery.signal(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(POLL_S)
        return status


class Nursery:
    """Starts workers. It is started with the first one, and again if it ended. `environment` is that of all its workers."""

    def __init__(self, environment: Mapping[str, str]):
        self.environment = dict(environment)
        self.process: subprocess.Popen[bytes] | None = None
        self.unborn: list[Worker] = []
        self.alive: dict[int, Worker] = {}
        self.orphans: dict[int, tuple[Worker, float | None]] = {}
        self.rest = b""

    def start(self, arguments: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> Worker:
        """A worker with these arguments, which appends what it prints to a file."""
        self.listen()
        self.prepare(log)
        self.unborn.append(worker := Worker(self))
        self.tell({"start": list(arguments), "log": os.path.abspath(log.name), "environment": dict(environment)})
        return worker

    def prepare(self, log: IO[bytes] | None = None) -> None:
        """Start the process, if there is none, which then imports what its workers need. Its own errors are appended to `log`."""
        if self.process is None:
            command = [sys.executable, "-m", "kdbench.train.nursery"]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self.process = subprocess.Popen(command, **pipes, env=self.environment)
            assert self.process.stdout is not None
            os.set_blocking(self.process.stdout.fileno(), False)

    def tell(self, what: Mapping[str, Any]) -> None:
        assert self.process and self.process.stdin
        with suppress(OSError):  # it has ended, which `listen` finds out
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()

    def signal(self, pid: int, number: int) -> None:
        if pid in self.alive:  # by their parent, which knows whether the number is still theirs
            self.tell({"signal": number, "to": pid})
        elif pid in self.orphans and lives(pid, self.orphans[pid][1]):
            os.kill(pid, number)

    def listen(self) -> None:
        """Take in what the process has said since, without waiting."""
        while self.process and self.process.stdout:
            # Asked before reading: what it has said before its end is then read. A worker may hold the pipe open for longer.
            ended = self.process.poll() is not None
            said = self.process.stdout.read()
            *lines, self.rest = (self.rest + (said or b"")).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
            if ended or said == b"":
                self._ended()
            elif not said:
                break
        for pid, (worker, since) in list(self.orphans.items()):
            if not lives(pid, since):
                del self.orphans[pid]
                worker.returncode = UNSEEN

    def _hear(self, said: Mapping[str, int]) -> None:
        if "status" in said and said["pid"] in self.alive:
            self.alive.pop(said["pid"]).returncode = said["status"]
        elif "status" in said:  # it was not born
            self.unborn.pop(0).returncode = said["status"]
        else:
            worker = self.unborn.pop(0)
            worker.pid = said["pid"]
            self.alive[said["pid"]] = worker

    def _ended(self) -> None:
        """Its end is that of the workers which it has not started; the others go on, and are looked at one by one."""
        self.close()
        for worker in self.unborn:
            worker.returncode = UNSEEN
        self.unborn.clear()
        for pid, worker in self.alive.items():
            self.orphans[pid] = worker, started_at(pid)
        self.alive.clear()

    def close(self) -> None:
        if self.process:
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self.process.wait()
            self.process, self.rest = None, b""
