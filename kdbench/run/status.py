"""The verb `status`: from the disk, and from what a scheduler says about its jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.plan.yaml import suite_name
from kdbench.store import Store, cell_state

SHOWN = 40


@dataclass(frozen=True)
class Queue:
    """What a scheduler says: by cell id, whether its job runs, and which job it is; `notes` are about the suite as a whole."""

    jobs: Mapping[str, tuple[bool, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def text(results: Path, suite: str, queue: Queue | None = None) -> str:
    """The state of a suite: a line of counts, the cells that are being trained or wait in a queue, and why anything is missing."""
    store = Store(results)
    manifest = store.manifest(suite_name(suite))
    queue = queue or Queue()
    found = {row.id: cell_state.of(store, row.id) for row in manifest.cells}
    states = {cell_id: _state(now, queue.jobs.get(cell_id)) for cell_id, now in found.items()}
    counts = Counter(state.name for state, _ in states.values())
    in_words = ", ".join(f"{counts[name]} {name}" for name in cell_state.STATES if counts[name])
    lines = [f"{manifest.suite}: {len(states)} cells: {in_words}", *(f"  {note}" for note in queue.notes)]
    waiting = [row for row in manifest.cells if states[row.id][0].name == "queued"]
    for row in manifest.cells:
        now, where = states[row.id]
        if now.name == "running":
            progress = f"epoch {now.progress[0] + 1} of {now.progress[1]}" if now.progress else "starting"
            lines.append(f"  {row.id}  {row.title}: {progress}{f', {where}' if where else ''}")
    lines += [f"  {row.id}  {row.title}: {states[row.id][1]}" for row in waiting[:SHOWN]]
    if len(waiting) > SHOWN:
        lines.append(f"  and {len(waiting) - SHOWN} more in the queue")
    page = cell_state.why_missing(store, manifest, _in_jobs(store, queue), found)
    return "\n".join(lines) + "\n" + (f"\n{page}" if page else "")


def why(results: Path, suite: str, queue: Queue | None = None) -> str:
    """One page: what is missing and why; empty when nothing is. A cell in a job is not missing yet."""
    store = Store(results)
    return cell_state.why_missing(store, store.manifest(suite_name(suite)), _in_jobs(store, queue or Queue()))


def _in_jobs(store: Store, queue: Queue) -> frozenset[str]:
    """Cells in jobs, without those that have failed while their job goes on with others."""
    return frozenset(cell_id for cell_id in queue.jobs if store.failure(cell_id) is None)


def _state(now: cell_state.State, job: tuple[bool, str] | None) -> tuple[cell_state.State, str]:
    """A cell's state from the disk and from the queue, and which job it is in."""
    if job is None or now.name in (*cell_state.DONE, "failed", "blocked"):
        return now, ""
    runs, text = job
    return cell_state.State("running" if runs or now.name == "running" else "queued", progress=now.progress), text
