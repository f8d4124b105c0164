"""Datasets as they lie on a disk: read right, whatever the order of the copy, and refused with a sentence when they are not right."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from kdbench.datasets import tiny_imagenet
from kdbench.datasets._archive import download_and_extract
from kdbench.datasets._base import Data, Subset
from kdbench.datasets._cifar import Cifar
from kdbench.datasets._memory import ImageData, Images
from kdbench.datasets._views import draws
from kdbench.datasets.cifar100 import Cifar100
from kdbench.datasets.digits import Digits
from kdbench.datasets.folder import Folder
from kdbench.datasets.imagenet import Imagenet
from kdbench.datasets.imagenet100 import Imagenet100
from kdbench.datasets.tiny_imagenet import TinyImagenet
from kdbench.errors import DataError
from kdbench.parts import load as load_part
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.train import build

REAL = Path(__file__).parents[1] / "data"
SEVERAL = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def told(part: Any, folder: Path) -> str:
    with pytest.raises(DataError) as error:
        part.load(folder)
    return str(error.value)


def whole(data: Data, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    return data.batch(split, np.arange(data.size(split)))


# CIFAR


class SmallCifar(Cifar):
    """Digits, four times as large, in CIFAR's layout: 10 classes, 4 training images of each in two files, 2 test images."""

    title = "Small CIFAR"
    folder = "small"
    files = {"train": {"one": "", "two": ""}, "test": {"test": ""}}
    meta = ("meta", "names")
    key = "labels"
    url = "http://127.0.0.1:9/small.tar.gz"
    md5 = ""
    content = None
    all_classes = 10
    per_class = 4
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)


@functools.cache
def small_images() -> dict[str, tuple[np.ndarray, list[int]]]:
    """(rows of 3072 bytes, labels) of each file."""
    digits = load_digits()
    rows = {}
    for file, first, count in (("one", 0, 2), ("two", 2, 2), ("test", 4, 2)):
        chosen = np.concatenate([np.flatnonzero(digits.target == label)[first : first + count] for label in range(10)])
        large = np.kron(digits.images[chosen], np.ones((4, 4))) * 15
        rows[file] = (np.repeat(large[:, None], 3, axis=1).astype(np.uint8).reshape(-1, 3072), digits.target[chosen].tolist())
    return rows


def put_cifar(folder: Path, images: dict[str, tuple[np.ndarray, list[int]]] | None = None, protocol: int = 2) -> Path:
    home = folder / "small"
    home.mkdir(parents=True, exist_ok=True)
    for file, (pixels, labels) in (images or small_images()).items():
        (home / file).write_bytes(pickle.dumps({"data": pixels, "labels": labels}, protocol=protocol))
    (home / "meta").write_bytes(pickle.dumps({"names": [f"digit {label}" for label in range(10)]}, protocol=protocol))
    return home


def recognised() -> type[SmallCifar]:
    """The part, knowing the content of the small images, worked out here by its definition."""
    digests: dict[str, list[bytes]] = {"train": [], "test": []}
    for file, (pixels, labels) in small_images().items():
        for row, label in zip(pixels, labels, strict=True):
            digests["test" if file == "test" else "train"].append(
                hashlib.sha256(b"(3, 32, 32)" + row.tobytes() + label.to_bytes(8, "little")).digest()
            )
    content = hashlib.sha256(b"".join(split.encode() + b"".join(sorted(digests[split])) for split in ("test", "train")))
    return type("Recognised", (SmallCifar,), {"content": content.hexdigest()[:16]})


def test_a_cifar_archive_gives_its_own_pixels_and_labels(tmp_path: Path) -> None:
    put_cifar(tmp_path)
    data = recognised()(padding=0, flip=False).load(tmp_path)

    for split, files in (("train", ("one", "two")), ("test", ("test",))):
        expected = {(row.tobytes(), label) for file in files for row, label in zip(*small_images()[file], strict=True)}
        images: Images = getattr(data, split)
        assert {(pixels.numpy().tobytes(), int(label)) for pixels, label in zip(images.pixels, images.labels, strict=True)} == expected


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_cifar_archive_pickled_by_any_release_of_numpy_is_read(tmp_path: Path, protocol: int) -> None:
    home = put_cifar(tmp_path, protocol=protocol)
    assert recognised()().load(tmp_path).size("train") == 40
    if protocol < 4:  # a global is named by lines of text, which NumPy 1 wrote without the underscore
        for file in home.iterdir():
            file.write_bytes(file.read_bytes().replace(b"numpy._core.", b"numpy.core."))
        assert b"numpy.core." in (home / "one").read_bytes()
        assert recognised()().load(tmp_path).size("train") == 40


@SEVERAL
@given(seed=st.integers(0, 2**32 - 1), moved=st.integers(1, 39))
def test_a_cifar_copy_in_another_order_is_the_same_data(tmp_path_factory: pytest.TempPathFactory, seed: int, moved: int) -> None:
    """Other order, other borders between the files: fingerprint, subset, split and every batch stay."""
    folder = tmp_path_factory.mktemp("cifar")
    part = recognised()(subset=Subset(classes=7, per_class=3), validation=0.3, split_seed=4)
    put_cifar(folder)
    one = part.load(folder)
    rows, labels = (np.concatenate([small_images()[file][place] for file in ("one", "two")]) for place in (0, 1))
    order = np.random.default_rng(seed).permutation(40)
    shuffled = [(rows[chosen], labels[chosen].tolist()) for chosen in (order[:moved], order[moved:])]
    test = [np.asarray(values)[::-1] for values in small_images()["test"]]
    put_cifar(folder, {"one": shuffled[0], "two": shuffled[1], "test": (test[0].copy(), test[1].tolist())})
    other = part.load(folder)

    assert one.fingerprint == other.fingerprint
    for split, size in (("train", 15), ("val", 6), ("test", 14)):
        assert one.size(split) == size
        for mine, theirs in zip(whole(one, split), whole(other, split), strict=True):
            assert torch.equal(mine, theirs)


