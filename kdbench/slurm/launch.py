"""Cells -> jobs -> arrays that fit the cluster. A note lies on disk before sbatch is called; nothing is submitted twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.cell import Cell
from kdbench.errors import ClusterError, FullError, RequestError
from kdbench.plan.bundle import Bundle, bundles
from kdbench.run import failure
from kdbench.run.failure import CROWDED
from kdbench.run.worker import SNAPSHOT_OF, code_version
from kdbench.slurm.cluster import Cluster, Row
from kdbench.slurm.ledger import Json, Ledger, Note, elements_of
from kdbench.slurm.reconcile import Standing, payload
from kdbench.slurm.scheduler import Limits
from kdbench.store import Store
from kdbench.through_submitit import discard, submit

THREADS = "export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1"
"""One core a process, as on a single machine."""
CORES = 'case $(srun --version) in *" 22.05"* | *" 23.02"*) export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK ;; esac'
"""The srun of these releases does not hand on how many cores the job has."""


@dataclass(frozen=True)
class Job:
    """What one job will train, one bundle after another, and what is asked for it. `work` orders jobs and has no unit of its own."""

    bundles: tuple[Bundle, ...]
    request: Json
    work: float

    @property
    def ids(self) -> list[str]:
        return [cell_id for bundle in self.bundles for cell_id in bundle.ids]

    @property
    def teacher(self) -> str | None:
        return self.bundles[0].teacher


@dataclass
class Launched:
    """`notes` were submitted; `deferred` cells wait for room in the queue, and `why` says which; `refused` are told why beside
    them; `full`: SLURM itself would take no more."""

    notes: list[Note] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)
    why: str = ""
    refused: list[str] = field(default_factory=list)
    full: bool = False

    @property
    def jobs(self) -> int:
        return sum(len(note.elements) for note in self.notes)

    @property
    def cells(self) -> list[str]:
        return [cell_id for note, index in elements_of(self.notes) for cell_id in note.cells(index)]


# Out of memory: alone, then a bigger request


def ladder(notes: Sequence[Note], cluster: Cluster) -> dict[str, list[Json]]:
    """For each cell that ran out of memory: what it had asked for when it did so alone. A cell that never did has no entry."""
    found: dict[str, list[Json]] = {}
    for note, index in elements_of(notes):
        alone = len(note.cells(index)) == 1
        for cell_id, kind in note.ended.get(str(index), {}).get("cells", {}).items():
            if kind in CROWDED and (alone or note.cluster == cluster.name):
                found.setdefault(cell_id, []).extend([note.request] if alone else [])
    return found


def memory(request: Mapping[str, Any]) -> str:
    """The memory that a request asks for, in words."""
    return ", ".join(
        f"{word} {request[word]:g}" if word == "mem_gb" else f"{word} {request[word]}" for word in request if "mem" in word
    ) or ("the cluster's default")


def jobs(
    cells: Iterable[Cell], rows: Mapping[str, Row], cluster: Cluster, work: Callable[[Bundle], float], failed: Mapping[str, Sequence[Json]]
) -> list[Job]:
    """Bundles of cells that ask for the same, short ones packed, the longest job first."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        asked = json.dumps(cluster.request_of(rows[cell.id], failed.get(cell.id, ())), sort_keys=True)
        # A teacher is alone, too: students of the small one do not wait for the large one.
        groups.setdefault((asked, cell.id if cell.id in failed or cell.role == "teacher" else ""), []).append(cell)
    made = [
        (asked, alone, bundle, work(bundle))
        for (asked, alone), some in groups.items()
        for bundle in bundles(some, side_by_side=cluster.side_by_side)
    ]
    made.sort(key=lambda one: -one[3])
    packed: dict[tuple[str, str, str, str | None], list[tuple[Bundle, float]]] = {}
    for asked, alone, bundle, size in made:
        packed.setdefault((asked, alone, bundle.cells[0].role, bundle.teacher), []).append((bundle, size))
    longest = made[0][3] if made else 0.0
    found = [
        Job(tuple(bundle for bundle, _ in some), json.loads(asked), sum(size for _, size in some))
        for (asked, *_), there in packed.items()
        for some in _packed(there, cluster.bundles_per_job, longest)
    ]
    return sorted(found, key=lambda job: -job.work)


