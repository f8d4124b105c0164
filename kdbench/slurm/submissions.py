"""Submissions on disk: one folder for each call of sbatch, written before it, so that a crash loses no job. The folder
`results/suites/<suite>/jobs/<token>/` holds `submission.json`, submitit's script, payloads and logs, and a journal of each job."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from kdbench.errors import DamagedError, KdbenchError, StoreError
from kdbench.plan.bundle import SIDE_BY_SIDE
from kdbench.store import Store
from kdbench.validation import AtLeastZero, CellId, Schema1, from_json

Json = dict[str, Any]
PREFIX = "kdbench"
FILE = "submission.json"

STRICT = ConfigDict(strict=True, extra="forbid")
Number = Annotated[str, Field(pattern=r"^[0-9]+$")]


@dataclass(frozen=True, config=STRICT)
class Settings:
    """How a job's worker trains. `tables` are the teachers whose outputs are kept in a table, `ranks` how many
    processes train a bundle together, `suite` is the file that a profile job
    measures."""

    data: str
    device: Annotated[str, Field(pattern="^(auto|cpu|cuda)$")] = "cpu"
    side_by_side: Annotated[int, Field(ge=1)] = SIDE_BY_SIDE
    readers: Annotated[int, Field(ge=0)] = 1
    checkpoint_every_s: AtLeastZero | None = None
    lost_after_s: AtLeastZero = 60.0
    tables: list[CellId] = field(default_factory=list)
    ranks: Annotated[int, Field(ge=1)] = 1
    suite: str = ""


@dataclass(frozen=True, config=STRICT)
class JobEnd:
    """How one job ended: SLURM's state, the class of failure or `done`, and the failures of the cells that it left unfinished."""

    state: str
    kind: str
    node: str
    cells: dict[CellId, str]
    at: AtLeastZero


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Submission:
    """One call of sbatch: an array, or a single job. `elements[i]` are the bundles of the array's element i, as lists of cell ids.
    `cluster` is the cluster file, `slurm` SLURM's name of the cluster; `job` is SLURM's number, None until it is known; `ended` says by
    index how an element ended; `moves` how often these cells were submitted again behind their teacher. `kind` is `train`, or `profile`
    for a job that measures costs and has no cells."""

    suite: Annotated[str, Field(min_length=1)]
    token: Annotated[str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}$")]
    cluster: str
    slurm: str
    request: Json
    settings: Settings
    elements: Annotated[list[list[list[CellId]]], Field(min_length=1)]
    kind: Literal["train", "profile"] = "train"
    after: list[str] = field(default_factory=list)
    code: dict[str, str | None] = field(default_factory=dict)
    job: Number | None = None
    at: AtLeastZero = field(default_factory=time.time)
    user: Number = field(default_factory=lambda: str(os.getuid()))
    moves: Annotated[int, Field(ge=0, le=10_000)] = 0
    ended: dict[int, JobEnd] = field(default_factory=dict)
    schema: Schema1 = 1

    def __post_init__(self) -> None:
        for word, least in (("timeout_min", 1), ("slurm_signal_delay_s", 0)):
            value = self.request.get(word, 0)
            if type(value) is not int or value < least:
                raise ValueError(f"request: {word} is {value!r}, and must be a whole number of at least {least}")
        if not set(self.ended) <= set(range(len(self.elements))):
            raise ValueError(f"ended: it names an element that is none of the {len(self.elements)}")

    @property
    def name(self) -> str:
        """The job's name in SLURM: it identifies the submission, also before its number is known."""
        return f"{PREFIX}-{self.suite}-{self.token}"

    def job_of(self, index: int) -> str:
        """SLURM's number of an element; empty while it is not known."""
        if self.job is None:
            return ""
        return f"{self.job}_{index}" if len(self.elements) > 1 else self.job

    def cells(self, index: int) -> list[str]:
        return [cell_id for bundle in self.elements[index] for cell_id in bundle]

    def unfinished(self) -> list[int]:
        """Indices of the elements whose end is not known."""
        return [index for index in range(len(self.elements)) if index not in self.ended]


@dataclass(frozen=True)
class Damaged:
    """A submission that cannot be read, with the name that its jobs have, and one sentence that says what is wrong."""

    suite: str
    name: str
    why: str


class Submissions:
    """The submissions under a results folder, of all of its suites: they share their cells."""

    def __init__(self, store: Store):
        self.store = store

    def folder(self, submission: Submission) -> Path:
        return self.store.suite_folder(submission.suite) / "jobs" / submission.token

    def read(self) -> tuple[list[Submission], list[Damaged]]:
        """(submissions in their order, those that cannot be read)."""
        found, damaged = [], []
        for path in self.store.matching(f"suites/*/jobs/*/{FILE}"):
            suite, token = path.parts[-4], path.parts[-2]
            if token.startswith("."):
                continue  # about to be removed
            try:
                found.append(self.get(suite, token))
            except KdbenchError as error:
                why = f"{error}; it is skipped: remove its folder when its jobs have ended"
                damaged.append(Damaged(suite, f"{PREFIX}-{suite}-{token}", why))
        return sorted(found, key=lambda submission: submission.at), damaged

    def get(self, suite: str, token: str) -> Submission:
        """Raises DamagedError when the submission's file is missing, damaged, or was copied from another submission."""
        path = self.store.suite_folder(suite) / "jobs" / token / FILE
        try:
            found: Submission = from_json(Submission, self.store.json(path))
        except ValueError as error:
            raise DamagedError(f"{path} is missing or damaged ({error})") from error
        except (OSError, RecursionError) as error:
            raise DamagedError(f"{path} cannot be read ({error})") from error
        if (found.suite, found.token) != (suite, token):
            raise DamagedError(f"{path} describes another submission ({found.suite}/{found.token})")
        return found

    def write(self, submission: Submission) -> None:
        self.store.write_json(self.folder(submission) / FILE, asdict(submission))

    @staticmethod
    def token(elements: Sequence[Sequence[Sequence[str]]]) -> str:
        """A name for a submission: a hash of its cell ids, and a random part, since the same cells may be submitted again."""
        ids = "|".join(" ".join(bundle) for element in elements for bundle in element)
        return f"{hashlib.sha256(ids.encode()).hexdigest()[:8]}-{uuid.uuid4().hex[:4]}"

    def journal(self, submission: Submission, index: int) -> Path:
        return self.folder(submission) / f"journal_{index}.jsonl"

    def events(self, submission: Submission, index: int) -> tuple[list[Json], str]:
        """(what a job wrote about itself; a sentence if some of it cannot be read)."""
        path = self.journal(submission, index)
        try:
            self.store.read_bytes(path)
        except StoreError as error:
            return [], f"{error}; it is skipped"
        lines = self.store.lines(path)
        events = [line for line in lines if isinstance(line, dict) and isinstance(line.get("event"), str)]
        wrong = len(lines) - len(events)
        return events, f"{path} is damaged: {wrong} of its lines {'is' if wrong == 1 else 'are'} skipped" if wrong else ""

    def silent_s(self, submission: Submission, index: int) -> float:
        """How long ago the submission, the job or one of its cells last wrote something."""
        paths = [self.journal(submission, index), *(self.store.file(one, "progress.jsonl") for one in submission.cells(index))]
        return min([time.time() - submission.at, *(self.store.age_s(path) for path in paths if self.store.exists(path))])


def elements_of(submissions: Sequence[Submission]) -> list[tuple[Submission, int]]:
    return [(submission, index) for submission in submissions for index in range(len(submission.elements))]
