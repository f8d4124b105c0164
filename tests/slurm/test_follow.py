"""What is tried again without being asked, how often, and when that ends."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdbench import submitit_adapter
from kdbench.cli import main
from kdbench.errors import ClusterError, OwnLimitError, QueueFullError, RequestError
from kdbench.failure import Failure
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.slurm import cluster_verbs
from kdbench.slurm.cluster import read
from kdbench.slurm.follow import Follower
from kdbench.slurm.reconcile import QueueState
from kdbench.slurm.scheduler import JobInfo, Limits, QueueSnapshot
from kdbench.slurm.submissions import Settings, Submissions
from kdbench.store import Store
from tests.slurm.stand_in import StandIn, submitted


class Slurm(StandIn):
    """Ends every job that it is given in a state, at once."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, room: int | None = None):
        super().__init__()
        self.store, self.count, self.state, self.room, self.names = store, 0, "FAILED", room, {}  # type: ignore[var-annotated]
        self.act: Callable[[str], None] = lambda cell_id: None
        monkeypatch.setattr(submitit_adapter, "submit", self.sbatch)
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

    def snapshot(self, wanted: object = (), users: object = ()) -> QueueSnapshot:
        return QueueSnapshot(True, {job: JobInfo(job, name, self.state, "node7") for job, name in self.names.items()})

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
        settings = Settings(data="", lost_after_s=0.0)
        return Follower(plan, store, read(path), settings, lambda bundle: 1.0, lambda text: None, slurm)

    return make


def submissions(store: Store, cell_id: str) -> int:
    return sum(
        cell_id in submission.cells(index) for submission in Submissions(store).read()[0] for index in range(len(submission.elements))
    )


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
    slurm.act = lambda cell_id: store.put_failure(cell_id, Failure("raised", "mine"))
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
        (len(submission.cells(index)), submission.request["mem_gb"])
        for submission in Submissions(store).read()[0]
        for index in range(len(submission.elements))
        if one in submission.cells(index)
    ]
    assert tries == [(2, 4.0), (1, 4.0), (1, 8.0), (1, 16.0)]
    failure = store.failure(other)
    assert failure and failure.message.count("tried alone 3 times, the last time with mem_gb 16") == 1