def _packed(there: Iterable[tuple[Bundle, float]], per_job: int, longest: float) -> list[list[tuple[Bundle, float]]]:
    """Bundles, longest first, put together: each into the fullest job that it makes no longer than `longest`, so that jobs end alike."""
    packed: list[list[tuple[Bundle, float]]] = []

    def work(job: list[tuple[Bundle, float]]) -> float:
        return sum(size for _, size in job)

    for bundle, size in there:
        room = [job for job in packed if len(job) < per_job and work(job) + size <= longest * 1.001]
        if room:
            max(room, key=work).append((bundle, size))
        else:
            packed.append([(bundle, size)])
    return packed


@dataclass
class Launcher:
    """Submits for one suite. The right to submit must be held."""

    store: Store
    cluster: Cluster
    suite: str
    settings: Json
    limits: Limits
    now: Standing

    def launch(self, wanted: Sequence[Job]) -> Launched:
        """Teachers first; a student's job waits for its teacher's, whichever way that ends. What SLURM refuses is a failure of its
        cells, and the rest goes on.

        Raises:
            ClusterError: SLURM does not answer any more. What was submitted before stays.
        """
        self.done = Launched()
        self.code, exports = self._code()
        self.places = {cell_id: place.job for cell_id, place in self.now.alive.items() if place.seen and place.seen.is_live}
        self.room = max(0, self.limits.jobs - self.now.queued) if self.limits.jobs is not None else None
        for role in ("teacher", "student"):
            groups: dict[tuple[str, str], list[Job]] = {}
            for job in wanted:
                if job.bundles[0].cells[0].role != role:
                    continue
                teacher = job.teacher
                if teacher is not None and teacher in self.done.deferred:
                    self.done.deferred += job.ids
                    continue
                if teacher is not None and teacher in self.done.refused:
                    self._fail([job], failure.blocked(f"blocked by teacher {teacher}: SLURM refuses what is asked for it"))
                    continue
                waits = teacher is not None and teacher in self.places and not self.store.is_done(teacher)
                after = self.places[teacher] if teacher is not None and waits else ""
                groups.setdefault((json.dumps(job.request, sort_keys=True), after), []).append(job)
            for (request, after), some in groups.items():
                self._arrays(some, json.loads(request), [after] if after else [], exports)
        return self.done

    def _arrays(self, some: list[Job], request: Json, after: list[str], exports: list[str]) -> None:
        request["slurm_setup"] = [*request.get("slurm_setup", ()), THREADS, *exports, *([CORES] if "cpus_per_task" in request else [])]
        if self.cluster.snapshot:
            request["slurm_additional_parameters"] = {**request.get("slurm_additional_parameters", {}), "chdir": self.code["snapshot"]}
        size = self.limits.array
        if self.limits.jobs == 0:
            self._fail(some, failure.ended("not granted", "the cluster lets this user have no job at all", (), "", ""))
            return
        while some:
            at_once = min(size, len(some), len(some) if self.room is None else self.room)
            if not at_once:
                self._defer(some, self.done.why or f"the cluster takes {self.limits.jobs} jobs of this user at a time")
                return
            chunk = some[:at_once]
            try:
                note = self._submit(chunk, request, after)
            except FullError as error:
                size, self.done.why = at_once // 2, str(error)
                if not size:
                    self.room, self.done.full = 0, True
                continue
            except RequestError as error:
                asked = ", ".join(f"{word} {value}" for word, value in request.items() if word != "slurm_setup")
                self._fail(some, failure.ended("not granted", f"{error} (asked for: {asked})", (), "", ""))
                return
            some = some[at_once:]
            self.room = None if self.room is None else self.room - at_once
            self.places |= {cell_id: note.job_of(index) for index, job in enumerate(chunk) for cell_id in job.ids}

    def _defer(self, some: Iterable[Job], why: str) -> None:
        self.done.why = why
        for job in some:
            self.done.deferred += job.ids

    def _fail(self, some: Iterable[Job], why: Json) -> None:
        for job in some:
            self.done.refused += job.ids
            self.done.why = why["message"]
            for cell_id in job.ids:
                former = self.store.failure(cell_id)
                before = f"; before that: {former['class']}: {former['message']}" if former and former["class"] != why["class"] else ""
                failure.put(self.store, cell_id, {**why, "message": why["message"] + before})

    def _submit(self, chunk: Sequence[Job], request: Json, after: list[str]) -> Note:
        elements = [[bundle.ids for bundle in job.bundles] for job in chunk]
        note = Note(
            suite=self.suite,
            token=Ledger.token(elements),
            cluster=self.cluster.name,
            slurm=self.limits.cluster,
            request=request,
            settings={**self.settings, "device": self.cluster.device_of(request), "readers": self.cluster.readers_of(request)},
            elements=elements,
            after=after,
            code=self.code,
        )
        put(self.store, note)
        self.done.notes.append(note)
        return note

    def _code(self) -> tuple[Json, list[str]]:
        """What is run: its version, what was changed since, and, if asked for, a copy; with the lines of shell that make jobs use it."""
        folder = self.store.root / "code"
        said: Json = {"version": code_version(), "changes": _changes(self.store, folder)}
        if not self.cluster.snapshot:
            return said, []
        said["snapshot"] = str(_copied(self.store, folder, said["version"]).resolve())
        paths = [said["snapshot"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), os.getcwd()]
        return said, [f"export PYTHONPATH={os.pathsep.join(paths)!r}"]


