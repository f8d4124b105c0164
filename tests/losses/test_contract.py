"""What holds for every loss, from the moment that its file exists."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.errors import PartError, RefusedError
from kdbench.losses._base import CONTEXT, LAWS, TAPS, Batch, Loss, Pair, Preset, Taps

from . import toys
from .toys import every_preset

CASES = toys.cases()


def lacks(module: ModuleType, name: str) -> list[str]:
    """What a loss file lacks of the contract, in words; the checks of a call are tests of their own."""
    own = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    losses = [one for one in own if issubclass(one, Loss)]
    if len(own) != 1 or len(losses) != 1:
        return [f"exactly one public class, derived from Loss: it has {[one.__name__ for one in own]}"]
    return lacks_of(losses[0], name)


def lacks_of(make: Any, name: str) -> list[str]:
    found = []
    doc = inspect.cleandoc(make.__doc__ or "").splitlines()
    for word in ("Source:", "Defaults:", "Departs:"):
        if not any(line.startswith(word) and len(line) > len(word) + 3 for line in doc):
            found.append(f"a line of the docstring that begins with '{word}'")
    if type(make.version) is not int or make.version < 1:
        found.append("an integer `version` of at least 1")
    if make.forward is Loss.forward:
        found.append("a method `forward`")
    found += _options(make)
    if not isinstance(make.presets, Mapping) or not make.presets:
        return [*found, "presets"]
    for preset, one in make.presets.items():
        found += [f"preset '{preset}': {reason}" for reason in _preset(make, name, one)]
    return found


def _options(make: Any) -> list[str]:
    hints = get_type_hints(make.__init__)
    found = []
    for key, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            found.append(f"the option '{key}' as a keyword only")
        if key not in hints:
            found.append(f"a type for the option '{key}'")
    return found


def _preset(make: Any, name: str, preset: Preset) -> list[str]:
    found = [] if len(preset.source) > 10 else ["a source"]
    part = parts.Part("loss", name, make, make.version)
    try:
        options = part.options(dict(preset.options))
        loss = part.build(options)
        for other, _, given, *_schedule in preset.terms:
            parts.load("loss", other).options(dict(given))
    except PartError as error:
        return [*found, str(error)]
    for key, value in options.items():
        if not hasattr(loss, key) or parts._plain(getattr(loss, key)) != value:
            found.append(f"the option '{key}' as an attribute of the same name")
    for what, known in (("needs", {*TAPS, *CONTEXT}), ("laws", set(LAWS))):
        try:
            said = getattr(loss, what)
        except NotImplementedError:
            found.append(f"the property `{what}`")
            continue
        if not isinstance(said, frozenset) or said - known:
            found.append(f"a `{what}` that is a frozenset of names among {sorted(known)}")
    return found


def module_of(path: Path, text: str) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"loss_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", parts.names("loss"))
def test_file_lacks_nothing(name: str) -> None:
    make = parts.load("loss", name).make
    assert lacks(sys.modules[make.__module__], name) == []


def test_an_empty_file_is_told_that_it_lacks_a_class(tmp_path: Path) -> None:
    assert lacks(module_of(tmp_path / "empty.py", ""), "empty") == ["exactly one public class, derived from Loss: it has []"]


def test_a_class_without_anything_is_told_all_that_it_lacks(tmp_path: Path) -> None:
    text = (
        "from kdbench.losses._base import Loss\n"
        "class Bare(Loss):\n"
        "    version = True\n"
        "    def __init__(self, gamma=1.0):\n        super().__init__()\n"
    )
    told = "\n".join(lacks(module_of(tmp_path / "bare.py", text), "bare"))
    for word in ("Source:", "Defaults:", "Departs:", "version", "forward", "keyword", "type for the option 'gamma'", "presets"):
        assert word in told


def test_a_class_with_a_preset_alone_is_told_that_it_lacks_the_rest(tmp_path: Path) -> None:
    text = (
        "from kdbench.losses._base import Loss, Preset\n"
        "class Half(Loss):\n"
        "    presets = {'a': Preset('', 1.0), 'b': Preset('a long source', 1.0, options={'delta': 2})}\n"
        "    def __init__(self, *, gamma: float = 1.0):\n        super().__init__()\n"
    )
    told = "\n".join(lacks(module_of(tmp_path / "half.py", text), "half"))
    for word in ("'a': a source", "no option 'delta'", "'gamma' as an attribute", "`needs`", "`laws`"):
        assert word in told


@pytest.mark.parametrize("name", parts.names("loss"))
def test_every_value_of_every_option_is_among_the_cases(name: str) -> None:
    part = parts.load("loss", name)
    # Options of `added` are left out at their neutral value; a loss without options has the base's __init__, which says what it returns.
    tested = [{**part.make.added, **part.options(toys.options_of(name, case))} for other, case in CASES if other == name]
    hints = {key: hint for key, hint in get_type_hints(part.make.__init__).items() if key != "return"}
    for key, hint in hints.items():
        for value in values(hint):
            assert any(matches(one[key], value) for one in tested), f"{name}: no case has {key} = {value}"


def values(hint: Any) -> list[Any]:
    """What an option of this type may be: each value of a Literal, True and False, None; of others the type, for any of its values."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return [value for one in get_args(hint) for value in values(one)]
    return [True, False] if hint is bool else [None] if hint is NoneType else [hint]


