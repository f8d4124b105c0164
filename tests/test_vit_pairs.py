"""A vision transformer as teacher of a small convolutional net and of a Swin: every loss that takes the pair trains, alone or in a bundle,
killed or not, to the same bits."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench import parts
from kdbench.errors import SuiteError
from kdbench.plan import probe
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.store import Store
from tests.losses.toys import for_classifiers
from tests.test_kill import VICTIM

EPOCHS = 2
PAIRS = {
    "recipe": f"{{name: short, epochs: {EPOCHS}, batch_size: 16, lr: 0.02, milestones: [1]}}",
    "teachers": "{vit: {model: vit_tiny_patch16_224, patch_size: 2, embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0.1, min_top1: 0.0}}",
    "students": """
        cnn: {model: small_mobile, widths: [4, 6]}
        swin: {model: swin_tiny_patch4_window7_224, patch_size: 1, window_size: 4, embed_dim: 8, depths: [1, 1], num_heads: [1, 2]}
        """,
    "repeats": "1",
}
OF_THE_LOGITS_AND_FEATURES = {"ce", "kd:crd", "kd:lskd", "cc:crd", "rkd:crd", "rcka:lcka"}


def of(presets: list[tuple[str, str]]) -> str:
    lines = ["ce:"]
    for loss, preset in presets:
        weight = parts.load("loss", loss).make.presets[preset].weight
        lines.append(f'"{loss}:{preset}": {"{weight: 1, weight_from: assumed}" if weight is None else ""}')
    return "\n".join(lines)


@pytest.fixture
def pairs(plan_of: Callable[..., Plan]) -> Callable[..., Plan]:
    """The plan of both pairs with the presets that neither refuses."""

    def planned(presets: list[tuple[str, str]]) -> Plan:
        plan = plan_of(**PAIRS, objectives=of(presets))
        try:
            probe.probe(plan)
            return plan
        except SuiteError as error:
            refused = {re.search(r"objectives\.(\S+): \w+ <- vit: the loss '\w+' cannot be used: .", text) for text in error.errors}
            assert None not in refused, error
            names = {one[1] for one in refused if one}
            return planned([one for one in presets if ":".join(one) not in names])

    return planned


def results(store: Store, plan: Plan) -> dict[str, Any]:
    records = {cell_id: store.record(cell_id) for cell_id in plan.cells}
    return {cell_id: record and record.result for cell_id, record in records.items()}


def train_alone(plan: Plan, train: Callable[..., int], store: Store) -> None:
    for row in plan.rows:
        assert train(plan, [row.cell.id], store=store) == 0


def compare(plan: Plan, train: Callable[..., int], tmp_path: Path) -> None:
    together, alone = Store(tmp_path / "together"), Store(tmp_path / "alone")
    assert train(plan, store=together) == 0
    train_alone(plan, train, alone)
    one, other = results(together, plan), results(alone, plan)
    assert None not in one.values() and one == other
    outcomes = {record.outcome for cell_id in plan.cells if (record := together.record(cell_id))}
    assert outcomes == {"finished"}


@pytest.mark.slow
def test_a_bundle_of_a_transformers_students_is_each_of_them_alone(
    pairs: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    plan = pairs([(loss, next(iter(parts.load("loss", loss).make.presets))) for loss in filter(for_classifiers, parts.names("loss"))])
    assert {"ce", "kd:crd", "cc:zoo", "rkd:crd"} <= set(plan.suite.objectives)
    compare(plan, train, tmp_path)


@pytest.mark.slow
def test_every_preset_that_takes_a_transformer_as_teacher_trains_alone_as_in_a_bundle(
    pairs: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    distinct: dict[tuple[str, str], tuple[str, str]] = {}  # of presets that differ in their weights alone the first
    for loss in parts.names("loss"):
        part = parts.load("loss", loss)
        for preset, one in part.make.presets.items():
            if for_classifiers(loss, preset):
                distinct.setdefault((loss, str(part.options(dict(one.options)))), (loss, preset))
    plan = pairs(list(distinct.values()))
    assert set(plan.suite.objectives) >= OF_THE_LOGITS_AND_FEATURES
    compare(plan, train, tmp_path)


@pytest.mark.parametrize(
    ("where", "losses"),
    [
        ("in the middle of an epoch", ["kd:crd"]),
        pytest.param("during evaluation", ["kd:crd", "cc:crd", "sp:crd", "rkd:crd"], marks=pytest.mark.slow),
    ],
)
def test_a_killed_bundle_of_a_transformers_students_resumes_to_the_same_bits(
    where: str, losses: list[str], pairs: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = pairs([tuple(one.split(":")) for one in losses])
    undisturbed = Store(tmp_path / "undisturbed")
    train(plan, store=undisturbed)
    train(plan, [plan.teachers[0].cell.id])
    local.prepare(plan, store)
    ids = [row.cell.id for row in plan.rows if row.role == "student" and row.teacher]
    script = tmp_path / "victim.py"
    script.write_text(VICTIM)
    victim = subprocess.run([sys.executable, str(script), where, "0", str(store.root), *ids], capture_output=True, text=True)
    assert victim.returncode == -9, victim.stdout + victim.stderr
    assert any(list(store.cell_folder(cell_id).glob("checkpoint*")) for cell_id in ids)
    assert not any(store.is_done(cell_id) for cell_id in ids)

    train(plan, checkpoint_every_s=0.0)
    assert results(store, plan) == results(undisturbed, plan)
