"""The verbs `run`, `profile` and `features`: plan, train, measure, report, and say what is missing."""

from __future__ import annotations

import importlib
import io
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from kdbench import parts
from kdbench.errors import DataError, KdbenchError, UsageError
from kdbench.isolation import explained, isolated
from kdbench.manifest import ProfileRef
from kdbench.plan import matrix, probe
from kdbench.plan.matrix import Plan
from kdbench.plan.provider import tables_of
from kdbench.plan.reading import given_part
from kdbench.plan.suite import read
from kdbench.run import local
from kdbench.run.estimate import Costs, students_side_by_side
from kdbench.run.local import Machine
from kdbench.run.progress import ProgressBar
from kdbench.store import Store, cell_state


def planned(suite: Path) -> Plan:
    """Read, expand and probe a suite. Raises SuiteError with all of its mistakes."""
    plan = matrix.expand(read(suite))
    probe.probe(plan)
    return plan


def run(
    suite: Path,
    results: Path,
    data: Path,
    device: str,
    jobs: int | None,
    checkpoint_every_s: float | None,
    provider: str,
    costs: bool,
    ranks: int = 1,
) -> int:
    """Train, measure and report a suite. Returns 0 when every cell is a result, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    plan, store = matrix.expand(read(suite)), Store(results)
    missing = [cell for cell in plan.cells.values() if not store.is_done(cell.id)]
    local.check_ranks(missing, ranks)
    with closing(local.nursery()) as workers:
        if missing:
            workers.prepare()  # it imports what workers need while the plan is made
        probes = probe.probe(plan)
        titles = {cell.id: cell.title for cell in local.prepare(plan, store).cells}
        machine = Machine.here(results, data, device, jobs, ranks, checkpoint_every_s=checkpoint_every_s)
        machine = replace(machine, tables=tables_of(provider, plan, probes, store, on_gpu=machine.gpus > 0))
        fresh = local.wanted(store, list(plan.cells.values()))
        count = len(fresh)
        if count:
            for note in _check_data_and_device(plan, data, device):
                console.print(f"{plan.suite.dataset['name']}: {note}", markup=False)
        todo = f"{count} of {len(plan.cells)} cells to train, {machine.jobs} at a time"
        machine = replace(machine, side_by_side=students_side_by_side(Costs.here(plan, store, device), machine.jobs))
        console.print(f"{plan.suite.name}: {todo if count else f'nothing to train: all {len(plan.cells)} cells are done or being trained'}")
        began = time.monotonic()
        try:
            with ProgressBar(console, titles, count) as progress:
                local.train(plan, store, machine, progress, fresh, workers)
        except KeyboardInterrupt:
            console.print("interrupted: progress is saved; run the same command to continue")
            return 130
        if count:
            console.print(f"trained in {time.monotonic() - began:.0f} s")
        if costs:
            _measure(plan, store, machine, console)
        return conclude(store, plan.suite.name, console)


def _check_data_and_device(plan: Plan, data: Path, device: str) -> tuple[str, ...]:
    """The notes on the dataset. Raises KdbenchError: the device is not there, or the dataset is missing or wrong."""
    from kdbench.train.build import make_dataset
    from kdbench.train.circumstance import choose_device

    choose_device(device)
    try:
        with isolated(0):
            return make_dataset(next(iter(plan.cells.values()))).load(data).notes
    except KdbenchError:
        raise
    except Exception as error:
        raise DataError(f"the dataset cannot be read: {explained(error)}") from error


def conclude(store: Store, suite: str, console: Console, in_jobs: Collection[str] = ()) -> int:
    """Print the report of a suite, and which cells have no result and are in no job. Returns 0 when there is none, else 1."""
    from kdbench.report.write import report

    report(store, [suite], sys.stdout)
    missing = cell_state.why_missing(store, store.manifest(suite), in_jobs)
    if missing:
        console.print(missing, markup=False)
    return 1 if missing else 0


def profile(suite: Path, results: Path, data: Path, device: str) -> int:
    """Measure the costs of a suite's objectives, and show them. Returns 0 when every one has its profile."""
    from kdbench.report.write import report
    from kdbench.run import step_parts

    plan, store = planned(suite), Store(results)
    if not any(row.role == "student" and store.is_done(row.cell.id) for row in plan.rows):
        raise UsageError(f"no student has finished training: run `{shlex.join(['kdbench', 'run', str(suite)])}` first")
    local.prepare(plan, store)
    console = Console(highlight=False, soft_wrap=True)
    whole = _measure(plan, store, Machine.here(results, data, device, 1), console)
    report(store, [plan.suite.name], io.StringIO())  # its table of costs
    if folder := step_parts.show(store, store.manifest(plan.suite.name), sys.stdout):
        console.print(f"The table as Markdown and CSV, and its figure, are in {folder}.", markup=False)
    return 0 if whole else 1