def matches(value: Any, wanted: Any) -> bool:
    kind = get_origin(wanted) or wanted
    return type(value) is kind if isinstance(kind, type) else value == wanted


def test_values_of_types_are_told_apart() -> None:
    assert values(Literal["a", "b"] | int | None) == ["a", "b", int, None]
    assert values(bool) == [True, False]
    assert matches(3, int) and not matches("gap", int) and not matches(None, int) and matches(None, None)


@every_preset
def test_planning_binds_and_calls_it_without_any_data(name: str, preset: str) -> None:
    loss, given = toys.made(name, preset), toys.fitting(toys.made(name, preset))
    with torch.device("meta"):
        student, teacher = (
            replace(side.map(to_meta), classifier=tuple(map(to_meta, side.classifier))) for side in (given.student, given.teacher)
        )
        head, net, features = given.teacher_head.to("meta"), given.teacher_model.to("meta"), to_meta(given.teacher_features)
        pair = Pair(student, teacher, toys.LABELS.to("meta"), head, net, features)
        assert loss.missing(pair) is None
        loss.bind(pair)
        loss.double()
        for part in loss.parts(student, teacher, toys.batch(6, loss)).values():
            assert part.device.type == "meta" and part.shape == ()


@every_preset
def test_binding_to_shapes_alone_leaves_nothing_on_the_meta_device(name: str, preset: str) -> None:
    loss, given = toys.made(name, preset), toys.fitting(toys.made(name, preset))
    loss.bind(replace(given, student=given.student.map(to_meta), teacher=given.teacher.map(to_meta)))
    assert [key for key, tensor in loss.state_dict(keep_vars=True).items() if tensor.device.type == "meta"] == []


def to_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


@every_preset
def test_what_it_needs_is_asked_for_before_training_and_before_a_call(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset)
    assert loss.missing(Pair(Taps(), Taps())) is not None
    for need in loss.needs & {*TAPS, "second_view"}:
        without = replace(given.student, **{need: () if isinstance(getattr(given.student, need), tuple) else None})
        assert need in (loss.missing(replace(given, student=without)) or "")
        with pytest.raises(RefusedError, match=need):
            loss(without, given.teacher, toys.batch(6, loss))
    for need in loss.needs & set(TAPS) if "second_view" in loss.needs else ():
        without = replace(given.student.second_view, **{need: () if need in ("stages", "preact") else None})
        with pytest.raises(RefusedError, match=f"'{need}' of the second view"):
            loss(replace(given.student, second_view=without), given.teacher, toys.batch(6, loss))
    for need in loss.needs & {"index", "target"}:
        with pytest.raises(RefusedError, match=need):
            loss(given.student, given.teacher, replace(toys.batch(6, loss), **{need: None}))


PATTERNS = {
    "ordinary": lambda s, t: (s, t),
    "huge": lambda s, t: (s.map(lambda x: x * 1e6), t.map(lambda x: x * 1e6)),
    "tiny": lambda s, t: (s.map(lambda x: x * 1e-6), t.map(lambda x: x * 1e-6)),
    "huge student, tiny teacher": lambda s, t: (s.map(lambda x: x * 1e6), t.map(lambda x: x * 1e-6)),
    "zero": lambda s, t: (s.map(torch.zeros_like), t.map(torch.zeros_like)),
    "zero student": lambda s, t: (s.map(torch.zeros_like), t),
    "zero teacher": lambda s, t: (s, t.map(torch.zeros_like)),
    "zero sample": lambda s, t: (s.map(lambda x: x * (torch.arange(len(x)) > 0).view(-1, *[1] * (x.ndim - 1))), t),
    "constant": lambda s, t: (s.map(lambda x: torch.full_like(x, 0.7)), t.map(lambda x: torch.full_like(x, 1.3))),
    "samples all equal": lambda s, t: (s.map(equal), t.map(equal)),
    "student's samples equal": lambda s, t: (s.map(equal), t),
    "teacher's samples equal": lambda s, t: (s, t.map(equal)),
    "pairs of equal samples": lambda s, t: (s.map(doubled), t.map(doubled)),
    "student's in equal pairs": lambda s, t: (s.map(doubled), t),
    "pairs of nearly equal samples": lambda s, t: (s.map(lambda x: doubled(x) + 1e-6 * x), t),
    "large mean": lambda s, t: (s.map(lambda x: x + 1000), t.map(lambda x: x + 1000)),
    "all negative": lambda s, t: (s.map(lambda x: -1 - x.abs()), t),
}


