"""A cluster file: where and how jobs run. submitit's own words, and ours; validated like a suite, with lines and nearest names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from kdbench.errors import SuiteError, nearest
from kdbench.plan.bundle import SIDE_BY_SIDE
from kdbench.plan.reading import Reading
from kdbench.plan.schema import Json
from kdbench.plan.yaml import Source, Where
from kdbench.through_submitit import REPLACED, defaults, words

Row = Mapping[str, Any]
"""A cell of a suite's manifest: its role and the names of its student, teacher and objective."""

RETRY = {"killed": 1, "lost": 3, "node failure": 3, "preempted": 1000, "stopped": 1000, "time limit": 1000}
"""How often `--wait` submits a cell again by itself after each class of failure; a class that is not here: never. Time limits count
only while each brings a new epoch. Out of memory has a ladder of its own: the bundle is split, then `bigger` is asked for."""

OURS: dict[str, tuple[Any, Any]] = {
    "students_side_by_side": (Annotated[int, Field(ge=1)], SIDE_BY_SIDE),
    "bundles_per_job": (Annotated[int, Field(ge=1)], 1),
    "device": (Literal["auto", "cpu", "cuda"] | None, None),
    "readers": (Annotated[int, Field(ge=0)] | None, None),
    "checkpoint_every_s": (Annotated[float, Field(ge=0)] | None, None),
    "snapshot": (bool, False),
    "lost_after_s": (Annotated[float, Field(ge=0)], 60.0),
    "retry": (dict[str, Annotated[int, Field(ge=0)]], {}),
    "bigger": (list[Json], []),
    "overrides": (list[Json], []),
}
"""Our own keys: type and default."""

PLACES = ("role", "student", "teacher", "objective")
_ONE = {
    "nodes": "a student is trained on one device",
    "tasks_per_node": "a job is one process",
    "gpus_per_node": "a job trains its bundles on one GPU; more jobs run side by side",
}
_KEPT = {
    "name": "a job is named after its suite, so that it is found again",
    "stderr_to_stdout": "a job has one log",
    "slurm_dependency": "a student's job waits for its teacher's",
}
_KEPT_PARAMETERS = ("array", "chdir", "dependency", "error", "job-name", "open-mode", "output", "signal", "time")
_MEMORY = ("mem_gb", "slurm_mem", "slurm_mem_per_cpu", "slurm_mem_per_gpu")
_KIND = ("slurm_partition", "slurm_constraint", "slurm_nodelist", "slurm_gres", "gpus_per_node", "slurm_mem_per_cpu", "slurm_mem_per_gpu")
"""Words that say what kind of place is asked for."""
_GPUS = ("gpus_per_node", "slurm_gpus_per_task", "slurm_num_gpus", "slurm_gres")


@dataclass(frozen=True)
class Cluster:
    """A cluster file, read. `request` holds submitit's words; an override its patterns and the words that they change."""

    name: str
    request: Json
    overrides: list[tuple[dict[str, str], Json]]
    bigger: list[Json]
    retry: dict[str, int]
    side_by_side: int
    bundles_per_job: int
    device: str | None
    readers: int | None
    checkpoint_every_s: float | None
    snapshot: bool
    lost_after_s: float

    def request_of(self, row: Row, failed: Sequence[Json] = ()) -> Json:
        """What is asked of SLURM for one cell: the first request of the file's ladder (what it asks for, then `bigger`) that is no
        smaller than any that `failed` for want of memory; its last one when there is none left."""
        asked = dict(self.request)
        for patterns, changed in self.overrides:
            if all(fnmatchcase(str(row[place] or ""), pattern) for place, pattern in patterns.items()):
                asked = _changed(asked, changed)
        rungs = [asked, *(_changed(asked, bigger) for bigger in self.bigger)]
        found = dict(next((rung for rung in rungs if not any(_no_larger(rung, one) for one in failed)), rungs[-1]))
        # A quarter of a short limit, for loading alone takes seconds; submitit's 90 s would leave nothing of a limit of one minute.
        found.setdefault("slurm_signal_delay_s", min(int(defaults()["slurm_signal_delay_s"]), found["timeout_min"] * 15))
        return found

    def is_spent(self, row: Row, failed: Sequence[Json]) -> bool:
        """Whether every request of the ladder is no larger than one that failed."""
        last = self.request_of(row, failed)
        return any(_no_larger(last, one) for one in failed)

    def device_of(self, request: Json) -> str:
        """The device of a job that asks for this: said, or `cuda` exactly where a GPU is asked for."""
        more = request.get("slurm_additional_parameters") or {}
        gpu = any(request.get(word) for word in _GPUS) or any("gpu" in f"{key}={value}" for key, value in more.items())
        return self.device or ("cuda" if gpu else "cpu")

    def readers_of(self, request: Json) -> int:
        """How many processes read ahead: said, or all cores but the one that trains."""
        return max(1, (request.get("cpus_per_task") or 1) - 1) if self.readers is None else self.readers


