"""A job on its node: what it does with its teacher, at the end of its time, and when SLURM will not have it back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import pytest

from kdbench.errors import RequestError
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.run.failure import STOPPED
from kdbench.slurm import launch
from kdbench.slurm.job import Job
from kdbench.slurm.ledger import Ledger, Note
from kdbench.store import Store
from tests.slurm.stand_in import StandIn, noted


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


def job(store: Store, note: Note, scheduler: StandIn, stop: Asked | None = None) -> Job:
    return Job(store, note.cells(0), f"{note.suite}/{note.token}", 0, stop or Asked(), scheduler)  # type: ignore[arg-type]


def events(store: Store, note: Note) -> list[str]:
    return [one["event"] for one in Ledger(store).said(note, 0)]


def in_minutes(minutes: float) -> str:
    return (datetime.now() + timedelta(minutes=minutes)).isoformat(timespec="seconds")


def test_a_job_trains_its_cells_and_says_so(plan: Plan, store: Store) -> None:
    note = noted(store, [ids(plan, "teacher")])

    assert job(store, note, StandIn()).train() == 0
    assert store.is_done(ids(plan, "teacher")[0]) and events(store, note) == ["began", "ended"]


def test_a_job_that_is_asked_to_stop_goes_back_into_the_queue_and_on_from_there(plan: Plan, store: Store) -> None:
    note = noted(store, [ids(plan, "teacher")])
    scheduler = StandIn(says={"JobState": "RUNNING", "EndTime": in_minutes(500)})
    with pytest.raises(SystemExit) as left:
        job(store, note, scheduler, Asked(2)).train()

    assert left.value.code == STOPPED and scheduler.requeued == ["12"]
    assert job(store, note, scheduler).train() == 0
    assert [(one["epoch"], one["step"]) for one in store.epochs_seen(note.cells(0)[0])] == [(0, 0), (0, 2), (1, 0), (2, 0)]


def test_an_element_of_an_array_is_put_back_by_its_own_name(plan: Plan, store: Store) -> None:
    """The last element's SLURM_JOB_ID is the number of the array: with that, all of it would be queued again."""
    note = noted(store, [["0" * 12]], [ids(plan, "teacher")])
    scheduler = StandIn(says={"JobState": "RUNNING", "EndTime": in_minutes(500)})
    with pytest.raises(SystemExit):
        Job(store, note.cells(1), f"{note.suite}/{note.token}", 1, Asked(2), scheduler).train()  # type: ignore[arg-type]

    assert scheduler.requeued == ["12_1"]


def test_a_cell_that_was_done_before_is_no_new_epoch_of_the_others(plan: Plan, store: Store) -> None:
    (teacher,) = ids(plan, "teacher")
    job(store, noted(store, [[teacher]]), StandIn()).train()
    student = next(cell.id for cell in plan.cells.values() if cell.role == "student" and not cell.depends)
    note = noted(store, [[teacher, student]])
    scheduler = StandIn(says={"JobState": "RUNNING", "EndTime": in_minutes(1)})

    assert job(store, note, scheduler, Asked(2)).train() == 1
    assert scheduler.requeued == [] and store.failure(student)["class"] == "no progress"  # type: ignore[index]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_job_that_slurm_is_ending_does_not_put_itself_back(plan: Plan, store: Store, state: str) -> None:
    note = noted(store, [ids(plan, "teacher")])
    scheduler = StandIn(says={"JobState": state})
    with pytest.raises(SystemExit):
        job(store, note, scheduler, Asked(2)).train()

    assert scheduler.requeued == [] and events(store, note) == ["began", "ending"]


@pytest.mark.parametrize(("steps", "preempted", "again"), [(2, "None", False), (5, "None", True), (2, "2026-11-21T18:00:00", True)])
def test_a_time_limit_needs_a_new_epoch_and_a_preemption_nothing(plan: Plan, store: Store, steps: int, preempted: str, again: bool) -> None:
    note = noted(store, [ids(plan, "teacher")])
    scheduler = StandIn(says={"JobState": "RUNNING", "EndTime": in_minutes(1), "PreemptTime": preempted})
    with suppress(SystemExit):
        assert job(store, note, scheduler, Asked(steps)).train() == 1

    assert scheduler.requeued == (["12"] if again else [])
    failure = store.failure(note.cells(0)[0])
    assert (failure and failure["class"]) == (None if again else "no progress")
    assert again or "brought no new epoch: ask for more time (timeout_min)" in failure["message"]  # type: ignore[index]