def again(store: Store, old: Note, index: int, cells: Sequence[str], after: Sequence[str], later: bool = False) -> Note:
    """Submit cells of a submission's element again, as a job of their own. `later`: not at once, and each time later.

    Raises:
        KdbenchError: SLURM refuses, or the right to submit could not be had.
    """
    request = dict(old.request)
    if later:
        request["slurm_additional_parameters"] = {
            **request.get("slurm_additional_parameters", {}),
            "begin": f"now+{min(60 * 2**old.moves, 3600)}",
        }
    kept = [[cell_id for cell_id in bundle if cell_id in cells] for bundle in old.elements[index]]
    elements = [[bundle for bundle in kept if bundle]]
    with store.submitting():
        note = Note(
            suite=old.suite,
            token=Ledger.token(elements),
            cluster=old.cluster,
            slurm=old.slurm,
            request=request,
            settings=old.settings,
            elements=elements,
            after=list(after),
            code=old.code,
            moves=old.moves + 1,
        )
        put(store, note)
    return note


def put(store: Store, note: Note) -> None:
    """Write the note, call sbatch, complete the note. Killed in between, the job is found again by its name.

    Raises:
        RequestError, FullError: SLURM refuses; the note is gone then, and former failures stay.
        ClusterError: it does not answer; the note stays, for the jobs may be there.
    """
    from kdbench.slurm.job import train

    ledger = Ledger(store)
    ledger.write(note)
    request = {**note.request, "name": note.name}
    if note.after:
        request["slurm_dependency"] = "afterany:" + ":".join(note.after)
    payloads = [payload(ledger, note, index) for index in range(len(note.elements))]
    former = {cell_id: found for _, cells, _, _ in payloads for cell_id in cells if (found := store.failure(cell_id))}
    for cell_id in former:
        store.clear_failure(cell_id)
    try:
        submitted = submit(ledger.folder(note).resolve(), request, train, payloads)
    except ClusterError as error:
        if isinstance(error, (RequestError, FullError)):
            discard(ledger.folder(note))
        for cell_id, found in former.items():
            failure.put(store, cell_id, found)
        raise
    note.job, note.at = submitted[0].split("_")[0], time.time()
    ledger.write(note)


def _changes(store: Store, folder: Path) -> str | None:
    """What the code's checkout has beside its last commit, kept as a patch; None outside a checkout, or without changes."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    told = _git(here, "diff", "HEAD", "--", "kdbench")
    for new in _git(here, "ls-files", "-z", "--others", "--exclude-standard", "--", "kdbench").decode().split("\0"):
        told += _git(here, "diff", "--no-index", "--", "/dev/null", new) if new else b""
    if not told:
        return None
    path = folder / f"{hashlib.sha256(told).hexdigest()[:12]}.patch"
    if not path.exists():
        store.write_bytes(path, told)
    return str(path.relative_to(store.root))


def _git(here: Path, *words: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, check=False).stdout
    except OSError:
        return b""


def _copied(store: Store, folder: Path, version: str) -> Path:
    """A copy of the package as it is now, named by its content: made once, shared by all submissions of the same code."""
    package = Path(__file__).parents[1]
    files = sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    copy = folder / digest.hexdigest()[:12]
    if not copy.exists():
        making = folder / f".{copy.name}.{os.getpid()}"
        shutil.copytree(package, making / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        store.write_text(making / SNAPSHOT_OF, f"{version}\n")
        os.replace(making, copy)
    return copy
