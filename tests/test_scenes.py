"""Datasets for detection: images with boxes in COCO's layout, and scenes made of digits."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pycocotools.coco import COCO
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.functional import _compute_resized_output_size

from kdbench import parts
from kdbench.catalogue import downloaded
from kdbench.cli import main
from kdbench.datasets import _scenes, coco
from kdbench.datasets._scenes import SceneData, SceneViews, ShorterSide, as_they_are
from kdbench.datasets.coco import Coco
from kdbench.datasets.digit_scenes import DigitScenes
from kdbench.errors import DataError
from kdbench.scenes import Images, Objects

REAL = Path(os.environ.get("KDBENCH_DATA") or Path(__file__).parents[1] / "data")
CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}]
"""In no order, with gaps. The labels of cat, dog and zebra are 0, 1 and 2."""
SIZES = [(40, 30), (64, 64), (31, 70), (100, 33), (52, 80), (33, 47)]
"""Breadth and height of the images of a split."""
Content = dict[str, Any]


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def annotation(number: int, image: int, category: int, bbox: list[float], **more: Any) -> Content:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3] / 2, "iscrowd": 0, **more}


def contents() -> dict[str, Content]:
    """The annotations of twelve training images and six test images. Image 5 has no object and image 6 none for training: a crowd and a box
    one pixel high."""
    made = {}
    for split, count in (("train2017", 12), ("val2017", 6)):
        sizes = [SIZES[number % 6] for number in range(count)]
        images = [
            {"id": 1000 + number, "file_name": f"{number:03}.{'png' if number % 3 else 'jpg'}", "width": breadth, "height": height}
            for number, (breadth, height) in enumerate(sizes)
        ]
        found = [
            annotation(10 * number + place, 1000 + number, CATEGORIES[(number + place) % 3]["id"], [2 + 3 * place, 4.5 + place, 11.25, 9])
            for number in range(count)
            for place in range(0 if number in (5, 6) else 1 + number % 3)
        ]
        if split == "train2017":
            found += [annotation(900, 1006, 3, [0, 0, 9, 9], iscrowd=1), annotation(901, 1006, 17, [5, 5, 20, 1])]
            found += [annotation(902, 1000, 17, [-4, 20, 10, 14])]
        else:
            found += [annotation(900, 1000, 3, [3, 3, 20, 20], iscrowd=1), annotation(901, 1001, 17, [60, 5, 20, 0.5])]
        made[split] = {"images": images, "annotations": found, "categories": CATEGORIES}
    return made


def put(folder: Path, made: dict[str, Content] | None = None, name: str = "set") -> Path:
    home = folder / name
    (home / "annotations").mkdir(parents=True)
    for split, content in (made or contents()).items():
        (home / split).mkdir()
        (home / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        for number, one in enumerate(content["images"]):
            seed = number + 100 * (split == "val2017")
            picture(seed, (one["width"], one["height"])).save(home / split / one["file_name"])
    return home


def part(**options: Any) -> Coco:
    return Coco(**{"folder": "set", "classes": 3, "min_size": 48, "max_size": 90, **options})


def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing is small enough to be kept in memory."""
    monkeypatch.setattr(coco, "KEPT_BYTES", 0)


def refused(dataset: Coco, folder: Path) -> str:
    with pytest.raises(DataError) as error:
        dataset.load(folder)
    return str(error.value)


def assert_same(one: tuple[Images, Objects], other: tuple[Images, Objects]) -> None:
    assert torch.equal(one[0].pixels, other[0].pixels)
    assert (one[0].sizes, one[0].originals, one[1].sizes) == (other[0].sizes, other[0].originals, other[1].sizes)
    for mine, theirs in ((one[1].boxes, other[1].boxes), (one[1].labels, other[1].labels)):
        assert all(map(torch.equal, mine, theirs)) and len(mine) == len(theirs)


def everything(data: SceneData, split: str = "train", views: np.ndarray | None = None) -> tuple[Images, Objects]:
    return data.batch(split, np.arange(data.size(split)), views)


# What is read