def features(suite: Path, results: Path, data: Path, device: str, jobs: int | None, cka: bool, probes: Sequence[str]) -> int:
    """Measure the features of a suite's trained networks. Returns 0 when nothing is missing."""
    from kdbench.report.write import report
    from kdbench.store.features import asked

    if not cka and not probes:
        raise UsageError("there is nothing to measure: leave out --no-cka, or give --probe DATASET")
    given = [given_part("dataset", "--probe", text, suite.parent) for text in probes]
    plan, store = planned(suite), Store(results)
    for dataset, sources, title in given:
        _check_probe(plan, dataset, sources, title)
    if not any(row.role in ("student", "teacher") and store.is_done(row.cell.id) for row in plan.rows):
        raise UsageError(f"no network has finished training: run `{shlex.join(['kdbench', 'run', str(suite)])}` first")
    manifest = local.prepare(plan, store)
    count = len(asked(manifest, cka, [dataset for dataset, _, _ in given]))
    machine = Machine.here(results, data, device, jobs)
    command = [sys.executable, "-m", "kdbench.train.features", str(results), manifest.suite, "--data", str(data), "--device", device]
    command += ["--readers", str(machine.readers), *(["--cka"] if cka else [])]
    for dataset, sources, title in given:
        command += ["--probe", json.dumps({"dataset": dataset, "sources": sources, "title": title})]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{manifest.suite}: {count} measurements of features, {machine.jobs} at a time", markup=False)
    statuses = _in_processes([[*command, "--share", str(place), str(machine.jobs)] for place in range(machine.jobs)], machine, console)
    if statuses is None:
        console.print("interrupted: what was measured is saved; run the same command to continue")
        return 130
    report(store, [manifest.suite], sys.stdout)
    console.print("`kdbench report --full` prints the tables of features", markup=False)
    return int(any(statuses))


def _check_probe(plan: Plan, dataset: Mapping[str, Any], sources: Mapping[str, str], title: str) -> None:
    """Raises UsageError for a dataset that the networks of a suite cannot read."""
    own = parts.from_config("dataset", plan.suite.dataset, plan.suite.sources)
    other = parts.from_config("dataset", dataset, sources)
    shapes = [" x ".join(map(str, one.input_shape)) for one in (other, own)]
    if other.task != own.task or not plan.task.has_classes:
        what = f"this is {other.task} beside {own.task}"
        raise UsageError(f"--probe {title}: a linear probe is for classification, where images have one class, and {what}")
    if shapes[0] != shapes[1]:
        what = f"its images have the shape {shapes[0]}, and the networks of {plan.suite.name} are for {shapes[1]}"
        raise UsageError(
            f"--probe {title}: {what} (channels x height x breadth): choose a dataset of that shape, or an option that gives it"
        )


def _in_processes(commands: Sequence[Sequence[str]], machine: Machine, console: Console) -> list[int] | None:
    """Run measuring processes side by side, and print what they say. Returns their exit statuses; None where the user interrupts."""
    made = []

    def follow(process: subprocess.Popen[str]) -> int:
        with process:
            for line in process.stdout or ():
                if line.startswith("{"):
                    made.append(json.loads(line)["made"])
                else:
                    console.print(line.rstrip(), markup=False)
        return process.returncode

    processes: list[subprocess.Popen[str]] = []
    try:
        for slot, command in enumerate(commands):
            environment = local.environment(machine, slot)
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, env=environment))
        with ThreadPoolExecutor(len(processes)) as pool:
            statuses = list(pool.map(follow, processes))
    except KeyboardInterrupt:
        return None
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
    console.print(f"{sum(made)} measured, {len(made) - sum(made)} were there", markup=False)
    return statuses


