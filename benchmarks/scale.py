"""What the verbs cost with very many cells: a results folder that looks trained, and `plan`, `status`, `run` and `report` of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from benchmarks import growth
from benchmarks.scale_verb import NUMBERS
from benchmarks.timing import exponent
from kdbench.cell import Cell
from kdbench.plan import matrix
from kdbench.plan.suite import read
from kdbench.record import Record
from kdbench.report.figures.draw import applied, rendered
from kdbench.run import local
from kdbench.store import Store
from kdbench.store.files import Files
from kdbench.tasks.classification import Classification

SIZES = (1000, 3000, 10_000, 30_000, 100_000)
LOSSES = ("kd", "dkd", "nkd", "sp", "cc", "rkd", "pkt", "at", "nst", "dist", "wsld", "vid", "ickd", "wkd_l")
UNWEIGHTED = ("cka", "rcka", "mgd", "ft", "logits_mse")
REPEATS, EPOCHS, IMAGES, CLASSES, POOL = 5, 40, 500, 10, 512
"""Of the simulated suite; `POOL` different files of predictions are shared out among the cells."""
LARGEST = 3
"""Sizes to fit: what a small suite takes is the start of the process."""
WAYS = ("pairs", "repeats")
VERBS = ("a cell, trained", "status, nothing trained", "a look, all queued", "plan", "status", "report", "run")
NOTES = (
    "opened: files opened; asked: calls of stat; listed: folders listed; changed: renamed, linked, removed or made; synced: fsync; all of "
    "them only under the results folder. read_mib: all that the process read. peak_gib: resident memory at its most.",
    f"A cell has {EPOCHS} epochs, and predictions of {IMAGES} images of {CLASSES} classes. The times are of one run each, after imports.",
    "by pairs: 20 objectives and 5 repeats of more and more pairs; by repeats: more and more repeats of 20 objectives in 4 pairs.",
    "`status, nothing trained` is of a folder that has only the manifest; a verb's parts stand above its whole; `a cell, trained` is "
    "what the store does for one cell; `a look, all queued` one look of `run --on CLUSTER --wait` at a queue in which all jobs wait.",
)
SHOWN = {"CPU seconds": "cpu_s", "peak memory, GiB": "peak_gib", "files opened, stat": "calls"}


def suite_of(cells: int, by: str) -> str:
    """A suite with about so many cells: with more and more pairs (5 repeats), or with more and more repeats (4 pairs)."""
    objectives = ["ce", *LOSSES, *(f"{name}: {{weight: 1, weight_from: assumed}}" for name in UNWEIGHTED)]
    taught = len(objectives) - 1
    pairs = max(cells // (taught * REPEATS), 1) if by == "pairs" else 4
    students = round(pairs**0.5)
    nets = {"students": (students, 4), "teachers": (max(round(pairs / students), 1), 8)}
    lines = [f"name: scale_{by}_{cells}", "dataset: digits", f"recipe: {{name: short, epochs: {EPOCHS}}}"]
    for section, (count, width) in nets.items():
        models = (f"{{model: small_mobile, widths: [8, {width + place}]}}" for place in range(count))
        lines += [f"{section}:", *(f"  {section[0]}{place}: {model}" for place, model in enumerate(models))]
    lines += ["objectives:", *(f"  - {one}" for one in objectives), "baselines: [ce, kd]"]
    lines += [f"repeats: {REPEATS if by == 'pairs' else max(cells // (pairs * taught), 1)}"]
    return "\n".join(lines) + "\n"


class _Quick(Store):
    """Without fsync: nobody pulls the plug on a simulation."""

    def write_bytes(self, path: Path, *data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(data))


def simulate(suite: Path, results: Path) -> dict[str, float]:
    """Leave what `run` would leave of every cell that has no record yet. Returns how many files that is, and their size."""
    plan, store = matrix.expand(read(suite)), _Quick(results)
    local.prepare(plan, store)
    draws = np.random.default_rng(0)
    targets = draws.integers(0, CLASSES, IMAGES)
    outcomes = [_predictions(targets, draws) for _ in range(POOL)]
    weights = draws.bytes(1000)
    lines = [json.dumps({"epoch": epoch, "step": 0, "of": EPOCHS, "at": 1.7e9 + epoch}) for epoch in range(EPOCHS)]
    progress = "".join(f"{line}\n" for line in lines)
    for cell in plan.cells.values():
        if not store.is_done(cell.id):
            metrics, predictions = outcomes[int(cell.id, 16) % POOL]
            store.write_sealed(store.file(cell.id, "weights.bin"), weights)
            store.write_bytes(store.file(cell.id, "predictions.npz"), predictions)
            store.write_text(store.file(cell.id, "progress.jsonl"), progress)
            store.write_text(store.file(cell.id, "record.json"), _record(cell, metrics, store.sizes_and_digests(cell.id)))
    found = [entry.stat() for cell_id in plan.cells for entry in os.scandir(store.cell_folder(cell_id))]
    sizes = {"mib": sum(one.st_size for one in found) / 2**20, "mib_on_disk": sum(one.st_blocks for one in found) / 2**11}
    return {"cells": len(plan.cells), "files": len(found), **sizes}


def _predictions(targets: np.ndarray, draws: np.random.Generator) -> tuple[dict[str, float | None], bytes]:
    """The metrics and the file of one run that is right about three images of four."""
    logits = draws.normal(0, 1, (IMAGES, CLASSES)) + 2.4 * np.eye(CLASSES)[targets]
    task, file = Classification(), io.BytesIO()
    kept = task.keep({"logits": logits.astype(np.float32)}, targets)
    raw = {"logits": kept["logits"]}
    np.savez_compressed(file, **kept, target=targets, **task.per_image(raw, targets))  # type: ignore[arg-type]
    found = {f"{name}_last": value for name, value in task.measure(raw, targets).items()}
    return {**found, "top1_best_val": None, "top1_best_test": found["top1_last"]}, file.getvalue()


def _record(cell: Cell, metrics: Mapping[str, float | None], files: Mapping[str, Any]) -> str:
    losses = tuple(term["loss"] for term in cell.config["objective"]["terms"])
    result = {"metrics": metrics, "weights_digest": cell.id, "predictions_digest": cell.id, "n_parameters": 6386, "history": []}
    result |= {"n_train": 1437, "n_test": IMAGES, "data_fingerprint": "6539f740d796e51d", "diverged_at_step": None}
    circumstance: dict[str, Any] = {"device": "cpu", "host": "node", "python": "3.11", "torch": "2", "timm": "1", "train_s": 60.0}
    circumstance |= {"torchvision": "0", "pillow": "1", "kdbench": "0.2.0", "code": "simulated", "files": files}
    circumstance["sources"] = {f"loss {name}": "fd30f6fab0f1" for name in losses}
    text = json.dumps(Record(cell.id, cell.config, "finished", result, circumstance).to_json(), indent=1)
    return text.replace('"history": []', f'"history": {_history(("task", *losses))}', 1) + "\n"


@lru_cache
def _history(terms: tuple[str, ...]) -> str:
    term = {"raw": 2.784057580947876, "weighted": 2.784057580947876, "gradient_ratio": 0.970615377721849}
    epochs = [{"epoch": epoch, "lr": 0.05, "terms": dict.fromkeys(terms, term), "loss": 3.8} for epoch in range(EPOCHS)]
    return json.dumps(epochs, indent=1)


def run(
    folder: Path, sizes: Sequence[int], ways: Sequence[str], verbs: Sequence[str], say: Callable[[str], None]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate and measure, from small to large. What is in `folder` from a call before is not done again.

    Returns:
        a row a size, verb and part; and the fitted exponents.
    """
    files, done = Files(folder), folder / "points.jsonl"
    points = files.lines(done)
    for cells, by in ((cells, by) for cells in sizes for by in ways):
        suite, results = folder / f"scale_{by}_{cells}.yaml", folder / f"results_{by}"
        files.write_text(suite, suite_of(cells, by))
        for verb in ("simulate", *verbs):
            if not any((one["by"], one["asked_cells"], one["verb"]) == (by, cells, verb) for one in points):
                found = _in_a_process({"verb": verb, "suite": str(suite), "results": str(results)})
                for one in found:
                    point = {"by": by, "asked_cells": cells, "verb": verb, **one}
                    files.append_line(done, point)
                    points.append(point)
                say(f"{by}, {cells} cells, {verb}: {found[-1]}")
    table = pd.DataFrame([one for one in points if one["asked_cells"] in sizes and one["by"] in ways])
    planned = table[table["verb"] == "simulate"].set_index(["by", "asked_cells"])["cells"]
    table["cells"] = [planned[key] for key in zip(table["by"], table["asked_cells"], strict=True)]
    table = table.drop(columns="asked_cells")
    return table, fitted(table)