def test_without_requeue_and_without_submitting_from_a_node_the_job_says_that_it_stopped(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> list[str]:
        raise RequestError("access denied on this node")

    monkeypatch.setattr(launch, "submit", refused)
    note = noted(store, [ids(plan, "teacher")])
    scheduler = StandIn(says={"JobState": "RUNNING", "EndTime": in_minutes(500)}, refuses="Requested operation is presently disabled")
    with pytest.raises(SystemExit):
        job(store, note, scheduler, Asked(2)).train()

    assert events(store, note) == ["began", "requeued", "stopped"]
    assert "access denied" in Ledger(store).said(note, 0)[-1]["why"] and len(Ledger(store).notes()) == 1


def test_a_student_whose_teacher_has_failed_is_blocked_and_says_by_what(plan: Plan, store: Store) -> None:
    (teacher,), students = ids(plan, "teacher"), ids(plan, "student")
    store.put_failure(teacher, {"class": "raised", "message": "no such luck", "traceback": "", "last_lines": []})
    note = noted(store, [students])

    assert job(store, note, StandIn()).train() == 0
    failure = store.failure(students[0])
    assert (
        failure
        and failure["class"] == "blocked"
        and f"blocked by teacher {teacher}: it is failed (raised: no such luck)" in failure["message"]
    )


def test_a_student_whose_teacher_is_in_a_job_goes_behind_it_and_one_trained_elsewhere_is_asked_after_later(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict] = []

    def sbatch(folder: object, request: dict, function: object, payloads: list) -> list[str]:
        asked.append(request)
        return [str(50 + len(asked))]

    monkeypatch.setattr(launch, "submit", sbatch)
    (teacher,), students = ids(plan, "teacher"), ids(plan, "student")
    teachers = noted(store, [[teacher]], job="11")
    note = noted(store, [students])
    job(store, note, StandIn().sees(teachers, "RUNNING")).train()
    assert asked[0]["slurm_dependency"] == "afterany:11" and events(store, note) == ["began", "moved", "ended"]

    teachers.ended["0"] = {"class": "done"}
    Ledger(store).write(teachers)
    with store.claim(teacher):
        job(store, note, StandIn()).train()
        again = next(note for note in Ledger(store).notes() if note.job == "52")
        job(store, again, StandIn()).train()
    assert [request.get("slurm_dependency") for request in asked[1:]] == [None, None]
    assert [request["slurm_additional_parameters"] for request in asked[1:]] == [{"begin": "now+60"}, {"begin": "now+120"}]
    assert not any(store.failure(cell_id) for cell_id in students)


def test_a_cell_held_by_a_dead_worker_of_another_host_is_waited_for_and_trained(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbench.store.STALE_S", 2.0)
    (teacher,) = ids(plan, "teacher")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    store._take(store.file(teacher, "claim.json"), "for a test")  # and nobody refreshes it
    monkeypatch.undo()
    monkeypatch.setattr("kdbench.store.STALE_S", 2.0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    note = noted(store, [[teacher]])

    assert job(store, note, StandIn()).train() == 0
    assert store.is_done(teacher) and events(store, note) == ["began", "ended"]


def test_a_cell_that_another_worker_here_is_training_is_left_to_it(plan: Plan, store: Store) -> None:
    (teacher,) = ids(plan, "teacher")
    note = noted(store, [[teacher]])
    free, held = threading.Event(), threading.Event()

    def hold() -> None:
        with store.claim(teacher):
            held.set()
            free.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    began = time.monotonic()
    job(store, note, StandIn()).train()
    free.set()
    thread.join()

    assert events(store, note) == ["began", "left"] and time.monotonic() - began < 60 and store.failure(teacher) is None
