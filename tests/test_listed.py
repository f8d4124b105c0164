"""Images named by a table: every way to write one gives the same images and labels, and each mistake is named with its lines."""

from __future__ import annotations

import csv
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from kdbench.datasets import _content
from kdbench.datasets._base import Subset
from kdbench.datasets.folder import Folder
from kdbench.datasets.listed import Listed
from kdbench.errors import DataError
from kdbench.parts import load as load_part
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.train import build

CLASSES = ["bee", "ant", "cat"]
Row = dict[str, Any]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """30 pictures in train and 9 in test, in two folders below that of the table."""
    found = []
    for split, count in (("train", 30), ("test", 9)):
        for number in range(count):
            name = f"images/{split}/{'AB'[number % 2]}{number:02}.png"
            path = tmp_path / "pets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draw = np.random.default_rng(1000 * (split == "test") + number)
            Image.fromarray(draw.integers(0, 256, (18 + number % 4, 20, 3), dtype=np.uint8)).save(path)
            found.append({"path": name, "label": CLASSES[number % 3], "split": split})
    return found


def put(folder: Path, rows: list[Row], name: str = "list.csv", separator: str = ",", encoding: str = "utf-8", **names: str) -> Path:
    """A table in CSV; `names` are other names of columns."""
    path = folder / "pets" / name
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, [names.get(key, key) for key in rows[0]], delimiter=separator)
        writer.writeheader()
        writer.writerows({names.get(key, key): value for key, value in row.items()} for row in rows)
    return path


def pets(**options: Any) -> Listed:
    return Listed(**{"table": "pets/list.csv", "classes": 3, "size": 16, **options})


