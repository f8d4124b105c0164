"""A real SLURM for each test, on this machine alone (slurm/single_node.sh); without SLURM installed, the tests skip."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdbench.cli import main
from kdbench.plan import matrix
from kdbench.plan.suite import read
from kdbench.run import local
from kdbench.slurm.submissions import Submission, Submissions
from kdbench.store import Store
from kdbench.train.worker import work

HOUSE = Path(__file__).parents[2]
SCRIPT = HOUSE / "slurm" / "single_node.sh"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")

PARTS = '''
"""Losses for disturbing: each step is written down, and takes its time."""

import os
import time
from pathlib import Path

from kdbench import Loss


class Slow(Loss):
    """Mean squared difference of the logits, with a pause."""

    needs = frozenset({"logits", "index"})

    def forward(self, student, teacher, batch):
        if batch.index.device.type != "meta":
            with open(Path(__file__).with_name("steps"), "a") as file:
                file.write(f"{batch.step}\\n")
            time.sleep(float(Path(__file__).with_name("pause_s").read_text()))
        return (student.logits - teacher.logits).square().mean()


class Ranked(Slow):
    """Written down by the first rank alone; the process of each rank is noted, and the second one fails where it is told to."""

    def forward(self, student, teacher, batch):
        here, rank = Path(__file__).parent, os.environ.get("SLURM_PROCID", "0")
        if batch.index.device.type != "meta":
            if (here / "raises").exists() and rank == "1" and batch.step == 4:
                raise ValueError("not on this rank")
            (here / f"process{rank}").write_text(str(os.getpid()))
        if rank == "0":
            return super().forward(student, teacher, batch)
        return (student.logits - teacher.logits).square().mean()


class Raises(Slow):
    """Fails in its first step."""

    def forward(self, student, teacher, batch):
        if batch.index.device.type != "meta":
            raise RuntimeError("no such luck")
        return super().forward(student, teacher, batch)


class Diverges(Slow):
    """Not a number from the second epoch on."""

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) * (float("nan") if batch.epoch else 1.0)


class Eats(Slow):
    """Takes more memory than any of its jobs has."""

    def forward(self, student, teacher, batch):
        if batch.index.device.type != "meta":
            eaten = []
            for _ in range(60):
                eaten.append(b"x" * 100_000_000)
                time.sleep(0.1)
        return super().forward(student, teacher, batch)
'''

SUITE = """
name: disturbed
dataset: {name: digits, per_class: 4}
recipe: {name: short, epochs: 5, batch_size: 16, lr: 0.02, milestones: [3]}
teachers:
  big: {model: small_mobile, widths: [8, 12], min_top1: 0.0}
students:
  small: {model: small_mobile, widths: [4, 6]}
objectives:
  slow: {loss: "parts.py:Slow", weight: 0.1}
