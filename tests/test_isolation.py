"""Users' losses and models may do anything to what they are handed: no other row, term or student changes by a bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench import parts
from kdbench.isolation import isolated, private
from kdbench.losses._base import Batch, Pair, Taps
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.train.build import Setup
from kdbench.train.objective import Objective
from tests.losses.toys import for_classifiers

ADVERSARY = '''
"""Writes to everything that it can reach."""

import random
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from kdbench import Loss
from kdbench.models._base import Model
from kdbench.losses._base import Taps

torch.set_default_dtype(torch.float64)
torch.manual_seed(1)


def spoil_settings():
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.autograd.set_detect_anomaly(True)
    torch.set_flush_denormal(True)
    torch.autocast("cpu", torch.bfloat16).__enter__()
    torch._C._set_mkldnn_enabled(False)
    np.random.seed(0), random.seed(0), torch.manual_seed(0)


def spoil(tensor):
    if tensor.device.type == "meta":
        return
    with torch.no_grad():
        for write in (
            lambda: tensor.data.fill_(7),
            lambda: tensor.detach().fill_(7),
            lambda: tensor.zero_(),
            lambda: tensor.detach().numpy().fill(3),
            lambda: tensor.untyped_storage().fill_(1),
            lambda: tensor.detach().requires_grad_(True),
            lambda: tensor.data.resize_(1),
            lambda: tensor.untyped_storage().resize_(0),
            lambda: tensor.data.set_(torch.zeros(1)),
        ):
            with suppress(RuntimeError):
                write()


def spoil_net(net):
    net.train().requires_grad_(True)
    net.register_forward_hook(lambda *_: 1 / 0)
    for weight in [*net.parameters(), *net.buffers()]:
        weight.data.fill_(9)
    for module in net.modules():
        for name in list(module._parameters):
            module._parameters[name] = None


class Adversary(Loss):
    """Writes to everything in `bind` and in `forward`; `step` is when it raises."""

    needs = frozenset({"logits", "pooled", "last", "stages", "preact", "target", "index", "labels", "teacher_head", "teacher_model", "second_view"})

    def __init__(self, *, step: int = 10**6):
        super().__init__()
        self.step = step

    def spoil_taps(self, taps):
        for name in ("logits", "pooled", "last"):
            spoil(getattr(taps, name))
        for tensor in (*taps.stages, *taps.preact):
            spoil(tensor)
        if vars(taps).get("second_view") is not None:
            self.spoil_taps(taps.second_view)
        vars(taps).update(logits=None, stages=())

    def bind(self, pair):
        self.spoil_taps(pair.student), self.spoil_taps(pair.teacher)
        spoil(pair.labels), spoil_net(pair.teacher_head), spoil_net(pair.teacher_model)
        spoil_settings()

    def forward(self, student, teacher, batch):
        value = student.logits.square().mean() + student.last.mean()
        raises = batch.step >= self.step
        if batch.index.device.type != "meta":
            student.logits.register_hook(lambda gradient: gradient.mul_(100))
            logits = teacher.logits
            logits -= logits.mean(1, keepdim=True)
            self.spoil_taps(student), self.spoil_taps(teacher)
            spoil(batch.target), spoil(batch.index)
            vars(batch).update(step=99, target=None)
            spoil_settings()
        if raises:
            raise RuntimeError("half way")
        return value * 1e-3


class Net(Model):
    """Writes to its inputs, and to the settings; draws from NumPy."""

    def build(self, inputs, outputs):
        self.layer = nn.Linear(inputs[0] * inputs[1] * inputs[2], outputs)
        self.layer.weight.data += torch.tensor(np.random.normal(size=self.layer.weight.shape) * random.random() * 0.01).float()
        spoil_settings()

    def forward(self, inputs):
        learns = torch.is_grad_enabled()
        logits = self.layer(inputs.flatten(1).clone()) + np.random.normal() * random.random()
        if inputs.device.type != "meta":
            spoil(inputs)
        spoil_settings()
        torch.set_grad_enabled(learns)
        return Taps(logits=logits)
'''

EVERY_LOSS = {
    "dataset": "{name: digits, per_class: 4}",
    "teachers": "{big: {model: cifar_resnet, depth: 8, widths: [8, 8, 8, 16], min_top1: 0.0}}",
    "students": "{small: {model: cifar_resnet, depth: 8, widths: [8, 8, 8, 16]}}",
    "recipe": "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1]}",
    "repeats": "1",
}
"""The channels of both nets are equal, as some losses need it."""
OPTIONS = {"pcka": "patch: 1"}
"""What a loss needs for maps of 2 x 2."""


def objectives(*more: str) -> str:
    """Every loss that ships, each with its default preset or an assumed weight, and further ones."""
    lines = ["ce:"]
    for name in filter(for_classifiers, parts.names("loss")):
        preset = next(iter(parts.load("loss", name).make.presets.values()))
        given = [*([] if preset.weight is not None else ["weight: 1, weight_from: assumed"]), *([OPTIONS[name]] if name in OPTIONS else [])]
        lines.append(f"{name}: {{{', '.join(given)}}}")
    return "\n".join([*more, *lines])


def results(plan: Plan, store: Store, train: Callable[..., int]) -> dict[tuple[str, str], Any]:
    train(plan, store=store)
    records = {(row.student, row.objective): store.record(row.cell.id) for row in plan.rows}
    return {key: record and record.result for key, record in records.items()}


def test_a_loss_that_writes_to_all_that_it_reaches_changes_no_row_beside_it(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(ADVERSARY)
    adversaries = (
        "adversary: {loss: 'bad.py:Adversary', weight: 1}",
        "raises: {loss: 'bad.py:Adversary', weight: 1, step: 1}",
        "with kd: {terms: [{loss: 'bad.py:Adversary', weight: 1}, {loss: kd, weight: 1}]}",
    )
    alone = results(plan_of(**{**EVERY_LOSS, "objectives": objectives()}), Store(tmp_path / "alone"), train)
    beside = results(plan_of(**{**EVERY_LOSS, "objectives": objectives(*adversaries)}), Store(tmp_path / "beside"), train)

    assert len(alone) >= 8 and all(alone.values())
    assert beside["small", "adversary"] and beside["small", "with kd"] and beside["small", "raises"] is None
    for key, result in alone.items():
        assert beside[key] == result, key


def test_a_model_that_writes_to_its_inputs_and_settings_changes_no_student_beside_it(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    """And its draws from NumPy and Python are those of its cell: it gets the same bits in another bundle."""
    (tmp_path / "bad.py").write_text(ADVERSARY)
    small, net = "small: {model: cifar_resnet, depth: 8, widths: [4, 4, 8, 8]}", "net: {model: 'bad.py:Net'}"
    found = []
    for place, students in enumerate((small, net, f"{net}, {small}", f"{small}, {net}")):
        changes = {**EVERY_LOSS, "students": f"{{{students}}}", "objectives": "[ce, kd]"}
        np.random.seed(place), random.seed(place)
        found.append(results(plan_of(**changes), Store(tmp_path / str(place)), train))

    alone = {**found[0], **found[1]}
    assert len(alone) == 5 and all(alone.values())
    for bundle in found[2:]:
        assert bundle == alone


SHARES = """
import torch
from torch import nn

