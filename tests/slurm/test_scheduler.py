"""What SLURM's commands say, whichever of them answers; the commands are stand-ins that print what real ones printed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import ClusterError
from kdbench.slurm.scheduler import Scheduler

ME = os.getuid()


def rows(*jobs: str) -> str:
    """squeue's answer: `array|index|state|node|left|reason|name` for each job."""
    return "".join(f"kdbench-row|{job}|row-end\n" for job in jobs)


SQUEUE = rows(
    "4|2|PENDING||UNLIMITED|JobArrayTaskLimit|kdbench-a-1",
    "4|0|RUNNING|node7|3:21:05|None|kdbench-a-1",
    "3|N/A|FAILED|node7|1:00|NonZeroExitCode|kdbench-b-2",
)
SCONTROL = f"""JobId=5 ArrayJobId=4 ArrayTaskId=0 JobName=kdbench-a-1 UserId=me({ME}) GroupId=me(0) JobState=RUNNING Reason=None NodeList=node7
JobId=4 ArrayJobId=4 ArrayTaskId=3-4,7%2 JobName=kdbench-a-1 UserId=me({ME}) GroupId=me(0) JobState=PENDING Reason=Priority NodeList=(null)
JobId=9 JobName=theirs UserId=somebody(7) GroupId=me(0) JobState=RUNNING Reason=None NodeList=node1
"""
SACCT = """3|CANCELLED by 1000|node7|kdbench-b-2
4_[5-6%2]|PENDING|None assigned|kdbench-a-1
4_1|OUT_OF_MEMORY|node8|kdbench-a-1
"""
CONFIG = "Configuration data as of now\nClusterName             = big\nMaxArraySize            = 400\nMaxJobCount             = 10000\n"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Commands by name, each with what it prints (None: it fails); only these are on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(**commands: str | None) -> None:
        for name, output in commands.items():
            (tmp_path / f"{name}.txt").write_text(output or "")
            body = (
                f"exec /bin/cat {tmp_path / name}.txt"
                if output is not None
                else f"echo '{name}: Unable to contact slurm controller' >&2; exit 1"
            )
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)

    return put


def test_squeue_lists_arrays_element_by_element(answers: Callable[..., None]) -> None:
    answers(squeue=SQUEUE)
    queue = Scheduler().snapshot(["4_0", "3"])

    assert queue.answered
    assert {job: (jobs.state, jobs.node, jobs.left, jobs.is_live) for job, jobs in queue.jobs.items()} == {
        "4_2": ("PENDING", "", "UNLIMITED", True),
        "4_0": ("RUNNING", "node7", "3:21:05", True),
        "3": ("FAILED", "node7", "1:00", False),
    }
    assert [jobs.job for jobs in queue.named("kdbench-b-2")] == ["3"]


def test_what_squeue_does_not_list_is_asked_of_scontrol_and_then_of_the_accounting(answers: Callable[..., None]) -> None:
    answers(squeue=None, scontrol=SCONTROL, sacct=SACCT)
    queue = Scheduler().snapshot(["3", "4_0", "4_1"], ["7"])

    assert queue.answered
    assert {job: jobs.state for job, jobs in queue.jobs.items()} == {
        "4_0": "RUNNING",
        **dict.fromkeys(("4_3", "4_4", "4_7"), "PENDING"),
        "3": "CANCELLED",
        "4_1": "OUT_OF_MEMORY",
        "9": "RUNNING",
    }
    assert queue.jobs["4_0"].node == "node7" and queue.jobs["4_3"].node == ""


def test_without_any_answer_nothing_is_known_and_the_reason_is(answers: Callable[..., None]) -> None:
    answers(squeue=None, scontrol=None)
    queue = Scheduler().snapshot(["3"])

    assert not queue.answered and queue.jobs == {}
    assert "Unable to contact slurm controller" in queue.why


def test_the_accounting_alone_does_not_make_an_absent_job_a_lost_one(answers: Callable[..., None]) -> None:
    answers(sacct=SACCT)
    queue = Scheduler().snapshot(["3", "77"])

    assert not queue.answered and queue.jobs["3"].state == "CANCELLED" and "no squeue" in queue.why


def test_limits_are_those_that_the_cluster_states(answers: Callable[..., None]) -> None:
    answers(scontrol=CONFIG)
    assert (limits := Scheduler().limits()).array == 400 and limits.jobs == 10000 and limits.cluster == "big"
    answers(sacctmgr="big|lab|50|200\nbig|other||\nelsewhere|lab|3|\n")
    assert Scheduler().limits("lab").jobs == 50 and Scheduler().limits().jobs == 10000
    answers(scontrol=CONFIG + "SchedulerParameters     = bf_interval=1,max_array_tasks=30\n")
    assert Scheduler().limits().array == 30


def test_a_controller_that_does_not_answer_is_no_place_to_submit_to(answers: Callable[..., None]) -> None:
    answers(scontrol=None)
    with pytest.raises(ClusterError, match="SLURM does not answer.*nothing was submitted"):
        Scheduler().limits()


def test_refusals_have_slurms_words(answers: Callable[..., None]) -> None:
    answers(scontrol=None, scancel="")
    assert "Unable to contact" in Scheduler().requeue("3")
    assert Scheduler().cancel(["3", "4_0"]) == ""
    assert Scheduler().detail("3") == {}


