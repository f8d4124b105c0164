"""What became of each cell, from the disk alone: the one answer for plan, run, status, slurm and report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from kdbench.errors import DamagedError
from kdbench.failure import CLASSES
from kdbench.manifest import Manifest, ManifestCell
from kdbench.store import Store

Name = Literal["finished", "diverged", "running", "queued", "failed", "blocked", "damaged", "waiting"]
"""`queued`: in a job of a cluster that does not run yet. `damaged`: its record, or a file beside it, cannot be trusted."""

STATES: tuple[Name, ...] = get_args(Name)
DONE: tuple[Name, ...] = ("finished", "diverged")


@dataclass(frozen=True)
class State:
    """`why` is one line for a state that needs one; `progress` is (epochs done, epochs asked) of a running cell."""

    name: Name
    why: str = ""
    progress: tuple[int, int] | None = None

    def __str__(self) -> str:
        words = {"failed": "it failed", "waiting": "it is not trained"}.get(self.name, f"it is {self.name}")
        return f"{words} ({self.why})" if self.why else words


def of(store: Store, cell_id: str) -> State:
    """The state of one cell. A failure counts only while nobody works on the cell: a worker that tries again makes it running."""
    try:
        record = store.sound_record(cell_id)
    except DamagedError as error:
        return State("damaged", str(error))
    if record is None:
        return without_record(store, cell_id)
    why = f"the loss or a weight is NaN or infinite at {record.divergence}" if record.divergence else ""
    return State("diverged" if record.outcome == "diverged" else "finished", why)


def without_record(store: Store, cell_id: str) -> State:
    """The state of a cell that has no record."""
    if store.is_alive(cell_id):
        return State("running", progress=progress(store, cell_id))
    failure = store.failure(cell_id)
    if failure is not None:
        return State("blocked", failure.message) if failure.kind == "blocked" else State("failed", f"{failure.kind}: {failure.message}")
    return State("waiting", progress=progress(store, cell_id))


def progress(store: Store, cell_id: str) -> tuple[int, int] | None:
    begun = store.epochs_seen(cell_id)
    return (begun[-1]["epoch"], begun[-1]["of"]) if begun else None


def shortfall(store: Store, manifest: Manifest, teacher_id: str) -> str:
    """Why a finished teacher is not good enough for this suite; empty if it is (or if the suite asks nothing)."""
    record = store.record(teacher_id) if teacher_id in manifest.teacher_requirements else None
    if record is None or record.outcome != "finished":
        return ""
    return manifest.shortfall(teacher_id, record.result["metrics"])


WITHOUT_REASON = {"waiting": "waiting: not trained yet; `kdbench run` trains them"}
"""What `why_missing` says of a state that needs no other reason."""


def why_missing(store: Store, manifest: Manifest, alive: Collection[str] = (), states: Mapping[str, State] | None = None) -> str:
    """One page: every cell without a result, and every teacher that is not as required, and why; empty when there is none. `alive` are
    cells in jobs of a cluster, `states` what `of` has just found (None: it is asked). Cells that fail alike stand together, with the end
    of the first one's traceback and log."""
    alike: dict[tuple[str, str], list[ManifestCell]] = {}
    lines = []
    for row in manifest.cells:
        now = states[row.id] if states else of(store, row.id)
        if row.id in alive and now.name not in DONE:
            continue
        if now.name == "diverged" and row.trial is not None:
            continue  # it is the worst of its search
        if now.name != "finished":
            alike.setdefault((now.name, now.why), []).append(row)
        elif row.trained_as == "teacher" and (why := shortfall(store, manifest, row.id)):
            lines.append(f"{row.title} ({row.id}), is trained, but not as required: {why}")
    if alike:
        lines.append(f"{sum(map(len, alike.values()))} of {len(manifest.cells)} cells have no result:")
    for (name, why), rows in alike.items():
        lines += ["", f"  {len(rows)} {why if why.startswith(name) else f'{name}: {why}' if why else WITHOUT_REASON.get(name, name)}"]
        lines += [f"    {row.id}  {row.title}" for row in rows[:6]]
        if len(rows) > 6:
            lines.append(f"    and {len(rows) - 6} more")
        failure = store.failure(rows[0].id) if name == "failed" else None
        if failure:
            lines.append(f"      ({CLASSES[failure.kind]})")
            if where := ", ".join(f"{key} {value}" for key, value in (("job", failure.job), ("node", failure.node)) if value):
                lines.append(f"      {where}")
            shown = failure.traceback.strip().splitlines()[-6:] or failure.last_lines[-6:]
            lines += [f"      | {line}" for line in shown]
    return "".join(f"{line}\n" for line in lines)
