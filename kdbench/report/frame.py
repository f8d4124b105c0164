"""The long format: one row a cell of the suite, whatever became of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError
from kdbench.report.manifest import CellLine, Manifest, Metric, labels
from kdbench.report.records import Lean, lean_records

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.store import Store

IDENTITY = ("suite", "role", "dataset", "teacher", "student", "objective", "label", "repeat", "teacher_seed", "id", "state")
LIBRARIES = ("timm", "torchvision", "pillow")
DIGESTS = ("weights_digest", "predictions_digest")
CIRCUMSTANCE = (
    *("n_train", "n_test", "device", "torch", "code_version", "train_s", "data_fingerprint", "least_gradient"),
    *(*LIBRARIES, "host", "job", "restarts", *DIGESTS, "idle_term", "sources", "why"),
)
WHOLE = ("repeat", "teacher_seed", "n_train", "n_test", "restarts")
SPOILED = ("failed", "diverged", "damaged", "blocked")
"""States of a teacher that leave its students nothing to learn from."""

PARTS = ("step", "data", "teacher", "student", "loss", "optimizer")
COST_KEYS = ("dataset", "teacher", "student", "objective", "label", "id", "state")
COSTS = ("images_per_s", "peak_mem_gib", "added_parameters", "added_flops")


def frame(store: Store, manifest: Manifest) -> pd.DataFrame:
    """One row for each cell of the manifest, students and teachers, in the manifest's order.

    Returns:
        suite, role, dataset, teacher, student, objective, label, repeat, teacher_seed, id, state; one column for each metric that
        any run has (as stored: an accuracy is a fraction); n_train, n_test (images), device, torch, code_version, train_s,
        data_fingerprint, least_gradient (of the run's weakest term, relative to the task's, at its largest); timm, torchvision, pillow
        (versions), host, job (id of the SLURM job), restarts (how often SLURM started that job again), weights_digest,
        predictions_digest, idle_term (the term whose gradient `least_gradient` is; it may well have mattered), sources (of the parts
        that were used: `loss kd <digest>; task …`), why. `state` is finished, diverged, failed, running, missing, damaged, or blocked
        (its teacher failed, or is below its gate); `why` says what happened, and is empty for a run that finished well.
    """
    import pandas as pd

    records = lean_records(store, manifest["suite"], [cell["id"] for cell in manifest["cells"]])
    seen = {cell["id"]: _observed(store, cell["id"], records.get(cell["id"])) for cell in manifest["cells"]}
    by_id = {cell["id"]: cell for cell in manifest["cells"]}
    for cell in manifest["cells"]:
        _judge(cell, by_id, seen, manifest)
    metrics = _metric_columns(manifest, seen)
    names = labels(manifest)
    rows = []
    for cell in manifest["cells"]:
        kept: dict[str, Any] = {key: value for key, value in cell.items() if key != "depends"}
        label = names.get(cell["objective"] or "", cell["objective"])
        rows.append({"suite": manifest["suite"], "label": label, **kept, **seen[cell["id"]]})
    table = pd.DataFrame(rows, columns=[*IDENTITY, *metrics, *CIRCUMSTANCE])
    return table.astype({**dict.fromkeys(WHOLE, "Int64"), **dict.fromkeys((*metrics, "train_s", "least_gradient"), "float64")})


def _observed(store: Store, cell_id: str, record: Lean | DamagedError | None) -> dict[str, Any]:
    """What the disk says of one cell: `state`, `why` and, from its record, metrics and circumstance."""
    if isinstance(record, DamagedError):
        return {"state": "damaged", "why": str(record)}
    if record is None:
        return _unfinished(store, cell_id)
    result, circumstance, largest = record.result, record.circumstance, record.largest
    job = circumstance.get("job") or {}
    idle_term = min(largest, key=largest.__getitem__, default=None)
    return {
        **(result.get("metrics") or {}),
        **{name: result.get(name) for name in ("n_train", "n_test", "data_fingerprint", *DIGESTS)},
        **{name: circumstance.get(name) for name in ("device", "torch", "train_s", *LIBRARIES, "host")},
        "code_version": circumstance.get("code", circumstance.get("kdbench")),
        "job": job.get("id"),
        "restarts": job.get("restart"),
        "least_gradient": None if idle_term is None else largest[idle_term],
        "idle_term": idle_term,
        "sources": "; ".join(f"{part} {digest}" for part, digest in (circumstance.get("sources") or {}).items()) or None,
        "state": record.outcome,
        "why": "" if record.outcome == "finished" else f"diverged at step {result.get('diverged_at_step')}",
    }


def _unfinished(store: Store, cell_id: str) -> dict[str, Any]:
    if store.is_alive(cell_id):
        return {"state": "running", "why": ""}
    failure = store.failure(cell_id)
    if failure is not None:
        state = "blocked" if failure.get("class") == "blocked" else "failed"
        return {"state": state, "why": f"{failure.get('class', 'unknown failure')}: {failure.get('message', '')}"}
    return {"state": "missing", "why": ""}


def _judge(cell: CellLine, by_id: Mapping[str, CellLine], seen: dict[str, dict[str, Any]], manifest: Manifest) -> None:
    """Say of a finished teacher that it is below its gate, and of a cell without record that it waits for a teacher in vain."""
    mine = seen[cell["id"]]
    if "gated" in mine:
        return
    mine["gated"] = shortfall(manifest, cell["id"], mine) if mine["state"] == "finished" else ""
    mine["why"] = mine["why"] or mine["gated"]
    for role, other in cell["depends"].items():
        if mine["state"] != "missing" or other not in by_id:
            continue
        _judge(by_id[other], by_id, seen, manifest)
        if seen[other]["state"] in SPOILED or seen[other]["gated"]:
            mine.update(state="blocked", why=f"its {role} (run {other}): {seen[other]['why'] or seen[other]['state']}")


def shortfall(manifest: Manifest, cell_id: str, run: Mapping[str, Any]) -> str:
    """`top-1 15.00 %, below its gate of 20.00 %`, or nothing for a run that passes what is asked of it (or of which nothing is)."""
    gate = manifest.get("gates", {}).get(cell_id)
    if gate is None:
        return ""
    metric = next((metric for metric in manifest["metrics"] if metric["name"] == gate["metric"]), None)
    value = run.get(f"{gate['metric']}_last")
    label, least = gate["metric"] if metric is None else metric["label"], gate["min"]
    if value is None or value != value:
        return f"no {label}, so below its gate" + ("" if least is None else f" of {printed(metric, least)}")
    if least is not None and not (value >= least if metric is None or metric["higher_is_better"] else value <= least):
        return f"{label} {printed(metric, value)}, below its gate of {printed(metric, least)}"
    declared, within = gate.get("declared") or (value, 0.0)
    if abs(value - declared) > within:
        return f"{label} {printed(metric, value)}, and {printed(metric, declared)} was declared (within {printed(metric, within)})"
    return ""


def printed(metric: Metric | None, value: float) -> str:
    """A metric's value as text with its unit: a fraction in per cent where the metric is printed so."""
    return f"{100 * value:.2f} %" if metric is not None and metric["percent"] else f"{value:.4g}"


