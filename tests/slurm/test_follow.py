"""What is tried again without being asked, how often, and when that ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import ClusterError, FullError, RequestError
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.slurm import launch
from kdbench.slurm.cluster import read
from kdbench.slurm.follow import Follower
from kdbench.slurm.ledger import Ledger
from kdbench.slurm.scheduler import Limits, Seen, Sight
from kdbench.store import Store
from tests.slurm.stand_in import StandIn, noted


class Slurm(StandIn):
    """Ends every job that it is given in a state, at once."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, room: int | None = None):
        super().__init__()
        self.store, self.count, self.state, self.room, self.names = store, 0, "FAILED", room, {}  # type: ignore[var-annotated]
        self.act: Callable[[str], None] = lambda cell_id: None
        monkeypatch.setattr(launch, "submit", self.sbatch)
        monkeypatch.setattr("kdbench.slurm.follow.time.sleep", lambda _: None)

    def sbatch(self, folder: Path, request: dict[str, Any], function: object, payloads: list[tuple[Any, ...]]) -> list[str]:
        self.count += 1
        base = str(self.count)
        jobs = [base] if len(payloads) == 1 else [f"{base}_{index}" for index in range(len(payloads))]
        for job, (_, ids, name, index) in zip(jobs, payloads, strict=True):
            self.names[job] = request["name"]
            suite, _, token = name.partition("/")
            journal = self.store.suite_folder(suite) / "jobs" / token / f"journal_{index}.jsonl"
            self.store.append_line(journal, {"event": "began", "lines": dict.fromkeys(ids, 0)})
            for cell_id in ids:
                self.act(cell_id)
        return jobs

    def look(self, wanted: object = (), users: object = ()) -> Sight:
        return Sight(True, {job: Seen(job, name, self.state, "node7") for job, name in self.names.items()})

    def limits(self, account: str | None = None) -> Limits:
        return Limits("big", 1001, self.room)