def told(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        pets(**options).load(folder)
    return str(error.value)


def same(one: Any, other: Any) -> bool:
    """Whether two datasets have the same images, order and labels in each split."""
    sizes = [[data.size(split) for split in ("train", "val", "test")] for data in (one, other)]
    views = np.arange(one.size("train"), dtype=np.uint64)
    batches = [
        [*data.batch("train", np.arange(len(views)), views), *data.batch("test", np.arange(data.size("test")))] for data in (one, other)
    ]
    return sizes[0] == sizes[1] and all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def written(form: str, folder: Path, rows: list[Row]) -> dict[str, Any]:
    """The rows in another form, and the options that read it."""
    numbers = [{**row, "label": sorted(CLASSES).index(row["label"])} for row in rows]
    match form:
        case "semicolons":
            put(folder, rows, separator=";")
        case "tabs":
            put(folder, rows, "list.tsv", "\t")
            return {"table": "pets/list.tsv"}
        case "bars in a text file":
            put(folder, rows, "list.txt", "|")
            return {"table": "pets/list.txt"}
        case "a mark of UTF-8":
            put(folder, rows, encoding="utf-8-sig")
        case "UTF-16 with tabs":
            put(folder, rows, separator="\t", encoding="utf-16")
        case "other columns":
            put(folder, rows, path="file name", label="species", split="part")
            return {"path": "file name", "label": "species", "split": "part"}
        case "more columns":
            put(folder, [{"id": place, **row, "note": "a, b\nc"} for place, row in enumerate(rows)])
        case "another order":
            put(folder, random.Random(0).sample(rows, len(rows)))
        case "blank lines and spaces":
            lines = [f"{row['path']} , {row['label']},  {row['split']} " for row in rows]
            (folder / "pets/list.csv").write_text("\r\n".join(["path, label, split", "", *lines, "", " , , "]))
        case "old line ends below a blank line":
            lines = [f"{row['path']};{row['label']};{row['split']}" for row in rows]
            (folder / "pets/list.csv").write_bytes("\r".join([" ;;", "path;label;split", *lines, ""]).encode())
        case "two blank lines first":
            lines = [f"{row['path']};{row['label']};{row['split']}" for row in rows]
            (folder / "pets/list.csv").write_text("\n".join(["", " ", "path;label;split", *lines]))
        case "quotation marks":
            lines = [f'"{row["path"]}","{row["label"]}","{row["split"]}"' for row in rows]
            (folder / "pets/list.csv").write_text("\n".join(["path,label,split", *lines]))
        case "paths with detours":
            put(folder, [{**row, "path": f"./images/../{row['path']}"} for row in rows])
        case "paths of Windows":
            put(folder, [{**row, "path": row["path"].replace("/", "\\")} for row in rows])
        case "a folder of its own":
            (folder / "pets/meta").mkdir()
            put(folder, [{**row, "path": f"../{row['path']}"} for row in rows], "meta/list.csv")
            return {"table": "pets/meta/list.csv"}
        case "numbers":
            put(folder, numbers)
        case "numbers and names":
            put(folder, numbers)
            return {"classes": sorted(CLASSES)}
        case "other splits":
            put(folder, [{**row, "split": {"train": "Training", "test": "hold-out"}[row["split"]]} for row in rows])
            return {"splits": {"train": "Training", "test": "hold-out"}}
        case "two tables":
            for split in ("train", "test"):
                put(folder, [{**row, "split": "?"} for row in rows if row["split"] == split], f"{split}.csv")
            return {"table": {"train": "pets/train.csv", "test": "pets/test.csv"}}
        case "Parquet" | "Parquet of categories" | "Parquet of numbers":
            frame = pd.DataFrame(numbers if form == "Parquet of numbers" else rows)
            frame.astype({"label": "category"} if "categories" in form else {}).to_parquet(folder / "pets/list.parquet")
            return {"table": "pets/list.parquet"}
    return {}


FORMS = [
    *("semicolons", "tabs", "bars in a text file", "a mark of UTF-8", "UTF-16 with tabs", "other columns", "more columns", "another order"),
    *(
        "blank lines and spaces",
        "two blank lines first",
        "old line ends below a blank line",
        "quotation marks",
        "paths with detours",
        "paths of Windows",
        "a folder of its own",
        "numbers",
    ),
    *("numbers and names", "other splits", "two tables", "Parquet", "Parquet of categories", "Parquet of numbers"),
]


def test_every_way_to_write_a_table_gives_the_same_images_and_labels(tmp_path: Path, rows: list[Row]) -> None:
    put(tmp_path, rows)
    options = {"validation": 0.2, "subset": Subset(per_class=8)}
    plain = pets(**options).load(tmp_path)
    assert [plain.size(split) for split in ("train", "val", "test")] == [19, 5, 9]
    for form in FORMS:
        (tmp_path / "pets/list.csv").unlink(missing_ok=True)
        assert same(plain, pets(**options, **written(form, tmp_path, rows)).load(tmp_path)), form


def test_a_table_gives_what_a_folder_gives(tmp_path: Path, rows: list[Row]) -> None:
    for row in rows:
        to = tmp_path / "sorted" / row["split"] / row["label"] / Path(row["path"]).name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes((tmp_path / "pets" / row["path"]).read_bytes())
    (tmp_path / "pets/list.csv").write_text(
        "path,label,split\n"
        + "".join(f"../sorted/{row['split']}/{row['label']}/{Path(row['path']).name},{row['label']},{row['split']}\n" for row in rows)
    )
    folder = Folder(folder="sorted", classes=3, test_folder="test", size=16).load(tmp_path)
    assert same(folder, pets().load(tmp_path))


def test_the_list_of_classes_gives_their_order(tmp_path: Path, rows: list[Row]) -> None:
    put(tmp_path, rows)
    for names in (CLASSES, sorted(CLASSES)):
        data = pets(classes=names).load(tmp_path)
        labels = {
            path.decode().removeprefix("pets/"): names[label]
            for path, label in zip(data.files["train"].paths, data.targets("train"), strict=True)
        }  # type: ignore[attr-defined]
        assert labels == {row["path"]: row["label"] for row in rows if row["split"] == "train"}
    for odd in ("007", "7", "1.5", "nan"):  # names that look like numbers, once they are listed
        put(tmp_path, [{**row, "label": row["label"].replace("bee", odd)} for row in rows])
        assert pets(classes=[odd, "ant", "cat"]).load(tmp_path).targets("train").bincount().tolist() == [10, 10, 10]
    put(tmp_path, [{**row, "label": {"bee": "000", "ant": "100", "cat": "101"}[row["label"]]} for row in rows])
    assert pets().load(tmp_path).size("train") == 30  # with leading zeros they are names


def test_rows_of_validation_are_the_validation_split(tmp_path: Path, rows: list[Row]) -> None:
    moved = [{**row, "split": "val" if row["path"][-5] == "7" else row["split"]} for row in rows]
    put(tmp_path, moved)
    data = pets().load(tmp_path)
    assert [data.size(split) for split in ("train", "val", "test")] == [27, 4, 8]
    assert "rows are of the validation split" in told(tmp_path, validation=0.1)
    assert "30 training images were" not in told(tmp_path, train_images=30) and "27 training images, and 30" in told(
        tmp_path, train_images=30
    )


def test_a_long_tailed_subset_of_a_table(tmp_path: Path, rows: list[Row]) -> None:
    put(tmp_path, rows)
    part = pets(subset=Subset(per_class=10, imbalance=5), validation=0.3)
    data = part.load(tmp_path)
    assert [data.targets(split).bincount().tolist() for split in ("train", "val", "test")] == [[7, 3, 1], [3, 1, 1], [3, 3, 3]]
    assert part.n_train == 11


def test_a_name_is_found_in_either_spelling_of_its_accents(tmp_path: Path, rows: list[Row]) -> None:
    composed, apart = (unicodedata.normalize(form, "images/train/é.png") for form in ("NFC", "NFD"))
    (tmp_path / "pets" / apart).write_bytes((tmp_path / "pets" / rows[0]["path"]).read_bytes())
    put(tmp_path, [{**rows[0], "path": composed}, *rows[1:]])
    assert pets().load(tmp_path).size("train") == 30
    put(tmp_path, [{**rows[0], "path": composed}, {**rows[1], "path": apart}, *rows[2:]])
    assert "line 3" in (text := told(tmp_path)) and "a second time" in text


Change = Callable[[list[Row]], list[Row]]


def at(place: int, **values: Any) -> Change:
    return lambda rows: [*rows[:place], {**rows[place], **values}, *rows[place + 1 :]]


def without(key: str) -> Change:
    return lambda rows: [{name: value for name, value in row.items() if name != key} for row in rows]


def numbered(*labels: Any) -> Change:
    """Labels as numbers, some of them others."""
    return lambda rows: [
        {**row, "label": labels[place] if place < len(labels) else sorted(CLASSES).index(row["label"])} for place, row in enumerate(rows)
    ]


MISTAKES: list[tuple[Change, list[str]]] = [
    (without("label"), ["no column 'label'", "the first line must hold"]),
    (without("split"), ["no column 'split'"]),
    (
        lambda rows: [{"filepath": row["path"], **{key: row[key] for key in ("label", "split")}} for row in rows],
        ["no column 'path'", "filepath"],
    ),
    (at(3, label=""), ["line 5", "the label is missing"]),
    (at(3, label="NaN"), ["line 5", "the label is missing"]),
    (at(3, label="catt"), ["4 classes (ant, bee, cat, catt)", "3 were declared"]),
    (at(3, label="1.5"), ["line 5", "'1.5' is neither a whole number nor a name"]),
    (numbered(2, -1), ["line 3", "-1 is not between 0 and 2"]),
    (numbered(2, 3), ["line 3", "3 is not between 0 and 2", "from 0 to 3"]),
    (numbered(2, 1.0), ["line 3", "'1.0' is neither"]),
    (numbered(2, "", "nan"), ["2 rows cannot be used", "line 3: the label is missing; line 4: the label is missing"]),
    (numbered("cat"), ["line 2", "'cat' is no whole number, as most labels are"]),
    (lambda rows: [{**row, "label": 1 + sorted(CLASSES).index(row["label"])} for row in rows], ["13 rows", "from 1 to 3: subtract 1"]),
    (numbered(*[0] * 30), ["the train split has no image of the class 1, 2"]),
    (at(3, split="trian"), ["line 5", "the split 'trian' is not named in `splits`", "did you mean 'train'"]),
    (at(3, split=""), ["line 5", "the split ''"]),
    (lambda rows: [row for row in rows if row["split"] == "train"], ["no row is of the test split"]),
    (lambda rows: [row for row in rows if row["split"] == "test"], ["no row is of the train split"]),
    (
        lambda rows: [row for row in rows if row["split"] == "train" or row["label"] != "bee"],
        ["the test split has no image of the class bee"],
    ),
    (lambda rows: [*rows, rows[4]], ["line 41", "'images/train/A04.png' is listed a second time", "line 6"]),
    (lambda rows: [*rows, {**rows[4], "path": "images//train/./A04.png", "label": "ant"}], ["line 41", "a second time"]),
    (lambda rows: [*rows, {**rows[4], "split": "test"}], ["line 41", "is an image of test, and also of train (pets/list.csv, line 6)"]),
    (at(3, path=""), ["line 5", "the path is ''"]),
    (at(3, path="/data/x.png"), ["line 5", "is absolute"]),
    (at(3, path="C:\\data\\x.png"), ["line 5", "is absolute"]),
    (at(3, path="../../x.png"), ["line 5", "leads out of the data folder"]),
    (at(3, path="images/train"), ["lists 1 of 30 files that are not there", "images/train"]),
    (at(3, path="images/\0.png"), ["lists 1 of 30 files that are not there"]),
    (lambda rows: [{**row, "path": "x" + row["path"]} for row in rows], ["lists 30 of 30 files", "ximages/train/A00.png", "and 25 others"]),
]


def test_each_mistake_in_a_table_is_named_with_its_lines(tmp_path: Path, rows: list[Row]) -> None:
    for change, words in MISTAKES:
        table = put(tmp_path, change(rows))
        text = told(tmp_path)
        assert str(table) in text, words
        for word in words:
            assert word.lower() in text.lower(), (word, text)


def test_an_image_in_two_tables_of_the_same_name_is_found_at_the_same_line(tmp_path: Path, rows: list[Row]) -> None:
    tables = {split: f"pets/{split}/list.csv" for split in ("train", "test")}
    put_rows = {split: [{**row, "path": f"../{row['path']}"} for row in rows if row["split"] == split] for split in tables}
    for split in tables:
        (tmp_path / "pets" / split).mkdir()
        put(tmp_path, put_rows[split], f"{split}/list.csv")
    assert pets(table=tables).load(tmp_path).size("test") == 9
    relabelled = [{**row, "label": put_rows["test"][place]["label"]} for place, row in enumerate(put_rows["train"][:9])]
    for leaked in (put_rows["train"], relabelled):
        put(tmp_path, leaked, "test/list.csv")
        text = told(tmp_path, table=tables)
        assert f"line 2: '../{rows[0]['path']}' is an image of test, and also of train (pets/train/list.csv, line 2)" in text


TEXTS: list[tuple[bytes, list[str]]] = [
    (b"", ["has no rows"]),
    (b"path,label,split\n", ["has no rows"]),
    (b"path,label,split\na,b\na,b,c,d\n", ["2 rows", "line 2: it has 2 fields, and the first line has 3; line 3: it has 4 fields"]),
    (b'path,label,split\na,"b,c\n\n', ["line 2", "is a quotation mark open?"]),
    (b"path,label,split\na,b\xff,c\n", ["line 2", "it is not UTF-8"]),
    (b"path,label,split\ra,b,c\ra,b\xff,c\r", ["line 3", "it is not UTF-8"]),
    (b"path,label,split\ra,b\r", ["line 2: it has 2 fields"]),
    (b"path," + b"x" * 140_000 + b"\n", ["line 1", "field limit"]),
    (b"path,label,label,split\n", ["the column 'label' twice"]),
    (b"images/train/A00.png,ant,train\n", ["no column 'path'", "The first line must hold the names of the columns"]),
]


def test_what_is_no_table_is_refused_with_its_line(tmp_path: Path, rows: list[Row]) -> None:
    for text, words in TEXTS:
        (tmp_path / "pets/list.csv").write_bytes(text)
        for word in words:
            assert word in told(tmp_path), text
    assert "there is no table" in (text := told(tmp_path, table="pets/lists.csv")) and "list.csv" in text
    (tmp_path / "pets/list.parquet").write_bytes(b"PAR1 cut")
    assert "is truncated or not a Parquet file" in told(tmp_path, table="pets/list.parquet")


def test_types_of_parquet_that_are_no_labels_are_refused_with_their_rows(tmp_path: Path, rows: list[Row]) -> None:
    frame = pd.DataFrame(rows)
    columns: list[tuple[str, Any, str]] = [
        ("label", [None, *[1.0] * 38], "row 1: the label is missing; row 2: the label 1.0 is neither"),
        ("label", [0.5, *[1.0] * 38], "row 1: the label 0.5 is neither"),
        ("label", [b"ant", *frame["label"][1:].map(str.encode)], "row 1: the label b'ant' is neither"),
        ("path", [None, *frame["path"][1:]], "row 1: the path is None"),
        ("path", list(range(39)), "row 1: the path is 0"),
        ("split", [1] * 39, "row 1: the split 1 is not named"),
        ("split", [["train"]] * 39, "row 1: the split ['train'] is not named"),
        ("label", [["ant"]] * 39, "row 1: the label ['ant'] is neither"),
    ]
    for column, values, words in columns:
        frame.assign(**{column: values}).to_parquet(tmp_path / "pets/list.parquet")
        assert words in told(tmp_path, table="pets/list.parquet")


def test_files_that_hold_no_image_are_named_before_training(tmp_path: Path, rows: list[Row]) -> None:
    put(tmp_path, rows)
    (tmp_path / "pets" / rows[3]["path"]).write_bytes(b"")
    assert f"{rows[3]['path']} is empty (zero bytes)" in told(tmp_path)
    (tmp_path / "pets" / rows[3]["path"]).write_text("no image")
    assert f"{rows[3]['path']} cannot be read or is not an image" in told(tmp_path)


def test_a_test_image_that_is_also_a_training_image_is_warned_of(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "pets" / rows[35]["path"]).write_bytes((tmp_path / "pets" / rows[2]["path"]).read_bytes())
    put(tmp_path, rows)
    assert "1 of 9 test images are also training images" in pets().load(tmp_path).notes[0]


def copied(folder: Path, rows: list[Row], places: dict[int, int]) -> None:
    """Copy the images of some rows over those of others."""
    for one, other in places.items():
        (folder / "pets" / rows[other]["path"]).write_bytes((folder / "pets" / rows[one]["path"]).read_bytes())


def test_copies_in_the_validation_split_are_warned_of_in_tables_of_any_size(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = [{**row, "split": "val"} if row["path"].startswith("images/train") and row["path"][-5] == "7" else row for row in rows]
    put(tmp_path, moved)
    assert moved[7]["split"] == moved[17]["split"] == "val"
    copied(tmp_path, rows, {35: 7, 36: 17, 0: 27})
    for files in (100_000, 1):
        monkeypatch.setattr(_content, "CONTENT_FILES", files)
        compared = " that were compared" * (files == 1)
        one, other = pets().load(tmp_path).notes
        assert one.startswith(f"WARNING: 1 of 3 validation images{compared} are also training images, byte for byte (as pets/")
        assert other.startswith(f"WARNING: 2 of 9 test images{compared} are also validation images") and "chosen by test images" in other


def test_copies_in_images_held_out_of_training_are_warned_of(tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, rows)
    copied(tmp_path, rows, {place: place + 1 for place in range(0, 30, 2)})
    for files in (100_000, 1):
        monkeypatch.setattr(_content, "CONTENT_FILES", files)
        (note,) = pets(validation=0.5).load(tmp_path).notes
        assert "validation images" in note and "the validation accuracy is not that of unseen images" in note
        assert pets().load(tmp_path).notes == ()


def test_copies_are_found_in_large_tables_under_any_name(tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, rows)
    monkeypatch.setattr(_content, "CONTENT_FILES", 1)
    assert pets().load(tmp_path).notes == ()
    copied(tmp_path, rows, {2: 35, 3: 36})
    (note,) = pets().load(tmp_path).notes
    assert note.startswith("WARNING: 2 of 9 test images that were compared are also training images, byte for byte (as pets/images/test/")
    monkeypatch.setattr(_content, "ALIKE", 0)
    assert pets().load(tmp_path).notes == ()


def test_of_many_files_of_one_size_those_of_the_same_name_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        (tmp_path / "pets" / split).mkdir(parents=True)
    lines = ["path,label,split"]
    for place in range(40):  # PPM: all files have one size
        pixels = np.random.default_rng(place).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        for split in ("train", "test") if place >= 38 else ("train",):
            Image.fromarray(pixels).save(tmp_path / f"pets/{split}/{place}.ppm")
            lines.append(f"{split}/{place}.ppm,{place % 2},{split}")
    (tmp_path / "pets/list.csv").write_text("\n".join(lines))
    monkeypatch.setattr(_content, "CONTENT_FILES", 1)
    monkeypatch.setattr(_content, "ALIKE", 5)
    assert "2 of 2 test images" in pets(classes=2).load(tmp_path).notes[0]


def test_the_fingerprint_depends_on_pixels_labels_and_splits_and_not_on_the_table(tmp_path: Path, rows: list[Row]) -> None:
    put(tmp_path, rows)
    plain = pets().load(tmp_path).fingerprint
    assert pets(**written("Parquet", tmp_path, rows)).load(tmp_path).fingerprint == plain
    for change in (at(0, label="cat"), at(0, split="test"), lambda rows: rows[1:]):
        put(tmp_path, change(rows))
        assert pets().load(tmp_path).fingerprint != plain
    put(tmp_path, rows)
    path = tmp_path / "pets" / rows[0]["path"]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\0")  # the same size
    assert pets().load(tmp_path).fingerprint != plain


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": "/pets/list.csv"}, "table must be a name inside the data folder"),
        ({"table": "../list.csv"}, "table must be a name inside the data folder"),
        ({"table": "pets/list.xlsx"}, "table must end in .csv"),
        ({"table": {"train": "a.csv"}}, "must name train and test"),
        ({"table": {"train": "a.csv", "test": "a.csv"}}, "each by its own value"),
        ({"table": {"train": "a.csv", "test": "b.csv"}, "splits": {"train": "a", "test": "b"}}, "splits is for one table"),
        ({"table": {"train": "a.csv", "test": "b.csv", "val": "c.csv"}, "validation": 0.1}, "leave one of them out"),
        ({"splits": {"train": "a"}}, "must name train and test"),
        ({"splits": {"train": "a", "test": "a"}}, "each by its own value"),
        ({"classes": 1}, "classes must be at least 2"),
        ({"classes": ["a"]}, "classes must be at least 2"),
        ({"classes": []}, "classes must be at least 2"),
        ({"classes": ["a", "b", "a"]}, "names a class twice"),
        ({"size": 0}, "size at least 1"),
    ],
)
def test_options_of_a_table_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pets(**options)


