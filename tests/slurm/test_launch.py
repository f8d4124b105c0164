"""Cells become jobs and arrays: packed, longest first, no larger than the cluster takes, teachers first and their students behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import ClusterError, FullError, RequestError
from kdbench.plan.bundle import Bundle
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.slurm import launch
from kdbench.slurm.cluster import Cluster, read
from kdbench.slurm.launch import Launcher
from kdbench.slurm.ledger import Ledger
from kdbench.slurm.reconcile import standing
from kdbench.slurm.scheduler import Limits
from kdbench.store import Store
from tests.slurm.stand_in import StandIn, noted

WIDE = {"students": "{small: {model: small_mobile, widths: [4, 6]}, other: {model: small_mobile, widths: [6, 8]}}", "repeats": "3"}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text("timeout_min: 60\nmem_gb: 4\nbigger: [{mem_gb: 8}]\noverrides: [{role: teacher, timeout_min: 600}]\n")
    return read(path)


def rows_of(plan: Plan) -> dict[str, Any]:
    return {row["id"]: row for row in plan.manifest()["cells"]}


def size(bundle: Bundle) -> float:
    """Of repeats and students: what a test can count with."""
    return sum(1 + cell.config["repeat"] for cell in bundle.cells)


class Sbatch:
    """Answers submissions as SLURM would, until it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_at: int | None = None, refusal: ClusterError | None = None):
        self.calls: list[tuple[dict[str, Any], list[tuple[Any, ...]]]] = []
        self.full_at, self.refusal, self.taken = full_at, refusal or FullError("QOSMaxSubmitJobPerUserLimit"), 0
        monkeypatch.setattr(launch, "submit", self)

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
        now = standing(store, queue or StandIn())
        jobs = launch.jobs(plan.cells.values() if cells is None else cells, rows_of(plan), on, size, launch.ladder(now.notes, on))
        settings = noted_settings(store)
        return Launcher(store, on, "tiny", settings, limits or Limits("big", 1001, None), now).launch(jobs)

    return run


def noted_settings(store: Store) -> dict[str, Any]:
    return {"data": str(store.root), "device": "cpu", "side_by_side": 16, "readers": 0, "checkpoint_every_s": None, "lost_after_s": 60.0}


def test_every_cell_is_in_one_job_and_jobs_come_longest_first(plan_of: Callable[..., Plan], cluster: Cluster) -> None:
    plan = plan_of(**WIDE)
    jobs = launch.jobs(plan.cells.values(), rows_of(plan), cluster, size, {})

    assert sorted(cell_id for job in jobs for cell_id in job.ids) == sorted(plan.cells)
    assert [job.work for job in jobs] == sorted((job.work for job in jobs), reverse=True)
    assert {job.request["timeout_min"] for job in jobs if job.bundles[0].cells[0].role == "teacher"} == {600}


def test_short_bundles_share_a_job_that_is_no_longer_than_the_longest(plan_of: Callable[..., Plan], cluster: Cluster) -> None:
    plan = plan_of(**WIDE)
    packing = replace(cluster, bundles_per_job=3, side_by_side=1)
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


def test_the_ladder_knows_what_a_cell_used_up_alone(store: Store, cluster: Cluster) -> None:
    def ended(cells: dict[str, str]) -> dict[str, Any]:
        return {"0": {"class": "x", "cells": cells}}

    noted(store, [["a", "b"]], ended=ended({"a": "host memory", "b": "raised"}), at=1)
    noted(store, [["a"]], ended=ended({"a": "host memory"}), at=2)
    noted(store, [["a"]], ended=ended({"a": "device memory"}), at=3)

    noted(store, [["c", "d"]], ended=ended({"c": "host memory"}), at=4, cluster="another.yaml")

    cluster = replace(cluster, name="cluster.yaml")
    notes = Ledger(store).notes()
    assert launch.ladder(notes[:1], cluster) == {"a": []}
    assert launch.ladder(notes, cluster) == {"a": [notes[1].request, notes[2].request]}


def test_teachers_go_first_and_each_students_array_waits_for_its_own(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch)
    plan = plan_of(teachers="{big: {model: small_mobile, widths: [8, 12]}, huge: {model: small_mobile, widths: [8, 16]}}")
    notes = launched(plan).notes

    waits = {request["slurm_dependency"]: payloads for request, payloads in sbatch.calls if "slurm_dependency" in request}
    assert set(waits) == {"afterany:101_0", "afterany:101_1"}
    for dependency, payloads in waits.items():
        teacher = notes[0].cells(int(dependency[-1]))[0]
        assert all(plan.cells[cell_id].depends == {"teacher": teacher} for _, ids, _, _ in payloads for cell_id in ids)
    alone = [payloads for request, payloads in sbatch.calls[1:] if "slurm_dependency" not in request]
    assert all(not plan.cells[cell_id].depends for payloads in alone for _, ids, _, _ in payloads for cell_id in ids)


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
    launched(plan, Limits("big", 5, None), on=replace(cluster, side_by_side=1))

    assert [len(payloads) for _, payloads in sbatch.calls] == [5, 5, 2]


