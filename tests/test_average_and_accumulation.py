"""The moving average of the weights, and a batch in parts; all options of images and targets together, alone, in bundles and resumed."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kdbench.cell import Cell
from kdbench.losses._base import Batch, Taps
from kdbench.models.small_mobile import SmallMobile
from kdbench.parts import load
from kdbench.plan.matrix import Plan
from kdbench.plan.schema import NUMERICS
from kdbench.report.sentences import _averaged
from kdbench.report.write import report
from kdbench.store import Store
from kdbench.tasks.classification import Classification
from kdbench.train.average import moving_average
from kdbench.train.build import Setup
from kdbench.train.evaluate import evaluate
from kdbench.train.member import Member
from kdbench.train.objective import Objective
from kdbench.train.teacher import load_weights

KD = {"loss": "kd", "version": 1, "options": load("loss", "kd").options(), "weight": 0.9, "pairing": "matched"}


class Smooth(nn.Module):
    """A net without batch norm: its gradient for a batch is the mean of its gradients for the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Taps:
        pooled = self.first(inputs.flatten(1)).tanh()
        return Taps(logits=self.last(pooled), pooled=pooled)


def member(net: nn.Module, **options: Any) -> Member:
    recipe = load("recipe", "short").options({"epochs": 3, "batch_size": 16, "lr": 0.05, "milestones": [], **options})
    config = {"recipe": recipe, "numerics": NUMERICS["exact"], "objective": {"task": 0.5, "terms": [KD]}}
    config |= {"role": "student", "seed": 0, "dataset": {}, "repeat": 0, "student": {}}
    return Member(Cell(config), net, Objective(config["objective"], {}), Classification(), steps_per_epoch=10)


def steps(*some: Member, count: int = 5, shape: tuple[int, ...] = (3, 2, 2)) -> None:
    draw = torch.Generator().manual_seed(0)
    for step in range(count):
        n = 16 if step % 3 else 5 + step
        dtype = next(some[0].student.parameters()).dtype
        inputs, labels = torch.randn(n, *shape, generator=draw).to(dtype), torch.randint(0, 5, (n,), generator=draw)
        teacher = Taps(logits=torch.randn(n, 5, generator=draw).to(dtype))
        for one in some:
            one.step(inputs, labels, Batch(labels, torch.arange(n), 0, step), teacher, first=True)


def fresh(**options: Any) -> Member:
    torch.manual_seed(1)
    return member(Smooth().double(), **options)


