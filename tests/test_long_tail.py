"""Long-tailed subsets: the class sizes of the literature, in memory and in files, before and after a validation split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.datasets._base import Subset
from kdbench.datasets.cifar10 import Cifar10
from kdbench.datasets.cifar100 import Cifar100
from kdbench.datasets.digits import Digits
from kdbench.datasets.folder import Folder
from kdbench.datasets.imagenet import Imagenet
from kdbench.datasets.tiny_imagenet import TinyImagenet
from kdbench.errors import DataError, OptionsError, PartError
from kdbench.parts import load as load_part
from kdbench.plan.matrix import Plan


def of_ldam(most: int, n_classes: int, imbalance: float) -> list[int]:
    """`get_img_num_per_cls` of the code of Cao et al. (LDAM-DRW, imbalance_cifar.py), whose factor is 1 / imbalance."""
    return [int(most * ((1 / imbalance) ** (label / (n_classes - 1.0)))) for label in range(n_classes)]


@pytest.mark.parametrize(
    ("part", "imbalance", "images"),
    [(Cifar100, 100, 10847), (Cifar100, 50, 12608), (Cifar100, 10, 19573), (Cifar10, 100, 12406), (Cifar10, 10, 20431)],
)
def test_the_sizes_of_long_tailed_cifar_are_those_of_the_literature(part: Any, imbalance: int, images: int) -> None:
    made = part(subset={"imbalance": imbalance})
    assert made.n_train == images
    counts = made.subset.counts(made.n_classes, made.per_class)
    assert counts == of_ldam(made.per_class, made.n_classes, imbalance)
    assert counts[0] == made.per_class and counts[-1] == made.per_class // imbalance


def test_an_imbalance_as_large_as_the_largest_class_leaves_one_image_in_the_last() -> None:
    for most in (3, 7, 49, 98, 500):  # 49 * (1 / 49) is below 1 in floating point
        assert Subset(imbalance=most).counts(10, most)[-1] == 1


def sizes(data: Any, split: str) -> list[int]:
    return torch.bincount(data.targets(split), minlength=data.n_classes).tolist()


@pytest.mark.parametrize(("options", "most"), [({"imbalance": 20}, 80), ({"per_class": 30, "imbalance": 10.0}, 30)])
@pytest.mark.parametrize("validation", [0.0, 0.1, 0.5, 0.9])
def test_digits_keep_the_first_images_of_each_class_and_hold_out_a_share_of_each(
    options: dict[str, Any], most: int, validation: float
) -> None:
    part = Digits(**options, validation=validation)
    data, whole = part.load(Path()), Digits().load(Path())
    counts = of_ldam(most, 10, options["imbalance"])
    held = [min(round(count * validation), count - 1) for count in counts]

    assert sizes(data, "train") == [count - gone for count, gone in zip(counts, held, strict=True)]
    assert data.size("train") == part.n_train
    assert sizes(data, "test") == sizes(whole, "test")
    if validation:
        assert sizes(data, "val") == held
    pixels = {row.numpy().tobytes() for split in ("train", "val") if data.size(split) for row in getattr(data, split).pixels}
    for label, count in enumerate(counts):
        mine = whole.train.pixels[whole.train.labels == label]
        assert sum(row.numpy().tobytes() in pixels for row in mine[:count]) == count


def put_pictures(folder: Path, names: list[str], counts: list[int]) -> None:
    draw = np.random.default_rng(0)
    for split, many in (("train", counts), ("val", [3] * len(names))):
        for name, count in zip(names, many, strict=True):
            (folder / "pets" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8))
                image.save(folder / "pets" / split / name / f"{number}.png")


def pets(**options: Any) -> Folder:
    return Folder(folder="pets", classes=4, size=16, **options)


def test_a_folder_of_unequal_classes_begins_at_the_size_of_its_smallest(tmp_path: Path) -> None:
    put_pictures(tmp_path, ["ant", "bee", "cat", "dog"], [9, 12, 8, 10])
    data = pets(subset={"imbalance": 4}).load(tmp_path)  # type: ignore[arg-type]

    assert sizes(data, "train") == of_ldam(8, 4, 4) == [8, 5, 3, 2]
    assert sizes(data, "test") == [3] * 4
    assert sizes(pets(subset={"classes": 2, "imbalance": 3}).load(tmp_path), "train") == [9, 3]  # type: ignore[arg-type]
    assert pets(subset={"imbalance": 4}, train_images=39).n_train is None  # type: ignore[arg-type]
    part = pets(subset={"per_class": 9, "imbalance": 3}, validation=0.5)  # type: ignore[arg-type]
    data = part.load(tmp_path)
    assert part.n_train == data.size("train") and sizes(data, "val") == [4, 3, 2, 2]  # halves of 9, 6, 4 and 3, rounded


def test_a_class_with_too_few_images_and_a_tail_without_one_are_refused(tmp_path: Path) -> None:
    put_pictures(tmp_path, ["ant", "bee", "cat", "dog"], [9, 4, 8, 10])
    with pytest.raises(DataError, match="class bee has 4 training images, and 6 were asked for"):
        pets(subset={"per_class": 9, "imbalance": 3}).load(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="imbalance must be above 1 and at most 4"):
        pets(subset={"imbalance": 5}).load(tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("imbalance", "words"),
    [(1, "leave it out"), (0.5, "above 1"), (0, "above 1"), (-10, "above 1"), (501, "at most 500"), (float("nan"), "above 1")],
)
def test_an_imbalance_that_means_nothing_is_refused(imbalance: float, words: str) -> None:
    for given in ({"imbalance": imbalance}, Subset(imbalance=imbalance)):
        with pytest.raises(ValueError, match=words):
            Cifar100(subset=given)  # type: ignore[arg-type]
    with pytest.raises(PartError, match=words.replace("500", "80")):
        load_part("dataset", "digits").build({"imbalance": imbalance})


@pytest.mark.parametrize("imbalance", ["100", True, [100], {}])
def test_an_imbalance_that_is_no_number_is_refused(imbalance: Any) -> None:
    for name, options in (("cifar100", {"subset": {"imbalance": imbalance}}), ("digits", {"imbalance": imbalance})):
        with pytest.raises(OptionsError, match="imbalance"):
            load_part("dataset", name).options(options)


def test_options_without_an_imbalance_are_as_they_were() -> None:
    for name in ("cifar10", "cifar100", "tiny_imagenet", "imagenet"):
        part = load_part("dataset", name)
        assert part.options({"subset": {"per_class": 50}})["subset"] == {"classes": None, "per_class": 50}
        assert part.options({"subset": {"per_class": 50, "imbalance": None}}) == part.options({"subset": {"per_class": 50}})
        written = part.options({"subset": {"imbalance": 10}})
        assert written["subset"] == {"classes": None, "per_class": None, "imbalance": 10.0} and part.options(written) == written
    assert "imbalance" not in load_part("dataset", "digits").options()
    assert load_part("dataset", "digits").options({"imbalance": 10}) == {"imbalance": 10.0, **load_part("dataset", "digits").options()}


def test_the_number_of_images_is_known_when_planning_and_a_run_has_it(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Any
) -> None:
    from kdbench.plan import probe

    plan = plan_of(dataset="{name: digits, per_class: 20, imbalance: 10, validation: 0.2}", objectives="[kd]", repeats="1")
    counts = of_ldam(20, 10, 10)
    expected = sum(counts) - sum(min(round(count * 0.2), count - 1) for count in counts)
    assert probe.probe(plan).n_train == expected
    assert train(plan) == 0
    assert Counter(store.record(cell).result["n_train"] for cell in plan.cells) == {expected: 2}
    assert TinyImagenet(subset={"imbalance": 10}).n_train == sum(of_ldam(500, 200, 10))  # type: ignore[arg-type]
    assert Imagenet(subset={"imbalance": 256}).n_train is None  # type: ignore[arg-type]
    assert Imagenet(subset={"per_class": 732, "imbalance": 256}).n_train == sum(of_ldam(732, 1000, 256))  # type: ignore[arg-type]
