"""The verbs `run` and `profile`: plan, train, measure, report, and say what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from kdbench.plan import matrix, probe
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read
from kdbench.report.write import report
from kdbench.run import local, watch
from kdbench.run.local import Machine
from kdbench.run.progress import Teller
from kdbench.store import Store


def planned(suite: Path) -> Plan:
    """Read, expand and probe a suite. Raises SuiteError with all of its mistakes."""
    plan = matrix.expand(read(suite))
    probe.probe(plan)
    return plan


def run(suite: Path, results: Path, data: Path, device: str, jobs: int | None, checkpoint_every_s: float | None, costs: bool) -> int:
    """Train, measure and report a suite. Returns 0 when every cell is a result, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    plan, store = planned(suite), Store(results)
    titles = {row["id"]: watch.title(row) for row in local.prepare(plan, store)["cells"]}
    machine = _machine(results, data, device, jobs, checkpoint_every_s)
    count = len(local.wanted(store, list(plan.cells.values())))
    if count:
        console.print(f"{plan.suite.name}: {count} of {len(plan.cells)} cells to train, {machine.jobs} at a time")
    else:
        console.print(f"{plan.suite.name}: nothing to train, {len(plan.cells)} cells are done or being trained")
    began = time.monotonic()
    try:
        with Teller(console, titles, count) as teller:
            local.train(plan, store, machine, teller)
    except KeyboardInterrupt:
        console.print("interrupted: what was trained is saved; the same command goes on from there")
        return 130
    if count:
        console.print(f"trained in {time.monotonic() - began:.0f} s")
    if costs:
        _measure(plan, store, machine, console)
    report(store, [plan.suite.name], sys.stdout)
    missing = watch.why_missing(store, store.manifest(plan.suite.name))
    if missing:
        console.print(missing, markup=False)
    return 1 if missing else 0


def profile(suite: Path, results: Path, data: Path, device: str) -> int:
    """Measure the costs of a suite's objectives. Returns 0 when every one has its profile."""
    plan, store = planned(suite), Store(results)
    local.prepare(plan, store)
    whole = _measure(plan, store, _machine(results, data, device, 1, None), Console(highlight=False, soft_wrap=True))
    report(store, [plan.suite.name], sys.stdout)
    return 0 if whole else 1


def check(suite: Path, results: Path, data: Path, device: str, as_json: bool) -> int:
    """Two real training steps of everything that a suite compares. Returns 0 when nothing is wrong."""
    import torch

    from kdbench.run import check as checking
    from kdbench.run.worker import choose_device

    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    plan, store = planned(suite), Store(results)
    found: list[checking.Checked] = []
    line = "{:<16} {:<12} {:<24} {:>7} {:>7} {:>8} {:>8} {:>8}  {}"
    began = time.monotonic()

    def told(text: str) -> None:
        console.print(text, markup=False)

    for one in checking.check(plan, store, data, torch.device(choose_device(device)), told):
        if not found:
            told("times in s (a whole batch; the last one with gradient sizes), memory in MiB (weights and optimiser; kept for backward)")
            told(line.format("student", "teacher", "objective", "step", "last", "weights", "kept", "loss", "gradient / task's"))
        found.append(one)
        ratios = ", ".join(f"{name} {ratio:.3g}" for name, ratio in one.ratios.items())
        values = ((one.step_s, 2), (one.ragged_s, 2), (one.weights_mib, 0), (one.kept_mib, 0), (one.loss, 3))
        numbers = ["-" if value is None else f"{value:.{digits}f}" for value, digits in values]
        told(line.format(one.student, one.teacher or "-", one.objective, *numbers, ratios).rstrip())
        for word, texts in (("WRONG", one.wrong), ("note", one.notes)):
            for text in texts:
                told(f"  {word}: {text}")
    wrong = sum(bool(one.wrong) for one in found)
    told(
        f"{plan.suite.name}: {len(found)} settings checked in {time.monotonic() - began:.0f} s, {wrong} wrong; the largest bundle of "
        f"{checking.SIDE_BY_SIDE} needs about {checking.bundle_mib(found) / 1024:.1f} GiB beside its teacher"
    )
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=1))
    return 1 if wrong else 0


def _machine(results: Path, data: Path, device: str, jobs: int | None, checkpoint_every_s: float | None) -> Machine:
    import torch

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or gpus or cores
    return Machine(results, data, device, jobs, gpus, checkpoint_every_s, readers=max(1, cores // jobs))


def _measure(plan: Plan, store: Store, machine: Machine, console: Console) -> bool:
    """Profiles of everything compared, serially, in a process of its own; noted in the manifest. Returns whether all are there."""
    suite = plan.suite
    chosen: dict[tuple[str, str | None, str], str] = {}
    for row in plan.rows:
        if row.role == "student" and watch.state(store, row.cell.id).name == "finished":
            chosen.setdefault((row.student, row.teacher, row.objective), row.cell.id)
    if not chosen:
        console.print("no costs: they are measured on settings of which one student is trained, and none is", markup=False)
        return False
    command = [sys.executable, "-m", "kdbench.run.cost", str(machine.results), *chosen.values()]
    command += ["--data", str(machine.data), "--device", machine.device]
    log = store.suite_folder(suite.name) / "jobs" / "cost.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as errors:
        told = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=local.environment(machine, 0), check=False)
    found = {}
    for line in told.stdout.splitlines():
        if line.startswith("{"):
            one = json.loads(line)
            found[one["cell"]] = one["profile"]
        else:
            console.print(line, markup=False)
    manifest = store.manifest(suite.name)
    manifest["profiles"] = [
        {"dataset": suite.dataset["name"], "teacher": teacher, "student": student, "objective": objective, "id": found[cell_id]}
        for (student, teacher, objective), cell_id in chosen.items()
        if cell_id in found
    ]
    store.put_manifest(suite.name, manifest)
    if told.returncode and not found:
        console.print(f"costs could not be measured; see {log}", markup=False)
    return len(found) == len(chosen)