def test_a_student_follows_its_teacher_and_gives_up_with_it(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    follow = follower(objectives="[kd]")
    (teacher,) = [cell.id for cell in follow.cells if cell.role == "teacher"]
    (student,) = [cell.id for cell in follow.cells if cell.role == "student"]

    def act(cell_id: str) -> None:
        if cell_id == student:
            store.put_failure(student, Failure("blocked", f"blocked by teacher {teacher}"))

    slurm.act = act
    follow.wait()

    assert submissions(store, teacher) == 2 and submissions(store, student) == 2


def test_cells_that_found_no_room_are_submitted_as_the_queue_empties(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    slurm.room = 2
    follow = follower("students_side_by_side: 1\nretry: {killed: 0}\n", objectives="[ce]", repeats="9")
    follow.wait()

    assert [submissions(store, cell_id) for cell_id in follow.plan.cells] == [1] * 9
    assert [len(submission.elements) for submission in Submissions(store).read()[0]] == [2, 2, 2, 2, 1]


def test_a_request_that_slurm_refuses_ends_the_waiting_and_is_told_beside_its_cells(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sbatch(folder: Path, request: dict[str, Any], *rest: Any) -> list[str]:
        if request["mem_gb"] > 4:
            raise RequestError("SLURM refuses the job: Requested node configuration is not available")
        return slurm.sbatch(folder, request, *rest)

    monkeypatch.setattr(submitit_adapter, "submit", sbatch)
    slurm.state = "OUT_OF_MEMORY"
    follow = follower("bigger: [{mem_gb: 4000}]\n", objectives="[ce]")
    follow.wait()

    (cell_id,) = follow.plan.cells
    failure = store.failure(cell_id)
    assert submissions(store, cell_id) == 1 and failure and failure.kind == "not granted" and "mem_gb 4000" in failure.message


def test_a_queue_that_is_full_is_not_asked_at_every_look(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def sbatch(folder: Path, request: dict[str, Any], function: object, payloads: list[Any]) -> list[str]:
        asked.append(len(payloads))
        if len(payloads) > 2:
            raise QueueFullError("AssocMaxSubmitJobLimit")
        return slurm.sbatch(folder, request, function, payloads)

    monkeypatch.setattr(submitit_adapter, "submit", sbatch)
    follow = follower("students_side_by_side: 1\nretry: {killed: 0}\n", objectives="[ce]", repeats="16")
    follow.wait()

    assert all(submissions(store, cell_id) == 1 for cell_id in follow.plan.cells)
    assert asked[:3] == [16, 8, 4]


def test_an_unnamed_limit_is_waited_for_until_no_job_of_this_user_is_left(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job of this user is in the queue for 30 looks. After it there is room, or the limit is on what a job asks for."""
    looks, asked = 0, 0
    real = slurm.snapshot

    def snapshot(*wanted: object) -> QueueSnapshot:
        nonlocal looks
        looks += 1
        another = {"99": JobInfo("99", "another", "RUNNING" if looks < 30 else "COMPLETED")}
        return QueueSnapshot(True, {**another, **real(*wanted).jobs})

    def sbatch(*given: Any) -> list[str]:
        nonlocal asked
        asked += 1
        if looks < 30 or too_large:
            raise OwnLimitError("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)")
        return slurm.sbatch(*given)

    monkeypatch.setattr(slurm, "snapshot", snapshot)
    monkeypatch.setattr(submitit_adapter, "submit", sbatch)
    output: list[str] = []
    for too_large in (True, False):
        looks = asked = 0
        follow = follower("retry: {killed: 0}\n", objectives="[ce]")
        follow.log = output.append
        follow.wait()
        (cell_id,) = follow.plan.cells
        assert looks >= 30 and asked < 8, "a controller is not asked at every look"
        assert submissions(store, cell_id) == (0 if too_large else 1)
        failure = store.failure(cell_id)
        assert failure and failure.kind == ("not granted" if too_large else "killed")
    assert sum("1 cells wait for room in the queue: Job violates accounting/QOS policy" in line for line in output) == 2
    assert sum("1 cells were not submitted: SLURM refuses the job, and no job of yours" in line for line in output) == 1


def test_a_printed_command_can_be_copied_into_a_shell(
    write_suite: Callable[..., Path], slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_verbs, "Follower", partial(Follower, scheduler=slurm))
    slurm.state, results = "PENDING", str(tmp_path / "it's $mine")
    (tmp_path / "cluster.yaml").write_text("timeout_min: 60\n")
    suite = str(write_suite(objectives="[ce]", repeats="1"))
    done = CliRunner().invoke(main, ["run", suite, "--on", str(tmp_path / "cluster.yaml"), "--results", results])

    (command,) = re.findall("`(.*)` shows their state", done.output)
    assert shlex.split(command) == ["kdbench", "status", "tiny", "--results", results]


@pytest.mark.parametrize(("asked", "has_table"), [([], True), (["--teacher", "live"], False), (["--teacher", "table"], True)])
def test_jobs_are_submitted_with_the_tables_that_the_plan_chooses(
    asked: list[str], has_table: bool, write_suite: Callable[..., Path], slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_verbs, "Follower", partial(Follower, scheduler=slurm))
    slurm.state, results = "PENDING", tmp_path / "results"
    (tmp_path / "cluster.yaml").write_text("timeout_min: 60\n")
    suite = str(write_suite(objectives="[kd]", repeats="1", recipe="{name: short, epochs: 30, batch_size: 8, lr: 0.02}"))
    CliRunner().invoke(main, ["run", suite, "--on", str(tmp_path / "cluster.yaml"), "--results", str(results), *asked])
    store = Store(results)

    (teacher,) = (cell.id for cell in store.manifest("tiny").cells if cell.role == "teacher")
    settings = [one.settings for one in Submissions(store).read()[0]]
    assert settings and all(one.tables == ([teacher] if has_table else []) for one in settings)


def test_a_controller_that_goes_silent_is_waited_for(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, silent = slurm.snapshot, iter([False, True, True, False])
    monkeypatch.setattr(
        slurm, "snapshot", lambda *wanted: QueueSnapshot(False, {}, "no controller") if next(silent, False) else real(*wanted)
    )
    follow = follower("retry: {killed: 0}\n", objectives="[ce]")
    output: list[str] = []
    follow.log = output.append
    follow.wait()

    assert sum("SLURM does not answer (no controller)" in line for line in output) == 1
    assert submissions(store, next(iter(follow.plan.cells))) == 1


def test_a_controller_that_refuses_to_speak_when_a_cell_is_tried_again_is_waited_for(
    follower: Callable[..., Follower], slurm: Slurm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False, False, True])

    def sbatch(*asked: Any) -> list[str]:
        if not next(answers, True):
            raise ClusterError("SLURM did not answer: Unable to contact slurm controller")
        return slurm.sbatch(*asked)

    monkeypatch.setattr(submitit_adapter, "submit", sbatch)
    slurm.state = "NODE_FAIL"
    follow = follower("retry: {node failure: 1}\n", objectives="[ce]")
    follow.wait()

    assert slurm.count == 2


def test_a_user_who_may_have_no_job_is_told_so_and_not_kept_waiting(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    slurm.room = 0
    follow = follower(objectives="[ce]")
    follow.wait()

    failure = store.failure(next(iter(follow.plan.cells)))
    assert slurm.count == 0 and failure and "no job at all" in failure.message


def test_jobs_on_another_cluster_are_not_waited_for(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    follow = follower(objectives="[ce]")
    submitted(store, [list(follow.plan.cells)], slurm="elsewhere", at=1.0)
    follow.wait()

    assert slurm.count == 0


def test_a_dry_run_tells_and_submits_nothing(follower: Callable[..., Follower], slurm: Slurm, store: Store) -> None:
    follow = follower()
    output: list[str] = []
    follow.log = output.append
    follow.once(dry=True)

    assert slurm.count == 0 and Submissions(store).read()[0] == []
    assert len(output) == 3 and all("would submit" in line for line in output)


def test_waiting_outlives_errors_that_nobody_expects_and_ends_with_a_sentence_when_they_stay(
    follower: Callable[..., Follower], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = slurm.snapshot
    for errors in ([None, OSError(30, "Read-only file system"), ValueError("odd"), KeyError("id"), None], [None, *[TypeError("odd")] * 9]):
        looks = iter(errors)

        def snapshot(*wanted: object, looks: Iterator[Exception | None] = looks) -> QueueSnapshot:
            if error := next(looks, None):
                raise error
            return real()

        monkeypatch.setattr(slurm, "snapshot", snapshot)
        follow = follower("retry: {killed: 0}\n", objectives="[ce]")
        lines: list[str] = []
        follow.log = lines.append
        if len(errors) < 9:
            follow.wait()
            assert any("Read-only file system; retrying" in line for line in lines)
        else:
            with pytest.raises(ClusterError, match="TypeError: odd .the jobs continue; run the same command to follow them again"):
                follow.wait()


def test_a_damaged_submission_is_named_once_while_others_are_waited_for(
    follower: Callable[..., Follower], slurm: Slurm, store: Store
) -> None:
    follow = follower(objectives="[ce]")
    damaged = submitted(store, [["0" * 12]])
    (Submissions(store).folder(damaged) / "submission.json").write_text("3")
    lines: list[str] = []
    follow.log = lines.append
    follow.wait()

    assert sum("submission.json is missing or damaged" in line for line in lines) == 1 and slurm.count == 2


def test_a_teacher_that_is_found_damaged_while_its_student_is_wanted_is_wanted_again_at_the_next_look(
    follower: Callable[..., Follower], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = follower(objectives="[kd]")
    (teacher,) = (cell.id for cell in follow.cells if cell.role == "teacher")
    done = {teacher}
    monkeypatch.setattr(store, "is_done", lambda cell_id: cell_id in done)
    monkeypatch.setattr(local, "wanted", lambda _, cells: [cell for cell in cells if cell.id not in done])
    nothing_alive = QueueState(True)

    assert [cell.role for cell in follow._wanted(nothing_alive)] == ["student"]
    done.clear()
    assert {cell.role for cell in follow._wanted(nothing_alive)} == {"teacher", "student"}
    assert teacher in {cell.id for cell in follow.left}
