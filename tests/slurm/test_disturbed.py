"""Jobs that are cancelled, killed, preempted or out of time: the same command again, and the table is that of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from kdbench.slurm.submissions import Submissions
from tests.slurm.conftest import SCRIPT, STEPS, SUITE, Lab

pytestmark = pytest.mark.slurm


def trained_once(lab: Lab) -> bool:
    return lab.steps == dict.fromkeys(range(STEPS), 1)


def running(lab: Lab) -> str:
    (job,) = [job for job, state in lab.jobs().items() if state == "RUNNING"]
    return job


def test_a_cancelled_job_goes_on_where_it_was_at_the_next_run(lab: Lab) -> None:
    lab.submit()
    lab.in_training()
    lab.slurm("scancel", running(lab))
    lab.until_quiet()
    output = lab.kdbench("status", "disturbed", "--why", status=1)
    assert "cancelled: job" in output and "what it saved is kept" in output

    assert "1 submitted now in 1 jobs" in lab.submit()
    lab.until_quiet()
    assert trained_once(lab)
    lab.equals_undisturbed()
    assert [submission.ended[0].kind for submission in lab.submissions()[:2]] == ["done", "cancelled"]


@pytest.mark.cluster("--cpus", "1")
def test_an_element_of_an_array_that_is_cancelled_while_it_waits_is_missed_and_submitted_again(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("repeats: 1", "repeats: 3"), pause_s=0.2)
    lab.submit()
    lab.in_training(1)
    waiting = max(job for job, state in lab.jobs().items() if state == "PENDING")
    lab.slurm("scancel", waiting)
    assert waiting not in lab.jobs()
    lab.until_quiet()

    assert "1 submitted now in 1 jobs" in lab.submit()
    lab.until_quiet()
    assert [submission.ended[2].kind for submission in lab.submissions() if 2 in submission.ended] == ["lost"]
    lab.equals_undisturbed()


def test_a_killed_process_costs_at_most_what_came_after_its_last_checkpoint(lab: Lab) -> None:
    lab.submit("--checkpoint-every", "0")
    lab.in_training(7)
    (student,) = lab.cells("student")
    holder = lab.store.claim_holder(student)
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)
    lab.until_quiet()

    output = lab.submit("--wait", "--checkpoint-every", "0")
    assert "1 job, 1 cell" in output
    assert all(count == 1 for step, count in lab.steps.items() if step < 6) and sum(lab.steps.values()) <= STEPS + 3
    lab.equals_undisturbed()


@pytest.mark.parametrize(
    "warned",
    [
        pytest.param(False, marks=pytest.mark.cluster("--cpus", "2"), id="with SIGTERM alone"),
        pytest.param(
            True,
            marks=pytest.mark.cluster("--cpus", "2", "--grace-s", "20", "--set", "SlurmctldParameters=preempt_send_user_signal"),
            id="with preempt_send_user_signal",
        ),
    ],
)
def test_a_preempted_job_saves_waits_its_turn_and_goes_on_by_itself(lab: Lab, warned: bool) -> None:
    lab.submit()
    lab.in_training()
    job = running(lab)
    lab.slurm("sbatch", "-p", "urgent", "-n", "2", "--mem", "100", "-o", "/dev/null", "--wrap", "sleep 2")
    lab.until(lambda: lab.jobs().get(job) == "PENDING", "the preempted job's return to the queue")
    lab.until_quiet()

    assert trained_once(lab)
    (submission,) = [submission for submission in lab.submissions() if submission.job == job]
    assert [one["event"] for one in Submissions(lab.store).events(submission, 0)[0]] == [
        "began",
        "requeued" if warned else "ending",
        "began",
        "ended",
    ]
    lab.equals_undisturbed()


def test_one_element_of_an_array_goes_back_into_the_queue_without_its_neighbours(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("repeats: 1", "repeats: 2"), pause_s=0.8)
    lab.submit()
    lab.in_training(8)
    # The last element has the array's own number.
    last = max(job for job, state in lab.jobs().items() if state == "RUNNING" and "_" in job)
    lab.slurm("scancel", "--signal=USR2", last)
    lab.until(lambda: lab.jobs().get(last) == "PENDING", "the element's return to the queue")
    lab.until_quiet()

    (submission,) = [submission for submission in lab.submissions() if len(submission.elements) == 2]
    began = [sum(one["event"] == "began" for one in Submissions(lab.store).events(submission, index)[0]) for index in range(2)]
    assert last == submission.job_of(1) and began == [1, 2]
    assert lab.steps == dict.fromkeys(range(STEPS), 2)
    lab.equals_undisturbed()


def test_a_result_file_of_submitits_that_is_stale_or_missing_decides_nothing(lab: Lab) -> None:
    lab.submit()
    lab.in_training(1)
    job = running(lab)
    (script,) = lab.store.root.glob(f"suites/*/jobs/*/{job}_submission.sh")
    script.with_name(f"{job}_0_result.pkl.save_tmp").write_text("left by a writer that was killed")
    lab.until_quiet()

    assert lab.jobs()[job] == "FAILED" and not script.with_name(f"{job}_0_result.pkl").exists()
    assert "2 of 2 cells done" in lab.submit()
    assert trained_once(lab)
    lab.equals_undisturbed()


def test_where_requeue_is_forbidden_a_job_submits_another_in_its_place(lab: Lab) -> None:
    lab.write(cluster=lab.cluster + "slurm_additional_parameters: {no-requeue: true}\n")
    lab.submit()
    lab.in_training()
    job = running(lab)
    lab.slurm("scancel", "--signal=USR2", job)
    lab.until(lambda: len(lab.submissions()) == 3, "a submission in its place")
    lab.until_quiet()

    assert trained_once(lab)
    lab.equals_undisturbed()
    lab.submit()
    assert [submission.ended[0].kind for submission in lab.submissions()] == ["done"] * 3


def test_the_controller_may_go_and_come_back_while_jobs_run_and_are_waited_for(lab: Lab) -> None:
    run = lab.begin("run", "disturbed.yaml", "--on", "cluster.yaml", "--wait")
    lab.in_training()
    subprocess.run([str(SCRIPT), "pause"], env=lab.environment, check=True, timeout=60)
    lab.until(lambda: "SLURM does not answer" in lab.kdbench("status", "disturbed"), "status without a controller", 60)
    subprocess.run(
        [str(SCRIPT), "resume"],
        env=lab.environment,
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    output, _ = run.communicate(timeout=200)
    assert run.returncode == 0, output + lab.logs()
    assert len(lab.submissions()) == 2 and trained_once(lab)
    lab.equals_undisturbed()


def test_a_limit_of_one_minute_is_met_again_and_again_until_the_training_is_done(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("epochs: 5", "epochs: 24"), pause_s=1.0, cluster=lab.cluster.replace("timeout_min: 10", "timeout_min: 1"))
    lab.submit("--wait")

    assert lab.steps == dict.fromkeys(range(72), 1)
    (student,) = lab.cells("student")
    record = lab.store.record(student)
    assert record is not None and record.circumstance["job"]["restart"] >= 1
    lab.equals_undisturbed()


def test_a_limit_that_brings_no_new_epoch_is_a_clear_failure_and_not_an_endless_loop(lab: Lab) -> None:
    lab.write(pause_s=40.0, cluster=lab.cluster.replace("timeout_min: 10", "timeout_min: 1"))
    output = lab.submit("--wait", status=1)

    assert "no epoch was completed within the limit of 1 min: increase timeout_min" in output
    assert len(lab.submissions()) == 2


def test_a_search_of_which_a_job_is_killed_chooses_the_same_as_alone(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("per_class: 4", "per_class: 8").replace("weight: 0.1}", "weight: 0.1}\ntune: {trials: 3}"), pause_s=0.1)
    lab.submit()
    lab.in_training(20)
    trials = lab.cells("trial")
    (holder, *_) = [holder for cell_id in trials if (holder := lab.store.claim_holder(cell_id)) is not None]
    os.kill(holder.pid, signal.SIGKILL)
    lab.until_quiet(300)
    lab.submit("--wait")
    lab.equals_undisturbed()
    (final,) = lab.cells("student")
    record = lab.store.record(final)
    assert record is not None and len(trials) == 1 + 3 + 1 + 3 * 2
    assert record.result["tuned"] in [lab.store.record(trial).result.get("tuned") for trial in trials]  # type: ignore[union-attr]
