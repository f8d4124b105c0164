"""Submissions on disk: what is damaged is named in a sentence and skipped; cancelling, and the jobs that measure costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kdbench.errors import ClusterError, DamagedError
from kdbench.plan.matrix import Plan
from kdbench.run import local, status
from kdbench.slurm import cluster_verbs
from kdbench.slurm.queue_status import queue_of
from kdbench.slurm.reconcile import queue_state
from kdbench.slurm.scheduler import JobInfo, QueueSnapshot
from kdbench.slurm.submissions import FILE, JobEnd, Settings, Submissions
from kdbench.store import Store
from tests.slurm.stand_in import StandIn, submitted


@pytest.fixture
def ids(plan_of: Callable[..., Plan], store: Store) -> list[str]:
    plan = plan_of()
    local.prepare(plan, store)
    return list(plan.cells)


def test_a_submission_is_the_same_after_it_was_written_and_read(store: Store, ids: list[str]) -> None:
    end = JobEnd("FAILED", "killed", "node7", {ids[1]: "killed"}, 3.0)
    written = submitted(store, [[ids[0]]], [[ids[1]]], after=["7"], ended={1: end}, moves=2, code={"version": "x", "changes": None})

    assert Submissions(store).read()[0] == [written]
    assert written.unfinished() == [0] and written.job_of(1) == "12_1" and replace(written, job=None).job_of(1) == ""


def test_a_damaged_submission_is_named_in_one_sentence_and_the_others_are_read(store: Store, ids: list[str]) -> None:
    good, other = submitted(store, [[ids[0]]]), submitted(store, [[ids[1]]], job="13")
    path = Submissions(store).folder(other) / FILE
    whole = json.loads(path.read_text())

    def without(name: str) -> str:
        return json.dumps({key: value for key, value in whole.items() if key != name})

    changes: list[dict[str, object]] = [
        {"schema": 99}, {"schema": "1"}, {"schema": True}, {"elements": []}, {"elements": [[["../../x"]]]}, {"elements": {"a": 1}}, {"job": 13},
        {"job": "None"}, {"at": "now"}, {"at": -1}, {"at": float("nan")}, {"moves": 10**12}, {"user": "ada"}, {"token": "x"}, {"kind": "other"}, {"elemnts": []},
        {"request": {}}, {"request": {"timeout_min": "long"}}, {"request": {"timeout_min": 5, "slurm_signal_delay_s": None}},
        {"settings": {}}, {"settings": {**whole["settings"], "side_by_side": 0}}, {"ended": {"7": {}}}, {"ended": {"0": {"class": "done"}}},
        {"ended": {"9": asdict(JobEnd("", "done", "", {}, 1.0))}}, {"suite": "another"}, {"token": "00000000-0000"},
    ]  # fmt: skip
    texts = ["", " ", "{}", "[]", "null", "3", '"x"', "{", "\0" * 50, "[" * 3000, path.read_text()[:-20]]
    texts += [json.dumps({**whole, **change}) for change in changes] + [
        without(name) for name in whole if name in ("schema", "suite", "job_of", "elements", "settings")
    ]
    for text in texts:
        path.write_text(text)
        found, damaged = Submissions(store).read()
        assert found == [good] and [(one.suite, one.name) for one in damaged] == [("tiny", other.name)], text
        assert (
            str(path) in damaged[0].why
            and "\n" not in damaged[0].why
            and damaged[0].why.endswith("it is skipped: remove its folder when its jobs have ended")
        ), damaged
        with pytest.raises(DamagedError):
            Submissions(store).get("tiny", other.token)
    path.write_bytes(b"\xff\xfe\x00")
    assert len(Submissions(store).read()[1]) == 1
    path.unlink()
    path.mkdir()
    assert len(Submissions(store).read()[1]) == 1


def test_jobs_of_a_damaged_submission_are_known_by_name_and_can_be_cancelled(
    store: Store, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = submitted(store, [[ids[0]]])
    (Submissions(store).folder(damaged) / FILE).write_text("{}")
    scheduler = StandIn().sees(damaged, "PENDING")
    state = queue_state(store, scheduler)
    assert state.alive == {} and state.lost == {"12": "tiny"} and "its jobs 12 are in the queue" in state.problems[0]

    monkeypatch.setattr(cluster_verbs, "Scheduler", lambda: scheduler)
    monkeypatch.setattr("kdbench.slurm.queue_status.Scheduler", lambda: scheduler)
    assert "its jobs 12 are in the queue" in status.text(store.root, "tiny", queue_of(store.root, "tiny"))
    assert (
        cluster_verbs.cancel(store.root, "tiny", ids[0]) == 0
        and cluster_verbs.cancel(store.root, "tiny", None) == 1
        and scheduler.cancelled == ["12"]
    )


def test_lines_of_a_journal_that_are_no_events_are_named_and_skipped(store: Store, ids: list[str]) -> None:
    one = submitted(store, [[ids[0]]])
    journal = Submissions(store).journal(one, 0)
    for text, wrong in (('{}\n[]\nnull\n3\n{"event": 3}\n{"evnt": "began"}\n', 6), ('\0\0\n{"event": "began", "lines": 3}\n', 0)):
        journal.write_text(text)
        events, why = Submissions(store).events(one, 0)
        assert len(events) == (not wrong) and (f"{wrong} of its lines are skipped" in why if wrong else why == "")
        state = queue_state(store, StandIn().sees(one, "TIMEOUT"), write=False)
        assert state.problems == ([why] if wrong else []) and state.alive == {}
    journal.write_text('{"event": "began", "lines": {"x": "many"}}\n')
    queue_state(store, StandIn().sees(one, "TIMEOUT"))
    journal.unlink()
    journal.mkdir()
    assert "is a folder, not a file" in Submissions(store).events(one, 0)[1]


@pytest.fixture
def in_queue(store: Store, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Two jobs of the suite that run."""
    one = submitted(store, [[ids[0]]], [[ids[1]]])
    scheduler = StandIn(refuses="").sees(one, "RUNNING", "RUNNING")
    monkeypatch.setattr(cluster_verbs, "Scheduler", lambda: scheduler)
    return scheduler


