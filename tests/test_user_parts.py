"""Parts in files of a user's own: what they may import, what identifies them, how they are tried, and what they are told."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench import parts
from kdbench.errors import LossError, PartError, SuiteError
from kdbench.isolation import explained
from kdbench.losses._base import Batch, Loss, Pair, Taps
from kdbench.plan import matrix, probe, summary
from kdbench.plan.matrix import Plan
from kdbench.plan.suite import read
from kdbench.store import Store
from kdbench.train.build import Setup

MINE = '''
from kdbench import Loss
{imports}


class Mine(Loss):
    """A multiple of the mean squared logit."""

    needs = frozenset({{"logits"}})

    def forward(self, student, teacher, batch):
        {late}
        return ({scale}) * student.logits.square().mean()
'''


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(f"{path.name}.py") if not name.endswith("_init") else path.parent / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def mine(imports: str, scale: str, late: str = "") -> str:
    return MINE.format(imports=imports, scale=scale, late=late)


def scale_of(folder: Path, name: str = "losses/mine.py:Mine") -> tuple[float, str]:
    """(what the loss multiplies by, its version) as the file is now."""
    part = parts.load("loss", name, folder)
    ones = Taps(torch.ones(1, 1))
    return part.make()(ones, ones).item(), str(part.version)


HELPERS = {"losses__helper": "from base import K\nSCALE = K + 1.0\n", "losses__base": "import deep.down\nK = deep.down.K\n"}
HELPERS |= {"losses__deep__init": "", "losses__deep__down": "from .further import K\n", "losses__deep__further": "K = 1.0\n"}
HELPERS |= {"common": "from losses.base import K\n"}
"""All of them begin with a constant of 1 in the innermost."""


def test_files_beside_a_part_or_its_suite_are_imported_in_every_form_and_an_edit_of_any_is_noticed(tmp_path: Path) -> None:
    forms = [
        ("import helper", "helper.SCALE", "", 2),
        ("from helper import SCALE", "SCALE", "", 2),
        ("import helper as h", "h.SCALE", "", 2),
        ("from . import helper", "helper.SCALE", "", 2),
        ("from .helper import SCALE", "SCALE", "", 2),
        ("import deep.down", "deep.down.K", "", 1),
        ("from deep import down", "down.K", "", 1),
        ("from deep.further import *", "K", "", 1),
        ("import common", "common.K", "", 1),
        ("import losses.base", "losses.base.K", "", 1),
        ("", "SCALE", "from helper import SCALE", 2),
        ("", "helper.SCALE", "import helper", 2),
        ("try:\n    import absent\nexcept ImportError:\n    import helper as absent", "absent.SCALE", "", 2),
        ("import importlib\nhelper = importlib.import_module('helper')", "helper.SCALE", "", 2),
        ("import sys, os\nsys.path.insert(0, os.path.dirname(__file__))\nimport helper", "helper.SCALE", "", 2),
    ]
    path_before = list(sys.path)
    for place, (imports, scale, late, wanted) in enumerate(forms):
        folder = write(tmp_path / str(place), **HELPERS, losses__mine=mine(imports, scale, late))
        first, version = scale_of(folder)
        assert first == wanted, imports or late
        # Of the same length and within the same second: no cache of Python's may stand in for it.
        write(folder, losses__deep__further="K = 5.0\n")
        second, other = scale_of(folder)
        assert second == wanted + 4 and other != version, imports or late
        write(folder, losses__unrelated="K = 1\n")
        assert scale_of(folder) == (second, other)
        # As a worker loads it: by the folder that it lies in, and that of the suite.
        assert parts.load("loss", "mine.py:Mine", folder / "losses", folder).version == other
        sys.path[:] = path_before


def test_helpers_of_the_same_name_belong_to_their_own_part_alone(tmp_path: Path) -> None:
    sys.modules["helper"] = foreign = ModuleType("helper")
    try:
        for name, value in (("a", "3.0"), ("b", "7.0")):
            write(tmp_path / name, losses__helper=f"import other\nSCALE = {value}\n", losses__other="import helper\n")
            write(tmp_path / name, losses__mine=mine("import helper", "helper.SCALE", "import helper"))
        loaded = [parts.load("loss", "losses/mine.py:Mine", tmp_path / name).make() for name in ("a", "b")]
        ones = Taps(torch.ones(1, 1))
        assert [loss(ones, ones).item() for loss in (*loaded, *loaded)] == [3, 7, 3, 7]
        assert sys.modules["helper"] is foreign and "other" not in sys.modules
    finally:
        del sys.modules["helper"]


def test_a_library_is_not_taken_for_a_file_or_folder_of_its_name(tmp_path: Path) -> None:
    write(tmp_path, losses__json="1 / 0", losses__timm=mine("import timm, json, torchvision, kdbench", "len(timm.__version__) and 4"))
    (tmp_path / "losses" / "torchvision").mkdir()
    (tmp_path / "losses" / "torchvision" / "notes.py").write_text("1 / 0")
    write(tmp_path, kdbench__init="1 / 0")

    assert scale_of(tmp_path, "losses/timm.py:Mine")[0] == 4


def test_a_file_without_local_imports_is_identified_by_its_own_content_wherever_it_lies(tmp_path: Path) -> None:
    text = mine("import numpy", "2.0")
    found = [scale_of(write(tmp_path / name, losses__mine=text)) for name in ("a", "b")]
    helped = [scale_of(write(tmp_path / name, **HELPERS, losses__mine=mine("import helper", "helper.SCALE")))[1] for name in ("c", "d")]

    assert found[0] == found[1] and helped[0] == helped[1] != found[0][1]


def test_an_error_in_a_helper_names_the_helper(tmp_path: Path) -> None:
    cases = {
        "x = 1\n1 / 0\n": "ZeroDivisionError: division by zero (helper.py:2)",
        "def f(:\n": "helper.py, line 1",
        "import absent_module\n": "No module named 'absent_module' (helper.py:1)",
    }
    for text, told in cases.items():
        write(tmp_path, losses__helper=text, losses__mine=mine("import helper", "1.0"))
        with pytest.raises(PartError) as caught:
            parts.load("loss", "losses/mine.py:Mine", tmp_path)
        assert told in str(caught.value) and "mine.py failed" in str(caught.value)


def test_a_part_of_a_package_is_identified_with_the_modules_of_the_package_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, ourpackage__init="", ourpackage__sub__init="", ourpackage__unused="K = 1", ourpackage__far="K = 1.0")
    write(tmp_path, ourpackage__sub__near="from ..far import K", ourpackage__sub__mine=mine("from .near import K", "K"))

    def version() -> str:
        parts._load.cache_clear()
        return str(parts.load("loss", "ourpackage.sub.mine:Mine").version)

    first = version()
    write(tmp_path, ourpackage__unused="K = 2")
    assert version() == first
    write(tmp_path, ourpackage__far="K = 2.0")
    assert version() != first


def test_the_digest_of_a_shipped_loss_covers_its_helpers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "kdbench"
    shutil.copytree(parts.HERE / "losses", folder / "losses")
    (folder / "__init__.py").touch()
    monkeypatch.setattr(parts, "HERE", folder)
    before = {name: parts.source_digest("loss", name) for name in ("rkd", "nkd")}
    for helper, changed in (("_triplets", {"rkd"}), ("_gram", {"rkd"}), ("_base", set())):
        (folder / "losses" / f"{helper}.py").write_text("from kdbench.losses import _gram\nX = 1\n")
        after = {name: parts.source_digest("loss", name) for name in before}
        assert {name for name in before if before[name] != after[name]} == changed, helper
        before = after


VALUES = """
import torch
import torch.nn.functional as F
from torch import nn