def test_a_part_rebuilt_from_its_resolved_options_is_the_same() -> None:
    part = load_part("dataset", "listed")
    for table in ("pets/list.csv", {"train": "a.csv", "test": "b.csv"}):
        options = part.options({"table": table, "classes": ["b", "a"], "subset": {"per_class": 5}})
        assert part.options(options) == options and part.build(options).n_train == 10


def test_a_table_trains_to_the_same_bits_with_any_number_of_readers(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, rows)
    plan = plan_of(
        dataset="{name: listed, table: pets/list.csv, classes: 3, size: 16, train_images: 30}",
        objectives="[kd]",
        repeats="1",
        recipe="{name: short, epochs: 1, batch_size: 16, lr: 0.02, milestones: []}",
    )
    load, results = Listed.load, []
    for workers in (0, 1, 2):

        def loaded(self: Listed, folder: Path, workers: int = workers) -> Any:
            data = load(self, folder)
            data.workers = workers
            return data

        monkeypatch.setattr(Listed, "load", loaded)
        build._load_data.cache_clear()
        store = Store(tmp_path / f"results of {workers}")
        assert train(plan, store=store) == 0
        results.append([record.result for cell_id in plan.cells if (record := store.record(cell_id))])

    assert len(results[0]) == 2 and results[0] == results[1] == results[2]
    assert [result["n_train"] for result in results[0]] == [30, 30]