@SEVERAL
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cifar_file_cut_anywhere_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    folder = tmp_path_factory.mktemp("cifar")
    path = put_cifar(folder) / "two"
    path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * share)])

    text = told(recognised()(), folder)
    assert str(path) in text and "truncated" in text and SmallCifar.url in text


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hostile",)


def test_a_pickle_that_names_a_command_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = put_cifar(tmp_path) / "one"
    path.write_bytes(pickle.dumps({"data": Hostile(), "labels": []}))

    text = told(recognised()(), tmp_path)
    assert str(path) in text and f"{os.system.__module__}.system" in text
    assert not (tmp_path / "hostile").exists()


def changed(file: str, **keys: Any) -> Callable[[Path], None]:
    def change(home: Path) -> None:
        entry = pickle.loads((home / file).read_bytes())
        (home / file).write_bytes(pickle.dumps({**entry, **keys}))

    return change


TEST_ROWS, TEST_LABELS = small_images()["test"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, ["is missing: there is no folder", "kdbench download", "$KDBENCH_DATA"]),
        (lambda home: (home / "two").unlink(), ["no file", "two", SmallCifar.url]),
        (lambda home: (home / "meta").write_bytes(pickle.dumps([1, 2])), ["meta", "contains a list"]),
        (changed("meta", names=["one", "two"]), ["meta", "10 classes", "names 2"]),
        (changed("meta", names=list(range(10))), ["meta", "10 classes"]),
        (changed("test", data=TEST_ROWS[:, :-1]), ["test", "rows of 3072 bytes"]),
        (changed("test", data=TEST_ROWS.astype(np.float32)), ["test", "rows of 3072 bytes"]),
        (changed("test", data=None), ["test", "rows of 3072 bytes"]),
        (changed("test", labels=TEST_LABELS[:-1]), ["test", "one label an image, 20 of them"]),
        (changed("test", labels=[*TEST_LABELS[:-1], 10]), ["test", "holds 10", "below 10"]),
        (changed("test", labels=[*TEST_LABELS[:-1], -1]), ["test", "holds -1"]),
        (changed("test", labels=[*TEST_LABELS[:-1], 2**70]), ["test", str(2**70)]),
        (changed("test", labels=[*TEST_LABELS[:-1], 8.5]), ["test", "holds 8.5"]),
        (changed("test", labels=[*TEST_LABELS[:-1], "9"]), ["test", "holds '9'"]),
        (changed("test", data=TEST_ROWS[:18], labels=TEST_LABELS[:18]), ["test", "no image of the class digit 9"]),
        (changed("test", data=TEST_ROWS[:1], labels=TEST_LABELS[:1]), ["no image of the class digit 1", "and others"]),
        (changed("test", data=TEST_ROWS ^ np.uint8(1)), ["fingerprint", "does not hold Small CIFAR's images"]),
        (changed("test", labels=TEST_LABELS[::-1]), ["fingerprint", "does not hold Small CIFAR's images"]),
        (changed("one", data=TEST_ROWS, labels=TEST_LABELS), ["fingerprint", "does not hold Small CIFAR's images"]),
    ],
)
def test_a_cifar_copy_that_is_not_right_is_refused_with_what_is_wrong(tmp_path: Path, change: Any, words: list[str]) -> None:
    home = put_cifar(tmp_path)
    recognised()().load(tmp_path)
    change(home)

    text = told(recognised()(), tmp_path)
    assert str(home) in text
    for word in words:
        assert word in text


def test_images_that_nobody_saw_before_are_recognised_by_the_archives_checksums(tmp_path: Path) -> None:
    home = put_cifar(tmp_path)
    sums = {
        split: {file: hashlib.md5((home / file).read_bytes()).hexdigest() for file in files} for split, files in SmallCifar.files.items()
    }
    part = type("Summed", (SmallCifar,), {"files": sums})()
    assert part.load(tmp_path).size("test") == 20
    changed("two", data=small_images()["two"][0] ^ np.uint8(1))(home)

    assert "checksums differ (two changed" in told(part, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "cifar-100-python").is_dir(), reason="needs the real CIFAR-100 in data/cifar-100-python")
def test_the_real_cifar_100_in_another_order_is_the_same_data(tmp_path: Path) -> None:
    home = tmp_path / "cifar-100-python"
    home.mkdir()
    shutil.copy(REAL / "cifar-100-python" / "meta", home)
    for file in ("train", "test"):
        entry = pickle.loads((REAL / "cifar-100-python" / file).read_bytes(), encoding="latin1")
        order = np.random.default_rng(0).permutation(len(entry["data"]))
        labels = [entry["fine_labels"][place] for place in order]
        (home / file).write_bytes(pickle.dumps({"data": entry["data"][order], "fine_labels": labels}, protocol=4))
    part = Cifar100(subset=Subset(classes=20, per_class=250), validation=0.1)
    one, other = part.load(REAL), part.load(tmp_path)

    assert one.fingerprint == other.fingerprint == Cifar100.content
    for split, size in (("train", 4500), ("val", 500), ("test", 2000)):
        assert one.size(split) == size
        for mine, theirs in zip(whole(one, split), whole(other, split), strict=True):
            assert torch.equal(mine, theirs)


@SEVERAL
@given(seed=st.integers(0, 2**32 - 1), split_seed=st.integers(0, 2**63 - 1))
def test_digits_in_another_order_are_the_same_data(seed: int, split_seed: int) -> None:
    class Shuffled(Digits):
        def read(self) -> Images:
            return super().read().take(np.random.default_rng(seed).permutation(1797))

    one, other = (make(per_class=3, validation=0.2, split_seed=split_seed).load(Path()) for make in (Digits, Shuffled))

    assert one.fingerprint == other.fingerprint
    for split in ("train", "val", "test"):
        for mine, theirs in zip(whole(one, split), whole(other, split), strict=True):
            assert torch.equal(mine, theirs)


# Images in files


