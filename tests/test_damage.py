"""Damage to any file under the results folder is noticed, named in plain words, and mended by the next run, to the same results."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kdbench.cli import main
from kdbench.errors import DamagedError, StoreError
from kdbench.plan.bundle import Bundle
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.store import Store, cell_state
from kdbench.train.worker import work

OTHER = {
    "nothing": b"",
    "an empty mapping": b"{}",
    "an empty list": b"[]",
    "null": b"null",
    "a number": b"3",
    "a huge number": b"1" + b"0" * 5000,
    "a negative number": b"-1",
    "not a number": b"NaN",
    "a text": b'""',
    "NUL bytes": b"\0" * 100,
    "no UTF-8": b'{"id": "\xff\xfe"}',
    "half a file": b'{"schema": 1, "id": "ab',
    "very deep": b"[" * 100_000,
    "misspelt fields": b'{"schema": 1, "clas": "raised", "mesage": "x", "confg": {}, "cels": [], "hots": "x", "epok": 1}',
    "other types": b'{"schema": "1", "class": 3, "message": [], "id": null, "config": 3, "outcome": [], "cells": 3, "host": {}, "epoch": "x"}',
    "numbers out of range": b'{"schema": 99, "epoch": -1, "step": -5, "of": 1e300, "at": -1, "pid": -7}',
}
"""Contents that no file of ours has."""

A_FOLDER = "a folder"


def kdbench(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


class Ended:
    """What `local` sees of a worker that has ended."""

    def __init__(self, status: int):
        self.returncode = status

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`run` trains in this process, and writes no report."""

    def start(bundle: Bundle, store: Store, suite: str, machine: local.Machine, slot: int, _: object) -> local._Running:
        status = work(Store(store.root), bundle.ids, tmp_path, "cpu", machine.checkpoint_every_s)
        return local._Running(bundle, Ended(status), tmp_path / "no.log", slot)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "_start", start)
    monkeypatch.setattr(local, "POLL_S", 0.0)
    monkeypatch.setattr("kdbench.report.write.report", lambda *_: None)


@pytest.fixture
def run(write_suite: Callable[..., Path], store: Store, in_process: None) -> Callable[[], Result]:
    path = write_suite(repeats="1")
    return lambda: kdbench("run", str(path), "--results", str(store.root), "--no-profile", "--jobs", "1")


def results(store: Store) -> dict[str, Any]:
    found = {row.id: store.record(row.id) for row in store.manifest("tiny").cells}
    return {cell_id: record and record.result for cell_id, record in found.items()}


def cells(store: Store) -> tuple[str, str, str]:
    """(teacher, student alone, student with the teacher)."""
    rows = {row.objective or "teacher": row.id for row in store.manifest("tiny").cells}
    return rows["teacher"], rows["ce"], rows["kd"]


def put(path: Path, content: bytes | str) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if content == A_FOLDER:
        (path / "inside").mkdir(parents=True)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    os.utime(path, (time.time() - 60,) * 2)  # no claim that is being written at this moment


def flip(path: Path, place: int = -1, keep_time: bool = False) -> None:
    """One byte of a file becomes another."""
    then = path.stat()
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x55
    path.write_bytes(bytes(raw))
    if keep_time:
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


@pytest.mark.slow
def test_whatever_small_files_hold_status_plan_and_run_go_on_and_the_results_are_the_same(
    run: Callable[[], Result], write_suite: Callable[..., Path], store: Store
) -> None:
    assert run().exit_code == 0
    before, (teacher, alone, taught) = results(store), cells(store)
    damaged = {
        alone: ("record.json", "cell.json", "failure.json", "claim.json", "progress.jsonl", "checkpoint.bin", "weights.bin"),
        taught: ("predictions.npz", "claim.json", "progress.jsonl"),
        teacher: ("cell.json", "verified.json", "failure.json", "progress.jsonl"),
    }
    suite = store.suite_folder("tiny").parent.parent.parent / "tiny.yaml"
    for name, content in {**OTHER, A_FOLDER: A_FOLDER}.items():
        for cell_id, files in damaged.items():
            for file in files:
                put(store.file(cell_id, file), content)
        put(store.root / "submitting.json", content)
        for manifest_too in (False, True):
            if manifest_too:
                put(store.suite_folder("tiny") / "manifest.json", content)
            for command in ("status", "plan"):
                found = kdbench(command, str(suite), "--results", str(store.root))
                assert found.exception is None or isinstance(found.exception, SystemExit), (name, command, found.exception)
                assert found.exit_code in ((0, 1, 2) if manifest_too else (0, 1)), (name, command, found.output)
        found = run()
        assert found.exit_code == 0, (name, found.output, found.exception)
        assert results(store) == before, name


