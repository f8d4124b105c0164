"""A report is whole at every moment, whoever is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench.errors import StoreError
from kdbench.store import Store
from kdbench.store import whole_folder as reports
from kdbench.store.whole_folder import fresh_report, put_at_the_end

NOTES = "mine/notes.txt"
SUITE = "tiny"

WRITER = """
import hashlib, json, os, sys, time
from pathlib import Path
import psutil
from kdbench.store.whole_folder import fresh_report, put_at_the_end
from kdbench.store import Store

def write(root, generation):
    store = Store(root)
    with fresh_report(store, "tiny") as folder:
        sums = {}
        for name in ("frame.csv", "report.md", "figures/curves.pdf"):
            data = f"{name} of {generation}".encode() * 50
            store.write_bytes(folder / name, data)
            sums[name] = hashlib.sha256(data).hexdigest()
        store.write_json(folder / "sums.json", {"generation": generation, "sums": sums})

def whole(folder):
    # The generation of a report whose files are all there and as they were written.
    told = json.loads((folder / "sums.json").read_bytes())
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == one for name, one in told["sums"].items()), folder
    return told["generation"]
"""

AT_EVERY_STEP = """
import shutil
CALLS = ("mkdir", "open", "fsync", "replace", "rename", "link", "symlink", "unlink", "rmdir", "utime")

def killed_before(step, root):
    # Whether the report was killed; it is let live when it has fewer steps.
    child = os.fork()
    if child == 0:
        steps = 0
        def counted(call):
            def one(*arguments, **named):
                nonlocal steps
                steps += 1
                if steps == step:
                    os._exit(99)
                return call(*arguments, **named)
            return one
        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        write(root, "new")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, 99), status
    return os.waitstatus_to_exitcode(status) == 99

def begin(root, start):
    shutil.rmtree(root, ignore_errors=True)
    if start == "nothing":
        return
    write(root, "former")
    suite = Path(root) / "suites/tiny"
    (suite / "report/mine").mkdir()
    (suite / "report/mine/notes.txt").write_text("mine")

os.fsync = lambda descriptor: None  # a kill loses nothing that was written; waiting for the disk a thousand times takes minutes
root, start = sys.argv[1:]
place = Path(root) / "suites/tiny/report"
step, seen = 0, set()
while True:
    step += 1
    begin(root, start)
    killed = killed_before(step, root)
    if start != "nothing" or place.exists():
        seen.add(whole(place))
        assert start == "nothing" or (place / "mine/notes.txt").read_text() == "mine", step
    write(root, "next")
    assert whole(place) == "next" and (start == "nothing" or (place / "mine/notes.txt").read_text() == "mine"), step
    if not killed:
        break
print(step, *sorted(seen))
"""

IN_A_LOOP = """
generation = 0
while True:
    write(sys.argv[1], f"{generation} of {os.getpid()}")
    generation += 1
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", WRITER + code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def place(store: Store) -> Path:
    return store.suite_folder(SUITE) / "report"


def write(store: Store, **files: str) -> None:
    with fresh_report(store, SUITE) as folder:
        for name, text in files.items():
            store.write_text(folder / f"{name}.csv", text)


def held(place: Path) -> dict[str, str]:
    return {
        path.relative_to(place).as_posix(): path.read_text() for path in place.rglob("*") if path.is_file() and path.name != reports.LISTING
    }


def shelf(place: Path) -> list[str]:
    return sorted(path.name for path in place.with_name("reports").iterdir() if not path.name.startswith("."))


def make_old(path: Path, seconds: float = reports.LEFTOVER_S + 60) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)


@pytest.mark.parametrize(("start", "seen"), [("nothing", {"new"}), ("link", {"former", "new"})])
def test_killed_before_any_of_its_steps_a_report_leaves_the_former_one_or_itself_whole(tmp_path: Path, start: str, seen: set[str]) -> None:
    steps, *found = run(AT_EVERY_STEP, str(tmp_path / "results"), start).strip().split(" ", 1)

    assert int(steps) > 20
    assert all(one in found[0] for one in seen)


def test_killed_at_any_time_the_report_is_one_whole_report(tmp_path: Path) -> None:
    place, names = tmp_path / "suites" / SUITE / "report", {}
    exec(WRITER, names)
    names["write"](tmp_path, "first")
    seen = set()
    for turn in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER + IN_A_LOOP, str(tmp_path)]) as writer:
            began, before = time.monotonic(), os.readlink(place)
            while os.readlink(place) == before and time.monotonic() - began < 30:
                time.sleep(0.005)
            time.sleep(0.0037 * turn)
            writer.send_signal(signal.SIGKILL)
        seen.add(names["whole"](place))

    assert len(seen) > 1, "no writer got anywhere"


def test_a_report_is_a_link_to_a_folder_beside_it(store: Store, place: Path) -> None:
    write(store, frame="1")

    assert place.is_symlink() and not os.path.isabs(os.readlink(place))
    assert held(place) == {"frame.csv": "1"}
    store.root.rename(store.root.with_name("elsewhere"))
    assert held(store.root.with_name("elsewhere") / "suites" / SUITE / "report") == {"frame.csv": "1"}


def test_after_an_exception_the_former_report_stays_and_nothing_of_the_new_one(store: Store, place: Path) -> None:
    write(store, frame="1")
    before = shelf(place)
    with pytest.raises(KeyboardInterrupt), fresh_report(store, SUITE) as folder:
        store.write_text(folder / "frame.csv", "2")
        raise KeyboardInterrupt

    assert held(place) == {"frame.csv": "1"}
    assert shelf(place) == before


