"""A small matrix of losses from start to end: `kdbench run`, and the loop of a peer once for each loss, each as processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks.losses import built
from benchmarks.peers import Peer
from benchmarks.timing import quartiles
from benchmarks.training import Nets, Pictures, benches, nets_of
from kdbench.errors import KdbenchError, UsageError
from kdbench.losses._base import TAPS, Loss
from kdbench.plan.provider import SERVED, keeps_relation
from kdbench.store import Store


@dataclass(frozen=True)
class Way:
    """How a peer uses the machine."""

    processes: int
    threads: int
    workers: int


def ways(cores: int) -> list[Way]:
    return list(dict.fromkeys([Way(cores, 1, 0), Way(1, cores, 0), Way(1, cores, cores), Way(cores, 1, 1)]))


class Ours:
    """`kdbench run` of a suite in a folder. It first trains the teacher, which is no part of any measurement."""

    def __init__(self, nets: Nets, losses: Sequence[str], numerics: str, device: str, jobs: int, folder: Path):
        folder.mkdir()
        plan = nets.plan(folder, losses, numerics)
        self.students = [row.cell.id for row in plan.rows if row.role == "student"]
        self.store, self.epochs = Store(folder / "results"), nets.epochs
        self.command = [sys.executable, "-m", "kdbench", "run", str(folder / f"{numerics}.yaml"), "--results", str(folder / "results")]
        self.command += ["--data", str(folder), "--device", device, "--jobs", str(jobs), "--no-profile"]
        self.run("live")
        cold = {"live": self.run("live")[0]}
        self.fill_s = max(self.run("table")[0] - cold["live"], 0.0)

    def run(self, provider: str) -> tuple[float, float]:
        """Seconds of the whole, and of one epoch of all students (training and test)."""
        for cell in self.students:
            shutil.rmtree(self.store.file(cell, "record.json").parent, ignore_errors=True)
        wall_s = _run([*self.command, "--teacher", provider])
        starts = [[line["at"] for line in self.store.lines(self.store.file(cell, "progress.jsonl"))] for cell in self.students]
        return wall_s, max(one[-1] - one[0] for one in starts) / (self.epochs - 1)


def theirs(nets: Nets, losses: Sequence[str], peer_path: Path | None, way: Way) -> tuple[float, float]:
    """As `Ours.run`, for the peer's loop in a process for each loss, so many at a time. The epochs are counted as if none ever waited."""
    options = {**asdict(nets), "path": None if peer_path is None else str(peer_path.resolve()), **asdict(way)}
    commands = [[sys.executable, "-m", "benchmarks", "peer-run", json.dumps({**options, "loss": loss})] for loss in losses]
    began_s, epochs_s = time.perf_counter(), []
    while commands:
        chosen, commands = commands[: way.processes], commands[way.processes :]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment(way.threads)) for command in chosen]
        for process in started:
            said, _ = process.communicate()
            if process.returncode:
                raise KdbenchError(f"the peer's run failed with status {process.returncode}: its error is above")
            epochs_s += json.loads(said.splitlines()[-1])["epochs_s"]
    return time.perf_counter() - began_s, sum(epochs_s) / nets.epochs / way.processes


