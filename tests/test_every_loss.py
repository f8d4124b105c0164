"""Every loss of the package, in every form that a preset gives it, on real images: trained beside all others, alone, and killed and
resumed, to the same bits. With digits everywhere; with CIFAR-100 where it is in data/."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench import parts
from kdbench.plan.bundle import bundles
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.store import Store
from tests.losses.toys import for_classifiers
from tests.test_kill import VICTIM

REAL = Path(__file__).parents[1] / "data"
NO_CIFAR = pytest.mark.skipif(not (REAL / "cifar-100-python").is_dir(), reason="needs the real CIFAR-100 in data/cifar-100-python")

# Equal widths, because some losses compare channel by channel or need equal channels.
SUITE = {
    "recipe": "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1]}",
    "teachers": "{big: {model: cifar_resnet, depth: 14, widths: [8, 8, 16, 16], min_top1: 0.0}}",
    "students": "{small: {model: cifar_resnet, depth: 8, widths: [8, 8, 16, 16]}}",
    "repeats": "1",
}


ONE_BUNDLE = 1000


def every_form(smallest_map: int) -> str:
    """An objective for each preset of each loss; of those that differ in nothing but weights the first. Grids are of fields larger than
    a position of the last map."""
    lines, seen = ["ce:"], set()
    for loss in parts.names("loss"):
        part = parts.load("loss", loss)
        for name, preset in part.make.presets.items():
            form = (loss, str(part.options(dict(preset.options))), str(preset.two_stages), preset.dot)
            if form not in seen and for_classifiers(loss, name):
                seen.add(form)
                given = ["weight: 1, weight_from: assumed"] if preset.weight is None else []
                given += ["two_stages: {epochs: 2}"] if preset.two_stages else []
                given += [f"patch: {smallest_map // 2}"] if loss == "pcka" else []
                given += ["grid: 1"] if preset.options.get("grid", 1) >= smallest_map else []
                lines.append(f'"{loss}:{name}": {{{", ".join(given)}}}')
    assert {line.split(":")[0].strip('"') for line in lines} == {*filter(for_classifiers, parts.names("loss")), "ce"}
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "smallest_map"),
    [("{name: digits, per_class: 6}", 2), pytest.param("{name: cifar100, subset: {classes: 10, per_class: 6}}", 8, marks=NO_CIFAR)],
    ids=["digits", "cifar100"],
)
def test_every_loss_trains_beside_all_others_alone_and_killed_to_the_same_bits(
    dataset: str, smallest_map: int, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    if REAL.is_dir():
        (tmp_path / "cifar-100-python").symlink_to(REAL / "cifar-100-python")
    plan = plan_of(dataset=dataset, objectives=every_form(smallest_map), **SUITE)
    together, alone = Store(tmp_path / "together"), Store(tmp_path / "alone")
    assert train(plan, store=together, side_by_side=ONE_BUNDLE) == 0
    expected = {cell_id: together.record(cell_id) for cell_id in plan.cells}
    assert {record and record.outcome for record in expected.values()} == {"finished"}

    for cell_id in sorted(plan.cells, key=lambda one: len(plan.cells[one].depends)):
        assert train(plan, [cell_id], store=alone) == 0

    teachers = [row.cell.id for row in plan.teachers]
    train(plan, teachers, store=store)
    local.prepare(plan, store)
    script = tmp_path / "victim.py"
    script.write_text(VICTIM)
    students = [cell for cell in plan.cells.values() if cell.id not in teachers]
    for bundle in sorted(bundles(students, None, ONE_BUNDLE), key=lambda one: len(one.cells[0].depends)):
        ids = bundle.ids
        inside = 5 * len(ids) + len(ids) // 2 + 1  # inside the second step of the second epoch, each of 4
        arguments = [f"at step {inside}", "0", str(store.root), "--data", str(tmp_path), "--side-by-side", str(ONE_BUNDLE), *ids]
        victim = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
        assert victim.returncode == -9, victim.stdout + victim.stderr
        assert not any(store.is_done(cell_id) for cell_id in ids)
        assert all(list(store.cell_folder(cell_id).glob("checkpoint*")) for cell_id in ids)
        assert train(plan, ids, store=store, checkpoint_every_s=0.0, side_by_side=ONE_BUNDLE) == 0

    def differing(others: Store) -> dict[str, Any]:
        names = {row.cell.id: row.objective for row in plan.rows}
        records = {cell_id: others.record(cell_id) for cell_id in plan.cells}
        return {
            cell_id: names.get(cell_id)
            for cell_id, record in records.items()
            if (record and record.result) != (expected[cell_id] and expected[cell_id].result)
        }

    assert differing(alone) == {}
    assert differing(store) == {}
