"""Folders of Hugging Face's library: Arrow and Parquet give the same images, and what is not right is refused with what is wrong."""

from __future__ import annotations

import builtins
import io
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.datasets._base import Subset
from kdbench.datasets._huggingface import AT_ONCE
from kdbench.datasets.huggingface import Huggingface
from kdbench.datasets.listed import Listed
from kdbench.errors import DataError
from kdbench.parts import load as load_part
from kdbench.plan.matrix import Plan
from kdbench.store import Store

NAMES = ["bee", "ant", "cat"]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library with a cache of its own and without a network; the test is skipped where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        (pytest.fail if os.environ.get("KDBENCH_NO_SKIP") else pytest.skip)(f"the library datasets is not installed ({error})")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            pytest.fail(f"a connection to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def png(number: int, mode: str = "RGB", **options: Any) -> bytes:
    draw, out = np.random.default_rng(number), io.BytesIO()
    image = Image.fromarray(draw.integers(0, 256, (18 + number % 4, 20, 3), dtype=np.uint8)).convert(mode)
    image.save(out, options.pop("format", "png"), **options)
    return out.getvalue()


def columns(split: str, count: int | None = None) -> dict[str, list[Any]]:
    """Pictures and their labels as the library holds them."""
    numbers = range(*{"train": (0, count or 30), "test": (100, 100 + (count or 9)), "validation": (200, 206)}[split])
    return {
        "image": [{"bytes": png(number), "path": f"{number}.png"} for number in numbers],
        "label": [number % 3 for number in range(len(numbers))],
    }


def features(library: Any, **others: Any) -> Any:
    found = {"image": library.Image(), "label": library.ClassLabel(names=NAMES), **others}
    return library.Features({name: feature for name, feature in found.items() if feature is not None})


def table(library: Any, split: str, others: dict[str, Any] | None = None, change: Any = None) -> Any:
    rows = columns(split)
    rows |= change(rows) if change else {}
    kinds = features(library, **(others or {}))
    return library.Dataset.from_dict({name: rows[name] for name in kinds}, features=kinds)


def put(library: Any, folder: Path, form: str = "arrow", splits: tuple[str, ...] = ("train", "test"), **how: Any) -> Path:
    """The pictures in a folder, as one of the forms of the library."""
    home = folder / "pets"
    shutil.rmtree(home, ignore_errors=True)
    tables = {split: table(library, split, **how) for split in splits}
    if form == "arrow":
        library.DatasetDict(tables).save_to_disk(home)
        return home
    for split, one in tables.items():
        for place in range(2):
            name = {
                "hub": f"data/{split}-{place:05}-of-00002.parquet",
                "hub with hashes": f"data/{split}-{place:05}-of-00002-0f1e2d3c4b5a6978.parquet",
                "converted": f"default/{split}/{place:04}.parquet",
                "numbered": f"{split}-{place}.parquet",
            }.get(form, f"{split}.parquet")
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            if form != "one file" or not place:
                (one if form == "one file" else one.shard(2, place)).to_parquet(home / name)
    return home


def pets(**options: Any) -> Huggingface:
    return Huggingface(**{"folder": "pets", "classes": 3, "size": 16, **options})


def told(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        pets(**options).load(folder)
    return str(error.value)


def contents(data: Any) -> list[torch.Tensor]:
    """All splits, train in views of its own."""
    views = np.arange(data.size("train"), dtype=np.uint64)
    found = [*data.batch("train", np.arange(len(views)), views)]
    return [*found, *(one for split in ("val", "test") if data.size(split) for one in data.batch(split, np.arange(data.size(split))))]


def same(one: Any, other: Any) -> bool:
    return one.fingerprint == other.fingerprint and all(torch.equal(a, b) for a, b in zip(contents(one), contents(other), strict=True))


def reversed_rows(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: values[::-1] for name, values in rows.items()}


def test_arrow_and_every_layout_of_parquet_give_the_same_images_in_the_same_order(library: Any, tmp_path: Path) -> None:
    part = pets(subset=Subset(per_class=8), validation=0.25)
    put(library, tmp_path)
    plain = part.load(tmp_path)
    assert [plain.size(split) for split in ("train", "val", "test")] == [18, 6, 9]
    for form in ("hub", "hub with hashes", "converted", "numbered", "one file"):
        put(library, tmp_path, form)
        assert same(plain, part.load(tmp_path)), form
    for form in ("arrow", "hub"):
        put(library, tmp_path, form, change=reversed_rows)
        assert same(plain, part.load(tmp_path)), form


def test_images_are_decoded_as_those_of_files(library: Any, tmp_path: Path) -> None:
    odd = [png(0, "L"), png(1, "CMYK", format="jpeg"), png(2, "RGBA"), png(3, "P")]
    exif = Image.Exif()
    exif[0x0112] = 6
    odd.append(png(4, exif=exif, format="jpeg"))

    def change(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [{"bytes": one, "path": None} for one in odd] + rows["image"][5:]}

    put(library, tmp_path, splits=("train",), change=change)
    shutil.move(tmp_path / "pets/train", tmp_path / "train")
    put(library, tmp_path)
    shutil.rmtree(tmp_path / "pets/train")
    shutil.move(tmp_path / "train", tmp_path / "pets/train")
    lines = ["path,label,split"]
    for split, files in (
        ("train", odd + [one["bytes"] for one in columns("train")["image"][5:]]),
        ("test", [one["bytes"] for one in columns("test")["image"]]),
    ):
        for number, content in enumerate(files):
            (tmp_path / f"{split}{number}.png").write_bytes(content)
            lines.append(f"{split}{number}.png,{number % 3},{split}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    for options in ({}, {"orientation": "ignored", "transparency": "dropped"}):
        mine, theirs = (part.load(tmp_path) for part in (pets(**options), Listed(table="list.csv", classes=3, size=16, **options)))  # type: ignore[arg-type]
        for split in ("train", "test"):
            pairs = [zip(*data.batch(split, np.arange(data.size(split))), strict=True) for data in (mine, theirs)]
            one, other = (sorted((pixels.numpy().tobytes(), int(label)) for pixels, label in pair) for pair in pairs)
            assert one == other


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_every_number_of_readers_gives_the_same_bits(library: Any, tmp_path: Path) -> None:
    for form in ("arrow", "hub"):
        put(library, tmp_path, form)
        data = pets().load(tmp_path)
        views = np.arange(30, dtype=np.uint64)[::-1].copy()
        wanted = [(np.arange(start, min(start + 8, 30)), views[start : start + 8]) for start in range(0, 30, 8)]
        found = []
        for data.workers in (0, 1, 4):
            found.append([torch.cat(parts) for parts in zip(*data.batches("train", wanted), strict=True)])
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_columns_are_found_by_their_types_and_named_where_several_can_be_meant(library: Any, tmp_path: Path) -> None:
    put(library, tmp_path)
    plain = pets().load(tmp_path)
    value, label = library.Value, library.ClassLabel(names=NAMES)
    raw = {"bytes": value("binary"), "path": value("string")}
    forms: list[tuple[dict[str, Any], Callable[[Any], Any] | None, dict[str, str]]] = [
        (
            {"image": None, "label": None, "img": library.Image(), "target": label},
            lambda rows: {"img": rows["image"], "target": rows["label"]},
            {},
        ),
        ({"image": raw}, None, {}),
        ({"image": value("binary")}, lambda rows: {"image": [one["bytes"] for one in rows["image"]]}, {}),
        (
            {"id": value("int64"), "text": value("string")},
            lambda rows: {"id": [*range(len(rows["label"]))], "text": ["x"] * len(rows["label"])},
            {},
        ),
        ({"coarse": library.ClassLabel(names=["x", "y"])}, lambda rows: {"coarse": [0] * len(rows["label"])}, {"label": "label"}),
        ({"mask": library.Image()}, lambda rows: {"mask": rows["image"][::-1]}, {"image": "image"}),
    ]
    for others, change, options in forms:
        put(library, tmp_path, others=others, change=change)
        assert same(plain, pets(**options).load(tmp_path)), others
        if options:
            text = told(tmp_path)
            assert f"the option `{next(iter(options))}` must name" in text and next(iter(others)) in text
    for others, change, options in [
        ({"label": value("int32")}, None, {}),
        ({"label": value("string")}, lambda rows: {"label": [NAMES[one] for one in rows["label"]]}, {}),
        ({"label": None, "kind": value("string")}, lambda rows: {"kind": [NAMES[one] for one in rows["label"]]}, {"label": "kind"}),
    ]:
        put(library, tmp_path, others=others, change=change)
        data = pets(**options).load(tmp_path)
        labels = [sorted(NAMES).index(NAMES[one]) if "string" in str(others.values()) else one for one in (0, 1, 2)]
        assert data.targets("train").bincount().tolist() == [10, 10, 10]
        first = data.batch("test", np.arange(9))[0].numpy()
        known = {
            row.tobytes(): int(place)
            for row, place in zip(plain.batch("test", np.arange(9))[0].numpy(), plain.targets("test"), strict=True)
        }
        assert [labels[known[row.tobytes()]] for row in first] == data.targets("test").tolist()


def test_a_column_is_not_chosen_by_its_type_beside_one_of_the_usual_name(library: Any, tmp_path: Path) -> None:
    value, quality = library.Value, library.ClassLabel(names=["good", "bad", "x"])

    def change(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        count = len(rows["label"])
        named = {"quality": [0, 1, 2] * (count // 3), "Labels": rows["label"], "tags": [[one] for one in rows["label"]]}
        return {**named, "label": [[one] for one in rows["label"]] if isinstance(others["label"], list) else rows["label"]}

    forms: list[dict[str, Any]] = [
        {"label": value("int64"), "quality": quality},
        {"label": [value("int64")], "quality": quality},  # several labels an image, which kdbench cannot read
        {"label": None, "Labels": value("int64"), "quality": quality},
        {"label": value("int64"), "Labels": value("int64")},
    ]
    for others in forms:
        put(library, tmp_path, others=others, change=change)
        assert "the option `label` must name" in (text := told(tmp_path)) and next(reversed(others)) in text
    put(library, tmp_path, others=(others := forms[0]), change=change)
    assert "split train, test: column of images 'image', of labels 'label'" in pets(label="label").load(tmp_path).notes
    put(
        library,
        tmp_path,
        others={"image": value("string"), "mask": library.Image()},
        change=lambda rows: {"mask": rows["image"], "image": ["x"] * len(rows["label"])},
    )
    assert "the option `image` must name the column of images; those that can be: mask" in told(tmp_path)
    assert "split train, test: column of images 'mask', of labels 'label'" in pets(image="mask").load(tmp_path).notes


def test_class_names_that_are_digits_do_not_change_the_labels(library: Any, tmp_path: Path) -> None:
    put(library, tmp_path, others={"label": library.ClassLabel(names=["2", "0", "1"])})
    data = pets(subset=Subset(classes=2)).load(tmp_path)
    assert (data.targets("train").bincount().tolist(), data.size("test")) == ([10, 10], 6)


def test_the_same_classes_in_another_order_are_other_data(library: Any, tmp_path: Path) -> None:
    found = []
    for names in (NAMES, NAMES[::-1]):
        change = {"label": library.ClassLabel(names=names)}
        put(
            library, tmp_path, others=change, change=lambda rows, names=names: {"label": [names.index(NAMES[one]) for one in rows["label"]]}
        )
        found.append(pets().load(tmp_path))
    one, other = found
    assert torch.equal(one.batch("train", np.arange(30))[0], other.batch("train", np.arange(30))[0])
    assert torch.equal(one.targets("train"), 2 - other.targets("train"))
    assert one.fingerprint != other.fingerprint


def test_more_rows_than_are_read_at_once(library: Any, tmp_path: Path) -> None:
    small = [png(number) for number in range(6)]
    count = AT_ONCE + 5
    rows = {
        "image": [{"bytes": small[number % 6], "path": None} for number in range(count)],
        "label": [number % 3 for number in range(count)],
    }
    put(library, tmp_path, change=lambda _: rows)
    data = pets().load(tmp_path)
    assert data.size("train") == count and f"{count} of {count} test images are also training images" in data.notes[0]


def test_a_test_image_that_is_a_training_image_of_another_class_is_warned_of(library: Any, tmp_path: Path) -> None:
    put(library, tmp_path)
    rows = columns("test")
    rows = {"image": [*columns("train")["image"][:2], *rows["image"][2:]], "label": [1, 0, *rows["label"][2:]]}
    library.Dataset.from_dict(rows, features=features(library)).save_to_disk(tmp_path / "pets/test")
    assert "2 of 9 test images are also training images" in pets().load(tmp_path).notes[0]


def test_validation_images_that_are_training_or_test_images_are_warned_of(library: Any, tmp_path: Path) -> None:
    test, train = columns("test"), columns("train")
    for rows, words in (
        (test, "9 of 9 test images are also validation images, byte for byte (as row "),
        ({name: values[:9] for name, values in train.items()}, "9 of 9 validation images are also training images"),
    ):
        put(library, tmp_path)
        library.Dataset.from_dict(rows, features=features(library)).save_to_disk(tmp_path / "pets/validation")
        warnings = [note for note in pets(val="validation").load(tmp_path).notes if note.startswith("WARNING")]
        assert len(warnings) == 1 and words in warnings[0]
    twice = [train["image"][place - place % 2] for place in range(30)]  # each image twice, with two labels
    put(library, tmp_path, change=lambda rows: {"image": twice if len(rows["image"]) == 30 else rows["image"]})
    assert "validation images are also training images" in pets(validation=0.5).load(tmp_path).notes[0]


def test_a_validation_split_of_its_own(library: Any, tmp_path: Path) -> None:
    for form in ("arrow", "hub"):
        put(library, tmp_path, form, splits=("train", "test", "validation"))
        assert [pets(val="validation").load(tmp_path).size(split) for split in ("train", "val", "test")] == [30, 6, 9]
        data = pets(test="validation").load(tmp_path)
        assert [data.size(split) for split in ("train", "val", "test")] == [30, 0, 6]
    for options, words in (
        ({"val": "validation", "validation": 0.1}, "leave one of them out"),
        ({"val": "test"}, "different splits"),
        ({"folder": "../pets"}, "inside the data folder"),
        ({"classes": 1}, "classes must be at least 2"),
    ):
        with pytest.raises(ValueError, match=words):
            pets(**options)


def test_a_split_is_never_made_of_rows_of_another_one(library: Any, tmp_path: Path) -> None:
    splits = ("train", "test", "validation")
    sizes = {split: len(columns(split)["label"]) for split in splits}
    parts = {split: f"{split}-00000-of-00001.parquet" for split in splits}
    layouts = [  # the folder of the dataset, and where its files lie
        ("test", {split: f"{split}.parquet" for split in splits}),
        ("train", {split: f"{split}.parquet" for split in splits}),
        ("pets", {"train": f"train/{parts['train']}", "validation": f"train/{parts['validation']}", "test": "test/0.parquet"}),
        ("pets", {"train": "train/0.parquet", "validation": "train/validation.parquet", "test": "test/part-00000-of-00001.parquet"}),
        ("train", {"train": "train/0.parquet", "validation": "validation/train-x.parquet", "test": "test/0.parquet"}),
    ]
    for folder, files in layouts:
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
        for split, name in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            table(library, split).to_parquet(tmp_path / folder / name)
        data = pets(folder=folder).load(tmp_path)
        assert [data.size(split) for split in ("train", "test")] == [sizes["train"], sizes["test"]], files
        data = pets(folder=folder, val="validation").load(tmp_path)
        assert [data.size(split) for split in ("train", "test", "val")] == [*map(sizes.__getitem__, splits)], files
        shutil.rmtree(tmp_path / folder)
    put(library, tmp_path, "hub")
    for place, name in enumerate(("cats-00000-of-00001", "dogs-00000-of-00001")):
        rename(tmp_path / "pets", f"data/train-{place:05}-of-00002.parquet", f"train/{name}.parquet")
    assert "holds 2 files of the split 'train', and their names say 1" in told(tmp_path)


def rename(home: Path, one: str, other: str) -> None:
    (home / other).parent.mkdir(parents=True, exist_ok=True)
    (home / one).rename(home / other)


FILE = "data/train-00001-of-00002.parquet"
DAMAGES: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("arrow", shutil.rmtree, ["pets is missing: there is no folder", "save_to_disk", "$KDBENCH_DATA"]),
    ("arrow", lambda home: shutil.rmtree(home / "test"), ["has no split 'test'", "train/"]),
    (
        "arrow",
        lambda home: shutil.copytree(home / "train", home, dirs_exist_ok=True) and shutil.rmtree(home / "train"),
        ["without splits", "DatasetDict"],
    ),
    (
        "arrow",
        lambda home: next((home / "train").glob("*.arrow")).write_bytes(b"cut"),
        ["split train cannot be read by the library datasets"],
    ),
    ("arrow", lambda home: (home / "train/state.json").write_text("{"), ["split train cannot be read by the library datasets"]),
    ("hub", lambda home: (home / FILE).unlink(), ["holds 1 files of the split 'train', and their names say 2"]),
    ("hub", lambda home: (home / FILE).write_bytes(b"PAR1 cut"), ["split train cannot be read by the library datasets"]),
    ("hub", lambda home: rename(home, FILE, "more/train.parquet"), ["has the split 'train' in the folders data, more", "`folder`"]),
    ("hub", lambda home: [one.unlink() for one in home.rglob("*.parquet")], ["neither Arrow nor Parquet files"]),
    (
        "hub",
        lambda home: [rename(home, f"data/test-0000{n}-of-00002.parquet", f"data/test-x-0000{n}-of-00002.parquet") for n in (0, 1)],
        ["no split 'test'"],
    ),
]


def test_a_folder_that_is_not_right_is_refused_with_what_is_wrong(library: Any, tmp_path: Path) -> None:
    for form, damage, words in DAMAGES:
        damage(put(library, tmp_path, form))
        text = told(tmp_path)
        for word in (str(tmp_path / "pets"), *words):
            assert word in text, (words, text)


def labels(*some: Any) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    return lambda rows: {"label": [*some, *rows["label"][len(some) :]]}


def images(*some: Any) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    return lambda rows: {"image": [*some, *rows["image"][len(some) :]]}


def test_rows_without_an_image_or_a_label_are_named(library: Any, tmp_path: Path) -> None:
    value = library.Value
    kinds: list[tuple[Any, dict[str, Any], list[str]]] = [
        (labels(-1, -1), {}, ["2 rows", "train, row 1: the label -1 is not between 0 and 2", "-1 often means"]),
        (labels(0, None), {}, ["train, row 2: the label is missing"]),
        (labels(0.5), {"label": value("float32")}, ["train, row 1: the label 0.5 is neither"]),
        (lambda rows: {"label": [0] * len(rows["label"])}, {}, ["split train has no image of the class ant, cat"]),
        (images(None), {}, ["split train, row 1, holds no image"]),
        (
            images({"bytes": None, "path": "/x/y.png"}),
            {"image": {"bytes": value("binary"), "path": value("string")}},
            ["row 1, holds no image (only the path '/x/y.png'"],
        ),
        (
            images({"bytes": b"no image", "path": None}, {"bytes": b"", "path": None}),
            {},
            ["2 images cannot be used", "row 1, is not an image", "row 2, holds no image"],
        ),
        (None, {"label": library.ClassLabel(names=[*NAMES, "dog"])}, ["has 4 classes (bee, ant, cat, dog), and 3 were declared"]),
        (None, {"image": None}, ["the option `image` must name the column of images", "none"]),
        (None, {"label": None}, ["the option `label` must name the column of labels", "none"]),
        (lambda rows: {"label": [[one] for one in rows["label"]]}, {"label": [value("int64")]}, ["the option `label` must name"]),
    ]
    for change, others, words in kinds:
        put(library, tmp_path, change=change, others=others)
        text = told(tmp_path)
        for word in words:
            assert word in text, (word, text)
    put(library, tmp_path)
    assert "has no column 'lable'" in (text := told(tmp_path, label="lable")) and "label" in text
    assert "the column 'label' holds no images" in told(tmp_path, image="label")
    assert "30 training images, and 31 were declared" in told(tmp_path, train_images=31)
    table(library, "test", {"label": library.ClassLabel(names=NAMES[::-1])}).save_to_disk(tmp_path / "pets/test")
    assert "test has other classes than train" in told(tmp_path)


def test_an_image_that_is_cut_is_named_by_its_row(library: Any, tmp_path: Path) -> None:
    put(library, tmp_path, change=images({"bytes": png(0)[:200], "path": None}))
    data = pets().load(tmp_path)
    with pytest.raises(DataError, match="split train, row 1 is truncated"):
        data.batch("train", np.arange(30))


def test_a_parquet_file_that_was_changed_is_read_anew(library: Any, tmp_path: Path) -> None:
    put(library, tmp_path, "hub")
    before = pets().load(tmp_path)
    put(library, tmp_path, "hub", change=images({"bytes": png(77), "path": None}))
    assert not torch.equal(contents(before)[0], contents(pets().load(tmp_path))[0])


def test_a_long_tailed_subset(library: Any, tmp_path: Path) -> None:
    put(library, tmp_path)
    part = pets(subset=Subset(per_class=10, imbalance=5), validation=0.3)
    data = part.load(tmp_path)
    assert [data.targets(split).bincount().tolist() for split in ("train", "val", "test")] == [[7, 3, 1], [3, 1, 1], [3, 3, 3]]
    assert part.n_train == 11


def test_a_suite_trains_on_it(library: Any, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path) -> None:
    put(library, tmp_path, "hub")
    recipe = "{name: short, epochs: 1, batch_size: 16, lr: 0.02, milestones: []}"
    plan = plan_of(
        dataset="{name: huggingface, folder: pets, classes: 3, size: 16, train_images: 30}", objectives="[kd]", repeats="1", recipe=recipe
    )
    assert train(plan) == 0
    assert [record.result["n_train"] for cell_id in plan.cells if (record := store.record(cell_id))] == [30, 30]


def test_without_the_library_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pets").mkdir()
    original = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'")
        return original(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", absent)
        assert "pip install kdbench[huggingface]" in told(tmp_path)
    (tmp_path / "here/datasets").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "here")
        (tmp_path / "here/datasets/__init__.py").write_text("")
        patch.delitem(sys.modules, "datasets", raising=False)
        assert "hides the library datasets" in told(tmp_path)
        sys.modules.pop("datasets")


def test_a_part_rebuilt_from_its_resolved_options_is_the_same() -> None:
    part = load_part("dataset", "huggingface")
    options = part.options({"folder": "pets", "classes": 3, "subset": {"per_class": 5}, "label": "fine_label"})
    assert part.options(options) == options and part.build(options).n_train == 15
