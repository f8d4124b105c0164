"""Killed anywhere and resumed, a cell's result is that of an undisturbed run, and at most one epoch was trained twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.store import Store

EPOCHS = 5
SUITE = {
    "recipe": f"{{name: short, epochs: {EPOCHS}, batch_size: 16, lr: 0.02, milestones: [3], mixup: 0.8, cutmix: 1, random_erasing: 0.3, ema: 0.9}}",
    "students": "{drops: {model: cifar_resnet, depth: 8, widths: [8, 8, 8, 16], dropout: 0.3, drop_path: 0.2}}",
    "objectives": "[kd, 'cc:crd', mlkd]",
    "repeats": "1",
}

VICTIM = """
import os, random, signal, sys, threading
from pathlib import Path
from kdbench import store as stores
from kdbench.train import checkpoint, loop, worker
from kdbench.train.member import Member

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(owner, name, number):
    real, seen = getattr(owner, name), []
    def counted(*arguments, **options):
        seen.append(1)
        if len(seen) == number:
            die()
        return real(*arguments, **options)
    setattr(owner, name, counted)

where, chance = sys.argv[1], random.Random(int(sys.argv[2]))
if where == "in the middle of an epoch":
    at_call(Member, "step", 11)
elif where.startswith("at step "):
    at_call(Member, "step", int(where.removeprefix("at step ")))
elif where == "inside a checkpoint's write":
    real = os.fsync
    seen = []
    def fsync(descriptor):
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):
            seen.append(1)
            if len(seen) == 3:
                os.ftruncate(descriptor, 1000)
                die()
        real(descriptor)
    os.fsync = fsync
elif where == "during evaluation":
    at_call(loop, "predict_all", 2)
elif where == "between weights and record":
    at_call(stores.Store, "put_record", 1)
else:
    # Some time after some step: inside it, between steps, in an evaluation, in a write, as it comes.
    number, delay_s = chance.randint(1, 24), chance.uniform(0, 0.03)
    real, seen = Member.step, []
    def step(self, *arguments):
        seen.append(1)
        if len(seen) == number:
            threading.Timer(delay_s, die).start()
        return real(self, *arguments)
    Member.step = step
sys.exit(worker.main([*sys.argv[3:], "--checkpoint-every", "0", "--device", "cpu"]))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("undisturbed") / "results")


@pytest.mark.parametrize(
    ("where", "seed"),
    [
        ("in the middle of an epoch", 0),
        ("between weights and record", 0),
        *(pytest.param(where, 0, marks=pytest.mark.slow) for where in ("inside a checkpoint's write", "during evaluation")),
        *(pytest.param("at any moment", seed, marks=pytest.mark.slow) for seed in range(5)),
    ],
)
def test_a_killed_bundle_resumes_to_the_result_of_an_undisturbed_one(
    where: str, seed: int, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, undisturbed: Store, tmp_path: Path
) -> None:
    plan = plan_of(**SUITE)
    if not undisturbed.suites():
        train(plan, store=undisturbed)
    train(plan, [plan.teachers[0].cell.id])
    local.prepare(plan, store)
    ids = [row.cell.id for row in plan.rows if row.role == "student"]
    script = tmp_path / "victim.py"
    script.write_text(VICTIM)

    victim = subprocess.run([sys.executable, str(script), where, str(seed), str(store.root), *ids], capture_output=True, text=True)
    assert victim.returncode == -9, victim.stdout + victim.stderr
    assert not all(store.is_done(cell_id) for cell_id in ids)

    assert train(plan, ids, checkpoint_every_s=0.0) == 0
    for cell_id in ids:
        one, other = store.record(cell_id), undisturbed.record(cell_id)
        assert one and other and one.result == other.result
        assert len(store.epochs_seen(cell_id)) <= EPOCHS + 1
        assert not list(store.cell_folder(cell_id).glob("checkpoint*"))


def test_a_worker_that_is_asked_to_stop_saves_in_the_middle_of_an_epoch_and_no_step_is_trained_twice(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, undisturbed: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.train.member import Member

    plan = plan_of(**SUITE)
    if not undisturbed.suites():
        train(plan, store=undisturbed)
    train(plan, [plan.teachers[0].cell.id])
    ids = [row.cell.id for row in plan.rows if row.role == "student"]
    steps: list[int] = []
    real = Member.step

    def counted(self: Member, *arguments: object) -> None:
        steps.append(1)
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Member, "step", counted)
    asked = iter([False] * 7 + [True])
    assert train(plan, ids, stop=lambda: next(asked)) == 75
    assert len(steps) == 7 * len(ids)

    train(plan, ids)
    assert len(steps) == EPOCHS * 3 * len(ids)
    for cell_id in ids:
        one, other = store.record(cell_id), undisturbed.record(cell_id)
        assert one and other and one.result == other.result