def test_the_truth_of_a_split_is_what_pycocotools_reads_of_its_file(tmp_path: Path) -> None:
    home = put(tmp_path)
    data = part().load(tmp_path)

    assert data.class_names == ("cat", "dog", "zebra") and data.n_classes == 3
    for split, name in (("train", "train2017"), ("test", "val2017")):
        with contextlib.redirect_stdout(io.StringIO()):
            file = COCO(home / f"annotations/instances_{name}.json")
        truth = data.targets(split)
        assert truth.crowds is not None and truth.areas is not None
        for place, image in enumerate(sorted(file.loadImgs(file.getImgIds()), key=lambda one: one["file_name"])):
            expected = sorted(
                (
                    [3, 17, 90].index(one["category_id"]),
                    *(*one["bbox"][:2], one["bbox"][0] + one["bbox"][2], one["bbox"][1] + one["bbox"][3]),
                    *(one["area"], one["iscrowd"]),
                )
                for one in file.loadAnns(file.getAnnIds(image["id"]))
            )
            columns = (truth.labels[place], *truth.boxes[place].T, truth.areas[place], truth.crowds[place])
            assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
            assert truth.sizes[place] == (image["height"], image["width"])
        assert {one[0].dtype for one in (truth.boxes, truth.areas)} == {torch.float32} and truth.labels[0].dtype == torch.int64


def test_training_sees_no_crowds_and_no_box_of_one_pixel_and_boxes_cut_at_the_edge_and_all_are_counted(tmp_path: Path) -> None:
    put(tmp_path)
    data = part(size=(64, 64), min_size=800, max_size=1333).load(tmp_path)
    _, objects = everything(data)

    assert [len(one) for one in objects.labels] == [2, 2, 3, 1, 2, 0, 0, 2, 3, 1, 2, 3]
    assert objects.crowds is None
    cut = objects.boxes[0][objects.labels[0] == 1]
    torch.testing.assert_close(cut, torch.tensor([[0, 20 * 64 / 30, 6 * 64 / 40, 64]]))
    assert data.notes == (
        "instances_train2017.json: 1 boxes of crowds are no targets of training",
        "instances_train2017.json: 1 boxes of at most one pixel are no targets of training",
        "instances_train2017.json: 1 boxes cut at the edge of their image, beyond which they reach",
        "instances_train2017.json: 2 images without a box to train on are kept (`empty: keep`)",
    )
    assert len(data.targets("test").boxes[1]) == 3 and len(everything(data, "test")[1].boxes[1]) == 2


def test_a_split_without_crowds_has_none_and_areas_are_those_of_the_boxes_where_none_are_stated(tmp_path: Path) -> None:
    made = contents()
    for one in made["val2017"]["annotations"]:
        del one["area"], one["iscrowd"], one["id"]
    put(tmp_path, made)
    truth = part().load(tmp_path).targets("test")

    assert truth.crowds is None and truth.areas is not None
    for boxes, areas in zip(truth.boxes, truth.areas, strict=True):
        assert areas.tolist() == ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()


def test_images_without_a_box_to_train_on_are_kept_or_left_out_as_the_suite_says(tmp_path: Path) -> None:
    put(tmp_path)
    kept, left_out = part(empty="keep", train_images=12), part(empty="drop", train_images=10)
    assert (kept.n_train, left_out.n_train) == (12, 10)
    assert (kept.load(tmp_path).size("train"), left_out.load(tmp_path).size("train")) == (12, 10)

    data = left_out.load(tmp_path)
    assert data.size("test") == 6 and min(len(one) for one in everything(data)[1].labels) == 1
    assert data.notes[-1].endswith("2 images without a box to train on are left out (`empty: drop`)")
    assert "has 10 training images (`empty: drop` leaves 2 others out), and 12 were declared" in refused(
        part(empty="drop", train_images=12), tmp_path
    )


def test_a_subset_has_the_first_classes_and_the_first_training_images_and_all_test_images(tmp_path: Path) -> None:
    put(tmp_path)
    whole = part().load(tmp_path)
    given = part(subset={"classes": 2, "images": 7}, train_images=12)
    data = given.load(tmp_path)

    assert (given.n_train, data.size("train"), data.size("test"), data.n_classes, data.class_names) == (7, 7, 6, 2, ("cat", "dog"))
    for one, all_labels in zip(data.targets("test").labels, whole.targets("test").labels, strict=True):
        assert one.tolist() == [label for label in all_labels.tolist() if label < 2]
    assert torch.equal(everything(data)[0].pixels, whole.batch("train", np.arange(7))[0].pixels)
    assert part(subset={"classes": 2}, train_images=12).n_train is None
    dropped = part(subset={"classes": 1}, empty="drop").load(tmp_path)
    assert 0 < dropped.size("train") < 10 and dropped.size("test") == 6
    assert "has 10 training images with boxes to train on, and 11 were asked for" in refused(
        part(empty="drop", subset={"images": 11}), tmp_path
    )


