"""Whether two ways of training give equally good students: two one-sided t tests (TOST) over repeats, with a margin stated before."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ruamel.yaml import YAML
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from benchmarks.peers import DECAY, LR, MOMENTUM, TASK, WEIGHTS, Peer, peer_at
from benchmarks.training import Pictures
from kdbench.cell import Cell
from kdbench.errors import KdbenchError, UsageError
from kdbench.plan import matrix
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read
from kdbench.recipes._base import Recipe
from kdbench.store import Store
from kdbench.store.files import Files
from kdbench.train.build import Setup, load_weights
from kdbench.train.evaluate import evaluate
from kdbench.train.numerics import settle

CONFIDENCE = 0.9
"""Of the interval that lies within the margin where both tests reject at 5 %."""


def run(
    suite: Path, work: Path, data: Path, peer: Peer, peer_path: Path | None, jobs: int, margin: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a suite in `exact`, in `fast` with the same teachers, and by the loop of a peer from the same first weights. Returns the
    tests, and the accuracies. What is in the folder `work` is not trained again."""
    work.mkdir(parents=True, exist_ok=True)
    exact = matrix.expand(read(suite))
    _check(exact, peer)
    store = Store(work / "results")
    _train(suite, work, data, jobs)
    fast = _with_its_teachers(suite, exact, store, work)
    _train(fast, work, data, jobs)
    found = [*_accuracies("kdbench, exact", exact, store), *_accuracies("kdbench, fast", matrix.expand(read(fast)), store)]
    found += _of_peer(exact, store, work, data, peer, peer_path, jobs)
    table = pd.DataFrame(found)
    return tests(table, [("kdbench, fast", "kdbench, exact"), ("kdbench, exact", f"loop of {peer.name}")], margin), table


def tests(accuracies: pd.DataFrame, compared: Sequence[tuple[str, str]], margin: float) -> pd.DataFrame:
    """For each objective, and for the mean over all, whether two ways differ by less than the margin, in points, repeat by repeat."""
    wide = accuracies.pivot_table(index=["objective", "repeat"], columns="way", values="top1")
    rows = []
    for one, other in compared:
        differences = (wide[one] - wide[other]).dropna().unstack("objective")
        for name, values in [*differences.items(), ("mean over all", differences.mean(axis=1))]:
            n, mean, error = len(values), values.mean(), values.sem()
            low, high, p = mean, mean, float(abs(mean) >= margin)
            if error > 0:
                low, high = stats.t.interval(CONFIDENCE, n - 1, mean, error)
                p = float(ttost_paired(values.to_numpy(), 0 * values.to_numpy(), -margin, margin)[0])
            row = {"way": one, "against": other, "objective": name, "n": n, "difference": mean, "low": low, "high": high}
            rows.append({**row, "margin": margin, "p": p, "equal": "yes" if p < 0.05 else "not shown"})
    return pd.DataFrame(rows)


def _check(plan: Plan, peer: Peer) -> None:
    """Raises UsageError: the peer's loop would train with something else than this suite."""
    if plan.suite.numerics["name"] != "exact":
        raise UsageError("leave `numerics` out of the suite: it is trained with `exact` and with `fast`")
    terms = [term for row in plan.rows for term in row.cell.config["objective"]["terms"]]
    if {row.role for row in plan.rows} != {"student", "teacher"} or {term["pairing"] for term in terms} != {"matched"}:
        raise UsageError("a suite for this has students of teachers alone: without `tune`, controls and two stages")
    for row in plan.rows:
        if row.role == "teacher":
            continue
        recipe, objective = Recipe.complete(row.cell.config["recipe"]), row.cell.config["objective"]
        asked = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY, "optimizer": "sgd", "milestones": [], "warmup_epochs": 0}
        wrong = [f"{name}: {value}" for name, value in asked.items() if recipe[name] != value]
        names = [term["loss"] for term in objective["terms"]]
        if wrong:
            raise UsageError(f"the loop of {peer.name} has one learning rate: the recipe of students needs {', '.join(wrong)}")
        if len(names) != 1 or names[0] not in peer.trains:
            raise UsageError(f"'{row.objective}': {peer.name} trains with one of {', '.join(peer.trains)}")
        weights = WEIGHTS[names[0]], TASK.get(names[0], 1.0)
        if (objective["terms"][0]["weight"], objective["task"]) != weights:
            raise UsageError(f"'{row.objective}': {peer.name} has the weight {weights[0]:g} here, and {weights[1]:g} for the task's loss")


