"""Runs as TensorBoard events, read back with TensorBoard's own reader."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.errors import KdbenchError
from kdbench.manifest import ManifestCell
from kdbench.record import Record
from kdbench.tensorboard_adapter import run_name, write_events


@pytest.fixture
def accumulate():
    """Reads what is in a folder of events."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        if os.environ.get("KDBENCH_NO_SKIP"):
            raise
        pytest.skip("tensorboard is not installed: pip install 'kdbench[tensorboard]'")

    def read(folder: Path):
        found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        found.Reload()
        return found

    return read


def epoch(number: int, **test: float) -> dict:
    terms = {"task": {"raw": 2.5, "weighted": 2.5}, "cc": {"raw": 0.01 / (number + 2), "weighted": 1.0, "gradient_ratio": 0.5 + number}}
    return {"epoch": number, "lr": 0.1, "terms": terms, "loss": 3.5 - number, **({"test": test} if test else {})}


def finish(suite, cell: dict, history: list[dict], outcome: str = "finished") -> None:
    config = {"objective": {"task": 1.0, "terms": [{"loss": "cc", "weight": 100.0}]}}
    suite.store.put_record(
        Record(cell["id"], config, outcome, {"metrics": {}, "history": history, "n_train": 9, "n_test": 9, "diverged_at_step": 3}, {})
    )
    for number in range(len(history)):
        suite.store.append_line(
            suite.store.file(cell["id"], "progress.jsonl"), {"epoch": number, "step": 0, "of": 2, "at": 1000.0 + number}
        )


def test_each_run_is_read_back_with_every_scalar_at_its_epoch(made, tmp_path: Path, accumulate) -> None:
    suite = made(repeats=2)
    one, other = suite.cells(objective="cc")
    finish(suite, one, [epoch(0), epoch(1, top1=0.25, nll=2.0)])
    finish(suite, other, [{**epoch(0), "loss": None}], "diverged")
    folder = tmp_path / "events"

    assert write_events(suite.store, suite.checked(), folder) == 2
    runs = sorted(path.relative_to(folder).parent.as_posix() for path in folder.rglob("events.out.tfevents*"))
    assert runs == [f"small/big/cc/0-{one['id']}", f"small/big/cc/1-{other['id']}"]
    found = accumulate(folder / runs[0])
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars == {
        "train/lr": [(1, pytest.approx(0.1)), (2, pytest.approx(0.1))],
        "train/loss": [(1, 3.5), (2, 2.5)],
        "raw/task": [(1, 2.5), (2, 2.5)],
        "weighted/task": [(1, 2.5), (2, 2.5)],
        "raw/cc": [(1, pytest.approx(0.005)), (2, pytest.approx(0.01 / 3))],
        "weighted/cc": [(1, 1.0), (2, 1.0)],
        "gradient_ratio/cc": [(1, 0.5), (2, 1.5)],
        "test/top1": [(2, 0.25)],
        "test/nll": [(2, 2.0)],
    }
    assert [event.wall_time for event in found.Scalars("train/lr")] == [1000.0, 1001.0]
    [text] = found.Tensors("objective")
    assert '"weight": 100.0' in text.tensor_proto.string_val[0].decode()
    # What was not finite has no point.
    assert "train/loss" not in accumulate(folder / runs[1]).Tags()["scalars"]


def test_written_again_the_files_are_the_same_to_the_last_byte(made, tmp_path: Path, accumulate) -> None:
    suite = made(repeats=1)
    [cell] = suite.cells(objective="cc")
    finish(suite, cell, [epoch(0), epoch(1)])
    for name in ("one", "other"):
        write_events(suite.store, suite.checked(), tmp_path / name)
    one, other = (
        [(path.relative_to(tmp_path / name), path.read_bytes()) for path in (tmp_path / name).rglob("*tfevents*")]
        for name in ("one", "other")
    )

    assert one == other and len(one) == 1


def test_an_evaluation_before_any_epoch_is_step_zero_and_a_damaged_record_is_left_out(made, tmp_path: Path, accumulate) -> None:
    suite = made(repeats=2)
    teacher, cell = suite.cells(role="teacher")[0], suite.cells(objective="cc")[0]
    finish(suite, teacher, [{"epoch": -1, "lr": 0.0, "terms": {}, "test": {"top1": 0.5}}])
    suite.store.file(cell["id"], "record.json").parent.mkdir(parents=True)
    suite.store.file(cell["id"], "record.json").write_text("{")

    assert write_events(suite.store, suite.checked(), tmp_path / "events") == 1
    found = accumulate(tmp_path / "events" / "big" / "no_teacher" / "teacher" / f"0-{teacher['id']}")
    assert [(event.step, event.wall_time, event.value) for event in found.Scalars("test/top1")] == [(0, 0.0, 0.5)]


def test_names_make_no_folders_of_their_own() -> None:
    cell = ManifestCell("0a", "student", "é/10", "../../etc", "hub:a/b", "my/loss.py:Mine", 3, 0, {})

    assert run_name(cell, True).parts == ("é_10", "_.._etc", "hub_a_b", "my_loss.py_Mine", "3-0a")
    assert run_name(replace(cell, objective=None, teacher=None, repeat=None), False).parts == ("_.._etc", "no_teacher", "student", "0a")


def test_without_the_library_the_extra_is_named(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(KdbenchError, match=r"pip install 'kdbench\[tensorboard\]'"):
        write_events(made().store, made().checked(), tmp_path)


def test_writing_events_loads_neither_torch_nor_tensorflow(made, tmp_path: Path, accumulate) -> None:
    suite = made(repeats=1).write()
    finish(suite, suite.cells(objective="cc")[0], [epoch(0)])
    code = (
        "import sys; from pathlib import Path; from kdbench.store import Store; from kdbench.tensorboard_adapter import write_events\n"
        f"store = Store({str(suite.store.root)!r}); print(write_events(store, store.manifest('quickstart'), Path({str(tmp_path / 'e')!r})))\n"
        "print(*[name for name in ('torch', 'tensorflow') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout.split() == ["1"]