from kdbench import Loss


class Base(Loss):
    needs = frozenset({"logits", "pooled", "target"})

    def forward(self, student, teacher, batch):
        return self.value(student.logits, teacher.logits, batch.target)


class Mask(Base):
    def value(self, s, t, y):
        right = t.argmax(1) == y
        return F.mse_loss(s[right], t[right]) if right.any() else s.sum() * 0


class Unique(Base):
    def value(self, s, t, y):
        return sum((s[y == c].mean(0) - t[y == c].mean(0)).norm() for c in y.unique())


class Item(Base):
    def value(self, s, t, y):
        return F.mse_loss(s, t) * (1 + t.std().item())


class Where(Base):
    def value(self, s, t, y):
        i, j = torch.where(y[:, None] == y[None])
        return F.mse_loss(s[i] * s[j], t[i] * t[j])


class Branch(Base):
    def value(self, s, t, y):
        value = F.mse_loss(s, t)
        return value if value < 10 else value.sqrt()


class NonZero(Base):
    def value(self, s, t, y):
        return s[(y > 0).nonzero().flatten()].square().mean()


class ToList(Base):
    def value(self, s, t, y):
        return sum(s[place, label] for place, label in enumerate(y.tolist())) / len(s)


class NumPy(Base):
    def value(self, s, t, y):
        return F.mse_loss(s, t) * float(t.detach().numpy().std())


