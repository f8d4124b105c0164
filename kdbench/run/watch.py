"""What has become of each cell: told from the disk alone, without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from kdbench.errors import DamagedError
from kdbench.report.frame import shortfall
from kdbench.report.manifest import Manifest
from kdbench.run.failure import CLASSES
from kdbench.store import Store

STATES = ("finished", "diverged", "running", "queued", "failed", "blocked", "damaged", "waiting")
DONE = ("finished", "diverged")


@dataclass(frozen=True)
class State:
    """`why` is one line for a state that needs one; `progress` is (epochs done, epochs asked) of a running cell."""

    name: str
    why: str = ""
    progress: tuple[int, int] | None = None


def state(store: Store, cell_id: str) -> State:
    """The state of one cell.

    A failure is told only while nobody works on the cell: a worker that tries again makes it running.
    """
    try:
        record = store.record(cell_id)
    except DamagedError as error:
        return State("damaged", str(error))
    if record is not None:
        step = record.result.get("diverged_at_step")
        return State(record.outcome, "" if step is None else f"the first number that is not finite came at step {step}")
    if store.is_alive(cell_id):
        return State("running", progress=progress(store, cell_id))
    failure = store.failure(cell_id)
    if failure is not None:
        return State("blocked" if failure["class"] == "blocked" else "failed", f"{failure['class']}: {failure['message']}")
    return State("waiting", progress=progress(store, cell_id))


def progress(store: Store, cell_id: str) -> tuple[int, int] | None:
    begun = store.epochs_seen(cell_id)
    return (begun[-1]["epoch"], begun[-1]["of"]) if begun else None


def below_gate(store: Store, manifest: Mapping[str, Any], teacher_id: str) -> str:
    """Why a finished teacher is not good enough for this suite; empty if it is (or if the suite asks nothing)."""
    record = store.record(teacher_id)
    if record is None or record.outcome != "finished":
        return ""
    return shortfall(cast(Manifest, manifest), teacher_id, record.result["metrics"])


def why_missing(store: Store, manifest: Mapping[str, Any], alive: Collection[str] = ()) -> str:
    """One page: every cell that has no record, or has one that is no result, and why; empty when nothing is missing.

    `alive` are cells in jobs of a cluster: they are on their way.

    Cells that fail alike stand together, with the end of the first one's traceback and log.
    """
    told: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in manifest["cells"]:
        now = state(store, row["id"])
        if row["id"] in alive and now.name not in DONE:
            continue
        if now.name != "finished":
            told.setdefault((now.name, now.why), []).append(row)
        elif row["role"] == "teacher" and (why := below_gate(store, manifest, row["id"])):
            told.setdefault(("finished", why), []).append(row)
    if not told:
        return ""
    missing = sum(len(rows) for rows in told.values())
    lines = [f"{missing} of {len(manifest['cells'])} cells are no result:"]
    for (name, why), rows in told.items():
        lines += ["", f"  {len(rows)} {name}{': ' + why if why else ''}"]
        lines += [f"    {row['id']}  {title(row)}" for row in rows[:6]]
        if len(rows) > 6:
            lines.append(f"    and {len(rows) - 6} more")
        failure = store.failure(rows[0]["id"]) if name == "failed" else None
        if failure:
            lines.append(f"      ({CLASSES.get(failure['class'], failure['class'])})")
            if where := ", ".join(f"{key} {failure[key]}" for key in ("job", "node") if failure.get(key)):
                lines.append(f"      {where}")
            shown = failure["traceback"].strip().splitlines()[-6:] or failure["last_lines"][-6:]
            lines += [f"      | {line}" for line in shown]
    return "\n".join(lines) + "\n"


def title(row: Mapping[str, Any]) -> str:
    """A manifest's cell in words."""
    if row["role"] == "teacher":
        return f"teacher {row['student']}, seed {row['repeat']}"
    seed = f", teacher seed {row['teacher_seed']}" if row["teacher_seed"] else ""
    beside = f" <- {row['teacher']}" if row["teacher"] else ""
    return f"{row['student']}{beside}, {row['objective']}, repeat {row['repeat']}{seed}"
