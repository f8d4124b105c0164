"""Small pairs of models as the losses see them: taps, batches, and losses bound to them."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.errors import PartError
from kdbench.losses._base import OF_SCENES, TAPS, Batch, Loss, Pair, Regions, Taps, _each
from kdbench.scenes import Objects

from .values import modules

CLASSES = 5
LABELS = torch.arange(40) % CLASSES
WIDTHS = ((4, 6), (4, 4), (5, 5), (3, 3))
"""Student's and teacher's channels: a loss is shown the first pair that it does not refuse."""
LEVELS = ((17, 20), (9, 10), (5, 5), (3, 3))
"""Height and breadth of the levels, the finest of more than one patch of 16."""
STRIDES = (8, 16, 32, 64)
SIZE = (130, 152)
"""Of each image, in which the objects are."""
SECOND = 1000
"""What a second view's seed is larger by."""
SIDES = {5: 5, 3: 17}
"""The height of the last map by its channels, where it is not 2: large enough for a grid of fields, and for patches of 16."""


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def taps(n: int, width: int, seed: int, dtype: torch.dtype = torch.float64, second: Any = True) -> Taps:
    """`second`: with a second view."""
    side = SIDES.get(width, 2)
    stem, last = random(n, 3, 2 * side, 2 * side, seed=seed), random(n, width, side, side, seed=seed + 1) + 0.3
    preact = (stem, random(n, 3, 2 * side, 2 * side, seed=seed + 3), last)
    stages = tuple(one.relu() for one in preact)
    logits = 2 * random(n, CLASSES, seed=seed + 2)
    classifier = tuple(random(*shape, seed=seed + 4 + place).to(dtype) for place, shape in enumerate(((CLASSES, width), (CLASSES,))))
    levels = [random(n, width, *size, seed=seed + 6 + place) for place, size in enumerate(LEVELS)]
    dense = [2 * random(n, 2 * CLASSES, *size, seed=seed + 40 + place) for place, size in enumerate(LEVELS)]
    of_scenes = Taps(levels=levels, dense_logits=dense, regions=regions(n, seed + 60), strides=STRIDES)
    made = replace(of_scenes, logits=logits, pooled=stages[-1].mean((2, 3)), last=stages[-1].clone(), stages=stages, preact=preact)
    second = taps(n, width, seed + SECOND, dtype, second=False) if second else None
    return replace(made.map(lambda tensor: tensor.to(dtype)), classifier=classifier, second_view=second)


def regions(n: int, seed: int) -> Regions:
    """One in the first image, two in the second, three in the third, one in the fourth ..."""
    boxes = tuple(random(1 + i % 3, 4, seed=seed + i) for i in range(n))
    many = sum(map(len, boxes))
    return Regions(boxes, 2 * random(many, CLASSES + 1, seed=seed), torch.arange(many) % (CLASSES + 1), judged)


def judged(levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """The logits of regions by a second stage: of each image as many rows of its finest level."""
    return torch.cat([2 * level[0, : len(own), : CLASSES + 1] for level, own in zip(levels[0], boxes, strict=True)])


def logits_of_regions(student: Taps, teacher: Taps) -> tuple[Tensor, Tensor]:
    """Of both models, for the student's regions."""
    own, theirs = student.regions, teacher.regions
    return own.logits, theirs.head(teacher.levels, own.boxes) if theirs.head else theirs.logits


def batch(n: int, loss: Loss | None = None) -> Batch:
    """With the target that the loss wants: objects, if it is for detectors; else classes."""
    index = torch.arange(n) * 3
    is_of_scenes = loss is not None and bool(loss.needs & set(OF_SCENES))
    return Batch(target=objects(n) if is_of_scenes else LABELS[index], index=index, epoch=1, step=n)


def objects(n: int) -> Objects:
    """None in the first image, then one, two ..., which overlap."""
    boxes = [[[5.0 + 7 * i + 20 * j, 3.0 + 11 * j, 60.0 + 9 * i + 20 * j, 40.0 + 17 * j] for j in range(i % 4)] for i in range(n)]
    found = tuple(torch.tensor(one).view(-1, 4) for one in boxes)
    return Objects(found, tuple(torch.arange(len(one)) % CLASSES for one in found), (SIZE,) * n)


def for_classifiers(name: str, preset: str = "") -> bool:
    """Whether a loss, with its default preset or this one, is for nets that give one answer for an image."""
    presets = parts.load("loss", name).make.presets
    return not made(name, preset or next(iter(presets))).needs & set(OF_SCENES)


def pair(n: int = 6, widths: tuple[int, int] = WIDTHS[0], dtype: torch.dtype = torch.float64) -> Pair:
    head, net = nn.Linear(widths[1], CLASSES).to(dtype), Net(3, 3, widths[1]).to(dtype)
    student, teacher = taps(n, widths[0], 10, dtype), taps(n, widths[1], 20, dtype)
    return Pair(student, teacher, LABELS, head, net, random(len(LABELS), widths[1], seed=30, dtype=dtype))


class Net(nn.Module):
    """A model whose maps before the activation are those of a batch norm, with these channels."""

    def __init__(self, *widths: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(into, out, 1), nn.BatchNorm2d(out)) for into, out in itertools.pairwise((3, *widths))
        )

    def forward(self, images: Tensor) -> Taps:
        preact: list[Tensor] = []
        for block in self.blocks:
            preact.append(block(preact[-1].relu() if preact else images))
        return Taps(stages=[one.relu() for one in preact], preact=preact)


