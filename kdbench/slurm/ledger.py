"""What was submitted: one folder a submission, its note written before sbatch is called, so that a crash loses no job.

`results/suites/<suite>/jobs/<token>/` holds `note.json`, what submitit writes (script, payloads, logs), and a journal for each
job: what it did and why it ended, in its own words.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kdbench.store import Store

Json = dict[str, Any]
PREFIX = "kdbench"


@dataclass
class Note:
    """One call of sbatch: an array, or a single job. `elements[i]` are the bundles of the array's element i, as lists of cell ids.

    `job` is SLURM's number, None until it is known; `ended` says by index what became of an element; `moves` how often these cells
    were put behind a teacher again.
    """

    suite: str
    token: str
    cluster: str
    slurm: str
    request: Json
    settings: Json
    elements: list[list[list[str]]]
    after: list[str] = field(default_factory=list)
    code: Json = field(default_factory=dict)
    job: str | None = None
    at: float = field(default_factory=time.time)
    user: str = field(default_factory=getpass.getuser)
    moves: int = 0
    by: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    ended: dict[str, Json] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The job's name in SLURM: suite and bundles, so that it is found again by it alone."""
        return f"{PREFIX}-{self.suite}-{self.token}"

    def job_of(self, index: int) -> str:
        return f"{self.job}_{index}" if len(self.elements) > 1 else str(self.job)

    def cells(self, index: int) -> list[str]:
        return [cell_id for bundle in self.elements[index] for cell_id in bundle]

    def open(self) -> list[int]:
        """Indices of the elements of which nobody has seen the end."""
        return [index for index in range(len(self.elements)) if str(index) not in self.ended]


class Ledger:
    """The notes under a results folder, of all of its suites: they share their cells."""

    def __init__(self, store: Store):
        self.store = store

    def folder(self, note: Note) -> Path:
        return self.store.suite_folder(note.suite) / "jobs" / note.token

    def notes(self) -> list[Note]:
        """In the order of submission."""
        found = [self._read(path) for path in self.store.root.glob("suites/*/jobs/*/note.json")]
        return sorted((note for note in found if note is not None), key=lambda note: note.at)

    def note(self, suite: str, token: str) -> Note | None:
        return self._read(self.store.suite_folder(suite) / "jobs" / token / "note.json")

    def _read(self, path: Path) -> Note | None:
        says = self.store.json(path)
        if says is None or not {"suite", "token", "elements"} <= says.keys():
            return None
        known = {one.name for one in fields(Note)}
        return Note(**{key: value for key, value in says.items() if key in known})

    def write(self, note: Note) -> None:
        self.store.write_json(self.folder(note) / "note.json", asdict(note))

    @staticmethod
    def token(elements: Sequence[Sequence[Sequence[str]]]) -> str:
        """A name for a submission of these bundles of cell ids: what they are, and which time."""
        ids = "|".join(" ".join(bundle) for element in elements for bundle in element)
        # Of two submissions of the same bundles, one may still haunt the queue: names must differ.
        return f"{hashlib.sha256(ids.encode()).hexdigest()[:8]}-{uuid.uuid4().hex[:4]}"

    # What a job says of itself

    def journal(self, note: Note, index: int) -> Path:
        return self.folder(note) / f"journal_{index}.jsonl"

    def said(self, note: Note, index: int) -> list[Json]:
        return self.store.lines(self.journal(note, index))

    def last_sign_s(self, note: Note, index: int) -> float:
        """When the submission, the job or one of its cells was last heard of."""
        paths = [self.journal(note, index), *(self.store.file(one, "progress.jsonl") for one in note.cells(index))]
        return max([note.at, *(path.stat().st_mtime for path in paths if path.exists())])


def elements_of(notes: Sequence[Note]) -> Iterator[tuple[Note, int]]:
    for note in notes:
        for index in range(len(note.elements)):
            yield note, index