def test_held_out_images_are_a_share_of_all_and_of_each_rare_class_and_follow_from_a_seed() -> None:
    whole = DigitScenes(images=200).load(Path())
    strata = whole.annotations["train"].strata(3)
    assert set(strata.tolist()) == {0, 1, 2, 3}
    seen = [one.numpy().tobytes() for one in whole.readers["train"].kept[0]]  # type: ignore[index]
    chosen = []
    for seed in (0, 1):
        data = DigitScenes(images=200, validation=0.25, split_seed=seed).load(Path())
        parts = {split: [one.numpy().tobytes() for one in data.readers[split].kept[0]] for split in ("train", "val")}  # type: ignore[index]
        assert DigitScenes(images=200, validation=0.25).n_train == len(parts["train"]) == 150
        assert sorted(parts["train"] + parts["val"]) == sorted(seen)
        # Empty images, which are alike, are a stratum of their own.
        held = np.array([strata[seen.index(one)] for one in parts["val"]])
        assert np.abs(np.bincount(held) - np.bincount(strata) / 4).max() <= 1
        chosen.append(parts["val"])
    assert chosen[0] != chosen[1]


# The same data


def shuffled(made: dict[str, Content]) -> dict[str, Content]:
    """The same annotations in another order and under other ids."""
    other = copy.deepcopy(made)
    for content in other.values():
        for entries in (content["images"], content["annotations"], content["categories"]):
            random.Random(1).shuffle(entries)
        for number, one in enumerate(content["annotations"]):
            one["id"], one["image_id"] = number, one["image_id"] + 7
        for one in content["images"]:
            one["id"] += 7
    return other


def test_copies_in_another_order_and_under_other_ids_are_the_same_data(tmp_path: Path) -> None:
    home = put(tmp_path / "one")
    other = tmp_path / "other/set"
    for split, content in shuffled(contents()).items():
        (other / split).mkdir(parents=True)
        (other / "annotations").mkdir(exist_ok=True)
        (other / f"annotations/instances_{split}.json").write_text(json.dumps({**content, "info": {"year": 1}}, indent=1))
        for path in sorted((home / split).iterdir(), reverse=True):
            shutil.copy(path, other / split)
    options = {"min_size": [40, 48], "vertical_flip": True, "validation": 0.25}
    first, second = (part(**options).load(tmp_path / name) for name in ("one", "other"))

    assert first.fingerprint == second.fingerprint
    for split in ("train", "val", "test"):
        assert_same(everything(first, split), everything(second, split))
        mine, theirs = first.annotations[split], second.annotations[split]
        assert mine.digest() == theirs.digest()
    views = [one.draw_views(np.random.Generator(np.random.Philox(5))) for one in (first, second)]
    assert_same(everything(first, "train", views[0]), everything(second, "train", views[1]))


def test_other_annotations_and_other_pixels_have_another_fingerprint(tmp_path: Path) -> None:
    def moved(made: dict[str, Content]) -> None:
        made["val2017"]["annotations"][0]["bbox"][0] += 0.5

    def relabelled(made: dict[str, Content]) -> None:
        made["train2017"]["annotations"][0]["category_id"] = 3

    def renamed(made: dict[str, Content]) -> None:
        for content in made.values():
            content["categories"] = [{**one, "name": one["name"].upper()} for one in CATEGORIES]

    def crowded(made: dict[str, Content]) -> None:
        made["val2017"]["annotations"][0]["iscrowd"] = 1

    fingerprints = set()
    for number, change in enumerate((lambda made: None, moved, relabelled, renamed, crowded)):
        made = contents()
        change(made)
        put(tmp_path, made, name=f"set{number}")
        fingerprints.add(part(folder=f"set{number}").load(tmp_path).fingerprint)
    picture(77, SIZES[1]).save(tmp_path / "set0/train2017/001.png")
    fingerprints.add(part(folder="set0").load(tmp_path).fingerprint)
    assert len(fingerprints) == 6 and all(len(one) == 33 for one in fingerprints)


def test_test_images_that_are_training_images_are_warned_of(tmp_path: Path) -> None:
    home = put(tmp_path)
    shutil.copy(home / "train2017/000.jpg", home / "val2017/000.jpg")
    assert part().load(tmp_path).notes[-1].startswith("WARNING: 1 of 6 test images are also training images, byte for byte")


# Views


def test_the_shorter_side_is_resized_by_torchvisions_rule() -> None:
    random_sizes = np.random.default_rng(0).integers(1, 2000, (300, 4))
    for height, breadth, length, more in [*random_sizes.tolist(), [480, 640, 800, 533], [427, 640, 800, 533], [1, 2000, 800, 533]]:
        expected = _compute_resized_output_size((height, breadth), [length], length + more)
        assert ShorterSide(length, length + more)((height, breadth)) == tuple(max(1, side) for side in expected)


