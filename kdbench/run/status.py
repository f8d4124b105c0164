"""The verb `status`: from the disk alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from kdbench.plan.yaml import suite_name
from kdbench.run import watch
from kdbench.store import Store


def text(results: Path, suite: str) -> str:
    """How a suite stands: a line of counts, the cells that are being trained, and why anything is missing."""
    store = Store(results)
    manifest = store.manifest(suite_name(suite))
    states = {row["id"]: watch.state(store, row["id"]) for row in manifest["cells"]}
    counts = Counter(state.name for state in states.values())
    told = ", ".join(f"{counts[name]} {name}" for name in watch.STATES if counts[name])
    lines = [f"{manifest['suite']}: {len(states)} cells: {told}"]
    for row in manifest["cells"]:
        now = states[row["id"]]
        if now.name == "running":
            at = f"epoch {now.progress[0] + 1} of {now.progress[1]}" if now.progress else "starting"
            lines.append(f"  {row['id']}  {watch.title(row)}: {at}")
    page = watch.why_missing(store, manifest)
    return "\n".join(lines) + "\n" + (f"\n{page}" if page else "")