def peer_run(peer: Peer, given: dict[str, Any]) -> list[float]:
    """One run of a peer: seconds of each epoch, of training and test, which this benchmark does for all peers alike."""
    torch.set_num_threads(given["threads"])
    nets = Nets(*(given[name] for name in ("teacher", "student", "images", "batch_size", "epochs")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with benches(nets, [given["loss"]], device, ["exact"]) as found:
        bench = found["exact"]
        torch.set_num_threads(given["threads"])
        student, teacher = nets_of(bench)
        epoch = peer.loop(student, teacher, given["loss"], Pictures(bench.setup.data), nets.batch_size, given["workers"])
        test = DataLoader(Pictures(bench.setup.data, "test"), batch_size=max(nets.batch_size // 2, 1), num_workers=given["workers"] // 2)
        seconds = []
        for _ in range(nets.epochs):
            began_s = time.perf_counter()
            epoch()
            _validate(student, test, device)
            seconds.append(time.perf_counter() - began_s)
    return seconds


def _validate(student: Any, test: DataLoader, device: torch.device) -> None:
    student.eval()
    with torch.no_grad():
        for inputs, targets, _ in test:
            logits = student(inputs.to(device)).logits
            F.cross_entropy(logits, targets.to(device)).item(), (logits.argmax(1) == targets.to(device)).sum().item()


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONPATH": str(Path(__file__).parents[1])}


def _run(command: Sequence[str]) -> float:
    began_s = time.perf_counter()
    found = subprocess.run(command, capture_output=True, text=True, env=_environment(1))
    if found.returncode:
        raise KdbenchError(f"`kdbench run` ended with status {found.returncode}:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    return time.perf_counter() - began_s


def _is_served(loss: Loss) -> bool:
    needs = loss._needs()
    return not needs & set(TAPS) - SERVED or keeps_relation(needs, loss.relation, loss.couples, "matched")


def matrix(
    nets: Nets, losses: Sequence[str], peer: Peer, peer_path: Path | None, device: str, jobs: int, tried: Sequence[Way], rounds: int,
    numerics: Sequence[str] = ("exact", "fast"),
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Each arm has its turn in every round; those with a table only if it can serve all of the losses. The peer has the way of using the
    machine that was fastest in a first round, and beside it, where that trains several losses at once, the fastest with one at a time,
    which is what its own scripts do."""
    if nets.epochs < 2:
        raise UsageError("the time of an epoch is taken between the starts of two: give at least --epochs 2")
    if strange := [loss for loss in losses if loss not in peer.trains]:
        raise UsageError(f"{peer.name} cannot train with {', '.join(strange)} here: choose among {', '.join(peer.trains)}")
    # A bundle is served by a table only if all of its losses are.
    providers = ("live", "table") if all(_is_served(built(loss)) for loss in losses) else ("live",)
    with TemporaryDirectory() as name:
        ours = {one: Ours(nets, losses, one, device, jobs, Path(name) / one) for one in numerics}
        first = {way: theirs(nets, losses, peer_path, way) for way in tried}
        fastest = sorted(first, key=lambda one: first[one][0])
        of_peer = {peer.name: fastest[0]}
        if single := [way for way in fastest if way.processes == 1 < fastest[0].processes]:
            of_peer[f"{peer.name}, one loss at a time"] = single[0]
        arms: dict[tuple[str, str], Callable[[], tuple[float, float]]] = {
            (one, provider): lambda one=one, provider=provider: ours[one].run(provider) for one in numerics for provider in providers
        }
        arms |= {(one, "live"): lambda way=way: theirs(nets, losses, peer_path, way) for one, way in of_peer.items()}
        turns = []
        for turn in range(rounds):
            for (one, provider), act in arms.items():
                wall_s, epoch_s = act()
                turns.append({"place": len(turns), "round": turn, "arm": one, "teacher": provider, "wall_s": wall_s, "epoch_s": epoch_s})
    times, rows = pd.DataFrame(turns), []
    at_best = times[times["arm"] == peer.name].set_index("round")
    for one, provider in arms:
        own = times[(times["arm"] == one) & (times["teacher"] == provider)].set_index("round")
        loop, way = (f"loop of {one}", of_peer[one]) if one in of_peer else (f"kdbench, {one}", Way(jobs, 1, 0))
        row = {"loop": loop, "teacher": provider if provider == "live" else "filled table", "k": len(losses), **asdict(way)}
        row |= {f"wall_{name}": value for name, value in quartiles(own["wall_s"], "s", 1).items()}
        row |= {f"epoch_{name}": value for name, value in quartiles(own["epoch_s"], "s", 1).items()}
        row |= {f"{kind}_ratio": float((own[f"{kind}_s"] / at_best[f"{kind}_s"]).median()) for kind in ("wall", "epoch")}
        if provider == "table":
            live = times[(times["arm"] == one) & (times["teacher"] == "live")].set_index("round")
            saved_s, fill_s = float((live["wall_s"] - own["wall_s"]).median()), ours[one].fill_s
            row |= {"fill_s": fill_s, "saved_s": saved_s, "break_even_runs": fill_s / saved_s if saved_s > 0 else float("inf")}
        rows.append(row)
    tries = [
        {"place": -1, "round": -1, "arm": f"{peer.name}, {one}", "teacher": "live", "wall_s": a, "epoch_s": b}
        for one, (a, b) in first.items()
    ]
    return pd.DataFrame(rows), pd.concat([pd.DataFrame(tries), times], ignore_index=True)
