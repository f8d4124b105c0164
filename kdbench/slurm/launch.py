"""Cells -> jobs -> arrays that fit the cluster."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdbench import failure
from kdbench.cell import Cell, depended
from kdbench.errors import OwnLimitError, QueueFullError, RequestError
from kdbench.failure import CROWDED, Failure
from kdbench.manifest import ManifestCell
from kdbench.plan.bundle import Bundle, bundles
from kdbench.process import SNAPSHOT_OF, code_version
from kdbench.slurm import submit
from kdbench.slurm.cluster import Cluster
from kdbench.slurm.reconcile import QueueState
from kdbench.slurm.scheduler import Limits
from kdbench.slurm.submissions import Json, Settings, Submission, Submissions, elements_of
from kdbench.store import Store

PACKAGE = Path(__file__).parents[1]
CORES = 'case $(srun --version) in *" 22.05"* | *" 23.02"*) export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK ;; esac'
"""The srun of these releases does not pass on how many cores the job has."""


@dataclass(frozen=True)
class JobRequest:
    """What one job trains, one bundle after another, and what it asks for. `work` orders jobs and has no unit."""

    bundles: tuple[Bundle, ...]
    request: Json
    work: float

    @property
    def ids(self) -> list[str]:
        return [cell_id for bundle in self.bundles for cell_id in bundle.ids]

    @property
    def level(self) -> int:
        """What a cell depends on has a lower one: a teacher, a trial, a later trial, a final training depend on ever more cells."""
        return max((cell.role != "teacher") + len(cell.depends) for bundle in self.bundles for cell in bundle.cells)


@dataclass
class Launched:
    """`deferred` cells wait for room (`why`: which); `refused` ones have a failure beside them; `full`: SLURM accepts no more jobs."""

    submissions: list[Submission] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)
    why: str = ""
    refused: list[str] = field(default_factory=list)
    full: bool = False

    @property
    def jobs(self) -> int:
        return sum(len(one.elements) for one in self.submissions)

    @property
    def cells(self) -> list[str]:
        return [cell_id for one, index in elements_of(self.submissions) for cell_id in one.cells(index)]


def oom_requests(submissions: Sequence[Submission], cluster: Cluster) -> dict[str, list[Json]]:
    """For each cell that ran out of memory: the requests with which it did so alone. A cell that never did has no entry."""
    found: dict[str, list[Json]] = {}
    for one, index in elements_of(submissions):
        alone = len(one.cells(index)) == 1
        for cell_id, kind in one.ended[index].cells.items() if index in one.ended else ():
            if kind in CROWDED and (alone or one.cluster == cluster.name):
                found.setdefault(cell_id, []).extend([one.request] if alone else [])
    return found


def jobs(
    cells: Iterable[Cell],
    rows: Mapping[str, ManifestCell],
    cluster: Cluster,
    work: Callable[[Bundle], float],
    failed: Mapping[str, Sequence[Json]],
) -> list[JobRequest]:
    """Bundles of cells that ask for the same, short ones packed, the longest job first."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        asked = json.dumps(cluster.request_of(rows[cell.id], failed.get(cell.id, ())), sort_keys=True)
        # A teacher is alone, too: the students of a small one do not wait for a large one.
        groups.setdefault((asked, cell.id if cell.id in failed or cell.role == "teacher" else ""), []).append(cell)
    made = [
        (asked, alone, bundle, work(bundle))
        for (asked, alone), some in groups.items()
        for bundle in bundles(some, side_by_side=cluster.students_side_by_side)
    ]
    made.sort(key=lambda one: -one[3])
    packed: dict[tuple[str, str, str, str | None, int], list[tuple[Bundle, float]]] = {}
    for asked, alone, bundle, size in made:
        first = bundle.cells[0]  # the rounds of a search follow each other, so each has jobs of its own
        packed.setdefault((asked, alone, first.role, bundle.teacher, len(first.depends)), []).append((bundle, size))
    longest = made[0][3] if made else 0.0
    found = [
        JobRequest(tuple(some), json.loads(asked), size)
        for (asked, *_), there in packed.items()
        for some, size in _packed(there, cluster.bundles_per_job, longest)
    ]
    return sorted(found, key=lambda job: -job.work)


def _packed(there: Iterable[tuple[Bundle, float]], per_job: int, longest: float) -> list[tuple[list[Bundle], float]]:
    """Bundles, longest first, each in the fullest job that it makes no longer than `longest`, so that jobs end at similar times."""
    packed: list[tuple[list[Bundle], float]] = []
    for bundle, size in there:
        room = [job for job in packed if len(job[0]) < per_job and job[1] + size <= longest * 1.001]
        fullest = max(room, key=lambda job: job[1], default=([], 0.0))
        packed = [job for job in packed if job is not fullest] + [([*fullest[0], bundle], fullest[1] + size)]
    return packed