def picture(number: int, size: tuple[int, int] = (64, 64), mode: str = "RGB", suffix: str = "jpeg") -> bytes:
    """A picture of waves, no two of them alike."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = [128 + 120 * np.sin(x / (3 + number % 7) + channel) * np.cos(y / (4 + number % 5) - number) for channel in range(3)]
    out = io.BytesIO()
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode).save(out, suffix)
    return out.getvalue()


WNIDS = ["n00000002", "n00000010", "n00000001"]


def put_tiny(folder: Path, name: str = "tiny", prefix: str = "") -> Path:
    """Three classes in the archive's layout, 4 training and 2 test images each; wnids.txt is not sorted, as the real one is not."""
    home = folder / name
    for place, wnid in enumerate(WNIDS):
        (home / "train" / wnid / "images").mkdir(parents=True)
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for number in range(4):
            (home / "train" / wnid / "images" / f"{prefix}{wnid}_{number}.JPEG").write_bytes(picture(10 * place + number))
    (home / "val" / "images").mkdir(parents=True)
    lines = []
    for number in range(6):
        (home / "val" / "images" / f"{prefix}val_{number}.JPEG").write_bytes(picture(100 + number))
        lines.append(f"{prefix}val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t0\t63\t63\n")
    (home / "val" / "val_annotations.txt").write_text("".join(lines))
    (home / "wnids.txt").write_text("\n".join(WNIDS))
    return home


def tiny(**options: Any) -> TinyImagenet:
    return TinyImagenet(**{"folder": "tiny", "classes": 3, "per_class": 4, **options})


def contents(images: Images | None) -> set[tuple[bytes, int]]:
    return {(pixels.numpy().tobytes(), int(label)) for pixels, label in zip(images.pixels, images.labels, strict=True)} if images else set()


def pixels_of(jpeg: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).transpose(2, 0, 1).tobytes()


def test_tiny_imagenet_gives_its_images_with_the_places_of_the_sorted_classes(tmp_path: Path) -> None:
    put_tiny(tmp_path)
    data = tiny().load(tmp_path)
    labels = [sorted(WNIDS).index(wnid) for wnid in WNIDS]
    assert labels == [1, 2, 0]

    assert contents(data.train) == {(pixels_of(picture(10 * place + number)), labels[place]) for place in range(3) for number in range(4)}
    assert contents(data.test) == {(pixels_of(picture(100 + number)), labels[number % 3]) for number in range(6)}
    assert (data.n_views, data.input_shape, data.size("val")) == (578, (3, 64, 64), 0)