def one_pixel(folder: Path) -> tuple[int, int]:
    """A set whose only training image is black but for one white pixel, with a box around it and one at the corner."""
    made = contents()
    box = [annotation(1, 1, 3, [13, 7, 1, 1]), annotation(2, 1, 17, [0, 0, 2, 3])]
    made["train2017"] = {
        **{"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 24}], "annotations": box, "categories": CATEGORIES}
    }
    home = put(folder, made)
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[7, 13] = 255
    Image.fromarray(pixels).save(home / "train2017/a.png")
    return 24, 40


def test_boxes_follow_flips_to_the_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.datasets._annotations.LEAST_SIDE", 0.5)  # a box of one pixel is a target here
    height, breadth = one_pixel(tmp_path)
    given = part(size=(height, breadth), min_size=800, max_size=1333, vertical_flip=True, mean=(0, 0, 0), std=(1, 1, 1))
    data = given.load(tmp_path)

    places, corners = set(), set()
    for view in range(4):
        images, objects = data.batch("train", np.array([0]), np.array([view]))
        (left, top, right, bottom), corner = (objects.boxes[0][objects.labels[0] == label][0].tolist() for label in (0, 1))
        assert (right - left, bottom - top) == (1, 1)
        lit = images.pixels[0, 0].nonzero().tolist()
        assert lit == [[top, left]]
        places.add((left, top))
        corners.add(tuple(corner))
    assert places == {(13, 7), (40 - 14, 7), (13, 24 - 8), (40 - 14, 24 - 8)}
    assert corners == {(0, 0, 2, 3), (38, 0, 40, 3), (0, 21, 2, 24), (38, 21, 40, 24)}


def test_boxes_are_resized_and_flipped_as_by_torchvision(tmp_path: Path) -> None:
    from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

    put(tmp_path)
    data = part(vertical_flip=True).load(tmp_path)
    whole = part(size=(1000, 1000), min_size=800, max_size=1333).load(tmp_path).trained["train"]
    for view in range(4):
        images, objects = everything(data, "train", np.full(12, view))
        for place, size in enumerate(images.sizes):
            known = torch.tensor(whole.boxes[whole.rows(np.array([place]))]).reshape(-1, 4)
            expected = BoundingBoxes(known, format=BoundingBoxFormat.XYXY, canvas_size=images.originals[place])  # type: ignore[call-arg]
            expected = v2.functional.resize(expected, list(size))
            expected = v2.functional.horizontal_flip(expected) if view % 2 else expected
            expected = v2.functional.vertical_flip(expected) if view >= 2 else expected
            torch.testing.assert_close(objects.boxes[place].double(), torch.Tensor(expected).double(), rtol=1e-6, atol=1e-4)


def test_a_view_is_a_size_and_flips_and_evaluation_sees_the_last_size_unflipped(tmp_path: Path) -> None:
    put(tmp_path)
    given = part(min_size=[32, 40, 48], vertical_flip=True)
    data = given.load(tmp_path)

    assert given.n_views == data.n_views == 12
    place = np.array([1])  # 64 x 64 pixels
    images = [data.batch("train", place, np.array([view]))[0] for view in range(12)]
    assert [one.sizes for one in images] == [((length, length),) for length in (32, 40, 48) for _ in range(4)]
    for first in (0, 4, 8):
        plain, across, down, both = (one.pixels[0, :, : one.sizes[0][0], : one.sizes[0][1]] for one in images[first : first + 4])
        assert torch.equal(across, plain.flip(2)) and torch.equal(down, plain.flip(1)) and torch.equal(both, plain.flip(1, 2))
        assert not torch.equal(across, plain)
    assert torch.equal(data.batch("train", place)[0].pixels, images[8].pixels)
    drawn = [data.draw_views(np.random.Generator(np.random.Philox(seed))) for seed in range(40)]
    assert np.bincount(np.concatenate(drawn)).tolist() == pytest.approx([40] * 12, abs=22)
    assert SceneViews((as_they_are,)).parts(0) == SceneViews((as_they_are,)).parts(None) == (0, False, False)
    assert part(horizontal_flip=False).n_views == 1


def test_pixels_are_pillows_normalised_as_by_torchvision_and_lie_in_the_upper_left_of_a_black_tensor(tmp_path: Path) -> None:
    home = put(tmp_path)
    given = part(min_size=48, max_size=90)
    data = given.load(tmp_path)
    images, _ = everything(data)

    assert images.pixels.shape == (12, 3, 96, 96) and images.pixels.is_contiguous() and given.input_shape == (3, 64, 96)
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*(given.normalisation or ()))])
    for place, path in enumerate(sorted((home / "train2017").iterdir())):
        with Image.open(path) as image:
            height, breadth = ShorterSide(48, 90)((image.height, image.width))
            expected = normalise(image.convert("RGB").resize((breadth, height), Image.Resampling.BILINEAR))
            assert (images.sizes[place], images.originals[place]) == ((height, breadth), (image.height, image.width))
        assert torch.equal(images.pixels[place, :, :height, :breadth], expected)
        rest = images.pixels[place].clone()
        rest[:, :height, :breadth] = 0
        assert not rest.any()


