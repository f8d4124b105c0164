"""The verbs on a whole suite: train, go on, fail in part, say so."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from kdbench.cli import main
from kdbench.errors import KdbenchError
from kdbench.failure import STOPPED, classify
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.store import Store, cell_state
from kdbench.train.circumstance import choose_device

MINE = '''
"""A user's own losses: one that works, one that raises, one that kills its process."""

import os
import signal

from kdbench import Loss


class Mine(Loss):
    """Mean squared difference of the logits."""

    needs = frozenset({"logits", "index"})

    def forward(self, student, teacher, batch):
        return (student.logits - teacher.logits).square().mean()


class Raises(Mine):
    """Fails at once."""

    def forward(self, student, teacher, batch):
        if batch.index.device.type != "meta":  # not while the suite is planned
            raise RuntimeError("no such luck")
        return super().forward(student, teacher, batch)


class Kills(Mine):
    """Takes its process along, as a segmentation fault would."""

    def forward(self, student, teacher, batch):
        if batch.index.device.type != "meta":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(student, teacher, batch)


class Diverges(Mine):
    """Not a number from the second epoch on."""

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) * (float("nan") if batch.epoch else 1.0)
'''


def kdbench(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def table(output: str) -> str:
    """What is printed from the report's first line on."""
    return output[output.index("tiny\n") :]


def in_training(path: Path, store: Store, start_new_session: bool = False) -> subprocess.Popen[str]:
    """`kdbench run` as a process of its own, which has begun to train. Tests that a shell runs in the background ignore Ctrl-C, and so
    would their children."""
    command = [sys.executable, "-m", "kdbench", "run", str(path), "--results", str(store.root), "--no-profile"]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen(command, **pipes, start_new_session=start_new_session, preexec_fn=heeds)  # type: ignore[call-overload]
    end = time.monotonic() + 120
    while not list(store.root.rglob("progress.jsonl")):
        assert time.monotonic() < end and run.poll() is None, "it did not come to train"
        time.sleep(0.05)
    return run


def test_a_suite_runs_to_its_table_and_again_it_trains_nothing_and_prints_the_same(
    write_suite: Callable[..., Path], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    path = write_suite(objectives="{ce: , kd: , mine: {loss: mine.py:Mine, weight: 0.1}}", repeats="1")

    first = kdbench("run", str(path), "--results", str(store.root), "--jobs", "2")
    assert first.exit_code == 0, first.output
    assert "tiny: 4 of 4 cells to train, 2 at a time" in first.output
    rows = [line.split()[0] for line in first.output.splitlines() if line.strip()]
    assert {"ce", "kd", "mine"} <= set(rows)
    begun = {path: path.read_text() for path in store.root.rglob("progress.jsonl")}

    again = kdbench("run", str(path), "--results", str(store.root))
    assert again.exit_code == 0
    assert "nothing to train" in again.output
    assert table(again.output) == table(first.output)
    assert {path: path.read_text() for path in store.root.rglob("progress.jsonl")} == begun

    told = kdbench("status", "tiny", "--results", str(store.root))
    assert told.output == "tiny: 4 cells: 4 finished\n"
    assert table(kdbench("report", "--results", str(store.root)).output) == table(first.output)
    report = (store.suite_folder("tiny") / "report" / "report.md").read_text()
    assert "| mine |" in report and "step" in report
    frame = pd.read_csv(store.suite_folder("tiny") / "report" / "frame.csv")
    # What a report needs besides accuracies is kept while training: sources of parts, predictions of each image.
    assert frame.loc[frame["objective"] == "kd", "sources"].str.contains("loss kd [0-9a-f]{12}").all()
    checkpoints = pd.read_csv(store.suite_folder("tiny") / "report" / "images_checkpoints.csv")
    counted = [f"n_{who}" for who in ("both", "objective_only", "baseline_only", "neither")]
    assert len(checkpoints) == 3 and (checkpoints[counted].sum(axis=1) == 899).all()
    planned = json.loads(kdbench("plan", str(path), "--results", str(store.root), "--json").output)
    assert {cell["state"] for cell in planned["cells"]} == {"finished"}
    assert set(planned) == {"cells", "bundles", "teachers", "teacher_outputs"} and len(planned["teachers"]) == 1
    assert "TFLOP in total, 0 left" in kdbench("plan", str(path), "--results", str(store.root)).output


def test_failures_stay_with_their_cells_and_the_page_says_what_is_missing_and_why(
    write_suite: Callable[..., Path], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    path = write_suite(
        repeats="1",
        teachers="{big: {model: small_mobile, widths: [8, 12], min_top1: 0}, poor: {model: small_mobile, widths: [4, 4], min_top1: 0.99}}",
        objectives="""
            ce:
            kd:
            raises: {loss: mine.py:Raises, weight: 1}
            kills: {loss: mine.py:Kills, weight: 1}
            diverges: {loss: mine.py:Diverges, weight: 1}
            """,
        exclude="[{teacher: poor, objective: [raises, kills, diverges]}]",
    )

    done = kdbench("run", str(path), "--results", str(store.root), "--no-profile")

    assert done.exit_code == 1
    states = {(row.student, row.teacher, row.objective): cell_state.of(store, row.id) for row in store.manifest("tiny").cells}
    assert {key[2]: state.name for key, state in states.items() if key[1] != "poor"} == {
        None: "finished",
        "ce": "finished",
        "kd": "finished",
        "raises": "failed",
        "kills": "failed",
        "diverges": "diverged",
    }
    assert states["small", "poor", "kd"].name == "blocked"
    assert "cells have no result" in done.output, (done.output, done.exception)
    page = done.output[done.output.index("cells have no result") :]
    assert "4 of 8 cells have no result" in done.output
    assert "RuntimeError: no such luck" in page
    assert "killed: the training process ended with SIGKILL" in page
    poor = done.output[: done.output.index(page)].splitlines()[-1]
    assert "teacher poor, seed 0" in done.output and ", is trained, but not as required: top-1" in done.output, poor
    assert "  1 blocked by teacher" in page and "below the required 99.00 %" in page
    assert "the loss or a weight is NaN or infinite at step 3" in page
    assert "† kd: 0 of 1 repeats complete" in done.output
    assert "(a part raised an error)" in page and "(the process was killed from outside)" in page
    assert kdbench("status", str(path), "--results", str(store.root)).output.count("no such luck") >= 1

    # What failed stays wanted; once it is mended it is trained, and nothing else is.
    (tmp_path / "mine.py").write_text(MINE.replace('raise RuntimeError("no such luck")', "pass"))
    plan_after = json.loads(kdbench("plan", str(path), "--results", str(store.root), "--json").output)
    assert sum(cell["state"] == "finished" for cell in plan_after["cells"]) == 4


@pytest.mark.slow
def test_two_runs_at_the_same_moment_train_every_step_once(write_suite: Callable[..., Path], store: Store) -> None:
    path = write_suite()
    command = [sys.executable, "-m", "kdbench", "run", str(path), "--results", str(store.root), "--no-profile", "--jobs", "1"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    told = [run.communicate()[0] for run in runs]

    assert [run.returncode for run in runs] == [0, 0], told
    for row in store.manifest("tiny").cells:
        assert [line["epoch"] for line in store.epochs_seen(row.id)] == [0, 1, 2]


@pytest.mark.slow
def test_an_interrupted_run_saves_and_the_next_one_goes_on_from_there(write_suite: Callable[..., Path], store: Store) -> None:
    path = write_suite(
        recipe="{name: short, epochs: 60, batch_size: 16, lr: 0.02}", objectives="[ce]", repeats="1", students="{s: {model: cifar_resnet}}"
    )
    run = in_training(path, store)
    os.kill(run.pid, signal.SIGINT)
    told = run.communicate(timeout=60)[0]

    assert run.returncode == 130, told
    assert "run the same command to continue" in told
    (cell,) = (row.id for row in store.manifest("tiny").cells)
    assert not store.is_done(cell) and store.file(cell, "checkpoint.bin").exists() and not store.is_alive(cell)
    before = len(store.epochs_seen(cell))
    assert kdbench("run", str(path), "--results", str(store.root), "--no-profile").exit_code == 0
    assert len(store.epochs_seen(cell)) <= 60 + 1 and before >= 1


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_workers_too_and_they_save(write_suite: Callable[..., Path], store: Store) -> None:
    path = write_suite(
        name="other",
        recipe="{name: short, epochs: 60, batch_size: 16, lr: 0.02}",
        objectives="[ce]",
        repeats="1",
        students="{s: {model: cifar_resnet}}",
    )
    run = in_training(path, store, start_new_session=True)
    os.killpg(run.pid, signal.SIGINT)
    told = run.communicate(timeout=60)[0]

    assert run.returncode == 130, told
    assert len(list(store.root.rglob("checkpoint.bin"))) == 1
    # A file is asked for by the name that stands in it.
    assert "1 waiting" in kdbench("status", str(path), "--results", str(store.root)).output


def test_a_teacher_is_evaluated_again_when_it_is_loaded_and_must_be_what_its_record_says(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    plan = plan_of(repeats="1", objectives="[kd]")
    teacher, student = (row.cell.id for row in plan.rows)
    train(plan, [teacher])
    path = store.file(teacher, "record.json")
    data = json.loads(path.read_text())
    data["result"]["metrics"]["top1_last"] += 0.1
    store.write_json(path, data)

    assert train(plan, [student]) == 1
    failure = store.failure(student)
    assert failure and failure.kind == "blocked" and "does not match its record" in failure.message


def test_a_loss_that_was_edited_after_planning_fails_alone(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    plan = plan_of(repeats="1", objectives="{kd: , mine: {loss: mine.py:Mine, weight: 1}}")
    (tmp_path / "mine.py").write_text(MINE + "# edited")

    assert train(plan) == 1
    states = {row.objective: store.failure(row.cell.id) for row in plan.rows}
    assert states["kd"] is None and states["mine"] is not None
    assert states["mine"].kind == "import" and "plan and run the suite again" in states["mine"].message


def test_by_default_a_teacher_must_be_twice_as_good_as_chance(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    poor = "{big: {model: small_mobile, widths: [8, 12], recipe: {lr: 1.0e-9}}}"
    plan = plan_of(repeats="1", objectives="[kd]", teachers=poor)

    assert train(plan) == 1
    failure = store.failure(plan.rows[-1].cell.id)
    assert failure and "without min_top1 the suite requires 0.2" in failure.message


def test_idle_cores_are_given_halves_of_a_bundle(plan_of: Callable[..., Plan]) -> None:
    from kdbench.plan.bundle import bundles

    plan = plan_of(objectives="[kd, sp, rkd]", repeats="1")
    (whole,) = bundles([row.cell for row in plan.rows if row.role == "student"])
    shared = local._shared_out([whole], 2)

    assert sorted(len(bundle.cells) for bundle in shared) == [1, 2]
    assert len(local._shared_out([whole], 8)) == 3


def test_the_disk_is_looked_at_when_a_job_has_ended_and_not_while_every_slot_is_taken(
    plan_of: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look asks the state of every cell that is left: of 740 cells, five looks a second took a tenth of a core."""
    monkeypatch.setattr(local, "POLL_S", 0.0)
    plan = plan_of(objectives="[ce, kd]", repeats="2")
    local.prepare(plan, store)
    looks: list[int] = []
    polls: list[int] = []
    started: list[int] = []

    def start(bundle: Any, *others: Any) -> Any:
        left = itertools.repeat(None, 50)
        started.append(len(looks))

        def poll() -> int | None:
            polls.append(1)
            return next(left, 0)

        return local._Running(bundle, SimpleNamespace(poll=poll, returncode=0), Path("log"), 0)  # type: ignore[arg-type]

    real = local._Run._ready
    monkeypatch.setattr(local._Run, "_ready", lambda self, manifest: looks.append(1) or real(self, manifest))
    monkeypatch.setattr(local, "_start", start)
    monkeypatch.setattr(local._Run, "_settle", lambda self, job: None)
    machine = local.Machine(store.root, store.root, side_by_side=1)
    local._Run(plan, store, machine, MagicMock(), list(plan.cells.values())).until_done(SimpleNamespace(close=lambda: None))  # type: ignore[arg-type]
    assert started == [1, 2, 3] and len(polls) > 150  # a teacher and two students without one


def test_cells_that_become_ready_one_after_another_are_trained_together_and_what_others_wait_for_is_first(
    plan_of: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(objectives="[ce, kd, sp, rkd]", repeats="2", tune="{trials: 3, weight: {from: 0.1, to: 10}}")
    local.prepare(plan, store)
    trials = [row.cell for row in plan.rows if row.role == "trial" and row.objective and len(row.cell.depends) == 1]
    finals = [row.cell for row in plan.rows if row.role == "student" and row.objective == "ce"]
    run = local._Run(plan, store, local.Machine(store.root, store.root), MagicMock(), [])
    run.alone.add(trials[0].id)
    for some in (finals, trials[:1], trials[1:3], trials[3:]):
        monkeypatch.setattr(run, "_ready", lambda manifest, some=some: some)
        run.look_at = 0.0
        run._look(store.manifest("tiny"))
    ids = [bundle.ids for bundle in run.waiting]
    assert ids == [[cell.id for cell in trials[1:]], [trials[0].id], *([cell.id] for cell in finals)]


@pytest.mark.parametrize("part", ["losses", "loss", "models"])
def test_list_shows_parts_with_what_they_are(part: str) -> None:
    told = kdbench("list", part).output

    assert ("rkd" in told) == (part != "models")
    assert all(len(line.split()) > 3 for line in told.splitlines()[1:] if line)


def test_show_prints_specification_options_and_presets() -> None:
    told = kdbench("show", "rkd").output

    assert "Source:" in told and "distance: number; default 25.0" in told
    assert "l2: none, both, teacher; default none" in told and "vertices: integer, null; default null" in told
    assert "Differences from the source: the means" in told and "Departs" not in told
    extra = "of kd 16 (temperature 4.0, squared_temperature false)"
    assert f"  rkd:official_cls  loss weights: of the task 1, of rkd 1, {extra}; options: l2 both\n" in told
    assert "  rkd:crd  loss weights: of the task 1, of rkd 1; options: the defaults\n" in told


def test_a_name_that_is_no_part_gets_the_nearest_one() -> None:
    told = kdbench("show", "rdk")

    assert told.exit_code == 2 and "there is no part 'rdk', and no cell id begins with it; did you mean 'rkd'?" in told.stderr


MISTAKEN = {
    "a typing error": ({"repeats": "five"}, ["repeats: 'five': expected a whole number"]),
    "unknown names": ({"objectives": "[ce, kdd]"}, ["objectives.1: there is no loss 'kdd'; did you mean 'kd'?"]),
    "a pair that cannot be": (
        {"objectives": "{ce: , s: {loss: sp, tap: stages}}"},
        ["small <- big: the loss 'sp' cannot be used: it compares stage by stage"],
    ),
}


@pytest.mark.parametrize("what", MISTAKEN)
def test_a_mistaken_suite_is_told_with_its_line_and_nothing_is_run(write_suite: Callable[..., Path], store: Store, what: str) -> None:
    changes, wanted = MISTAKEN[what]
    extra = {"teachers": "{big: {model: small_mobile, widths: [8, 12, 16]}}"} if what == "a pair that cannot be" else {}
    path = write_suite(**changes, **extra)
    told = kdbench("run", str(path), "--results", str(store.root))

    assert told.exit_code == 2
    assert all(text in told.stderr for text in wanted), told.stderr
    assert f"{path}:" in told.stderr and "1 error; nothing was run" in told.stderr
    assert not store.root.exists()


def test_help_comes_within_half_a_second_and_without_torch() -> None:
    code = "import sys; sys.argv = ['kdbench', '--help']\ntry:\n import kdbench.cli; kdbench.cli.main()\nfinally: print('torch' in sys.modules)"
    start = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # On a loaded machine the clock says little: the least of a few is what the program needs.
    seconds = [time.monotonic() - start]
    for _ in range(4):
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "kdbench", "--help"], capture_output=True, check=True)
        seconds.append(time.monotonic() - start)

    assert "Commands:" in told and told.splitlines()[-1] == "False"
    assert min(seconds) < 0.5


def test_ten_thousand_cells_are_planned_within_two_seconds_after_imports(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    from kdbench.plan import summary

    summary.as_text(write_suite(), tmp_path / "none")  # brings in what is imported on the way
    path = write_suite(
        students="{a: {model: small_mobile}, b: {model: cifar_resnet}, c: {model: cifar_resnet, depth: 14}, d: {model: small_mobile, widths: [4, 8, 8]}}",
        teachers="{t: {model: cifar_resnet, depth: 20}, u: {model: cifar_resnet, depth: 32}, v: {model: cifar_resnet, depth: 14}}",
        objectives="{ce: , kd: , sp: , cc: , rkd: , 'kd:simkd': , 'kd:zoo': , cka: {weight: 1, weight_from: assumed}, rcka: {weight: 1, weight_from: assumed}}",
        repeats="100",
    )
    seconds = []  # of the processor: beside other tests the clock says little
    for _ in range(3):
        start = time.process_time()
        told = summary.as_text(path, tmp_path / "none")
        seconds.append(time.process_time() - start)

    assert told.startswith("tiny: 10003 cells")
    assert min(seconds) < 2.0


def test_show_prints_a_cell_by_the_start_of_its_id(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    train(plan)
    (cell_id,) = plan.cells
    told = json.loads(kdbench("show", cell_id[:6], "--results", str(store.root)).output)

    assert told["id"] == cell_id and told["state"] == "finished" and "top1_last" in told["metrics"]
    assert told["config"]["objective"] == {"task": 1.0, "terms": []}
    assert kdbench("show", "ffff00", "--results", str(store.root)).exit_code == 2


@pytest.mark.slow
def test_a_worker_that_is_stopped_from_outside_blocks_its_students_and_the_next_run_goes_on(
    write_suite: Callable[..., Path], store: Store
) -> None:
    import psutil

    path = write_suite(
        teachers="{big: {model: cifar_resnet, min_top1: 0, recipe: {epochs: 60, milestones: [50]}}}", objectives="[kd]", repeats="1"
    )
    run = in_training(path, store)
    (nursery,) = psutil.Process(run.pid).children()
    (worker,) = nursery.children()
    worker.terminate()
    told = run.communicate(timeout=60)[0]

    assert run.returncode == 1
    assert "was stopped from outside" in told and "blocked by teacher" in told
    assert kdbench("run", str(path), "--results", str(store.root), "--no-profile").exit_code == 0


@pytest.mark.slow
def test_a_run_whose_workers_lose_the_process_that_started_them_ends_well(write_suite: Callable[..., Path], store: Store) -> None:
    import psutil

    path = write_suite(
        teachers="{big: {model: cifar_resnet, min_top1: 0, recipe: {epochs: 20, milestones: [15]}}}", objectives="[kd]", repeats="1"
    )
    run = in_training(path, store)
    (nursery,) = psutil.Process(run.pid).children()
    nursery.kill()
    told = run.communicate(timeout=120)[0]

    assert run.returncode == 0, told
    assert all(store.is_done(cell_id) for cell_id in store.manifest("tiny").ids)


def test_a_damaged_manifest_is_written_anew(plan_of: Callable[..., Plan], store: Store) -> None:
    plan = plan_of()
    local.prepare(plan, store)
    (store.suite_folder("tiny") / "manifest.json").write_text("{")

    assert local.prepare(plan, store) == store.manifest("tiny")


@pytest.mark.slow
def test_a_worker_told_to_stops_after_so_many_steps_and_goes_on_from_there(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    ids = [row.cell.id for row in plan.rows if row.role == "student"]
    train(plan, [])
    command = [sys.executable, "-m", "kdbench.train.worker", str(store.root), *ids, "--device", "cpu", "--data", str(tmp_path)]

    stopped = subprocess.run([*command, "--steps", "4"], capture_output=True, text=True, check=False)
    assert stopped.returncode == STOPPED, stopped.stderr
    assert "asked to stop in epoch 2 at step 2: saved there" in stopped.stdout + stopped.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert all(store.is_done(cell_id) for cell_id in ids)
    assert [line["epoch"] for line in store.epochs_seen(ids[0])] == [0, 1, 1, 2]


def test_a_dataset_that_cannot_be_downloaded_is_an_error_unless_it_is_there(tmp_path: Path) -> None:
    there = kdbench("download", "digits")
    assert (
        there.exit_code == 0
        and there.stdout == "digits needs no download: it is part of an installed package, or in the data folder already\n"
    )
    missing = kdbench("download", "imagenet", "--data", str(tmp_path))
    assert missing.exit_code == 2 and "error:" in missing.stderr


def test_data_or_a_gpu_that_is_missing_is_found_before_any_process_starts(write_suite: Callable[..., Path], store: Store) -> None:
    missing = str(store.root / "nowhere")
    cifar = write_suite(dataset="cifar100", teachers="{big: {model: cifar_resnet}}", students="{small: {model: cifar_resnet}}")
    refused = kdbench("run", str(cifar), "--results", str(store.root), "--data", missing, "--device", "cpu")
    assert refused.exit_code == 2 and f"CIFAR-100 is missing: there is no folder {missing}" in refused.stderr, refused.output
    if not torch.cuda.is_available():
        refused = kdbench("run", str(write_suite()), "--results", str(store.root), "--device", "cuda")
        assert refused.exit_code == 2 and "a GPU was requested" in refused.stderr
    assert not list(store.root.glob("suites/*/jobs/*")) and not list(store.root.glob("cells/*/*/failure.json"))
    early = kdbench("profile", str(cifar), "--results", str(store.root))
    assert early.exit_code == 2 and f"no student has finished training: run `kdbench run {cifar}` first" in early.stderr
    spaced = str(cifar.rename(cifar.with_name("it's mine.yaml")))
    (command,) = re.findall("`(.*)`", kdbench("profile", spaced, "--results", str(store.root)).stderr)
    assert shlex.split(command) == ["kdbench", "run", spaced], "a printed command can be copied into a shell"


def test_every_error_has_the_same_form_and_states_what_was_not_done(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text('"""Text."""\nx: y: z\n')
    (tmp_path / "bad.yaml").write_text("name: bad\nrepeats: 0\nnothing: 1\n")
    told = {
        f"plan {tmp_path}/code.py": f"error: {tmp_path}/code.py:",
        f"report {tmp_path}/code.py": f"error: {tmp_path}/code.py is neither the name of a suite nor its YAML file\n",
        f"export abc --results {tmp_path}": f"error: no cell id under {tmp_path} begins with 'abc'\n",
        f"show deadbeef --results {tmp_path}": "error: there is no part 'deadbeef', and no cell id begins with it",
    }
    for words, text in told.items():
        result = kdbench(*words.split())
        assert result.exit_code == 2 and result.stderr.startswith(text), result.stderr
    assert "the file is not YAML" in kdbench("plan", f"{tmp_path}/code.py").stderr
    for verb, end in (("plan", "errors"), ("run", "errors; nothing was run")):
        *errors, last = kdbench(verb, f"{tmp_path}/bad.yaml").stderr.splitlines()
        assert all(line.startswith(f"error: {tmp_path}/bad.yaml:") for line in errors) and last == f"{len(errors)} {end}"
        lines = [int(line.split(":")[2]) for line in errors]
        assert lines == sorted(lines) and len(set(lines)) > 1


def test_show_names_what_a_short_name_stands_for_and_one_preset_alone() -> None:
    assert kdbench("show", "cifar_resnet56").stdout.startswith("cifar_resnet56 is cifar_resnet with depth 56.\n")
    one = kdbench("show", "rkd:crd").stdout
    assert "  rkd:crd  loss weights" in one and "  rkd:official_cls  " not in one
    assert "did you mean 'crd'?" in kdbench("show", "rkd:crdd").stderr
    assert kdbench("show", "ce").stdout == "ce is the loss of the task alone, without a teacher. It has no options.\n"
    shown = kdbench("show", "resnet18").stdout
    assert shown.startswith("resnet18 is a model of timm: `kdbench show timm` shows its options. Arguments that it also takes: ")
    assert "layers, " in shown and "num_classes" not in shown and "block, " not in shown


def test_a_recipe_that_would_train_nothing_is_refused(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    plan = plan_of(objectives="[ce]", repeats="1", recipe="{name: short, epochs: 1, batch_size: 64, milestones: [], drop_last: true}")
    cell_id = plan.rows[-1].cell.id

    assert train(plan, [cell_id]) == 1
    failure = store.failure(cell_id)
    assert failure is not None and "40 training images make no batch of 64, and drop_last drops the rest" in failure.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "host memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "host memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "host memory"),
        (RuntimeError("CUDA error: out of memory"), "device memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "device memory"),
        (RuntimeError("no such luck"), "raised"),
        (ModuleNotFoundError("No module named 'theirs'"), "import"),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error: Exception, kind: str) -> None:
    assert classify(error) == kind


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error_and_no_week_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(KdbenchError, match="a GPU was requested, but torch .* finds none"):
        choose_device("cuda")


def test_a_teacher_that_ends_below_its_minimum_while_its_students_are_looked_at_blocks_them(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether it is done and whether it serves are two questions; between them its process may end."""
    plan = plan_of(repeats="1", teachers="{poor: {model: small_mobile, widths: [4, 4], min_top1: 0.99}}")
    train(plan)
    teacher = next(cell.id for cell in plan.cells.values() if cell.role == "teacher")
    kd = next(cell for cell in plan.cells.values() if cell.depends)
    asked = {"judged": False, "done": False}
    is_done, why_unable = store.is_done, local.why_unable

    def done(cell_id: str) -> bool:
        first, asked["done"] = not any(asked.values()), True
        return cell_id == teacher and not first and is_done(cell_id)

    def judged(*given: object) -> str | None:
        first, asked["judged"] = not any(asked.values()), True
        return None if first else why_unable(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "is_done", done)
    monkeypatch.setattr(local, "why_unable", judged)
    run = local._Run(plan, store, local.Machine(store.root, tmp_path), None, [kd])  # type: ignore[arg-type]
    assert run._ready(store.manifest("tiny")) == []
    failed = store.failure(kd.id)
    assert failed and "below the required 99.00 %" in failed.message
