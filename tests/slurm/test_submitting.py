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

from kdbench.slurm.submissions import Submissions
from tests.slurm.conftest import STEPS, SUITE, Lab

pytestmark = pytest.mark.slurm

DIES = """
import os, signal, sys

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "before the number":
    from kdbench.slurm import submissions
    real = submissions.Submissions.write
    def write(self, submission):
        if submission.job is not None:
            die()
        real(self, submission)
    submissions.Submissions.write = write
else:
    import submitit.core.utils
    submitit.core.utils.JobPaths.move_temporary_file = die

from kdbench.cli import main
sys.exit(main(sys.argv[2:]))
"""
"""The program, killed after sbatch has answered: with submitit's payloads in their place, or before."""


@pytest.mark.parametrize("where", ["before the number", "before the payload"])
def test_a_submitter_that_is_killed_after_sbatch_loses_no_job_and_submits_none_twice(lab: Lab, where: str, tmp_path: Path) -> None:
    lab.write(pause_s=0.1)
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    command = [sys.executable, str(script), where, "run", "disturbed.yaml", "--on", "cluster.yaml", "--results", str(lab.store.root)]
    died = subprocess.run(command, cwd=lab.folder, env=lab.environment, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    (orphan,) = lab.submissions()
    assert orphan.job is None and len(lab.jobs()) == 1

    output = lab.submit("--wait")
    assert output.count("submitted ") == 1, output
    first, second = lab.submissions()
    assert first.token == orphan.token and first.job is not None and second.after in ([], [first.job])
    assert [len(submission.elements) for submission in (first, second)] == [1, 1] and len(lab.jobs()) == 2
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
    output = [process.communicate(timeout=200)[0] for process in both]

    assert sorted(text.count("submitted ") for text in output) == [1, 3], output
    assert len(lab.jobs()) == 2
    lab.until_quiet()
    lab.equals_undisturbed()


def test_a_loss_added_to_a_finished_suite_is_all_that_is_submitted(lab: Lab) -> None:
    lab.write(pause_s=0.0)
    lab.submit("--wait")
    lab.write(suite=SUITE.replace("repeats: 1", "  kd:\nrepeats: 1"))

    output = lab.submit("--wait")
    assert output.count("submitted ") == 1 and "1 job, 1 cell" in output
    lab.equals_undisturbed()
    assert "0 submitted now" in lab.submit() and len(lab.jobs()) == 3


def test_costs_are_measured_in_a_job_of_their_own_and_stand_in_the_report(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("repeats: 1", "  ce:\nrepeats: 1"), pause_s=0.0)
    lab.submit("--wait")
    assert "submitted job 4, which measures the costs" in lab.kdbench("profile", "disturbed.yaml", "--on", "cluster.yaml")
    page = lab.kdbench("status", "disturbed")
    assert "costs: job 4 " in page and ("pending" in page or "running" in page or "on localhost" in page), page
    assert "job 4 measures the costs of disturbed already" in lab.kdbench("profile", "disturbed.yaml", "--on", "cluster.yaml", status=2)
    lab.until_quiet()
    assert "costs:" not in lab.kdbench("status", "disturbed")
    assert lab.submissions()[-1].ended[0].kind == "done"

    assert {one.objective for one in lab.store.manifest("disturbed").profiles} == {"slow", "ce"}
    assert "peak: the largest memory of a step" in lab.kdbench("report", "disturbed", "--full")


def test_a_job_that_measures_costs_can_be_cancelled_and_status_says_that_there_are_none(lab: Lab) -> None:
    lab.write(pause_s=0.0)
    lab.submit("--wait")
    lab.write(cluster=lab.cluster + "slurm_additional_parameters: {begin: now+600}\n")
    lab.kdbench("profile", "disturbed.yaml", "--on", "cluster.yaml")
    assert "costs: job 3 pending (BeginTime)" in lab.kdbench("status", "disturbed")
    assert "1 job cancelled" in lab.kdbench("cancel", "disturbed")

    assert "costs: job 3 ended without a result (CANCELLED, cancelled); its log is" in lab.kdbench("status", "disturbed")
    assert "there are no jobs to cancel" in lab.kdbench("cancel", "disturbed")
    lab.equals_undisturbed()


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("whole nodes", marks=pytest.mark.cluster("--cpus", "8", "--whole-nodes")),
        pytest.param("two threads a core", marks=pytest.mark.cluster("--cpus", "8", "--threads", "2")),
        pytest.param("both", marks=pytest.mark.cluster("--cpus", "8", "--threads", "2", "--whole-nodes")),
    ],
)
def test_a_job_is_one_process_however_many_cpus_it_is_granted(lab: Lab, layout: str) -> None:
    lab.write(pause_s=0.0, cluster=lab.cluster + "slurm_srun_args: [--cpu-bind=none]\n")
    lab.submit("--wait")

    for submission in lab.submissions():
        submissions = Submissions(lab.store)
        log = submissions.folder(submission) / f"{submission.job}_0_log.out"
        assert log.read_text().count("Starting with JobEnvironment") == 1
        assert [one["event"] for one in submissions.events(submission, 0)[0]] == ["began", "ended"]
    granted = re.findall(r" NumCPUs=(\d+)", lab.slurm("scontrol", "show", "job", "--oneliner"))
    assert granted == ["2" if layout == "two threads a core" else "8"] * 2
    assert lab.steps == dict.fromkeys(range(STEPS), 1)
    lab.equals_undisturbed()


