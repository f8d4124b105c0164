"""Two ranks, each a task of one job: whatever ends one of them, the results are those of one process that nothing disturbed."""

from __future__ import annotations

import os
import signal

import pytest

from tests.slurm.conftest import CLUSTER, STEPS, SUITE, Lab

pytestmark = pytest.mark.slurm

RANKED_SUITE = SUITE.replace("milestones: [3]", "milestones: [3], bn_groups: 2").replace("parts.py:Slow", "parts.py:Ranked")
TWO = CLUSTER.replace("mem_gb: 1.5", "mem_gb: 4") + "ranks: 2\n"


@pytest.fixture
def two(lab: Lab) -> Lab:
    lab.write(suite=RANKED_SUITE, cluster=TWO)
    return lab


def running(lab: Lab) -> str:
    (job,) = [job for job, state in lab.jobs().items() if state == "RUNNING"]
    return job


def trained_once(lab: Lab) -> bool:
    return lab.steps == dict.fromkeys(range(STEPS), 1)


def ranks(lab: Lab) -> set[int]:
    records = [lab.store.record(cell_id) for cell_id in lab.cells()]
    return {record.circumstance.get("ranks", 1) for record in records if record}


def test_a_cancelled_job_of_two_ranks_goes_on_where_it_was(two: Lab) -> None:
    two.submit()
    two.in_training()
    two.slurm("scancel", running(two))
    two.until_quiet()
    assert "cancelled: job" in two.kdbench("status", "disturbed", "--why", status=1)
    two.submit()
    two.until_quiet()
    assert trained_once(two) and ranks(two) == {2}
    two.equals_undisturbed()


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
def test_a_preempted_job_of_two_ranks_stops_at_one_step_and_goes_on_by_itself(two: Lab, warned: bool) -> None:
    two.submit()
    two.in_training()
    job = running(two)
    two.slurm("sbatch", "-p", "urgent", "-n", "2", "--mem", "100", "-o", "/dev/null", "--wrap", "sleep 2")
    two.until(lambda: two.jobs().get(job) == "PENDING", "the preempted job's return to the queue")
    two.until_quiet()
    assert trained_once(two)
    two.equals_undisturbed()


def test_a_limit_of_one_minute_is_met_by_two_ranks_until_the_training_is_done(two: Lab) -> None:
    two.write(suite=RANKED_SUITE.replace("epochs: 5", "epochs: 24"), pause_s=1.0, cluster=TWO.replace("timeout_min: 10", "timeout_min: 1"))
    two.submit("--wait")
    assert two.steps == dict.fromkeys(range(72), 1)
    (student,) = two.cells("student")
    record = two.store.record(student)
    assert record is not None and record.circumstance["job"]["restart"] >= 1 and ranks(two) == {2}


def test_a_rank_that_is_killed_ends_its_job_and_the_next_run_goes_on(two: Lab) -> None:
    two.submit("--checkpoint-every", "0")
    two.in_training(7)
    os.kill(int((two.folder / "process1").read_text()), signal.SIGKILL)
    two.until_quiet()
    assert not two.store.is_done(two.cells("student")[0])
    two.submit("--wait", "--checkpoint-every", "0")
    assert sum(two.steps.values()) <= STEPS + 4
    two.equals_undisturbed()


def test_status_shows_the_error_of_the_rank_that_raised(two: Lab) -> None:
    (two.folder / "raises").touch()
    two.submit()
    two.until_quiet()
    page = two.kdbench("status", "disturbed", "--why", status=1)
    assert "rank 1: ValueError: not on this rank" in page and "onnection" not in page