def test_a_tiny_imagenet_copy_in_another_order_and_under_other_names_is_the_same_data(tmp_path: Path) -> None:
    part = tiny(subset=Subset(per_class=3), validation=0.4)
    put_tiny(tmp_path / "one")
    home = put_tiny(tmp_path / "two", prefix="x")
    (home / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    lines = (home / "val" / "val_annotations.txt").read_text().splitlines(keepends=True)
    (home / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    for number, wnid in enumerate(WNIDS):
        images = home / "train" / wnid / "images"
        (images / f"x{wnid}_0.JPEG").rename(images / f"z{number}.jpg")
    one, two = part.load(tmp_path / "one"), part.load(tmp_path / "two")

    assert one.fingerprint == two.fingerprint
    for split, size in (("train", 5), ("val", 4), ("test", 6)):
        assert one.size(split) == size
        for mine, theirs in zip(whole(one, split), whole(two, split), strict=True):
            assert torch.equal(mine, theirs)


def test_a_subset_of_tiny_imagenet_is_its_first_classes_and_splits_share_no_image(tmp_path: Path) -> None:
    put_tiny(tmp_path)
    everything = tiny().load(tmp_path)
    part = tiny(subset=Subset(classes=2, per_class=3), validation=0.5)
    data = part.load(tmp_path)

    assert (data.size("train"), data.size("val"), data.size("test"), part.n_train, data.n_classes) == (3, 3, 4, 3, 2)
    assert not contents(data.train) & contents(data.val)
    assert contents(data.train) | contents(data.val) < contents(everything.train)
    assert contents(data.test) == {one for one in contents(everything.test) if one[1] < 2}
    assert np.bincount([label for _, label in contents(data.train) | contents(data.val)]).tolist() == [3, 3]


def test_images_decoded_by_several_processes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tiny(tmp_path)
    here = tiny().load(tmp_path)
    monkeypatch.setattr(tiny_imagenet, "AT_ONCE", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    asked = []
    ahead = tiny_imagenet.read_ahead
    monkeypatch.setattr(tiny_imagenet, "read_ahead", lambda *a: asked.append(a[2]) or ahead(*a))
    there = tiny().load(tmp_path)

    assert asked == [2]  # the six test images make three batches, too few for two processes
    assert contents(here.train) == contents(there.train) and contents(here.test) == contents(there.test)
    assert torch.equal(here.train.pixels, there.train.pixels)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_images_are_converted_to_three_colours(tmp_path: Path, mode: str) -> None:
    home = put_tiny(tmp_path)
    odd = picture(7, mode=mode)
    assert Image.open(io.BytesIO(odd)).mode == mode
    (home / "train" / WNIDS[2] / "images" / f"{WNIDS[2]}_0.JPEG").write_bytes(odd)

    assert (pixels_of(odd), 0) in contents(tiny().load(tmp_path).train)


ANNOTATIONS = "val/val_annotations.txt"
FIRST = f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"


def appended(file: str, text: str) -> Callable[[Path], None]:
    return lambda home: (home / file).write_text((home / file).read_text() + text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, ["is missing: there is no", "wnids.txt", "kdbench download tiny_imagenet", "$KDBENCH_DATA"]),
        (lambda home: (home / "wnids.txt").unlink(), ["is missing: there is no", "wnids.txt", "cs231n"]),
        (lambda home: (home / "wnids.txt").write_bytes(b"\xff\xfe"), ["wnids.txt", "cannot be read"]),
        (appended("wnids.txt", "\nn00000077"), ["wnids.txt names 4 classes in 4 lines, and 3 were declared"]),
        (appended("wnids.txt", f"\n{WNIDS[0]}"), ["wnids.txt names 3 classes in 4 lines"]),
        (lambda home: (home / "wnids.txt").write_text("\n".join([*WNIDS[:2], "n00000077"])), ["n00000077", "cannot be listed"]),
        (lambda home: (home / ANNOTATIONS).unlink(), ["there is no file", "val_annotations.txt"]),
        (appended(ANNOTATIONS, f"val_9.JPEG\t{WNIDS[0]}\t0\t0\t1\t1\n"), ["val_annotations.txt", "val_9.JPEG does not lie in val/images"]),
        (appended(ANNOTATIONS, f"val_0.JPEG\t{WNIDS[0]}\n"), ["val_annotations.txt, line 7", "'val_0.JPEG' again"]),
        (appended(ANNOTATIONS, "val_9.JPEG\tn00000077\n"), ["line 7", "the class 'n00000077', which wnids.txt does not name"]),
        (appended(ANNOTATIONS, "val_9.JPEG\n"), ["line 7", "the class ''"]),
        (lambda home: (home / "val/images/val_9.JPEG").write_bytes(picture(1)), ["val_annotations.txt", "val_9.JPEG has no line"]),
        (lambda home: (home / "val/images/val_3.JPEG").unlink(), ["val_annotations.txt", "val_3.JPEG does not lie in val/images"]),
        (
            lambda home: (home / ANNOTATIONS).write_text((home / ANNOTATIONS).read_text().replace(WNIDS[1], WNIDS[0])),
            ["val_annotations.txt", f"no image the class {WNIDS[1]}"],
        ),
        (lambda home: shutil.rmtree(home / "train" / WNIDS[1]), [f"train/{WNIDS[1]}/images", "cannot be listed"]),
        (lambda home: [one.unlink() for one in (home / FIRST).parent.iterdir()], [f"train/{WNIDS[0]}/images holds no image"]),
        (lambda home: (home / FIRST).unlink(), [f"train/{WNIDS[0]}/images holds 3 images, and 4 were declared"]),
        (lambda home: (home / FIRST).write_bytes(b""), [FIRST, "is empty (zero bytes)"]),
        (lambda home: (home / FIRST).write_bytes(b"GIF89a no"), [FIRST, "truncated or not an image"]),
        (lambda home: (home / FIRST).write_bytes(picture(1, (60, 64))), [FIRST, "64 x 60 pixels, and not 64 x 64"]),
    ],
)
def test_a_tiny_imagenet_that_is_not_right_is_refused_with_what_is_wrong(tmp_path: Path, change: Any, words: list[str]) -> None:
    home = put_tiny(tmp_path)
    tiny().load(tmp_path)
    change(home)

    text = told(tiny(), tmp_path)
    assert str(home) in text
    for word in words:
        assert word in text


@SEVERAL
@given(mode=st.sampled_from(["RGB", "L", "CMYK"]), share=st.floats(0, 1, exclude_max=True))
def test_a_jpeg_cut_anywhere_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, mode: str, share: float) -> None:
    folder = tmp_path_factory.mktemp("tiny")
    path = put_tiny(folder) / FIRST
    jpeg = picture(3, mode=mode)
    path.write_bytes(jpeg[: int(len(jpeg) * share)])

    text = told(tiny(), folder)
    assert str(path) in text and ("truncated" in text or "zero bytes" in text)


@pytest.mark.skipif(not (REAL / "tiny-imagenet-20").is_dir(), reason="needs twenty classes of Tiny-ImageNet in data/tiny-imagenet-20")
def test_a_part_of_the_real_tiny_imagenet_is_read() -> None:
    part = TinyImagenet(folder="tiny-imagenet-20", classes=20, subset=Subset(classes=2, per_class=50), validation=0.1)
    data = part.load(REAL)

    assert (data.size("train"), data.size("val"), data.size("test"), data.n_classes) == (90, 10, 100, 2)
    assert data.targets("test").bincount().tolist() == [50, 50]


# Folders

SIZES = [(40, 30), (64, 64), (31, 90), (100, 33), (16, 16), (80, 20)]
CLASSES = ["asters", "bee-balm", "bee", "chicory"]


def put_folder(folder: Path, names: list[str] = CLASSES, test: str = "val", name: str = "flowers", per_class: int = 6) -> Path:
    """Pictures of mixed sizes, kinds and colours, one folder a class; hidden files lie about."""
    home = folder / name
    for split, count in (("train", per_class), (test, 3)):
        for place, one in enumerate(names):
            (home / split / one).mkdir(parents=True)
            (home / split / one / ".thumbs").write_text("")
            for number in range(count):
                mode = ("RGB", "L", "CMYK")[number % 3] if number < 3 else "RGB"
                suffix = "png" if number == 4 else "jpeg"
                jpeg = picture(100 * place + number + 7 * (split == test), SIZES[(place + number) % 6], mode, suffix)
                (home / split / one / f"{number}.{suffix.upper() if number % 2 else suffix}").write_bytes(jpeg)
    return home


def flowers(**options: Any) -> Folder:
    return Folder(**{"folder": "flowers", "classes": 4, "size": 24, **options})


