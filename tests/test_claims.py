"""Claims: one worker a cell, also across hosts, containers, suspensions and file systems without links."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kdbench import process
from kdbench.errors import ClaimError, LostClaimError, StoreError
from kdbench.failure import Failure
from kdbench.plan.matrix import Plan
from kdbench.record import Record
from kdbench.run import local
from kdbench.store import Store, claims
from kdbench.store.claims import Owner

CELL = "abcdef012345"


def put_claim(store: Store, age_s: float = 0.0, **changes: object) -> Path:
    """A claim of another host's process, refreshed so long ago."""
    path = store.file(CELL, "claim.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = Owner("elsewhere", "another boot", "pid:[1]", 1, 0.0, None, "another token")
    path.write_text(json.dumps(asdict(replace(owner, **changes))))  # type: ignore[arg-type]
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def wait_until(ask: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


def test_a_claimed_cell_is_refused_to_another_worker_and_free_afterwards(store: Store) -> None:
    with store.claim(CELL):
        assert store.is_alive(CELL)
        with pytest.raises(ClaimError, match=f"is being trained by process {os.getpid()}"), Store(store.root).claim(CELL):
            pass

    assert not store.is_alive(CELL)
    with store.claim(CELL):
        pass
    assert list(store.cell_folder(CELL).iterdir()) == []


HOLD = f"""
import sys, time
from kdbench.store import Store
with Store(sys.argv[1]).claim("{CELL}"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_claim_of_a_killed_worker_is_taken_over_at_once(store: Store) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(store.root)], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    assert store.is_alive(CELL)

    os.kill(holder.pid, signal.SIGKILL)
    wait_until(lambda: not store.is_alive(CELL))
    with store.claim(CELL):
        owner = store.claim_holder(CELL)
        assert owner and owner.pid == os.getpid()
    holder.wait()
    holder.stdout.close()


def test_a_claim_of_another_place_counts_while_it_is_refreshed_and_no_longer(store: Store) -> None:
    here = process.place()
    for place in ({}, {**here, "boot": "another"}, {**here, "namespace": "pid:[1]"}, {**here, "host": "another"}):
        put_claim(store, **place)
        assert store.is_alive(CELL), place
        for age_s in (claims.STALE_S + 5, -claims.STALE_S - 5):  # a clock that ran ahead is no sign of life
            put_claim(store, age_s, **place)
            assert not store.is_alive(CELL), (place, age_s)
        with store.claim(CELL):
            pass


def test_a_process_of_this_place_is_looked_up_by_its_number_and_start(store: Store) -> None:
    here, mine = process.place(), os.getpid()
    started = process.started(mine)

    put_claim(store, 10_000, **here, pid=mine, started=started)
    assert store.is_alive(CELL), "it lives, however long ago it refreshed its claim"
    for number, since in ((mine, 12345.0), (2**22 + 5, started), (-1, started), (10**30, None)):
        put_claim(store, **here, pid=number, started=since)
        assert not store.is_alive(CELL), (number, since)


def test_a_job_that_slurm_started_again_takes_its_own_former_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for job, alive in (({"id": "12", "restart": 0}, False), ({"id": "12", "restart": 1}, True), ({"id": "13", "restart": 0}, True)):
        put_claim(store, job=job)
        assert store.is_alive(CELL) == alive, job


def test_a_claim_file_that_is_no_claim_is_taken_over(store: Store) -> None:
    path = store.file(CELL, "claim.json")
    for content in (b"{}", b"[]", b"null", b"3", b'""', b'{"host": 3}', json.dumps({"hots": "x", "pid": "1"}).encode()):
        put_claim(store)
        path.write_bytes(content)
        with store.claim(CELL):
            assert store.is_alive(CELL), content
    path.mkdir()
    with store.claim(CELL):
        assert path.is_file()


def test_a_claim_that_is_being_written_counts_while_it_is_young(store: Store) -> None:
    for content in (b"", b'{"host": "elsewh', b"\0\0\0", b"\xff\xfe"):
        path = put_claim(store)
        path.write_bytes(content)
        assert store.is_alive(CELL), content
        with pytest.raises(ClaimError), store.claim(CELL):
            pass
        os.utime(path, (time.time() - claims.YOUNG_S - 1,) * 2)
        assert not store.is_alive(CELL), content


def test_whoever_lost_its_claim_writes_nothing_more_and_leaves_the_other_ones_files(store: Store) -> None:
    record = Record(CELL, {}, "finished", {"metrics": {}}, {})
    writes: dict[str, Callable[[], object]] = {
        "a checkpoint": lambda: store.write_sealed(store.file(CELL, "checkpoint.bin"), b"mine"),
        "predictions": lambda: store.write_bytes(store.file(CELL, "predictions.npz"), b"mine"),
        "a record": lambda: store.put_record(record),
        "a failure": lambda: store.put_failure(CELL, Failure("raised", "mine")),
        "a line of progress": lambda: store.append_line(store.file(CELL, "progress.jsonl"), {"epoch": 0}),
        "a removal": lambda: store.remove(store.file(CELL, "claim.json")),
        "a failure's removal": lambda: store.clear_failure(CELL),
        "setting aside": lambda: store.set_aside(store.file(CELL, "claim.json")),
        "a log": lambda: store.open_log(store.file(CELL, "x.log")),
    }
    with store.claim(CELL):
        theirs = put_claim(store).read_bytes()
        for what, write in writes.items():
            with pytest.raises(LostClaimError, match="another process took over"):
                write()
            assert [path.name for path in store.cell_folder(CELL).iterdir()] == ["claim.json"], what
    assert store.file(CELL, "claim.json").read_bytes() == theirs


def test_a_claim_that_is_lost_while_a_file_is_prepared_is_noticed_before_it_takes_effect(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def slow(descriptor: int) -> None:
        put_claim(store)
        real(descriptor)

    with store.claim(CELL):
        monkeypatch.setattr(os, "fsync", slow)
        with pytest.raises(LostClaimError):
            store.put_failure(CELL, Failure("raised", "mine"))
    assert [path.name for path in store.cell_folder(CELL).iterdir()] == ["claim.json"]


def test_a_claim_without_its_file_is_lost_too(store: Store) -> None:
    with store.claim(CELL):
        store.file(CELL, "claim.json").unlink()
        with pytest.raises(LostClaimError):
            store.put_failure(CELL, Failure("raised", "mine"))
    assert list(store.cell_folder(CELL).iterdir()) == []


def test_a_student_whose_cell_was_taken_over_leaves_its_bundle_and_the_others_finish(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = plan_of(objectives="[kd, sp]", repeats="1")
    one, other = (row.cell.id for row in plan.rows if row.role == "student")
    train(plan, [plan.teachers[0].cell.id])
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        if steps == 4:  # in the second epoch
            store.file(one, "claim.json").write_text(json.dumps(asdict(Owner("elsewhere", "b", "n", 1, 0.0, None, "theirs"))))
        return False

    assert train(plan, [one, other], stop=stop, checkpoint_every_s=0.0) == 0
    assert store.is_done(other) and not store.is_done(one)
    assert f"another process took over {one}" in capsys.readouterr().out
    assert store.failure(one) is None and [line["epoch"] for line in store.epochs_seen(one)] == [0, 1]
    assert "theirs" in store.file(one, "claim.json").read_text()

    undisturbed = Store(tmp_path / "undisturbed")
    train(plan, store=undisturbed)
    mine, theirs = store.record(other), undisturbed.record(other)
    assert mine and theirs and mine.result == theirs.result


VICTIM = f"""
import sys, time
from kdbench import process
from kdbench.errors import LostClaimError
from kdbench.failure import Failure
from kdbench.store import Store, claims
claims.HEARTBEAT_S, claims.STALE_S = 0.05, 1.0
if sys.argv[2] == "another boot":
    process.boot = lambda: "another boot"
store = Store(sys.argv[1])
with store.claim("{CELL}"):
    print("held", flush=True)
    sys.stdin.readline()
    try:
        store.put_failure("{CELL}", Failure("raised", "mine"))
        print("written", flush=True)
    except LostClaimError:
        print("lost", flush=True)
"""


def victim(store: Store, place: str, *before: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", VICTIM, str(store.root), place]
    found = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert found.stdout and found.stdout.readline() == "held\n"
    return found


def test_a_process_that_was_suspended_and_lost_its_claim_writes_nothing_when_it_is_continued(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STALE_S", 1.0)
    one = victim(store, "another boot")
    time.sleep(0.3)
    assert store.is_alive(CELL), "its heart beats"
    os.kill(one.pid, signal.SIGSTOP)
    wait_until(lambda: not store.is_alive(CELL))
    with store.claim(CELL):
        mine = store.file(CELL, "claim.json").read_bytes()
        os.kill(one.pid, signal.SIGCONT)
        assert one.communicate("\n", timeout=20)[0] == "lost\n"
        assert store.file(CELL, "claim.json").read_bytes() == mine
        assert [path.name for path in store.cell_folder(CELL).iterdir()] == ["claim.json"]


def test_a_process_that_was_suspended_and_kept_its_claim_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "STALE_S", 0.3)
    for place in ("here", "another boot"):
        one = victim(store, place)
        os.kill(one.pid, signal.SIGSTOP)
        time.sleep(0.5)
        if place == "here":
            assert store.is_alive(CELL), "a stopped process of this place is alive"
        os.kill(one.pid, signal.SIGCONT)
        assert one.communicate("\n", timeout=20)[0] == "written\n"


def test_a_worker_in_another_process_namespace_is_not_taken_for_dead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    container = ("unshare", "--pid", "--fork", "--mount-proc")
    if shutil.which("unshare") is None or subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespace can be made here")
    monkeypatch.setattr(claims, "STALE_S", 1.0)
    one = victim(store, "here", *container)
    owner = store.claim_holder(CELL)
    assert owner and owner.host == process.place()["host"] and not owner.is_here
    time.sleep(1.2)
    assert store.is_alive(CELL)
    with pytest.raises(ClaimError), store.claim(CELL):
        pass
    assert one.communicate("\n", timeout=20)[0] == "written\n"
    assert not store.is_alive(CELL)


def test_without_its_own_proc_a_namespace_is_no_place_that_another_process_shares(tmp_path: Path) -> None:
    command = ("unshare", "--pid", "--fork")
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespace can be made here")
    ask = [*command, sys.executable, "-c", "from kdbench import process; print(process.namespace())"]
    one, other = (subprocess.run(ask, capture_output=True, text=True, check=True).stdout for _ in range(2))

    assert one.startswith("unknown ") and one != other


def without_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "symlink", refuse)


def test_without_hard_links_a_claim_is_created_exclusively(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
        with monkeypatch.context() as patch:
            without_links(patch, number)
            with store.claim(CELL), pytest.raises(ClaimError), Store(store.root).claim(CELL):
                pass
            put_claim(store, claims.STALE_S + 5)
            with store.claim(CELL):
                assert store.is_alive(CELL)
            assert list(store.cell_folder(CELL).iterdir()) == []


def test_a_suite_is_trained_and_reported_where_there_are_neither_links_nor_synced_folders(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.report.write import report

    without_links(monkeypatch, errno.EPERM)
    real = os.fsync

    def of_files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    plan = plan_of(repeats="1")
    assert train(plan) == 0
    with store.submitting():
        pass
    with open(os.devnull, "w") as nowhere:
        report(store, ["tiny"], nowhere)
    assert (store.suite_folder("tiny") / "report" / "report.md").is_file()


def test_a_suite_is_trained_on_a_real_file_system_without_links(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    if shutil.which("mkfs.vfat") is None or "vfat" not in Path("/proc/filesystems").read_text():
        pytest.skip("no vfat here: tests above refuse links in its stead")
    image, place = tmp_path / "vfat.img", tmp_path / "vfat"
    image.write_bytes(b"\0" * 64 * 2**20)
    place.mkdir()
    subprocess.run(["mkfs.vfat", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False).returncode:
        pytest.skip("vfat cannot be mounted here")
    try:
        assert train(plan_of(repeats="1"), store=Store(place / "results")) == 0
    finally:
        subprocess.run(["umount", str(place)], check=True)


RACE = """
import errno, os, sys, time
from kdbench.errors import ClaimError
from kdbench.store import Store
if sys.argv[4] == "without links":
    def refuse(*_, **__): raise OSError(errno.EPERM, "no links")
    os.link = refuse
store = Store(sys.argv[1])
while time.time() < float(sys.argv[2]): pass
for turn in range(20):
    try:
        with store.claim("cell"):
            with open(sys.argv[3], "a") as file: file.write("+"); file.flush(); time.sleep(0.002); file.write("-")
    except ClaimError: time.sleep(0.001)
"""


def test_two_workers_never_hold_a_cell_at_once(store: Store, tmp_path: Path) -> None:
    for links in ("with links", "without links"):
        start, log = str(time.time() + 1.5), tmp_path / links
        racers = [subprocess.Popen([sys.executable, "-c", RACE, str(store.root), start, str(log), links]) for _ in range(3)]

        assert [racer.wait() for racer in racers] == [0, 0, 0]
        found = log.read_text()
        assert found.replace("+-", "") == "" and len(found) >= 8, links


def test_a_claim_that_changed_hands_while_it_was_judged_is_given_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment between judging a claim dead and removing it, in which another worker took it over."""
    for number in (0, errno.EPERM):
        with monkeypatch.context() as patch:
            if number:
                without_links(patch, number)
            path = put_claim(store, token="live")
            live = path.read_bytes()
            claims._bury(path, b"what was judged")
            assert path.read_bytes() == live
            claims._bury(path, live)
            assert not path.exists()


def test_a_folder_that_cannot_be_written_is_an_error_in_plain_words(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StoreError, match="cannot be written \\(Read-only file system\\): choose another folder"), store.claim(CELL):
        pass
    with pytest.raises(StoreError, match="Read-only file system"), store.submitting():
        pass


def test_cells_that_another_process_has_are_not_wanted(plan_of: Callable[..., Plan], store: Store) -> None:
    plan = plan_of(repeats="1")
    cells = list(plan.cells.values())
    with store.claim(cells[0].id):
        assert cells[0].id not in [cell.id for cell in local.wanted(store, cells)]
    assert len(local.wanted(store, cells)) == len(cells)
