"""A worker: `python -m kdbench.run.worker RESULTS CELL...` trains these cells, grouped into bundles, in this process.

The payload is the results folder and cell ids, here as on a cluster; everything else is read from disk. It may be killed at any
moment: whatever it was told to do can be told again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kdbench import parts
from kdbench.cell import Cell
from kdbench.errors import ClaimError, KdbenchError, StoppedError
from kdbench.plan.bundle import SIDE_BY_SIDE, Bundle, bundles
from kdbench.run import failure
from kdbench.run.failure import STOPPED
from kdbench.store import Store, slurm_job

SNAPSHOT_OF = "snapshot_of"
"""In the folder of a copied code: the file that says of which version it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    reader = argparse.ArgumentParser(prog="kdbench.run.worker", description=__doc__)
    reader.add_argument("results", type=Path)
    reader.add_argument("cells", nargs="+")
    reader.add_argument("--data", type=Path, default=Path(os.environ.get("KDBENCH_DATA", "data")))
    reader.add_argument("--device", default="auto")
    reader.add_argument("--checkpoint-every", type=float, default=None, metavar="SECONDS")
    reader.add_argument("--side-by-side", type=int, default=SIDE_BY_SIDE)
    reader.add_argument("--readers", type=int, default=1, metavar="N", help="processes that read ahead, for data in files")
    reader.add_argument("--steps", type=int, default=None, metavar="N", help="stop after so many steps, as if asked to")
    asked = reader.parse_args(arguments)
    stop = Stop(asked.steps)
    return work(
        Store(asked.results), asked.cells, asked.data, asked.device, asked.checkpoint_every, asked.side_by_side, stop, asked.readers
    )


class Stop:
    """Set by SIGTERM, SIGUSR2 and SIGINT (which a terminal sends to all of its processes), or after so many steps; the loop looks at
    it at each step."""

    def __init__(self, steps: int | None = None) -> None:
        self.asked, self.steps = False, steps
        for name in ("SIGTERM", "SIGUSR2", "SIGINT"):
            signal.signal(getattr(signal, name), self._set)

    def _set(self, *_: Any) -> None:
        self.asked = True

    def __call__(self) -> bool:
        if self.steps is not None:
            self.steps -= 1
        return self.asked or (self.steps is not None and self.steps < 0)


def work(
    store: Store,
    ids: Sequence[str],
    data_folder: Path,
    device: str = "auto",
    checkpoint_every_s: float | None = None,
    side_by_side: int = SIDE_BY_SIDE,
    stop: Callable[[], bool] = lambda: False,
    readers: int = 0,
) -> int:
    """Train the cells that nobody else is training and that are not done. Returns the exit status."""
    from kdbench.run.checkpoint import CHECKPOINT_EVERY_S, checkpoint

    every_s = CHECKPOINT_EVERY_S if checkpoint_every_s is None else checkpoint_every_s
    with ExitStack() as claims:
        cells: list[Cell] = []
        saved: dict[str, Any] = {}
        status = 0
        for cell_id in ids:
            try:
                claims.enter_context(store.claim(cell_id))
                if not store.is_done(cell_id):  # asked again under the claim: it may have been finished in between
                    cell = store.cell(cell_id)
                    saved[cell_id] = checkpoint(store, cell, failure.note)
                    cells.append(cell)
            except ClaimError as error:
                failure.note(f"left alone: {error}")
            except Exception as error:
                status = 1
                failure.note(f"{cell_id}: {error}")
                failure.put(store, cell_id, failure.describe(error, traceback.format_exc()))
        positions = {cell_id: state["position"] for cell_id, state in saved.items() if state}
        for bundle in bundles(cells, positions, side_by_side):
            if getattr(stop, "asked", False):  # before data and teacher are loaded for nothing
                return STOPPED
            try:
                if not _train_bundle(store, bundle, saved, data_folder, device, every_s, stop, readers):
                    status = 1
            except StoppedError as error:
                failure.note(str(error))
                return STOPPED
            except Exception as error:
                text = traceback.format_exc()
                failure.note(text)
                status = 1
                for cell in bundle.cells:
                    if not store.is_done(cell.id):
                        failure.put(store, cell.id, failure.describe(error, text))
        return status


