"""The long format: one row a cell of the suite, whatever became of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.cell import depended
from kdbench.errors import DamagedError
from kdbench.manifest import Manifest, ManifestCell
from kdbench.record import COSTS, Record
from kdbench.record import TIMES as MEASURED
from kdbench.store import Store, cell_state

IDENTITY = ("suite", "role", "dataset", "teacher", "student", "objective", "label", "repeat", "teacher_seed", "id", "state")
LIBRARIES = ("timm", "torchvision", "pillow")
DIGESTS = ("weights_digest", "predictions_digest")
CIRCUMSTANCE = (
    *("n_train", "n_test", "device", "torch", "code_version", "train_s", "data_fingerprint", "least_gradient"),
    *(*LIBRARIES, "host", "job", "restarts", *DIGESTS, "idle_term", "sources", "why"),
)
KINDS = ("_last", "_best_val", "_best_test")
"""How the columns of a metric end."""
WHOLE = ("repeat", "teacher_seed", "n_train", "n_test", "restarts")
STATES = ("diverged", "failed", "damaged", "blocked", "running", "missing")
"""The states of a run that has no result, or none to be counted."""
SPOILED = ("failed", "diverged", "damaged", "blocked")
"""States of a teacher that block its students."""

QUARTILES = {"": "median", "_q1": "q1", "_q3": "q3"}
TIMES = tuple(f"{name}{end}" for name in MEASURED for end in QUARTILES)
COST_COLUMNS = ("dataset", "teacher", "student", "objective", "label", "id", "state", *TIMES, *COSTS)
Key = tuple[str, str, str, str]


def frame(store: Store, manifest: Manifest) -> pd.DataFrame:
    """One row for each student and teacher of the manifest, in its order; the trials of tuning are in `store.trials.trials`.

    Returns:
        suite, role, dataset, teacher, student, objective, label, repeat, teacher_seed, id, state; one column for each metric that
        any run has (as stored: an accuracy is a fraction); n_train, n_test (images), device, torch, code_version, train_s,
        data_fingerprint, least_gradient (of the run's weakest term, relative to the task's, at its largest); timm, torchvision, pillow
        (versions), host, job (id of the SLURM job), restarts (how often SLURM started that job again), weights_digest,
        predictions_digest, idle_term (the term whose gradient `least_gradient` is; it may well have mattered), sources (of the parts
        that were used: `loss kd <digest>; task …`), why. `state` is finished, diverged, failed, running, missing, damaged, or blocked
        (its teacher failed, or is below what the suite requires); `why` says what happened, and is empty for a run that finished well.
    """
    observed = {cell.id: _observed(store, cell.id, manifest) for cell in manifest.cells}
    by_id = {cell.id: cell for cell in manifest.cells}
    for cell in manifest.cells:
        _judge(cell, by_id, observed, manifest)
        observed[cell.id]["train_s"] = _whole_s(cell, observed)
    primary, *others = (f"{metric.name}_last" for metric in manifest.metrics)
    declared = [primary, *(f"{manifest.primary.name}{kind}" for kind in KINDS[1:]), *others]
    metrics = [*declared, *sorted({name for run in observed.values() for name in run if name.endswith(KINDS)} - set(declared))]
    labels: Mapping[Any, str] = manifest.labels
    rows = [
        {"suite": manifest.suite, "label": labels.get(cell.objective, cell.objective), **vars(cell), **observed[cell.id]}
        for cell in manifest.reported
    ]
    table = pd.DataFrame(rows, columns=[*IDENTITY, *metrics, *CIRCUMSTANCE])
    return table.astype({**dict.fromkeys(WHOLE, "Int64"), **dict.fromkeys((*metrics, "train_s", "least_gradient"), "float64")})


def _observed(store: Store, cell_id: str, manifest: Manifest) -> dict[str, Any]:
    """What is on disk of one cell: `state`, `why` and, from its record, metrics and circumstance."""
    try:
        record = store.record(cell_id)
        if record is None:
            now = cell_state.without_record(store, cell_id)
            # In a table, a run that has not begun is missing, whatever is still to come.
            return {"state": "missing" if now.name == "waiting" else now.name, "why": now.why}
        largest = _largest_gradients(record)
        for metric in manifest.metrics:
            for name in (f"{metric.name}{kind}" for kind in KINDS):
                value = record.result["metrics"].get(name)
                if value is not None and (mistake := metric.mistake(value)):
                    raise ValueError(f"result.metrics.{name} is {value!r}: {mistake}")
    except DamagedError as error:
        return {"state": "damaged", "why": str(error)}
    except ValueError as error:
        return {"state": "damaged", "why": f"{store.file(cell_id, 'record.json')} is damaged: {error}"}
    result, circumstance = record.result, record.circumstance
    job = circumstance.get("job") or {}
    idle_term = min(largest, key=largest.__getitem__, default=None)
    return {
        **{name: value for name, value in result["metrics"].items() if name.endswith(KINDS)},
        **{name: result.get(name) for name in ("n_train", "n_test", "data_fingerprint", *DIGESTS)},
        **{name: circumstance.get(name) for name in ("device", "torch", "train_s", *LIBRARIES, "host")},
        "code_version": circumstance.get("code", circumstance.get("kdbench")),
        "job": job.get("id"),
        "restarts": job.get("restart"),
        "least_gradient": None if idle_term is None else largest[idle_term],
        "idle_term": idle_term,
        "sources": "; ".join(f"{part} {digest}" for part, digest in (circumstance.get("sources") or {}).items()) or None,
        "state": record.outcome,
        "why": "" if record.outcome == "finished" else f"diverged at {record.divergence or 'an unknown step'}",
    }


def _whole_s(cell: ManifestCell, observed: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The seconds that a cell was trained, with those of its first stage."""
    mine = observed[cell.id].get("train_s")
    before = observed.get(cell.depends.get("start", ""), {}).get("train_s")
    return mine if mine is None or before is None else mine + before


