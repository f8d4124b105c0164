"""A second view of each image, for the losses that need one: which images, which draws, and what it leaves as it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from kdbench import parts
from kdbench.datasets import _fixmatch
from kdbench.datasets._augment import RandAugment
from kdbench.datasets.folder import Folder
from kdbench.errors import LossError, RefusedError, SuiteError
from kdbench.losses._base import Batch, Loss, Pair, Taps
from kdbench.plan import probe
from kdbench.plan.bundle import Bundle
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.train import check, profile
from kdbench.train.build import Setup
from kdbench.train.objective import Objective
from kdbench.train.stream import BatchPlan
from kdbench.train.teacher import LiveTeacher

OWN = """
from kdbench import Loss
from kdbench.datasets.digits import Digits


class Two(Loss):
    needs = frozenset({"logits", "second_view"})
    couples = "sample"
    augmentation = "rand-m9-n2"

    def forward(self, student, teacher, batch):
        first = (student.logits - teacher.logits).square().mean()
        return {"first": first, "second": (student.second_view.logits - teacher.second_view.logits).square().mean()}


class Other(Two):
    augmentation = "fixmatch"
    task_of_both_views = True


class Wrong(Two):
    augmentation = "rnad-m9"


class Raises(Two):
    def forward(self, student, teacher, batch):
        if batch.step == 3:
            raise RuntimeError("half way")
        return super().forward(student, teacher, batch)


class Unlisted(Two):
    def forward(self, student, teacher, batch):
        return student.second_view.pooled.mean()


class Plain(Digits):
    augments = False
