"""Random views of images that are read from files: which part a view shows is a function of its number alone."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

from kdbench.datasets._views import CentreCrop, RandomResizedCrop, draws

GOLDEN = Path(__file__).parent / "golden" / "boxes.csv"
CROP = RandomResizedCrop(16, (0.08, 1.0), (3 / 4, 4 / 3), True, "bilinear")
COUNT = 4000


def boxes_of(views: list[int], sizes: list[tuple[int, int]]) -> list[list[int]]:
    """The rows of the golden file: view, breadth and height of the image, the box, and whether it is flipped. The file was written once by
    `csv.writer(file).writerows(boxes_of([0, 1, 2**32, 2**63, 2**64 - 1], [(500, 375), (375, 500), (64, 64), (1000, 40), (40, 1000), (1, 1)]))`.
    """
    return [[view, *size, *CROP.box(view, size), draws(view, 1)[0] >> 63] for size in sizes for view in views]


def test_boxes_and_flips_never_change() -> None:
    rows = [[int(value) for value in row] for row in csv.reader(GOLDEN.read_text().splitlines())]

    assert len(rows) == 30 and {row[-1] for row in rows} == {0, 1}
    assert [boxes_of([row[0]], [(row[1], row[2])])[0] for row in rows] == rows


def test_draws_are_numpys_philox_with_the_view_as_its_key() -> None:
    for view in (0, 7, 2**64 - 1):
        assert draws(view, 41) == np.random.Philox(key=view).random_raw(41).tolist()
        assert draws(view, 3) == draws(view, 41)[:3]


@given(st.integers(0, 2**64 - 1), st.integers(1, 2000), st.integers(1, 2000))
def test_every_box_lies_in_its_image(view: int, breadth: int, height: int) -> None:
    left, top, right, bottom = CROP.box(view, (breadth, height))

    assert 0 <= left < right <= breadth and 0 <= top < bottom <= height


@pytest.mark.parametrize("size", [(500, 375), (200, 300)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.35, 1.0), (0.5, 2.0))])
def test_boxes_have_the_distribution_of_torchvisions_random_resized_crop(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    from torchvision.transforms import RandomResizedCrop as Theirs

    breadth, height = size
    mine = RandomResizedCrop(16, scale, ratio, True, "bilinear")
    views = np.random.Philox(key=3).random_raw(COUNT).tolist()
    ours = np.array([mine.box(view, size) for view in views], dtype=float)
    image = torch.empty(1, height, breadth)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = np.array([Theirs.get_params(image, list(scale), list(ratio)) for _ in range(COUNT)], dtype=float)
    theirs = np.stack([drawn[:, 1], drawn[:, 0], drawn[:, 1] + drawn[:, 3], drawn[:, 0] + drawn[:, 2]], axis=1)

    def measures(box: np.ndarray) -> dict[str, np.ndarray]:
        wide, high = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        return {"area": wide * high, "aspect": wide / high, "left": box[:, 0], "top": box[:, 1], "right": box[:, 2], "bottom": box[:, 3]}

    for name, values in measures(ours).items():
        assert ks_2samp(values, measures(theirs)[name]).pvalue > 0.001, name
    # The test would notice a part whose area is uniform in its side, and one that lies in the middle.
    assert ks_2samp(measures(ours)["area"] ** 1.1, measures(theirs)["area"]).pvalue < 1e-6
    assert ks_2samp((measures(ours)["left"] + (breadth - measures(ours)["right"])) / 2, measures(theirs)["left"]).pvalue < 1e-6
    flips = [draws(view, 1)[0] >> 63 for view in views]
    assert abs(np.mean(flips) - 0.5) < 4 * 0.5 / COUNT**0.5
    assert abs(np.corrcoef(flips, measures(ours)["left"])[0, 1]) < 4 / COUNT**0.5


@pytest.mark.parametrize("size", [(1000, 40), (40, 1000), (300, 300)])
def test_where_no_part_fits_the_largest_central_one_is_torchvisions(size: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop as Theirs

    impossible = RandomResizedCrop(16, (4.0, 5.0), (3 / 4, 4 / 3), True, "bilinear")
    top, left, height, breadth = Theirs.get_params(torch.empty(1, size[1], size[0]), [4.0, 5.0], [3 / 4, 4 / 3])

    assert impossible.box(11, size) == (left, top, left + breadth, top + height)


def test_views_neither_feel_nor_move_global_generators() -> None:
    image = Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3))

    def seen() -> torch.Tensor:
        return CROP(image.crop(CROP.box(9, image.size)), 9)

    first = seen()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    state = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    assert torch.equal(first, seen())
    assert state == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_has_the_pixels_of_timms_transform(interpolation: str) -> None:
    from timm.data import create_transform

    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    for size, crop_pct in ((24, 0.875), (16, 1.0), (20, 0.95)):
        mine, theirs = (
            CentreCrop(size, crop_pct, interpolation),
            create_transform(size, crop_pct=crop_pct, interpolation=interpolation, normalize=False),
        )
        for height, breadth in ((70, 90), (27, 90), (70, 27), (24, 24), (31, 33)):
            image = Image.fromarray(pixels[:height, :breadth])
            assert torch.equal(mine(image), theirs(image))
