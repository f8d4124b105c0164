"""Submissions, results and the queue: what is alive, what has ended and why, what is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from kdbench.failure import Failure
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.slurm.reconcile import queue_state
from kdbench.slurm.scheduler import JobInfo, QueueSnapshot
from kdbench.slurm.submissions import Submissions
from kdbench.store import Store
from tests.slurm.stand_in import StandIn, submitted


@pytest.fixture
def ids(plan_of: Callable[..., Plan], store: Store) -> list[str]:
    plan = plan_of()
    local.prepare(plan, store)
    return list(plan.cells)


def say_in_journal(store: Store, submission: object, index: int, *events: dict) -> None:
    for event in events:
        store.append_line(Submissions(store).journal(submission, index), event)  # type: ignore[arg-type]


def test_cells_of_waiting_and_running_jobs_are_alive_and_nothing_is_written_of_them(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]], [[ids[1]], [ids[2]]])
    now = queue_state(store, StandIn().sees(submission, "RUNNING", "PENDING"))

    assert {cell_id: place.id for cell_id, place in now.alive.items()} == {ids[0]: "12_0", ids[1]: "12_1", ids[2]: "12_1"}
    assert Submissions(store).read()[0][0].ended == {}


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("CANCELLED", "cancelled"),
        ("NODE_FAIL", "node failure"),
        ("BOOT_FAIL", "node failure"),
        ("OUT_OF_MEMORY", "host memory"),
        ("PREEMPTED", "preempted"),
        ("FAILED", "killed"),
        ("TIMEOUT", "no progress"),
    ],
)
def test_a_job_that_ended_without_its_cell_is_a_failure_of_its_class_with_its_node(
    store: Store, ids: list[str], state: str, kind: str
) -> None:
    submission = submitted(store, [[ids[0]]])
    say_in_journal(store, submission, 0, {"event": "began", "lines": {ids[0]: 0}})
    now = queue_state(store, StandIn().sees(submission, state))

    assert now.alive == {}
    failure = store.failure(ids[0])
    assert failure and (failure.kind, failure.node, failure.job) == (kind, "node7", "12")
    end = Submissions(store).read()[0][0].ended[0]
    assert (end.kind, end.state, end.cells) == (kind, state, {ids[0]: kind})


def test_an_end_is_written_down_once(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]])
    queue_state(store, StandIn().sees(submission, "CANCELLED"))
    store.clear_failure(ids[0])
    queue_state(store, StandIn().sees(submission, "NODE_FAIL"))

    assert store.failure(ids[0]) is None


def test_a_time_out_after_a_new_epoch_is_none_without_progress(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]])
    progress = store.file(ids[0], "progress.jsonl")
    for epoch in (0, 1, 2):
        store.append_line(progress, {"epoch": epoch, "step": 0, "of": 9})
    say_in_journal(store, submission, 0, {"event": "began", "lines": {ids[0]: 2}})
    queue_state(store, StandIn().sees(submission, "TIMEOUT"))
    assert store.failure(ids[0]).kind == "no progress"  # type: ignore[union-attr]

    store.clear_failure(ids[0])
    again = submitted(store, [[ids[0]]], job="13", at=1.0)
    say_in_journal(store, again, 0, {"event": "began", "lines": {ids[0]: 1}})
    queue_state(store, StandIn().sees(again, "TIMEOUT"))
    assert store.failure(ids[0]).kind == "time limit"  # type: ignore[union-attr]


def test_what_the_job_said_of_itself_is_not_overwritten(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0], ids[1]]])
    say_in_journal(store, submission, 0, {"event": "began", "lines": {}})
    store.put_failure(ids[0], Failure("raised", "mine"))
    queue_state(store, StandIn().sees(submission, "FAILED"))

    assert store.failure(ids[0]).message == "mine"  # type: ignore[union-attr]
    assert Submissions(store).read()[0][0].ended[0].cells == {ids[0]: "raised", ids[1]: "killed"}


def test_a_job_that_nobody_knows_is_lost_after_its_grace_time_and_not_before(store: Store, ids: list[str]) -> None:
    submitted(store, [[ids[0]]], [[ids[1]]], at=time.time() - 30)
    absent = StandIn()

    early = queue_state(store, absent)
    assert set(early.alive) == set(ids[:2]) and "SLURM does not list it; it counts as lost in" in early.alive[ids[0]].why
    assert queue_state(store, absent, lost_after_s=20).alive == {}
    assert store.failure(ids[0]).kind == "lost"  # type: ignore[union-attr]


def test_a_sign_of_life_on_disk_puts_the_grace_time_off(store: Store, ids: list[str]) -> None:
    submitted(store, [[ids[0]]], at=time.time() - 1000)
    store.append_line(store.file(ids[0], "progress.jsonl"), {"epoch": 0, "step": 0, "of": 9})

    assert ids[0] in queue_state(store, StandIn()).alive


def test_a_job_out_of_slurms_sight_whose_process_lives_is_not_lost(store: Store, ids: list[str]) -> None:
    submitted(store, [[ids[0]]], at=1.0)
    with store.claim(ids[0]):
        assert queue_state(store, StandIn()).alive[ids[0]].why == "its process is alive"
    assert queue_state(store, StandIn()).alive == {}


def test_cells_that_went_on_in_another_job_are_no_failures_of_the_first(store: Store, ids: list[str]) -> None:
    """Behind their teacher, in place of a job that may not be requeued, or because a neighbour was cancelled."""
    first = submitted(store, [ids[:2]], at=1)
    later = submitted(store, [[ids[1]]], job="13", at=2)
    jobs = {"12": JobInfo("12", first.name, "CANCELLED"), "13": JobInfo("13", later.name, "PENDING")}
    now = queue_state(store, StandIn(queue=QueueSnapshot(True, jobs)))

    assert store.failure(ids[0]).kind == "cancelled" and store.failure(ids[1]) is None  # type: ignore[union-attr]
    assert {cell_id: place.id for cell_id, place in now.alive.items()} == {ids[1]: "13"}

    all_of_it = submitted(store, [[ids[2]]], job="14", at=3)
    moved = submitted(store, [[ids[2]]], job="15", at=4)
    jobs = {"14": JobInfo("14", all_of_it.name, "COMPLETED"), "15": JobInfo("15", moved.name, "PENDING")}
    queue_state(store, StandIn(queue=QueueSnapshot(True, jobs)))
    assert {submission.job: submission.ended[0].kind for submission in Submissions(store).read()[0] if submission.ended}["14"] == "moved"


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("Traceback (most recent call last):\nModuleNotFoundError: No module named 'kdbench'", "import"),
        ("line 9: module: command not found\nsrun: error: node7: task 0: Exited with exit code 127", "not begun"),
    ],
)
def test_a_job_that_never_began_says_why_in_its_failure(store: Store, ids: list[str], log: str, kind: str) -> None:
    submission = submitted(store, [[ids[0]]])
    (Submissions(store).folder(submission) / "12_0_log.out").write_text(log)
    queue_state(store, StandIn().sees(submission, "FAILED"))

    failure = store.failure(ids[0])
    assert failure and failure.kind == kind
    assert ("No module named 'kdbench'" if kind == "import" else "module: command not found") in failure.message


def test_two_users_of_one_results_folder_see_each_others_jobs(store: Store, ids: list[str]) -> None:
    submitted(store, [[ids[0]]], user="4321")
    asked: list[object] = []

    class Listening(StandIn):
        def snapshot(self, wanted: object = (), users: object = ()) -> QueueSnapshot:  # type: ignore[override]
            asked.append(users)
            return QueueSnapshot(True)

    queue_state(store, Listening())
    assert asked == [["4321"]]


def test_a_submission_is_written_once_however_many_of_its_elements_ended(
    store: Store, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = submitted(store, *[[[cell_id]] for cell_id in ids])
    written: list[object] = []
    monkeypatch.setattr(Submissions, "write", lambda self, submission: written.append(submission))
    queue_state(store, StandIn().sees(submission, *["CANCELLED"] * len(ids)))

    assert len(written) == 1 and len(submission.elements) == len(ids)


def test_a_failure_is_shown_while_its_job_goes_on_with_others(store: Store, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.run import status
    from kdbench.slurm.queue_status import queue_of

    submission = submitted(store, [ids[:2]])
    monkeypatch.setattr("kdbench.slurm.queue_status.Scheduler", lambda: StandIn().sees(submission, "RUNNING"))
    store.put_failure(ids[0], Failure("raised", "mine"))
    output = status.text(store.root, "tiny", queue_of(store.root, "tiny"))

    assert "1 running, 1 failed" in output and "raised: mine" in output and "on node7" in output


def test_a_host_whose_clock_cannot_be_compared_uses_its_own(store: Store, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with store.claim(ids[0]):
        monkeypatch.undo()

        def refused(*_: object) -> None:
            raise PermissionError("not yours")

        monkeypatch.setattr(Path, "touch", refused)
        assert Store(store.root).is_alive(ids[0])


def test_nothing_is_lost_while_slurm_does_not_answer(store: Store, ids: list[str]) -> None:
    submitted(store, [[ids[0]]], at=1.0)
    silent = StandIn(queue=QueueSnapshot(False, {}, "no controller"))

    assert "SLURM does not answer: no controller" in queue_state(store, silent).alive[ids[0]].why


def test_jobs_of_another_cluster_are_not_judged_here(store: Store, ids: list[str]) -> None:
    submitted(store, [[ids[0]]], at=1.0, slurm="elsewhere")

    assert "another cluster, elsewhere" in queue_state(store, StandIn(), cluster="big").alive[ids[0]].why


def test_a_job_number_that_was_given_twice_is_told_by_the_name(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]], at=1.0)

    assert queue_state(store, StandIn().sees(submission, "RUNNING", name="kdbench-other-1")).alive == {}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0 cgroup.", "host memory"),
        ("slurmstepd-vm: error: StepId=12.0 exceeded memory limit (617840640 > 524288000), being killed", "host memory"),
        ("slurmstepd: error: *** JOB 12 ON node7 CANCELLED AT 2026-11-21T18:17:36 DUE TO PREEMPTION ***", "preempted"),
        ("slurmstepd: error: *** JOB 12 ON node7 CANCELLED AT 2026-11-21T18:17:36 DUE TO TIME LIMIT ***", "no progress"),
        ("slurmstepd: error: *** JOB 12 ON node7 CANCELLED AT 2026-11-21T18:17:36 ***", "cancelled"),
        ("loss 0.3, nothing to see", "lost"),
    ],
)
def test_a_job_that_slurm_forgot_is_told_by_the_last_words_in_its_log(store: Store, ids: list[str], line: str, kind: str) -> None:
    submission = submitted(store, [[ids[0]]], at=1.0)
    (Submissions(store).folder(submission) / "12_0_log.out").write_text(f"something before\n{line}\n")
    queue_state(store, StandIn())

    failure = store.failure(ids[0])
    assert failure and failure.kind == kind and failure.last_lines[-1] == line


def test_why_an_earlier_start_of_a_job_ended_is_not_why_its_last_did(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]], at=1.0)
    say_in_journal(store, submission, 0, {"event": "began", "lines": {}})
    preempted = "slurmstepd: error: *** JOB 12 ON node7 CANCELLED AT 2026-11-21T18:17:36 DUE TO PREEMPTION ***"
    begins = "submitit INFO - Starting with JobEnvironment(job_id=12)"
    (Submissions(store).folder(submission) / "12_0_log.out").write_text(f"{begins}\n{preempted}\n{begins}\nKilled\n")
    queue_state(store, StandIn().sees(submission, "FAILED"))

    assert store.failure(ids[0]).kind == "killed"  # type: ignore[union-attr]


def test_a_log_does_not_end_a_job_while_slurm_is_silent(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]], at=1.0)
    (Submissions(store).folder(submission) / "12_0_log.out").write_text(
        "slurmstepd: error: *** JOB 12 ON a CANCELLED AT x DUE TO PREEMPTION ***\n"
    )

    assert ids[0] in queue_state(store, StandIn(queue=QueueSnapshot(False, {}, "no controller"))).alive


def test_a_submission_without_its_number_is_found_by_its_name_and_its_payload_put_in_place(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]], [[ids[1]]], job=None)
    store.put_failure(ids[0], Failure("killed", "of the job before", job="30"))
    jobs = {f"31_{index}": JobInfo(f"31_{index}", submission.name, "PENDING") for index in range(2)}
    now = queue_state(store, StandIn(queue=QueueSnapshot(True, jobs)))

    assert {place.id for place in now.alive.values()} == {"31_0", "31_1"} and store.failure(ids[0]) is None
    assert Submissions(store).read()[0][0].job == "31"
    assert sorted(path.name for path in Submissions(store).folder(submission).glob("*.pkl")) == ["31_0_submitted.pkl", "31_1_submitted.pkl"]


def test_a_submission_that_never_reached_slurm_leaves_nothing(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]], job=None)
    folder = Submissions(store).folder(submission)
    assert set(queue_state(store, StandIn(queue=QueueSnapshot(False))).alive) == {ids[0]} and folder.exists()
    assert queue_state(store, StandIn()).alive == {} and not folder.exists()


def test_a_look_without_the_right_to_write_changes_nothing(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]])
    queue_state(store, StandIn().sees(submission, "CANCELLED"), write=False)

    assert store.failure(ids[0]) is None and Submissions(store).read()[0][0].ended == {}


def test_a_job_that_ended_while_its_process_is_about_to_save_is_still_alive(store: Store, ids: list[str]) -> None:
    submission = submitted(store, [[ids[0]]])
    with store.claim(ids[0]):
        assert ids[0] in queue_state(store, StandIn().sees(submission, "CANCELLED")).alive
    assert queue_state(store, StandIn().sees(submission, "CANCELLED")).alive == {}


def test_a_claim_left_on_another_host_by_this_job_before_slurm_restarted_it_is_dead(
    store: Store, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr("socket.gethostname", lambda: "node1")
    with store.claim(ids[0]):
        monkeypatch.setattr("socket.gethostname", lambda: "node2")
        assert store.is_alive(ids[0])
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert not store.is_alive(ids[0])
        monkeypatch.setenv("SLURM_JOB_ID", "13")
        assert store.is_alive(ids[0])


def test_the_right_to_submit_is_one_process_at_a_time_and_outlives_no_process(store: Store) -> None:
    import subprocess
    import sys

    code = "import sys, os; from kdbench.store import Store\nheld = Store(sys.argv[1]).submitting(); held.__enter__(); print('held', flush=True); input(); os._exit(9)"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert other.stdout and other.stdout.readline() == "held\n"
    from kdbench.errors import ClaimError

    with pytest.raises(ClaimError, match="jobs for these results are being submitted by process"), store.submitting(patience_s=0.3):
        pass
    other.communicate("\n")
    with store.submitting(patience_s=0.3):
        assert (store.root / "submitting.json").exists()
    assert not (store.root / "submitting.json").exists()
