"""The verb `status`: from the disk, and for what was submitted to a cluster from its queue."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from kdbench.plan.yaml import suite_name
from kdbench.run import watch
from kdbench.slurm.reconcile import Place, Standing, look
from kdbench.store import Store

SHOWN = 40


def text(results: Path, suite: str) -> str:
    """How a suite stands: a line of counts, the cells that are being trained or wait in a queue, and why anything is missing."""
    store = Store(results)
    manifest = store.manifest(suite_name(suite))
    queue = look(store)
    alive = queue.alive if queue else {}
    states = {row["id"]: _state(watch.state(store, row["id"]), alive.get(row["id"])) for row in manifest["cells"]}
    counts = Counter(state.name for state, _ in states.values())
    told = ", ".join(f"{counts[name]} {name}" for name in watch.STATES if counts[name])
    lines = [f"{manifest['suite']}: {len(states)} cells: {told}"]
    if queue and not queue.answered:
        lines.append(f"  SLURM does not answer ({queue.why}): what follows is from the disk alone")
    waiting = [row for row in manifest["cells"] if states[row["id"]][0].name == "queued"]
    for row in manifest["cells"]:
        now, where = states[row["id"]]
        if now.name == "running":
            lines.append(f"  {row['id']}  {watch.title(row)}: {_progress(now)}{where}")
    for row in waiting[:SHOWN]:
        lines.append(f"  {row['id']}  {watch.title(row)}: {states[row['id']][1]}")
    if len(waiting) > SHOWN:
        lines.append(f"  and {len(waiting) - SHOWN} more in the queue")
    page = watch.why_missing(store, manifest, _on_their_way(store, queue))
    return "\n".join(lines) + "\n" + (f"\n{page}" if page else "")


def why(results: Path, suite: str) -> str:
    """One page: what is missing and why; empty when nothing is. What is in a job at this moment is no failure yet."""
    store = Store(results)
    queue = look(store)
    return watch.why_missing(store, store.manifest(suite_name(suite)), _on_their_way(store, queue))


def _on_their_way(store: Store, queue: Standing | None) -> frozenset[str]:
    """Cells in jobs, but for those that have failed already while their job goes on with others."""
    return frozenset(cell_id for cell_id in (queue.alive if queue else ()) if store.failure(cell_id) is None)


def _state(now: watch.State, place: Place | None) -> tuple[watch.State, str]:
    """A cell's state from the disk, and what the queue adds to it."""
    if now.name in (*watch.DONE, "failed", "blocked") or place is None:
        return now, ""
    seen = place.seen
    if seen is None:
        if now.name == "running":
            return now, f", {place}: {place.why}"
        return watch.State("queued", progress=now.progress), f"{place}: {place.why}"
    if seen.state == "RUNNING" or now.name == "running":
        left = f", {seen.left} left" if seen.left else ""
        return watch.State("running", progress=now.progress), f", {place} on {seen.node}{left}"
    reason = f" ({seen.reason})" if seen.reason not in ("", "None") else ""
    return watch.State("queued", progress=now.progress), f"{place} {seen.state.lower()}{reason}"


def _progress(now: watch.State) -> str:
    return f"epoch {now.progress[0] + 1} of {now.progress[1]}" if now.progress else "starting"
