"""Cells become jobs and arrays: packed, longest first, no larger than the cluster takes, teachers first and their students behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench import submitit_adapter
from kdbench.errors import ClusterError, OwnLimitError, QueueFullError, RequestError
from kdbench.failure import Failure
from kdbench.plan.bundle import Bundle
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.slurm import launch
from kdbench.slurm.cluster import Cluster, read
from kdbench.slurm.launch import Launcher
from kdbench.slurm.reconcile import queue_state
from kdbench.slurm.scheduler import JobInfo, Limits, QueueSnapshot
from kdbench.slurm.submissions import JobEnd, Settings, Submissions
from kdbench.store import Store
from tests.slurm.stand_in import StandIn, submitted

WIDE = {"students": "{small: {model: small_mobile, widths: [4, 6]}, other: {model: small_mobile, widths: [6, 8]}}", "repeats": "3"}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text("timeout_min: 60\nmem_gb: 4\nbigger: [{mem_gb: 8}]\noverrides: [{role: teacher, timeout_min: 600}]\n")
    return read(path)


def rows_of(plan: Plan) -> dict[str, Any]:
    return {row.id: row for row in plan.manifest().cells}


def size(bundle: Bundle) -> float:
    """Of repeats and students: what a test can count with."""
    return sum(1 + cell.config["repeat"] for cell in bundle.cells)


class Sbatch:
    """Answers submissions as SLURM would, until it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_at: int | None = None, refusal: ClusterError | None = None):
        self.calls: list[tuple[dict[str, Any], list[tuple[Any, ...]]]] = []
        self.full_at, self.refusal, self.taken = full_at, refusal or QueueFullError("QOSMaxSubmitJobPerUserLimit"), 0
        monkeypatch.setattr(submitit_adapter, "submit", self)

    def __call__(self, folder: Path, request: dict[str, Any], function: object, payloads: Sequence[tuple[Any, ...]]) -> list[str]:
        if self.full_at is not None and self.taken + len(payloads) > self.full_at:
            raise self.refusal
        self.taken += len(payloads)
        self.calls.append((dict(request), list(payloads)))
        base = 100 + len(self.calls)
        return [str(base)] if len(payloads) == 1 else [f"{base}_{index}" for index in range(len(payloads))]


@pytest.fixture
def launched(store: Store, cluster: Cluster) -> Callable[..., Any]:
    def run(
        plan: Plan, limits: Limits | None = None, cells: Sequence[Any] | None = None, on: Cluster = cluster, queue: StandIn | None = None
    ) -> Any:
        local.prepare(plan, store)
        now = queue_state(store, queue or StandIn())
        jobs = launch.jobs(
            plan.cells.values() if cells is None else cells, rows_of(plan), on, size, launch.oom_requests(now.submissions, on)
        )
        return Launcher(store, on, "tiny", Settings(data=str(store.root)), limits or Limits("big", 1001, None), now).launch(jobs)

    return run


def test_every_cell_is_in_one_job_and_jobs_come_longest_first(plan_of: Callable[..., Plan], cluster: Cluster) -> None:
    plan = plan_of(**WIDE)
    jobs = launch.jobs(plan.cells.values(), rows_of(plan), cluster, size, {})

    assert sorted(cell_id for job in jobs for cell_id in job.ids) == sorted(plan.cells)
    assert [job.work for job in jobs] == sorted((job.work for job in jobs), reverse=True)
    assert {job.request["timeout_min"] for job in jobs if job.bundles[0].cells[0].role == "teacher"} == {600}


def test_short_bundles_share_a_job_that_is_no_longer_than_the_longest(plan_of: Callable[..., Plan], cluster: Cluster) -> None:
    plan = plan_of(**WIDE)
    packing = replace(cluster, bundles_per_job=3, students_side_by_side=1)
    students = [cell for cell in plan.cells.values() if cell.role == "student"]
    jobs = launch.jobs(students, rows_of(plan), packing, size, {})

    assert sorted(job.work for job in jobs) == [3.0] * 8
    assert {len(job.bundles) for job in jobs} == {1, 2}
    assert all(len({bundle.teacher for bundle in job.bundles}) == 1 for job in jobs)