@pytest.fixture
def slurm(store: Store, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(store, monkeypatch)


@pytest.fixture
def follower(plan_of: Callable[..., Plan], store: Store, tmp_path: Path, slurm: Slurm) -> Callable[..., Follower]:
    def make(text: str = "", **changes: str) -> Follower:
        plan = plan_of(**{"repeats": "1", **changes})
        local.prepare(plan, store)
        path = tmp_path / "cluster.yaml"
        path.write_text("timeout_min: 60\nmem_gb: 4\n" + text)
        settings = {"data": "", "side_by_side": 16, "checkpoint_every_s": None, "lost_after_s": 0.0}
        return Follower(plan, store, read(path), settings, lambda bundle: 1.0, lambda text: None, slurm)

    return make


def submissions(store: Store, cell_id: str) -> int:
    return sum(cell_id in note.cells(index) for note in Ledger(store).notes() for index in range(len(note.elements)))


@pytest.mark.parametrize(
    ("state", "text", "times"),
    [
        ("FAILED", "", 2),
        ("FAILED", "retry: {killed: 3}\n", 4),
        ("FAILED", "retry: {killed: 0}\n", 1),
        ("NODE_FAIL", "", 4),
        ("CANCELLED", "", 1),
        ("TIMEOUT", "", 1),
    ],
)
def test_each_class_of_failure_is_tried_as_often_as_its_rule_says(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, state: str, text: str, times: int
) -> None:
    slurm.state = state
    follow = follower(text, objectives="[ce]")
    follow.wait()

    (cell_id,) = follow.plan.cells
    assert submissions(store, cell_id) == times


def test_a_user_who_runs_again_is_not_refused_by_a_rule(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    slurm.state = "CANCELLED"
    follow = follower(objectives="[ce]")
    follow.wait()
    follower(objectives="[ce]").wait()

    assert submissions(store, next(iter(follow.plan.cells))) == 2


def test_what_raised_is_not_tried_again(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    slurm.act = lambda cell_id: store.put_failure(cell_id, {"class": "raised", "message": "mine", "traceback": "", "last_lines": []})
    follow = follower(objectives="[ce]")
    follow.wait()

    assert submissions(store, next(iter(follow.plan.cells))) == 1


def test_out_of_memory_climbs_its_ladder_and_then_says_what_was_tried(
    follower: Callable[..., Follower], slurm: Slurm, store: Store
) -> None:
    slurm.state = "OUT_OF_MEMORY"
    follow = follower(
        "bigger: [{mem_gb: 8}, {mem_gb: 16}]\n",
        objectives="[ce]",
        students="{a: {model: small_mobile, widths: [4, 6]}, b: {model: small_mobile, widths: [4, 8]}}",
    )
    follow.wait()

    one, other = follow.plan.cells
    tries = [
        (len(note.cells(index)), note.request["mem_gb"])
        for note in Ledger(store).notes()
        for index in range(len(note.elements))
        if one in note.cells(index)
    ]
    assert tries == [(2, 4.0), (1, 4.0), (1, 8.0), (1, 16.0)]
    failure = store.failure(other)
    assert failure and failure["message"].count("tried alone 3 times, at last with mem_gb 16") == 1


def test_a_student_follows_its_teacher_and_gives_up_with_it(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    follow = follower(objectives="[kd]")
    (teacher,) = [cell.id for cell in follow.cells if cell.role == "teacher"]
    (student,) = [cell.id for cell in follow.cells if cell.role == "student"]

    def act(cell_id: str) -> None:
        if cell_id == student:
            store.put_failure(student, {"class": "blocked", "message": f"blocked by teacher {teacher}", "traceback": "", "last_lines": []})

    slurm.act = act
    follow.wait()

    assert submissions(store, teacher) == 2 and submissions(store, student) == 2


def test_cells_that_found_no_room_are_submitted_as_the_queue_empties(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    slurm.room = 2
    follow = follower("students_side_by_side: 1\nretry: {killed: 0}\n", objectives="[ce]", repeats="9")
    follow.wait()

    assert [submissions(store, cell_id) for cell_id in follow.plan.cells] == [1] * 9
    assert [len(note.elements) for note in Ledger(store).notes()] == [2, 2, 2, 2, 1]


def test_a_request_that_slurm_refuses_ends_the_waiting_and_is_told_beside_its_cells(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sbatch(folder: Path, request: dict[str, Any], *rest: Any) -> list[str]:
        if request["mem_gb"] > 4:
            raise RequestError("SLURM refuses the job: Requested node configuration is not available")
        return slurm.sbatch(folder, request, *rest)

    monkeypatch.setattr(launch, "submit", sbatch)
    slurm.state = "OUT_OF_MEMORY"
    follow = follower("bigger: [{mem_gb: 4000}]\n", objectives="[ce]")
    follow.wait()

    (cell_id,) = follow.plan.cells
    failure = store.failure(cell_id)
    assert submissions(store, cell_id) == 1 and failure and failure["class"] == "not granted" and "mem_gb 4000" in failure["message"]


def test_a_queue_that_is_full_is_not_asked_at_every_look(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def sbatch(folder: Path, request: dict[str, Any], function: object, payloads: list[Any]) -> list[str]:
        asked.append(len(payloads))
        if len(payloads) > 2:
            raise FullError("AssocMaxSubmitJobLimit")
        return slurm.sbatch(folder, request, function, payloads)

    monkeypatch.setattr(launch, "submit", sbatch)
    follow = follower("students_side_by_side: 1\nretry: {killed: 0}\n", objectives="[ce]", repeats="16")
    follow.wait()

    assert all(submissions(store, cell_id) == 1 for cell_id in follow.plan.cells)
    assert asked[:3] == [16, 8, 4]


def test_a_controller_that_goes_silent_is_waited_for(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, silent = slurm.look, iter([False, True, True, False])
    monkeypatch.setattr(slurm, "look", lambda *wanted: Sight(False, {}, "no controller") if next(silent, False) else real(*wanted))
    follow = follower("retry: {killed: 0}\n", objectives="[ce]")
    told: list[str] = []
    follow.told = told.append
    follow.wait()

    assert sum("SLURM does not answer (no controller)" in line for line in told) == 1
    assert submissions(store, next(iter(follow.plan.cells))) == 1


def test_a_controller_that_refuses_to_speak_when_a_cell_is_tried_again_is_waited_for(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False, False, True])

    def sbatch(*asked: Any) -> list[str]:
        if not next(answers, True):
            raise ClusterError("SLURM did not answer: Unable to contact slurm controller")
        return slurm.sbatch(*asked)

    monkeypatch.setattr(launch, "submit", sbatch)
    slurm.state = "NODE_FAIL"
    follow = follower("retry: {node failure: 1}\n", objectives="[ce]")
    follow.wait()

    assert slurm.count == 2


def test_a_user_who_may_have_no_job_is_told_so_and_not_kept_waiting(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    slurm.room = 0
    follow = follower(objectives="[ce]")
    follow.wait()

    failure = store.failure(next(iter(follow.plan.cells)))
    assert slurm.count == 0 and failure and "no job at all" in failure["message"]


def test_jobs_on_another_cluster_are_not_waited_for(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    follow = follower(objectives="[ce]")
    noted(store, [list(follow.plan.cells)], slurm="elsewhere", at=1.0)
    follow.wait()

    assert slurm.count == 0


def test_a_dry_run_tells_and_submits_nothing(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    follow = follower()
    told: list[str] = []
    follow.told = told.append
    follow.once(dry=True)

    assert slurm.count == 0 and Ledger(store).notes() == []
    assert len(told) == 3 and all("would submit" in line for line in told)