def plan_of_batches(data: Data, batch: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    views = data.draw_views(np.random.Generator(np.random.Philox(5)))
    order = np.random.default_rng(0).permutation(data.size("train"))
    return [(order[start : start + batch], views[order[start : start + batch]]) for start in range(0, len(order), batch)]


def alike(one: list[tuple[torch.Tensor, torch.Tensor]], other: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for mine, theirs in zip(one, other, strict=True) for a, b in zip(mine, theirs, strict=True)
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Any:
    put_folder(tmp_path)
    return flowers().load(tmp_path)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def children() -> set[int]:
    return {one.pid for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.parametrize(("crop_pct", "interpolation", "resized"), [(0.875, "bilinear", 27), (0.5, "bicubic", 48)])
def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(
    tmp_path: Path, crop_pct: float, interpolation: Any, resized: int
) -> None:
    """Worked out with PIL alone: size 24 at 0.875 is resized to 27."""
    put_folder(tmp_path)
    pictures = flowers(crop_pct=crop_pct, interpolation=interpolation).load(tmp_path)
    paths = sorted((tmp_path / "flowers" / "val").glob("*/[!.]*"), key=lambda path: os.fsencode(path))
    inputs, targets = whole(pictures, "test")
    assert (len(paths), targets.tolist()) == (12, [sorted(CLASSES).index(path.parent.name) for path in paths])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    for path, seen in zip(paths, inputs, strict=True):
        image = opened(path)
        breadth, height = image.size
        short = min(breadth, height)
        image = image.resize((resized * breadth // short, resized * height // short), Image.Resampling[interpolation.upper()])
        left, top = round((image.width - 24) / 2), round((image.height - 24) / 2)
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + 24, top + 24)))).permute(2, 0, 1)
        assert torch.equal(seen, pixels.float().div(255).sub(mean).div(std))


def test_training_sees_the_part_that_the_view_names_as_pillow_resizes_it(tmp_path: Path, pictures: Any) -> None:
    files = pictures.files["train"]
    flipped = 0
    for place in range(pictures.size("train")):
        view = np.uint64(2**64 - 1 - place)
        seen, labels = pictures.batch("train", np.array([place]), np.array([view]))
        assert labels.tolist() == [sorted(CLASSES).index(files.path(place).parent.name)]
        whole_image = opened(files.path(place))
        cropped = whole_image.crop(pictures.seen.box(int(view), whole_image.size)).resize((24, 24), Image.Resampling.BILINEAR)
        flip = bool(draws(int(view), 1)[0] >> 63)
        flipped += flip
        pixels = torch.from_numpy(np.array(cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cropped)).permute(2, 0, 1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pictures.mean, pictures.std))
        assert torch.equal(seen[0], pixels.float().div(255).sub(mean).div(std))
    assert 0 < flipped < 24


def test_no_flip_means_none(tmp_path: Path) -> None:
    put_folder(tmp_path)
    plain = flowers(flip=False, scale=(1.0, 1.0), ratio=(1.0, 1.0)).load(tmp_path)
    square = plain.files["train"].paths.tolist().index(b"train/asters/1.JPEG")
    assert opened(plain.files["train"].path(square)).size == (64, 64)

    seen = {plain.batch("train", np.array([square]), np.array([view], dtype=np.uint64))[0].numpy().tobytes() for view in range(20)}
    assert len(seen) == 1


def test_inputs_lie_in_memory_as_images_by_channels_by_height_by_breadth(pictures: Any) -> None:
    for views in (None, np.arange(3, dtype=np.uint64)):
        assert pictures.batch("train", np.arange(3), views)[0].stride() == (3 * 24 * 24, 24 * 24, 24, 1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("skipped", [0, 3])
def test_any_number_of_workers_gives_the_same_bits_and_so_does_going_on_in_mid_epoch(pictures: Any, workers: int, skipped: int) -> None:
    wanted = plan_of_batches(pictures)
    assert [len(index) for index, _ in wanted] == [5, 5, 5, 5, 4]
    here = list(pictures.batches("train", wanted))
    assert not alike(here, list(pictures.batches("train", [(index, views + np.uint64(1)) for index, views in wanted])))
    evaluated = whole(pictures, "test")
    pictures.workers = workers

    assert alike(here[skipped:], list(pictures.batches("train", wanted[skipped:])))
    assert alike([evaluated], list(pictures.batches("test", [(np.arange(12), None)])))


def test_data_in_memory_takes_a_number_of_workers_and_needs_none(tmp_path: Path) -> None:
    put_tiny(tmp_path)
    data = tiny().load(tmp_path)
    wanted = plan_of_batches(data)
    here = list(data.batches("train", wanted))
    data.read_with(2)
    before = children()

    assert alike(here, list(data.to(torch.device("cpu")).batches("train", wanted)))
    assert children() <= before


@pytest.mark.slow
def test_a_reader_sent_to_a_fresh_process_reads_the_same(pictures: Any) -> None:
    (index, views), *_ = plan_of_batches(pictures)
    reader = pictures.readers["train"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(reader.read, (index, views)), reader.read(index, views))


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_neither_feels_nor_moves_anybody_elses_random_draws(pictures: Any, workers: int) -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state())

    wanted = plan_of_batches(pictures)
    calm = list(pictures.batches("train", wanted))
    pictures.workers = workers
    before, stirred = state(), []
    for batch in pictures.batches("train", wanted):
        assert state() == before
        stirred.append(batch)
        random.random(), torch.rand(3), np.random.rand()
        before = state()

    assert alike(calm, stirred)


@pytest.mark.parametrize("leave", ["close", "raise", "last"])
def test_leaving_an_epoch_leaves_no_process_behind(pictures: Any, leave: str) -> None:
    pictures.workers = 2
    wanted = plan_of_batches(pictures)
    before = children()
    batches = pictures.batches("train", wanted)
    next(batches)
    assert len(children() - before) == 2
    if leave == "close":
        batches.close()
    elif leave == "raise":
        with pytest.raises(ZeroDivisionError):
            batches.throw(ZeroDivisionError())
    else:
        for _ in wanted[1:]:
            next(batches)  # the loop asks for no more than it needs, and never learns that there is none

    assert children() <= before


UNFINISHED = """
import sys
from pathlib import Path
import numpy as np
from kdbench.datasets.folder import Folder

data = Folder(folder="flowers", classes=4, size=24).load(Path(sys.argv[1]))
data.workers = 2
kept = data.batches("test", [(np.arange(4), None)] * 9)
next(kept)
print("read")
raise SystemExit(3)
"""