def check(suite: Path, results: Path, data: Path, device: str, as_json: bool) -> int:
    """Real training steps of everything that a suite compares. Returns 0 when nothing is wrong."""
    import torch

    from kdbench.train import check as checking
    from kdbench.train.circumstance import choose_device

    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    plan, store = planned(suite), Store(results)
    found: list[checking.Checked] = []
    wide = [
        max(map(len, column))
        for column in zip(*((row.student, row.teacher or "teacher", row.objective or "") for row in plan.rows), strict=True)
    ]
    line = f"{{:<{wide[0]}}}  {{:<{wide[1]}}}  {{:<{max(wide[2], 9)}}} {{:>7}} {{:>7}} {{:>8}} {{:>8}} {{:>8}}  {{}}"
    began, show = time.monotonic(), partial(console.print, markup=False)
    for one in checking.check(plan, store, data, torch.device(choose_device(device)), show):
        if not found:
            show("step: time of a full batch, last: of the last batch of an epoch, both in s")
            show("weights: memory of weights, gradients and optimiser, saved: memory that a step saves for its backward pass, both in MiB")
            show(line.format("student", "teacher", "objective", "step", "last", "weights", "saved", "loss", "gradient / task's"))
        found.append(one)
        ratios = ", ".join(f"{name} {ratio:.3g}" for name, ratio in one.ratios.items())
        values = ((one.step_s, 2), (one.ragged_s, 2), (one.weights_mib, 0), (one.saved_mib, 0), (one.loss, 3))
        numbers = ["-" if value is None else f"{value:.{digits}f}" for value, digits in values]
        show(line.format(one.student, one.teacher or "-", one.objective, *numbers, ratios).rstrip())
        for word, texts in (("WRONG", one.wrong), ("note", one.notes)):
            for text in texts:
                show(f"  {word}: {text}")
    wrong = sum(bool(one.wrong) for one in found)
    show(
        f"{plan.suite.name}: {len(found)} settings checked in {time.monotonic() - began:.0f} s, {wrong} failed; a bundle of "
        f"{checking.SIDE_BY_SIDE} students needs at most about {checking.bundle_mib(found) / 1024:.2g} GiB beside its teacher"
    )
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    return 1 if wrong else 0


def _measure(plan: Plan, store: Store, machine: Machine, console: Console) -> bool:
    """Profiles of everything compared, serially, in a process of its own; noted in the manifest. Returns whether all are there."""
    suite = plan.suite
    chosen: dict[tuple[str, str | None, str], str] = {}
    for row in plan.rows:
        if row.objective is not None and row.role == "student" and cell_state.of(store, row.cell.id).name == "finished":
            chosen.setdefault((row.student, row.teacher, row.objective), row.cell.id)
    if not chosen:
        console.print("no costs are measured: no student has finished training", markup=False)
        return False
    command = [sys.executable, "-m", "kdbench.train.profile", str(machine.results), *chosen.values()]
    command += ["--data", str(machine.data), "--device", machine.device]
    log = store.suite_folder(suite.name) / "jobs" / "cost.log"
    with (
        store.open_log(log) as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=local.environment(machine, 0)) as process,
    ):
        # What the report needs is imported while that process imports what it needs: before it measures.
        importlib.import_module("kdbench.report.write")
        said, _ = process.communicate()
    found = {}
    for line in said.splitlines():
        if line.startswith("{"):
            one = json.loads(line)
            found[one["cell"]] = one["profile"]
        else:
            console.print(line, markup=False)
    profiles = tuple(
        ProfileRef(suite.dataset["name"], teacher, student, objective, found[cell_id])
        for (student, teacher, objective), cell_id in chosen.items()
        if cell_id in found
    )
    store.put_manifest(suite.name, replace(store.manifest(suite.name), profiles=profiles))
    if process.returncode and not found:
        console.print(f"costs could not be measured; see {log}", markup=False)
    return len(found) == len(chosen)