def test_no_more_jobs_are_submitted_than_the_cluster_says_that_it_takes(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch)
    plan = plan_of(objectives="[ce]", repeats="12")
    done = launched(plan, Limits("big", 1001, 7), on=replace(cluster, side_by_side=1))

    assert [len(payloads) for _, payloads in sbatch.calls] == [7] and len(done.deferred) == 5
    assert "takes 7 jobs of this user" in done.why


def test_a_refusal_for_the_number_of_jobs_halves_the_array_until_it_fits(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = Sbatch(monkeypatch, full_at=8)
    plan = plan_of(objectives="[ce]", repeats="12")
    done = launched(plan, on=replace(cluster, side_by_side=1))

    assert sum(len(payloads) for _, payloads in sbatch.calls) == 8 and len(done.deferred) == 4
    assert len(Ledger(store).notes()) == len(sbatch.calls)


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
    assert failure and failure["class"] == "not granted" and "time limit is invalid (asked for: " in failure["message"]
    taught = [cell.id for cell in plan.cells.values() if cell.depends]
    assert sorted(done.refused) == sorted([teacher, *taught])
    assert all("blocked by teacher" in (store.failure(cell_id) or {})["message"] for cell_id in taught)
    assert len(sbatch.calls) == 1 and len(Ledger(store).notes()) == 1


def test_a_refusal_keeps_what_was_known_of_a_failure_and_silence_keeps_the_note(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(objectives="[ce]", repeats="1")
    (cell_id,) = plan.cells
    local.prepare(plan, store)
    store.put_failure(cell_id, {"class": "killed", "message": "as it was", "traceback": "", "last_lines": []})
    Sbatch(monkeypatch, full_at=0)
    launched(plan)
    assert store.failure(cell_id)["message"] == "as it was" and Ledger(store).notes() == []  # type: ignore[index]

    Sbatch(monkeypatch, full_at=0, refusal=ClusterError("SLURM did not answer: Socket timed out on send/recv operation"))
    with pytest.raises(ClusterError, match="timed out"):
        launched(plan)
    assert [note.job for note in Ledger(store).notes()] == [None]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
            FullError,
        ),
        (
            "sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            RequestError,
        ),
        ("sbatch: error: Batch job submission failed: Slurm temporarily unable to accept job, sleeping and retrying", FullError),
        ("sbatch: error: Batch job submission failed: Invalid job array specification", FullError),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", RequestError),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", ClusterError),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", ClusterError),
        ("", RequestError),
    ],
)
def test_what_sbatch_says_is_a_full_queue_a_wrong_request_or_silence(said: str, kind: type[ClusterError]) -> None:
    from kdbench.through_submitit import _refusal

    assert type(_refusal(said)) is kind


def test_the_note_lies_on_disk_before_sbatch_is_called(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def dies(*_: object) -> list[str]:
        seen.extend(Ledger(store).notes())
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "submit", dies)
    with pytest.raises(KeyboardInterrupt):
        launched(plan_of())
    (note,) = seen
    assert note.job is None and note.name == f"kdbench-tiny-{note.token}"
    assert Ledger(store).notes() == seen


def test_a_snapshot_is_a_copy_of_the_code_that_jobs_run_and_says_what_it_is_of(
    plan_of: Callable[..., Plan], launched: Callable[..., Any], cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess
    import sys

    sbatch = Sbatch(monkeypatch)
    note = launched(plan_of(objectives="[ce]"), on=replace(cluster, snapshot=True)).notes[0]
    request = sbatch.calls[0][0]

    copy = Path(note.code["snapshot"])
    assert request["slurm_additional_parameters"]["chdir"] == str(copy) and copy.parent == store.root / "code"
    code = "\n".join(
        [
            *request["slurm_setup"],
            f"cd {copy}",
            f"{sys.executable} -c 'import kdbench; from kdbench.run.worker import code_version; print(kdbench.__file__, code_version())'",
        ]
    )
    told = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told == [str(copy / "kdbench" / "__init__.py"), note.code["version"]]
