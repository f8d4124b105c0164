"""A job on its node: what it does with its teacher, at the end of its time, and when SLURM will not have it back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from kdbench import submitit_adapter
from kdbench.errors import DamagedError, RequestError
from kdbench.failure import STOPPED, Failure
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.slurm.job import ElementRun
from kdbench.slurm.submissions import JobEnd, Submission, Submissions
from kdbench.store import Store
from tests.slurm.stand_in import StandIn, submitted


class Asked:
    """A stop that is asked for at its n-th question."""

    def __init__(self, at: int | None = None):
        self.left, self.asked = at, False

    def __call__(self) -> bool:
        if self.left is not None:
            self.left -= 1
            self.asked = self.asked or self.left < 0
        return self.asked


@pytest.fixture
def plan(plan_of: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    plan = plan_of(repeats="1")
    local.prepare(plan, store)
    return plan


def ids(plan: Plan, role: str, taught: bool = True) -> list[str]:
    return [cell.id for cell in plan.cells.values() if cell.role == role and (role == "teacher" or bool(cell.depends) == taught)]


def job(store: Store, submission: Submission, scheduler: StandIn, stop: Asked | None = None) -> ElementRun:
    return ElementRun(store, submission.cells(0), f"{submission.suite}/{submission.token}", 0, stop or Asked(), scheduler)  # type: ignore[arg-type]


def events(store: Store, submission: Submission) -> list[str]:
    return [one["event"] for one in Submissions(store).events(submission, 0)[0]]


def in_minutes(minutes: float) -> str:
    return (datetime.now() + timedelta(minutes=minutes)).isoformat(timespec="seconds")


def test_a_job_trains_its_cells_and_says_so(plan: Plan, store: Store) -> None:
    submission = submitted(store, [ids(plan, "teacher")])

    assert job(store, submission, StandIn()).train() == 0
    assert store.is_done(ids(plan, "teacher")[0]) and events(store, submission) == ["began", "ended"]


def test_a_job_that_is_asked_to_stop_goes_back_into_the_queue_and_on_from_there(plan: Plan, store: Store) -> None:
    submission = submitted(store, [ids(plan, "teacher")])
    scheduler = StandIn(details={"JobState": "RUNNING", "EndTime": in_minutes(500)})
    with pytest.raises(SystemExit) as left:
        job(store, submission, scheduler, Asked(2)).train()

    assert left.value.code == STOPPED and scheduler.requeued == ["12"]
    assert job(store, submission, scheduler).train() == 0
    assert [(one["epoch"], one["step"]) for one in store.epochs_seen(submission.cells(0)[0])] == [(0, 0), (0, 2), (1, 0), (2, 0)]


def test_an_element_of_an_array_is_put_back_by_its_own_name(plan: Plan, store: Store) -> None:
    """The last element's SLURM_JOB_ID is the number of the array: with that, all of it would be queued again."""
    submission = submitted(store, [["0" * 12]], [ids(plan, "teacher")])
    scheduler = StandIn(details={"JobState": "RUNNING", "EndTime": in_minutes(500)})
    with pytest.raises(SystemExit):
        ElementRun(store, submission.cells(1), f"{submission.suite}/{submission.token}", 1, Asked(2), scheduler).train()  # type: ignore[arg-type]

    assert scheduler.requeued == ["12_1"]


def test_a_cell_that_was_done_before_is_no_new_epoch_of_the_others(plan: Plan, store: Store) -> None:
    (teacher,) = ids(plan, "teacher")
    job(store, submitted(store, [[teacher]]), StandIn()).train()
    student = next(cell.id for cell in plan.cells.values() if cell.role == "student" and not cell.depends)
    submission = submitted(store, [[teacher, student]])
    scheduler = StandIn(details={"JobState": "RUNNING", "EndTime": in_minutes(1)})

    assert job(store, submission, scheduler, Asked(2)).train() == 1
    assert scheduler.requeued == [] and store.failure(student).kind == "no progress"  # type: ignore[union-attr]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_job_that_slurm_is_ending_does_not_put_itself_back(plan: Plan, store: Store, state: str) -> None:
    submission = submitted(store, [ids(plan, "teacher")])
    scheduler = StandIn(details={"JobState": state})
    with pytest.raises(SystemExit):
        job(store, submission, scheduler, Asked(2)).train()

    assert scheduler.requeued == [] and events(store, submission) == ["began", "ending"]


@pytest.mark.parametrize(("steps", "preempted", "again"), [(2, "None", False), (5, "None", True), (2, "2026-11-21T18:00:00", True)])
def test_a_time_limit_needs_a_new_epoch_and_a_preemption_nothing(plan: Plan, store: Store, steps: int, preempted: str, again: bool) -> None:
    submission = submitted(store, [ids(plan, "teacher")])
    scheduler = StandIn(details={"JobState": "RUNNING", "EndTime": in_minutes(1), "PreemptTime": preempted})
    with suppress(SystemExit):
        assert job(store, submission, scheduler, Asked(steps)).train() == 1

    assert scheduler.requeued == (["12"] if again else [])
    failure = store.failure(submission.cells(0)[0])
    assert (failure and failure.kind) == (None if again else "no progress")
    assert again or "no epoch was completed within the limit" in failure.message  # type: ignore[union-attr]


