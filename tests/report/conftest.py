"""A small suite on disk, as `run` would leave it: two students of one teacher pair, cross-entropy shared by two teachers."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.manifest import Manifest
from kdbench.record import Profile, Record
from kdbench.store import Store

OBJECTIVES = (("ce", "ce", "published"), ("kd", "kd", "published"), ("cc", "cc (taylor)", "published"), ("cka", "cka", "assumed"))
GAIN = {"ce": 0.0, "kd": 0.02, "cc": 0.021, "cka": 0.03}


class QuickStore(Store):
    """Without fsync: thousands of small files, which no test pulls the plug on."""

    def write_bytes(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Made:
    """A suite whose cells can be finished, failed and broken one by one."""

    def __init__(
        self, root: Path, *, teachers=("big",), students=("small",), repeats=5, teacher_seeds=1, objectives=OBJECTIVES, suite="quickstart"
    ):
        self.store = QuickStore(root)
        self.suite = suite
        self.ids = (f"{number:012x}" for number in itertools.count(0xA0000000))
        self.manifest: dict[str, Any] = {
            "schema": 1,
            "suite": suite,
            "description": "Four objectives on the digits.",
            "metrics": [
                {"name": "top1", "label": "top-1", "percent": True, "higher_is_better": True},
                {"name": "nll", "label": "NLL", "percent": False, "higher_is_better": False},
            ],
            "baselines": [name for name, _, _ in objectives if name in ("ce", "kd")],
            "assumed": ["the digits stand for natural images"],
            "repeats": repeats,
            "teacher_seeds": teacher_seeds,
            "alpha": 0.05,
            "objectives": [{"name": name, "label": label, "weight_from": source} for name, label, source in objectives],
            "blocks": [{"dataset": "digits", "teacher": teacher, "student": student} for teacher in teachers for student in students],
            "cells": [],
            "teacher_requirements": {},
            "profiles": [],
        }
        trained = {
            (teacher, seed): self._cell("teacher", teacher, None, None, seed, seed) for teacher in teachers for seed in range(teacher_seeds)
        }
        for student, repeat in itertools.product(students, range(repeats)):
            for name, _, _ in objectives:
                if name == "ce":
                    self._cell("student", student, None, "ce", repeat, None)
                    continue
                for teacher, seed in itertools.product(teachers, range(teacher_seeds)):
                    self._cell("student", student, teacher, name, repeat, seed, {"teacher": trained[teacher, seed]})

    def _cell(self, role, student, teacher, objective, repeat, teacher_seed, depends=None) -> str:
        line = {"id": next(self.ids), "role": role, "dataset": "digits", "student": student, "teacher": teacher}
        line |= {"objective": objective, "repeat": repeat, "teacher_seed": teacher_seed, "depends": depends or {}}
        self.manifest["cells"].append(line)
        return line["id"]

    def cells(self, **wanted) -> list[dict[str, Any]]:
        return [cell for cell in self.manifest["cells"] if all(cell[key] == value for key, value in wanted.items())]

    def finish(
        self, cell_id: str, value: float | None, *, outcome="finished", fingerprint="f00d", n_train=300, n_test=900, history=()
    ) -> None:
        metrics = {} if outcome != "finished" else {"top1_last": value, "top1_best_val": None, "top1_best_test": value, "nll_last": 0.5}
        result = {"metrics": metrics, "history": list(history), "n_train": n_train, "n_test": n_test, "data_fingerprint": fingerprint}
        result["diverged_at_step"] = None if outcome == "finished" else 120
        circumstance = {"device": "cpu", "torch": "2.9", "kdbench": "0.1.0", "train_s": 1.5, "host": "node1"}
        self.store.put_record(Record(cell_id, {}, outcome, result, circumstance))

    def finish_all(self, seed=0, noise=0.004, gain=GAIN) -> Made:
        draw = np.random.default_rng(seed)
        shared: dict[int, float] = {}
        for cell in self.manifest["cells"]:
            if cell["role"] == "teacher":
                self.finish(cell["id"], 0.961)
                continue
            luck = shared.setdefault(cell["repeat"], float(draw.normal(0, noise)))
            self.finish(cell["id"], 0.90 + gain[cell["objective"]] + luck + float(draw.normal(0, noise / 2)))
        return self

    def profile(self, objective: str, teacher: str | None = "big", step_ms=12.34, device="cpu (2 cores)") -> None:
        line = {
            "dataset": "digits",
            "teacher": teacher,
            "student": "small",
            "objective": objective,
            "id": hashlib.sha256(objective.encode()).hexdigest()[:12],
        }
        self.manifest["profiles"].append(line)
        parts = {
            f"{part}_ms": {"median": step_ms / 4, "q1": step_ms / 5, "q3": step_ms / 3} for part in ("data", "teacher", "student", "loss")
        }
        result = {"step_ms": {"median": step_ms, "q1": step_ms - 1, "q3": step_ms + 1}, **parts, "optimizer_ms": {"median": 0.5}}
        result |= {"images_per_s": 5186.4, "peak_mem_gib": None, "added_parameters": 1234567, "added_flops": 2.5e6}
        self.store.put_profile(line["id"], Profile({}, device, result, {}))

    def write(self) -> Made:
        self.store.put_manifest(self.suite, self.checked())
        return self

    def checked(self) -> Manifest:
        return Manifest.from_json(self.manifest)


@pytest.fixture
def made(tmp_path):
    """Makes suites under one results folder: `made(teachers=("big", "other"))`."""
    return lambda **options: Made(tmp_path, **options)