def test_a_cell_that_ran_out_of_memory_is_alone_and_then_asks_for_more(plan_of: Callable[..., Plan], cluster: Cluster) -> None:
    plan = plan_of()
    students = [cell for cell in plan.cells.values() if cell.role == "student" and cell.depends]
    jobs = launch.jobs(students, rows_of(plan), cluster, size, {students[0].id: [{"mem_gb": 4}]})

    assert sorted((len(job.ids), job.request["mem_gb"]) for job in jobs) == [(1, 4.0), (1, 8.0)]


def test_requests_that_ran_out_of_memory_count_for_a_cell_that_was_alone(store: Store, cluster: Cluster) -> None:
    a, b, c, d = (letter * 12 for letter in "abcd")

    def ended(cells: dict[str, str]) -> dict[int, JobEnd]:
        return {0: JobEnd("FAILED", "host memory", "", cells, 1.0)}

    submitted(store, [[a, b]], ended=ended({a: "host memory", b: "raised"}), at=1)
    submitted(store, [[a]], ended=ended({a: "host memory"}), at=2)
    submitted(store, [[a]], ended=ended({a: "device memory"}), at=3)

    submitted(store, [[c, d]], ended=ended({c: "host memory"}), at=4, cluster="another.yaml")

    cluster = replace(cluster, name="cluster.yaml")
    submissions = Submissions(store).read()[0]
    assert launch.oom_requests(submissions[:1], cluster) == {a: []}
    assert launch.oom_requests(submissions, cluster) == {a: [submissions[1].request, submissions[2].request]}


def test_teachers_go_first_and_each_students_array_waits_for_its_own(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch)
    plan = plan_of(teachers="{big: {model: small_mobile, widths: [8, 12]}, huge: {model: small_mobile, widths: [8, 16]}}")
    submissions = launched(plan).submissions

    waits = {request["slurm_dependency"]: payloads for request, payloads in sbatch.calls if "slurm_dependency" in request}
    assert set(waits) == {"afterany:101_0", "afterany:101_1"}
    for dependency, payloads in waits.items():
        teacher = submissions[0].cells(int(dependency[-1]))[0]
        assert all(plan.cells[cell_id].depends == {"teacher": teacher} for _, ids, _, _ in payloads for cell_id in ids)
    alone = [payloads for request, payloads in sbatch.calls[1:] if "slurm_dependency" not in request]
    assert all(not plan.cells[cell_id].depends for payloads in alone for _, ids, _, _ in payloads for cell_id in ids)


def test_the_rounds_of_a_search_are_jobs_that_wait_for_each_other(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch)
    plan = plan_of(dataset="{name: digits, per_class: 8}", objectives="[ce, kd, sp]", tune="{trials: 3}", repeats="1")
    done = launched(plan)
    assert sorted(done.cells) == sorted(plan.cells) and len(sbatch.calls) == len(done.submissions)
    job_of = {cell_id: one.job_of(index) for one in done.submissions for index in range(len(one.elements)) for cell_id in one.cells(index)}
    after = {cell_id: one.after for one in done.submissions for index in range(len(one.elements)) for cell_id in one.cells(index)}
    for cell in plan.cells.values():
        assert sorted(after[cell.id]) == sorted({job_of[other] for other in cell.depends.values()} | set(after[cell.id]))
        assert job_of[cell.id] not in after[cell.id]
    rounds = {
        frozenset(row.trial for row in plan.rows if row.cell.id in ids)
        for job in {*job_of.values()}
        for ids in [[c for c, j in job_of.items() if j == job]]
    }
    assert {frozenset({1, 2, 3}), frozenset({4}), frozenset({5, 6, 7})} <= rounds

    # A teacher of trials that SLURM refuses blocks all that follows from it.
    refused = next(row.cell.id for row in plan.rows if row.role == "trial" and row.objective is None)
    for cell_id in plan.cells:
        store.clear_failure(cell_id)
    cells = [cell for cell in plan.cells.values() if refused in (cell.id, cell.depends.get("teacher"))]
    monkeypatch.setattr(submitit_adapter, "submit", Sbatch(monkeypatch, 0, RequestError("no such partition")))
    done = launched(plan, cells=cells)
    blocked = {cell.id: store.failure(cell.id) for cell in cells if cell.id != refused}
    assert not done.submissions and all(one is not None and one.kind == "blocked" for one in blocked.values())


