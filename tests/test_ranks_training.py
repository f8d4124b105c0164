"""Whole trainings by several ranks: the results are those of one process, however they are interrupted."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.errors import UsageError
from kdbench.plan.matrix import Plan
from kdbench.process import lives
from kdbench.run import local
from kdbench.store import Store
from kdbench.train import ranks as talk
from kdbench.train.member import Member

from .ranks import in_worker

SUITE = {
    # 50 images in batches of 16: the last one has 2, and so some of its 4 groups none.
    "dataset": "{name: digits, per_class: 5}",
    "recipe": "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1], bn_groups: 4}",
    "students": "{small: {model: cifar_resnet, depth: 8, widths: [4, 4, 4, 8], dropout: 0.2}}",
    "objectives": "{ce: , kd: , sp: , rkd: , cka: {weight: 1, weight_from: assumed}, rcka: {weight: 1, weight_from: assumed}}",
    "repeats": "1",
}
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("alone") / "results")


@pytest.fixture
def plan(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, alone: Store) -> Plan:
    """With a trained teacher in the store, and all trained by one process in the other."""
    made = plan_of(**SUITE)
    if not alone.suites():
        assert train(made, store=alone) == 0
    assert train(made, [made.teachers[0].cell.id]) == 0
    local.prepare(made, store)
    return made


def students(plan: Plan) -> list[str]:
    return [row.cell.id for row in plan.rows if row.role == "student"]


def trained(store: Store, ids: list[str], world: int, *more: str, before: Callable[[], None] = lambda: None) -> int | None:
    arguments = [str(store.root), *ids, "--data", str(store.root.parent), "--device", "cpu", "--checkpoint-every", "0", *more]
    return in_worker([*arguments, "--ranks", str(world)], before)


def differing(store: Store, alone: Store, ids: list[str]) -> list[str]:
    records = {cell_id: (store.record(cell_id), alone.record(cell_id)) for cell_id in ids}
    return [cell_id for cell_id, (one, other) in records.items() if not one or not other or one.result != other.result]


def of(plan: Plan, objective: str) -> str:
    return next(row.cell.id for row in plan.rows if row.objective == objective and row.role == "student")


@pytest.mark.parametrize("world", [2, 4])
def test_several_ranks_give_the_bits_of_one_process(world: int, plan: Plan, store: Store, alone: Store) -> None:
    teacher = plan.teachers[0].cell.id
    other = Store(store.root / "other")
    local.prepare(plan, other)
    assert trained(other, [teacher], world) == 0
    assert trained(other, students(plan), world) == 0
    assert differing(other, alone, list(plan.cells)) == []
    record = other.record(teacher)
    assert record and record.circumstance["ranks"] == world


EVERYTHING = {
    **SUITE,
    "dataset": "{name: digits, per_class: 6}",
    "recipe": "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1], bn_groups: 4, mixup: 0.8, cutmix: 1, random_erasing: 0.3,"
    " ema: 0.9}",
    "teachers": "{big: {model: cifar_resnet, depth: 8, widths: [4, 4, 8, 8], min_top1: 0.0}}",
    "objectives": "{'kd:dot': , mlkd: , 'fitnet:crd': , pkt: , both: {terms: [{loss: kd, weight: 1, weight_from: assumed},"
    " {loss: sp, weight: 10, weight_from: assumed}]}}",
    "+kd": None,
}


@pytest.mark.slow
def test_mixed_images_averages_second_views_and_two_momenta_have_the_bits_of_one_process(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    made, other = plan_of(**EVERYTHING), Store(tmp_path / "other")
    assert train(made, store=store) == 0
    local.prepare(made, other)
    for ids in ([made.teachers[0].cell.id], students(made)):
        assert trained(other, ids, 2) == 0
    assert differing(other, store, list(made.cells)) == []


@pytest.mark.slow
@pytest.mark.parametrize("pairing", ["shuffled", "shuffled_globally", "shuffled_in_class"])
def test_controls_with_other_images_have_the_bits_of_one_process(
    pairing: str, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    objectives = f"{{kd: {{pairing: {pairing}}}, sp: {{pairing: {pairing}}}}}"
    made, other = plan_of(**{**SUITE, "objectives": objectives}), Store(tmp_path / "other")
    assert train(made, store=store) == 0
    local.prepare(made, other)
    for ids in ([made.teachers[0].cell.id], students(made)):
        assert trained(other, ids, 2) == 0
    assert differing(other, store, list(made.cells)) == []


def test_a_training_that_was_stopped_goes_on_with_another_number_of_ranks(plan: Plan, store: Store, alone: Store) -> None:
    ids = students(plan)
    for world, steps in ((2, 2), (1, 1), (4, 2)):
        assert trained(store, ids, world, "--steps", str(steps)) == 75
    assert trained(store, ids, 2) == 0
    assert differing(store, alone, ids) == []


def test_three_ranks_cannot_share_four_groups_and_the_message_says_which_can(plan: Plan, store: Store) -> None:
    with pytest.raises(UsageError, match=r"--ranks: 3 ranks cannot share the 4 groups .* use 1, 2 or 4 ranks"):
        local.check_ranks(plan.cells.values(), 3)
    assert trained(store, students(plan)[:1], 3) == 1
    failure = store.failure(students(plan)[0])
    assert failure and failure.kind == "refused" and "use 1, 2 or 4 ranks" in failure.message


def spoil(cell_id: str, rank: int, step: int, how: Callable[[], Any]) -> Callable[[], None]:
    """Change the forward pass of one student on one rank from one step on: multiply its losses by what `how` gives."""

    def before() -> None:
        real = Member.forward

        def forward(self: Member, inputs: Any, targets: Any, batch: Any) -> Any:
            losses, taps = real(self, inputs, targets, batch)
            if self.cell.id == cell_id and self.ranks.rank == rank and batch.step >= step:
                losses = {name: value * how() for name, value in losses.items()}
            return losses, taps

        Member.forward = forward  # type: ignore[method-assign]

    return before


def test_a_student_that_is_not_finite_on_one_rank_leaves_on_all_and_the_others_keep_their_bits(
    plan: Plan, store: Store, alone: Store
) -> None:
    bad = of(plan, "kd")
    assert trained(store, students(plan), 2, before=spoil(bad, 1, 1, lambda: float("nan"))) == 0
    record = store.record(bad)
    assert record and record.outcome == "diverged" and record.result["diverged_at_step"] == 1
    assert differing(store, alone, [cell_id for cell_id in students(plan) if cell_id != bad]) == []


def test_an_error_on_one_rank_is_that_students_failure_with_its_rank(plan: Plan, store: Store, alone: Store) -> None:
    bad = of(plan, "sp")

    def fail() -> None:
        raise ValueError("too few of them")

    assert trained(store, students(plan), 2, before=spoil(bad, 1, 2, fail)) == 1
    failure = store.failure(bad)
    assert failure and failure.message == "rank 1: ValueError: too few of them" and "in fail" in failure.traceback
    assert differing(store, alone, [cell_id for cell_id in students(plan) if cell_id != bad]) == []


def at_talk(number: int, ranks: tuple[int, ...], act: Callable[[], Any], pids: Path) -> Callable[[], None]:
    """Do something on some ranks before their sum of gradients of this number, and note the process number of every rank."""

    def before() -> None:
        real, began, seen = talk.Together.total, talk.Together.__init__, list[int]()

        def init(self: talk.Together, *arguments: Any) -> None:
            with pids.open("a") as file:
                file.write(f"{os.getpid()}\n")
            began(self, *arguments)

        def total(self: talk.Together, *arguments: Any) -> Any:
            seen.append(1)
            if len(seen) == number and self.rank in ranks:
                act()
            return real(self, *arguments)

        talk.Together.total, talk.Together.__init__ = total, init  # type: ignore[method-assign]

    return before


def all_end(pids: Path) -> bool:
    until = time.monotonic() + PATIENCE_S
    numbers = [int(line) for line in pids.read_text().split()] if pids.exists() else []
    while (left := [pid for pid in numbers if lives(pid, None)]) and time.monotonic() < until:
        time.sleep(0.1)
    return not left


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("ranks", [(1,), (0,), (0, 1)], ids=["a follower", "the first", "all"])
def test_killed_ranks_leave_no_process_and_their_cells_resume_to_the_same_bits(
    ranks: tuple[int, ...], plan: Plan, store: Store, alone: Store, tmp_path: Path
) -> None:
    ids, pids = students(plan), tmp_path / "pids"
    status = trained(store, ids, 2, before=at_talk(27, ranks, die, pids))
    assert status == (1 if 0 not in ranks else -9)
    assert all_end(pids) and not any(store.failure(cell_id) for cell_id in ids)
    assert not all(store.is_done(cell_id) for cell_id in ids)
    assert trained(store, ids, 2) == 0
    assert differing(store, alone, ids) == []


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2,), (0, 1, 2)], ids=["a follower", "all"])
def test_three_ranks_that_are_killed_resume_to_the_bits_of_three_that_were_not(
    ranks: tuple[int, ...], plan_of: Callable[..., Plan], store: Store, tmp_path: Path
) -> None:
    made, whole = (
        plan_of(**{**SUITE, "recipe": SUITE["recipe"].replace("bn_groups: 4", "bn_groups: 3"), "numerics": "fast"}),
        Store(tmp_path / "whole"),
    )
    for place in (store, whole):
        local.prepare(made, place)
        assert trained(place, [made.teachers[0].cell.id], 3) == 0
    assert trained(whole, students(made), 3) == 0
    assert trained(store, students(made), 3, before=at_talk(27, ranks, die, tmp_path / "pids")) != 0
    assert all_end(tmp_path / "pids") and not all(store.is_done(cell_id) for cell_id in students(made))
    assert trained(store, students(made), 3) == 0
    assert differing(store, whole, list(made.cells)) == []


def test_images_in_files_are_the_same_for_one_and_two_ranks(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    from PIL import Image

    draws = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for name in ("a", "b", "c"):
            folder = store.root.parent / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    made = plan_of(**{**SUITE, "dataset": "{name: folder, folder: pictures, classes: 3, size: 8}", "objectives": "[ce, sp]"})
    other = Store(store.root.parent / "other")
    assert train(made) == 0
    local.prepare(made, other)
    for ids in ([made.teachers[0].cell.id], students(made)):
        assert trained(other, ids, 2, "--readers", "2") == 0
    assert differing(other, store, list(made.cells)) == []


def test_killed_between_the_checkpoints_of_two_students_they_resume_to_the_same_bits(plan: Plan, store: Store, alone: Store) -> None:
    ids = students(plan)

    def before() -> None:
        from kdbench.train.checkpoint import Saver

        real, seen = Saver.save, list[int]()

        def save(self: Saver, *arguments: Any) -> None:
            seen.append(1)
            if len(seen) == 3:
                die()
            real(self, *arguments)

        Saver.save = save  # type: ignore[method-assign]

    assert trained(store, ids, 2, before=before) == -9
    positions = {len(list(store.cell_folder(cell_id).glob("checkpoint*"))) for cell_id in ids}
    assert positions == {0, 1}
    assert trained(store, ids, 2) == 0
    assert differing(store, alone, ids) == []


def test_a_rank_that_raises_where_nothing_is_agreed_is_named_with_its_own_error(plan: Plan, store: Store, tmp_path: Path) -> None:
    ids, pids = students(plan), tmp_path / "pids"

    def fail() -> None:
        raise ValueError("no such number")

    assert trained(store, ids, 2, before=at_talk(27, (1,), fail, pids)) == 1
    failures = [store.failure(cell_id) for cell_id in ids if not store.is_done(cell_id)]
    assert failures and all(one and one.message == "rank 1: ValueError: no such number" for one in failures)
    assert all_end(pids) and not list((store.root / "meetings").iterdir())


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
def test_a_signal_at_any_moment_stops_all_ranks_at_one_step(seed: int, plan: Plan, store: Store, alone: Store, tmp_path: Path) -> None:
    ids, pids, chance = students(plan), tmp_path / "pids", random.Random(seed)
    who, which = chance.choice([(0,), (1,), (0, 1)]), chance.choice([signal.SIGTERM, signal.SIGUSR2])
    number, delay_s = chance.randint(0, 45), chance.uniform(0, 0.05)

    def send() -> None:
        threading.Timer(delay_s, os.kill, (os.getpid(), which)).start()

    before = at_talk(number, who, send, pids)
    if number == 0:  # before they meet
        before = lambda: threading.Timer(delay_s, os.kill, (os.getpid(), which)).start()  # noqa: E731
    began = time.monotonic()
    status = trained(store, ids, 2, before=before)
    assert time.monotonic() - began < 2 * PATIENCE_S and all_end(pids)
    if status == 75:
        from kdbench.train.checkpoint import checkpoint

        left = [cell_id for cell_id in ids if not store.is_done(cell_id)]
        saved = [checkpoint(store, store.cell(cell_id)) for cell_id in left]
        assert len({one["position"] for one in saved if one}) <= 1
    else:
        assert status in (0, 1, -which)
    assert trained(store, ids, 2) == 0
    assert differing(store, alone, ids) == []