class Loop(Base):
    def value(self, s, t, y):
        return torch.stack([s[place, int(label)] for place, label in enumerate(y)]).mean()


class Assertion(Base):
    def value(self, s, t, y):
        assert torch.isfinite(s).all()
        return F.mse_loss(s, t)


class InBind(Base):
    needs = frozenset({"logits", "labels", "target", "teacher_head", "teacher_model"})

    def bind(self, pair):
        self.register_buffer("counts", torch.bincount(pair.labels).float())
        self.largest = int(pair.labels.max())
        self.scale = pair.teacher_head.weight.norm().item()
        self.n_norms = sum(isinstance(one, nn.BatchNorm2d) for one in pair.teacher_model.modules())

    def value(self, s, t, y):
        return F.mse_loss(s, t) * self.counts[y].mean() / self.largest
"""

WRONG = """
class Vector(Base):
    def value(self, s, t, y):
        return F.mse_loss(s, t, reduction="none").mean(1)


class OfOneElement(Base):
    def value(self, s, t, y):
        return F.mse_loss(s, t).reshape(1)


class Nothing(Base):
    def value(self, s, t, y):
        F.mse_loss(s, t)


class Number(Base):
    def value(self, s, t, y):
        return 0.5


class Whole(Base):
    def value(self, s, t, y):
        return (s.argmax(1) != y).sum()


class Named(Base):
    def value(self, s, t, y):
        return {"one": F.mse_loss(s, t), "two": (s - t).mean(1)}


class Empty(Base):
    def value(self, s, t, y):
        return {}


class OtherDevice(Base):
    def value(self, s, t, y):
        return torch.zeros((), device="meta" if s.device.type == "cpu" else "cpu")


class Widths(Base):
    def value(self, s, t, y):
        return (s[:, :3] - t[:, :4]).mean()


class MaskedWidths(Base):
    def value(self, s, t, y):
        right = t.argmax(1) == y
        return (s[right][:, :3] - t[right][:, :4]).mean()


class Undeclared(Base):
    def forward(self, student, teacher, batch):
        return (student.last - teacher.last).mean()


class UndeclaredIndex(Base):
    def forward(self, student, teacher, batch):
        return student.logits[batch.index].mean()


class UndeclaredInBind(Base):
    def bind(self, pair):
        self.n = pair.n_train


class Misspelt(Base):
    needs = frozenset({"logit"})
