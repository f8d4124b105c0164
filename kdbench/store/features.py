"""Measurements of trained networks' features, one file each: what is asked of a suite, what is there, and the frames of it.

A file is `features/<kind>-<cell>-<hash of the setting>.json`. The setting is everything that determines the result but the weights, whose
digests are in the file: it is stale when its cell was trained again and has other weights.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.cell import identify
from kdbench.errors import DamagedError, KdbenchError
from kdbench.manifest import Manifest, ManifestCell
from kdbench.record import Features
from kdbench.store.store import Store

VERSIONS = {"cka": 1, "probe": 1}
"""Of the formulas. Raised by any commit that changes a number."""
CKA_BATCH = 256
RUN = ("dataset", "teacher", "student", "objective", "repeat", "teacher_seed", "id")
FRAMES = {
    "cka": (*RUN, "teacher_id", "teacher_layer", "student_layer", "paired", "cka", "n_images", "n_skipped", "batch_size"),
    "probe": ("probe", "role", *RUN, "accuracy", "l2", "validation_accuracy", "n_train", "n_test", "n_classes", "width", "converged"),
}
"""The frames, and the columns that a reader of them needs."""

Setting = Mapping[str, Any]


def asked(manifest: Manifest, cka: bool, probes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every question of a suite: the CKA of each student with each of its teachers, teacher by teacher, and a probe of each student and
    teacher on each dataset (`{name, version, options}`)."""
    pairs = [(teacher, student) for student, teachers in manifest.compared_teachers.items() for teacher in teachers]
    order = {cell.id: place for place, cell in enumerate(manifest.cells)}
    pairs.sort(key=lambda pair: [order[one] for one in pair])
    shared = {"kind": "cka", "version": VERSIONS["cka"], "split": "test", "batch_size": CKA_BATCH}
    found = [{**shared, "cells": [student, teacher]} for teacher, student in pairs if cka]
    ids = [cell.id for cell in manifest.reported]
    return found + [
        {"kind": "probe", "version": VERSIONS["probe"], "cells": [one], "dataset": probe, "split": "test"}
        for probe in probes
        for one in ids
    ]


def path_of(store: Store, setting: Setting) -> Path:
    return store.root / "features" / f"{setting['kind']}-{setting['cells'][0]}-{identify(setting)}.json"


def stored(store: Store, path: Path) -> Features | None:
    """What a file holds; None where there is none. Raises DamagedError: it cannot be trusted."""
    data = store.read_json(path)
    if data is None and not store.exists(path):
        return None
    try:
        found = Features.from_json(data)
        if path_of(store, found.setting).name != path.name:
            raise ValueError("setting: it belongs into another file")
        return found
    except (ValueError, KeyError, TypeError, LookupError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def weights_of(store: Store, setting: Setting) -> dict[str, str]:
    """The digest of the weights of each cell of a question. Raises KdbenchError: a cell has no finished record."""
    found = {}
    for cell_id in setting["cells"]:
        record = store.record(cell_id)
        if record is None or record.outcome != "finished":
            raise KdbenchError(f"cell {cell_id} is {'not trained' if record is None else record.outcome}")
        if not isinstance(digest := record.result.get("weights_digest"), str):
            raise KdbenchError(f"the record of cell {cell_id} has no weights_digest")
        found[cell_id] = digest
    return found


def frames(store: Store, manifest: Manifest, runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The frames of what was measured of a suite, by name; without those that are empty.

    Args:
        runs: as `frame.frame` makes it.

    Returns:
        cka: a row a student's run, teacher, and two layers: dataset, teacher (of the pair), student, objective, repeat, teacher_seed, id;
            teacher_id, teacher_layer, student_layer, paired (1 for the layers that a table compares, else 0), cka (debiased; null where
            features are constant), n_images, n_skipped (of a last batch that is too small), batch_size.
        probe: a row a run and probe: probe (the dataset), role, and the same; accuracy (a fraction of the test images), l2 (its strength),
            validation_accuracy (of the images held out, which chose it), n_train, n_test, n_classes, width (features), converged (1 or 0).
    """
    cells = {cell.id: cell for cell in manifest.reported}
    digests = dict(zip(runs["id"], runs["weights_digest"], strict=True)) if "weights_digest" in runs else {}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FRAMES}
    for path in store.entries(store.root / "features"):
        kind, _, rest = path.name.partition("-")
        if kind not in FRAMES or rest[:12] not in cells or path.suffix != ".json":
            continue
        with suppress(DamagedError):  # made again by the next `features`; its run is one without a value
            one = stored(store, path)
            current = one is not None and one.setting["version"] == VERSIONS[kind]
            if one and current and all(digests.get(cell_id) == digest for cell_id, digest in one.weights.items()):
                rows[kind] += _rows(one, cells)
    _tell_apart(rows["probe"])
    order = {cell_id: place for place, cell_id in enumerate(cells)}
    found = {}
    for name, lines in rows.items():
        lines.sort(key=lambda line: (line.get("probe", ""), order[line["id"]]))
        table = pd.DataFrame(lines, columns=list(FRAMES[name]))
        found[name] = table.astype({"repeat": "Int64", "teacher_seed": "Int64"})
    return {name: table for name, table in found.items() if len(table)}


def _rows(one: Features, cells: Mapping[str, ManifestCell]) -> Iterator[dict[str, Any]]:
    ids, result = one.setting["cells"], one.result
    cell = cells[ids[0]]
    shared: dict[str, Any] = {name: getattr(cell, name) for name in RUN}
    if one.setting["kind"] == "probe":
        known = {"probe": result["title"], "role": cell.role, "setting": identify(one.setting["dataset"])}
        yield {**known, **shared, **result, "converged": int(result["converged"])}
        return
    if ids[1] not in cells:
        return
    shared |= {"teacher": cells[ids[1]].student, "teacher_id": ids[1], "n_images": result["n_images"], "n_skipped": result["n_skipped"]}
    layers = result["teacher_layers"], result["student_layers"]
    together = set(paired(*layers))
    for teacher_layer, line in zip(layers[0], result["cka"], strict=True):
        for student_layer, value in zip(layers[1], line, strict=True):
            pair = {
                "teacher_layer": teacher_layer,
                "student_layer": student_layer,
                "paired": int((teacher_layer, student_layer) in together),
            }
            yield {**shared, **pair, "cka": math.nan if value is None else value, "batch_size": one.setting["batch_size"]}


def _tell_apart(rows: list[dict[str, Any]]) -> None:
    """Give datasets with one title and other content titles of their own, and leave out the runs that were probed on other images than
    most."""
    settings: dict[str, set[str]] = defaultdict(set)
    prints: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        settings[row["probe"]].add(row["setting"])
        prints[row["setting"]][row["data_fingerprint"]] += 1
    rows[:] = [row for row in rows if row["data_fingerprint"] == prints[row["setting"]].most_common(1)[0][0]]
    for row in rows:
        row["probe"] += f" ({row['setting'][:4]})" if len(settings[row["probe"]]) > 1 else ""


def paired(teacher: Sequence[str], student: Sequence[str]) -> list[tuple[str, str]]:
    """The layers that belong together: those of one name and, where one net has more stages, the stages counted from the last."""
    stages = [[name for name in side if name.startswith("stage")] for side in (teacher, student)]
    both = [name for name in teacher if name in student and not name.startswith("stage")]
    return [*reversed([*zip(reversed(stages[0]), reversed(stages[1]), strict=False)]), *((name, name) for name in both)]