def fitted(table: pd.DataFrame) -> pd.DataFrame:
    """The slope of each number on logarithmic axes over the three largest sizes, of what is not too small to be measured."""
    rows = []
    for key, own in table.groupby(["by", "verb", "part"], sort=False):
        slopes = {}
        for name in NUMBERS:
            there = own[own[name] > (0.05 if name.endswith("_s") else 0)].nlargest(LARGEST, "cells")
            slopes[name] = exponent(there["cells"], there[name]) if len(there) == LARGEST else None
        rows.append({**dict(zip(("by", "verb", "part"), key, strict=True)), "points": len(own), **slopes})
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame) -> tuple[bytes, bytes]:
    """CPU seconds, memory and calls of the whole verbs, with pairs that grow (or repeats, where nothing else was measured)."""
    own = table[(table["part"] == "") & (table["by"] == table["by"].iloc[0]) & (table["verb"] != "simulate")]
    own = own.assign(calls=own["opened"] + own["asked"])
    with applied("scale"):
        drawn = Figure(figsize=(6.9, 2.2), layout="constrained")
        panels = drawn.subplots(1, len(SHOWN))
        for panel, (label, name) in zip(panels, SHOWN.items(), strict=True):
            last = panel is panels[-1]
            seaborn.lineplot(own, x="cells", y=name, hue="verb", marker="o", palette="colorblind", ax=panel, legend=last)
            growth.logarithmic(panel, "cells", label)
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.05, 0.5))
        pdf, png, _ = rendered(drawn, "Scale")
    return pdf, png


def _in_a_process(given: Mapping[str, str]) -> list[dict[str, Any]]:
    """A verb in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "benchmarks", "scale-verb", json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])