"""

TOLD = {
    "Vector": "the loss 'Vector' returns a tensor of shape [4]; return one scalar, for example with .mean()",
    "OfOneElement": "returns a tensor of shape [1]; return one scalar",
    "Nothing": "returns None; return one scalar (is a `return` missing?)",
    "Number": "returns a float; return a tensor",
    "Whole": "returns a tensor of torch.int64; return a floating-point scalar",
    "Named": "returns a tensor of shape [4] as its part 'two'; return one scalar",
    "Empty": "returns an empty mapping",
    "OtherDevice": "returns a tensor on the device meta, and the taps are on cpu",
    "Widths": "must match the size of tensor b",
    "MaskedWidths": "must match the size of tensor b",
    "Undeclared": "reads the student's 'last', which it does not list: add 'last' to its `needs`",
    "UndeclaredIndex": "reads the batch's 'index', which it does not list: add 'index' to its `needs`",
    "UndeclaredInBind": "reads the pair's 'labels', which it does not list: add 'labels' to its `needs`",
    "Misspelt": "needs 'logit', which nothing provides; did you mean 'logits'?",
}


def suite_of(write_suite: Callable[..., Path], file: str, names: list[str]) -> Path:
    lines = [f"o{name}: {{loss: '{file}:{name}', weight: 1}}" for name in names]
    return write_suite(objectives="\n".join(["kd:", *lines]))


def test_losses_that_depend_on_values_are_planned(
    write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "values.py").write_text(VALUES)
    names = ["Mask", "Unique", "Item", "Where", "Branch", "NonZero", "ToList", "NumPy", "Loop", "Assertion", "InBind"]
    suite = suite_of(write_suite, "values.py", names)
    plan = matrix.expand(read(suite))
    assert probe.probe(plan).untried == ()

    # Too large to try: left to `check`, and the plan says so.
    monkeypatch.setattr(probe, "MOST_ELEMENTS", 10)
    untried = probe.probe(plan).untried
    assert len(untried) == len(names) and "the loss 'values.py:Mask' cannot be tried while planning" in untried[0]
    assert "not tried here (`kdbench check` tries it): oMask, small <- big" in summary.as_text(suite, tmp_path / "results")


def test_what_a_loss_does_wrong_is_told_when_planning_each_in_its_own_words(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(VALUES + WRONG)
    with pytest.raises(SuiteError) as caught:
        probe.probe(matrix.expand(read(suite_of(write_suite, "wrong.py", list(TOLD)))))

    lines = str(caught.value).splitlines()
    for name, told in TOLD.items():
        assert any(f"objectives.o{name}:" in line and told in line for line in lines), (name, lines)
    assert not any("objectives.kd" in line for line in lines)


def test_a_loss_that_returns_a_vector_in_training_alone_fails_with_the_same_words(
    plan_of: Callable[..., matrix.Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "wrong.py").write_text(
        VALUES + "class Later(Base):\n    def value(self, s, t, y):\n        return F.mse_loss(s, t) if len(s) < 16 else (s - t).mean(1)\n"
    )
    plan = plan_of(objectives="{later: {loss: 'wrong.py:Later', weight: 1}, kd: {}}", repeats="1")
    train(plan)

    ids = {row.objective: row.cell.id for row in plan.rows}
    failure = store.failure(ids["later"])
    assert failure and "the loss 'Later' returns a tensor of shape [16]; return one scalar, for example with .mean()" in str(failure)
    assert store.record(ids["kd"])


class Elements(TorchDispatchMode):
    """Counts the elements of all that is computed."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        self.count += out.numel() if isinstance(out, torch.Tensor) else 0
        return out


class FirstLogit(Loss):
    """The mean of the first logit; what it saw is noted."""

    needs = frozenset({"logits"})

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> torch.Tensor:
        self.seen = [vars(one).keys() - {"_reader"} for one in (student, teacher, batch)]
        return student.logits[:, 0].mean()


