"""Costs are measured apart from training, once a setting."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from kdbench.manifest import ProfileRef
from kdbench.plan.matrix import Plan
from kdbench.record import Profile
from kdbench.run import local, step_parts, verbs
from kdbench.store import Store
from kdbench.train import profile


def test_a_profile_tells_the_parts_of_a_step_and_what_the_loss_adds(
    plan_of: Callable[..., Plan],
    train: Callable[..., int],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = plan_of(objectives="[ce, sp, 'cc:crd']", repeats="1")
    train(plan)
    ids = {row.objective: row.cell.id for row in plan.rows if row.role == "student"}
    assert profile.main([str(store.root), *ids.values(), "--device", "cpu"]) == 0

    profiles = {name: store.profile(profile.profile_id(store, store.cell(cell_id), torch.device("cpu"))) for name, cell_id in ids.items()}
    results = {name: one.result for name, one in profiles.items() if one}
    assert set(results) == set(ids)
    for name, result in results.items():
        step = result["step_ms"]
        assert 0 < step["q1"] <= step["median"] <= step["q3"]
        assert result["student_ms"]["median"] > max(result["forward_ms"]["median"], result["backward_ms"]["median"]) > 0
        assert result["images_per_s"] == pytest.approx(16 / step["median"] * 1e3)
        assert 0 < result["peak_mem_gib"] < 1
        assert ("teacher_ms" in result) == ("loss_ms" in result) == (name != "ce")
    # Both embeddings of the CRD protocol's CC: 6 and 12 features to 128, with biases.
    assert results["cc:crd"]["added_parameters"] == (6 + 1) * 128 + (12 + 1) * 128
    assert results["sp"]["added_parameters"] == results["ce"]["added_parameters"] == results["ce"]["added_flops"] == 0
    assert results["sp"]["added_flops"] > 0

    capsys.readouterr()
    monkeypatch.setattr(profile, "measure", lambda *_: pytest.fail("measured again"))
    assert profile.main([str(store.root), *ids.values(), "--device", "cpu"]) == 0


def test_repeats_share_a_profile_and_objectives_do_not(plan_of: Callable[..., Plan], store: Store) -> None:
    plan = plan_of(objectives="[kd, sp]")
    for cell in plan.cells.values():
        store.put_cell(cell)
    names = {row.cell.id: profile.profile_id(store, row.cell, torch.device("cpu")) for row in plan.rows if row.role == "student"}

    assert len(names) == 4 and len(set(names.values())) == 2


def test_a_cost_is_carried_over_only_to_the_setting_that_it_was_measured_of(plan_of: Callable[..., Plan], store: Store) -> None:
    base = {"objectives": "[ce, kd]", "repeats": "1"}
    plan = plan_of(**base)
    refs = []
    for row in (row for row in plan.rows if row.role == "student"):
        local.prepare(plan, store)
        name = profile.profile_id(store, row.cell, torch.device("cpu"))
        store.put_profile(name, Profile(profile.setting_of_cell(store, row.cell), "cpu", {"step_ms": {"median": 1.0}}, {}))
        refs.append(ProfileRef(plan.suite.dataset["name"], row.teacher, row.student, row.objective or "", name))
    whole = replace(local.prepare(plan, store), profiles=tuple(refs))

    def kept(**changes: str) -> set[str]:
        store.put_manifest("tiny", whole)
        return {ref.objective for ref in local.prepare(plan_of(**{**base, **changes}), store).profiles}

    assert kept() == kept(repeats="2") == {"ce", "kd"}
    assert kept(objectives="{ce: {}, kd: {temperature: 2}}") == {"ce"}
    assert kept(objectives="[kd, sp]") == {"kd"}
    for changed in (
        {"recipe": "{name: short, epochs: 1, batch_size: 8}"},
        {"numerics": "fast"},
        {"dataset": "{name: digits, per_class: 8}"},
    ):
        assert kept(**changed) == set()
    store.profile_file(refs[0].id).write_text("[]")
    assert kept() == {"kd"}


def test_a_damaged_profile_is_set_aside_and_measured_again(
    plan_of: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    local.prepare(plan, store)
    (cell,) = (row.cell for row in plan.rows if row.role == "student")
    name = profile.profile_id(store, cell, torch.device("cpu"))
    found = Profile({}, "cpu", {"step_ms": {"median": 1.0}}, {})
    monkeypatch.setattr(profile, "measure", lambda *_: found)
    for text in ("{", "null", "{}"):
        store.write_text(store.profile_file(name), text)
        assert profile.main([str(store.root), cell.id, "--device", "cpu"]) == 0
        assert store.profile(name) == found and f"{name}.json is damaged" in capsys.readouterr().out


def test_the_costs_of_a_tuned_loss_are_those_of_its_final_runs(
    plan_of: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Trials have other images; a cost measured of them would be no cost of the suite's at the next run."""
    plan = plan_of(objectives="[ce, kd]", repeats="1", tune="{trials: 3}")
    local.prepare(plan, store)
    monkeypatch.setattr(verbs.cell_state, "of", lambda *_: SimpleNamespace(name="finished"))
    commands: list[list[str]] = []

    def start(command: list[str], **_: object) -> MagicMock:
        commands.append(command)
        process = MagicMock(returncode=0)
        process.__enter__.return_value = process
        process.communicate.return_value = "", None
        return process

    monkeypatch.setattr(verbs.subprocess, "Popen", start)
    verbs._measure(plan, store, local.Machine(store.root, tmp_path), Console())
    measured = {row.role for row in plan.rows if row.cell.id in commands[0]}

    assert measured == {"student"} and len(set(commands[0]) & set(plan.cells)) == 2