def equal(x: Tensor) -> Tensor:
    return x[:1].expand_as(x).clone()


def doubled(x: Tensor) -> Tensor:
    return x[torch.arange(len(x)) // 2]


@functools.cache
def patterned(pattern: str, dtype: torch.dtype, n: int, widths: tuple[int, int]) -> tuple[Taps, Taps]:
    student, teacher = PATTERNS[pattern](toys.taps(n, widths[0], 3), toys.taps(n, widths[1], 6))
    return student.map(lambda x: x.to(dtype)), teacher.map(lambda x: x.to(dtype))


@every_preset
def test_value_and_gradient_are_finite(name: str, preset: str) -> None:
    finite(name, preset, torch.float32)


@pytest.mark.slow
@every_preset
def test_value_and_gradient_are_finite_for_taps_in_bfloat16(name: str, preset: str) -> None:
    finite(name, preset, torch.bfloat16)


def finite(name: str, preset: str, dtype: torch.dtype) -> None:
    loss, given = toys.bound(name, preset, dtype=torch.float32)
    widths = given.student.last.shape[1], given.teacher.last.shape[1]
    for pattern, n in itertools.product(PATTERNS, (1, 2, 3, 8)):
        with toys.case(pattern, f"n = {n}"):
            student, teacher = (toys.of_use(loss, some) for some in patterned(pattern, dtype, n, widths))
            student, teacher = toys.leaves(student), teacher.map(torch.clone)
            value = toys.value(loss, student, teacher, toys.batch(n, loss))
            value.backward()
            assert value.dtype == torch.float32 and value.isfinite()
            for gradient in toys.gradients(loss, student):
                assert gradient.isfinite().all()


@every_preset
def test_a_student_equal_to_its_teacher_is_finite(name: str, preset: str) -> None:
    loss = toys.made(name, preset)
    same = toys.pair(widths=toys.WIDTHS[1])
    if loss.missing(same) is not None:
        return  # it refuses models of equal width
    loss.bind(same)
    student = toys.leaves(same.teacher)
    value = toys.value(loss.double(), student, same.teacher, toys.batch(6, loss))
    value.backward()
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in toys.gradients(loss, student))


@every_preset
def test_gradient_is_that_of_finite_differences(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset)
    widths = given.student.last.shape[1], given.teacher.last.shape[1]
    # Of these no channel of an image is zero: there, what divides by a channel's norm has no gradient.
    student, teacher = toys.of_use(loss, toys.taps(5, widths[0], 32)), toys.of_use(loss, toys.taps(5, widths[1], 40))
    # What a loss settles at its first call, from that batch, has no gradient.
    toys.hold(loss, name)
    torch.manual_seed(2)
    loss(student, teacher, toys.batch(5, loss))
    inputs = [tensor.clone().requires_grad_() for tensor in toys.needed(loss, student)]

    def call(*tensors: Tensor) -> Tensor:
        return toys.value(loss, toys.rebuilt(loss, student, tensors), teacher, toys.batch(5, loss))

    assert torch.autograd.gradcheck(call, inputs, fast_mode=not toys.has_jumps(name))


@every_preset
def test_float64_stays_float64_and_bfloat16_becomes_float32(name: str, preset: str) -> None:
    for dtype, wanted in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        loss, given = toys.bound(name, preset, dtype=wanted)
        student, teacher = (some.map(lambda x, to=dtype: x.to(to)) for some in (given.student, given.teacher))
        found = toys.apart(loss, student, teacher, toys.batch(6, loss))
        assert {part.dtype for part in found.values()} == {wanted}
        assert all(part.shape == () for part in found.values())


@every_preset
def test_autocast_around_it_changes_nothing(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset, dtype=torch.float32)
    plain = toys.value(loss, given.student, given.teacher, toys.batch(6, loss))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(toys.value(loss, given.student, given.teacher, toys.batch(6, loss)), plain)