def test_a_job_that_slurm_does_not_cancel_leaves_no_failure(store: Store, ids: list[str], in_queue: StandIn) -> None:
    in_queue.refuses = "Access/permission denied"
    for after in (None, QueueSnapshot(False, {}, "no controller")):
        in_queue.after_cancel = after
        with pytest.raises(ClusterError, match="SLURM does not cancel 12_0, 12_1: Access/permission denied"):
            cluster_verbs.cancel(store.root, "tiny", None)
        assert not any(store.failure(cell_id) for cell_id in ids)


def test_of_several_jobs_those_that_were_cancelled_have_a_failure_and_the_others_are_named(
    store: Store, ids: list[str], in_queue: StandIn
) -> None:
    in_queue.refuses = "Kill job error on job id 12_1: Access/permission denied"
    name = in_queue.queue.jobs["12_0"].name
    in_queue.after_cancel = QueueSnapshot(True, {"12_0": JobInfo("12_0", name, "CANCELLED"), "12_1": JobInfo("12_1", name, "RUNNING")})
    with pytest.raises(ClusterError, match="SLURM does not cancel 12_1: Kill job error"):
        cluster_verbs.cancel(store.root, "tiny", None)

    assert store.failure(ids[0]).kind == "cancelled" and store.failure(ids[1]) is None  # type: ignore[union-attr]


def test_a_job_that_ended_by_itself_meanwhile_counts_as_cancelled(store: Store, ids: list[str], in_queue: StandIn) -> None:
    in_queue.refuses, in_queue.after_cancel = "Job/step already completing or completed", QueueSnapshot(True)

    assert cluster_verbs.cancel(store.root, "tiny", None) == 2


def test_a_job_that_measures_costs_is_a_submission_that_status_and_cancel_know(
    store: Store, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = submitted(store, [[]], kind="profile", settings=Settings(data="", suite="tiny.yaml"))
    scheduler = StandIn().sees(one, "RUNNING")
    monkeypatch.setattr(cluster_verbs, "Scheduler", lambda: scheduler)
    monkeypatch.setattr("kdbench.slurm.queue_status.Scheduler", lambda: scheduler)

    def page() -> str:
        return status.text(store.root, "tiny", queue_of(store.root, "tiny"))

    assert "costs: job 12 on node7" in page() and cluster_verbs.cancel(store.root, "tiny", None) == 1 and scheduler.cancelled == ["12"]
    assert not any(store.failure(cell_id) for cell_id in ids)
    scheduler.sees(one, "CANCELLED")
    assert "costs: job 12 ended without a result (CANCELLED, cancelled)" in page()
    Submissions(store).write(one)
    store.append_line(Submissions(store).journal(one, 0), {"event": "ended"})
    scheduler.sees(one, "COMPLETED")
    assert "costs:" not in page() and Submissions(store).read()[0][0].ended[0].kind == "done"


def test_a_user_without_an_entry_in_passwd_submits_under_a_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 54321)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    assert submitted(store, [["0" * 12]]).user == "54321"


def test_a_folder_that_is_about_to_be_removed_is_no_submission(store: Store, ids: list[str]) -> None:
    folder = Submissions(store).folder(submitted(store, [[ids[0]]]))
    folder.rename(folder.with_name(f".{folder.name}.1f.tmp"))

    assert Submissions(store).read() == ([], [])


def test_results_without_jobs_ask_no_scheduler(store: Store, ids: list[str], tmp_path: Path) -> None:
    assert queue_of(store.root, "tiny") is None