def test_a_batch_in_parts_gives_the_gradients_values_and_sizes_of_the_whole_batch() -> None:
    whole = fresh()
    for parts in (2, 4, 16):
        divided = fresh(accumulate=parts)
        one = fresh()
        steps(one, divided)
        for mine, theirs in zip(one.student.parameters(), divided.student.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        assert one.gradients.keys() == divided.gradients.keys() == {"kd"}
        assert divided.gradients["kd"] == pytest.approx(one.gradients["kd"], rel=1e-10)
        for name in ("task", "kd", ""):
            torch.testing.assert_close(divided.sums[name], one.sums[name])
        assert divided.seen == one.seen
        assert not torch.equal(one.student.last.weight, whole.student.last.weight)


def test_parts_are_nearly_equal_and_never_larger_than_asked_for() -> None:
    for parts, n in itertools.product((1, 2, 4, 8), (1, 2, 3, 5, 15, 16)):
        inputs, labels = torch.arange(n).float().view(n, 1), torch.arange(n)
        teacher = Taps(logits=torch.arange(n).view(n, 1).float())
        found = list(fresh(accumulate=parts).parts(inputs, labels, Batch(labels, torch.arange(n) + 7, 2, 5), teacher))
        sizes = [len(one[2]) for one in found]
        assert sum(sizes) == n and max(sizes) <= 16 // parts and max(sizes) - min(sizes) <= 1
        assert [share for share, *_ in found] == [size / n for size in sizes]
        assert len({seed for _, seed, *_ in found}) == len(found)
        for place, field in ((2, inputs), (3, labels)):
            assert torch.equal(torch.cat([one[place] for one in found]), field)
        assert torch.equal(torch.cat([one[4].index for one in found]), torch.arange(n) + 7)
        assert torch.equal(torch.cat([one[5].logits for one in found]), teacher.logits)
        assert {(one[4].epoch, one[4].step) for one in found} == {(2, 5)}


def test_the_average_is_timms_with_batch_norms() -> None:
    for decay in (0.5, 0.99):
        torch.manual_seed(1)
        net = SmallMobile(widths=(4, 6))
        net.build((3, 8, 8), 5)
        one = member(net, ema=decay)
        timms = ModelEmaV3(net, decay=decay)
        for step in range(4):
            draw = torch.Generator().manual_seed(step)
            inputs, labels = torch.randn(8, 3, 8, 8, generator=draw), torch.randint(0, 5, (8,), generator=draw)
            one.step(inputs, labels, Batch(labels, torch.arange(8), 0, step), Taps(logits=torch.randn(8, 5, generator=draw)))
            timms.update(net)
        mine, theirs = one.deployed.state_dict(), timms.module.state_dict()
        assert mine.keys() == theirs.keys() and one.deployed is not net
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name
            assert value.is_floating_point() or int(value) == 4
        assert not torch.equal(next(one.deployed.parameters()), next(net.parameters()))


def test_a_weight_with_two_names_is_averaged_once() -> None:
    layer = nn.Linear(2, 2)
    net = nn.ModuleDict({"one": layer, "two": layer})
    before = layer.weight.detach().clone()
    average = moving_average(net, 0.75)
    with torch.no_grad():
        layer.weight.add_(1)
    average.update_parameters(net)

    torch.testing.assert_close(average.module["one"].weight, before + 0.25)


SMALL = "{small: {model: small_mobile, widths: [4, 6]}}"
EVERYTHING = {
    "dataset": "{name: digits, per_class: 4, validation: 0.1}",
    "recipe": """
        name: short
        epochs: 2
        batch_size: 12
        lr: 0.02
        milestones: [1]
        mixup: 0.4
        cutmix: 1.0
        mix_probability: 0.9
        rand_augment: rand-m6-mstd0.5-inc1
        random_erasing: 0.5
        label_smoothing: 0.1
        ema: 0.8
        """,
    "students": """
        drops: {model: cifar_resnet, depth: 8, widths: [8, 8, 8, 16], dropout: 0.3, drop_path: 0.2}
        small: {model: small_mobile, widths: [4, 6], recipe: {ema: 0.5, label_smoothing: 0.0, task_loss: binary_cross_entropy}}
        """,
    "objectives": "[ce, 'cc:crd']",
    "repeats": "1",
}
IN_PARTS = {**EVERYTHING, "recipe": EVERYTHING["recipe"] + "accumulate: 3\n", "objectives": "[kd]", "students": SMALL}


@pytest.mark.parametrize("suite", [EVERYTHING, IN_PARTS], ids=["whole batches", "in parts"])
def test_bundled_alone_and_stopped_in_any_epoch_the_results_are_the_same(
    suite: dict[str, str], plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    plan = plan_of(**suite)
    together, alone, stopped = (Store(tmp_path / name) for name in ("together", "alone", "stopped"))
    assert train(plan, store=together) == 0
    teacher = plan.teachers[0].cell.id
    train(plan, [teacher], store=alone)
    for row in plan.rows[1::3]:
        train(plan, [row.cell.id], store=alone)
        assert alone.record(row.cell.id).result == together.record(row.cell.id).result, row  # type: ignore[union-attr]
    asked = itertools.chain([False] * 5, [True], [False] * 4, [True], itertools.repeat(False))
    while left := [cell_id for cell_id in plan.cells if not stopped.is_done(cell_id)]:
        train(plan, left, store=stopped, stop=lambda: next(asked))
    for row in plan.rows:
        assert stopped.record(row.cell.id).result == together.record(row.cell.id).result, row  # type: ignore[union-attr]


def test_the_average_is_evaluated_kept_taught_with_exported_and_named_in_the_caption(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.train.export import export

    plan = plan_of(**{**EVERYTHING, "objectives": "[kd]"})
    finished: dict[str, Member] = {}
    end = Member.end_epoch
    monkeypatch.setattr(Member, "end_epoch", lambda self, *told: (finished.update({self.cell.id: self}), end(self, *told))[1])
    assert train(plan) == 0

    for row in plan.rows:
        record, one = store.record(row.cell.id), finished[row.cell.id]
        assert record and record.config["recipe"]["ema"] == (0.5 if row.student == "small" else 0.8)
        kept = load_weights(store, record)
        latest = one.latest.state_dict()
        assert all(torch.equal(value, one.average.module.state_dict()[name]) for name, value in kept.items())  # type: ignore[union-attr]
        assert any(not torch.equal(value, latest[name]) for name, value in kept.items())
        setup = Setup.of(row.cell, tmp_path, torch.device("cpu"))
        model = setup.student(row.cell)
        model.load_state_dict(kept)
        for split in ("val", "test"):
            assert evaluate(setup.task, model, setup.data, split, row.cell.config["numerics"]) == record.result["history"][-1][split]
    teacher = plan.teachers[0].cell
    taught = Setup.of(row.cell, tmp_path, torch.device("cpu")).with_teacher(store, row.cell).teacher
    assert taught
    kept = load_weights(store, store.record(teacher.id))  # type: ignore[arg-type]
    assert all(torch.equal(value, kept[name]) for name, value in taught.model.state_dict().items())
    _, net, _ = export(store, teacher.id, tmp_path / "net")
    assert "The weights are an exponential moving average, decay 0.8." in net.read_text()

    page = io.StringIO()
    report(store, ["tiny"], page, width=400)
    assert "Weights: exponential moving average (drops: decay 0.8; small: decay 0.5)." in page.getvalue()
    everyone = plan_of(**{**EVERYTHING, "students": SMALL}).manifest()
    assert _averaged(everyone) == " Weights: exponential moving average (decay 0.8)."
    assert _averaged(plan_of().manifest()) == ""


def test_a_loss_that_changes_the_deployed_model_has_its_model_averaged(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\n"
        "from torch import nn\n"
        "from kdbench import Loss\n"
        "class Head(nn.Module):\n"
        "    def __init__(self, student, head):\n"
        "        super().__init__()\n"
        "        self.student, self.head = student, head\n"
        "    def forward(self, inputs):\n"
        "        taps = self.student(inputs)\n"
        "        return replace(taps, logits=self.head(taps.pooled))\n"
        "class Own(Loss):\n"
        "    needs = frozenset({'pooled', 'logits'})\n"
        "    def bind(self, pair):\n"
        "        self.head = nn.Linear(pair.student.pooled.shape[1], pair.teacher.logits.shape[1])\n"
        "    def forward(self, student, teacher, batch):\n"
        "        return (self.head(student.pooled) - teacher.logits).square().mean()\n"
        "    def deployed(self, student):\n"
        "        return Head(student, self.head)\n"
    )
    recipe = "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1], ema: 0.7}"
    plan = plan_of(recipe=recipe, objectives="{ce: , own: {loss: 'own.py:Own', weight: 1}}", repeats="1")
    assert train(plan) == 0

    record = store.record(next(row.cell.id for row in plan.rows if row.objective == "own"))
    assert record and record.outcome == "finished"
    kept = load_weights(store, record)
    assert {"head.weight", "head.bias"} < kept.keys() and kept["head.weight"].isfinite().all()
