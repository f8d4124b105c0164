"""The disk's door: whole files or none, damage told apart from absence, one worker a cell."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench import store as stores
from kdbench.cell import Cell
from kdbench.errors import ClaimError, DamagedError, KdbenchError, StoreError
from kdbench.plan.matrix import Plan
from kdbench.record import Record
from kdbench.run import local, watch
from kdbench.store import Store


def record(cell_id: str = "abcdef012345", **result: Any) -> Record:
    return Record(cell_id, {}, "finished", {"metrics": {"top1_last": 0.5}, **result}, {})


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

    monkeypatch.setattr(stores.os, "fsync", full)
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
        patch.setattr(stores.os, "fsync", full_for_weights)
        assert train(plan) == 1
    assert store.record(cell_id) is None
    failure = store.failure(cell_id)
    assert failure and failure["class"] == "disk" and "free some space" in failure["message"]

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

    assert watch.state(store, cell_id).name == "damaged"
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


def test_weights_that_are_not_those_of_their_record_are_refused(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(repeats="1", objectives="[kd]")
    teacher = plan.teachers[0].cell.id
    student = next(row.cell.id for row in plan.rows if row.role == "student")
    train(plan, [teacher])
    path = store.file(teacher, "weights.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    assert train(plan, [student]) == 1
    failure = store.failure(student)
    assert failure and failure["class"] == "disk" and "weights.bin is damaged" in failure["message"]


def test_an_altered_cell_file_is_told(plan_of: Callable[..., Plan], store: Store) -> None:
    cell = next(iter(plan_of().cells.values()))
    store.put_cell(cell)
    path = store.file(cell.id, "cell.json")
    data = json.loads(path.read_text())
    data["config"]["repeat"] = 17
    path.write_text(json.dumps(data))

    with pytest.raises(DamagedError, match="it was altered, or another version"):
        store.cell(cell.id)


def test_an_unknown_cell_or_suite_is_told_with_what_there_is(store: Store) -> None:
    store.put_manifest("known", {})

    with pytest.raises(KdbenchError, match="there is no cell 123"):
        store.cell("123")
    with pytest.raises(KdbenchError, match="'other' was never run under .* \\(run here: known\\)"):
        store.manifest("other")


# Claims


def test_a_claimed_cell_is_refused_to_another_worker_and_free_afterwards(store: Store) -> None:
    with store.claim("abc"):
        assert store.is_alive("abc")
        with pytest.raises(ClaimError, match=f"is being trained by process {os.getpid()}"), Store(store.root).claim("abc"):
            pass

    assert not store.is_alive("abc")
    with store.claim("abc"):
        pass
    assert list(store.cell_folder("abc").iterdir()) == []


HOLD = (
    "import sys, time; from kdbench.store import Store\nwith Store(sys.argv[1]).claim('abc'):\n print('held', flush=True); time.sleep(60)"
)


def test_the_claim_of_a_killed_worker_is_taken_over_at_once(store: Store) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(store.root)], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    assert store.is_alive("abc")

    os.kill(holder.pid, signal.SIGKILL)
    _wait_until(lambda: not store.is_alive("abc"))
    with store.claim("abc"):
        assert store.claim_holder("abc")["pid"] == os.getpid()  # type: ignore[index]
    holder.wait()
    holder.stdout.close()


def test_the_claim_of_another_host_counts_while_its_heart_beats(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.file("abc", "claim.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0, "token": "t"}))
    assert store.is_alive("abc")

    old = time.time() - stores.STALE_S - 5
    os.utime(path, (old, old))
    assert not store.is_alive("abc")
    with store.claim("abc"):
        pass


def test_a_process_number_that_was_given_again_is_not_the_holder(store: Store) -> None:
    import socket

    path = store.file("abc", "claim.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": 12345.0, "token": "t"}))

    assert not store.is_alive("abc")


RACE = """
import sys, time
from kdbench.errors import ClaimError
from kdbench.store import Store
store = Store(sys.argv[1])
while time.time() < float(sys.argv[2]): pass
for turn in range(20):
    try:
        with store.claim("cell"):
            with open(sys.argv[3], "a") as file: file.write("+"); file.flush(); time.sleep(0.002); file.write("-")
    except ClaimError: time.sleep(0.001)
"""


def test_two_workers_never_hold_a_cell_at_once(store: Store, tmp_path: Path) -> None:
    start = str(time.time() + 1.5)
    racers = [subprocess.Popen([sys.executable, "-c", RACE, str(store.root), start, str(tmp_path / "log")]) for _ in range(3)]

    assert [racer.wait() for racer in racers] == [0, 0, 0]
    log = (tmp_path / "log").read_text()
    assert log.replace("+-", "") == "" and len(log) >= 8


def _wait_until(ask: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


def test_what_a_cell_depends_on_is_in_its_configuration(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of()
    kd = next(row.cell for row in plan.rows if row.objective == "kd")

    assert kd.depends == {"teacher": plan.teachers[0].cell.id}
    assert isinstance(kd, Cell)


def test_a_claim_that_changed_hands_while_it_was_judged_is_given_back(store: Store) -> None:
    """The moment between judging a claim dead and burying it, in which another worker took it over."""
    path = store.file("abc", "claim.json")
    path.parent.mkdir(parents=True)
    dead = json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0, "token": "dead"})
    live = json.dumps({"host": "elsewhere", "pid": 2, "started": 0.0, "token": "live"})
    path.write_text(live)

    store._bury(path, dead)
    assert path.read_text() == live

    store._bury(path, live)
    assert not path.exists()


def test_a_record_that_comes_while_another_run_looks_is_not_thrown_away(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    train(plan)

    assert local.wanted(store, list(plan.cells.values())) == []
    assert not list(store.root.rglob("*damaged*"))
