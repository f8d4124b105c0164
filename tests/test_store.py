"""The disk's door: whole files or none, damage told apart from absence, one worker a cell."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.cell import Cell
from kdbench.errors import DamagedError, KdbenchError, StoreError
from kdbench.plan.matrix import Plan
from kdbench.record import Record
from kdbench.run import local
from kdbench.store import Store, cell_state


def record(cell_id: str = "abcdef012345", **result: Any) -> Record:
    return Record(cell_id, {}, "finished", {"metrics": {"top1_last": 0.5}, "history": [], "n_train": 1, "n_test": 1, **result}, {})


def test_a_record_that_was_put_is_read_back_and_counts_as_done(store: Store) -> None:
    assert store.record("abcdef012345") is None and not store.is_done("abcdef012345")

    store.put_record(record())

    assert store.record("abcdef012345") == record()
    assert store.is_done("abcdef012345")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_a_truncated_record_is_damaged_and_not_done(store: Store, share: float) -> None:
    store.put_record(record())
    path = store.file("abcdef012345", "record.json")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    assert not store.is_done("abcdef012345")
    with pytest.raises(DamagedError, match=r"record\.json is damaged"):
        store.record("abcdef012345")


def test_a_record_of_another_cell_is_refused(store: Store) -> None:
    store.put_record(record())
    os.renames(store.cell_folder("abcdef012345"), store.cell_folder("abffffffffff"))

    with pytest.raises(DamagedError, match="record of another cell, abcdef012345"):
        store.record("abffffffffff")


@pytest.mark.parametrize("kept", [0, 10, 31, 32, 50])
def test_a_truncated_sealed_file_is_told_from_a_whole_and_from_none(store: Store, kept: int) -> None:
    path = store.root / "file.bin"
    assert store.read_sealed(path) is None
    store.write_sealed(path, b"x" * 100)
    assert store.read_sealed(path) == b"x" * 100

    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedError, match="damaged"):
        store.read_sealed(path)


def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_record(record())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="no space left for .*record.json: nothing that was finished is lost"):
        store.put_record(record(more=1))

    assert store.record("abcdef012345") == record()
    assert [path.name for path in store.cell_folder("abcdef012345").iterdir()] == ["record.json"]


def test_a_full_disk_during_training_is_a_failure_of_its_cell_and_the_next_run_goes_on(
    plan_of: Callable[..., Plan],
    train: Callable[..., int],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    (cell_id,) = plan.cells
    real = os.fsync

    def full_for_weights(descriptor: int) -> None:
        if "weights" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_for_weights)
        assert train(plan) == 1
    assert store.record(cell_id) is None
    failure = store.failure(cell_id)
    assert failure and failure.kind == "disk" and "free some space" in failure.message

    assert train(plan) == 0
    assert store.is_done(cell_id) and store.failure(cell_id) is None


def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file" / "results").check_writable()


def test_a_damaged_record_is_set_aside_and_its_cell_is_trained_again_to_the_same_result(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    (cell_id,) = plan.cells
    train(plan)
    before = store.record(cell_id)
    path = store.file(cell_id, "record.json")
    path.write_bytes(path.read_bytes()[:100])

    assert cell_state.of(store, cell_id).name == "damaged"
    assert [cell.id for cell in local.wanted(store, list(plan.cells.values()))] == [cell_id]
    train(plan)

    after = store.record(cell_id)
    assert before and after and after.result == before.result
    assert len(list(store.cell_folder(cell_id).glob("record.json.damaged-*"))) == 1


def test_a_damaged_checkpoint_is_set_aside_with_a_message_and_the_result_is_the_same(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    (cell_id,) = plan.cells
    asked = iter([False] * 5 + [True])
    assert train(plan, stop=lambda: next(asked)) == 75
    path = store.file(cell_id, "checkpoint.bin")
    path.write_bytes(path.read_bytes()[:-1])

    train(plan)

    assert "checkpoint.bin is damaged" in capsys.readouterr().out
    undisturbed = Store(tmp_path / "undisturbed")
    train(plan, store=undisturbed)
    one, other = store.record(cell_id), undisturbed.record(cell_id)
    assert one and other and one.result == other.result


def test_weights_that_are_not_those_of_their_record_are_set_aside_with_it(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(repeats="1", objectives="[kd]")
    teacher = plan.teachers[0].cell.id
    student = next(row.cell.id for row in plan.rows if row.role == "student")
    train(plan, [teacher])
    path = store.file(teacher, "weights.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    assert train(plan, [student]) == 0
    assert "weights.bin is damaged" in capsys.readouterr().out
    assert not store.is_done(teacher) and not store.is_done(student) and store.failure(student) is None
    assert len(list(store.cell_folder(teacher).glob("*.damaged-*"))) == 3


def test_an_altered_cell_file_is_told(plan_of: Callable[..., Plan], store: Store) -> None:
    cell = next(iter(plan_of().cells.values()))
    store.put_cell(cell)
    path = store.file(cell.id, "cell.json")
    data = json.loads(path.read_text())
    data["config"]["repeat"] = 17
    path.write_text(json.dumps(data))

    with pytest.raises(DamagedError, match="its configuration has the id .*; run the suite again"):
        store.cell(cell.id)


def test_an_unknown_cell_or_suite_is_told_with_what_there_is(store: Store) -> None:
    store.write_text(store.suite_folder("known") / "manifest.json", "{}")

    with pytest.raises(KdbenchError, match="there is no cell 123"):
        store.cell("123")
    with pytest.raises(KdbenchError, match="'other' has no results under .* \\(suites with results: known\\)"):
        store.manifest("other")


def test_what_a_cell_depends_on_is_in_its_configuration(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of()
    kd = next(row.cell for row in plan.rows if row.objective == "kd")

    assert kd.depends == {"teacher": plan.teachers[0].cell.id}
    assert isinstance(kd, Cell)


def test_a_record_that_comes_while_another_run_looks_is_not_thrown_away(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    train(plan)

    assert local.wanted(store, list(plan.cells.values())) == []
    assert not list(store.root.rglob("*damaged*"))


def test_a_record_that_another_program_wrote_again_is_done_and_one_that_was_cut_is_not(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    cell_id = next(row.cell.id for row in plan.rows if row.role == "student")
    train(plan, [cell_id])
    path = store.file(cell_id, "record.json")
    whole = json.loads(path.read_text())
    compact = json.dumps(whole)
    for text, done in ((compact, True), (compact + "\n", True), (compact[: compact.rindex("}", 0, -3) + 1], False), (compact[:-1], False)):
        path.write_text(text)
        assert store.is_done(cell_id) == done
