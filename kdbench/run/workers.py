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

POLL_S = 0.05
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
        while self.poll() is None and self.pid is None:
            time.sleep(POLL_S)
        if self.returncode is None:
            self.nursery.tell({"signal": number, "to": self.pid})

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
        self.rest = b""

    def start(self, arguments: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> Worker:
        """A worker with these arguments, which appends what it prints to a file."""
        self.listen()
        if self.process is None:
            command = [sys.executable, "-m", "kdbench.train.nursery"]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self.process = subprocess.Popen(command, **pipes, env=self.environment)
            assert self.process.stdout is not None
            os.set_blocking(self.process.stdout.fileno(), False)
        self.unborn.append(worker := Worker(self))
        self.tell({"start": list(arguments), "log": os.path.abspath(log.name), "environment": dict(environment)})
        return worker

    def tell(self, what: Mapping[str, Any]) -> None:
        if self.process and self.process.stdin:
            with suppress(OSError):  # it has ended, which `listen` finds out
                self.process.stdin.write(json.dumps(what).encode() + b"\n")
                self.process.stdin.flush()
        elif "signal" in what:
            with suppress(OSError):
                os.kill(what["to"], what["signal"])

    def listen(self) -> None:
        """Take in what the process has said since, without waiting."""
        while self.process and self.process.stdout and (said := self.process.stdout.read()) is not None:
            if not said:
                self._ended()
                break
            *lines, self.rest = (self.rest + said).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
        for pid, worker in list(self.alive.items()) if self.process is None else ():
            if not _is_there(pid):
                del self.alive[pid]
                worker.returncode = UNSEEN

    def _hear(self, said: Mapping[str, int]) -> None:
        if "status" in said:
            self.alive.pop(said["pid"]).returncode = said["status"]
        else:
            worker = self.unborn.pop(0)
            worker.pid = said["pid"]
            self.alive[said["pid"]] = worker

    def _ended(self) -> None:
        """Its end is that of the workers which it has not started; the others go on."""
        assert self.process is not None
        self.close()
        for worker in self.unborn:
            worker.returncode = UNSEEN
        self.unborn.clear()

    def close(self) -> None:
        if self.process:
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self.process.wait()
            self.process, self.rest = None, b""


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