def test_what_slurm_refuses_is_reported_with_its_own_reason(lab: Lab) -> None:
    for words, reason in (
        ("slurm_partition: nope", "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified"),
        ("slurm_additional_parameters: {frob: 1}", "unrecognized option '--frob=1'"),
        ("mem_gb: 90000", "Memory specification can not be satisfied; Batch job submission failed: Requested node configuration"),
        ("slurm_gres: 'gpu:a100:7'", "Batch job submission failed: Requested node configuration is not available"),
    ):
        word = words.split(":")[0]
        kept = "".join(line + "\n" for line in lab.cluster.splitlines() if not line.startswith(word))
        (lab.folder / "cluster.yaml").write_text(f"{kept}{words}\n")
        text = lab.submit("--wait", status=1)
        assert f"2 cells were not submitted: SLURM refuses the job: {reason}" in text
        assert f"not granted: SLURM refuses the job: {reason}" in text and "--help" not in text, text
    assert lab.submissions() == [] and set(lab.jobs().values()) <= {"FAILED"}


@pytest.mark.slow
@pytest.mark.cluster("--cpus", "2", "--accounting", "slurmdbd")
def test_an_account_that_does_not_exist_is_reported_with_slurms_reason(lab: Lab) -> None:
    lab.write(cluster=lab.cluster + "slurm_account: nobody\n")
    text = lab.submit("--wait", status=1)

    assert "SLURM refuses the job: Batch job submission failed: Invalid account or account/partition combination specified" in text
    assert "--help" not in text and lab.jobs() == {}


@pytest.mark.slow
@pytest.mark.cluster("--cpus", "2", "--accounting", "slurmdbd")
def test_a_limit_that_no_waiting_meets_ends_the_waiting(lab: Lab) -> None:
    for words, reason in (
        (("MaxWall=00:05:00", "Flags=DenyOnLimit"), "SLURM refuses the job: QOSMaxWallDurationPerJobLimit"),
        (("MaxWall=-1", "MaxSubmitJobsPerUser=0"), "no job of yours is in the queue for which it could wait: QOSMaxSubmitJobPerUserLimit"),
    ):
        lab.slurm("sacctmgr", "-i", "modify", "qos", "normal", "set", *words)
        text = lab.submit("--wait", status=1)
        assert reason in text.replace("\n", " ") and "timeout_min 10" in text, text
    assert lab.submissions() == [] and lab.jobs() == {}


