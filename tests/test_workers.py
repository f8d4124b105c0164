"""Workers are forks of one process: each has its own end, whatever becomes of that process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.process import lives
from kdbench.run.workers import UNSEEN, Nursery, Worker

LONG_S = 60.0


SLEEPER = (
    "import sys, time; from kdbench.train import nursery, worker; real = worker.main\n"
    "worker.main = lambda words: time.sleep(600) if words == ['sleep'] else real(words)\n"
    "sys.exit(nursery.main())"
)
"""A nursery of which a worker that is told to sleep does so."""


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    monkeypatch.setattr("kdbench.run.workers.subprocess.Popen", lambda command, **pipes: real([command[0], "-c", SLEEPER], **pipes))


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    found = Nursery({**os.environ, "OMP_NUM_THREADS": "1"})
    yield found
    found.close()


def start(nursery: Nursery, tmp_path: Path, *arguments: str, log: str = "a.log") -> Worker:
    with open(tmp_path / log, "ab") as out:
        return nursery.start(arguments, out, {"KDBENCH_TEST": "1"})


def born(worker: Worker, log: Path | None = None) -> int:
    """Its number, once it is at work: its output goes to its log."""
    until = time.monotonic() + LONG_S
    while worker.poll() is None and time.monotonic() < until:
        if worker.pid and (log is None or os.readlink(f"/proc/{worker.pid}/fd/2") == str(log)):
            return worker.pid
        time.sleep(0.01)
    raise AssertionError("the worker did not begin")


def test_a_worker_prints_to_its_log_and_ends_with_its_own_status(nursery: Nursery, tmp_path: Path) -> None:
    helped, wrong = start(nursery, tmp_path, "--help"), start(nursery, tmp_path, log="b.log")

    assert helped.wait(LONG_S) == 0 and wrong.wait(LONG_S) == 2
    assert "usage: kdbench.train.worker" in (tmp_path / "a.log").read_text()
    assert "the following arguments are required" in (tmp_path / "b.log").read_text()


def test_a_signal_reaches_the_worker_and_its_status_is_the_signal(sleeper: None, nursery: Nursery, tmp_path: Path) -> None:
    worker = start(nursery, tmp_path, "sleep")
    born(worker, tmp_path / "a.log")
    worker.send_signal(signal.SIGKILL)

    assert worker.wait(LONG_S) == -signal.SIGKILL


def test_a_worker_goes_on_and_is_still_looked_at_when_the_process_that_started_it_is_killed(
    sleeper: None, nursery: Nursery, tmp_path: Path
) -> None:
    worker = start(nursery, tmp_path, "sleep")
    pid = born(worker, tmp_path / "a.log")
    assert nursery.process
    os.kill(nursery.process.pid, signal.SIGKILL)
    until = time.monotonic() + LONG_S
    while nursery.process and time.monotonic() < until:
        worker.poll()
    another = start(nursery, tmp_path, "--help", log="b.log")

    assert another.wait(LONG_S) == 0 and worker.poll() is None and lives(pid, None)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait(LONG_S) == UNSEEN and not lives(pid, None)


def test_workers_that_were_not_started_yet_end_with_the_process_that_would_have(nursery: Nursery, tmp_path: Path) -> None:
    worker = start(nursery, tmp_path, "--help")
    assert nursery.process
    os.kill(nursery.process.pid, signal.SIGKILL)

    assert worker.wait(LONG_S) == UNSEEN


def test_where_a_process_cannot_be_forked_each_worker_is_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short ones, so that some end while others start."""
    code = "import sys; from kdbench.train import nursery; nursery.FORKS = False; sys.exit(nursery.main())"
    real = subprocess.Popen
    monkeypatch.setattr("kdbench.run.workers.subprocess.Popen", lambda command, **pipes: real([command[0], "-c", code], **pipes))
    nursery = Nursery({**os.environ, "OMP_NUM_THREADS": "1"})
    workers = [start(nursery, tmp_path, *words) for words in (["--help"], [], ["--help"])]
    found = [worker.wait(LONG_S) for worker in workers]
    nursery.close()

    assert found == [0, 2, 0]


def test_a_worker_that_cannot_be_forked_ends_and_the_others_do_not(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys; from kdbench.train import nursery; real, seen = os.fork, []\n"
        "def fork():\n    seen.append(1)\n    if len(seen) == 1: raise BlockingIOError(11, 'no more processes')\n    return real()\n"
        "os.fork = fork; sys.exit(nursery.main())"
    )
    real = subprocess.Popen
    monkeypatch.setattr("kdbench.run.workers.subprocess.Popen", lambda command, **pipes: real([command[0], "-c", code], **pipes))
    first, second = start(nursery, tmp_path, "--help"), start(nursery, tmp_path, "--help", log="b.log")

    assert first.wait(LONG_S) == 1 and second.wait(LONG_S) == 0
    assert "no more processes" in (tmp_path / "a.log").read_text()