@pytest.mark.slow
def test_a_process_that_ends_in_mid_epoch_ends_its_readers(tmp_path: Path) -> None:
    put_folder(tmp_path)
    told = subprocess.run([sys.executable, "-c", UNFINISHED, str(tmp_path)], capture_output=True, text=True, timeout=60)

    assert (told.stdout, told.returncode) == ("read\n", 3), told.stderr


def test_a_signal_to_the_whole_group_ends_no_reader(pictures: Any) -> None:
    wanted = plan_of_batches(pictures)
    here = list(pictures.batches("train", wanted))
    pictures.workers = 1
    before = children()
    batches = pictures.batches("train", wanted)
    read = [next(batches)]
    for pid in children() - before:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            os.kill(pid, number)

    assert alike(here, [*read, *batches])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_while_training_is_named(tmp_path: Path, pictures: Any, workers: int) -> None:
    path = pictures.files["train"].path(13)
    path.write_bytes(path.read_bytes()[:-40])
    pictures.workers = workers
    before = children()

    with pytest.raises(DataError) as error:
        list(pictures.batches("train", plan_of_batches(pictures)))
    assert str(path) in str(error.value) and "truncated" in str(error.value) and "Traceback" not in str(error.value)
    del error
    assert children() <= before


def test_an_image_that_vanishes_while_training_is_named(pictures: Any) -> None:
    path = pictures.files["train"].path(2)
    path.unlink()

    with pytest.raises(DataError, match=f"{path} was removed"):
        pictures.batch("train", np.array([2]))


def test_a_view_of_an_image_does_not_depend_on_its_batch(pictures: Any) -> None:
    views = pictures.draw_views(np.random.Generator(np.random.Philox(5)))
    together, _ = pictures.batch("train", np.arange(24), views)

    assert len(set(views.tolist())) == 24 and views.dtype == np.uint64
    for place in (0, 7, 23):
        assert torch.equal(pictures.batch("train", np.array([place]), views[[place]])[0][0], together[place])


def test_order_split_and_fingerprint_follow_relative_paths_and_not_the_copy(tmp_path: Path) -> None:
    home = put_folder(tmp_path)
    part = flowers(subset=Subset(classes=3, per_class=5), validation=0.4, split_seed=3)
    one = part.load(tmp_path)
    copy = tmp_path / "elsewhere" / "flowers"
    for path in sorted((path for path in home.rglob("*") if path.is_file()), reverse=True):
        (copy / path.relative_to(home)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(home))
    other = part.load(tmp_path / "elsewhere")

    assert one.fingerprint == other.fingerprint and [len(half) for half in one.fingerprint.split("-")] == [16, 16]
    for split, size in (("train", 9), ("val", 6), ("test", 9)):
        paths = one.files[split].paths.tolist()
        assert paths == other.files[split].paths.tolist() == sorted(paths) and len(paths) == size
        assert torch.equal(one.targets(split), other.targets(split))
    assert not set(one.files["train"].paths) & set(one.files["val"].paths)
    assert set(flowers(subset=Subset(3, 5), validation=0.4, split_seed=4).load(tmp_path).files["val"].paths) != set(one.files["val"].paths)


@pytest.mark.parametrize("change", ["another size", "another name", "another class", "one less"])
def test_a_folder_that_changed_has_another_fingerprint(tmp_path: Path, change: str) -> None:
    home = put_folder(tmp_path)
    before = flowers().load(tmp_path).fingerprint
    path = home / "train" / "bee" / "0.jpeg"
    match change:
        case "another size":
            path.write_bytes(path.read_bytes() + b"\0")
        case "another name":
            path.rename(path.with_name("10.jpeg"))
        case "another class":
            path.rename(home / "train" / "asters" / "bee.jpeg")
        case "one less":
            path.unlink()

    assert flowers().load(tmp_path).fingerprint != before


def test_the_first_classes_and_their_first_images_are_chosen_without_reading_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_folder(tmp_path)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was read"))
    data = flowers(subset=Subset(classes=2, per_class=2)).load(tmp_path)

    assert data.files["train"].paths.tolist() == [b"train/asters/0.jpeg", b"train/asters/1.JPEG", b"train/bee/0.jpeg", b"train/bee/1.JPEG"]
    assert data.targets("train").tolist() == [0, 0, 1, 1]
    assert data.targets("test").tolist() == [0, 0, 0, 1, 1, 1]


def test_the_test_images_may_lie_in_a_folder_named_test(tmp_path: Path) -> None:
    put_folder(tmp_path, test="test")

    assert flowers(test_folder="test").load(tmp_path).size("test") == 12
    assert "flowers/val" in told(flowers(), tmp_path) and "test_folder sets" in told(flowers(), tmp_path)


def deep_png(path: Path) -> None:
    Image.fromarray((np.arange(400, dtype=np.uint16) * 100).reshape(20, 20)).save(path)


BEE = "train/bee/0.jpeg"


def nested(home: Path) -> None:
    (home / "train/bee/more").mkdir()
    shutil.copy(home / BEE, home / "train/bee/more/6.jpeg")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, ["flowers is missing: there is no folder", "flowers/train/CLASS/IMAGE", "$KDBENCH_DATA"]),
        (lambda home: shutil.rmtree(home / "val"), ["flowers is missing: there is no folder", "flowers/val"]),
        (lambda home: shutil.rmtree(home / "val/bee"), ["val has no class bee, which the other split has"]),
        (lambda home: shutil.rmtree(home / "train/chicory"), ["train has no class chicory, which the other split has"]),
        (lambda home: [shutil.rmtree(home / split / "bee") for split in ("train", "val")], ["holds 3 classes, and 4 were declared"]),
        (lambda home: [one.unlink() for one in (home / "val/bee").glob("[!.]*")], ["val/bee holds no image"]),
        (lambda home: (home / BEE).write_bytes(b""), [BEE, "is empty (zero bytes)"]),
        (nested, ["train/bee/more is a folder with images inside a class's folder (images there: 1)", "`subfolders: read`"]),
        (lambda home: (home / BEE).with_name("to.png").symlink_to("nowhere"), ["train/bee cannot be listed"]),
        (lambda home: (home / BEE).unlink(), ["train holds 23 images, and 24 were declared"]),
    ],
)
def test_a_folder_that_is_not_right_is_refused_with_what_is_wrong(tmp_path: Path, change: Any, words: list[str]) -> None:
    home = put_folder(tmp_path)
    flowers(train_images=24).load(tmp_path)
    change(home)

    text = told(flowers(train_images=24), tmp_path)
    assert str(home) in text
    for word in words:
        assert word in text


