"""The verbs that talk to a cluster: `run --on`, `profile --on`, `cancel`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from kdbench import failure
from kdbench.errors import ClusterError
from kdbench.plan import matrix, probe
from kdbench.plan.provider import tables_of
from kdbench.plan.suite import read
from kdbench.plan.yaml import suite_name
from kdbench.run import local, verbs
from kdbench.slurm import cluster as clusters
from kdbench.slurm import submit
from kdbench.slurm.follow import Follower
from kdbench.slurm.launch import CORES
from kdbench.slurm.reconcile import queue_state
from kdbench.slurm.scheduler import Scheduler
from kdbench.slurm.submissions import Settings, Submission, Submissions
from kdbench.store import Store


def run(suite: Path, on: Path, results: Path, data: Path, checkpoint_every_s: float | None, provider: str, wait: bool, dry: bool) -> int:
    """Submit the missing cells of a suite to a cluster. Returns 0 when all is submitted or done, 1 when something is missing at the end."""
    console = Console(highlight=False, soft_wrap=True)
    log = partial(console.print, markup=False)
    cluster = clusters.read(on)
    plan = matrix.expand(read(suite))
    probes, store = probe.probe(plan), Store(results)
    local.check_ranks((cell for cell in plan.cells.values() if not store.is_done(cell.id)), cluster.ranks, f"ranks in {on}")
    local.prepare(plan, store)
    tables = tables_of(provider, plan, probes, store, on_gpu=cluster.device_of(cluster.request) == "cuda")
    settings = replace(_settings(cluster, data, checkpoint_every_s), tables=sorted(tables))
    follower = Follower(plan, store, cluster, settings, partial(probes.work_tflop, plan), log)
    in_jobs: set[str] = set()
    try:
        if wait:
            follower.wait()
        else:
            now, launched = follower.once(dry)
            done = sum(store.is_done(cell_id) for cell_id in plan.cells)
            alive = sum(cell_id in now.alive for cell_id in plan.cells)
            waiting = f", {len(launched.deferred)} wait for room in the queue: run again" if launched.deferred else ""
            now_in_jobs = f"{alive} already in jobs, {len(launched.cells)} submitted now in {launched.jobs} jobs{waiting}"
            log(f"{plan.suite.name}: {done} of {len(plan.cells)} cells done, {now_in_jobs}")
            if dry:
                return 0
            in_jobs = {*now.alive, *launched.cells, *launched.deferred}
            if (launched.submissions or launched.deferred or alive) and not launched.refused:
                command = shlex.join(["kdbench", "status", plan.suite.name, "--results", str(results)])
                log(f"`{command}` shows their state; the same command submits what is missing")
                return 0
    except KeyboardInterrupt:
        log("interrupted: the jobs continue; run the same command to follow them again")
        return 130
    return verbs.conclude(store, plan.suite.name, console, in_jobs)


def profile(suite: Path, on: Path, results: Path, data: Path) -> str:
    """Submit one job that measures the costs of a suite, after its jobs that are in the queue. Returns the job's number."""
    cluster, store, scheduler = clusters.read(on), Store(results), Scheduler()
    name = suite_name(str(suite))
    ids = store.manifest(name).ids
    cores = [CORES] if "cpus_per_task" in cluster.request else []
    request = {**cluster.request, "nodes": 1, "slurm_setup": [*cluster.request.get("slurm_setup", ()), submit.THREADS, *cores]}
    with store.submitting():
        now = queue_state(store, scheduler, scheduler.limits().cluster)
        for job in now.jobs:
            if job.submission.kind == "profile" and job.submission.suite == name:
                raise ClusterError(f"{job} measures the costs of {name} already; `kdbench cancel {shlex.quote(name)}` ends it")
        settings = _settings(cluster, data, None, device=cluster.device_of(request), suite=str(suite.resolve()))
        submission = Submission(
            kind="profile",
            suite=name,
            token=Submissions.token([]),
            cluster=cluster.name,
            slurm=scheduler.limits().cluster,
            request=request,
            settings=settings,
            elements=[[[]]],
            after=sorted({job.id for cell_id, job in now.alive.items() if cell_id in ids and job.is_live}),
        )
        return str(submit.put(store, submission).job)


def _settings(cluster: clusters.Cluster, data: Path, checkpoint_every_s: float | None, device: str = "cpu", suite: str = "") -> Settings:
    return Settings(
        data=str(data.resolve()),
        device=device,
        side_by_side=cluster.students_side_by_side,
        checkpoint_every_s=cluster.checkpoint_every_s if checkpoint_every_s is None else checkpoint_every_s,
        lost_after_s=cluster.lost_after_s,
        suite=suite,
    )


def cancel(results: Path, suite: str, cell: str | None) -> int:
    """Cancel the jobs of a suite, or of one cell; other cells of that cell's job are submitted again. Returns how many were cancelled.
    Raises ClusterError: SLURM refuses to cancel some of them; failures are written for those that it did cancel."""
    store, scheduler = Store(results), Scheduler()
    name = suite_name(suite)
    mine = store.manifest(name).ids if cell is None else {store.find(cell)}
    with store.submitting():
        now = queue_state(store, scheduler, scheduler.limits().cluster)
        hit = {job.id: job for cell_id, job in now.alive.items() if cell_id in mine and job.is_live}
        if cell is None:
            hit |= {job.id: job for job in now.jobs if job.is_live and (job.submission.kind, job.submission.suite) == ("profile", name)}
        lost = [job for job, its_suite in now.lost.items() if cell is None and its_suite == name]
        if not hit and not lost:
            return 0
        jobs, left = [*hit, *lost], []
        if why := scheduler.cancel(jobs):
            snapshot = scheduler.snapshot(jobs)
            live = {job for job, info in snapshot.jobs.items() if info.is_live and info.state != "COMPLETING"}
            left = [job for job in jobs if job in live or not snapshot.answered]
        cancelled = {job: one for job, one in hit.items() if job not in left}
        for job, one in cancelled.items():
            for cell_id in one.submission.cells(one.index):
                if cell_id in mine and not store.is_done(cell_id):
                    failure.put(store, cell_id, failure.ended("cancelled", f"job {job} was cancelled by `kdbench cancel`", (), "", job))
    for job, one in cancelled.items():
        others = [other for other in one.submission.cells(one.index) if other not in mine and not store.is_done(other)]
        if others:
            submit.again(store, one.submission, one.index, others, after=[job])
    if left:
        raise ClusterError(f"SLURM does not cancel {', '.join(left)}: {why}")
    return len(hit) + len(lost)