import counter
from kdbench import Loss, Taps
from kdbench.models._base import Model

CALLS = []


class Shares(Loss):
    \"\"\"Depends on how often its module was called.\"\"\"

    needs = frozenset({"logits"})
    calls = []

    def __init__(self, *, factor: float = 1e-3):
        super().__init__()
        self.factor = factor

    def forward(self, student, teacher, batch):
        CALLS.append(1), self.calls.append(1), counter.calls.append(1)
        return self.factor * (len(CALLS) + len(self.calls) + len(counter.calls)) * (student.logits - teacher.logits).square().mean()


class Net(Model):
    def build(self, inputs, outputs):
        self.layer = nn.Linear(inputs[0] * inputs[1] * inputs[2], outputs)

    def forward(self, inputs):
        CALLS.append(1)
        return Taps(logits=self.layer(inputs.flatten(1)) * (1 + len(CALLS) % 7))
"""


def test_cells_share_no_variable_of_a_users_module(plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "shares.py").write_text(SHARES)
    (tmp_path / "counter.py").write_text("calls = []\n")
    students = "{net: {model: 'shares.py:Net'}, small: {model: small_mobile, widths: [4, 6]}}"
    entries = ["a: {loss: 'shares.py:Shares', weight: 1}", "b: {loss: 'shares.py:Shares', weight: 1, factor: 0.002}", "kd: {}"]
    together = results(plan_of(objectives=f"{{{', '.join(entries)}}}", students=students, repeats="1"), Store(tmp_path / "together"), train)
    for place, entry in enumerate(entries):
        alone = results(plan_of(objectives=f"{{{entry}}}", students=students, repeats="1"), Store(tmp_path / str(place)), train)
        assert all(alone.values()) and {key: together[key] for key in alone} == alone


def taps(seed: int) -> Taps:
    draw = torch.Generator().manual_seed(seed)
    last = torch.randn(6, 4, 2, 2, generator=draw)
    return Taps(torch.randn(6, 5, generator=draw), last.mean((2, 3)), last, (last.clone(),), (last.clone(),))


def test_no_term_changes_another_of_its_objective_whatever_the_order(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(ADVERSARY)
    adversary = parts.load("loss", "bad.py:Adversary", tmp_path)
    kd, rkd = (parts.load("loss", name) for name in ("kd", "rkd"))

    def term(part: parts.Part, **options: Any) -> dict[str, Any]:
        return {"loss": part.name, "version": part.version, "options": part.options(options), "weight": 1.0, "pairing": "matched"}

    def run(*terms: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Taps]:
        objective = Objective({"task": 1.0, "terms": list(terms)}, {"bad.py:Adversary": str(tmp_path)})
        net = torch.nn.Linear(4, 5)
        student = replace(taps(0), second_view=taps(2)).map(lambda tensor: tensor.requires_grad_())
        teacher, further = replace(taps(1), second_view=taps(3)), taps(3)
        batch = Batch(torch.arange(6) % 5, torch.arange(6), second_views={("matched", "fixmatch"): (None, further)})
        objective.bind(Pair(student, teacher, torch.arange(30) % 5, net, net))
        values = {
            name: value
            for name, (value, _) in objective({"task": torch.zeros(())}, student, teacher, batch).items()
            if name.startswith(("kd", "rkd"))
        }
        torch.stack(list(values.values())).sum().backward()
        before = replace(taps(1), second_view=taps(3)).tensors()
        assert all(torch.equal(one, other) for one, other in zip(teacher.tensors(), before, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(further.tensors(), taps(3).tensors(), strict=True))
        assert torch.equal(batch.target, torch.arange(6) % 5) and torch.equal(batch.index, torch.arange(6)) and batch.step == 0
        assert not net.weight.eq(9).any() and not net._forward_hooks
        return values, student

    values, student = run(term(kd), term(rkd))
    for terms in ((term(adversary), term(kd), term(rkd)), (term(kd), term(adversary), term(rkd)), (term(kd), term(rkd), term(adversary))):
        others, other_student = run(*terms)
        assert others.keys() == values.keys() and all(torch.equal(others[name], value) for name, value in values.items())
        for one, other in zip(student.tensors(), other_student.tensors(), strict=True):
            assert torch.equal(one, other)
            assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


DRAWS = """
import random