@every_preset
def test_the_student_gets_a_gradient_and_the_teacher_none(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset)
    student, teacher = toys.leaves(given.student), toys.leaves(given.teacher)
    toys.value(loss, student, teacher, toys.batch(6, loss)).backward()
    assert all(tensor.grad is None for tensor in teacher.tensors())
    without = sum(not gradient.any() for gradient in toys.gradients(loss, student))
    assert without == len(loss.notes(given)), "only what it says to skip has no gradient"


@every_preset
def test_what_it_is_given_it_leaves_as_it_is(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset)
    batch = toys.batch(6, loss)
    target = [batch.target] if isinstance(batch.target, Tensor) else [*batch.target.boxes, *batch.target.labels]
    tensors = [*given.student.tensors(), *given.teacher.tensors(), *target, batch.index]
    before = [tensor.clone() for tensor in tensors]
    student = given.student.map(lambda tensor: tensor.requires_grad_())
    toys.value(loss, student, given.teacher, batch).backward()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


@every_preset
def test_what_it_keeps_can_be_saved_and_loaded(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset, seed=0)
    other, _ = toys.bound(name, preset, seed=1)
    batch: Batch = toys.batch(6, loss)
    torch.manual_seed(2)
    loss(given.student, given.teacher, batch)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(toys.value(loss, given.student, given.teacher, batch), toys.value(other, given.student, given.teacher, batch))


@every_preset
def test_training_and_evaluation_mode_give_the_same_value(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset)
    if any(isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)) for part in loss.modules()):
        return  # its own layers differ between the two modes
    training = toys.value(loss.train(), given.student, given.teacher, toys.batch(6, loss))
    assert torch.equal(toys.value(loss.eval(), given.student, given.teacher, toys.batch(6, loss)), training)


def changed(law: str, student: Taps, teacher: Taps, batch: Batch, seed: int) -> tuple[Taps, Taps, Batch]:
    """The same batch after the change that the law speaks of."""
    draw = torch.Generator().manual_seed(seed)
    # So small that a constant which is added to the features' size shows.
    small = 1e-3 if seed == 2 else 1.0
    if law == "permutation":
        order = torch.randperm(len(student.logits), generator=draw)
        return student.rows(order), teacher.rows(order), toys.permuted(batch, order)

    def change(x: Tensor) -> Tensor:
        channels = x.shape[1]
        wide = (-1, *[1] * (x.ndim - 2))
        if law == "translation":
            return x + 2 * torch.randn(channels, generator=draw, dtype=x.dtype).view(wide)
        if law == "scale":
            return x * 3.7 * small
        if law == "sample_scale":
            return x * small * (0.5 + 2 * torch.rand(len(x), generator=draw, dtype=x.dtype)).view(-1, *[1] * (x.ndim - 1))
        rotation = torch.linalg.qr(torch.randn(channels, channels, generator=draw, dtype=x.dtype))[0]
        return torch.einsum("nc...,cd->nd...", x, rotation)

    return student.map(change), teacher, batch


@every_preset
def test_a_law_holds_where_it_is_declared_and_is_violated_where_it_is_not(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset)
    plain = toys.value(loss, given.student, given.teacher, toys.batch(6, loss)).item()
    for law in LAWS:
        moved = [toys.value(loss, *changed(law, given.student, given.teacher, toys.batch(6, loss), seed)).item() for seed in range(3)]
        if law in loss.laws:
            assert all(toys.near(one, plain, 1e-9) for one in moved), law
        else:
            assert not all(toys.near(one, plain, 1e-6) for one in moved), law


@every_preset
def test_a_loss_that_couples_samples_alone_is_the_mean_over_parts_and_another_one_is_not(name: str, preset: str) -> None:
    loss, given = toys.bound(name, preset)
    batch = toys.batch(6, loss)

    def over(*cuts: int) -> float:
        total = 0.0
        for start, end in itertools.pairwise((0, *cuts, 6)):
            rows = torch.arange(start, end)
            sides = (side.rows(rows) for side in (given.student, given.teacher))
            total += len(rows) / 6 * toys.value(loss, *sides, toys.permuted(batch, rows)).item()
        return total

    whole, divided = over(), [over(3), over(1, 2, 3, 4, 5)]
    if loss.couples == "sample":
        assert all(toys.near(one, whole, 1e-9) for one in divided)
    else:
        assert loss.couples == "batch" and not all(toys.near(one, whole, 1e-6) for one in divided)
