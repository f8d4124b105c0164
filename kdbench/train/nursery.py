"""`python -m kdbench.train.nursery` starts workers as forks of itself, in which everything that they import is loaded already: importing
takes longer than many a bundle. It reads lines of JSON: `{"start": [arguments], "log": path, "environment": {}}` starts
`kdbench.train.worker`, and `{"signal": number, "to": pid}` reaches a worker that runs. It writes `{"pid": …}` for each worker, in their
order, and `{"pid": …, "status": …}` when it has ended (below 0: minus the signal). At the end of its input it ends, and its workers go on.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from typing import Any

LOADED = ("kdbench.train.worker", "kdbench.train.build", "kdbench.train.checkpoint", "kdbench.train.loop", "kdbench.train.teacher_table")
"""No module of these may start a thread or use a GPU when it is imported: neither outlives a fork."""

FORKS = sys.platform == "linux"
"""Elsewhere libraries do not outlive a fork, and each worker imports them itself."""


def main() -> int:
    for module in LOADED if FORKS else ():
        import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it goes to the workers, too
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes)
    children: dict[int, subprocess.Popen[bytes] | None] = {}
    asked, rest = selectors.DefaultSelector(), b""
    asked.register(0, selectors.EVENT_READ)
    asked.register(woken, selectors.EVENT_READ)
    while True:
        for key, _ in asked.select():
            if key.fd == woken:
                os.read(woken, 4096)
                _reap(children)
            elif data := os.read(0, 65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    _obey(json.loads(line), children, (woken, wakes))
            else:
                return 0


def _obey(asked: dict[str, Any], children: dict[int, subprocess.Popen[bytes] | None], own: tuple[int, int]) -> None:
    if "signal" in asked:
        if asked["to"] in children:  # else its number may be another process's by now
            os.kill(asked["to"], asked["signal"])
        return
    process = None
    try:
        if FORKS:
            pid = os.fork()
        else:
            process = _started(asked)
            pid = process.pid
    except OSError:  # no memory, or no more processes
        traceback.print_exc()
        print(json.dumps({"pid": 0, "status": 1}), flush=True)
        return
    if not pid:
        signal.set_wakeup_fd(-1)
        for end in own:
            os.close(end)
        status = _work(asked)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)  # taking all modules down takes longer than many a bundle
    children[pid] = process
    print(json.dumps({"pid": pid}), flush=True)


def _started(asked: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kdbench.train.worker", *asked["start"]]
    with open(asked["log"], "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **asked["environment"]})


def _work(asked: dict[str, Any]) -> int:
    """Be a worker. Returns its exit status."""
    try:
        for name in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        os.environ.update(asked["environment"])
        log, nothing = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), os.open(os.devnull, os.O_RDONLY)
        for there, here in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(there, here)
        return import_module("kdbench.train.worker").main(asked["start"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _reap(children: dict[int, subprocess.Popen[bytes] | None]) -> None:
    for pid, process in list(children.items()):
        if process is None:
            ended, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
        else:
            code = process.poll()
        if code is not None:
            del children[pid]
            print(json.dumps({"pid": pid, "status": code}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