def test_a_second_stage_is_a_job_that_waits_for_its_first(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sbatch(monkeypatch)
    plan = plan_of(objectives="{ce: , kd: , at: {two_stages: {epochs: 2}}}", repeats="1")
    done = launched(plan)
    job_of = {cell_id: one.job_of(index) for one in done.submissions for index in range(len(one.elements)) for cell_id in one.cells(index)}
    after = {cell_id: one.after for one in done.submissions for index in range(len(one.elements)) for cell_id in one.cells(index)}
    first, second = (
        next(row.cell for row in plan.rows if (row.role, row.objective) == (role, "at")) for role in ("first_stage", "student")
    )
    assert sorted(done.cells) == sorted(plan.cells) and after[first.id] == [job_of[first.depends["teacher"]]]
    assert job_of[first.id] in after[second.id] and job_of[second.id] != job_of[first.id]

    # One that SLURM refuses blocks what follows from it.
    monkeypatch.setattr(submitit_adapter, "submit", Sbatch(monkeypatch, 0, RequestError("no such partition")))
    assert not launched(plan, cells=[first, second]).submissions
    found = {cell.id: store.failure(cell.id) for cell in (first, second)}
    assert [one.kind for one in found.values() if one] == ["not granted", "blocked"]
    assert f"blocked by first stage {first.id}" in found[second.id].message  # type: ignore[union-attr]


def test_a_job_is_given_the_results_folder_and_ids_and_little_else(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch)
    launched(plan_of())
    for request, payloads in sbatch.calls:
        assert request["name"].startswith("kdbench-tiny-")
        for root, ids, name, index in payloads:
            assert root == str(store.root) and f"kdbench-{name.replace('/', '-')}" == request["name"]
            assert isinstance(index, int) and all(len(one) == 12 for one in ids)


def test_arrays_are_cut_to_what_the_cluster_takes(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch)
    plan = plan_of(objectives="[ce]", repeats="12")
    launched(plan, Limits("big", 5, None), on=replace(cluster, students_side_by_side=1))

    assert [len(payloads) for _, payloads in sbatch.calls] == [5, 5, 2]


def test_no_more_jobs_are_submitted_than_the_cluster_says_that_it_takes(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch)
    plan = plan_of(objectives="[ce]", repeats="12")
    done = launched(plan, Limits("big", 1001, 7), on=replace(cluster, students_side_by_side=1))

    assert [len(payloads) for _, payloads in sbatch.calls] == [7] and len(done.deferred) == 5
    assert "allows this user 7 jobs" in done.why


def test_a_refusal_for_the_number_of_jobs_halves_the_array_until_it_fits(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch, full_at=8)
    plan = plan_of(objectives="[ce]", repeats="12")
    done = launched(plan, on=replace(cluster, students_side_by_side=1))

    assert sum(len(payloads) for _, payloads in sbatch.calls) == 8 and len(done.deferred) == 4
    assert len(Submissions(store).read()[0]) == len(sbatch.calls)


def test_students_of_a_teacher_that_found_no_room_wait_with_it(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Sbatch(monkeypatch, full_at=0)
    plan = plan_of()

    assert sorted(launched(plan).deferred) == sorted(plan.cells)


def test_any_other_refusal_is_a_failure_of_its_cells_and_the_rest_goes_on(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch)
    real = Sbatch.__call__

    def picky(self: Sbatch, folder: Path, request: dict[str, Any], *rest: Any) -> list[str]:
        if request["timeout_min"] == 600:
            raise RequestError("SLURM refuses the job: Requested time limit is invalid")
        return real(self, folder, request, *rest)

    monkeypatch.setattr(Sbatch, "__call__", picky)
    plan = plan_of()
    done = launched(plan)

    (teacher,) = [cell.id for cell in plan.cells.values() if cell.role == "teacher"]
    failure = store.failure(teacher)
    assert failure and failure.kind == "not granted" and "time limit is invalid (request: " in failure.message
    taught = [cell.id for cell in plan.cells.values() if cell.depends]
    assert sorted(done.refused) == sorted([teacher, *taught])
    assert all("blocked by teacher" in store.failure(cell_id).message for cell_id in taught)
    assert len(sbatch.calls) == 1 and len(Submissions(store).read()[0]) == 1


def test_a_refusal_keeps_what_was_known_of_a_failure_and_silence_keeps_the_note(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    (cell_id,) = plan.cells
    local.prepare(plan, store)
    store.put_failure(cell_id, Failure("killed", "as it was"))
    Sbatch(monkeypatch, full_at=0)
    launched(plan)
    assert store.failure(cell_id).message == "as it was" and Submissions(store).read()[0] == []  # type: ignore[union-attr]

    Sbatch(monkeypatch, full_at=0, refusal=ClusterError("SLURM did not answer: Socket timed out on send/recv operation"))
    with pytest.raises(ClusterError, match="timed out"):
        launched(plan)
    assert [submission.job for submission in Submissions(store).read()[0]] == [None]


GENERAL = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
"""What SLURM says of every limit, alone in old releases."""


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (
            QueueFullError,
            [
                f"AssocGrpSubmitJobsLimit\n{GENERAL}",
                f"QOSMaxSubmitJobPerAccountLimit\n{GENERAL}",
                "Slurm temporarily unable to accept job, sleeping and retrying",
                "Batch job submission failed: Resource temporarily unavailable",
                "MaxJobCount limit reached",
                "Invalid job array specification",
            ],
        ),
        (
            OwnLimitError,
            [
                f"QOSMaxSubmitJobPerUserLimit\n{GENERAL}",
                f"AssocMaxSubmitJobLimit\n{GENERAL}",
                f"AssocMaxJobsLimit\n{GENERAL}",
                GENERAL,
                "Job violates accounting/QOS policy",
                f"You have too many jobs in the partition gpu\n{GENERAL}",
                "Reached maximum number of jobs",
                "MaxSubmitJobs",
                "job submission limit exceeded",
                "Burst Buffer resource limit exceeded",
            ],
        ),
        (
            RequestError,
            [
                f"QOSMaxWallDurationPerJobLimit\n{GENERAL}",
                f"AssocGrpCpuLimit\n{GENERAL}",
                f"QOSMaxNodePerUserLimit\n{GENERAL}",
                "Requested time limit is invalid (missing or exceeds some limit)",
                "Invalid time-min specification (exceeds job's time or other limits)",
                "Requested node configuration is not available",
                "More processors requested than permitted",
                "Maximum wall time exceeded",
                "Memory limit of the partition exceeded",
                "Invalid qos specification",
                "Unspecified error",
                "",
            ],
        ),
        (
            ClusterError,
            [
                "Socket timed out on send/recv operation",
                "Unable to contact slurm controller (connect failure)",
                "Rate limit exceeded, please retry momentarily",
            ],
        ),
    ],
    ids=["full", "a limit for this user, or an unnamed one", "a wrong request", "silence"],
)
def test_what_sbatch_says_is_a_full_queue_a_limit_a_wrong_request_or_silence(kind: type[ClusterError], texts: list[str]) -> None:
    from kdbench.submitit_adapter import _refusal

    for text in texts:
        first, _, last = text.rpartition("\n")
        lines = [*([f"sbatch: error: {first}"] if first else []), f"sbatch: error: Batch job submission failed: {last}"]
        assert type(_refusal("\n".join(lines) if text else "")) is kind, text


def test_a_limit_for_this_user_is_waited_for_only_while_a_job_of_theirs_is_in_the_queue(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(objectives="[ce]", repeats="6")
    alone = replace(cluster, students_side_by_side=1)
    busy = StandIn(queue=QueueSnapshot(True, {"7": JobInfo("7", "another", "RUNNING")}))
    ended = StandIn(queue=QueueSnapshot(True, {"7": JobInfo("7", "another", "COMPLETED")}))

    Sbatch(monkeypatch, full_at=0, refusal=OwnLimitError(GENERAL))
    done = launched(plan, on=alone, queue=busy)
    assert done.full and sorted(done.deferred) == sorted(plan.cells) and not done.refused

    done = launched(plan, on=alone, queue=ended)
    assert sorted(done.refused) == sorted(plan.cells) and not done.deferred and not done.full
    for cell_id in plan.cells:
        failure = store.failure(cell_id)
        assert failure and failure.kind == "not granted"
        said = f"SLURM refuses the job, and no job of yours is in the queue for which it could wait: {GENERAL} (request: "
        assert failure.message.startswith(said)

    # What was accepted just now is in the queue, too.
    Sbatch(monkeypatch, full_at=2, refusal=OwnLimitError(GENERAL))
    done = launched(plan, on=alone, queue=ended)
    assert done.full and len(done.cells) == 2 and len(done.deferred) == 4 and not done.refused

    # Room may come from others.
    Sbatch(monkeypatch, full_at=0, refusal=QueueFullError("AssocGrpSubmitJobsLimit"))
    assert sorted(launched(plan, on=alone, queue=ended).deferred) == sorted(plan.cells)


def test_the_note_lies_on_disk_before_sbatch_is_called(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []

    def dies(*_: object) -> list[str]:
        jobs.extend(Submissions(store).read()[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(submitit_adapter, "submit", dies)
    with pytest.raises(KeyboardInterrupt):
        launched(plan_of())
    (submission,) = jobs
    assert submission.job is None and submission.name == f"kdbench-tiny-{submission.token}"
    assert Submissions(store).read()[0] == jobs


def test_a_snapshot_is_a_copy_of_the_code_that_jobs_run_and_says_what_it_is_of(
    plan_of: Callable[..., Plan],
    launched: Callable[..., Any],
    cluster: Cluster,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import subprocess
    import sys

    monkeypatch.setenv("PYTHONPATH", strange := str(tmp_path / 'my $HOME\'s "code"'))
    sbatch = Sbatch(monkeypatch)
    submission = launched(plan_of(objectives="[ce]"), on=replace(cluster, snapshot=True)).submissions[0]
    request = sbatch.calls[0][0]

    copy = Path(submission.code["snapshot"])
    assert request["slurm_additional_parameters"]["chdir"] == str(copy) and copy.parent == store.root / "code"
    code = "\n".join(
        [
            *request["slurm_setup"],
            f"cd {copy}",
            f"{sys.executable} -c 'import kdbench; from kdbench.process import code_version; print(kdbench.__file__, code_version())'",
            'echo "$PYTHONPATH"',
        ]
    )
    output, paths = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert output.split() == [str(copy / "kdbench" / "__init__.py"), submission.code["version"]]
    assert paths.split(":")[:2] == [str(copy), strange]


def test_a_job_is_one_task_whatever_its_request_says_of_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SLURM grants whole nodes or threads, srun would start a process for each CPU."""
    script = tmp_path / "script"
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(f'#!/bin/sh\n/bin/cat "$1" > {script}\necho Submitted batch job 12\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    requests: tuple[dict[str, Any], ...] = (
        {},
        {"cpus_per_task": 8, "tasks_per_node": 1},
        {"slurm_additional_parameters": {"exclusive": True}, "slurm_srun_args": ["--ntasks=8"]},
        {"slurm_additional_parameters": None, "slurm_exclusive": True, "gpus_per_node": 1},
    )
    for number, request in enumerate(requests):
        submitit_adapter.submit(tmp_path / str(number), {"timeout_min": 5, **request}, "os:getpid", [()])
        lines = script.read_text().splitlines()
        assert {"#SBATCH --ntasks=1", "#SBATCH --ntasks-per-node=1", "#SBATCH --nodes=1"} <= set(lines)
        (srun,) = [line for line in lines if line.startswith("srun ")]
        assert [word for word in srun.split() if "ntasks" in word][-1] == "--ntasks=1"


def test_an_answer_of_sbatch_that_cannot_be_read_may_have_been_a_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, text in (("srun", ""), ("sbatch", "echo Welcome to the cluster!")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ClusterError, match="the answer of sbatch cannot be read: .*Welcome to the cluster") as caught:
        submitit_adapter.submit(tmp_path / "jobs", {"timeout_min": 5}, "os:getpid", [()])
    assert type(caught.value) is ClusterError
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="jobs cannot be submitted: "):
        submitit_adapter.submit(tmp_path / "file" / "jobs", {"timeout_min": 5}, "os:getpid", [()])


def test_slurms_reason_is_given_without_hints_about_usage() -> None:
    for text, reason in (
        ("sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name specified\n",
         "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified"),
        ("sbatch: unrecognized option '--frob'\nTry \"sbatch --help\" for more information", "unrecognized option '--frob'"),
        ("sbatch: error: Invalid --time specification\nUsage: sbatch [OPTIONS]\n", "Invalid --time specification"),
        ("sbatch: cli_filter: 3 GPUs at most\nsbatch: fatal: not allowed", "not allowed"),
        ("Job is pending execution for job 1\n", "Job is pending execution for job 1"),
        ("slurm_load_jobs error: Unable to contact slurm controller", "slurm_load_jobs error: Unable to contact slurm controller"),
        ("", ""),
    ):  # fmt: skip
        assert submitit_adapter.reason(text) == reason


def test_a_job_calls_its_function_by_name() -> None:
    assert submitit_adapter.call("operator:add", 2, 3) == 5