def test_a_damaged_submission_is_named_and_its_cells_are_trained_all_the_same(lab: Lab) -> None:
    lab.write(cluster=lab.cluster + "slurm_additional_parameters: {begin: now+600}\n")
    lab.submit()
    for submission in lab.submissions():
        (Submissions(lab.store).folder(submission) / "submission.json").write_text('{"suite": 3}')
    page = lab.kdbench("status", "disturbed")
    assert page.count("submission.json is missing or damaged") == 2 and "its jobs 1 are in the queue: `kdbench cancel` ends them" in page
    assert "2 jobs cancelled" in lab.kdbench("cancel", "disturbed")
    lab.write(cluster=lab.cluster.replace("slurm_additional_parameters: {begin: now+600}\n", ""), pause_s=0.0)
    text = lab.submit("--wait")

    assert "submission.json is missing or damaged" in text and "2 of 2 cells done" in text
    lab.equals_undisturbed()


@pytest.mark.cluster("--cpus", "3", "--set", "MaxArraySize=5")
def test_twelve_jobs_on_a_cluster_whose_arrays_hold_five_are_three_arrays(lab: Lab) -> None:
    suite = (
        SUITE.replace("repeats: 1", "repeats: 12")
        .replace('slow: {loss: "parts.py:Slow", weight: 0.1}', "ce:")
        .replace("epochs: 5", "epochs: 1")
        .replace("milestones: [3]", "milestones: []")
    )
    lab.write(suite=suite)
    lab.submit("--wait")

    assert [len(submission.elements) for submission in lab.submissions()] == [5, 5, 2]
    lab.equals_undisturbed()


@pytest.mark.cluster("--cpus", "4", "--gpus", "2")
def test_a_gpu_that_is_asked_for_is_granted_and_two_jobs_have_one_each_at_once(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("repeats: 1", "repeats: 3"), cluster=lab.cluster + "gpus_per_node: 1\ndevice: cpu\n")
    lab.submit()
    jobs: list[int] = []
    granted: set[str] = set()

    def watched() -> bool:
        states = list(lab.jobs().values())
        jobs.append(states.count("RUNNING"))
        granted.update(
            re.findall(r"JobState=RUNNING.*?GRES=gpu:1\(IDX:(\d)\)", lab.slurm("scontrol", "show", "job", "--details", "--oneliner"))
        )
        return "PENDING" not in states and "RUNNING" not in states and len(states) == 4

    lab.until(watched, "the end", 200)
    assert max(jobs) == 2 and granted == {"0", "1"}
    ledger = Submissions(lab.store)
    submission = next(submission for submission in lab.submissions() if len(submission.elements) == 3)
    assert [ledger.events(submission, index)[0][0]["gpus"] for index in range(3)] == ["1"] * 3
    lab.equals_undisturbed()


@pytest.mark.slow
@pytest.mark.cluster("--cpus", "2", "--accounting", "slurmdbd")
@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(("user", getpass.getuser(), "set", "MaxSubmitJobs=2"), id="stated for this user"),
        pytest.param(("account", "root", "set", "GrpSubmitJobs=2"), id="output by a refusal alone"),
    ],
)
def test_with_accounting_on_no_more_is_submitted_than_it_allows_and_all_is_done_at_last(lab: Lab, limit: tuple[str, ...]) -> None:
    lab.slurm("sacctmgr", "-i", "modify", *limit)
    lab.write(suite=SUITE.replace("repeats: 1", "repeats: 3"), pause_s=0.2)
    output = lab.submit()
    assert "2 submitted now in 2 jobs, 2 wait for room in the queue" in output.replace("\n", " "), output
    lab.until(lambda: "RUNNING" in lab.jobs().values(), "a running job")
    lab.slurm("scancel", next(job for job, state in lab.jobs().items() if state == "PENDING"))

    lab.submit("--wait", status=None)
    output = lab.submit("--wait")
    assert "4 of 4 cells done" in output
    lab.equals_undisturbed()
    assert "COMPLETED" in lab.slurm("sacct", "-n", "-X", "-o", "State")