def _train_bundle(
    store: Store,
    bundle: Bundle,
    saved: dict[str, Any],
    data_folder: Path,
    device_name: str,
    every_s: float,
    stop: Callable[[], bool],
    readers: int,
) -> bool:
    """Train one bundle. Returns whether all of its cells have a record afterwards."""
    import torch

    from kdbench.run.build import load_data, make_objective, make_student, make_task
    from kdbench.run.checkpoint import Saver
    from kdbench.run.loop import train
    from kdbench.run.member import Member
    from kdbench.run.numerics import settle
    from kdbench.run.stream import BatchPlan
    from kdbench.run.teacher import Live, load_teacher

    first = bundle.cells[0]
    device = torch.device(choose_device(device_name))
    settle(first.config["numerics"], device)
    task, data = make_task(first), load_data(first, data_folder, device)
    data.read_with(readers)
    teacher = teacher_cell = provider = None
    if bundle.teacher:
        teacher, teacher_cell = load_teacher(store, bundle.teacher, first, data, task, device)
        provider = Live(teacher, first.config["numerics"])
    plan = BatchPlan.of(first.config, data)
    saver = Saver(store, data, circumstance(device, len(bundle.cells)), every_s, failure.note)
    members, start = [], (0, 0)
    for cell in bundle.cells:
        state = saved.get(cell.id)
        try:
            objective = make_objective(cell, data, task, device, teacher, teacher_cell and teacher_cell.config["student"])
            member = Member(cell, make_student(cell, data, task, device), objective, task, plan.steps)
            if state:
                start = tuple(state["position"])
                member.restore(state["state"], start[0] * plan.steps + start[1])
                saver.trained_before_s[cell.id] = state["trained_s"]
            saver.sources[cell.id] = parts.sources_of(cell.config)
            members.append(member)
        except Exception as error:  # one part that cannot be built is no reason for the others not to train
            failure.note(f"{cell.id}: {type(error).__name__}: {error}")
            failure.put(store, cell.id, failure.describe(error, traceback.format_exc()))
    if not members:
        return False
    failure.note(f"bundle of {len(members)} from epoch {start[0] + 1}: {' '.join(bundle.ids)}")
    train(members, plan, provider, saver, start, stop)
    return all(store.is_done(cell_id) for cell_id in bundle.ids)


def choose_device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        # Never in silence on the CPU: the job would hold its GPU, and end next week.
        raise KdbenchError(
            f"a GPU was asked for, and torch {torch.__version__} sees none on {socket.gethostname()}: is its driver's CUDA older?"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def circumstance(device: Any, beside: int) -> dict[str, Any]:
    """What may differ between two honest runs, kept beside the result."""
    import torch

    from kdbench import __version__

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        # They decode, resize and crop what is read from files.
        **{name: installed(name) for name in ("timm", "torchvision", "pillow")},
        "kdbench": __version__,
        "code": code_version(),
        "threads": torch.get_num_threads(),
        "side_by_side": beside,
        "job": slurm_job(),
    }


def installed(package: str) -> str | None:
    """The version of a package; None where another stands in for it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model where the system tells it: times on two of them cannot be compared."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu {models[0] if models else platform.processor() or platform.machine()}"


def code_version() -> str:
    """The commit of this code, with a mark when the tree has changed since; 'installed' outside a checkout."""
    import subprocess

    here = Path(__file__).parents[2]
    if (here / SNAPSHOT_OF).exists():  # a copy that was made for a SLURM job
        return (here / SNAPSHOT_OF).read_text().strip()
    if not (here / ".git").exists():
        return "installed"
    try:
        described, new = (
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True).stdout.strip()
            for words in (
                ("describe", "--always", "--dirty", "--abbrev=12"),
                ("ls-files", "--others", "--exclude-standard", "--", "kdbench"),
            )
        )
    except OSError:  # a node without git
        return "unknown"
    version = described or "unknown"
    return f"{version}-dirty" if new and not version.endswith("-dirty") else version


if __name__ == "__main__":
    sys.exit(main())