def test_a_result_file_that_is_cut_altered_or_missing_is_named_and_trained_again(run: Callable[[], Result], store: Store) -> None:
    assert run().exit_code == 0
    before, (teacher, alone, taught) = results(store), cells(store)
    harms: dict[str, Callable[[Path], object]] = {
        "missing": lambda path: path.unlink(),
        "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
        "one byte flipped at its end": lambda path: flip(path),
        "one byte flipped in its middle": lambda path: flip(path, path.stat().st_size // 2),
        "one byte flipped at its beginning": lambda path: flip(path, 0),
        "another cell's": lambda path: shutil.copyfile(store.file(alone if taught in str(path) else taught, path.name), path),
    }
    for what, harm in harms.items():
        for cell_id in (teacher, taught):
            for file in ("weights.bin", "predictions.npz"):
                path = store.file(cell_id, file)
                harm(path)
                state = cell_state.of(store, cell_id)
                assert state.name == "damaged" and str(path) in state.why, (what, path)
                found = run()
                assert found.exit_code == 0, (what, path, found.output)
                assert str(path) in found.output and f"{cell_id} is trained again" in found.output, (what, found.output)
                assert results(store) == before, (what, path)
                assert run().output.count("is trained again") == 0


@pytest.mark.slow
def test_a_teacher_whose_weights_rot_unnoticed_is_trained_again_in_the_same_run_that_needs_them(
    run: Callable[[], Result], store: Store
) -> None:
    assert run().exit_code == 0
    before, (teacher, _, taught) = results(store), cells(store)
    for place in (5, 100, -1):
        store.remove(store.file(taught, "record.json"))
        flip(store.file(teacher, "weights.bin"), place, keep_time=True)
        if place == 5:  # in the checksum itself: nothing but reading the weights can tell
            os.utime(store.file(teacher, "record.json"))
        found = run()
        assert found.exit_code == 0, found.output
        assert f"teacher {teacher} is trained again before its students" in found.output
        assert results(store) == before


def test_a_teacher_that_is_damaged_again_and_again_blocks_its_students_instead_of_being_trained_for_ever(
    run: Callable[[], Result], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.write_sealed

    def rotten(self: Store, path: Path, data: bytes) -> None:
        real(self, path, data)
        if path == store.file(cells(store)[0], "weights.bin"):
            flip(path)

    monkeypatch.setattr(Store, "write_sealed", rotten)
    assert run().exit_code == 1
    failure = store.failure(cells(store)[2])
    assert failure and failure.kind == "blocked" and "was damaged twice: check the disk" in failure.message


@pytest.mark.slow
def test_a_checkpoint_that_is_none_or_does_not_fit_is_set_aside_and_its_student_starts_again(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(objectives="[kd, sp]", repeats="1")
    ids = [row.cell.id for row in plan.rows if row.role == "student"]
    undisturbed = Store(tmp_path / "undisturbed")
    train(plan, store=undisturbed)
    train(plan, [plan.teachers[0].cell.id])

    def stopped_in_epoch_2() -> None:
        for cell_id in ids:
            for name in ("record.json", "checkpoint.bin"):
                store.remove(store.file(cell_id, name))
        asked = iter([False] * 4 + [True])
        assert train(plan, ids, stop=lambda: next(asked)) == 75

    stopped_in_epoch_2()
    path = store.file(ids[0], "checkpoint.bin")
    whole = torch.load(io.BytesIO(store.read_sealed(path) or b""), weights_only=True)
    forms: dict[str, Any] = {
        "a mapping": {},
        "a list": [],
        "a number": 3,
        "a misspelt field": {**{name: whole[name] for name in ("trained_s", "state")}, "positon": (1, 1)},
        "a position before the beginning": {**whole, "position": (-1, 0)},
        "a position past the end": {**whole, "position": (10**9, 0)},
        "a step past the epoch's end": {**whole, "position": (1, 10**9)},
        "a position of texts": {**whole, "position": ("1", "1")},
        "no state": {**whole, "state": None},
        "an empty state": {**whole, "state": {"history": whole["state"]["history"]}},
        "another net's state": {**whole, "state": {**whole["state"], "trained": {"w": torch.zeros(3)}}},
        "no history": {**whole, "state": {**whole["state"], "history": []}},
    }
    for what, form in forms.items():
        stopped_in_epoch_2()
        buffer = io.BytesIO()
        torch.save(form, buffer)
        store.write_sealed(path, buffer.getvalue())
        capsys.readouterr()

        assert train(plan, ids) == 0, what
        assert f"and {ids[0]} restarts" in capsys.readouterr().out, what
        for cell_id in ids:
            one, other = store.record(cell_id), undisturbed.record(cell_id)
            assert one and other and one.result == other.result, what


def test_a_worker_keeps_no_checkpoint_in_memory_but_the_one_that_it_restores(
    plan_of: Callable[..., Plan], train: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    from kdbench.train import checkpoint

    class Held(dict[str, Any]):
        """A mapping that can be watched."""

    plan = plan_of(objectives="[kd, sp, rkd]", repeats="1")
    train(plan, [plan.teachers[0].cell.id])
    ids = [row.cell.id for row in plan.rows if row.role == "student"]
    asked = iter([False] * 4 + [True] * 9)
    assert train(plan, ids, stop=lambda: next(asked)) == 75
    alive: list[weakref.ref[Held]] = []
    real = checkpoint._checked

    def watched(saved: Any, cell: Any) -> dict[str, Any]:
        gc.collect()
        assert not [one for one in alive if one() is not None], "a former checkpoint is still in memory"
        found = Held(real(saved, cell))
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(checkpoint, "_checked", watched)
    assert train(plan, ids) == 0
    assert len(alive) == 6, "each is read for its position and, when its bundle begins, for its state"


def test_a_teacher_is_evaluated_once_for_a_device_and_its_libraries(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.train import teacher as teachers

    plan = plan_of(repeats="1")
    teacher, student = plan.teachers[0].cell.id, next(row.cell.id for row in plan.rows if row.objective == "kd")
    calls: list[int] = []
    real = teachers.evaluate
    monkeypatch.setattr(teachers, "evaluate", lambda *arguments: calls.append(1) or real(*arguments))
    train(plan, [teacher])

    def again() -> int:
        store.remove(store.file(student, "record.json"))
        before = len(calls)
        assert train(plan, [student]) == 0
        return len(calls) - before

    assert [again(), again()] == [1, 0]
    note = store.file(teacher, "verified.json")
    for content in (OTHER["a huge number"], OTHER["an empty list"], OTHER["half a file"], A_FOLDER):
        put(note, content)
        assert [again(), again()] == [1, 0], content
    ((key, value),) = json.loads(note.read_text()).items()
    store.write_json(note, {key: value + 0.5})
    assert again() == 1, "a value that contradicts the record is measured again before anything is concluded"
    for name, other in (("device_name", lambda _: "another device"), ("installed", lambda _: "9.9")):
        with monkeypatch.context() as patch:
            patch.setattr(teachers, name, other)
            assert [again(), again()] == [1, 0], name


def refuse(number: int) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return act


@pytest.mark.slow
def test_a_disk_that_turns_read_only_or_full_in_the_middle_is_a_failure_and_no_traceback(
    run: Callable[[], Result], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many writes none succeeds any more, whatever is written then."""
    real = {name: getattr(os, name) for name in ("replace", "fsync")}
    for number in (errno.EROFS, errno.ENOSPC):
        for n_allowed in (0, 3, 6, 9, 12):
            left = [n_allowed]

            def counted(*arguments: Any, name: str = "replace", left: list[int] = left, number: int = number) -> Any:
                left[0] -= 1
                return real[name](*arguments) if left[0] >= 0 else refuse(number)()

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", counted)
                found = run()
            assert found.exception is None or isinstance(found.exception, SystemExit), (number, n_allowed, found.exception)
            assert found.exit_code in (1, 2), (number, n_allowed, found.output)
            text = found.output + (found.stderr if found.exit_code == 2 else "")
            assert "Traceback" not in text or "StoreError" in text
            shutil.rmtree(store.root, ignore_errors=True)
    assert run().exit_code == 0


def test_each_writing_and_removing_of_the_store_fails_in_plain_words(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.root / "cells" / "file.json"
    store.write_text(path, "there")
    acts: dict[str, Callable[[], object]] = {
        "write_text": lambda: store.write_text(path, "x"),
        "append_line": lambda: store.append_line(path, {}),
        "open_log": lambda: store.open_log(path),
        "set_aside": lambda: store.set_aside(path),
        "remove": lambda: store.remove(path),
        "check_writable": store.check_writable,
        "make_folder": lambda: store.make_folder(store.root / "new"),
    }
    for name in ("open", "replace"):
        monkeypatch.setattr("builtins.open" if name == "open" else f"os.{name}", refuse(errno.EROFS))
    monkeypatch.setattr(Path, "unlink", refuse(errno.EROFS))
    monkeypatch.setattr(Path, "mkdir", refuse(errno.EROFS))
    for name, act in acts.items():
        with pytest.raises(StoreError, match="Read-only file system\\): choose another folder with --results"):
            act()
        assert name


@pytest.mark.slow
def test_reading_works_on_a_real_read_only_file_system_and_run_says_that_nothing_can_be_written(
    plan_of: Callable[..., Plan], train: Callable[..., int], write_suite: Callable[..., Path], store: Store
) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    plan = plan_of(repeats="1")
    train(plan, [plan.teachers[0].cell.id])
    store.write_text(store.file(plan.rows[-1].cell.id, "claim.json"), "{}")
    suite, root = write_suite(repeats="1"), store.root
    verbs = [f"{sys.executable} -m kdbench {verb} {suite} --results {root}" for verb in ("status", "plan", "run")]
    script = f"mount --bind {root} {root} && mount -o remount,ro,bind {root} || exit 9; " + "; ".join(
        f"{one}; echo status $?" for one in verbs
    )
    found = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)

    if found.returncode == 9:
        pytest.skip("nothing can be mounted read-only here")
    assert "Traceback" not in found.stdout + found.stderr
    assert [line for line in found.stdout.splitlines() if line.startswith("status ")] == ["status 0", "status 0", "status 2"], found
    assert "1 finished, 2 waiting" in found.stdout and "Read-only file system): choose another folder with --results" in found.stderr


def test_a_file_that_may_not_be_read_is_an_error_in_plain_words(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", refuse(errno.EACCES))
    for read in (store.record, store.cell, store.manifest):
        with pytest.raises(StoreError, match="cannot be read \\(Permission denied\\)"):
            read("abcdef012345")


def test_damage_is_told_from_absence_for_every_reader(store: Store) -> None:
    path = store.root / "file"
    for content in (*OTHER.values(), A_FOLDER):
        put_in = path.parent
        put_in.mkdir(parents=True, exist_ok=True)
        put(path, content)
        with pytest.raises(DamagedError, match="damaged"):
            store.read_sealed(path)
        progress = store.file("abcdef012345", "progress.jsonl")
        progress.parent.mkdir(parents=True, exist_ok=True)
        put(progress, content)
        assert store.epochs_seen("abcdef012345") == [], content
    shutil.rmtree(path)
    assert store.read_sealed(path) is None and store.json(path) is None and store.lines(path) == []


def test_a_line_that_a_kill_cut_short_does_not_take_the_next_one_along(store: Store) -> None:
    path = store.root / "log.jsonl"
    store.append_line(path, {"epoch": 0})
    with open(path, "a") as file:
        file.write('{"epoch": 1, "st')
    store.append_line(path, {"epoch": 2})

    assert store.lines(path) == [{"epoch": 0}, {"epoch": 2}]


@pytest.mark.slow
def test_a_user_without_an_account_entry_trains(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    code = """
import getpass, os, pwd
def missing(*_): raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = missing
for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"): os.environ.pop(name, None)
import sys
from kdbench.train import worker
sys.exit(worker.main(sys.argv[1:]))
"""
    plan = plan_of(objectives="[ce]", repeats="1")
    train(plan, [])
    command = [sys.executable, "-c", code, str(store.root), *plan.cells, "--device", "cpu", "--data", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stdout + found.stderr
    assert all(store.is_done(cell_id) for cell_id in plan.cells)
