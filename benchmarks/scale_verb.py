"""One verb with very many cells, in a process that loads what the verb loads: its times, its memory, its calls of the file system."""

from __future__ import annotations

import importlib
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.plan import schema
from kdbench.record import Record
from kdbench.store import Store
from kdbench.store.claims import Claim

COUNTS = ("opened", "asked", "listed", "changed", "synced")
NUMBERS = ("wall_s", "cpu_s", "peak_gib", *COUNTS, "read_mib")
PARTS = {
    "plan": ("plan.summary:read", "plan.matrix:expand", "plan.probe:probe", "plan.summary:PlanSummary.__init__", "plan.summary:provided"),
    "run": ("run.local:prepare", "run.local:wanted", "run.verbs:tables_of", "run.verbs:students_side_by_side", "run.local:train"),
    "report": (
        *("report.write:frame", "report.write:read_predictions", "report.write:study", "report.write:image_statistics"),
        *("report.write:compose", "report.write:terminal", "report.write:write"),
    ),
}
"""What is timed inside a verb: functions, where they are looked up. No one of them calls another."""
ARRAY = 1000
"""Jobs in an array: SLURM's default is 1001 at most."""
EVENTS = {"open": "opened", "os.listdir": "listed", "os.scandir": "listed"}
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink", "os.utime", "os.rmdir")


def measured(given: Mapping[str, str]) -> list[dict[str, Any]]:
    """What one verb costs, its parts first."""
    schema.MAX_CELLS = max(schema.MAX_CELLS, 10**6)
    suite, results, verb = Path(given["suite"]), Path(given["results"]), given["verb"]
    if verb == "simulate":
        from benchmarks.scale import simulate

        meter = _Meter(results)
        facts = meter.timed(lambda: simulate(suite, results))
        return [{"part": "", **facts, **meter.result}]
    if verb == "a cell, trained":
        return _life(results)
    if verb == "status, nothing trained":
        manifest = Store(results).manifest(suite.stem)
        results = results.with_name(f"{results.name}_empty")
        Store(results).put_manifest(suite.stem, manifest)
    if verb == "a look, all queued":
        return [{"part": "", **_look(suite, results.with_name(f"{results.name}_empty"))}]
    name, *_ = verb.split(",")
    words = [name, str(suite), "--results", str(results)]
    if name in ("plan", "run"):
        importlib.import_module("torch")
        words += ["--device", "cpu", "--jobs", "1", *(["--no-profile"] if name == "run" else [])]
    meter = _Meter(results)
    for one in PARTS.get(name, ()):
        meter.watch(one)
    from kdbench.cli import main

    def act() -> None:
        with suppress(SystemExit), redirect_stdout(io.StringIO()):
            main(words, standalone_mode=False)

    whole = {"part": "", **meter.timed(act)}
    return [*meter.parts.values(), whole]


def _life(results: Path) -> list[dict[str, Any]]:
    """What the store does for one cell while it is trained, by itself."""
    store, cell_id, held = Store(results), "0" * 12, list[Claim]()
    record = Record(cell_id, {}, "finished", {"metrics": {}, "history": [], "n_train": 1, "n_test": 1}, {})
    meter = _Meter(results)

    def finish() -> None:
        store.write_sealed(store.file(cell_id, "weights.bin"), bytes(1000))
        store.write_bytes(store.file(cell_id, "predictions.npz"), bytes(1000))
        store.put_record(replace(record, circumstance={"files": store.sizes_and_digests(cell_id)}))

    with ExitStack() as stack:
        acts: dict[str, Callable[[], Any]] = {
            "claim": lambda: held.append(stack.enter_context(store.claim(cell_id))),
            "heartbeat": lambda: held[0].refresh(),
            "line of progress": lambda: store.append_line(store.file(cell_id, "progress.jsonl"), {"epoch": 0, "of": 1}),
            "checkpoint": lambda: store.write_sealed(store.file(cell_id, "checkpoint.bin"), bytes(1000)),
            "weights, predictions, record": finish,
            "release": stack.close,
        }
        rows = [{"part": name, **meter.timed(act)} for name, act in acts.items()]
    store.remove_tree(store.cell_folder(cell_id))
    return rows