def _largest_gradients(record: Record) -> dict[str, float]:
    """Each term's largest gradient over the epochs, relative to the task's. Raises ValueError where the history is not as it should be."""
    largest: dict[str, float] = {}
    try:
        for entry in record.result["history"]:
            for name, term in entry["terms"].items():
                ratio = term.get("gradient_ratio")
                if ratio is not None and ratio > largest.get(name, -1.0):
                    largest[name] = ratio
    except (AttributeError, KeyError, TypeError):
        record.epochs()  # names what is wrong
        raise
    return largest


def _judge(cell: ManifestCell, by_id: Mapping[str, ManifestCell], observed: dict[str, dict[str, Any]], manifest: Manifest) -> None:
    """Note of a finished teacher that it is below what the suite requires, and of a cell without record that its teacher blocks it."""
    mine = observed[cell.id]
    if "shortfall" in mine:
        return
    mine["shortfall"] = manifest.shortfall(cell.id, mine) if mine["state"] == "finished" else ""
    mine["why"] = mine["why"] or mine["shortfall"]
    for role, other in cell.depends.items():
        if mine["state"] != "missing" or other not in by_id:
            continue
        _judge(by_id[other], by_id, observed, manifest)
        if observed[other]["state"] in SPOILED or observed[other]["shortfall"]:
            mine.update(state="blocked", why=f"its {depended(role)} (run {other}): {observed[other]['why'] or observed[other]['state']}")


def costs(store: Store, manifest: Manifest) -> pd.DataFrame:
    """One row for each profile of the manifest, in its order.

    Returns:
        dataset, teacher (null for an objective without one), student, objective, label, id, state (measured, missing or damaged);
        for each of step, data, teacher, student, loss and optimizer the columns `<part>_ms` (median), `<part>_ms_q1`, `<part>_ms_q3`;
        images_per_s, peak_mem_gib, added_parameters, added_flops (per step), others_at_work (the share of the
        processors that other processes kept busy), device, why (of a damaged one).
    """
    rows = []
    for line in manifest.profiles:
        row: dict[str, Any] = {**vars(line), "label": manifest.labels[line.objective], "state": "missing"}
        try:
            if (profile := store.profile(line.id)) is not None:
                row |= {name: profile.result.get(name) for name in COSTS} | {"state": "measured", "device": profile.device}
                row["others_at_work"] = profile.circumstance.get("others_at_work")
                for name in MEASURED:
                    row |= {f"{name}{end}": (profile.result.get(name) or {}).get(quartile) for end, quartile in QUARTILES.items()}
        except DamagedError as error:
            row |= {"state": "damaged", "why": str(error)}
        rows.append(row)
    return cost_frame(rows)


def cost_frame(rows: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """The frame of costs from its rows."""
    table = pd.DataFrame(rows, columns=[*COST_COLUMNS, "others_at_work", "device", "why"])
    return table.astype(dict.fromkeys((*TIMES, *COSTS, "others_at_work"), "float64"))


def line_key(line: Mapping[Any, Any]) -> Key:
    """Dataset, teacher (empty: none), student and objective of a row; a null teacher is None or NaN."""
    return line["dataset"], line["teacher"] if isinstance(line["teacher"], str) else "", line["student"], line["objective"]


def block_frame(manifest: Manifest) -> pd.DataFrame:
    """One row a block: dataset, teacher, student, in the order of the suite."""
    return pd.DataFrame([vars(block) for block in manifest.blocks], columns=["dataset", "teacher", "student"])


def write_frame(store: Store, folder: Path, table: pd.DataFrame) -> None:
    """Write `frame.parquet` and `frame.csv` (UTF-8; numbers as numbers, nothing for a null) into a folder.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    whole = io.BytesIO()
    table.to_parquet(whole, index=False)
    store.write_bytes(folder / "frame.parquet", whole.getvalue())
    store.write_text(folder / "frame.csv", table.to_csv(index=False, lineterminator="\n"))
