"""What is submitted, and that nothing is submitted twice: crashes, two shells, a loss added later, arrays that fit, GPUs, accounting."""

from __future__ import annotations

import getpass
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.slurm.ledger import Ledger
from tests.slurm.conftest import STEPS, SUITE, Lab

pytestmark = pytest.mark.slurm

DIES = """
import os, signal, sys

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "before the note":
    from kdbench.slurm import ledger
    real, seen = ledger.Ledger.write, []
    def write(self, note):
        if note.job is not None:
            die()
        real(self, note)
    ledger.Ledger.write = write
else:
    import submitit.core.utils
    submitit.core.utils.JobPaths.move_temporary_file = die

from kdbench.cli import main
sys.exit(main(sys.argv[2:]))
"""
"""The program, killed after sbatch has answered: with submitit's payloads in their place, or before."""


@pytest.mark.parametrize("where", ["before the note", "before the payload"])
def test_a_submitter_that_is_killed_after_sbatch_loses_no_job_and_submits_none_twice(lab: Lab, where: str, tmp_path: Path) -> None:
    lab.write(pause_s=0.1)
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    command = [sys.executable, str(script), where, "run", "disturbed.yaml", "--on", "cluster.yaml", "--results", str(lab.store.root)]
    died = subprocess.run(command, cwd=lab.folder, env=lab.environment, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    (orphan,) = lab.notes()
    assert orphan.job is None and len(lab.jobs()) == 1

    told = lab.submit("--wait")
    assert told.count("submitted ") == 1, told
    first, second = lab.notes()
    assert first.token == orphan.token and first.job is not None and second.after in ([], [first.job])
    assert [len(note.elements) for note in (first, second)] == [1, 1] and len(lab.jobs()) == 2
    assert lab.steps == dict.fromkeys(range(STEPS), 1)
    lab.equals_undisturbed()


def test_two_runs_at_the_same_moment_submit_everything_once(lab: Lab, tmp_path: Path) -> None:
    lab.write(pause_s=0.1)
    slow = tmp_path / "slow" / "sbatch"  # so that both would be submitting at once
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 4\nexec {shutil.which("sbatch")} "$@"\n')
    slow.chmod(0o755)
    lab.environment["PATH"] = f"{slow.parent}:{lab.environment['PATH']}"
    both = [lab.begin("run", "disturbed.yaml", "--on", "cluster.yaml") for _ in range(2)]
    told = [process.communicate(timeout=200)[0] for process in both]

    assert sorted(text.count("submitted ") for text in told) == [1, 3], told
    assert len(lab.jobs()) == 2
    lab.until_quiet()
    lab.equals_undisturbed()


def test_a_loss_added_to_a_finished_suite_is_all_that_is_submitted(lab: Lab) -> None:
    lab.write(pause_s=0.0)
    lab.submit("--wait")
    lab.write(suite=SUITE.replace("repeats: 1", "  kd:\nrepeats: 1"))

    told = lab.submit("--wait")
    assert told.count("submitted ") == 1 and "1 job, 1 cell" in told
    lab.equals_undisturbed()
    assert "0 submitted now" in lab.submit() and len(lab.jobs()) == 3


def test_costs_are_measured_in_a_job_of_their_own_and_stand_in_the_report(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("repeats: 1", "  ce:\nrepeats: 1"), pause_s=0.0)
    lab.submit("--wait")
    assert "submitted 4: costs are measured there" in lab.kdbench("profile", "disturbed.yaml", "--on", "cluster.yaml")
    lab.until_quiet()

    assert {one["objective"] for one in lab.store.manifest("disturbed")["profiles"]} == {"slow", "ce"}
    assert "peak: the most memory that a step held" in lab.kdbench("report", "disturbed")


@pytest.mark.cluster("--cpus", "3", "--set", "MaxArraySize=5")
def test_twelve_jobs_on_a_cluster_whose_arrays_hold_five_are_three_arrays(lab: Lab) -> None:
    suite = (
        SUITE.replace("repeats: 1", "repeats: 12")
        .replace('slow: {loss: "parts.py:Slow", weight: 0.1}', "ce:")
        .replace("epochs: 5", "epochs: 1")
    )
    lab.write(suite=suite)
    lab.submit("--wait")

    assert [len(note.elements) for note in lab.notes()] == [5, 5, 2]
    lab.equals_undisturbed()


@pytest.mark.cluster("--cpus", "4", "--gpus", "2")
def test_a_gpu_that_is_asked_for_is_granted_and_two_jobs_have_one_each_at_once(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("repeats: 1", "repeats: 3"), cluster=lab.cluster + "gpus_per_node: 1\ndevice: cpu\n")
    lab.submit()
    seen: list[int] = []
    granted: set[str] = set()

    def watched() -> bool:
        states = list(lab.jobs().values())
        seen.append(states.count("RUNNING"))
        granted.update(
            re.findall(r"JobState=RUNNING.*?GRES=gpu:1\(IDX:(\d)\)", lab.slurm("scontrol", "show", "job", "--details", "--oneliner"))
        )
        return "PENDING" not in states and "RUNNING" not in states and len(states) == 4

    lab.until(watched, "the end", 200)
    assert max(seen) == 2 and granted == {"0", "1"}
    ledger = Ledger(lab.store)
    note = next(note for note in lab.notes() if len(note.elements) == 3)
    assert [ledger.said(note, index)[0]["gpus"] for index in range(3)] == ["1"] * 3
    lab.equals_undisturbed()


@pytest.mark.slow
@pytest.mark.cluster("--cpus", "2", "--accounting", "slurmdbd")
@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(("user", getpass.getuser(), "set", "MaxSubmitJobs=2"), id="stated for this user"),
        pytest.param(("account", "root", "set", "GrpSubmitJobs=2"), id="told by a refusal alone"),
    ],
)
def test_with_accounting_on_no_more_is_submitted_than_it_allows_and_all_is_done_at_last(lab: Lab, limit: tuple[str, ...]) -> None:
    lab.slurm("sacctmgr", "-i", "modify", *limit)
    lab.write(suite=SUITE.replace("repeats: 1", "repeats: 3"), pause_s=0.2)
    told = lab.submit()
    assert "2 submitted now in 2 jobs, 2 wait for room in the queue" in told.replace("\n", " "), told
    lab.until(lambda: "RUNNING" in lab.jobs().values(), "a running job")
    lab.slurm("scancel", next(job for job, state in lab.jobs().items() if state == "PENDING"))

    lab.submit("--wait", status=None)
    told = lab.submit("--wait")
    assert "4 of 4 cells done" in told
    lab.equals_undisturbed()
    assert "COMPLETED" in lab.slurm("sacct", "-n", "-X", "-o", "State")