FURTHER: dict[str, list[dict[str, Any]]] = {
    "sp": [{"tap": "pooled"}, {"tap": "stages"}, {"compared": "means", "tap": "stages", "rescale": "batch"}],
    "cc": [
        {"order": 3, "gamma": 0.7, "reduction": "fro_over_n2"},
        {"kernel": "bilinear"},
        {"kernel": "rbf", "l2": False},
        {"embed": 5, "embedded": "student"},
        {"kernel": "lag1", "embed": 6, "embedded": "student"},
        {"kernel": "lag1", "l2": False, "embed": 8, "embedded": "frozen_teacher"},
    ],
    "rkd": [
        {"tap": "logits"},
        {"squared_distances": True},
        {"mean": "valid"},
        {"vertices": 3},
        {"vertices": 2, "mean": "valid", "l2": "both"},
        {"angle": 0.0, "vertices": 3},
        {"eps": "released"},
        {"eps": "released", "mean": "valid", "vertices": 3, "squared_distances": True},
    ],
    "cka": [
        {"tap": "pooled", "form": "neg"},
        {"tap": "logits"},
        {"tap": "stages", "pool": 3},
        {"pool": "gap"},
        {"estimator": "uncentred", "form": "sqrt"},
        {"kernel": "rbf", "estimator": "unbiased"},
        {"norms": "teacher", "estimator": "unbiased", "tap": "stages"},
        {"norms": "teacher", "estimator": "uncentred", "tap": "pooled", "form": "neg"},
        {"norms": "teacher", "kernel": "rbf"},
        {"kernel": "rbf", "estimator": "uncentred", "tap": "stages", "pool": 2, "form": "sqrt"},
    ],
    "rcka": [
        {"centred": False},
        {"inter": 0.0, "tap": "pooled"},
        {"gram_norm": "row_half"},
        {"gram_norm": "cosine"},
        {"gram_norm": "cosine", "centred": False, "inter": 0.0},
        {"feature_form": "gram_of_gram", "inter": 0.0},
        {"intra": 0.0, "inter": 0.0, "gram_norm": "cosine", "centred": False, "tap": "stages"},
        {"intra": 2.0, "official_bugs": True},
        {"intra": 0.0, "official_bugs": True},
    ],
}
FURTHER |= {name: module.FURTHER for name, module in modules().items()}
"""Options that no preset has: a test demands that every value of every option is in a preset or here."""


@functools.cache
def cases() -> list[tuple[str, str]]:
    """Every loss with different options: (name, preset or options), of every file that can be imported (the contract of the file is
    a test of its own). Of presets that differ in their weights alone the first."""
    found = {}
    for name in parts.names("loss"):
        try:
            part = parts.load("loss", name)
        except PartError:
            continue
        for case in [*part.make.presets, *map(str, FURTHER.get(name, []))]:
            found.setdefault((name, str(part.options(options_of(name, case)))), (name, case))
    return list(found.values())