def test_profile_shows_the_parts_of_a_step_as_a_table_a_figure_and_files(
    write_suite: Callable[..., Path],
    plan_of: Callable[..., Plan],
    train: Callable[..., int],
    store: Store,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The parts add up to the step, and what is trained without a teacher stands in every pair of its student."""
    changes = {
        "objectives": "[kd, ce]",
        "repeats": "1",
        "teachers": "{a: {model: small_mobile, min_top1: 0.0}, b: {model: cifar_resnet, min_top1: 0.0}}",
    }
    plan = plan_of(**changes)
    manifest = local.prepare(plan, store)
    result = {"step_ms": 10.0, "data_ms": 1.0, "student_ms": 5.0, "forward_ms": 2.0, "backward_ms": 3.0, "optimizer_ms": 0.5}
    refs = []
    for row in (row for row in plan.rows if row.role == "student"):
        more = {"teacher_ms": 3.0, "loss_ms": 1.5} if row.teacher else {}
        times = {name: {"median": value, "q1": value, "q3": value} for name, value in {**result, **more}.items()}
        costs = {"images_per_s": 1600.0, "peak_mem_gib": 0.5, "added_parameters": 7, "added_flops": 2e6}
        store.put_profile(row.cell.id, Profile({}, "cpu", {**times, **costs}, {}))
        refs.append(ProfileRef("digits", row.teacher, row.student, row.objective or "", row.cell.id))
    manifest = replace(manifest, profiles=tuple(refs))

    table = step_parts.parts_frame(store, manifest)
    assert table[["objective", "teacher"]].to_numpy().tolist() == [["kd", "a"], ["kd", "b"], ["ce", "a"], ["ce", "b"]]
    assert table["rest_ms"].tolist() == pytest.approx([0.0, 0.0, 3.5, 3.5])
    folder = step_parts.show(store, manifest, sys.stdout)
    told = capsys.readouterr().out
    assert folder and sorted(path.name for path in folder.iterdir()) == ["profile.csv", "profile.md", "profile.pdf", "profile.png"]
    assert "a → small" in told and "b → small" in told and "512.0" in told and "2.00" in told
    lines = (folder / "profile.csv").read_text().splitlines()
    assert (
        lines[0].startswith("dataset,teacher,student,objective,device,data_ms,teacher_ms,forward_ms,backward_ms,loss_ms")
        and len(lines) == 5
    )
    assert step_parts.show(store, replace(manifest, profiles=()), sys.stdout) is None


@pytest.mark.parametrize(("images_per_s", "students"), [(1199.0, None), (1201.0, 2), (3601.0, 4)])
def test_profile_warns_where_the_cores_read_fewer_images_than_a_student_trains_on(images_per_s: float, students: int | None) -> None:
    rates = {"decode_images_per_s": 1000.0, "transform_images_per_s": 1500.0, "readers": 2}
    in_memory = {"images_per_s": 9e9, "readers": 2}
    rates_line, *warning = step_parts.reading_lines(
        [{**rates, "images_per_s": one} for one in (images_per_s / 2, images_per_s)] + [in_memory]
    )

    assert rates_line == "Reading, images/s of one core: 1,000 decoded, 1,500 transformed, 600 both."
    assert [f"unless bundles have {students} students or more" in line for line in warning] == ([True] if students else [])
    assert step_parts.reading_lines([in_memory]) == []


def test_a_profile_of_images_in_files_tells_how_fast_they_are_read(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in range(16):
        path = tmp_path / "set" / ("train", "val")[place % 2] / "ab"[place // 2 % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), 9 * place, dtype=np.uint8)).save(path)
    plan = plan_of(dataset="{name: folder, folder: set, classes: 2, size: 16, train_images: 8}", objectives="[ce]", repeats="1")
    assert train(plan) == 0
    (cell,) = (row.cell for row in plan.rows if row.role == "student")
    assert profile.main([str(store.root), cell.id, "--data", str(tmp_path), "--device", "cpu"]) == 0

    found = store.profile(profile.profile_id(store, cell, torch.device("cpu")))
    assert found and found.result["decode_images_per_s"] > 0 < found.result["transform_images_per_s"] and found.result["readers"] >= 1
    manifest = local.prepare(plan, store)
    name = profile.profile_id(store, cell, torch.device("cpu"))
    step_parts.show(store, replace(manifest, profiles=(ProfileRef("folder", None, "small", "ce", name),)), sys.stdout)
    assert "Reading, images/s of one core: " in capsys.readouterr().out


def test_the_bars_of_a_step_are_its_parts_one_after_another() -> None:
    parts = dict.fromkeys(step_parts.PARTS, 1.0) | {"teacher_ms": float("nan")}
    table = pd.DataFrame([{"label": "kd", "step_ms": 6.0, **parts}])
    axes = Figure().subplots()
    step_parts._times(table, ["ce", "kd"], dict.fromkeys(step_parts.PARTS, "black"), axes)

    bars = [(bar.get_x(), bar.get_width(), round(bar.get_y() + bar.get_height() / 2, 6)) for bar in axes.patches]
    assert bars == [(0, 1, 1), (1, 0, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (5, 1, 1)]
