"""A table of a teacher's outputs: the bits of the live teacher, or the live teacher; never a wrong number."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.losses._base import Taps
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.train.teacher import LiveTeacher
from kdbench.train.teacher_table import RelationTable, TeacherTable

SERVED = {
    "repeats": "2",
    "objectives": """
    ce:
    kd: {controls: [shuffled, shuffled_in_class]}
    rkd:
    dkd:
    cc:
    """,
}


def results(store: Store, plan: Plan) -> dict[str, Any]:
    return {cell_id: record.result for cell_id in plan.cells if (record := store.record(cell_id))}


def providers(store: Store, plan: Plan) -> set[str | None]:
    return {record.circumstance["teacher"] for cell_id in plan.cells if (record := store.record(cell_id))}


def table_of(store: Store) -> Path:
    (path,) = (store.root / "tables").glob("*/*.rows")
    return path


@pytest.fixture
def train(train: Callable[..., int]) -> Callable[..., int]:
    """Train with tables, unless the test says otherwise."""
    return lambda *arguments, **options: train(*arguments, **{"provider": "table", **options})


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the batches that the teacher is run on, for the students that are trained in this process."""
    seen: list[int] = []
    real = LiveTeacher.taps

    def counted(self: LiveTeacher, inputs: Any, place: Any = None) -> Taps:
        seen.append(len(inputs))
        return real(self, inputs, place)

    monkeypatch.setattr(LiveTeacher, "taps", counted)
    yield seen


def test_training_from_a_table_gives_the_results_of_the_live_teacher_bit_for_bit(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    """Each objective in a bundle of its own, so that all but the first of a repeat read what it has written."""
    plan = plan_of(**SERVED)
    live, tabled = Store(tmp_path / "live"), Store(tmp_path / "tabled")
    train(plan, store=live, provider="live")
    train(plan, store=tabled, side_by_side=1, provider="table")

    assert results(live, plan) == results(tabled, plan) and len(results(live, plan)) == len(plan.cells)
    assert providers(live, plan) == {None, "live"} and providers(tabled, plan) == {None, "table"}
    assert not (live.root / "tables").exists() and table_of(tabled).stat().st_size


def test_what_is_in_the_table_is_recomputed_once_an_epoch_and_not_else(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, forwards: list[int]
) -> None:
    """Forty images in batches of 16: two whole ones and a ragged one of 8, in three epochs."""
    plan = plan_of(objectives="[kd, dkd]", repeats="1")
    teacher, kd, dkd = plan.cells
    train(plan, [teacher, kd])
    # The first batch twice more, in other places. Then views rarely come back in so short a training.
    assert forwards == [16, 16, 16, 16, 8, *[16, 16, 8] * 2]
    forwards.clear()
    train(plan, [dkd])

    assert forwards == [16, 16, 16, 8, *[16, 8] * 2]


@pytest.mark.parametrize(
    "change",
    [
        {"objectives": "[kd, at]"},
        {"recipe": "{name: short, epochs: 3, batch_size: 16, lr: 0.02, milestones: [2], rand_augment: rand-m6-mstd0.5-inc1}"},
        {"recipe": "{name: short, epochs: 3, batch_size: 16, lr: 0.02, milestones: [2], mixup: 0.4}"},
    ],
    ids=["maps", "many views", "mixed images"],
)
def test_a_bundle_that_a_table_cannot_serve_has_the_live_teacher(
    change: dict[str, str], plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(**{"repeats": "1", "objectives": "[kd]", **change})
    train(plan, provider="table")

    assert providers(store, plan) == {None, "live"} and not (store.root / "tables").exists()
    assert f"teacher {plan.teachers[0].cell.id} is run at each step: " in capsys.readouterr().out


RELATIONAL = {
    "repeats": "2",
    "objectives": """
    kd:
    sp:
    pkt: {tap: last}
    cka: {weight: 1, weight_from: assumed}
    sp2: {loss: sp, tap: stages}
    rcka: {weight: 1, weight_from: assumed}
    """,
}


def test_what_losses_compute_of_maps_is_read_from_tables_bit_for_bit(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path, forwards: list[int]
) -> None:
    """Every bundle that has a batch again is served; the first of a repeat has the live teacher."""
    plan = plan_of(**RELATIONAL)
    live, tabled = Store(tmp_path / "live"), Store(tmp_path / "tabled")
    train(plan, store=live, provider="live")
    train(plan, store=tabled, provider="table")
    assert providers(tabled, plan) == {None, "live"}
    for row in plan.rows:
        if row.role == "student":
            shutil.rmtree(tabled.file(row.cell.id, "record.json").parent)
    forwards.clear()
    train(plan, store=tabled, provider="table", side_by_side=2)

    assert results(live, plan) == results(tabled, plan) and len(results(live, plan)) == len(plan.cells)
    assert providers(tabled, plan) == {None, "table"}
    # Three bundles of two repeats: in three epochs a whole batch and the ragged one, and at the start two in other places.
    assert sorted(forwards) == sorted([*[16, 8] * 3, 16, 16] * 6)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "moved", "emptied", "noise"])