def test_a_loss_is_given_what_it_needs_and_nothing_else_is_cast_or_copied() -> None:
    big = torch.zeros(8, 64, 32, 32, dtype=torch.bfloat16)
    given = Taps(torch.zeros(8, 10, dtype=torch.bfloat16), big.mean((2, 3)), big, (big, big), (big,))
    loss = FirstLogit()
    with Elements() as elements:
        loss(given, given, Batch(torch.arange(8), torch.arange(8)))

    assert loss.seen == [{"logits"}, {"logits"}, {"epoch", "step"}]
    assert elements.count < 1000  # 160 logits, and not the three million elements of the maps


def test_reading_what_is_not_needed_is_an_error_with_the_names_of_loss_and_field() -> None:
    head = torch.nn.Linear(4, 3)
    taps = Taps(torch.zeros(2, 3), torch.zeros(2, 4))
    pair = Pair(taps, taps, torch.zeros(5, dtype=torch.int64), head, head).needed(frozenset({"logits"}), "Mine")
    for field, whose in (("labels", "pair"), ("teacher_head", "pair"), ("teacher_model", "pair")):
        with pytest.raises(LossError, match=f"the loss 'Mine' reads the {whose}'s '{field}'"):
            getattr(pair, field)
    with pytest.raises(LossError, match="reads the student's 'pooled'"):
        _ = pair.student.pooled
    with pytest.raises(AttributeError, match="no attribute 'logit'; did you mean 'logits'"):
        _ = pair.student.logit


def test_an_error_inside_kdbench_names_the_line_of_the_users_file_that_led_to_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def wrong(taps):\n    return taps.logitz\n")
    names: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    with pytest.raises(AttributeError) as caught:
        names["wrong"](Taps())
    assert explained(caught.value).endswith("did you mean 'logits'? (mine.py:2)")


NEEDY = '''
import torch
from kdbench import Loss


class Needy(Loss):
    """Cross-entropy of the student's classifier on the teacher's class means, if the classifier takes vectors of their width."""

    needs = frozenset({"classifier", "pooled", "labels", "teacher_features"})

    def bind(self, pair):
        labels, features = pair.labels, pair.teacher_features
        assert len(labels) == len(features) == 40 and features.shape[1] == pair.teacher.pooled.shape[1]
        self.register_buffer("features", features)
        self.project = torch.nn.Linear(features.shape[1], pair.student.pooled.shape[1])

    def forward(self, student, teacher, batch):
        weight, bias = student.classifier
        again = student.pooled @ weight.T + bias
        return (self.project(self.features) @ weight.T + bias).square().mean() + again.mean() + teacher.classifier[0].sum() * 0
'''


def test_a_loss_gets_the_classifiers_weights_and_the_teachers_features_of_the_training_images(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "needy.py").write_text(NEEDY)
    plan = plan_of(objectives="{needy: {loss: needy.py:Needy, weight: 0.1, task: 0}}", repeats="1", baselines="[needy]")
    probe.probe(plan)
    assert train(plan) == 0
    (row,) = [row for row in plan.rows if row.role == "student"]
    setup = Setup.of(row.cell, tmp_path, torch.device("cpu")).with_teacher(store, row.cell)
    member = setup.member(row.cell)
    assert setup.teacher is not None
    inputs, targets = setup.data.batch("train", np.arange(40))
    taps = setup.teacher.taps(inputs)
    torch.testing.assert_close(member.objective.losses[0].features, taps.pooled)
    member.step(inputs, targets, Batch(targets, torch.arange(40)), taps, first=True)
    # The gradient reaches the student's own classifier (the task has weight 0), and no weight of the teacher.
    assert member.student.head.weight.grad.abs().sum() > 0 and not any(one.requires_grad for one in setup.teacher.model.parameters())


def test_a_loss_that_needs_a_linear_classifier_is_refused_where_a_model_has_another_one() -> None:
    pair = Pair(Taps(pooled=torch.ones(2, 3)), Taps(pooled=torch.ones(2, 3), classifier=(torch.ones(4, 3), torch.ones(4))))

    class Needs(Loss):
        needs = frozenset({"classifier"})

    assert Needs().missing(pair) == "it needs the weights of the student's classifier, which is not one linear layer with a bias"