def test_a_batch_is_as_large_as_its_largest_image_up_to_a_multiple_of_32(tmp_path: Path) -> None:
    put(tmp_path)
    data = part().load(tmp_path)
    shapes = {data.batch("train", np.array(index))[0].pixels.shape[2:] for index in ([0], [1], [2], [3], [2, 3])}
    assert shapes == {(64, 64), (96, 64), (32, 96), (96, 96)}


def test_an_image_of_a_batch_does_not_depend_on_the_others(tmp_path: Path) -> None:
    put(tmp_path)
    data = part(min_size=[40, 48], vertical_flip=True).load(tmp_path)
    views = data.draw_views(np.random.default_rng(0))
    images, objects = everything(data, "train", views)
    for place in range(12):
        alone, own = data.batch("train", np.array([place]), views[[place]])
        height, breadth = alone.sizes[0]
        assert torch.equal(alone.pixels[0, :, :height, :breadth], images.pixels[place, :, :height, :breadth])
        assert torch.equal(own.boxes[0], objects.boxes[place]) and torch.equal(own.labels[0], objects.labels[place])


# Reading


def epoch(data: SceneData) -> list[tuple[np.ndarray, np.ndarray]]:
    order, views = np.random.default_rng(0).permutation(12), data.draw_views(np.random.default_rng(1))
    return [(order[start : start + 5], views[order[start : start + 5]]) for start in (0, 5, 10)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # on a machine with fewer processors
def test_any_number_of_readers_gives_the_same_bytes_as_memory_and_so_does_going_on_in_mid_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path)
    options = {"min_size": [40, 48], "vertical_flip": True}
    kept = part(**options).load(tmp_path)
    streamed(monkeypatch)
    data = part(**options).load(tmp_path)

    assert (kept.from_files, data.from_files) == (False, True)
    expected = list(kept.batches("train", epoch(kept)))
    for readers in (0, 1, 4):
        data.read_with(readers)
        for skipped in (0, 2):
            for one, other in zip(data.batches("train", epoch(data)[skipped:]), expected[skipped:], strict=True):
                assert_same(one, other)
        assert_same(next(data.batches("test", [(np.arange(6), None)])), everything(kept, "test"))
    again = pickle.loads(pickle.dumps(data.readers["train"]))
    assert torch.equal(again.read(*epoch(data)[0]), data.readers["train"].read(*epoch(data)[0]))


def test_a_small_set_is_decoded_once_and_a_large_one_at_each_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    opened: list[str] = []

    def counted(path: Path, *rest: Any) -> Image.Image:
        opened.append(path.name)
        return read(path, *rest)

    read = _scenes.read_rgb
    monkeypatch.setattr(_scenes, "read_rgb", counted)
    kept = part(min_size=[40, 48]).load(tmp_path)
    assert len(opened) == 18
    for _ in range(2):
        everything(kept, "train", kept.draw_views(np.random.default_rng(0)))
    assert len(opened) == 18 and kept.reading_rates(*epoch(kept)[0]) == {}
    streamed(monkeypatch)
    data = part(min_size=[40, 48]).load(tmp_path)
    assert len(opened) == 18
    everything(data)
    assert len(opened) == 30 and set(data.reading_rates(*epoch(data)[0])) == {"decode_images_per_s", "transform_images_per_s"}