def test_what_a_report_wrote_goes_with_it_and_what_somebody_put_there_stays(store: Store, place: Path) -> None:
    write(store, frame="1", histories="1")
    (place / "mine").mkdir()
    (place / NOTES).write_text("look at seed 3")
    for turn in ("2", "3"):
        write(store, frame=turn)
        assert held(place) == {"frame.csv": turn, NOTES: "look at seed 3"}
    assert len(shelf(place)) == 1


def test_a_folder_in_the_place_of_the_link_is_written_into_and_keeps_what_no_report_wrote(store: Store, place: Path) -> None:
    place.mkdir(parents=True)
    for name, text in {"frame.csv": "old", "notes.txt": "mine"}.items():
        (place / name).write_text(text)
    with pytest.raises(RuntimeError), fresh_report(store, SUITE):
        assert held(place)["frame.csv"] == "old"
        raise RuntimeError
    assert held(place)["frame.csv"] == "old"
    write(store, frame="new")

    assert held(place) == {"frame.csv": "new", "notes.txt": "mine"}
    assert not place.is_symlink() and shelf(place) == []


def test_of_two_writers_at_once_the_last_to_end_wins_and_neither_touches_what_the_other_writes(store: Store, place: Path) -> None:
    write(store, frame="0")
    (place / "notes.txt").write_text("mine")
    with fresh_report(store, SUITE) as slow:
        store.write_text(slow / "frame.csv", "slow")
        make_old(slow)
        with fresh_report(store, SUITE) as quick:
            store.write_text(quick / "frame.csv", "quick")
        assert held(place) == {"frame.csv": "quick", "notes.txt": "mine"}
        assert held(slow) == {"frame.csv": "slow"}

    assert held(place) == {"frame.csv": "slow", "notes.txt": "mine"}
    assert len(shelf(place)) == 1


def test_what_killed_writers_left_is_removed_when_it_is_old_and_nobody_writes_it(store: Store, place: Path) -> None:
    write(store, frame="1")
    lives = place.resolve()
    old, young = lives.with_name("old"), lives.with_name("young")
    for one in (old, young):
        one.mkdir()
    dead = lives.with_name(".old.claim")
    dead.write_text('{"host": "gone", "pid": 1, "started": 1.0, "job": null, "token": "x"}')
    for path in (lives, old, dead):
        make_old(path)
    with fresh_report(store, SUITE):
        assert not old.exists() and not dead.exists()
        assert young.exists() and held(place) == {"frame.csv": "1"}


def refused(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_without_symbolic_links_the_files_are_put_one_by_one_and_only_at_the_end(
    store: Store, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "symlink", refused)
    write(store, frame="1", histories="1")
    (place / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError), fresh_report(store, SUITE) as folder:
        store.write_text(folder / "frame.csv", "2")
        raise RuntimeError
    assert held(place) == {"frame.csv": "1", "histories.csv": "1", "notes.txt": "mine"}
    write(store, frame="3")

    assert not place.is_symlink() and held(place) == {"frame.csv": "3", "notes.txt": "mine"}
    assert shelf(place) == []


def test_killed_while_files_are_put_the_next_report_removes_what_only_the_killed_one_wrote(
    store: Store, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    put_file = store.put_file

    def killed(source: Path, target: Path) -> None:
        if target.name == "histories.csv":
            raise KeyboardInterrupt
        put_file(source, target)

    monkeypatch.setattr(store, "put_file", killed)
    with pytest.raises(KeyboardInterrupt):
        write(store, costs="1", histories="1")
    assert held(place) == {"costs.csv": "1", "notes.txt": "mine"}
    write(store, frame="2")

    assert held(place) == {"frame.csv": "2", "notes.txt": "mine"}


def test_a_folder_that_the_user_names_keeps_the_users_files_and_loses_those_of_a_former_report(store: Store, tmp_path: Path) -> None:
    paper = tmp_path / "paper"
    for names in (("frame", "histories"), ("frame",)):
        with put_at_the_end(store, paper) as folder:
            for name in names:
                store.write_text(folder / f"{name}.csv", str(len(names)))
        (paper / "notes.txt").write_text("mine")

    assert held(paper) == {"frame.csv": "1", "notes.txt": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["paper"]


def test_somebodys_own_link_is_followed(store: Store, place: Path, tmp_path: Path) -> None:
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "main.tex").write_text("mine")
    place.parent.mkdir(parents=True)
    place.symlink_to(paper)
    write(store, frame="1")

    assert place.resolve() == paper and held(paper) == {"frame.csv": "1", "main.tex": "mine"}


def test_a_file_in_the_way_is_told_and_kept(store: Store, place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    with pytest.raises(StoreError, match="in the way"):
        write(store, frame="1")

    assert place.read_text() == "mine"


def test_a_full_disk_is_told_and_leaves_the_former_report(store: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, frame="1")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="no space left"):
        write(store, frame="2")

    assert held(place) == {"frame.csv": "1"}


@pytest.mark.parametrize("start", ["nothing", "link", "folder"])
def test_a_read_only_results_folder_is_a_store_error_and_leaves_the_former_report(
    store: Store, place: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    if start == "folder":
        place.mkdir(parents=True)
    if start != "nothing":
        write(store, frame="1")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "symlink", "replace", "unlink"):
        monkeypatch.setattr(os, name, read_only)
    with pytest.raises(StoreError, match="cannot be written .Read-only file system"):
        write(store, frame="2")
    assert start == "nothing" or held(place) == {"frame.csv": "1"}


def test_a_place_that_cannot_hold_a_report_is_named_and_nothing_else(store: Store, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for place, told in ((taken, "is a file: name a folder"), (taken / "in", "cannot be written (Not a directory): name another folder")):
        with pytest.raises(StoreError) as error, put_at_the_end(store, place):
            pass
        assert str(error.value) == f"{place} {told}; nothing was written" and taken.read_text() == "mine"
