"""What SLURM's commands say, whichever of them answers; the commands are stand-ins that print what real ones printed."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import ClusterError
from kdbench.slurm.scheduler import Scheduler

ME = getpass.getuser()
SQUEUE = """4|2|kdbench-a-1|PENDING||UNLIMITED|JobArrayTaskLimit
4|0|kdbench-a-1|RUNNING|node7|3:21:05|None
3|N/A|kdbench-b-2|FAILED|node7|1:00|NonZeroExitCode"""

SCONTROL = f"""JobId=5 ArrayJobId=4 ArrayTaskId=0 JobName=kdbench-a-1 UserId={ME}(0) JobState=RUNNING Reason=None NodeList=node7
JobId=4 ArrayJobId=4 ArrayTaskId=3-4,7%2 JobName=kdbench-a-1 UserId={ME}(0) JobState=PENDING Reason=Priority NodeList=(null)
JobId=9 JobName=theirs UserId=somebody(7) JobState=RUNNING NodeList=node1"""
SACCT = """3|kdbench-b-2|CANCELLED by 1000|node7
4_[5-6%2]|kdbench-a-1|PENDING|None assigned
4_1|kdbench-a-1|OUT_OF_MEMORY|node8"""
CONFIG = "Configuration data as of now\nClusterName             = big\nMaxArraySize            = 400\nMaxJobCount             = 10000\n"


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Commands by name, each with what it prints (None: it fails); only these are on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(**commands: str | None) -> None:
        for name, told in commands.items():
            (tmp_path / f"{name}.txt").write_text(told or "")
            body = (
                f"exec /bin/cat {tmp_path / name}.txt"
                if told is not None
                else f"echo '{name}: Unable to contact slurm controller' >&2; exit 1"
            )
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)

    return put


def test_squeue_tells_of_arrays_element_by_element(says: Callable[..., None]) -> None:
    says(squeue=SQUEUE)
    sight = Scheduler().look(["4_0", "3"])

    assert sight.answered
    assert {job: (seen.state, seen.node, seen.left, seen.is_live) for job, seen in sight.jobs.items()} == {
        "4_2": ("PENDING", "", "UNLIMITED", True),
        "4_0": ("RUNNING", "node7", "3:21:05", True),
        "3": ("FAILED", "node7", "1:00", False),
    }
    assert [seen.job for seen in sight.named("kdbench-b-2")] == ["3"]


def test_what_squeue_does_not_tell_scontrol_may_and_then_the_accounting(says: Callable[..., None]) -> None:
    says(squeue=None, scontrol=SCONTROL, sacct=SACCT)
    sight = Scheduler().look(["3", "4_0", "4_1"], ["somebody"])

    assert sight.answered
    assert {job: seen.state for job, seen in sight.jobs.items()} == {
        "4_0": "RUNNING",
        **dict.fromkeys(("4_3", "4_4", "4_7"), "PENDING"),
        "3": "CANCELLED",
        "4_1": "OUT_OF_MEMORY",
        "9": "RUNNING",
    }
    assert sight.jobs["4_0"].node == "node7" and sight.jobs["4_3"].node == ""


def test_without_any_answer_nothing_is_known_and_the_reason_is(says: Callable[..., None]) -> None:
    says(squeue=None, scontrol=None)
    sight = Scheduler().look(["3"])

    assert not sight.answered and sight.jobs == {}
    assert "Unable to contact slurm controller" in sight.why


def test_the_accounting_alone_does_not_make_an_absent_job_a_lost_one(says: Callable[..., None]) -> None:
    says(sacct=SACCT)
    sight = Scheduler().look(["3", "77"])

    assert not sight.answered and sight.jobs["3"].state == "CANCELLED" and "no squeue" in sight.why


def test_limits_are_those_that_the_cluster_states(says: Callable[..., None]) -> None:
    says(scontrol=CONFIG)
    assert (limits := Scheduler().limits()).array == 400 and limits.jobs == 10000 and limits.cluster == "big"
    says(sacctmgr="big|lab|50|200\nbig|other||\nelsewhere|lab|3|\n")
    assert Scheduler().limits("lab").jobs == 50 and Scheduler().limits().jobs == 10000
    says(scontrol=CONFIG + "SchedulerParameters     = bf_interval=1,max_array_tasks=30\n")
    assert Scheduler().limits().array == 30


def test_a_controller_that_does_not_answer_is_no_place_to_submit_to(says: Callable[..., None]) -> None:
    says(scontrol=None)
    with pytest.raises(ClusterError, match="SLURM does not answer.*nothing was submitted"):
        Scheduler().limits()


def test_refusals_are_told_in_slurms_words(says: Callable[..., None]) -> None:
    says(scontrol=None, scancel="")
    assert "Unable to contact" in Scheduler().requeue("3")
    assert Scheduler().cancel(["3", "4_0"]) == ""
    assert Scheduler().detail("3") == {}
