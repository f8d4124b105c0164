"""RandAugment and random erasing: each image by its view, whatever its batch and its reader."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdbench.datasets._augment import RandAugment
from kdbench.datasets._base import Data
from kdbench.datasets._memory import ImageData, Images
from kdbench.datasets.digits import Digits
from kdbench.datasets.folder import Folder
from kdbench.errors import DataError
from kdbench.recipes.short import Short

MANY = "rand-m9-n2-p1-mstd0.5-inc1"


def pixels(n: int, channels: int = 3, side: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 256, (n, channels, side // 4, side // 4), generator=draw).float()
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").byte()


def in_memory(channels: int = 3) -> ImageData:
    images = Images(pixels(40, channels), torch.arange(40) % 5)
    values = ((0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels])
    return ImageData(images, images, images, 5, "", *values, padding=2, flip=True)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 7), ("val", 2)):
        for label in ("ant", "bee", "cow"):
            (folder / "set" / split / label).mkdir(parents=True)
            for number, one in enumerate(pixels(count, side=40)):
                Image.fromarray(one.permute(1, 2, 0).numpy()).save(folder / "set" / split / label / f"{number}.png")
    return Folder(folder="set", classes=3, size=24).load(folder)


def drawn(data: Data, seed: int = 5) -> np.ndarray:
    return data.draw_views(np.random.Generator(np.random.Philox(seed)))


def whole(data: Data, views: np.ndarray, size: int = 64) -> Tensor:
    places = np.arange(data.size("train"))
    wanted = [(places[start : start + size], views[start : start + size]) for start in range(0, len(places), size)]
    return torch.cat([inputs for inputs, _ in data.batches("train", wanted)])


@pytest.mark.parametrize("options", [(MANY, 0.0), (None, 0.7), (MANY, 0.7)])
def test_the_pixels_of_an_image_depend_on_its_view_alone(streamed: Any, options: tuple[Any, float]) -> None:
    for data in (in_memory(), in_memory(1), Digits(per_class=3).load(Path()), streamed):
        changed = data.augmented(*options)
        views = drawn(changed)
        state = torch.get_rng_state(), np.random.get_state()[1].tolist()
        together = whole(changed, views)
        assert torch.equal(torch.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1]
        assert together.is_contiguous() and together.isfinite().all()
        assert torch.equal(whole(changed, views, 3), together)
        assert torch.equal(whole(data.augmented(*options), views), together)
        assert not torch.equal(whole(changed, drawn(changed, 6)), together)
        one = changed.batch("train", np.array([4, 4]), views[[4, 5]])[0]
        assert torch.equal(one[0], together[4]) and not torch.equal(one[1], together[4])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
def test_readers_in_any_number_give_the_same_pixels(streamed: Any) -> None:
    changed = streamed.augmented(MANY, 0.5)
    views = drawn(changed)
    found = []
    for readers in (0, 1, 4):
        changed.read_with(readers)
        found.append(whole(changed, views, 4))

    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_without_these_options_views_and_pixels_are_as_before_and_with_them_the_crops_are_the_same(streamed: Any) -> None:
    data = in_memory()
    plain, same, changed = data.augmented(None, 0.0), data, data.augmented(None, 1e-9)

    assert drawn(plain).tolist() == drawn(same).tolist() and drawn(plain).max() < data.n_views == 50
    assert drawn(changed).dtype == np.uint64
    assert torch.equal(whole(changed, drawn(changed)), whole(plain, drawn(plain)))
    assert torch.equal(whole(streamed.augmented(None, 1e-9), drawn(streamed)), whole(streamed, drawn(streamed)))


def test_evaluation_is_never_augmented(streamed: Any) -> None:
    for data in (in_memory(), Digits(per_class=3).load(Path()), streamed):
        changed, places = data.augmented(MANY, 1.0), np.arange(5)
        for split in ("test", "train"):
            assert torch.equal(changed.batch(split, places)[0], data.batch(split, places)[0])


def test_erasing_has_its_probability_and_its_area() -> None:
    data = in_memory()
    same = torch.zeros(len(data.train), dtype=torch.int64)
    areas = []
    for seed in range(20):
        changed = data.augmented(None, 0.3)
        views = drawn(changed, seed)
        areas += (whole(changed, views) != whole(data, data._crops(views))).all(1).float().mean((1, 2)).tolist()
    erased = [area for area in areas if area]

    assert len(same) * 20 == len(areas)
    assert len(erased) / len(areas) == pytest.approx(0.3, abs=0.05)
    assert 0.0 < min(erased) < 0.08 and 0.25 < max(erased) < 0.42


def test_erasing_is_independent_of_the_crop() -> None:
    """Both are drawn from one number: images with one crop are erased as often as those with another."""
    data = in_memory().augmented(None, 0.5)
    views = np.arange(0, 50 * 400, 50, dtype=np.uint64) + np.uint64(7)
    places = np.zeros(len(views), dtype=np.int64)
    crop = in_memory().batch("train", places[:1], np.array([7]))[0]

    erased = (data.batch("train", places, views)[0] != crop).flatten(1).any(1)
    assert float(erased.float().mean()) == pytest.approx(0.5, abs=0.1)


def test_every_text_that_a_recipe_accepts_works_for_any_image() -> None:
    """Also where timm asks Pillow for 0 bits, which newer releases refuse."""
    sections = ("rand", "rand-m0", "rand-m10-n9-p1-mstd101-inc1", "rand-m100-n9-p1-mmax1000", "rand-m100-n9-p1-mmax1000-inc1")
    for text in (*sections, "rand-m9-n9-p1-mstd3-inc1", "rand-m10-n9-p1-mstd0.5-tweights", "rand-t3a-n9-p1", "rand-n9-p1-mmax1"):
        change = RandAugment(Short(rand_augment=text).rand_augment or "", 12, (0.4, 0.5, 0.6))
        for channels in (1, 3):
            for view, one in enumerate(pixels(12, channels)):
                found = change(one, view)
                assert (found.shape, found.dtype) == (one.shape, torch.uint8)
    with pytest.raises(DataError, match="1 or 3 channels, not 2"):
        change(pixels(1, 2)[0], 0)


@pytest.mark.parametrize(
    "text",
    ["", "Rand", "rand-", "rand_m9", "rand-m", "rand-m9-m9", "rand-n0", "rand-n10", "rand-p2", "rand-p.5", "rand-mstdinf", "rand-w0"],
)
def test_a_text_that_timm_would_not_understand_or_ignore_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="for example rand-m6-mstd0.5-inc1"):
        Short(rand_augment=text)


def test_the_operations_are_timms_with_the_draws_of_the_view() -> None:
    import random

    from timm.data.auto_augment import rand_augment_transform

    from kdbench.datasets._augment import draw_from, own_draws

    timms = rand_augment_transform(MANY, {"translate_const": 5, "img_mean": (102, 128, 153)})
    change = RandAugment(MANY, 12, (0.4, 0.5, 0.6))
    different = 0
    for view, one in enumerate(pixels(20)):
        with own_draws():
            draw_from(view, "rand_augment")
            first = random.random(), np.random.rand()
            draw_from(view, "rand_augment")
            wanted = torch.from_numpy(np.array(timms(Image.fromarray(one.permute(1, 2, 0).numpy())))).permute(2, 0, 1)
            draw_from(view, "another purpose")
            assert first != (random.random(), np.random.rand())
        assert torch.equal(change(one, view), wanted)
        different += not torch.equal(wanted, one)
    assert different > 10


def test_data_without_these_options_say_so() -> None:
    data = Data()

    assert data.augmented(None, 0.0) is data
    with pytest.raises(DataError, match="Data has neither rand_augment nor random_erasing"):
        data.augmented(MANY, 0.0)


def test_a_transform_can_be_sent_to_a_reader_that_is_not_forked(streamed: Any) -> None:
    changed = streamed.augmented(MANY, 0.0)
    views = drawn(changed)
    wanted = whole(changed, views)
    changed.readers = pickle.loads(pickle.dumps(changed.readers))

    assert torch.equal(whole(changed, views), wanted)
