"""Folders of images as people have them: stray files, every ending, EXIF, transparency, spellings of names, copies of images."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from kdbench import parts
from kdbench.cell import identify
from kdbench.cli import main
from kdbench.datasets import _content
from kdbench.datasets._files import SUFFIXES
from kdbench.datasets._reading import Decoding, read_rgb
from kdbench.datasets.folder import Folder
from kdbench.datasets.imagenet import Imagenet
from kdbench.datasets.tiny_imagenet import TinyImagenet
from kdbench.errors import DataError
from kdbench.plan.matrix import Plan
from kdbench.record import same_images
from kdbench.run import local, verbs
from kdbench.store import Store

DIGITS = (load_digits().images * 15).astype(np.uint8)
CLASSES = ("ant", "bee")
FORMATS = {"jfif": "jpeg", "jpe": "jpeg", "jpg": "jpeg", "pbm": "ppm", "pgm": "ppm", "pnm": "ppm", "tif": "tiff"}
LOSSLESS = {"webp": {"lossless": True}}


def digit(number: int, size: int = 24, mode: str = "L") -> Image.Image:
    return Image.fromarray(DIGITS[number]).resize((size, size + 8), Image.Resampling.NEAREST).convert(mode)


def encoded(image: Image.Image, suffix: str = "png", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, FORMATS.get(suffix, suffix), **{**LOSSLESS.get(suffix, {}), **options})
    return out.getvalue()


def put(folder: Path, classes: tuple[str, ...] = CLASSES, name: str = "set", train: int = 4, test: int = 2) -> Path:
    """Digits in PNG, no two alike: `train` training and `test` test images per class."""
    home = folder / name
    for place, one in enumerate(classes):
        for split, first, count in (("train", 0, train), ("val", 500, test)):
            (home / split / one).mkdir(parents=True)
            for number in range(count):
                (home / split / one / f"{number}.png").write_bytes(encoded(digit(first + 20 * place + number)))
    return home


def part(**options: Any) -> Folder:
    return Folder(**{"folder": "set", "classes": 2, "size": 16, **options})


def refused(dataset: Any, folder: Path) -> str:
    with pytest.raises(DataError) as error:
        dataset.load(folder)
    return str(error.value)


def paths(data: Any, split: str = "train") -> list[str]:
    return [os.fsdecode(one) for one in data.files[split].paths.tolist()]


# Stray files

STRAY = (
    *("Thumbs.db", "desktop.ini", "labels.csv", "notes.txt", "0.xml", "0.json", "README", "0.png.txt", "0.jpg.part", "0.npy", "0.heic"),
    *("0.svg", "checksums.MD5", "photo.jpeg (1)", "movie.mp4", "a.tar.gz", "0.tiffx", "Icon\r"),
)
HIDDEN = (".DS_Store", "._0.png", ".thumbnails/0.png", ".ipynb_checkpoints/0.png", "@eaDir/0.png/x.jpg", "__MACOSX/0.png", "#recycle/0.png")


def test_stray_files_are_passed_over_and_counted_and_change_nothing_else(tmp_path: Path) -> None:
    home = put(tmp_path)
    clean = part().load(tmp_path)
    assert clean.notes == ()
    for name in (*STRAY, *HIDDEN, "empty/deeper/notes.txt"):
        (home / "train/bee" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "train/bee" / name).write_bytes(b"" if name == "Thumbs.db" else b"x")
    data = part().load(tmp_path)

    assert (paths(data), data.fingerprint) == (paths(clean), clean.fingerprint)
    (note,) = data.notes
    assert note.startswith(f"passed over ({len(STRAY) + len(HIDDEN) + 1} in all): hidden {len(HIDDEN)}, .txt 2, ")


def test_what_lies_beside_the_classes_is_passed_over_and_counted(tmp_path: Path) -> None:
    home = put(tmp_path)
    for name in ("train/classes.txt", "val/Thumbs.db", "train/junk/notes.txt", "val/empty/x/y.doc", "train/__MACOSX/bee/._0.png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    shutil.copy(home / "train/bee/0.png", home / "train")
    data = part().load(tmp_path)

    assert data.notes == ("passed over (6 in all): folders without images 2, .db 1, .txt 1, hidden 1, images outside a class's folder 1",)
    assert "2 classes, and 3 were declared; of these folders none holds an image" in refused(part(classes=3), tmp_path)


def test_names_that_are_no_text_are_read_and_counted_and_can_be_printed(tmp_path: Path) -> None:
    home = put(tmp_path)
    for split, name in (
        ("train", b"a\xff\x1b[1m\n.png"),
        ("train", b"x.\xff\xfe"),
        ("val", b"b.\x1b[31m"),
        ("val", b"Dr. Who at home"),
        ("val", b".\xff"),
    ):
        Path(os.fsdecode(os.fsencode(home / split / "bee") + b"/" + name)).write_bytes(encoded(digit(40)))
    shutil.copytree(home / "train/bee", home / "val/bee", dirs_exist_ok=True)
    data = part(validation=0.25).load(tmp_path)

    assert data.size("train") + data.size("val") == 9
    assert data.notes[0] == "passed over (5 in all): other endings 4, hidden 1"
    copies = [note.partition(",")[0] for note in data.notes[1:]]
    # The fifth is held out.
    assert copies == ["WARNING: 4 of 7 test images are also training images", "WARNING: 1 of 7 test images are also validation images"]
    assert all(note.isprintable() for note in data.notes)


def test_a_class_without_a_readable_image_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    home = put(tmp_path)
    for one in (home / "train/bee").iterdir():
        one.rename(one.with_suffix(".heic"))

    assert refused(part(), tmp_path).endswith("train/bee holds no image (.heic 4)")
    assert "8 images, and 9 were declared (passed over: .heic 1)" in refused_with_one_less(tmp_path)


def refused_with_one_less(folder: Path) -> str:
    shutil.rmtree(folder / "set")
    home = put(folder, train=5)
    (home / "train/bee/4.png").rename(home / "train/bee/4.heic")
    (home / "train/ant/4.png").unlink()
    return refused(part(train_images=9), folder)


@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title])
def test_images_of_every_ending_are_read(tmp_path: Path, spelling: Callable[[str], str]) -> None:
    home = put(tmp_path, train=1)
    for suffix in SUFFIXES:
        mode = "1" if suffix == ".pbm" else "L"
        content = encoded(digit(7, mode=mode), suffix[1:])
        (home / f"train/bee/seven{spelling(suffix)}").write_bytes(content)
        expected = Image.open(io.BytesIO(content)).convert("RGB")
        if mode == "L" and FORMATS.get(suffix[1:], suffix[1:]) != "jpeg":
            assert expected.tobytes() == digit(7, mode="RGB").tobytes()
        assert read_rgb(home / f"train/bee/seven{spelling(suffix)}").tobytes() == expected.tobytes()
    data = part().load(tmp_path)

    assert data.size("train") == 2 + len(SUFFIXES)
    whole, _ = data.batch("train", np.arange(data.size("train")))
    assert torch.isfinite(whole).all()


@pytest.mark.parametrize(("suffix", "kind"), [("gif", "gif"), ("tif", "tiff"), ("webp", "webp"), ("png", "png")])
def test_of_several_images_in_a_file_the_first_is_read(tmp_path: Path, suffix: str, kind: str) -> None:
    others = [digit(number) for number in range(3)]
    (tmp_path / f"x.{suffix}").write_bytes(encoded(digit(7), suffix, save_all=True, append_images=others))
    with Image.open(tmp_path / f"x.{suffix}") as image:
        assert image.format.lower() == kind and image.n_frames == 4

    for decoding in (Decoding(), Decoding("exif", "white")):
        assert read_rgb(tmp_path / f"x.{suffix}", decoding).tobytes() == digit(7, mode="RGB").tobytes()


def test_a_folder_of_images_inside_a_class_is_refused_or_read_where_the_suite_says_so(tmp_path: Path) -> None:
    home = put(tmp_path)
    for place in ("train/bee/2020/june", "train/bee/2021"):
        (home / place).mkdir(parents=True)
        (home / place / "9.png").write_bytes(encoded(digit(9)))
    os.symlink(home / "train", home / "train/bee/2021/above")

    text = refused(part(), tmp_path)
    assert f"{home}/train/bee/2020/june is a folder with images inside a class's folder (images there: 2)" in text
    assert "`subfolders: read`" in text
    data = part(subfolders="read").load(tmp_path)
    assert paths(data)[-6:] == [f"train/bee/{one}.png" for one in ("0", "1", "2", "2020/june/9", "2021/9", "3")]
    assert data.targets("train").tolist() == [0] * 4 + [1] * 6


# How files become pixels

ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(encoded(digit(5, mode="RGB"), suffix, exif=exif))
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        stored = image.convert("RGB")
    assert upright is not None and (upright.tobytes() == digit(5, mode="RGB").tobytes()) <= (orientation == 1)

    assert read_rgb(path, Decoding(orientation="exif")).tobytes() == upright.convert("RGB").tobytes()
    assert read_rgb(path).tobytes() == stored.tobytes()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0broken", b"", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01zz\0\0"]
)
def test_an_image_with_damaged_exif_data_is_read_as_it_is_stored(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(digit(5), "jpg", exif=exif))

    assert read_rgb(path, Decoding(orientation="exif")).tobytes() == read_rgb(path).tobytes()


def seen_through(mode: str) -> Image.Image:
    """A black digit on a ground that is more transparent from left to right, in a mode with transparency."""
    image = digit(3, mode="RGBA")
    alpha = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
    image.putalpha(Image.fromarray(alpha))
    return image if mode == "RGBA" else image.convert(mode)


def transparent_files() -> dict[str, bytes]:
    palette = Image.fromarray(DIGITS[3] // 16).convert("P")
    grey, colours = Image.fromarray(DIGITS[3]), Image.fromarray(DIGITS[3]).convert("RGB")
    return {
        "rgba.png": encoded(seen_through("RGBA")),
        "la.png": encoded(seen_through("LA")),
        "rgba.webp": encoded(seen_through("RGBA"), "webp"),
        "rgba.tif": encoded(seen_through("RGBA"), "tif"),
        "one colour of a palette.png": encoded(palette, transparency=0),
        "each colour of a palette.png": encoded(palette, transparency=bytes(range(0, 256, 1))),
        "palette.gif": encoded(palette, "gif", transparency=0),
        "one grey.png": encoded(grey, transparency=0),
        "one colour.png": encoded(colours, transparency=(0, 0, 0)),
    }


@pytest.mark.parametrize("name", transparent_files())
def test_transparency_is_composed_onto_white(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(transparent_files()[name])
    with Image.open(path) as image:
        image.load()
        pixels = np.asarray(image.convert("RGBA")).astype(float)
        dropped = image.convert("RGBA").convert("RGB") if "each colour" in name else image.convert("RGB")
    colour, alpha = pixels[..., :3], pixels[..., 3:] / 255
    assert alpha.min() == 0
    white = np.asarray(read_rgb(path, Decoding(transparency="white"))).astype(float)

    assert np.abs(white - (colour * alpha + 255 * (1 - alpha))).max() <= 1
    assert (white[alpha[..., 0] == 0] == 255).all()
    assert read_rgb(path).tobytes() == dropped.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA"])
def test_an_opaque_upright_image_has_the_same_pixels_with_every_option(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    path.write_bytes(encoded(digit(5, mode=mode), path.suffix[1:]))

    assert read_rgb(path, Decoding("exif", "white")).tobytes() == read_rgb(path).tobytes() == Image.open(path).convert("RGB").tobytes()


BEFORE = {"folder": "set", "classes": 2, "size": 16}


def test_folders_planned_before_these_options_keep_their_ids_and_pixels(tmp_path: Path) -> None:
    loaded = parts.load("dataset", "folder")
    neutral = {"orientation": "ignored", "transparency": "dropped", "subfolders": "refused"}
    options = loaded.options({**BEFORE, **neutral})
    assert not options.keys() & neutral.keys()
    old = loaded.build(options)
    assert {name: getattr(old, name) for name in neutral} == neutral

    home = put(tmp_path)
    (home / "train/ant/0.png").write_bytes(transparent_files()["rgba.png"])
    pixels = [dataset.load(tmp_path).batch("train", np.arange(8))[0] for dataset in (old, part())]
    with Image.open(home / "train/ant/0.png") as image:
        flat = image.convert("RGB")
    (home / "train/ant/0.png").write_bytes(encoded(flat))
    assert torch.equal(pixels[0], part().load(tmp_path).batch("train", np.arange(8))[0])
    assert not torch.equal(*pixels)


def test_new_folders_are_upright_and_on_white_and_their_id_says_so() -> None:
    loaded = parts.load("dataset", "folder")
    options = loaded.options(BEFORE)
    assert (options["orientation"], options["transparency"]) == ("exif", "white") and "subfolders" not in options
    ids = {
        identify({"options": loaded.options({**BEFORE, **more})}) for more in ({}, {"orientation": "ignored"}, {"transparency": "dropped"})
    }
    assert len(ids) == 3


def test_imagenet_has_the_pixels_of_the_literature() -> None:
    built = parts.load("dataset", "imagenet").build(parts.load("dataset", "imagenet").options())
    assert (built.orientation, built.transparency) == ("ignored", "dropped")
    assert "orientation" not in parts.load("dataset", "imagenet").options()
    assert (Imagenet().orientation, Imagenet().transparency) == ("ignored", "dropped")


def test_a_users_dataset_derived_from_folder_needs_no_options_that_it_does_not_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from kdbench.datasets.folder import Folder\n\n\nclass Mine(Folder):\n    def __init__(self, *, size: int = 16):\n"
        "        super().__init__(folder='set', classes=2, size=size)\n"
    )
    loaded = parts.load("dataset", "mine.py:Mine", tmp_path)
    put(tmp_path)

    assert loaded.options() == {"size": 16}
    assert loaded.build(loaded.options()).load(tmp_path).size("train") == 8


# Names


@pytest.mark.parametrize(("train", "val"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_composed_and_decomposed_spellings_of_a_class_are_one_class(tmp_path: Path, train: Any, val: Any) -> None:
    classes = ("crème", "zebra", "각", "Ångström")
    home = put(tmp_path / "all", classes, name="café")
    for split, form in (("train", train), ("val", val)):
        for one in classes:
            there = tmp_path / "two" / unicodedata.normalize(train, "café") / split / unicodedata.normalize(form, one)
            shutil.copytree(home / split / one, there)
    dataset = part(folder="café", classes=4, validation=0.25, split_seed=1)
    one, two = dataset.load(tmp_path / "all"), dataset.load(tmp_path / "two")

    assert one.fingerprint == two.fingerprint
    for split in ("train", "val", "test"):
        assert [unicodedata.normalize("NFC", path) for path in paths(two, split)] == paths(one, split)
        assert torch.equal(one.targets(split), two.targets(split))
        assert torch.equal(one.batch(split, np.arange(one.size(split)))[0], two.batch(split, np.arange(two.size(split)))[0])


def test_a_class_that_lies_in_two_spellings_in_one_split_is_one_class(tmp_path: Path) -> None:
    home = put(tmp_path, ("ant", "é"))
    other = home / "train" / unicodedata.normalize("NFD", "é")
    other.mkdir()
    (other / "9.png").write_bytes(encoded(digit(9)))
    data = part().load(tmp_path)

    assert data.targets("train").tolist() == [0] * 4 + [1] * 5


def test_labels_follow_the_sorted_names_whatever_they_contain(tmp_path: Path) -> None:
    names = ("10", "2", "a b", "a.b", "été", "a-b", "v1.0 (old)", "Zoo", "动物", "%41", "x.png")
    put(tmp_path, names, train=1, test=1)
    data = part(classes=len(names)).load(tmp_path)

    found = {path.split("/")[1]: label for path, label in zip(paths(data), data.targets("train").tolist(), strict=True)}
    assert found == {name: label for label, name in enumerate(sorted(names))}
    assert found["10"] < found["2"]


# Content


def put_val_as_train(how: str, home: Path) -> None:
    shutil.rmtree(home / "val")
    if how == "link":
        (home / "val").symlink_to("train")
    elif how == "links of classes":
        (home / "val").mkdir()
        for one in CLASSES:
            (home / "val" / one).symlink_to(f"../train/{one}")
    elif how == "links of files":
        shutil.copytree(home / "train", home / "val", copy_function=os.symlink)
    elif how == "hard links":
        shutil.copytree(home / "train", home / "val", copy_function=os.link)
    else:
        shutil.copytree(home / "train", home / "val")
    if how == "copy under other names":
        for path in list((home / "val").rglob("*.png")):
            path.rename(path.with_name(f"val_{path.name}"))


HOW = ["link", "links of classes", "links of files", "hard links", "copy"]


@pytest.mark.parametrize(("how", "large"), [("copy under other names", False), *((how, large) for how in HOW for large in (False, True))])
def test_test_images_that_are_the_training_images_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, large: bool
) -> None:
    home = put(tmp_path)
    if large:
        monkeypatch.setattr(_content, "CONTENT_FILES", 1)
    assert part().load(tmp_path).notes == ()
    put_val_as_train(how, home)

    (note,) = part().load(tmp_path).notes
    assert note.startswith(
        f"WARNING: 8 of 8 test images{' that were compared' * large} are also training images, byte for byte (as val/ant/"
    )


def test_a_few_test_images_that_are_training_images_are_counted(tmp_path: Path) -> None:
    home = put(tmp_path)
    shutil.copy(home / "train/bee/1.png", home / "val/ant/1.png")

    assert part().load(tmp_path).notes[0].startswith("WARNING: 1 of 4 test images are also training images")


def test_copies_in_images_held_out_of_training_are_warned_of(tmp_path: Path) -> None:
    home = put(tmp_path)
    assert part(validation=0.5).load(tmp_path).notes == ()
    for path in (home / "train").rglob("*.png"):
        shutil.copy(path, path.with_name(f"x{path.name}"))

    found = {part(validation=0.5, split_seed=seed).load(tmp_path).notes for seed in range(3)}
    assert any("validation images are also training images" in note for notes in found for note in notes)


def listing(data: Any) -> str:
    """The fingerprint of version 0.2, by its definition."""
    whole = hashlib.sha256()
    for split in ("test", "train"):
        whole.update(split.encode())
        for path in data.files[split].paths.tolist():
            whole.update(path + b"\0%d\0" % (data.files[split].home / os.fsdecode(path)).stat().st_size)
    return whole.hexdigest()[:16]


def test_pixels_changed_in_place_change_the_fingerprint_and_the_first_half_is_that_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = put(tmp_path)
    for number in range(2):
        (home / f"train/ant/{number}.png").write_bytes(b"")
        (home / f"train/ant/{number}.bmp").write_bytes(encoded(digit(number), "bmp"))
        (home / f"train/ant/{number}.png").unlink()
    before = part().load(tmp_path)
    (home / "train/ant/0.bmp").write_bytes(encoded(digit(8), "bmp"))
    after = part().load(tmp_path)
    for name, value in (("CONTENT_FILES", 11), ("CONTENT_BYTES", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(_content, name, value)
            assert part().load(tmp_path).fingerprint == listing(before)

    assert before.fingerprint.split("-")[0] == after.fingerprint.split("-")[0] == listing(before)
    assert before.fingerprint != after.fingerprint and not same_images(before.fingerprint, after.fingerprint)
    assert same_images(listing(before), before.fingerprint) and same_images(after.fingerprint, listing(before))
    assert not same_images("f00d", before.fingerprint) and not same_images("f00d", "beef")


# Images that cannot be read


def test_all_files_that_are_no_images_are_reported_together(tmp_path: Path) -> None:
    home = put(tmp_path, train=8)
    pages = (b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"x" * 500)
    for number in range(7):
        (home / f"train/bee/{number}.png").write_bytes(pages[number % 3])

    text = refused(part(), tmp_path)
    assert text.startswith(f"7 images cannot be used: {home}/train/bee/0.png cannot be read or is not an image (UnidentifiedImageError")
    assert text.count("cannot be read or is not") == 5 and text.endswith("; and 2 others")
    (home / "train/bee/0.png").write_bytes(encoded(digit(1)))
    assert part(subset={"per_class": 1}).load(tmp_path).size("train") == 2


def test_all_empty_images_are_reported_together_in_sets_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_content, "CONTENT_FILES", 1)
    home = put(tmp_path)
    for name in ("train/ant/0", "val/bee/1"):
        (home / f"{name}.png").write_bytes(b"")

    text = refused(part(), tmp_path)
    assert text.startswith(f"2 images cannot be used: {home}/train/ant/0.png is empty") and f"{home}/val/bee/1.png is empty" in text


def test_an_unreadable_file_is_named_at_load(tmp_path: Path) -> None:
    home = put(tmp_path)
    (home / "train/bee/0.png").unlink()
    (home / "train/bee/0.png").symlink_to("nowhere.png")

    assert f"{home}/train/bee/0.png" in refused(part(), tmp_path)


def test_what_pillow_opens_and_training_cannot_use_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Image.fromarray((np.arange(400, dtype=np.uint16) * 100).reshape(20, 20))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    floats = Image.fromarray(DIGITS[0].astype(np.float32))
    for name, content, words in (
        ("deep.png", encoded(deep), "more than 8 bits a channel"),
        ("deep.tif", encoded(deep, "tif"), "more than 8 bits a channel"),
        ("deep.pgm", encoded(deep, "pgm"), "more than 8 bits a channel"),
        ("floats.tif", encoded(floats, "tif"), "more than 8 bits a channel"),
        ("program.png", program, "it is EPS"),
        ("cut.png", encoded(digit(1))[:-30], "is truncated or not an image"),
        ("cut.gif", encoded(digit(1), "gif")[:-60], "is truncated or not an image"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words) as error:
            read_rgb(tmp_path / name, Decoding("exif", "white"))
        assert str(tmp_path / name) in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "large.png").write_bytes(encoded(digit(1)))
    with pytest.raises(DataError, match="is too large"):
        read_rgb(tmp_path / "large.png")


# Training


def put_mixed(folder: Path) -> Path:
    """Images of every kind, and stray files."""
    home = put(folder)
    for place, (name, content) in enumerate(transparent_files().items()):
        (home / "train" / CLASSES[place % 2] / name).write_bytes(content)
    exif = Image.Exif()
    exif[0x0112] = 6
    (home / "train/bee/turned.JPG").write_bytes(encoded(digit(4), "jpg", exif=exif))
    (home / "train/bee/Thumbs.db").write_text("x")
    return home


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # on a machine with fewer processors
@pytest.mark.parametrize("processes", [1, 4])
def test_any_number_of_readers_gives_the_same_bytes(tmp_path: Path, processes: int) -> None:
    put_mixed(tmp_path)
    data = part().load(tmp_path)
    views = data.draw_views(np.random.Generator(np.random.Philox(5)))
    wanted = [(np.arange(start, min(start + 4, len(views))), views[start : start + 4]) for start in range(0, len(views), 4)]
    here = list(data.batches("train", wanted))
    data.read_with(processes)

    for (mine, labels), (theirs, other) in zip(here, data.batches("train", wanted), strict=True):
        assert torch.equal(mine, theirs) and torch.equal(labels, other)


DATASET = "{name: folder, folder: set, classes: 2, size: 16, train_images: 18}"


def test_run_and_check_print_each_note_once(write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = put_mixed(tmp_path)
    shutil.copy(home / "train/bee/1.png", home / "val/ant/1.png")
    suite = write_suite(dataset=DATASET, objectives="[ce, kd]", repeats="1")
    monkeypatch.setattr(local, "train", lambda *_: None)
    monkeypatch.setattr(verbs, "conclude", lambda *_: 0)
    for verb in ("run", "check"):
        told = CliRunner().invoke(main, [verb, str(suite), "--data", str(tmp_path), "--results", str(tmp_path / verb), "--device", "cpu"])
        assert told.exit_code == 0, told.output
        assert told.output.count("folder: passed over (1 in all): .db 1\n") == 1, told.output
        assert told.output.count("folder: WARNING: 1 of 4 test images are also training images") == 1


def test_a_teacher_trained_before_the_content_was_read_serves_and_one_of_other_pixels_does_not(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    put_mixed(tmp_path)
    plan = plan_of(dataset=DATASET, objectives="[kd]", repeats="1")
    (teacher,) = [cell.id for cell in plan.cells.values() if cell.role == "teacher"]
    assert train(plan, [teacher]) == 0
    record = store.record(teacher)
    assert record is not None
    old, content = record.result["data_fingerprint"].split("-")
    student = [cell_id for cell_id in plan.cells if cell_id != teacher]
    for fingerprint, status in ((f"{old}-{content[::-1]}", 1), (old, 0)):
        path = store.file(teacher, "record.json")
        path.write_text(path.read_text().replace(record.result["data_fingerprint"], fingerprint))
        record = store.record(teacher)
        assert record is not None and train(plan, student) == status


# Tiny-ImageNet


def put_tiny(folder: Path) -> Path:
    home = folder / "tiny"
    for place, wnid in enumerate(("n00000001", "n00000002")):
        (home / "train" / wnid / "images").mkdir(parents=True)
        for number in range(3):
            (home / "train" / wnid / "images" / f"{number}.JPEG").write_bytes(encoded(digit(10 * place + number).resize((64, 64)), "jpg"))
    (home / "val/images").mkdir(parents=True)
    for number in range(2):
        (home / "val/images" / f"{number}.JPEG").write_bytes(encoded(digit(50 + number).resize((64, 64)), "jpg"))
    (home / "val/val_annotations.txt").write_text("0.JPEG\tn00000001\n1.JPEG\tn00000002\n")
    (home / "wnids.txt").write_text("n00000001\nn00000002\n")
    return home


def test_tiny_imagenet_passes_stray_files_over_and_reports_all_bad_images_together(tmp_path: Path) -> None:
    home = put_tiny(tmp_path)
    dataset = TinyImagenet(folder="tiny", classes=2, per_class=3)
    clean = dataset.load(tmp_path)
    for name in ("train/n00000001/images/Thumbs.db", "val/images/desktop.ini", "val/images/._0.JPEG"):
        (home / name).write_text("x")
    data = dataset.load(tmp_path)
    assert data.fingerprint == clean.fingerprint and torch.equal(data.train.pixels, clean.train.pixels)
    assert data.to(torch.device("cpu")).notes == ("passed over (3 in all): .db 1, .ini 1, hidden 1",)

    for number in range(2):
        path = home / f"train/n00000002/images/{number}.JPEG"
        path.write_bytes(path.read_bytes()[:300])
    text = refused(dataset, tmp_path)
    assert text.startswith("2 images cannot be used: ") and text.count("truncated") == 2