def _look(suite: Path, results: Path) -> dict[str, Any]:
    """One look of `run --on CLUSTER --wait` at jobs that all wait in the queue, of cells that are not trained; SLURM answers at once."""
    from kdbench.plan import matrix
    from kdbench.plan.bundle import bundles
    from kdbench.plan.suite import read
    from kdbench.slurm.cluster import Cluster
    from kdbench.slurm.follow import Follower
    from kdbench.slurm.scheduler import JobInfo, Limits, QueueSnapshot, Scheduler
    from kdbench.slurm.submissions import Settings, Submission, Submissions

    plan, store, jobs = matrix.expand(read(suite)), Store(results), dict[str, JobInfo]()
    elements, settings = [[one.ids] for one in bundles(plan.cells.values())], Settings("data")
    for number, start in enumerate(range(0, len(elements), ARRAY)):
        some = elements[start : start + ARRAY]
        names = {"suite": plan.suite.name, "token": Submissions.token(some), "cluster": "default", "slurm": "here"}
        one = Submission(**names, request={"timeout_min": 60}, settings=settings, elements=some, job=str(number + 1))
        Submissions(store).write(one)
        jobs |= {one.job_of(index): JobInfo(one.job_of(index), one.name, "PENDING") for index in range(len(some))}
    scheduler = Scheduler()
    scheduler.snapshot = lambda *_: QueueSnapshot(True, jobs)  # type: ignore[method-assign]
    follower = Follower(plan, store, Cluster("default", {"timeout_min": 60}), settings, lambda _: 1.0, print, scheduler)
    follower.limits = Limits("here", ARRAY, None)

    def look() -> None:
        now = follower._look()
        launched = follower._launch(follower._again(follower._wanted(now), now), now)
        follower._line(now)
        follower._busy(now, launched)

    found = _Meter(results).timed(look)
    store.remove_tree(store.suite_folder(plan.suite.name) / "jobs")
    return found


class _Meter:
    """Wall and CPU seconds, peak memory, and calls of the file system that are about a folder."""

    def __init__(self, folder: Path):
        self.counts: Counter[str] = Counter()
        self.parts: dict[str, dict[str, Any]] = {}
        self.result: Any = None
        start = str(folder)

        def heard(event: str, arguments: tuple[Any, ...]) -> None:
            if (name := EVENTS.get(event) or ("changed" if event in CHANGES else None)) and str(arguments[0]).startswith(start):
                self.counts[name] += 1

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def act(path: Any, *others: Any, **options: Any) -> Any:
                self.counts["asked"] += str(path).startswith(start)
                return call(path, *others, **options)

            return act

        sys.addaudithook(heard)
        os.stat, os.lstat, sync = counted(os.stat), counted(os.lstat), os.fsync  # the interpreter reports all calls but these

        def synced(file: Any) -> None:
            self.counts["synced"] += 1
            sync(file)

        os.fsync = synced

    def timed(self, act: Callable[[], Any]) -> dict[str, Any]:
        before, wall, cpu, read_bytes = Counter(self.counts), time.perf_counter(), time.process_time(), _status("io", "rchar")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.result = act()
        peak = _status("status", "VmHWM") / 2**20
        peak = max([peak, *(one["peak_gib"] for one in self.parts.values())])
        counts = {name: self.counts[name] - before[name] for name in COUNTS}
        times = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        return {**times, "peak_gib": peak, **counts, "read_mib": (_status("io", "rchar") - read_bytes) / 2**20}

    def watch(self, name: str) -> None:
        """Have a function timed whenever it is called from now on."""
        module, _, path = name.partition(":")
        *classes, last = path.split(".")
        owner: Any = importlib.import_module(f"kdbench.{module}")
        for one in classes:
            owner = getattr(owner, one)
        call, part = getattr(owner, last), path.partition(".")[0]

        def act(*arguments: Any, **options: Any) -> Any:
            found = self.timed(lambda: call(*arguments, **options))
            before = self.parts.setdefault(part, {"part": part, **dict.fromkeys(NUMBERS, 0)})
            for key, value in found.items():
                before[key] = max(before[key], value) if key == "peak_gib" else before[key] + value
            return self.result

        setattr(owner, last, act)


def _status(file: str, key: str) -> int:
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
