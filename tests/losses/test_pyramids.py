"""Losses on the levels of pyramids: against the values of their released code, levels paired by stride, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench import parts
from kdbench.errors import RefusedError
from kdbench.losses._base import OF_SCENES, Batch, Loss, Pair, Taps
from kdbench.losses._hcl import hcl
from kdbench.scenes import Objects

from . import toys
from .toys import each

with np.load(Path(__file__).parents[1] / "golden" / "detection.npz") as stored:
    NUMBERS = {key: stored[key] for key in stored.files}
CASES = ("even", "ceil", "tiny")
PRECISIONS = ((torch.float64, 1e-9), (torch.float32, 1e-4))
ELSEWHERE = "pcka_official"
"""In test_pcka.py."""


def built(name: str, **options: Any) -> Loss:
    part = parts.load("loss", name)
    return part.build(part.options(options))


def level(x: Tensor) -> Taps:
    return Taps(levels=(x,), dense_logits=(x,), strides=(8,))


def of(name: str, **options: Any) -> Callable[[str, Tensor, Tensor], Tensor]:
    """The loss on one level, which a learned map leaves as it is."""

    def value(case: str, x: Tensor, y: Tensor) -> Tensor:
        loss = built(name, **options)
        loss.prepare(Pair(level(x), level(y)))
        for module in loss.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight)
                nn.init.zeros_(module.bias)
        return loss.to(x.dtype)(level(x), level(y))

    return value


CONTEXT = {"conv_mask": "mask", "channel_add_conv": "add"}


def fgd(case: str, x: Tensor, y: Tensor) -> Tensor:
    loss = built("fgd")
    loss.prepare(Pair(level(x), level(y)))
    own = {"s": loss.student_context[0], "t": loss.teacher_context[0]}
    for key in [key for key in NUMBERS if key.startswith(f"{case}/fgd/state/")]:
        name, *rest = key.rpartition("/")[2].split(".")
        module, _, side = name.rpartition("_")
        weight = own[side].get_parameter(".".join([CONTEXT[module], *rest]))
        weight.data.copy_(torch.tensor(NUMBERS[key]))
    boxes = tuple(torch.tensor(NUMBERS[f"{case}/fgd/boxes{place}"]) for place in range(2))
    sizes = tuple(map(tuple, NUMBERS[f"{case}/fgd/img_hw"].tolist()))
    target = Objects(boxes, tuple(torch.zeros(len(one), dtype=torch.int64) for one in boxes), sizes)
    return loss.to(x.dtype)(level(x), level(y), Batch(target))


FORMS: dict[str, Callable[[str, Tensor, Tensor], Tensor]] = {
    "mimic_mse": of("mimic"),
    "pkd": of("pkd"),
    "cwd/tau1": of("cwd"),
    "cwd/tau4": of("cwd", tau=4.0),
    "hcl": lambda case, x, y: hcl(x, y),
    "dist_map/sigmoid": of("dist", tau=1.0, tap="dense_logits"),
    "fgd/retina_a1e-3_b5e-4_g5e-4_l5e-6_temp.5": fgd,
}
"""By the name of the stored value."""


@each((case, key, *precision) for case in CASES for key in FORMS for precision in PRECISIONS)
def test_value_and_gradient_are_those_of_the_released_code(case: str, key: str, dtype: torch.dtype, tolerance: float) -> None:
    student = torch.tensor(NUMBERS[f"{case}/input/student"], dtype=dtype, requires_grad=True)
    value = FORMS[key](case, student, torch.tensor(NUMBERS[f"{case}/input/teacher"], dtype=dtype))
    value.backward()
    wanted = torch.tensor(NUMBERS[f"{case}/map/{key}/grad"])
    assert value.dtype == dtype and toys.near(value.item(), float(NUMBERS[f"{case}/map/{key}/value"]), tolerance)
    assert (student.grad - wanted).norm() <= tolerance * wanted.norm()


def test_every_stored_value_is_compared() -> None:
    stored = {key.split("/map/")[1].removesuffix("/value") for key in NUMBERS if key.endswith("/value")}
    assert {key for key in stored if not key.startswith(ELSEWHERE)} == set(FORMS)


def pyramid(strides: tuple[int, ...], width: int = 4, seed: int = 1, **changes: Any) -> Taps:
    maps = [toys.random(2, width, 256 // stride, 320 // stride, seed=seed + stride) for stride in strides]
    return replace(Taps(levels=maps, dense_logits=maps, strides=strides), **changes)


ON_LEVELS = [("pcka", {"patch": 4, "tap": "levels"}), ("pkd", {}), ("cwd", {}), ("mimic", {}), ("mgd", {"tap": "levels"})]


@each([*ON_LEVELS, ("reviewkd_fpn", {})])
def test_levels_are_paired_by_stride_and_named_by_it(name: str, options: dict[str, Any]) -> None:
    student, teacher = pyramid((4, 8, 16, 32), seed=1), pyramid((8, 16, 32, 64), seed=2)
    loss = built(name, **options)
    torch.manual_seed(0)
    loss.prepare(Pair(student, teacher))
    loss.double()
    found = toys.apart(loss, student, teacher, Batch())
    assert sorted(part.rpartition("_")[2] for part in found) == ["P3", "P4", "P5"]
    assert loss.notes(Pair(student, teacher)) == []
    # The same without the levels that only one of them has.
    cut = toys.apart(
        loss, *(replace(one, levels=one.levels[a:b], strides=(8, 16, 32)) for one, a, b in ((student, 1, 4), (teacher, 0, 3))), Batch()
    )
    assert all(torch.equal(cut[part], value) for part, value in found.items())


@each(ON_LEVELS)
def test_some_levels_are_chosen_by_their_places_among_the_common_ones(name: str, options: dict[str, Any]) -> None:
    student, teacher = pyramid((4, 8, 16, 32), seed=1), pyramid((8, 16, 32, 64), seed=2)
    loss = built(name, **options, levels=[0, 2])
    loss.prepare(Pair(student, teacher))
    assert sorted(part.rpartition("_")[2] for part in loss.double().parts(student, teacher)) == ["P3", "P5"]
    refused = built(name, **options, levels=[0, 3]).missing(Pair(student, teacher))
    assert refused == "`levels` has the place 3, counted from 0, and both models have 3 in common: P3, P4, P5"
    for wrong in ([], [-1], [1, 0], [1, 1]):
        with pytest.raises(Exception, match="levels are places"):
            built(name, **options, levels=wrong)


def test_what_cannot_be_paired_is_refused_with_what_to_do() -> None:
    student = pyramid((8, 16))
    for name, options in ON_LEVELS:
        loss = built(name, **options)
        assert "those of the student are 8, 16, those of the teacher 32, 64" in (loss.missing(Pair(student, pyramid((32, 64)))) or "")
        wide = loss.missing(Pair(student, pyramid((8, 16), width=6)))
        if name in ("mimic", "mgd"):
            assert wide is None
        else:
            assert wide == (
                "it needs equal channels: at P3 the student has 4, the teacher 6; give both pyramids one width, or use fgd, mgd, mimic "
                "or reviewkd_fpn, which learn a map of channels"
            )
        short = replace(student, levels=[one[:, :, :-1] for one in student.levels])
        assert name == "pcka" or "at P3 the student's is 31x40, the teacher's 32x40" in (loss.missing(Pair(short, student)) or "")
    other = replace(student, dense_logits=[one.repeat(1, 2, 1, 1) for one in student.levels])
    for name in ("kd", "dist"):
        reason = built(name, tap="dense_logits").missing(Pair(student, other)) or ""
        assert "equal logits at a position (anchors times classes): at P3 the student has 4, the teacher 8" in reason


def test_levels_of_one_or_two_patches_are_skipped_counted_and_said_when_planning() -> None:
    student, teacher = (pyramid((8, 16, 32, 64, 128), seed=seed) for seed in (1, 2))  # 6, 2, 1, 1, 1 patches of 16
    pair, skipped = Pair(student, teacher), {False: ("P5", "P6", "P7"), True: ("P4", "P5", "P6", "P7")}
    for centred, names in skipped.items():
        loss = built("pcka", tap="levels", inter=1.0, centred=centred)
        assert loss.missing(pair) is None
        told = loss.notes(pair)
        assert len(told) == len(names) and all(f"skips level {name} (" in text for name, text in zip(names, told, strict=True))
        assert told[-1] == f"skips level P7 (1 patch of 16, and it needs {loss._fewest}): a smaller `patch` has more"
        leaves = toys.leaves(student)
        found = loss.parts(leaves, teacher)
        torch.stack([*found.values()]).sum().backward()
        for name, x in zip(("P3", "P4", "P5", "P6", "P7"), leaves.levels, strict=True):
            for part in ("intra", "inter"):
                assert (found[f"{part}_{name}"] == 0) == (name in names)
            assert x.grad.isfinite().all() and bool(x.grad.any()) == (name not in names)
        assert loss.skipped == len(names)
        loss.parts(leaves, teacher)
        assert loss.skipped == 2 * len(names)


def test_pcka_refuses_levels_of_which_none_has_enough_patches() -> None:
    few = Pair(*(pyramid((32, 64), seed=seed) for seed in (1, 2)))
    reason = built("pcka", tap="levels").missing(few)
    assert reason == "P5, 8x10, has 1 patches of 16; P6, 4x5, has 1 patches of 16, and it needs 2: set a smaller `patch`"
    assert built("pcka", tap="levels", patch=4).missing(few) is None


def losses_for_classifiers() -> list[tuple[str, str]]:
    return [(name, case) for name, case in toys.cases() if not toys.made(name, case).needs & set(OF_SCENES)]


def test_every_loss_for_classifiers_refuses_detectors_with_the_reason_and_every_other_one_takes_them() -> None:
    given = Pair(*(toys.taps(2, 4, seed) for seed in (1, 2)))
    of_scenes = {"levels", "dense_logits", "regions", "strides"}
    empty = {name: () if isinstance(value, tuple) else None for name, value in vars(given.student).items() if name not in of_scenes}
    empty |= {"second_view": None, "relations": {}}
    pair = replace(given, student=replace(given.student, **empty), teacher=replace(given.teacher, **empty), labels=toys.LABELS)
    wanted = losses_for_classifiers()
    for name, case in toys.cases():
        loss = toys.made(name, case)
        if (name, case) in wanted:
            reason = loss.missing(pair) or ""
            assert "a detector has the maps of a pyramid (`levels`), and neither one vector nor one map of an image" in reason, (name, case)
            with pytest.raises(RefusedError, match="a detector has the maps"):
                loss.prepare(pair)
        elif "patch" not in parts.load("loss", name).known():
            loss.prepare(pair)
    assert (built("pcka").missing(pair) or "").endswith("of an image; use pcka:fpn or pcka:fpn_faster_rcnn or pcka:fpn_centred")
    assert (built("kd").missing(pair) or "").endswith("of an image; use kd:dense or kd:regions")


def test_a_detector_without_dense_logits_is_refused_with_the_reason() -> None:
    with_head, without = toys.taps(2, 4, 1), replace(toys.taps(2, 4, 2), dense_logits=())
    for name in ("kd", "dist"):
        reason = built(name, tap="dense_logits").missing(Pair(with_head, without))
        assert reason == (
            "it needs the tap 'dense_logits', which the teacher does not have: a detector has it if its head gives class logits at each "
            "position of its levels, as fcos and retinanet"
        )


def test_the_foreground_is_what_boxes_touch_and_an_image_without_objects_is_all_background() -> None:
    x, y = (toys.random(1, 3, 4, 5, seed=seed) for seed in (1, 2))
    loss = built("fgd", attention=0.0, context=0.0, foreground=1.0, background=1.0)
    loss.prepare(Pair(level(x), level(y)))

    def value(*boxes: list[float]) -> dict[str, float]:
        target = Objects((torch.tensor([*boxes]).view(-1, 4),), (torch.zeros(len(boxes), dtype=torch.int64),), ((40, 50),))
        return {part: one.item() for part, one in loss.double().parts(level(x), level(y), Batch(target)).items()}

    nothing, whole = value(), value([0.0, 0.0, 50.0, 40.0])
    assert nothing["foreground"] == 0 < nothing["background"] and whole["background"] == 0 < whole["foreground"]
    # All positions weigh the same, 1 over those of the box, which has one more row and column than the map.
    assert toys.near(whole["foreground"] * (5 * 6), nothing["background"] * (4 * 5), 1e-12)
    # Of two boxes the smaller one decides.
    small = [12.0, 12.0, 18.0, 18.0]
    assert value(small, [0.0, 0.0, 50.0, 40.0]) == value([0.0, 0.0, 50.0, 40.0], small) != whole


def test_a_mask_of_positions_is_one_for_all_channels_and_drawn_anew_for_each_level() -> None:
    student, teacher = pyramid((8, 16), seed=1), pyramid((8, 16), seed=2)
    loss = built("mgd", tap="levels", masks="positions", mask=0.65)
    loss.prepare(Pair(student, teacher))
    loss.double()
    kept: list[Tensor] = []
    for net in loss.generation:
        net.register_forward_pre_hook(lambda module, given: kept.append(given[0] != 0))
    torch.manual_seed(0)
    found = loss.parts(student, teacher)
    assert all((one == one[:, :1]).all() for one in kept)
    assert abs(kept[0].double().mean().item() - 0.35) < 0.03
    wanted = {}
    for name, net, mask, x, y in zip(("P3", "P4"), loss.generation, kept.copy(), student.levels, teacher.levels, strict=True):
        wanted[name] = ((net(x * mask) - y) ** 2).sum() / 2
    assert found.keys() == wanted.keys() and all(toys.near(found[name].item(), one.item(), 1e-12) for name, one in wanted.items())
    before = len(kept)
    loss.parts(student, teacher)
    assert not torch.equal(kept[before], kept[0])