def test_without_requeue_and_without_submitting_from_a_node_the_job_says_that_it_stopped(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> list[str]:
        raise RequestError("access denied on this node")

    monkeypatch.setattr(submitit_adapter, "submit", refused)
    submission = submitted(store, [ids(plan, "teacher")])
    scheduler = StandIn(details={"JobState": "RUNNING", "EndTime": in_minutes(500)}, refuses="Requested operation is presently disabled")
    with pytest.raises(SystemExit):
        job(store, submission, scheduler, Asked(2)).train()

    assert events(store, submission) == ["began", "requeued", "stopped"]
    assert "access denied" in Submissions(store).events(submission, 0)[0][-1]["why"] and len(Submissions(store).read()[0]) == 1


def test_a_student_whose_teacher_has_failed_is_blocked_and_says_by_what(plan: Plan, store: Store) -> None:
    (teacher,), students = ids(plan, "teacher"), ids(plan, "student")
    store.put_failure(teacher, Failure("raised", "no such luck"))
    submission = submitted(store, [students])

    assert job(store, submission, StandIn()).train() == 0
    failure = store.failure(students[0])
    assert failure and failure.kind == "blocked" and f"blocked by teacher {teacher}: it failed (raised: no such luck)" in failure.message


def test_a_student_whose_teacher_is_in_a_job_goes_behind_it_and_one_trained_elsewhere_is_asked_after_later(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict] = []

    def sbatch(folder: object, request: dict, function: object, payloads: list) -> list[str]:
        asked.append(request)
        return [str(50 + len(asked))]

    monkeypatch.setattr(submitit_adapter, "submit", sbatch)
    (teacher,), students = ids(plan, "teacher"), ids(plan, "student")
    teachers = submitted(store, [[teacher]], job="11")
    submission = submitted(store, [students])
    job(store, submission, StandIn().sees(teachers, "RUNNING")).train()
    assert asked[0]["slurm_dependency"] == "afterany:11" and events(store, submission) == ["began", "moved", "ended"]

    Submissions(store).write(replace(teachers, ended={0: JobEnd("COMPLETED", "done", "", {}, 1.0)}))
    with store.claim(teacher):
        job(store, submission, StandIn()).train()
        again = next(submission for submission in Submissions(store).read()[0] if submission.job == "52")
        job(store, again, StandIn()).train()
    assert [request.get("slurm_dependency") for request in asked[1:]] == [None, None]
    assert [request["slurm_additional_parameters"] for request in asked[1:]] == [{"begin": "now+60"}, {"begin": "now+120"}]
    assert not any(store.failure(cell_id) for cell_id in students)


def test_a_cell_held_by_a_dead_worker_of_another_host_is_waited_for_and_trained(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbench.store.claims.STALE_S", 2.0)
    (teacher,) = ids(plan, "teacher")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    store._take(store.file(teacher, "claim.json"), "for a test")  # and nobody refreshes it
    monkeypatch.undo()
    monkeypatch.setattr("kdbench.store.claims.STALE_S", 2.0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    submission = submitted(store, [[teacher]])

    assert job(store, submission, StandIn()).train() == 0
    assert store.is_done(teacher) and events(store, submission) == ["began", "ended"]


def test_a_cell_that_another_worker_here_is_training_is_left_to_it(plan: Plan, store: Store) -> None:
    (teacher,) = ids(plan, "teacher")
    submission = submitted(store, [[teacher]])
    free, held = threading.Event(), threading.Event()

    def hold() -> None:
        with store.claim(teacher):
            held.set()
            free.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    began = time.monotonic()
    job(store, submission, StandIn()).train()
    free.set()
    thread.join()

    assert events(store, submission) == ["began", "left"] and time.monotonic() - began < 60 and store.failure(teacher) is None


def test_a_job_that_starts_before_its_number_is_recorded_takes_it_from_its_environment(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variables, number in (({}, "12"), ({"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"}, "40_3")):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        submission = submitted(store, [ids(plan, "teacher")], job=None)
        scheduler = StandIn(details={"JobState": "RUNNING", "EndTime": in_minutes(500)})
        with pytest.raises(SystemExit):
            job(store, submission, scheduler, Asked(2)).train()
        assert scheduler.requeued == [number]


def test_a_job_whose_submission_is_damaged_says_so(plan: Plan, store: Store) -> None:
    submission = submitted(store, [ids(plan, "teacher")])
    (Submissions(store).folder(submission) / "submission.json").write_text("[]")
    with pytest.raises(DamagedError, match="submission.json is missing or damaged"):
        job(store, submission, StandIn())


def test_students_of_a_teacher_whose_weights_are_damaged_are_blocked_and_the_teacher_is_wanted_again(plan: Plan, store: Store) -> None:
    (teacher,), students = ids(plan, "teacher"), ids(plan, "student")
    assert job(store, submitted(store, [[teacher]]), StandIn()).train() == 0
    path = store.file(teacher, "weights.bin")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, ns=times)  # unnoticed until it is read

    submission = submitted(store, [students])
    job(store, submission, StandIn()).train()

    assert not store.is_done(teacher) and not any(store.is_done(student) for student in students)
    failures = [store.failure(student) for student in students]
    assert all(one and one.kind == "blocked" and "it is not trained" in one.message and not one.traceback for one in failures)