def test_no_damage_to_relations_changes_a_result(
    damage: str, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = plan_of(objectives="{sp: , light: {loss: sp, weight: 1, weight_from: assumed}}", repeats="1")
    *first, light = plan.cells
    train(plan, first)
    width = 8 + 16 + 4 * 16 * 16
    (path,) = (one for one in (store.root / "tables").glob("*/*.rows") if one.stat().st_size % width == 0)
    path.write_bytes(globals()[damage](path.read_bytes(), width))
    assert train(plan, [light]) == 0
    other = Store(tmp_path / "live")
    train(plan, store=other, provider="live")

    assert results(store, plan) == results(other, plan)


def test_a_relation_with_other_numbers_fails_the_bundle_loudly_and_is_set_aside(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(objectives="{sp: , light: {loss: sp, weight: 1, weight_from: assumed}}", repeats="1")
    *first, light = plan.cells
    real = RelationTable.put
    with monkeypatch.context() as patched:
        patched.setattr(RelationTable, "put", lambda self, step, place, values: real(self, step, place, [2 * one for one in values]))
        assert train(plan, first) == 0
    assert train(plan, [light]) == 1
    failure = store.failure(light)

    assert failure and "sp.SP differs by" in failure.message and "set aside as" in failure.message
    assert train(plan, [light]) == 0


def test_a_relation_of_other_images_views_or_order_is_missing(tmp_path: Path) -> None:
    like = [torch.rand(3, 3), torch.tensor(2.0, dtype=torch.float64), torch.rand(5).bfloat16()]
    table = RelationTable(tmp_path / "one.rows", like, 10)
    place = np.array([4, 2, 9]), np.array([0, 1, 2])
    assert table.get(6, place) is None
    table.put(6, place, like)
    again = table.get(6, place)

    assert again is not None and all(torch.equal(one, other) for one, other in zip(again, like, strict=True))
    for changed in ((place[0][::-1], place[1]), (place[0], place[1][::-1]), (place[1], place[0]), (place[0] + 1, place[1])):
        assert table.get(6, changed) is None
    assert table.get(5, place) is None


def truncated(raw: bytes, row: int) -> bytes:
    return raw[: len(raw) // 2]


def flipped(raw: bytes, row: int) -> bytes:
    """One bit in every row, each time another one."""
    changed = bytearray(raw)
    for start in range(0, len(raw) - row, row):
        changed[start + start // row % row] ^= 1 << (start // row % 8)
    return bytes(changed)


def moved(raw: bytes, row: int) -> bytes:
    return raw[row:] + raw[:row]


def emptied(raw: bytes, row: int) -> bytes:
    return bytes(len(raw))


def noise(raw: bytes, row: int) -> bytes:
    return np.random.default_rng(1).bytes(len(raw))


@pytest.mark.parametrize("damage", [truncated, flipped, moved, emptied, noise])
def test_no_damage_to_a_table_changes_a_result(
    damage: Callable[[bytes, int], bytes], plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = plan_of(objectives="[kd, dkd]", repeats="1")
    *first, dkd = plan.cells
    train(plan, first)
    path = table_of(store)
    path.write_bytes(damage(path.read_bytes(), 8 + 10 * 4 + 12 * 4))
    assert train(plan, [dkd]) == 0
    other = Store(tmp_path / "live")
    train(plan, store=other, provider="live")

    assert results(store, plan) == results(other, plan)


def test_a_table_with_other_numbers_than_the_teachers_fails_the_bundle_loudly_and_is_set_aside(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole rows, as another library would have written them."""
    plan = plan_of(objectives="[kd]", repeats="1")
    kd = list(plan.cells)[-1]
    real = TeacherTable.put

    def off(self: TeacherTable, place: Any, taps: Taps) -> None:
        real(self, place, taps.map(lambda tensor: tensor * (1 + 1e-6)))

    with monkeypatch.context() as patched:
        patched.setattr(TeacherTable, "put", off)
        assert train(plan) == 1
    failure = store.failure(kd)

    assert (
        failure
        and "does not hold what teacher" in failure.message
        and "differs by" in failure.message
        and "set aside as" in failure.message
    )
    (aside,) = (store.root / "tables").glob("*/*.damaged-*")
    assert not aside.with_name(f"{aside.name.partition('.')[0]}.rows").exists()
    assert train(plan, [kd]) == 0 and table_of(store).exists()


@pytest.mark.parametrize("what", ["weights", "library", "padding"])
def test_another_teacher_library_or_view_has_another_table(
    what: str, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(objectives="[kd]", repeats="1")
    train(plan)
    if what == "library":
        monkeypatch.setattr("kdbench.train.teacher_table.installed", lambda name: "another")
        other = plan_of(objectives="[dkd]", repeats="1")
    elif what == "padding":
        other = plan_of(objectives="[dkd]", repeats="1", dataset="{name: digits, per_class: 4, padding: 2}")
    else:
        other = plan_of(objectives="[dkd]", repeats="1", teachers="{big: {model: small_mobile, widths: [8, 16], min_top1: 0.0}}")
    train(other)

    assert len(list((store.root / "tables").glob("*/*.rows"))) == 2


def test_a_full_disk_leaves_the_live_teacher(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(objectives="[kd, dkd]", repeats="1")
    real, written = os.pwrite, [0]

    def filling(file: int, data: bytes, place: int) -> int:
        written[0] += 1
        if written[0] > 20:
            raise OSError(28, "No space left on device")
        return real(file, data, place)

    monkeypatch.setattr(os, "pwrite", filling)
    assert train(plan) == 0
    monkeypatch.undo()
    other = Store(tmp_path / "live")
    train(plan, store=other, provider="live")

    assert results(store, plan) == results(other, plan) and written[0] == 21


def test_a_disk_with_little_room_gets_no_rows(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbench.store.rows.SPARE_BYTES", 2**60)
    plan = plan_of(objectives="[kd]", repeats="1")
    assert train(plan) == 0

    assert table_of(store).stat().st_size == 0 and providers(store, plan) == {None, "live"}


def test_a_table_that_cannot_be_made_leaves_the_live_teacher(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.root.mkdir(parents=True)
    (store.root / "tables").write_text("a file where the folder belongs")
    plan = plan_of(objectives="[kd]", repeats="1")
    assert train(plan) == 0

    assert "is run at each step: " in capsys.readouterr().out


def _fill(path: str, seed: int) -> None:
    table = TeacherTable(Path(path), {"logits": (torch.float32, 5), "pooled": (torch.float32, 7)}, 50, 9)
    draws = np.random.default_rng(seed)
    for _ in range(200):
        place = draws.integers(0, 50, 8), draws.integers(0, 9, 8)
        table.put(place, row_of(place))


def row_of(place: Any) -> Taps:
    base = torch.as_tensor(place[0] * 9 + place[1])[:, None].float()
    return Taps(logits=base + torch.arange(5) / 8, pooled=base * 3 - torch.arange(7))


@pytest.mark.slow
def test_processes_that_fill_one_table_at_once_leave_only_right_rows(tmp_path: Path) -> None:
    path = tmp_path / "one.rows"
    workers = [multiprocessing.get_context("spawn").Process(target=_fill, args=(str(path), seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    table = TeacherTable(path, {"logits": (torch.float32, 5), "pooled": (torch.float32, 7)}, 50, 9)
    found = 0
    for image in range(50):
        for view in range(9):
            place = np.array([image]), np.array([view])
            if row := table.get(place):
                found += 1
                assert torch.equal(row["logits"], row_of(place).logits) and torch.equal(row["pooled"], row_of(place).pooled)

    assert all(worker.exitcode == 0 for worker in workers) and found > 440


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 3, 10, 64])
def test_rows_of_any_width_and_type_come_back_as_they_were(dtype: torch.dtype, width: int, tmp_path: Path) -> None:
    table = TeacherTable(tmp_path / "one.rows", {"logits": (dtype, width), "pooled": (dtype, 2 * width + 1)}, 20, 3)
    place = np.array([3, 19, 0, 7]), np.array([2, 0, 1, 1])
    taps = Taps(logits=torch.randn(4, width).to(dtype), pooled=torch.randn(4, 2 * width + 1).to(dtype))
    assert table.get(place) is None
    table.put(place, taps)
    again = table.get((place[0][::-1], place[1][::-1]))

    assert again is not None
    assert torch.equal(again["logits"].flip(0), taps.logits) and torch.equal(again["pooled"].flip(0), taps.pooled)
    assert table.get((np.array([3, 4]), np.array([2, 2]))) is None


def test_a_run_that_is_stopped_and_resumed_reads_the_same_table(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    from kdbench.train.worker import Stop

    plan = plan_of(objectives="[kd]", repeats="1")
    whole, stopped = Store(tmp_path / "whole"), Store(tmp_path / "stopped")
    train(plan, store=whole, provider="live")
    train(plan, [plan.teachers[0].cell.id], store=stopped)
    (kd,) = (row.cell.id for row in plan.rows if row.role == "student")
    for _ in range(12):
        if stopped.is_done(kd):
            break
        train(plan, [kd], store=stopped, stop=Stop(1), checkpoint_every_s=0)

    assert results(stopped, plan) == results(whole, plan)


def test_the_identity_of_a_table_is_beside_it(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    plan = plan_of(objectives="[kd]", repeats="1")
    train(plan)
    identity = json.loads(table_of(store).with_suffix(".json").read_text())

    assert identity["teacher"] == plan.teachers[0].cell.id and identity["batch_size"] == 16 and "torch" in identity["versions"]


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_there_is_a_table_where_bits_depend_on_the_place_in_the_batch_only_if_the_numerics_promise_none(
    numerics: str,
    plan_of: Callable[..., Plan],
    train: Callable[..., int],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As those of a matrix product do on some processors. A table that is not used is recorded as a teacher that is run."""
    plan = plan_of(objectives="[kd]", repeats="1", numerics=numerics)
    real, far = LiveTeacher.taps, [1.01]

    def uneven(self: LiveTeacher, inputs: Any, place: Any = None) -> Taps:
        def by_place(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor * torch.linspace(1, far[0], len(tensor))[(...,) + (None,) * (tensor.ndim - 1)]).to(tensor.dtype)

        return real(self, inputs, place).map(by_place)

    monkeypatch.setattr(LiveTeacher, "taps", uneven)
    assert train(plan) == 0

    there = numerics == "fast"
    assert ("on this processor the bits of its" in capsys.readouterr().out, (store.root / "tables").exists()) == (not there, there)
    assert providers(store, plan) == {None, "table" if there else "live"}

    far[0], other = 1.5, Store(store.root / "other")
    assert train(plan, store=other) == 0 and providers(other, plan) == {None, "live"}