def _metric_columns(manifest: Manifest, seen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    declared = [f"{metric['name']}_last" for metric in manifest["metrics"]]
    primary = manifest["metrics"][0]["name"]
    declared[1:1] = [f"{primary}_best_val", f"{primary}_best_test"]
    known = {*declared, *CIRCUMSTANCE, "state", "gated"}
    return declared + sorted({name for run in seen.values() for name in run} - known)


def costs(store: Store, manifest: Manifest) -> pd.DataFrame:
    """One row for each profile of the manifest, in its order.

    Returns:
        dataset, teacher (null for an objective without one), student, objective, label, id, state (measured or missing); for each
        of step, data, teacher, student, loss and optimizer the columns `<part>_ms` (median), `<part>_ms_q1`, `<part>_ms_q3`;
        images_per_s, peak_mem_gib, added_parameters, added_flops (per step), others_at_work (the share of the
        processors that other processes kept busy), device.
    """
    import pandas as pd

    names = labels(manifest)
    times = [f"{part}_ms{suffix}" for part in PARTS for suffix in ("", "_q1", "_q3")]
    rows = []
    for line in manifest.get("profiles", []):
        profile = store.profile(line["id"])
        row: dict[str, Any] = {**line, "label": names.get(line["objective"], line["objective"])}
        rows.append({**row, "state": "missing"} if profile is None else {**row, "state": "measured", **_measured(profile)})
    table = pd.DataFrame(rows, columns=[*COST_KEYS, *times, *COSTS, "others_at_work", "device"])
    return table.astype(dict.fromkeys((*times, *COSTS, "others_at_work"), "float64"))


def _measured(profile: Mapping[str, Any]) -> dict[str, Any]:
    result = profile["result"]
    found: dict[str, Any] = {name: result.get(name) for name in COSTS} | {"device": profile.get("device")}
    found["others_at_work"] = (profile.get("circumstance") or {}).get("others_at_work")
    for part in PARTS:
        quartiles = result.get(f"{part}_ms") or {}
        for suffix, key in (("", "median"), ("_q1", "q1"), ("_q3", "q3")):
            found[f"{part}_ms{suffix}"] = quartiles.get(key)
    return found


def write_frame(store: Store, folder: Path, table: pd.DataFrame) -> None:
    """Write `frame.parquet` and `frame.csv` (UTF-8; numbers as numbers, nothing for a null) into a folder.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    whole = io.BytesIO()
    table.to_parquet(whole, index=False)
    store.write_bytes(folder / "frame.parquet", whole.getvalue())
    store.write_text(folder / "frame.csv", table.to_csv(index=False, lineterminator="\n"))
