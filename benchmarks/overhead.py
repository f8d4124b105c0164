"""What kdbench costs beside the arithmetic: its loop, checkpoints, planning, and starting."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from benchmarks.timing import Arm, Budget, interleaved, named, quartiles, ratio
from benchmarks.training import Nets, benches
from kdbench.losses._base import Batch
from kdbench.plan import matrix, summary
from kdbench.plan.suite import read
from kdbench.store import Store
from kdbench.train.checkpoint import CHECKPOINT_EVERY_S, Saver
from kdbench.train.nursery import LOADED

LIMIT = 0.02
STEPS_PER_EPOCH = 391
"""Of 50,000 images in batches of 128."""


def suite_of(cells: int) -> str:
    """A suite with about so many cells: ten objectives, two students, one teacher."""
    return f"""
name: large
dataset: cifar100
recipe: short
teachers: {{big: {{model: cifar_resnet32x4}}}}
students: {{small: {{model: cifar_resnet8x4}}, other: {{model: cifar_resnet20}}}}
objectives: [ce, kd, dkd, nkd, sp, cc, rkd, pkt, at, nst]
repeats: {max(cells // 20, 2)}
baselines: [ce, kd]
"""


def planning(cells: int, folder: Path) -> Callable[[], Any]:
    """What `kdbench plan` does after its imports."""
    path = folder / f"large{cells}.yaml"
    path.write_text(suite_of(cells))
    return lambda: summary.as_text(path, folder / "results")


def n_cells(cells: int, folder: Path) -> int:
    path = folder / f"large{cells}.yaml"
    path.write_text(suite_of(cells))
    return len(matrix.expand(read(path)).cells)


def run(
    nets: Nets, loss: str, cells: int, device: torch.device, budget: Budget, once: Budget, least: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows, and the turns. `once` is the budget of what takes seconds, `least` the number of starts of a process."""
    rows, turns = [], []

    def add(what: str, seconds: pd.Series, share: float | None = None, limit: float | None = None, note: str = "") -> None:
        rows.append({"what": what, **quartiles(seconds), "turns": len(seconds), "share": share, "limit": limit, "note": note})

    with benches(nets, [loss], device, ["exact"]) as found, TemporaryDirectory() as name:
        bench = found["exact"]
        member, steps = bench.members[0], bench.steps
        arms = [Arm("bare loop", partial(bench.bare, member)), Arm("kdbench", partial(bench.epoch, bench.members, bench.teacher))]
        times = interleaved(arms, budget, device)
        times["seconds"] /= steps
        turns.append(named(times, what="a step"))
        bare, own = (times[times["arm"] == arm.name] for arm in arms)
        add("a step of a bare loop with the same arithmetic", bare["seconds"])
        add(
            "a step of kdbench's loop",
            own["seconds"],
            ratio(own, bare)["ratio"] - 1,
            LIMIT,
            "share: of the bare step, beside the arithmetic",
        )
        sized = interleaved(_gradient_arms(bench), once, device)
        turns.append(named(sized, what="sizes of gradients"))
        with_sizes, without = (sized[sized["arm"] == arm]["seconds"].reset_index(drop=True) for arm in ("with", "without"))
        extra = with_sizes - without
        share = float(extra.median() / without.median() / STEPS_PER_EPOCH)
        add("sizes of the gradients of terms, once an epoch", extra, share, None, f"share: of an epoch of {STEPS_PER_EPOCH} steps")
        saver = Saver(Store(name), bench.setup.data, {}, log=lambda _: None)
        saves = _timed(lambda: saver.save(member, (0, 1), must=True), once)
        share = float(saves.median()) / CHECKPOINT_EVERY_S
        add("a checkpoint of one student", saves, share, None, f"share: one every {CHECKPOINT_EVERY_S:g} s")
        folder = Path(name)
        add(f"kdbench plan, {n_cells(cells, folder)} cells, after imports", _timed(planning(cells, folder), once))
    imports = "; ".join(f"import {module}" for module in LOADED)
    starts = {
        "python -c pass": ["-c", "pass"],
        "kdbench --help": ["-m", "kdbench", "--help"],
        "import torch": ["-c", "import torch"],
        "what a worker imports": ["-c", imports],
    }
    found_s: dict[str, list[float]] = {what: [] for what in starts}
    for _ in range(least):
        for what, words in starts.items():
            began_s = time.perf_counter()
            subprocess.run([sys.executable, *words], capture_output=True, check=True, cwd=Path(__file__).parents[1])
            found_s[what].append(time.perf_counter() - began_s)
    for what, seconds in found_s.items():
        add(what, pd.Series(seconds), note="a process, from start to end")
    return pd.DataFrame(rows), pd.concat(turns)


def _gradient_arms(bench: Any) -> Sequence[Arm]:
    """A step with and without what the first of an epoch measures."""
    member = bench.members[0]
    index, views = next(bench.plan.epoch(0))
    inputs, targets = bench.plan.data.batch("train", index, views)
    batch, known = Batch(targets, torch.as_tensor(index, device=member.device), 0, 1), bench.teacher.taps(inputs)
    return [Arm(name, partial(member.step, inputs, targets, batch, known, name == "with")) for name in ("with", "without")]


def _timed(act: Callable[[], Any], budget: Budget) -> pd.Series:
    return interleaved([Arm("", act)], budget, torch.device("cpu"))["seconds"]
