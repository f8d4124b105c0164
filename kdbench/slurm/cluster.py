"""A cluster file: where and how jobs run, in submitit's words and ours. Checked like a suite: errors name the line and the nearest word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

from kdbench.errors import SuiteError, nearest
from kdbench.manifest import ManifestCell
from kdbench.plan.bundle import SIDE_BY_SIDE
from kdbench.plan.reading import FileReader
from kdbench.plan.schema import Json
from kdbench.plan.yaml import Where, YamlFile
from kdbench.submitit_adapter import REPLACED, defaults, words
from kdbench.validation import AtLeastZero, Count

RETRY = {"killed": 1, "lost": 3, "node failure": 3, "preempted": 1000, "stopped": 1000, "time limit": 1000}
"""How often `--wait` submits a cell again after each class of failure; after other classes: never. After a time limit without a new
epoch it does not. After running out of memory the bundle is split, then `bigger` is asked for."""

PATTERNS = ("role", "student", "teacher", "objective")
_RESERVED = {
    "tasks_per_node": "write `ranks`, the number of processes that train a bundle together",
    "name": "a job is named after its suite, so that it is found by its name",
    "stderr_to_stdout": "a job has one log",
    "slurm_dependency": "a student's job waits for its teacher's",
}
_RESERVED_PARAMETERS = {"array", "chdir", "dependency", "error", "job-name", "nodes", "open-mode", "output", "signal", "time"}
_RESERVED_PARAMETERS |= {"ntasks", "ntasks-per-core", "ntasks-per-node"}
_MEMORY = ("mem_gb", "slurm_mem", "slurm_mem_per_cpu", "slurm_mem_per_gpu")
_KIND = ("slurm_partition", "slurm_constraint", "slurm_nodelist", "slurm_gres", "gpus_per_node", "slurm_mem_per_cpu", "slurm_mem_per_gpu")
"""Words that say on which kind of node a job runs."""
_GPUS = ("gpus_per_node", "slurm_gpus_per_task", "slurm_num_gpus", "slurm_gres")


@dataclass(frozen=True)
class Cluster:
    """A cluster file. `request` holds submitit's words, the other fields are our keys; an override holds patterns and changes."""

    name: str
    request: Json
    ranks: Annotated[int, Field(ge=1)] = 1
    students_side_by_side: Annotated[int, Field(ge=1)] = SIDE_BY_SIDE
    bundles_per_job: Annotated[int, Field(ge=1)] = 1
    device: Literal["auto", "cpu", "cuda"] | None = None
    readers: Count | None = None
    checkpoint_every_s: AtLeastZero | None = None
    snapshot: bool = False
    lost_after_s: AtLeastZero = 60.0
    retry: dict[str, Count] = field(default_factory=dict)
    bigger: list[Json] = field(default_factory=list)
    overrides: list[Json] = field(default_factory=list)

    def request_of(self, row: ManifestCell, failed: Sequence[Json] = ()) -> Json:
        """What one cell asks of SLURM: the first request of the file with more memory than those that `failed`, or the last one."""
        asked = dict(self.request)
        for one in self.overrides:
            mine = {name: row.trained_as if name == "role" else str(getattr(row, name) or "") for name in PATTERNS}
            if all(fnmatchcase(mine[name], one[name]) for name in PATTERNS if name in one):
                asked = _changed(asked, {word: value for word, value in one.items() if word not in PATTERNS})
        requests = [asked, *(_changed(asked, bigger) for bigger in self.bigger)]
        found = dict(next((one for one in requests if not any(_no_larger(one, other) for other in failed)), requests[-1]))
        # A quarter of a short limit: submitit's 90 s are more than a limit of one minute.
        if self.ranks > 1:
            found |= {"nodes": found.get("nodes", 1), "tasks_per_node": self.ranks // found.get("nodes", 1)}
        found.setdefault("slurm_signal_delay_s", min(int(defaults()["slurm_signal_delay_s"]), found["timeout_min"] * 15))
        return found

    def is_spent(self, row: ManifestCell, failed: Sequence[Json]) -> bool:
        """Whether none of the requests is larger than those that failed."""
        last = self.request_of(row, failed)
        return any(_no_larger(last, one) for one in failed)

    def device_of(self, request: Json) -> str:
        """The device of a job with this request: as the file says, else `cuda` where a GPU is asked for."""
        more = request.get("slurm_additional_parameters") or {}
        gpu = any(request.get(word) for word in _GPUS) or any("gpu" in f"{key}={value}" for key, value in more.items())
        return self.device or ("cuda" if gpu else "cpu")

    def readers_of(self, request: Json) -> int:
        """How many processes read ahead: as the file says, else all cores but the one that trains."""
        return max(1, (request.get("cpus_per_task") or 1) - 1) if self.readers is None else self.readers


OURS = {name: kind for name, kind in get_type_hints(Cluster, include_extras=True).items() if name not in ("name", "request")}
"""The keys of a cluster file that are not submitit's, with their types."""


def memory_gb(request: Json) -> float | None:
    """The memory that a request asks for a job, in GB; None where it does not say."""
    if "mem_gb" in request:
        return float(request["mem_gb"])
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", str(request.get("slurm_mem", "")))
    return int(found[1]) * {"K": 2**-20, "M": 2**-10, "": 2**-10, "G": 1.0, "T": 1024.0}[found[2]] if found else None


def memory(request: Json) -> str:
    """The memory that a request asks for, in words."""
    asked = {word: value for word, value in request.items() if "mem" in word}
    return ", ".join(f"{word} {value:g}" if word == "mem_gb" else f"{word} {value}" for word, value in asked.items()) or "the default"


def _no_larger(asked: Json, failed: Json) -> bool:
    """Whether a request asks for the same kind of node as one that failed, and for no more memory."""
    mine, its = ({word: value for word, value in one.items() if word in _KIND} for one in (asked, failed))
    if mine != its:
        return False
    least, most = memory_gb(asked), memory_gb(failed)
    return least <= most if least is not None and most is not None else least is most is None


def _changed(asked: Json, changed: Json) -> Json:
    """The request with changes; one word for memory replaces the others, since SLURM refuses both together."""
    gone = _MEMORY if any(word in changed for word in _MEMORY) else ()
    return {word: value for word, value in asked.items() if word not in gone} | changed


def read(path: Path | str) -> Cluster:
    """Raises SuiteError with all mistakes of the file."""
    return _ClusterReader(YamlFile(Path(path), "a cluster file is a mapping (timeout_min: ..., slurm_partition: ..., ...)")).cluster()


class _ClusterReader(FileReader):
    def cluster(self) -> Cluster:
        data = self.file.data
        if "objectives" in data:
            raise SuiteError([f"{self.file.path} is a suite, not a cluster file; slurm/default.yaml explains the keys of a cluster file"])
        self.words = words()
        ours = {key: self.checked((key,), kind, data[key]) for key, kind in OURS.items() if key in data}
        request = self._request((), {key: value for key, value in data.items() if key not in OURS})
        if "timeout_min" not in data:
            self.error((), "the key 'timeout_min' is missing: the time limit of a job (longer trainings continue in the next job)")
        retry = {**RETRY, **(ours.get("retry") or {})}
        for name in retry:
            if name not in RETRY:
                self.error(("retry", name), f"unknown class of failure{nearest(name, RETRY)}")
        overrides = [self._override(index, one) for index, one in enumerate(ours.get("overrides") or [])]
        bigger = [self._request(("bigger", index), one) for index, one in enumerate(ours.get("bigger") or [])]
        if self.errors:
            raise SuiteError(self.errors)
        return Cluster(str(self.file.path.resolve()), request, **{**ours, "retry": retry, "overrides": overrides, "bigger": bigger})

    def _request(self, where: Where, section: Json) -> Json:
        found: Json = {}
        for word, value in section.items():
            here = (*where, word)
            if word in _RESERVED:
                self.error(here, f"kdbench sets this itself: {_RESERVED[word]}")
            elif word in REPLACED:
                self.error(here, f"write '{REPLACED[word]}' instead")
            elif word not in self.words:
                self.error(here, f"unknown key{nearest(str(word), [*self.words, *OURS])}")
            else:
                checked = self.checked(here, self.words[word], value)
                found[word] = list(value) if word == "slurm_srun_args" and isinstance(value, list) else checked
                self._sensible(here, word, value)
        return found

    def _sensible(self, where: Where, word: str, value: Any) -> None:
        ranks, nodes = (self.file.data.get(name) for name in ("ranks", "nodes"))
        ranks, nodes = (number if isinstance(number, int) and number > 0 else 1 for number in (ranks, nodes))
        if word == "nodes" and isinstance(value, int) and (value < 1 or ranks % value):
            why = "a student is trained on one node unless `ranks` is a multiple of `nodes`"
            self.error(where, f"{value} nodes for {ranks} rank{'s' if ranks > 1 else ''}: {why}")
        if word == "gpus_per_node" and isinstance(value, int) and value > max(ranks // nodes, 1):
            why = "each rank of a job has one GPU; more jobs run side by side"
            self.error(where, f"at most {max(ranks // nodes, 1)}: {why}")
        if word == "slurm_use_srun" and value is False:
            self.error(where, "kdbench needs srun: without it SLURM signals only the shell, and a job cannot save before it ends")
        if word == "timeout_min" and isinstance(value, int) and value < 1:
            self.error(where, "SLURM's smallest limit is 1 minute")
        for key in value if word == "slurm_additional_parameters" and isinstance(value, dict) else ():
            if str(key).replace("_", "-") in _RESERVED_PARAMETERS:
                self.error(
                    (*where, key),
                    "kdbench sets this itself: a job has a task for each of its `ranks`, is found by its name, and saves before it ends",
                )

    def _override(self, index: int, section: Json) -> Json:
        where = ("overrides", index)
        patterns = {key: self.checked((*where, key), str, section[key]) for key in PATTERNS if key in section}
        if not patterns:
            self.error(where, f"it selects no cells: add {', '.join(PATTERNS)} (with * and ?)")
        changed = {key: value for key, value in section.items() if key not in PATTERNS}
        if not changed:
            self.error(where, "it changes nothing: add a request, for example mem_gb: 64")
        return {**patterns, **self._request(where, changed)}