@pytest.mark.parametrize("readers", [0, 1])
def test_an_image_that_breaks_while_training_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int) -> None:
    home = put(tmp_path)
    streamed(monkeypatch)
    data = part().load(tmp_path)
    data.read_with(readers)
    (home / "train2017/004.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match=r"004\.png is truncated or not an image"):
        list(data.batches("train", epoch(data)))


def test_an_image_turned_by_its_exif_data_is_read_as_its_annotations_say(tmp_path: Path) -> None:
    home = put(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    picture(0, SIZES[0]).save(home / "train2017/000.jpg", exif=exif)

    assert part().load(tmp_path).size("train") == 12
    message = refused(part(orientation="exif"), tmp_path)
    assert f"{home}/train2017/000.jpg has 30 x 40 pixels, and {home}/annotations/instances_train2017.json says 40 x 30" in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_the_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    put(tmp_path)
    data = part().load(tmp_path)
    there = data.to(torch.device("cuda"))
    images, objects = everything(there, "train", np.arange(12) % 2)
    assert images.device.type == objects.boxes[0].device.type == "cuda"
    expected, known = everything(data, "train", np.arange(12) % 2)
    torch.testing.assert_close(images.pixels.cpu(), expected.pixels)
    assert_same((expected, objects.to(torch.device("cpu"))), (expected, known))


# What is wrong


def of_train(change: Callable[[Content], None]) -> Callable[[Path], None]:
    def changed(home: Path) -> None:
        path = home / "annotations/instances_train2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return changed


def of_box(*box: float) -> Callable[[Path], None]:
    return of_train(lambda content: content["annotations"][3].update(bbox=list(box)))


def of_image(**values: Any) -> Callable[[Path], None]:
    return of_train(lambda content: content["images"][2].update(values))


def removed(name: str) -> Callable[[Path], None]:
    return lambda home: shutil.rmtree(home / name) if (home / name).is_dir() else (home / name).unlink()


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda home: (home / name).write_text(text) and None  # type: ignore[func-returns-value]


JSON = "annotations/instances_train2017.json"
WRONG: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no set": (shutil.rmtree, ["set is missing: there is no file", JSON, "set/train2017/IMAGE", "$KDBENCH_DATA"]),
    "no annotations": (removed(JSON), ["there is no file", JSON]),
    "no images": (removed("val2017"), ["there is no folder", "set/val2017"]),
    "an image that is not there": (removed("train2017/004.png"), [JSON, "lists 1 of 12 files that are not there", "train2017/004.png"]),
    "an empty image": (written("val2017/001.png", ""), ["val2017/001.png is empty (zero bytes)", "Copy it again"]),
    "text for an image": (written("val2017/001.png", "x"), ["val2017/001.png cannot be read or is not an image"]),
    "no JSON": (written(JSON, '{"images": [1'), [JSON, "the file: Invalid JSON", "the format is that of COCO"]),
    "another file": (written(JSON, "[]"), [JSON, "the file: Input should be", "the format is that of COCO"]),
    "no list of images": (of_train(lambda content: content.pop("images")), ["images: Field required", "the format is that of COCO"]),
    "no image": (of_train(lambda content: content["images"].clear()), ["has no images"]),
    "no category": (of_train(lambda content: content["categories"].clear()), ["has no categories"]),
    "an entry without a box": (of_train(lambda content: content["annotations"][3].pop("bbox")), ["annotations[3].bbox: Field required"]),
    "a box of three numbers": (of_box(1, 2, 3), ["annotations[3].bbox", "Field required"]),
    "a box that is no number": (of_box(float("nan"), 2, 3, 4), ["annotations[3].bbox[0]: Input should be a finite number"]),
    "an infinite box": (of_box(1, 2, float("inf"), 4), ["annotations[3].bbox[2]: Input should be a finite number"]),
    "a negative side": (of_box(1, 2, -3, 4), ["annotations[3]: the box [1.0, 2.0, -3.0, 4.0] has a negative side", "`bbox` is left, top"]),
    "a box right of its image": (of_box(65, 2, 3, 4), ["annotations[3]: the box", "lies outside of its image of 31 x 70 pixels"]),
    "a box above its image": (of_box(1, -9, 3, 4), ["annotations[3]: the box", "lies outside of its image"]),
    "a negative area": (
        of_train(lambda content: content["annotations"][3].update(area=-1)),
        ["annotations[3].area: Input should be greater than or equal to 0"],
    ),
    "no box": (
        of_train(lambda content: content["annotations"].clear()),
        [JSON, "has no boxes but those of crowds: there is nothing to find"],
    ),
    "an unknown image": (
        of_train(lambda content: content["annotations"][3].update(image_id=5)),
        [JSON, "annotations[3]: its image_id 5 is that of no image: remove them"],
    ),
    "unknown categories": (
        of_train(lambda content: [one.update(category_id=18) for one in content["annotations"][:7]]),
        ["7 entries cannot be used", "annotations[0]: its category_id 18 is that of no category", "and 2 more"],
    ),
    "an image id twice": (of_image(id=1001), ["images[2]: the id 1001 is also that of images[1]: each id must stand once"]),
    "an annotation id twice": (
        of_train(lambda content: content["annotations"][1].update(id=0)),
        ["annotations[1]: the id 0 is also that of annotations[0]"],
    ),
    "a category id twice": (
        of_train(lambda content: content["categories"].append({"id": 3, "name": "cow"})),
        ["categories[3]: the id 3 is also that of categories[1]"],
    ),
    "a file twice": (of_image(file_name="./001.png"), ["images[2]: './001.png' is also the file of images[1]"]),
    "a file elsewhere": (of_image(file_name="../val2017/001.png"), ["images[2]: the file_name '../val2017/001.png' is not a path inside"]),
    "an absolute file": (of_image(file_name="/etc/x.png"), ["images[2]: the file_name '/etc/x.png' is not a path inside"]),
    "no pixels": (of_image(width=0), ["images[2].width: Input should be greater than or equal to 1"]),
    "another size": (of_image(width=30), ["train2017/002.png has 31 x 70 pixels, and", "instances_train2017.json says 30 x 70"]),
    "other categories": (
        of_train(lambda content: content["categories"][0].update(name="horse")),
        ["have different categories: only one of them has 90 'horse', 90 'zebra'", "the same list of `categories`"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_set_that_is_not_right_is_refused_with_what_is_wrong(tmp_path: Path, wrong: str) -> None:
    change, words = WRONG[wrong]
    change(put(tmp_path))

    message = refused(part(), tmp_path)
    assert all(word in message for word in words), message
    assert len(message) < 1500


def test_other_numbers_than_declared_are_refused(tmp_path: Path) -> None:
    put(tmp_path)
    assert "has 3 categories (cat, dog, zebra), and 80 were declared: write `classes: 3`" in refused(part(classes=80), tmp_path)
    assert "has 12 training images, and 13 were declared" in refused(part(train_images=13), tmp_path)
    assert "a validation share of 0.01 of 12 images leaves one side empty" in refused(part(validation=0.01), tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (64, 64)}, "leave min_size and max_size out"),
        ({"min_size": 100}, "min_size is between 1 and max_size (90)"),
        ({"min_size": []}, "min_size is between 1"),
        ({"min_size": [40, 40]}, "different lengths"),
        ({"min_size": [40]}, "write 40"),
        ({"train": "a", "test": "a"}, "two splits"),
        ({"folder": "../x"}, "folder must be a name inside the data folder"),
        ({"train": "/x"}, "train must be a name inside the data folder"),
        ({"classes": 0}, "at least 1"),
        ({"subset": {"classes": 3}}, "subset.classes must be at least 1 and below 3, not 3"),
        ({"subset": {}}, "subset sets neither"),
        ({"subset": {"images": 0}}, "subset.images must be at least 1"),
        ({"subset": {"images": 12}, "train_images": 12}, "subset.images must be at least 1 and below 12"),
        ({"validation": 1.0}, "validation is the share"),
        ({"std": (0.1, 0, 0.1)}, "std must be positive"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        part(**options)
    assert words in str(error.value)


# As parts


def test_a_part_rebuilt_from_its_resolved_options_is_the_same() -> None:
    for name, given in (
        ("coco", {"folder": "set", "classes": 3, "min_size": [40, 48], "subset": {"images": 5}, "validation": 0.2}),
        ("coco", {"size": [144, 192]}),
        ("digit_scenes", {"images": 9, "sides": [50, 64]}),
    ):
        made = parts.load("dataset", name)
        options = made.options(given)
        built = made.build(options)
        assert made.options(options) == options and built.task == "detection" and not built.augments
        assert json.loads(json.dumps(options)) == options
    assert (built.n_train, built.test_images, built.input_shape) == (9, 40, (3, 64, 64))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_example_has_the_nominal_size_and_an_object_in_each_image(device: str) -> None:
    given = part(min_size=800, max_size=1333)
    with torch.device(device):
        images, objects = given.example(4)
    assert images.pixels.shape == (4, *given.input_shape) == (4, 3, 800, 1344) and images.device.type == device
    assert images.sizes == ((800, 1344),) * 4 and len(objects) == 4
    assert {(one.shape, label.shape) for one, label in objects} == {((1, 4), (1,))}
    assert objects.boxes[0].device.type == device and objects.labels[0].dtype == torch.int64
    if device == "cpu":
        assert [int(label) for label in objects.labels] == [0, 1, 2, 0]


def test_what_augments_images_for_classification_is_refused() -> None:
    data = DigitScenes().load(Path())
    assert data.augmented(None, 0.0) is data
    with pytest.raises(DataError, match="has neither rand_augment nor random_erasing"):
        data.augmented("rand-m9-n2", 0.0)


def test_show_and_download_say_what_coco_is_and_how_to_get_it(tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["show", "coco"])
    assert shown.exit_code == 0 and "min_size: integer, list of integers; default 800" in shown.output
    with pytest.raises(DataError, match=r"unpack http://images.cocodataset.org/zips/train2017.zip"):
        downloaded("coco", tmp_path)
    assert "needs no download" in downloaded("digit_scenes", tmp_path)


# Scenes of digits


def test_scenes_of_digits_have_exact_boxes_and_nothing_outside_of_them() -> None:
    data = DigitScenes(classes=10, images=60, horizontal_flip=True, vertical_flip=True).load(Path())
    images, objects = everything(data, "train", np.arange(60) % 4)
    ink = images.pixels[:, 0] > images.pixels[:, 0].min(dim=2, keepdim=True).values.min(dim=1, keepdim=True).values
    counted = 0
    for place, (height, breadth) in enumerate(images.sizes):
        pixels = images.pixels[place, 0, :height, :breadth]
        ink = pixels > pixels.min() if len(objects.boxes[place]) else torch.zeros_like(pixels, dtype=torch.bool)
        for left, top, right, bottom in objects.boxes[place].int().tolist():
            inside = ink[top:bottom, left:right]
            assert 0 <= left < right <= breadth and 0 <= top < bottom <= height
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            ink[top:bottom, left:right] = False
            counted += 1
        assert not ink.any()
    assert counted == len(data.trained["train"].labels) > 60


def test_scenes_of_digits_have_three_sizes_and_some_are_empty_and_batches_are_padded() -> None:
    data = DigitScenes().load(Path())
    truth = data.targets("train")

    assert set(truth.sizes) == {(72, 72), (72, 108), (108, 72)} and truth.crowds is None and truth.areas is not None
    assert 0 < sum(len(one) == 0 for one in truth.boxes) < 40 and max(len(one) for one in truth.boxes) <= 4
    assert {*torch.cat(truth.labels).tolist()} == {0, 1, 2} == {*torch.cat(data.targets("test").labels).tolist()}
    assert min(torch.cat(truth.areas)) < 32**2 < max(torch.cat(truth.areas))
    assert everything(data)[0].pixels.shape == (80, 3, 128, 128) and data.input_shape == (3, 128, 128)
    assert data.batch("train", np.flatnonzero([one == (72, 72) for one in truth.sizes]))[0].pixels.shape[2:] == (96, 96)
    assert not data.from_files and data.n_views == 1


def test_scenes_of_digits_follow_from_their_options_on_every_machine() -> None:
    fingerprints = [DigitScenes(**options).load(Path()).fingerprint for options in ({}, {}, {"seed": 1}, {"classes": 10}, {"objects": 3})]
    assert fingerprints[0] == fingerprints[1] == "9d70a1517a3f2b4e"
    assert len({*fingerprints}) == 4
    longer = DigitScenes(images=90).load(Path())  # the first images stay when there are more
    assert torch.equal(longer.batch("train", np.arange(80))[0].pixels, everything(DigitScenes().load(Path()))[0].pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 11},
        {"classes": 0},
        {"images": 0},
        {"objects": 0},
        {"sides": (39, 60)},
        {"sides": (80, 60)},
        {"test_images": 1},
        {"seed": -1},
    ],
)
def test_options_of_scenes_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        DigitScenes(**options)


# Real images


@pytest.mark.skipif(not (REAL / "bccd").is_dir(), reason="needs blood cells (BCCD) in COCO's layout, as bccd in the folder $KDBENCH_DATA")
def test_the_blood_cells_are_read() -> None:
    data = Coco(folder="bccd", classes=3, size=(144, 192), vertical_flip=True, train_images=292).load(REAL)

    assert (data.size("train"), data.size("test"), data.class_names) == (292, 72, ("Platelets", "RBC", "WBC"))
    assert data.notes == ("instances_train2017.json: 2 boxes of at most one pixel are no targets of training",)
    assert len(data.annotations["train"].labels) == 3943 and len(data.trained["train"].labels) == 3941
    assert torch.cat(data.targets("test").labels).bincount().tolist() == [69, 805, 71] and data.targets("test").crowds is None
    images, objects = data.batch("train", np.arange(8), np.arange(8) % 4)
    assert images.pixels.shape == (8, 3, 160, 192) and images.originals == ((480, 640),) * 8 and set(images.sizes) == {(144, 192)}
    assert not images.pixels[:, :, 144:].any() and all((one[:, 3] <= 144).all() and (one >= 0).all() for one in objects.boxes)