import numpy as np
import torch

from kdbench import Loss

SHARED = random.random() + float(np.random.rand()) + float(torch.rand(()))


class Draws(Loss):
    \"\"\"Draws wherever it can, without a seed of its own.\"\"\"

    needs = frozenset({"logits"})

    def __init__(self):
        super().__init__()
        self.first = random.random() + float(np.random.rand())

    def bind(self, pair):
        self.bound = random.random() + float(np.random.rand())

    def forward(self, student, teacher, batch):
        share = float(np.random.beta(1.0, 1.0)) + random.random() + np.random.default_rng(np.random.randint(9)).random()
        order = torch.from_numpy(np.random.permutation(len(student.logits)))
        return (SHARED + self.first + self.bound + share) * (student.logits - teacher.logits[order]).square().mean()
"""


def test_draws_of_numpy_and_python_are_those_of_the_cell(plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "draws.py").write_text(DRAWS)
    changes = {"objectives": "{kd: {}, mine: {loss: 'draws.py:Draws', weight: 1}}", "repeats": "2"}
    found = []
    for place in range(2):
        np.random.seed(place), random.seed(place)
        parts._load_file.cache_clear()
        found.append(results(plan_of(**changes), Store(tmp_path / str(place)), train))

    assert found[0] == found[1] and all(found[0].values())


def test_generators_and_settings_are_afterwards_what_they_were() -> None:
    np.random.seed(3), random.seed(3)
    wanted = np.random.rand(3).tolist(), random.random()
    np.random.seed(3), random.seed(3)
    threads = torch.get_num_threads()
    spoilt: dict[str, Any] = {}
    exec(ADVERSARY.replace("torch.set_default_dtype(torch.float64)\ntorch.manual_seed(1)\n", ""), spoilt)
    with pytest.raises(ZeroDivisionError), isolated(5):
        first = np.random.rand(), random.random(), torch.rand(()).item()
        with isolated(7):
            spoilt["spoil_settings"]()
            torch.set_default_device("meta")
        raise ZeroDivisionError
    with isolated(5):
        assert (np.random.rand(), random.random(), torch.rand(()).item()) == first

    assert (np.random.rand(3).tolist(), random.random()) == wanted
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled() and torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_float32_matmul_precision() == "highest"
    assert not torch.is_anomaly_enabled() and not torch.is_autocast_enabled("cpu") and torch.backends.mkldnn.is_available()
    assert torch._C._get_mkldnn_enabled() and torch.zeros(1).device.type == "cpu"
    assert (torch.tensor(1e-40) * 1).item() > 0


def test_private_copies_keep_the_layout_and_share_no_memory() -> None:
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    nested = {"image": images, "boxes": [torch.ones(2), (torch.zeros(1), "name")]}
    copied = private(nested)

    assert copied["image"].stride() == images.stride() and torch.equal(copied["image"], images)
    copied["image"].zero_(), copied["boxes"][0].zero_(), copied["boxes"][1][0].fill_(5)
    assert images.abs().sum() > 0 and nested["boxes"][0].sum() == 2 and nested["boxes"][1][0].item() == 0


def test_an_inner_isolation_leaves_the_draws_of_the_outer_one_as_they_were() -> None:
    def draws() -> tuple[float, ...]:
        return np.random.rand(), random.random(), torch.rand(()).item(), np.random.randn()

    with isolated(5):
        plain = [draws() for _ in range(2)]
    with isolated(5):
        first = draws()
        with isolated(7), isolated(9):
            inner = draws()
        nested = [first, draws()]

    assert nested == plain and inner not in plain


USERS_NET = """
import torch
from torch import nn
from kdbench.losses._base import Taps
from kdbench.models._base import Model


class Net(Model):
    def __init__(self):
        super().__init__()

    def build(self, inputs, outputs):
        self.layer = nn.Linear(inputs[0] * inputs[1] * inputs[2], outputs)

    def forward(self, inputs):
        return Taps(logits=self.layer(inputs.flatten(1)))
"""


def test_a_users_model_starts_from_other_weights_in_each_repeat_and_from_the_same_for_each_objective(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(USERS_NET)
    plan = plan_of(students="{own: {model: 'net.py:Net'}}", objectives="[ce, kd]", repeats="2")
    weights = {}
    for row in plan.rows:
        if row.role == "student":
            setup = Setup.of(row.cell, tmp_path, torch.device("cpu"))
            weights[row.objective, row.repeat] = setup.student(row.cell).state_dict()["layer.weight"]

    assert torch.equal(weights["ce", 0], weights["kd", 0]) and torch.equal(weights["ce", 1], weights["kd", 1])
    assert not torch.equal(weights["ce", 0], weights["ce", 1])