def test_a_class_with_too_few_images_for_the_subset_is_named(tmp_path: Path) -> None:
    put_folder(tmp_path)
    assert "class asters has 6 training images, and 7 were asked for" in told(flowers(subset=Subset(per_class=7)), tmp_path)


def test_an_image_of_sixteen_bits_is_refused_and_not_clipped(tmp_path: Path) -> None:
    home = put_folder(tmp_path)
    deep_png(home / "val/asters/0.png")
    data = flowers().load(tmp_path)

    with pytest.raises(DataError, match=r"val/asters/0\.png has more than 8 bits a channel"):
        whole(data, "test")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folder": "/data/flowers"}, "a name inside the data folder"),
        ({"folder": "../flowers"}, "a name inside the data folder"),
        ({"folder": "flowers/"}, "a name inside the data folder"),
        ({"folder": "."}, "a name inside the data folder"),
        ({"folder": ""}, "a name inside the data folder"),
        ({"classes": 1}, "classes must be at least 2"),
        ({"size": 0}, "size at least 1"),
        ({"crop_pct": 1.1}, "crop_pct within"),
        ({"train_images": 3}, "at least one a class"),
        ({"scale": (0.5, 0.4)}, "scale is"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"subset": {"classes": 5}}, "subset.classes must be between 2 and 4, not 5"),
        ({"subset": {"per_class": 0}}, "subset.per_class must be at least 1, not 0"),
        ({"validation": 1.0}, "validation is the share"),
        ({"split_seed": -1}, "split_seed must be between"),
    ],
)
def test_options_of_a_folder_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        flowers(**options)


def test_how_many_images_there_will_be_is_said_where_the_declaration_tells(tmp_path: Path) -> None:
    put_folder(tmp_path)
    assert flowers().n_train is None and flowers(subset=Subset(classes=2), train_images=24).n_train is None
    for options in (
        {"train_images": 24},
        {"train_images": 24, "validation": 0.3},
        {"subset": Subset(per_class=3)},
        {"subset": Subset(classes=2, per_class=5), "validation": 0.25},
    ):
        part = flowers(**options)
        assert part.n_train == part.load(tmp_path).size("train")


@pytest.mark.parametrize("name", ["folder", "imagenet", "tiny_imagenet"])
def test_a_part_rebuilt_from_its_resolved_options_is_the_same(name: str) -> None:
    part = load_part("dataset", name)
    given = {"subset": {"classes": 20, "per_class": 250}, "validation": 0.1}
    options = part.options({**given, **({"folder": "flowers", "classes": 30} if name == "folder" else {})})

    assert options["subset"] == {"classes": 20, "per_class": 250}
    built = part.build(options)
    assert (built.n_train, built.n_classes, part.options(options)) == (4500, 20, options)


MIXED = "{name: folder, folder: flowers, classes: 4, train_images: 24, size: 16}"


def test_a_folder_of_jpegs_of_mixed_sizes_trains_to_the_same_bits_with_any_number_of_workers(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_folder(tmp_path)
    plan = plan_of(dataset=MIXED, objectives="[kd]", repeats="1")
    load, results = Folder.load, []
    for workers in (0, 2):

        def loaded(self: Folder, folder: Path, workers: int = workers) -> Data:
            data = load(self, folder)
            data.workers = workers
            return data

        monkeypatch.setattr(Folder, "load", loaded)
        build._load_data.cache_clear()
        store = Store(tmp_path / f"results of {workers}")
        assert train(plan, store=store) == 0
        records = [store.record(cell_id) for cell_id in plan.cells]
        assert [record.outcome for record in records if record] == ["finished", "finished"]
        results.append([record.result for record in records if record])

    assert results[0] == results[1]
    assert [result["n_train"] for result in results[0]] == [24, 24]
    assert {result["data_fingerprint"] for result in results[0]} == {loaded(flowers(size=16), tmp_path).fingerprint}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_arrive_on_the_gpu_as_they_do_on_the_cpu(pictures: Any) -> None:
    wanted = plan_of_batches(pictures)
    here = list(pictures.batches("train", wanted))
    there = pictures.to(torch.device("cuda"))
    torch.ones(1, device="cuda")  # readers are forked from a process that uses the GPU
    for there.workers in (0, 2):
        for (mine, labels), (theirs, theirs_labels) in zip(here, there.batches("train", wanted), strict=True):
            assert theirs.is_cuda and theirs_labels.is_cuda
            torch.testing.assert_close(mine, theirs.cpu(), rtol=1e-6, atol=1e-6)
            assert torch.equal(labels, theirs_labels.cpu())


# ImageNet


class SmallImagenet(Imagenet):
    all_classes = 3
    all_train_images = 18
    test_images = 9


def put_imagenet(folder: Path) -> Path:
    return put_folder(folder, WNIDS, name="imagenet")


def test_imagenet_is_a_folder_of_wordnet_ids_that_is_counted(tmp_path: Path) -> None:
    home = put_imagenet(tmp_path)
    data = SmallImagenet(size=16).load(tmp_path)
    assert (data.size("train"), data.size("test"), data.n_classes, SmallImagenet().n_train) == (18, 9, 3, 18)

    (home / "val" / WNIDS[0] / "0.jpeg").unlink()
    text = told(SmallImagenet(), tmp_path)
    assert f"{home / 'val'} holds 8 images, and 9 were declared" in text and "image-net.org" in text
    assert SmallImagenet(subset=Subset(classes=2)).load(tmp_path).size("test") == 5


def test_a_choice_of_classes_is_read_from_a_folder_that_holds_others_too(tmp_path: Path) -> None:
    class Chosen(SmallImagenet):
        all_classes, all_train_images, test_images = 2, 12, 6
        only = frozenset(WNIDS[:2])

    put_imagenet(tmp_path)
    data = Chosen(size=16).load(tmp_path)
    assert (data.size("train"), data.size("test"), data.n_classes) == (12, 6, 2)
    apart = tmp_path / "apart"
    put_folder(apart, WNIDS[:2], name="imagenet")
    assert Chosen(size=16).load(apart).targets("test").tolist() == data.targets("test").tolist()
    part = Imagenet100()
    assert (len(part.only), part.n_classes, part.n_train, part.test_images) == (100, 100, 126_689, 5_000)


def test_imagenet_states_the_facts_of_the_literature() -> None:
    part = Imagenet()

    assert (part.n_classes, part.n_train, part.test_images, part.input_shape) == (1000, 1281167, 50000, (3, 224, 224))
    assert Imagenet(subset=Subset(classes=100)).n_train is None
    assert Imagenet(subset=Subset(classes=100, per_class=100), validation=0.1).n_train == 9000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, ["imagenet is missing: there is no", "Register at https://image-net.org", "$KDBENCH_DATA"]),
        (
            lambda home: (
                [path.rename(home / "val" / f"{path.parent.name}{path.name}") for path in (home / "val").glob("*/*.jpeg")]
                and [shutil.rmtree(home / "val" / wnid) for wnid in WNIDS]
            ),
            [f"val has no class {min(WNIDS)}", "valprep.sh"],
        ),
        (
            lambda home: [(home / split / WNIDS[0]).rename(home / split / "goldfish") for split in ("train", "val")],
            ["goldfish", "WordNet id"],
        ),
    ],
)
def test_an_imagenet_that_is_not_right_is_refused_with_how_to_get_it(tmp_path: Path, change: Any, words: list[str]) -> None:
    home = put_imagenet(tmp_path)
    change(home)

    text = told(SmallImagenet(), tmp_path)
    assert str(home) in text
    for word in words:
        assert word in text


