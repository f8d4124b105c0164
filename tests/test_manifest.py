"""The manifest: what plan writes is read again as it was, and whatever else stands in the file is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import DamagedError
from kdbench.manifest import Block, Manifest, ManifestCell, ManifestObjective, Metric, ProfileRef, TeacherRequirement
from kdbench.store import Store

TEACHER, STUDENT = "aaaaaaaaaaaa", "0123456789ab"
WHOLE = Manifest(
    suite="tiny",
    metrics=(Metric("top1", "top-1"), Metric("nll", "NLL", percent=False, higher_is_better=False)),
    baselines=("kd",),
    repeats=1,
    teacher_seeds=1,
    alpha=0.05,
    objectives=(ManifestObjective("kd", "kd", "published"), ManifestObjective("teacher", "teacher")),
    blocks=(Block("digits", "big", "small"),),
    cells=(
        ManifestCell(TEACHER, "teacher", "digits", "big", None, None, 0, 0, {}),
        ManifestCell(STUDENT, "student", "digits", "small", "big", "kd", 0, 0, {"teacher": TEACHER}),
    ),
    margin=0.002,
    teacher_requirements={TEACHER: TeacherRequirement("top1", 0.9, (0.93, 0.005))},
    profiles=(ProfileRef("digits", "big", "small", "kd", "cccccccccccc"),),
)

SPOILED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m.update(schema=99), "schema: 99: expected a number of at most 1 \\(another version of kdbench wrote it"),
    (lambda m: m.pop("schema"), "schema: None: expected a whole number"),
    (lambda m: m.pop("objectives"), "the file: the key 'objectives' is missing"),
    (lambda m: m.update(cells=3), "cells: 3: expected a list"),
    (lambda m: m.update(celsl=[]), "celsl: unknown key; did you mean 'cells'"),
    (lambda m: m.update(metrics=[]), "metrics: "),
    (lambda m: m.update(alpha=2), "alpha: 2: expected a number below 1"),
    (lambda m: m.update(alpha="0.05"), "alpha: '0.05': expected a number"),
    (lambda m: m.update(alpha=float("nan")), "it holds NaN"),
    (lambda m: m.update(repeats=0), "repeats: 0: expected a number of at least 1"),
    (lambda m: m.update(repeats=True), "repeats: True: expected a whole number"),
    (lambda m: m.update(repeats=2.5), "repeats: 2.5: expected a whole number"),
    (lambda m: m.update(teacher_seeds=-1), "teacher_seeds: -1: expected a number of at least 1"),
    (lambda m: m.update(margin=-0.1), "margin: -0.1: expected a number above 0"),
    (lambda m: m.update(margin=float("inf")), "it holds Infinity"),
    (lambda m: m.update(baselines=["ce"]), "baselines.0: 'ce' is no objective of the suite"),
    (lambda m: m.update(baselines=["kd", "kd"]), "baselines: 'kd' is given 2 times"),
    (lambda m: m["objectives"].append(m["objectives"][0]), "objectives: 'kd' is given 2 times"),
    (lambda m: m["blocks"].append(m["blocks"][0]), "blocks: .* is given 2 times"),
    (lambda m: m["cells"][0].pop("id"), "cells.0: the key 'id' is missing"),
    (lambda m: m["cells"][0].update(id=7), "cells.0.id: 7: expected text"),
    (lambda m: m["cells"][1].update(id="A" * 12), "cells.1.id: 'AAAAAAAAAAAA': expected"),
    (lambda m: m["cells"][1].update(id="../../../etc"), "cells.1.id: '../../../etc': expected"),
    (lambda m: m["cells"][1].update(id=TEACHER), f"cells: '{TEACHER}' is given 2 times"),
    (lambda m: m["cells"][1].update(depends={"teacher": "b" * 12}), "cells.1.depends.teacher: 'bbbbbbbbbbbb' is no cell of the suite"),
    (lambda m: m["cells"][1].update(depends=[]), "cells.1.depends: expected a mapping"),
    (lambda m: m["cells"][1].update(objective="dkd"), "cells.1.objective: 'dkd' is no objective of the suite"),
    (
        lambda m: m["cells"][1].update(role="pupil"),
        "cells.1.role: 'pupil': expected 'student', 'teacher', 'trial', 'control' or 'first_stage'",
    ),
    (lambda m: m["cells"][1].update(repeat=-1), "cells.1.repeat: -1: expected a number of at least 0"),
    (lambda m: m["cells"][1].update(repeat="0"), "cells.1.repeat: '0': expected a whole number"),
    (lambda m: m["teacher_requirements"].update({STUDENT[::-1]: {"metric": "top1", "min": 0.5}}), "is no cell of the suite"),
    (
        lambda m: m["teacher_requirements"][TEACHER].update(metric="map"),
        f"teacher_requirements.{TEACHER}.metric: 'map' is no metric of the suite",
    ),
    (lambda m: m["teacher_requirements"][TEACHER].update(min="high"), f"teacher_requirements.{TEACHER}.min: 'high': expected a number"),
    (lambda m: m["teacher_requirements"][TEACHER].update(declared=[0.9]), "teacher_requirements.*declared: the key '1' is missing"),
    (lambda m: m["teacher_requirements"][TEACHER].update(declared=[0.9, -1]), "declared.1: -1: expected a number of at least 0"),
    (lambda m: m["profiles"][0].update(id="../x"), "profiles.0.id: '../x': expected"),
    (lambda m: m["profiles"][0].update(objective="ce"), "profiles.0.objective: 'ce' is no objective of the suite"),
]


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_manifest("tiny", WHOLE)

    assert store.manifest("tiny") == WHOLE
    assert Manifest.from_json(json.loads(json.dumps(WHOLE.to_json()))) == WHOLE


def test_whatever_else_stands_in_the_file_is_named_with_file_field_and_value(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.suite_folder("tiny") / "manifest.json"
    for spoil, message in SPOILED:
        raw = json.loads(json.dumps(WHOLE.to_json()))
        spoil(raw)
        store.write_text(path, json.dumps(raw))
        with pytest.raises(DamagedError, match=f"{path} is damaged.*{message}"):
            store.manifest("tiny")
    for text in ("{", "[]", "null", "3", '"x"', "\x00", ""):
        store.write_text(path, text)
        with pytest.raises(DamagedError, match=f"{path} is damaged"):
            store.manifest("tiny")


def test_a_run_meets_what_is_required_of_a_teacher_or_falls_short_in_words() -> None:
    texts = {
        0.93: "",
        0.9251: "",
        0.89: "top-1 89.00 %, below the required 90.00 %",
        0.99: "top-1 99.00 %, but 93.00 % was declared (tolerance 0.50 %)",
        None: "no top-1, below the required 90.00 %",
        float("nan"): "no top-1, below the required 90.00 %",
    }
    for value, text in texts.items():
        assert WHOLE.shortfall(TEACHER, {"top1_last": value}) == text
    assert WHOLE.shortfall(STUDENT, {"top1_last": 0.1}) == ""
    lower = Manifest(**{**vars(WHOLE), "teacher_requirements": {TEACHER: TeacherRequirement("nll", 0.5)}})
    assert lower.shortfall(TEACHER, {"nll_last": 0.7}) == "NLL 0.7, above the required 0.5"
    assert lower.shortfall(TEACHER, {"nll_last": 0.3}) == ""