def _train(suite: Path, work: Path, data: Path, jobs: int) -> None:
    command = [sys.executable, "-m", "kdbench", "run", str(suite), "--results", str(work / "results"), "--data", str(data)]
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*command, "--jobs", str(jobs), "--no-profile", "--device", "cpu"], capture_output=True, text=True, env=path)
    if done.returncode:
        raise KdbenchError(f"`kdbench run` ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _with_its_teachers(suite: Path, exact: Plan, store: Store, work: Path) -> Path:
    """The suite with `fast`, and with the teachers that were trained in `exact`: else the difference of two teachers, of which each way has
    one, would look like one of the ways."""
    text = YAML(typ="safe").load(suite.read_text())
    for row in exact.teachers:
        record = store.record(row.cell.id)
        assert record is not None
        torch.save(load_weights(store, record), work / f"{row.student}.pt")
        given = text["teachers"][row.student]
        text["teachers"][row.student] = {key: value for key, value in given.items() if key != "recipe"}
        text["teachers"][row.student] |= {"weights": {"file": f"{row.student}.pt"}, "train": False}
    buffer = io.StringIO()
    YAML().dump({**text, "name": f"{exact.suite.name}_fast", "numerics": "fast"}, buffer)
    (work / "fast.yaml").write_text(buffer.getvalue())
    return work / "fast.yaml"


def _accuracies(way: str, plan: Plan, store: Store) -> list[dict[str, Any]]:
    found = []
    for row in plan.rows:
        if row.role == "student":
            record = store.record(row.cell.id)
            assert record is not None
            found.append({"way": way, **_names(row), "top1": 100 * record.result["metrics"]["top1_last"]})
    return found


def _names(row: Any) -> dict[str, Any]:
    return {"objective": row.objective, "repeat": row.repeat, "student": row.student, "teacher": row.teacher}


def _of_peer(plan: Plan, store: Store, work: Path, data: Path, peer: Peer, peer_path: Path | None, jobs: int) -> list[dict[str, Any]]:
    """By the loop of the peer, each student in a process: what is done is in a file, so that it can be interrupted."""
    path, files = work / f"{peer.name.lower().replace(' ', '_')}.csv", Files(work)
    done: dict[str, float] = {}
    if path.exists():
        done = {row["cell"]: float(row["top1"]) for row in csv.DictReader(path.read_text().splitlines())}
    rows = [row for row in plan.rows if row.role == "student"]
    left = [row.cell for row in rows if row.cell.id not in done]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for cell, top1 in zip(left, pool.map(partial(peer_trained, store.root, data, peer_path), left), strict=True):
            done[cell.id] = top1
            files.write_text(path, "cell,top1\n" + "".join(f"{name},{value}\n" for name, value in done.items()))
    return [{"way": f"loop of {peer.name}", **_names(row), "top1": 100 * done[row.cell.id]} for row in rows]


def peer_trained(results: Path, data: Path, peer_path: Path | None, cell: Cell) -> float:
    """The accuracy of a student that starts from the weights of a cell's, after training by the loop of a peer."""
    device = torch.device("cpu")
    settle(cell.config["numerics"], device)
    setup = Setup.of(cell, data, device).with_teacher(Store(results), cell)
    assert setup.teacher is not None
    torch.manual_seed(cell.config["repeat"])
    student, loss = setup.student(cell), cell.config["objective"]["terms"][0]["loss"]
    batch, epochs = cell.config["recipe"]["batch_size"], cell.config["recipe"]["epochs"]
    epoch = peer_at(peer_path).loop(student, setup.teacher.model, loss, Pictures(setup.data), batch, 0)
    for _ in range(epochs):
        epoch()
    return float(evaluate(setup.task, student, setup.data, "test", cell.config["numerics"])["top1"] or 0.0)
