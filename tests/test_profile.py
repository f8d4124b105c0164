"""Costs are measured apart from training, once a setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from kdbench.manifest import ProfileRef
from kdbench.plan.matrix import Plan
from kdbench.record import Profile
from kdbench.run import local, verbs
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

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(stdout="", returncode=0)

    monkeypatch.setattr(verbs.subprocess, "run", run)
    verbs._measure(plan, store, local.Machine(store.root, tmp_path), Console())
    measured = {row.role for row in plan.rows if row.cell.id in commands[0]}

    assert measured == {"student"} and len(set(commands[0]) & set(plan.cells)) == 2