def memory_gb(request: Json) -> float | None:
    """The memory that a request asks for a job, in GB; None where it does not say."""
    if "mem_gb" in request:
        return float(request["mem_gb"])
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", str(request.get("slurm_mem", "")))
    return int(found[1]) * {"K": 2**-20, "M": 2**-10, "": 2**-10, "G": 1.0, "T": 1024.0}[found[2]] if found else None


def _no_larger(asked: Json, failed: Json) -> bool:
    """Whether a request asks for the same kind of place as one that failed, and for no more memory."""
    mine, its = ({word: value for word, value in one.items() if word in _KIND} for one in (asked, failed))
    if mine != its:
        return False
    least, most = memory_gb(asked), memory_gb(failed)
    return least <= most if least is not None and most is not None else least is most is None


def _changed(asked: Json, changed: Json) -> Json:
    """Memory said in one way takes the place of memory said in another: SLURM refuses both."""
    gone = _MEMORY if any(word in changed for word in _MEMORY) else ()
    return {word: value for word, value in asked.items() if word not in gone} | changed


def read(path: Path | str) -> Cluster:
    """Read a cluster file.

    Raises:
        SuiteError: with all of its mistakes.
    """
    return _ClusterReading(Source(Path(path), "a cluster file is a mapping (timeout_min: ..., slurm_partition: ..., ...)")).cluster()


class _ClusterReading(Reading):
    def cluster(self) -> Cluster:
        data = self.source.data
        self.words = words()
        ours = {key: self.checked((key,), kind, data[key]) if key in data else default for key, (kind, default) in OURS.items()}
        request = self._request((), {key: value for key, value in data.items() if key not in OURS})
        if "timeout_min" not in data:
            self.wrong((), "a cluster file needs 'timeout_min', the limit of a job; what takes longer goes on in the next one")
        retry = self._retry(ours["retry"] or {})
        overrides = [self._override(place, one) for place, one in enumerate(ours["overrides"] or [])]
        bigger = [self._request(("bigger", place), one) for place, one in enumerate(ours["bigger"] or [])]
        if self.mistakes:
            raise SuiteError(self.mistakes)
        return Cluster(
            name=str(self.source.path.resolve()),
            request=request,
            overrides=overrides,
            bigger=bigger,
            retry=retry,
            side_by_side=ours["students_side_by_side"],
            bundles_per_job=ours["bundles_per_job"],
            device=ours["device"],
            readers=ours["readers"],
            checkpoint_every_s=ours["checkpoint_every_s"],
            snapshot=ours["snapshot"],
            lost_after_s=ours["lost_after_s"],
        )

    def _request(self, where: Where, says: Json) -> Json:
        found: Json = {}
        for word, value in says.items():
            here = (*where, word)
            if word in _KEPT:
                self.wrong(here, f"this is kdbench's own: {_KEPT[word]}")
            elif word in REPLACED:
                self.wrong(here, f"say '{REPLACED[word]}'")
            elif word not in self.words:
                self.wrong(here, f"neither submitit nor kdbench has such a word{nearest(str(word), [*self.words, *OURS])}")
            else:
                checked = self.checked(here, self.words[word], value)
                found[word] = list(value) if word == "slurm_srun_args" and isinstance(value, list) else checked
                self._sensible(here, word, value)
        return found

    def _sensible(self, where: Where, word: str, value: Any) -> None:
        if word in _ONE and isinstance(value, int) and not 0 <= value <= 1:
            self.wrong(where, f"at most 1: {_ONE[word]}")
        if word == "slurm_use_srun" and value is False:
            self.wrong(where, "without srun SLURM sends its signals to the shell alone, and a job that ends could not save")
        if word == "timeout_min" and isinstance(value, int) and value < 1:
            self.wrong(where, "SLURM's smallest limit is 1 minute")
        for key in value if word == "slurm_additional_parameters" and isinstance(value, dict) else ():
            if str(key).replace("_", "-") in _KEPT_PARAMETERS:
                self.wrong((*where, key), "this is kdbench's own: it would not find its jobs again, or they could not save")

    def _retry(self, says: dict[str, int]) -> dict[str, int]:
        for name in says:
            if name not in RETRY:
                self.wrong(("retry", name), f"no class of failure that is tried again{nearest(name, RETRY)}")
        return {**RETRY, **says}

    def _override(self, place: int, says: Json) -> tuple[dict[str, str], Json]:
        where = ("overrides", place)
        patterns = {key: self.checked((*where, key), str, says[key]) for key in PLACES if key in says}
        if not patterns:
            self.wrong(where, f"it says not of what: name a {', '.join(PLACES)} (* and ? stand for anything)")
        changed = {key: value for key, value in says.items() if key not in PLACES}
        if not changed:
            self.wrong(where, "it changes nothing: say what to ask for, as in mem_gb: 64")
        return patterns, self._request(where, changed)