@contextmanager
def case(*what: object) -> Iterator[None]:
    """Inside a loop over inputs: an error names the input."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {', '.join(map(str, what))}")
        raise


def each(inputs: Iterable[tuple[Any, ...]]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """One test, which makes this check of each input in turn."""
    inputs = list(inputs)
    assert inputs

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        def over_inputs() -> None:
            for one in inputs:
                with case(*one):
                    check(*one)

        over_inputs.__name__, over_inputs.__doc__ = check.__name__, check.__doc__
        return over_inputs

    return decorate


def every_preset(check: Callable[[str, str], None]) -> Callable[[str], None]:
    """One test a loss, which makes this check of each of its cases in turn."""

    def over_cases(name: str) -> None:
        for preset in [preset for other, preset in cases() if other == name]:
            with case(name, preset):
                check(name, preset)

    over_cases.__name__, over_cases.__doc__ = check.__name__, check.__doc__
    return pytest.mark.parametrize("name", sorted({name for name, _ in cases()}))(over_cases)


def options_of(name: str, case: str) -> dict[str, Any]:
    presets = parts.load("loss", name).make.presets
    return dict(presets[case].options) if case in presets else {str(one): one for one in FURTHER[name]}[case]


def made(name: str, case: str) -> Loss:
    part = parts.load("loss", name)
    return part.build(part.options(options_of(name, case)))


def fitting(loss: Loss, n: int = 6, dtype: torch.dtype = torch.float64) -> Pair:
    """The first pair that the loss serves."""
    pairs = _pairs(n, dtype)
    reasons = [loss.missing(one) for one in pairs]
    for one, reason in zip(pairs, reasons, strict=True):
        if reason is None:
            return replace(one, teacher_head=copy.deepcopy(one.teacher_head), teacher_model=copy.deepcopy(one.teacher_model))
    raise AssertionError(f"{type(loss).__name__} serves none of the toy pairs: {reasons}")


@functools.cache
def _pairs(n: int, dtype: torch.dtype) -> list[Pair]:
    return [pair(n, widths, dtype) for widths in WIDTHS]


def bound(name: str, preset: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Loss, Pair]:
    """A loss and a pair for it, with what it needs of the taps (`of_use`), which the caller may change."""
    loss = made(name, preset)
    one = fitting(loss, dtype=dtype)
    torch.manual_seed(seed)
    loss.bind(one)
    student, teacher = (of_use(loss, some).map(torch.clone) for some in (one.student, one.teacher))
    return loss.to(dtype), replace(one, student=student, teacher=teacher)


def of_use(loss: Loss, some: Taps) -> Taps:
    """The taps that the loss needs, and those that tests ask for sizes. Without the others, of which a pyramid has many, calls of these
    tests take a third of the time."""
    kept = {*loss.needs, "logits", "pooled", "last", "strides", "classifier", *(["levels"] if "regions" in loss.needs else [])}
    second = of_use(loss, some.second_view) if some.second_view and "second_view" in loss.needs else None
    return replace(Taps(**{name: getattr(some, name) for name in (*TAPS, "strides", "classifier") if name in kept}), second_view=second)


def apart(loss: Loss, student: Taps, teacher: Taps, given: Batch) -> dict[str, Tensor]:
    """The loss's parts, by a copy of it and with draws of its own: calling it twice is the same call."""
    torch.default_generator.manual_seed(1)  # torch.manual_seed also keeps a traceback for each kind of device: a fifth of these tests
    return copy.deepcopy(loss).parts(student, teacher, given)


def value(loss: Loss, student: Taps, teacher: Taps, given: Batch) -> Tensor:
    return torch.stack(list(apart(loss, student, teacher, given).values())).sum()


def hold(loss: Loss, name: str) -> None:
    """Later calls of the loss use what its first one computes without a gradient (`HELD`), as its derivative does."""
    for method in getattr(modules().get(name), "HELD", ()):
        setattr(loss, method, _first(getattr(loss, method)))


def has_jumps(name: str) -> bool:
    """Whether finite differences are to be taken one entry at a time (`JUMPS`)."""
    return getattr(modules().get(name), "JUMPS", False)


def _first(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    found: list[Tensor] = []

    def once(*given: Any) -> Tensor:
        if not found:
            found.append(method(*given))
        return found[0]

    return once


def leaves(some: Taps) -> Taps:
    return some.map(lambda tensor: tensor.detach().clone().requires_grad_())


def needed(loss: Loss, some: Taps) -> list[Tensor]:
    """The tensors of the taps that the loss says it needs."""
    found: list[Tensor] = []
    for view in views(loss, some):
        for name in (name for name in TAPS if name in loss.needs):
            found += _each(getattr(view, name))
    return found


def rebuilt(loss: Loss, some: Taps, tensors: Iterable[Tensor]) -> Taps:
    """The taps with these for those that the loss needs, in the order of `needed`."""
    left, made = list(tensors), []
    for view in views(loss, some):
        held = {name: getattr(view, name) for name in TAPS if name in loss.needs}
        new: dict[str, Any] = {name: [left.pop(0) for _ in _each(tap)] for name, tap in held.items()}
        for name, tap in held.items():
            if not isinstance(tap, tuple):
                new[name] = replace(tap, logits=new[name][0]) if isinstance(tap, Regions) else new[name][0]
        made.append(replace(view, **new))
    return made[0] if len(made) == 1 else replace(made[0], second_view=made[1])


def views(loss: Loss, some: Taps) -> list[Taps]:
    """The taps that the loss reads: of the images, and of their second view if it needs one."""
    return [some, *([some.second_view] if "second_view" in loss.needs else [])]


def gradients(loss: Loss, some: Taps) -> list[Tensor]:
    """The gradients that came to the taps that the loss needs: to every tap, though not to every stage of one."""
    found = []
    for view in views(loss, some):
        for name in (name for name in TAPS if name in loss.needs):
            came = [one.grad for one in _each(getattr(view, name)) if one.grad is not None]
            assert came, f"no gradient comes to '{name}'"
            found += came
    return found


def near(got: float, wanted: float, relative: float) -> bool:
    return math.isclose(got, wanted, rel_tol=relative, abs_tol=1e-12)


def permuted(some: Batch, order: Tensor) -> Batch:
    target = some.target
    if isinstance(target, Objects):
        target = Objects(*(tuple(one[place] for place in order) for one in (target.boxes, target.labels, target.sizes)))
    else:
        target = target[order]
    return replace(some, target=target, index=some.index[order])