"""
ALL = "{controls: [zero, untrained, shuffled, shuffled_globally, shuffled_in_class]}"
BUNDLE = f"{{ce: , kd: , mlkd: {ALL}, 'mlkd:lskd': , two: {{loss: 'own.py:Two', weight: 1}}, raises: {{loss: 'own.py:Raises', weight: 1}}}}"
RECIPE = "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1], class_uniform: 2, rand_augment: rand-m5, random_erasing: 0.5}"


@pytest.fixture(autouse=True)
def own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)


def records(plan: Plan, store: Store) -> dict[str | None, Any]:
    found = {row.objective: store.record(row.cell.id) for row in plan.rows if row.role == "student"}
    return {name: record and record.result for name, record in found.items()}


def test_second_views_give_the_same_in_a_bundle_alone_and_after_a_stop_and_change_no_other_row(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    plan = plan_of(recipe=RECIPE, objectives=BUNDLE, repeats="1")
    together, alone, stopped, without = (Store(tmp_path / name) for name in ("together", "alone", "stopped", "without"))
    train(plan, store=together)
    found = records(plan, together)
    assert [name for name, result in found.items() if result is None] == ["raises"]
    digests = [result["weights_digest"] for name, result in found.items() if result]
    assert len(set(digests)) == len(digests)

    for row in sorted((row for row in plan.rows if row.objective != "raises"), key=lambda row: len(row.cell.depends)):
        train(plan, [row.cell.id], store=alone)
    expected = {name: result for name, result in found.items() if name != "raises"}
    assert {name: result for name, result in records(plan, alone).items() if name != "raises"} == expected

    asked = itertools.chain([False] * 4, [True], [False] * 4, [True], itertools.repeat(False))
    wanted = [row.cell.id for row in plan.rows if row.objective != "raises"]
    while left := [cell_id for cell_id in wanted if not stopped.is_done(cell_id)]:
        train(plan, left, store=stopped, stop=lambda: next(asked))
    assert {name: result for name, result in records(plan, stopped).items() if name != "raises"} == expected

    plain = plan_of(recipe=RECIPE, objectives="[ce, kd]", repeats="1")
    assert train(plain, store=without) == 0
    assert records(plain, without) == {name: found[name] for name in ("ce", "kd")}


def test_the_teacher_sees_each_second_view_once_a_step_and_none_where_no_loss_needs_it(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor] = []
    plain = LiveTeacher.taps

    def taps(self: LiveTeacher, inputs: Tensor, place: Any = None) -> Taps:
        asked.append(inputs.clone())
        return plain(self, inputs, place)

    two = "{loss: 'own.py:Two', weight: 1"
    monkeypatch.setattr(LiveTeacher, "taps", taps)
    for place, (objectives, passes) in enumerate(
        (
            ("[ce, kd]", 1),
            ("[kd, mlkd, 'mlkd:imagenet']", 2),
            (f"{{kd: , mlkd: , two: {two}}}}}", 3),
            ("{mlkd: {controls: [shuffled, shuffled_in_class]}}", 4),
        )
    ):
        asked.clear()
        plan = plan_of(objectives=objectives, repeats="1", dataset="{name: digits, per_class: 4}")
        assert train(plan, store=Store(tmp_path / str(place))) == 0
        epochs, steps = 3, 3
        assert len(asked) == passes * epochs * steps, objectives


def setup_of(plan: Plan, folder: Path, objective: str = "mlkd") -> tuple[Any, Setup]:
    cell = next(row.cell for row in plan.rows if row.objective == objective)
    return cell, Setup.of(cell, folder, torch.device("cpu"))


def test_a_second_view_is_of_the_same_images_in_the_same_order_with_draws_of_its_own(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan = plan_of(objectives="[mlkd]", repeats="1", recipe=RECIPE)
    cell, setup = setup_of(plan, tmp_path)
    first = BatchPlan.of(cell.config, setup.data)
    second, other = first.second_views("fixmatch"), first.second_views("rand-m9-n2")
    for pairing in ("matched", "shuffled_in_class"):
        batches = [list(one.epoch(1, pairing)) for one in (first, second, other)]
        for (index, views), (same, own), (again, shared) in zip(*batches, strict=True):
            assert (index == same).all() and (index == again).all()
            # Crops and flips do not depend on how a view is augmented.
            assert (views != own).all() and (own == shared).all()
    views = [np.concatenate([views for _, views in second.epoch(epoch)]) for epoch in (0, 0, 1)]
    assert (views[0] == views[1]).all() and (views[0] != views[2]).any()
    # The recipe's own augmentation is that of the first view.
    index, drawn = next(second.epoch(0))
    bare = setup.data.augmented(None, 0.0).augmented("fixmatch", 0.0)
    assert torch.equal(second.data.batch("train", index, drawn)[0], bare.batch("train", index, drawn)[0])


def test_readers_in_any_number_give_the_same_second_views(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for label in ("ant", "bee"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "set" / split / label / f"{number}.png")
    data = Folder(folder="set", classes=2, size=24).load(tmp_path).augmented("rand-m9", 0.5)
    found = []
    for readers in (0, 1, 2):
        second = data.augmented("fixmatch", 0.0)
        second.read_with(readers)
        views = second.draw_views(np.random.Generator(np.random.Philox(7)))
        wanted = [(index, views[index]) for index in np.array_split(np.arange(12), 3)]
        found.append(torch.cat([inputs for inputs, _ in second.batches("train", wanted)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    bare = Folder(folder="set", classes=2, size=24).load(tmp_path).augmented("fixmatch", 0.0)
    assert torch.equal(found[0], torch.cat([inputs for inputs, _ in bare.batches("train", wanted)]))


def test_fixmatch_is_two_operations_and_a_grey_square_by_the_draws_of_the_view() -> None:
    image = torch.as_tensor(np.random.default_rng(1).integers(0, 256, (3, 20, 24), dtype=np.uint8))
    for channels in (1, 3):
        change = RandAugment("fixmatch", 20, (0.5,) * channels)
        seen = torch.stack([change(image[:channels], view) for view in range(60)])
        assert seen.dtype == torch.uint8 and torch.equal(seen[3], change(image[:channels], 3)) and len(seen.flatten(1).unique(dim=0)) > 55
        grey = (seen == torch.tensor(_fixmatch.GREY, dtype=torch.uint8)[:channels, None, None]).all(1).float().mean((1, 2))
        assert 0.01 < grey.mean() < 0.25 and grey.max() <= 0.5 * (12 + 1) ** 2 / 240
    assert len(_fixmatch.OPERATIONS) == 14
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    for (operation, least, most), name in zip(_fixmatch.OPERATIONS, NAMES, strict=True):
        for value in (least, (least + most) / 2, most):
            assert operation(picture, value).size == picture.size and (name != "none" or operation(picture, value) is picture)
    moved = np.asarray(_fixmatch.OPERATIONS[-2][0](picture, 0.25))
    assert (moved[:, :18] == np.asarray(picture)[:, 6:]).all() and not moved[:, 18:].any()


NAMES = (
    *("autocontrast", "brightness", "colour", "contrast", "equalize", "none", "posterize"),
    *("rotate", "sharpness", "shear x", "shear y", "solarize", "translate x", "translate y"),
)


def test_batch_norm_has_statistics_of_each_view_and_the_task_has_the_loss_of_both(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = plan_of(objectives="{mlkd: , two: {loss: 'own.py:Two', weight: 1}}", repeats="1")
    train(plan, [plan.teachers[0].cell.id])
    for objective in ("mlkd", "two"):
        cell, setup = setup_of(plan, tmp_path, objective)
        setup = setup.with_teacher(store, cell)
        member, stream = setup.member(cell), check._stream(cell, setup)
        augmentation = member.objective.augmentation
        assert setup.teacher and augmentation == ("fixmatch" if objective == "mlkd" else "rand-m9-n2")
        inputs, targets, batch, _ = check._of_two_views(cell, setup, stream, augmentation)[0]
        seen = batch.second_views["matched", augmentation][0]
        assert seen.shape == inputs.shape and not torch.equal(seen, inputs)
        twin = setup.member(cell).student.train()
        first, second = twin(inputs).logits, twin(seen).logits
        member.step(inputs, targets, batch, setup.teacher.taps(inputs))
        buffers = dict(member.student.named_buffers())
        assert buffers and all(torch.equal(value, buffers[name]) for name, value in twin.named_buffers())
        of_views = [functional.cross_entropy(logits, targets) for logits in (first, second)]
        expected = sum(of_views) if objective == "mlkd" else of_views[0]
        assert member.sums["task"][0].item() / len(inputs) == pytest.approx(expected.item(), rel=1e-6)


def test_both_views_are_mixed_alike(plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path) -> None:
    recipe = "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1], mixup: 0.8}"
    plan = plan_of(recipe=recipe, objectives="{mlkd: , other: {loss: 'own.py:Other', weight: 1}}", repeats="1")
    assert train(plan) == 0
    cell, setup = setup_of(plan, tmp_path)
    first = BatchPlan.of(cell.config, setup.data)
    second = first.second_views("fixmatch")
    for step, (one, other) in enumerate(zip(first.epoch(0), second.epoch(0), strict=True)):
        given = setup.data.batch("train", *one), second.data.batch("train", *other)
        (inputs, targets), (seen, same) = (plan.mixed(*each, setup.task, step) for plan, each in zip((first, second), given, strict=True))
        assert torch.equal(targets, same) and not torch.equal(inputs, seen)
        share = targets.max() if (targets.max(1).values < 1).any() else None
        if share is not None:
            (before, _), (plain, _) = given
            weights = torch.linalg.lstsq(torch.stack([plain[0].flatten(), plain[-1].flatten()], 1), seen[0].flatten()).solution
            own = torch.linalg.lstsq(torch.stack([before[0].flatten(), before[-1].flatten()], 1), inputs[0].flatten()).solution
            assert torch.allclose(weights, own, atol=1e-4)


def test_a_batch_in_parts_has_the_second_view_of_its_images(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    recipe = "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1], accumulate: 4}"
    plan = plan_of(recipe=recipe, objectives="{other: {loss: 'own.py:Other', weight: 1}}", repeats="1")
    assert train(plan) == 0
    cell, setup = setup_of(plan, store.root, "other")
    setup = setup.with_teacher(store, cell)
    member, stream = setup.member(cell), check._stream(cell, setup)
    inputs, targets, batch, teacher = check._of_two_views(
        cell, setup, [(*one[:3], setup.teacher.taps(one[0])) for one in stream], "fixmatch"
    )[0]
    seen, taps = batch.second_views["matched", "fixmatch"]
    whole = list(member.parts(inputs, targets, batch, teacher))
    views = [part[4].second_views["matched", "fixmatch"] for part in whole]
    assert len(views) == 4 and torch.equal(torch.cat([one for one, _ in views]), seen)
    assert torch.equal(torch.cat([one.logits for _, one in views]), taps.logits)
    with pytest.raises(SuiteError, match="compares the images of a batch"):
        probe.probe(plan_of(recipe=recipe, objectives="[mlkd]", repeats="1"))


def test_the_teachers_rows_of_both_views_are_of_the_same_other_images() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher, further = (Taps(logits=torch.randn(6, 4, generator=draw, dtype=torch.float64)) for _ in range(3))
    student = replace(student, second_view=student)
    part = parts.load("loss", "mlkd")
    term = {"loss": "mlkd", "version": part.version, "weight": 1.0, "options": part.options()}
    seconds = {("matched", "fixmatch"): (None, teacher), ("shuffled_globally", "fixmatch"): (None, further)}
    batch = Batch(torch.arange(6) % 4, torch.arange(6), others={"shuffled_globally": further}, second_views=seconds)

    def value(pairing: str, batch: Batch = batch) -> float:
        objective = Objective({"task": 1.0, "terms": [{**term, "pairing": pairing}]}, {})
        objective.bind(Pair(student, replace(teacher, second_view=teacher)))
        assert objective.second_views == {("matched", "fixmatch"), *([(pairing, "fixmatch")] if "_" in pairing else [])}
        values = objective({"task": torch.zeros(())}, student, teacher, batch, seed=3)
        return sum(raw.item() for name, (raw, _) in values.items() if name != "task")

    def plain(given: Taps) -> float:
        return part.build(part.options())(student, replace(given, second_view=given), batch).item()

    assert value("matched") == pytest.approx(plain(teacher))
    assert value("shuffled_globally") == pytest.approx(plain(further))
    permuted = [plain(teacher.map(lambda x, order=order: x[list(order)])) for order in itertools.permutations(range(6))]
    assert any(value("shuffled") == pytest.approx(one) for one in permuted)
    # Where a step is only tried, the rows are those of the batch.
    assert value("shuffled_globally", replace(batch, others=None)) == value("shuffled")


def test_a_suite_is_told_where_there_is_no_second_view_and_where_it_is_not_understood(plan_of: Callable[..., Plan]) -> None:
    def told(**changes: str) -> str:
        try:
            probe.probe(plan_of(**{"repeats": "1", **changes}))
        except SuiteError as error:
            return str(error)
        return ""

    two, other, wrong = (f"{{loss: 'own.py:{name}', weight: 1}}" for name in ("Two", "Other", "Wrong"))
    plain = told(dataset="{name: 'own.py:Plain', per_class: 4}", objectives="[ce, kd, mlkd]")
    assert "objectives.mlkd: the loss 'mlkd' needs a second view of each image, and the dataset 'own.py:Plain' has none" in plain
    assert "kd:" not in plain.replace("mlkd", "") and plain.startswith("line") | ("tiny.yaml" in plain)
    assert "`augmentation` 'rnad-m9' of the loss 'own.py:Wrong' is not understood: write 'fixmatch', or 'rand' and" in told(
        objectives=f"{{w: {wrong}}}"
    )
    assert "is not understood" in told(objectives="{mlkd: {augmentation: rand-m99}}")
    assert "augmented differently (mlkd: fixmatch; own.py:Two: rand-m9-n2): give all the same" in told(
        objectives=f"{{both: {{terms: [{{loss: mlkd, weight: 1}}, {two}], task: 0.1}}}}"
    )
    assert told(objectives=f"{{both: {{terms: [{{loss: mlkd, weight: 1}}, {other}], task: 0.1}}}}") == ""


def test_a_loss_reads_of_a_second_view_what_it_lists_and_only_if_it_lists_it() -> None:
    class Reads(Loss):
        needs = frozenset({"logits", "second_view"})

        def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
            assert student.second_view is not None
            return student.second_view.pooled.mean()

    class Without(Reads):
        needs = frozenset({"logits"})

    one = Taps(logits=torch.zeros(3, 2), pooled=torch.zeros(3, 4)).with_second_view()
    with pytest.raises(LossError, match="reads the student's 'pooled', which it does not list"):
        Reads()(one, one)
    with pytest.raises(LossError, match="reads the student's 'second_view', which it does not list"):
        Without()(one, one)
    with pytest.raises(RefusedError, match="second view of each image, and images of this dataset have none"):
        Reads().prepare(Pair(Taps(logits=torch.zeros(3, 2)), Taps(logits=torch.zeros(3, 2))))


def test_images_that_cannot_be_augmented_so_fail_the_cells_that_need_it_alone(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(image: Any) -> Any:
        raise RuntimeError("no such image")

    plan = plan_of(objectives="[ce, kd, mlkd]", repeats="1")
    monkeypatch.setattr("kdbench.datasets._augment.fixmatch", refuses)
    train(plan)
    found = records(plan, store)
    assert found["ce"] and found["kd"] and found["mlkd"] is None
    cell_id = next(row.cell.id for row in plan.rows if row.objective == "mlkd")
    assert "no such image" in store.failure(cell_id).message


def test_a_check_and_a_profile_have_both_views(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = plan_of(objectives="[kd, mlkd]", repeats="1", dataset="{name: digits}")
    found = {one.objective: one for one in check.check(plan, store, tmp_path, torch.device("cpu"), lambda _: None)}
    assert not found["mlkd"].wrong and set(found["mlkd"].ratios) == {"mlkd.kd", "mlkd.class", "mlkd.batch"}
    train(plan, [plan.teachers[0].cell.id])
    cells = {row.objective: row.cell for row in plan.rows if row.role == "student"}
    for cell in cells.values():
        store.put_cell(cell)
    passes, drawn = [], []
    plain, epoch = LiveTeacher.taps, BatchPlan.epoch
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LiveTeacher, "taps", lambda self, inputs: passes.append(1) or plain(self, inputs))
        patched.setattr(BatchPlan, "epoch", lambda self, *place: drawn.append(1) or epoch(self, *place))
        patched.setattr(profile, "MEASURED_STEPS", 2)
        # All images are put in order once for each view (and once to try the second): no step that is timed does it.
        for name, each, orders in (("kd", 1, 1), ("mlkd", 2, 3)):
            passes.clear()
            drawn.clear()
            assert profile.measure(store, cells[name], tmp_path, torch.device("cpu")).result["step_ms"]["median"] > 0
            assert len(passes) % each == 0 and len(passes) / each == 12
            assert len(drawn) == orders


def test_the_work_of_a_plan_has_the_passes_of_both_views(plan_of: Callable[..., Plan]) -> None:
    other = "{loss: 'own.py:Two', weight: 1}"
    plan = plan_of(objectives=f"{{ce: , kd: , mlkd: , more: {{loss: mlkd, temperature: 2}}, other: {other}}}", repeats="1")
    probes = probe.probe(plan)
    cells = {row.objective: row.cell for row in plan.rows if row.role == "student"}

    def work(*names: str) -> float:
        return probes.work_tflop(plan, Bundle(tuple(cells[name] for name in names)))

    student = work("ce")  # three passes: forward, and backward for two
    teacher = work("kd") - student
    assert work("mlkd") == work("other") == pytest.approx(2 * student + 2 * teacher)
    # Students share what the teacher gives for the images, and for second views that are augmented alike.
    assert work("kd", "mlkd", "more") == pytest.approx(5 * student + 2 * teacher)
    assert work("mlkd", "other") == pytest.approx(4 * student + 3 * teacher)


def test_the_work_of_a_first_stage_has_the_passes_of_both_views(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(objectives="{kd: , mlkd: {two_stages: {epochs: 3, then: [{loss: kd, weight: 1}]}}}", repeats="1")
    probes = probe.probe(plan)
    work = {(row.role, row.objective): probes.work_tflop(plan, Bundle((row.cell,))) for row in plan.rows if row.role != "teacher"}
    assert work["first_stage", "mlkd"] == pytest.approx(2 * work["student", "kd"])
    assert work["student", "mlkd"] == work["student", "kd"]
