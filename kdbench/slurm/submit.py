"""Calling sbatch: the submission is on disk before, so that nothing is submitted twice and no job is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from kdbench import failure, submitit_adapter
from kdbench.errors import ClusterError, QueueFullError, RequestError
from kdbench.slurm.reconcile import FUNCTIONS, payload
from kdbench.slurm.submissions import Submission, Submissions
from kdbench.store import Store

THREADS = "export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1"
"""One core a process, as on a single machine."""


def put(store: Store, submission: Submission) -> Submission:
    """Write the submission, call sbatch, add SLURM's number to it. If this is killed in between, the job is found by its name. Raises
    RequestError or QueueFullError: SLURM refuses; the submission is removed then, and former failures stay. Raises ClusterError: it does
    not answer; the submission stays, since the jobs may be there."""
    submissions = Submissions(store)
    submissions.write(submission)
    request = {**submission.request, "name": submission.name}
    if submission.after:
        request["slurm_dependency"] = "afterany:" + ":".join(submission.after)
    payloads = [payload(submission, index, store) for index in range(len(submission.elements))]
    former = {cell_id: found for _, cells, _, _ in payloads for cell_id in cells if (found := store.failure(cell_id))}
    for cell_id in former:
        store.clear_failure(cell_id)
    folder = submissions.folder(submission)
    try:
        jobs = submitit_adapter.submit(folder.resolve(), request, FUNCTIONS[submission.kind], payloads)
    except ClusterError as error:
        if isinstance(error, (RequestError, QueueFullError)):
            store.remove_tree(folder)
        for cell_id, found in former.items():
            failure.put(store, cell_id, found)
        raise
    submitted = replace(submission, job=jobs[0].split("_")[0], at=time.time())
    submissions.write(submitted)
    return submitted


def again(store: Store, old: Submission, index: int, cells: Sequence[str], after: Sequence[str], later: bool = False) -> Submission:
    """Submit cells of a submission's element again, as a job of their own. `later`: after a delay that grows each time. Raises
    KdbenchError: SLURM refuses, or another process held the right to submit."""
    request = dict(old.request)
    if later:
        begin = f"now+{min(60 * 2**old.moves, 3600)}"
        request["slurm_additional_parameters"] = {**(request.get("slurm_additional_parameters") or {}), "begin": begin}
    bundles = [[cell_id for cell_id in bundle if cell_id in cells] for bundle in old.elements[index]]
    elements = [[bundle for bundle in bundles if bundle]]
    new = replace(old, token=Submissions.token(elements), elements=elements, moves=old.moves + 1, user=str(os.getuid()), job=None, ended={})
    with store.submitting():
        return put(store, replace(new, request=request, after=[job for job in after if job], at=time.time()))