@dataclass
class Launcher:
    """Submits for one suite. The right to submit must be held."""

    store: Store
    cluster: Cluster
    suite: str
    settings: Settings
    limits: Limits
    now: QueueState

    def launch(self, wanted: Sequence[JobRequest]) -> Launched:
        """Submit what others depend on first; a job waits for those of its teacher and trials, however they end. What SLURM refuses becomes
        a failure of its cells, and the rest is submitted. Raises ClusterError: SLURM does not answer any more; what was submitted stays."""
        self.done = Launched()
        folder, exports = self.store.root / "code", [submit.THREADS]
        self.code: dict[str, str | None] = {"version": code_version(), "changes": _changes(self.store, folder)}
        if self.cluster.snapshot:
            self.code["snapshot"] = copy = str(_copied(self.store, folder, str(self.code["version"])).resolve())
            paths = [copy, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), os.getcwd()]
            exports.append(f"export PYTHONPATH={shlex.quote(os.pathsep.join(paths))}")
        self.job_ids = {cell_id: job.id for cell_id, job in self.now.alive.items() if job.is_live}
        self.room = max(0, self.limits.jobs - self.now.queued) if self.limits.jobs is not None else None
        for level in sorted({job.level for job in wanted}):
            groups: dict[tuple[str, tuple[str, ...]], list[JobRequest]] = {}
            for job in (one for one in wanted if one.level == level):
                needed = {other: depended(role) for bundle in job.bundles for cell in bundle.cells for role, other in cell.depends.items()}
                refused = next((other for other in needed if other in self.done.refused), None)
                if refused is not None:
                    self._fail([job], failure.blocked(f"blocked by {needed[refused]} {refused}: SLURM refuses its request"))
                elif not needed.keys().isdisjoint(self.done.deferred):
                    self.done.deferred += job.ids
                else:
                    undone = (self.job_ids.get(other, "") for other in needed if not self.store.is_done(other))
                    after = tuple(dict.fromkeys(filter(None, undone)))
                    groups.setdefault((json.dumps(job.request, sort_keys=True), after), []).append(job)
            for (request, after), some in groups.items():
                self._arrays(some, json.loads(request), list(after), exports)
        return self.done

    def _arrays(self, some: list[JobRequest], request: Json, after: list[str], exports: list[str]) -> None:
        request["slurm_setup"] = [*request.get("slurm_setup", ()), *exports, *([CORES] if "cpus_per_task" in request else [])]
        if self.cluster.snapshot:
            request["slurm_additional_parameters"] = {**(request.get("slurm_additional_parameters") or {}), "chdir": self.code["snapshot"]}
        size = self.limits.array
        if self.limits.jobs == 0:
            self._fail(some, failure.ended("not granted", "the cluster allows this user no job at all", (), "", ""))
            return
        while some:
            at_once = min(size, len(some), len(some) if self.room is None else self.room)
            if not at_once:
                self.done.why = self.done.why or f"the cluster allows this user {self.limits.jobs} jobs at a time"
                self.done.deferred += [cell_id for job in some for cell_id in job.ids]
                return
            chunk = some[:at_once]
            try:
                submission = self._submit(chunk, request, after)
            except QueueFullError as error:
                size, self.done.why = at_once // 2, str(error)
                if not size and isinstance(error, OwnLimitError) and not self.now.queued and not self.done.submissions:
                    why = f"SLURM refuses the job, and no job of yours is in the queue for which it could wait: {error}"
                    self._refused(some, why, request)
                    return
                if not size:
                    self.room, self.done.full = 0, True
                continue
            except RequestError as error:
                self._refused(some, str(error), request)
                return
            some = some[at_once:]
            self.room = None if self.room is None else self.room - at_once
            self.job_ids |= {cell_id: submission.job_of(index) for index, job in enumerate(chunk) for cell_id in job.ids}

    def _refused(self, some: Iterable[JobRequest], why: str, request: Json) -> None:
        asked = ", ".join(f"{word} {value}" for word, value in request.items() if word != "slurm_setup")
        self._fail(some, failure.ended("not granted", f"{why} (request: {asked})", (), "", ""))

    def _fail(self, some: Iterable[JobRequest], why: Failure) -> None:
        for job in some:
            self.done.refused += job.ids
            self.done.why = self.done.why if why.kind == "blocked" else why.message
            for cell_id in job.ids:
                former = self.store.failure(cell_id)
                before = f"; before that: {former.kind}: {former.message}" if former and former.kind != why.kind else ""
                failure.put(self.store, cell_id, replace(why, message=why.message + before))

    def _submit(self, chunk: Sequence[JobRequest], request: Json, after: list[str]) -> Submission:
        elements = [[bundle.ids for bundle in job.bundles] for job in chunk]
        submission = Submission(
            suite=self.suite,
            token=Submissions.token(elements),
            cluster=self.cluster.name,
            slurm=self.limits.cluster,
            request=request,
            settings=replace(
                self.settings, device=self.cluster.device_of(request), readers=self.cluster.readers_of(request), ranks=self.cluster.ranks
            ),
            elements=elements,
            after=after,
            code=self.code,
        )
        self.done.submissions.append(submit.put(self.store, submission))
        return self.done.submissions[-1]


def _changes(store: Store, folder: Path) -> str | None:
    """A patch, kept in `folder`, of what the checkout has besides its last commit; None outside a checkout, or without changes."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    patch = _git("diff", "HEAD", "--", "kdbench")
    for new in _git("ls-files", "-z", "--others", "--exclude-standard", "--", "kdbench").decode().split("\0"):
        patch += _git("diff", "--no-index", "--", "/dev/null", new) if new else b""
    if not patch:
        return None
    path = folder / f"{hashlib.sha256(patch).hexdigest()[:12]}.patch"
    if not path.exists():
        store.write_bytes(path, patch)
    return str(path.relative_to(store.root))


def _git(*words: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(PACKAGE.parent), *words], capture_output=True, check=False).stdout
    except OSError:
        return b""


def _copied(store: Store, folder: Path, version: str) -> Path:
    """A copy of the package, named by its content, shared by submissions of the same code; whole with `SNAPSHOT_OF`, written last."""
    files = sorted(path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    copy = folder / digest.hexdigest()[:12]
    if not (copy / SNAPSHOT_OF).exists():
        for path in files:
            store.put_file(path, copy / PACKAGE.name / path.relative_to(PACKAGE))
        store.write_text(copy / SNAPSHOT_OF, f"{version}\n")
    return copy
