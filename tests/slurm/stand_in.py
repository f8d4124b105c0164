"""A scheduler of which a test says what it sees, and submissions that nobody made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.slurm.ledger import Ledger, Note
from kdbench.slurm.scheduler import Limits, Scheduler, Seen, Sight
from kdbench.store import Store


@dataclass
class StandIn(Scheduler):
    """Tells what it was told to tell, and remembers what it was asked to do."""

    sight: Sight = field(default_factory=lambda: Sight(True))
    says: dict[str, str] = field(default_factory=dict)
    refuses: str = ""
    requeued: list[str] = field(default_factory=list)

    def look(self, wanted: Iterable[str] = (), users: Iterable[str] = ()) -> Sight:
        return self.sight

    def detail(self, job: str) -> dict[str, str]:
        return self.says

    def limits(self, account: str | None = None) -> Limits:
        return Limits("big", 1001, None)

    def requeue(self, job: str) -> str:
        self.requeued.append(job)
        return self.refuses

    def cancel(self, jobs: Sequence[str]) -> str:
        return self.refuses

    def sees(self, note: Note, *states: str, node: str = "node7", name: str | None = None) -> StandIn:
        """The elements of a submission in these states ('' is absent)."""
        jobs = {note.job_of(index): Seen(note.job_of(index), name or note.name, state, node) for index, state in enumerate(states) if state}
        self.sight = Sight(True, jobs)
        return self


def noted(store: Store, *elements: list[list[str]], job: str | None = "12", at: float = 0.0, **more: Any) -> Note:
    """A submission as the ledger keeps it."""
    settings = {
        "data": str(store.root),
        "device": "cpu",
        "side_by_side": 16,
        "readers": 0,
        "checkpoint_every_s": None,
        "lost_after_s": 60.0,
    }
    said: dict[str, Any] = {
        "suite": "tiny",
        "token": Ledger.token(elements),
        "cluster": "cluster.yaml",
        "slurm": "big",
        "request": {"timeout_min": 60, "mem_gb": 4, "slurm_signal_delay_s": 90},
        "settings": settings,
        "elements": list(elements),
        "job": job,
        "at": at,
        **more,
    }
    note = Note(**said)
    Ledger(store).write(note)
    return note
