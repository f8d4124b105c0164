"""Costs are measured apart from training, once a setting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kdbench.plan.matrix import Plan
from kdbench.run import cost
from kdbench.store import Store


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
    assert cost.main([str(store.root), *ids.values(), "--device", "cpu"]) == 0

    profiles = {name: store.profile(cost.profile_id(store, store.cell(cell_id), torch.device("cpu"))) for name, cell_id in ids.items()}
    results = {name: profile["result"] for name, profile in profiles.items() if profile}
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
    monkeypatch.setattr(cost, "measure", lambda *_: pytest.fail("measured again"))
    assert cost.main([str(store.root), *ids.values(), "--device", "cpu"]) == 0


def test_repeats_share_a_profile_and_objectives_do_not(plan_of: Callable[..., Plan], store: Store) -> None:
    plan = plan_of(objectives="[kd, sp]")
    for cell in plan.cells.values():
        store.put_cell(cell)
    names = {row.cell.id: cost.profile_id(store, row.cell, torch.device("cpu")) for row in plan.rows if row.role == "student"}

    assert len(names) == 4 and len(set(names.values())) == 2