def test_what_has_no_archive_to_download_says_how_to_get_it(tmp_path: Path) -> None:
    for part, word in ((Imagenet(), "image-net.org"), (flowers(), "flowers/train/CLASS/IMAGE"), (tiny(), "tiny-imagenet-200")):
        with pytest.raises(DataError, match=word):
            part.download(tmp_path)


# Archives


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """(a folder, where it is served): a web server on this machine's loopback."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def zipped(home: Path, archive: Path, name: str) -> str:
    with zipfile.ZipFile(archive, "w") as file:
        for path in home.rglob("*"):
            file.write(path, f"{name}/{path.relative_to(home)}")
    return hashlib.md5(archive.read_bytes()).hexdigest()


def test_tiny_imagenet_is_downloaded_checked_and_unpacked_once(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    md5 = zipped(put_tiny(tmp_path), folder / "tiny.zip", "tiny-imagenet-200")
    part = type("Near", (TinyImagenet,), {"url": f"{url}/tiny.zip", "md5": md5})(classes=3, per_class=4)
    data = tmp_path / "data"

    assert part.download(data) == data / "tiny-imagenet-200"
    assert os.listdir(data) == ["tiny-imagenet-200"]
    assert contents(part.load(data).train) == contents(tiny().load(tmp_path).train)
    (folder / "tiny.zip").unlink()
    assert part.download(data) == data / "tiny-imagenet-200"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("md5", "corrupted"), ("file", "404"), ("server", "URLError"), ("archive", "BadZipFile"), ("folder", "does not hold")],
)
def test_a_download_that_fails_says_so_and_leaves_nothing(served: tuple[Path, str], tmp_path: Path, wrong: str, words: str) -> None:
    folder, url = served
    md5 = zipped(put_tiny(tmp_path), folder / "tiny.zip", "tiny-imagenet-200")
    if wrong == "archive":
        (folder / "tiny.zip").write_bytes(b"no archive")
        md5 = hashlib.md5(b"no archive").hexdigest()
    address = {"file": f"{url}/none.zip", "server": "http://127.0.0.1:9/tiny.zip"}.get(wrong, f"{url}/tiny.zip")
    data = tmp_path / "data"

    with pytest.raises(DataError, match=words) as error:
        download_and_extract(address, "0" * 32 if wrong == "md5" else md5, data, "other" if wrong == "folder" else "tiny-imagenet-200")
    assert address in str(error.value)
    assert os.listdir(data) == []


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/data"):
        download_and_extract("http://127.0.0.1:9/a.zip", "0" * 32, tmp_path / "file" / "data", "a")


def test_a_downloaded_cifar_is_read_before_it_is_called_good(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    md5 = zipped(put_cifar(tmp_path), folder / "small.zip", "small")
    near = type("Near", (recognised(),), {"url": f"{url}/small.zip", "md5": md5})

    assert near().download(tmp_path / "data") == tmp_path / "data" / "small"
    assert isinstance(near().load(tmp_path / "data"), ImageData)
    wrong = type("Wrong", (near,), {"content": "0" * 16})
    with pytest.raises(DataError, match="does not hold Small CIFAR's images"):
        wrong().download(tmp_path / "data")


@pytest.mark.parametrize(
    ("subset", "told"),
    [
        ({}, "sets neither"),
        ({"classes": 100}, "subset.classes 100 is the whole dataset: leave it out"),
        ({"classes": 20, "per_class": 500}, "subset.per_class 500 is the whole dataset"),
        ({"classes": 1}, "subset.classes must be between 2 and 100, not 1"),
        ({"per_class": 501}, "subset.per_class must be between 1 and 500, not 501"),
    ],
)
def test_a_subset_has_one_way_to_be_said(subset: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Cifar100(subset=subset)  # type: ignore[arg-type]