repeats: 1
baselines: []
"""
"""A teacher and a student: fifteen steps, of PAUSE_S each."""
STEPS = 15
PAUSE_S = 0.6

CLUSTER = """
timeout_min: 10
cpus_per_task: 1
mem_gb: 1.5
slurm_partition: main
students_side_by_side: 4
lost_after_s: 3
"""


@dataclass
class Lab:
    """A suite with its parts in a folder, a results folder, and the program as a user calls it."""

    folder: Path
    environment: dict[str, str]
    cluster: str = CLUSTER
    suite: str = SUITE
    pause_s: float = PAUSE_S
    known: dict[str, Lab] = field(default_factory=dict)
    begun: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "parts.py").write_text(PARTS)
        self.write()

    def write(self, suite: str | None = None, cluster: str | None = None, pause_s: float | None = None) -> None:
        self.suite, self.cluster = suite or self.suite, cluster or self.cluster
        (self.folder / "pause_s").write_text(str(self.pause_s if pause_s is None else pause_s))
        (self.folder / "disturbed.yaml").write_text(self.suite)
        (self.folder / "cluster.yaml").write_text(self.cluster)

    @property
    def store(self) -> Store:
        return Store(self.folder / "results")

    @property
    def steps(self) -> Counter[int]:
        """How often each step of the slow loss was trained."""
        path = self.folder / "steps"
        return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()

    def submissions(self) -> list[Submission]:
        return Submissions(self.store).read()[0]

    def cells(self, role: str | None = None) -> list[str]:
        return [row.id for row in self.store.manifest("disturbed").cells if role in (None, row.role)]

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "kdbench", *arguments, "--results", str(self.store.root)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder, env=self.environment
        )
        self.begun.append(process)
        return process

    def kdbench(self, *arguments: str, status: int | None = 0) -> str:
        """The program in this process, which has loaded already what it needs."""
        output = CliRunner().invoke(main, [*arguments, "--results", str(self.store.root)])
        assert output.exception is None or isinstance(output.exception, SystemExit), output.exc_info
        assert status is None or output.exit_code == status, output.output + self.logs()
        return output.output

    def submit(self, *more: str, status: int | None = 0) -> str:
        return self.kdbench("run", "disturbed.yaml", "--on", "cluster.yaml", *more, status=status)

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, check=True, timeout=60).stdout

    def jobs(self) -> dict[str, str]:
        """State by job, of all jobs that SLURM remembers."""
        rows = [line.split("|") for line in self.slurm("squeue", "-h", "-r", "-t", "all", "-o", "%F|%K|%T").splitlines()]
        return {job if index == "N/A" else f"{job}_{index}": state for job, index, state in rows}

    def until(self, true: Callable[[], object], what: str, patience_s: float = 90.0) -> None:
        end = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < end, f"{what} never came; {self.jobs()}\n{self.logs()}"
            time.sleep(0.2)

    def until_quiet(self, patience_s: float = 120.0) -> None:
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"}
        self.until(lambda: set(self.jobs().values()) <= over, "the end of all jobs", patience_s)

    def in_training(self, steps: int = 4) -> None:
        self.until(lambda: sum(self.steps.values()) >= steps, f"the slow loss's step {steps}")

    def logs(self) -> str:
        paths = sorted(self.store.root.glob("suites/*/jobs/*/*log.*")) + sorted(self.store.root.glob("suites/*/jobs/*/journal*"))
        return "".join(f"\n== {path.name}\n{path.read_text()[-1500:]}" for path in paths)

    def undisturbed(self) -> Lab:
        """The same suite, run without SLURM and without pauses; once for each suite."""
        if self.suite not in self.known:
            folder = Path(tempfile.mkdtemp(dir=self.folder.parent))
            self.known[self.suite] = other = Lab(folder, self.environment, self.cluster, self.suite, 0.0)
            plan = matrix.expand(read(folder / "disturbed.yaml"))
            local.prepare(plan, other.store)
            for level in sorted({len(cell.depends) for cell in plan.cells.values()}):  # what others depend on comes first
                assert work(other.store, [cell.id for cell in plan.cells.values() if len(cell.depends) == level], folder, "cpu") == 0
        return self.known[self.suite]

    def equals_undisturbed(self) -> None:
        """Every result and the printed tables are those of an undisturbed local run."""
        other = self.undisturbed()
        for cell_id in self.cells():
            mine, its = self.store.record(cell_id), other.store.record(cell_id)
            assert mine is not None and its is not None, cell_id
            assert mine.result == its.result
        # The last line names the report's file, which lies in each lab's own results folder.
        mine, its = (lab.kdbench("report", "disturbed", status=None).replace(str(lab.store.root), "results") for lab in (self, other))
        assert mine == its


def free_ports() -> int:
    """The first of three ports in a row that nobody listens at."""
    for start in range(20000 + os.getpid() % 4000 * 3, 60000, 3):
        try:
            for port in range(start, start + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return start
        except OSError:
            continue
    raise AssertionError("no ports are free")


@pytest.fixture(scope="session")
def known() -> dict[str, Lab]:
    """Undisturbed runs, by suite."""
    return {}


@pytest.fixture
def lab(tmp_path: Path, known: dict[str, Lab], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab with a cluster of its own; `@pytest.mark.cluster("--cpus", "1", ...)` gives options of single_node.sh."""
    path = f"/usr/sbin:/sbin:{os.environ['PATH']}"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing and "KDBENCH_NO_SKIP" not in os.environ:
        pytest.skip(f"no SLURM is installed here: there is no {', '.join(missing)}")
    folder = tempfile.mkdtemp(prefix="kdb-", dir="/tmp")
    mark = request.node.get_closest_marker("cluster")
    options = ["--folder", folder, "--port", str(free_ports()), *(mark.args if mark else ("--cpus", "4"))]
    environment = {**os.environ, "PATH": path, "SLURM_CONF": f"{folder}/slurm.conf", "KDBENCH_SLURM": folder, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(HOUSE)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    started = Lab(tmp_path, environment, known=known)
    try:
        # To a file: the daemons keep what they inherit open.
        with open(Path(folder) / "started", "w") as output:
            subprocess.run(
                [str(SCRIPT), "start", *options], stdout=output, stderr=output, stdin=subprocess.DEVNULL, timeout=120, check=False
            )
        assert "export SLURM_CONF" in (Path(folder) / "started").read_text(), (Path(folder) / "started").read_text()
        yield started
    finally:
        for process in started.begun:
            if process.poll() is None:
                process.kill()
            process.communicate()
        subprocess.run(
            [str(SCRIPT), "stop", "--folder", folder, "--clean"], env=environment, stdin=subprocess.DEVNULL, timeout=120, check=False
        )