def test_an_answer_that_cannot_be_read_is_no_answer(answers: Callable[..., None]) -> None:
    whole = SQUEUE.splitlines(keepends=True)
    for odd in (
        SQUEUE[:-3],  # cut off inside a row
        SQUEUE[:-8],
        SQUEUE + "kdbench-r",
        "".join(whole[:2]) + whole[2][:30] + "\n" + whole[0],
        SQUEUE.replace("PENDING", "En attente"),
        SQUEUE.replace("4|2|", "four|2|"),
        SQUEUE.replace("|node7|", "|"),
    ):
        answers(squeue=odd, scontrol=None)
        queue = Scheduler().snapshot()
        assert not queue.answered and "the answer of squeue cannot be read" in queue.why, odd
    for odd in (
        "",
        "Welcome!\n",
        SCONTROL[:-9],
        SCONTROL.replace("JobState=PENDING", "JobState="),
        SCONTROL.replace(" UserId=somebody(7)", ""),
    ):
        answers(squeue=None, scontrol=odd)
        assert not Scheduler().snapshot().answered, odd


def test_a_banner_and_names_with_any_characters_do_not_confuse_an_answer(answers: Callable[..., None]) -> None:
    names = ("a|b", "two\nlines", "x|row-end", "JobId=7 JobState=RUNNING", "", "kdbench-a-1 ", "\u00e9\x1b[0m")
    answers(
        squeue="Welcome to the cluster!\nCLUSTER: big\n"
        + SQUEUE
        + rows(*(f"{80 + n}|N/A|RUNNING|n|1:00|None|{name}" for n, name in enumerate(names)))
        + "\nbye\n"
    )
    queue = Scheduler().snapshot(["3"])

    assert queue.answered and len(queue.jobs) == 3 + len(names)
    assert [queue.jobs[str(80 + n)].name for n in range(len(names))] == list(names)
    answers(squeue=None, scontrol="Welcome!\n" + SCONTROL.replace("theirs", "two\nlines UserName=7").replace("somebody(7)", f"me({ME})"))
    assert {job: info.name for job, info in Scheduler().snapshot().jobs.items()}["9"] == "two\nlines UserName=7"


def test_a_job_that_squeue_leaves_out_is_looked_for_with_scontrol_before_it_counts_as_absent(answers: Callable[..., None]) -> None:
    """A list that was cut off between two rows looks like a whole one."""
    answers(squeue=SQUEUE.splitlines(keepends=True)[0], scontrol=SCONTROL)
    queue = Scheduler().snapshot(["4_2", "4_0", "kdbench-c-3"])
    assert queue.answered and queue.jobs["4_0"].state == "RUNNING" and not queue.named("kdbench-c-3")

    answers(scontrol=None)
    queue = Scheduler().snapshot(["4_0"])
    assert not queue.answered and "Unable to contact" in queue.why and "4_2" in queue.jobs


def test_odd_output_of_the_accounting_and_of_scontrol_is_skipped(answers: Callable[..., None]) -> None:
    answers(squeue=rows(), scontrol="No jobs in the system\n", sacct="Welcome!\n3\n|||\n" + SACCT + "5|COMPLETED|node1|cut off here")
    assert set(Scheduler().snapshot(["3", "5"]).jobs) == {"3", "4_1"}
    answers(scontrol="ClusterName = big\nMaxArraySize = many\nMaxJobCount = \u00b2\n", sacctmgr="Welcome!\nbig|lab\nbig|lab|x|y\n")
    limits = Scheduler().limits()
    assert (limits.cluster, limits.array, limits.jobs) == ("big", 1001, None)
    answers(scontrol="Welcome!\n")
    with pytest.raises(ClusterError, match="the answer of scontrol cannot be read: 'Welcome!'"):
        Scheduler().limits()
    assert Scheduler().detail("3") == {}


def test_commands_see_none_of_a_users_own_formats_and_filters(
    answers: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(squeue="")
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n/usr/bin/env > {tmp_path}/environment\n")
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SACCT_FORMAT", "SLURM_TIME_FORMAT", "LC_ALL"):
        monkeypatch.setenv(name, "odd")
    Scheduler().snapshot()

    environment = (tmp_path / "environment").read_text()
    assert "odd" not in environment and "SLURM_BITSTR_LEN=0" in environment


def test_a_command_that_cannot_be_run_or_prints_no_text_gives_no_answer(answers: Callable[..., None], tmp_path: Path) -> None:
    answers(squeue="", scontrol="")
    (tmp_path / "scontrol").write_text("#!/nowhere/sh\n")
    (tmp_path / "squeue.txt").write_bytes(b"\xff\xfe kdbench-row|\xff")
    queue = Scheduler().snapshot()

    assert not queue.answered and "cannot be read" in queue.why
    assert "cannot be run" in Scheduler().requeue("3")


def test_nothing_is_asked_about_a_job_without_a_number(answers: Callable[..., None]) -> None:
    answers(scontrol=SCONTROL)
    assert Scheduler().requeue("") == "the number of this job is not known" and Scheduler().detail("") == {}


def test_a_user_without_an_entry_in_passwd_asks_by_number(answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 54321)
    answers(squeue="", scontrol=CONFIG)
    assert Scheduler().limits().cluster == "big"
    answers(scontrol=SCONTROL.replace("somebody(7)", "nobody(54321)"))
    assert set(Scheduler().snapshot(["9"]).jobs) == {"9"}
