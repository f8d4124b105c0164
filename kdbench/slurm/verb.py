"""The verbs that speak with a cluster: `run --on`, `profile --on`, `cancel`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from kdbench.errors import ClusterError
from kdbench.plan import matrix, probe
from kdbench.plan.bundle import Bundle, work_tflop
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read
from kdbench.plan.yaml import suite_name
from kdbench.report.write import report
from kdbench.run import failure, local, watch
from kdbench.slurm import cluster as clusters
from kdbench.slurm import launch
from kdbench.slurm.follow import Follower
from kdbench.slurm.ledger import PREFIX, Json
from kdbench.slurm.reconcile import standing
from kdbench.slurm.scheduler import Scheduler
from kdbench.store import Store
from kdbench.through_submitit import submit


def run(suite: Path, on: Path, results: Path, data: Path, checkpoint_every_s: float | None, wait: bool, dry: bool) -> int:
    """Submit what a suite wants to a cluster. Returns 0 when all is submitted or done, 1 when something is missing at the end."""
    console = Console(highlight=False, soft_wrap=True)

    def told(text: str) -> None:
        console.print(text, markup=False)

    cluster = clusters.read(on)
    plan = matrix.expand(read(suite))
    work = _work(plan)
    store = Store(results)
    local.prepare(plan, store)
    follower = Follower(plan, store, cluster, _settings(cluster, data, checkpoint_every_s), work, told)
    on_their_way: set[str] = set()
    try:
        if wait:
            follower.wait()
        else:
            now, launched = follower.once(dry)
            done = sum(store.is_done(cell_id) for cell_id in plan.cells)
            alive = sum(cell_id in now.alive for cell_id in plan.cells)
            waiting = f", {len(launched.deferred)} wait for room in the queue: run again" if launched.deferred else ""
            told(
                f"{plan.suite.name}: {done} of {len(plan.cells)} cells done, {alive} were in jobs already, "
                f"{len(launched.cells)} submitted now in {launched.jobs} jobs{waiting}"
            )
            if dry:
                return 0
            on_their_way = {*now.alive, *launched.cells, *launched.deferred}
            if (launched.notes or launched.deferred or alive) and not launched.refused:
                told(
                    f"`kdbench status {plan.suite.name} --results {results}` tells how they fare; the same command submits what is missing"
                )
                return 0
    except KeyboardInterrupt:
        told("interrupted: the jobs go on; the same command follows them again")
        return 130
    report(store, [plan.suite.name], sys.stdout)
    missing = watch.why_missing(store, store.manifest(plan.suite.name), on_their_way)
    if missing:
        told(missing)
    return 1 if missing else 0


def profile(suite: Path, on: Path, results: Path, data: Path) -> str:
    """Submit one job that measures the costs of a suite, after its jobs that are still there. Returns the job's number."""
    from kdbench.run.verb import profile as measure

    cluster, store = clusters.read(on), Store(results)
    name = suite_name(str(suite))
    ids = {row["id"] for row in store.manifest(name)["cells"]}
    scheduler = Scheduler()
    now = standing(store, scheduler, scheduler.limits().cluster, write=False)
    after = sorted({place.job for cell_id, place in now.alive.items() if cell_id in ids and place.seen and place.seen.is_live})
    request = {
        **cluster.request,
        "name": f"{PREFIX}-{name}-profile",
        "slurm_setup": [*cluster.request.get("slurm_setup", ()), launch.THREADS],
    }
    if after:
        request["slurm_dependency"] = "afterany:" + ":".join(after)
    payload = (suite.resolve(), results.resolve(), data.resolve(), cluster.device_of(cluster.request))
    return submit(store.suite_folder(name).resolve() / "jobs" / "profile", request, measure, [payload])[0]


def _settings(cluster: clusters.Cluster, data: Path, checkpoint_every_s: float | None) -> Json:
    return {
        "data": str(data.resolve()),
        "side_by_side": cluster.side_by_side,
        "checkpoint_every_s": cluster.checkpoint_every_s if checkpoint_every_s is None else checkpoint_every_s,
        "lost_after_s": cluster.lost_after_s,
    }


def _work(plan: Plan) -> Callable[[Bundle], float]:
    """A bundle's work in TFLOP, as `plan` estimates it. Raises SuiteError with every pair that cannot be trained."""
    probes = probe.probe(plan)

    def work(bundle: Bundle) -> float:
        teacher = plan.cells[bundle.teacher].config["student"] if bundle.teacher else None
        # Without a known number of images, bundles are still told apart by their nets and epochs.
        return work_tflop(bundle, probes.n_train or 1, probes.flop_per_image, teacher)

    return work


def cancel(results: Path, suite: str, cell: str | None) -> int:
    """Cancel the jobs of a suite, or of one cell; what shared a job with that cell is submitted again. Returns how many were cancelled."""
    store, scheduler = Store(results), Scheduler()
    manifest = store.manifest(suite_name(suite))
    mine = {row["id"] for row in manifest["cells"]} if cell is None else {store.find(cell)}
    with store.submitting():
        now = standing(store, scheduler, scheduler.limits().cluster)
        hit = {place.job: place for cell_id, place in now.alive.items() if cell_id in mine and place.seen and place.seen.is_live}
        if not hit:
            return 0
        for place in hit.values():
            for cell_id in place.note.cells(place.index):
                if cell_id in mine and not store.is_done(cell_id):
                    failure.put(
                        store, cell_id, failure.ended("cancelled", f"job {place.job} was cancelled by `kdbench cancel`", (), "", place.job)
                    )
        if why := scheduler.cancel(list(hit)):
            raise ClusterError(f"SLURM does not cancel {', '.join(hit)}: {why}")
    for place in hit.values():
        others = [one for one in place.note.cells(place.index) if one not in mine and not store.is_done(one)]
        if others:
            launch.again(store, place.note, place.index, others, after=[place.job])
    return len(hit)
