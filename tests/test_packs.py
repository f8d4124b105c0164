"""One file in the place of a folder of images: packs, tar files, and decoders that change no pixel."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdbench import parts
from kdbench.cli import main
from kdbench.datasets import _content, _decode, _pack
from kdbench.datasets._reading import Decoding, EncodedImage, read_rgb
from kdbench.datasets.folder import Folder
from kdbench.datasets.imagenet import Imagenet
from kdbench.errors import DataError

WNIDS = ("n01440764", "n01443537", "n02102040")
SIZES = ((61, 47), (40, 40), (33, 90), (96, 31), (17, 16))


def picture(number: int, size: tuple[int, int] = (61, 47), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = (np.asarray(small).astype(int) + rng.integers(-9, 10, (size[1], size[0], 3))).clip(0, 255)
    return Image.fromarray(noisy.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "jpeg", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def kinds() -> dict[str, bytes]:
    """An image of every kind that people have, by name; the names of the first four begin with `common`: those that faster decoders read."""
    see_through = picture(1, mode="RGBA")
    see_through.putalpha(Image.fromarray(np.tile(np.arange(61, dtype=np.uint8) * 4, (47, 1))))
    jpeg = encoded(picture(8))
    return {
        **{f"common {sub}.jpg": encoded(picture(sub), subsampling=sub) for sub in range(3)},
        "common restarts.JPEG": encoded(picture(4), restart_marker_rows=1),
        "cmyk.JPEG": encoded(picture(5, mode="CMYK")),
        "grey.JPEG": encoded(picture(6, mode="L")),
        **{f"exif {one}.jpg": encoded(picture(7), exif=turned(one)) for one in (1, 6, 8)},
        "progressive.jpg": encoded(picture(9), progressive=True),
        "rgb.jpg": encoded(picture(9), keep_rgb=True),
        "a png.JPEG": encoded(picture(10), "png"),
        "palette.png": encoded(picture(11).convert("P"), "png", transparency=0),
        "see-through.png": encoded(see_through, "png"),
        "grey alpha.png": encoded(see_through.convert("LA"), "png"),
        "one bit.png": encoded(picture(12, mode="1"), "png"),
        "several.gif": encoded(picture(13), "gif", save_all=True, append_images=[picture(14)]),
        "see-through.webp": encoded(see_through, "webp", lossless=True),
        "turned.tif": encoded(picture(15), "tiff", exif=turned(6)),
        "jpeg with a tail.jpg": jpeg + b"\0" * 9,
        "several.jpg": encoded(picture(16), "mpo", save_all=True, append_images=[picture(17)]),
    }


DAMAGED = {
    "deep.png": encoded(Image.fromarray((np.arange(400, dtype=np.uint16) * 100).reshape(20, 20)), "png"),
    "cut.jpg": encoded(picture(8))[:-300],
    "text.jpg": b"<html>not found</html>",
    "header only.jpg": encoded(picture(8))[:180],
}


def put(folder: Path, name: str = "imagenet", classes: tuple[str, ...] = WNIDS, only: tuple[str, ...] | None = None) -> Path:
    """Images of every kind, no two alike, in class folders; stray and hidden files lie beside them."""
    home, files = folder / name, [(one, content) for one, content in kinds().items() if only is None or one in only]
    for place, one in enumerate(classes):
        for split, chosen in (("train", files), ("val", files[:3])):
            (home / split / one).mkdir(parents=True)
            (home / split / one / ".DS_Store").write_text("x")
            for called, content in chosen:
                (home / split / one / called).write_bytes(content)
            for number in range(3):
                image = picture(1000 * place + number + 500 * (split == "val"), SIZES[(place + number) % 5])
                (home / split / one / f"{one}_{number}.JPEG").write_bytes(encoded(image))
    (home / "train" / "notes.txt").write_text("x")
    return home


def tarred(home: Path, out: Path, top: str = "") -> Path:
    with tarfile.open(out, "w") as tar:
        tar.add(home, top or ".", filter=lambda one: one)
    return out


def dataset(**options: Any) -> Folder:
    return Folder(**{"folder": "imagenet", "classes": 3, "size": 16, "validation": 0.2, **options})


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as error:
        act()
    return str(error.value)


def plan_of(data: Any, split: str = "train") -> list[tuple[np.ndarray, np.ndarray]]:
    views = data.draw_views(np.random.Generator(np.random.Philox(5)))
    order = np.random.default_rng(0).permutation(data.size("train"))
    return [(order[start : start + 9], views[order[start : start + 9]]) for start in range(0, len(order), 9)]


def pixels(data: Any, first: int = 0) -> list[torch.Tensor]:
    wanted = plan_of(data)[first:]
    found = [one for batch in data.batches("train", wanted) for one in batch]
    if not first:
        found += [one for split in ("val", "test") for one in data.batch(split, np.arange(data.size(split)))]
    return found


def alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


# Decoders


def part_of(size: tuple[int, int]) -> tuple[int, int, int, int]:
    return size[0] // 5, size[1] // 4, size[0] - 3, size[1] - 2


@pytest.mark.parametrize("name", _decode.MAKERS)
def test_a_faster_decoder_changes_no_pixel_and_no_message(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (decode := _decode.installed().get(name)) is None:
        pytest.skip(f"{name} is not installed")
    assert _decode.agrees(decode)
    monkeypatch.setattr(_decode, "LARGE", 47 * 61)
    used: list[int] = []

    def counted(content: bytes) -> torch.Tensor:
        used.append(1)
        return decode(content)

    files = {**kinds(), **DAMAGED}
    for called, content in files.items():
        (tmp_path / called).write_bytes(content)
        for decoding in (Decoding(), Decoding("exif", "white")):
            for path in (tmp_path / called, EncodedImage(content, called)):
                found: list[Any] = []
                for other in (None, counted):
                    monkeypatch.setattr(_decode, "decoder", lambda other=other: other)
                    try:
                        whole, part = read_rgb(path, decoding), read_rgb(path, decoding, part_of)
                        assert whole.crop(part_of(whole.size)).tobytes() == part.tobytes()
                        found.append((whole.size, whole.tobytes()))
                    except DataError as error:
                        found.append(str(error))
                assert found[0] == found[1], called
                assert isinstance(found[0], str) == (called in DAMAGED)
    assert len(used) == 2 * 2 * 5
    monkeypatch.setattr(_decode, "LARGE", 47 * 61 + 1)
    read_rgb(tmp_path / "common 0.jpg", part=part_of)
    assert len(used) == 2 * 2 * 5


def test_what_is_not_common_is_left_to_pillow() -> None:
    common = {name for name, content in kinds().items() if _decode.is_common(Image.open(io.BytesIO(content)))}

    assert common == {name for name in kinds() if name.startswith("common")} | {"jpeg with a tail.jpg"}


@pytest.mark.parametrize("broken", [lambda content: 1 / 0, lambda content: torch.zeros(3, 47, 33, dtype=torch.uint8), None])
def test_a_decoder_that_fails_or_differs_by_one_is_not_used(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(content: bytes) -> torch.Tensor:
        found = torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1)
        found[2, 5, 5] ^= 1
        return found

    monkeypatch.setattr(_decode, "MAKERS", {"broken": lambda: broken or off, "absent": lambda: 1 / 0})

    assert list(_decode.installed()) == ["broken"] and _decode.decoder.__wrapped__() is None


# A pack or tar file in the place of the folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def places(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data folders that hold the same images as a folder, a pack and tar files."""
    root = tmp_path_factory.mktemp("places")
    found = {"folder": home.parent, **{name: root / name for name in ("pack", "tar", "tar with a top", "copy")}}
    for place in list(found.values())[1:]:
        place.mkdir()
    _pack.packed(home, found["pack"] / "imagenet.pack")
    tarred(home, found["tar"] / "imagenet.tar")
    tarred(home, found["tar with a top"] / "imagenet.tar", "imagenet")
    for path in sorted(home.rglob("*"), reverse=True):
        if path.is_file():
            (found["copy"] / "imagenet" / path.relative_to(home)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, found["copy"] / "imagenet" / path.relative_to(home))
    _pack.packed(found["copy"] / "imagenet", found["copy"] / "again.pack")
    return found


@pytest.mark.parametrize("large", [False, True])
def test_folder_pack_and_tar_give_the_same_images_order_and_fingerprint(
    places: dict[str, Path], large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(_content, "CONTENT_FILES", 1)
    whole, *others = (dataset().load(folder) for folder in places.values())
    assert len(whole.fingerprint.split("-")) == (1 if large else 2)
    expected = pixels(whole)
    for other in others:
        assert other.fingerprint == whole.fingerprint
        for split, files in whole.files.items():
            assert other.files[split].paths.tolist() == files.paths.tolist()
            assert other.files[split].sizes.tolist() == files.sizes.tolist()
        assert alike(expected, pixels(other))
        assert [note for note in other.notes if "passed over" in note] == [note for note in whole.notes if "passed over" in note]
        assert any("also training images" in note for note in other.notes)
    assert places["copy"].joinpath("again.pack").read_bytes() == places["pack"].joinpath("imagenet.pack").read_bytes()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # on a machine with fewer processors
@pytest.mark.parametrize("kind", ["folder", "pack", "tar"])
def test_any_number_of_readers_and_any_start_in_the_epoch_gives_the_same_bytes(places: dict[str, Path], kind: str) -> None:
    here = pixels(dataset().load(places["folder"]))
    data = dataset().load(places[kind])
    for readers, first in ((0, 3), (1, 0), (4, 0), (4, 3)):
        data.read_with(readers)
        found = pixels(data, first)
        assert alike(found, here[2 * first : 2 * len(plan_of(data))] if first else here)


def test_a_reader_of_a_pack_can_be_sent_to_another_process(places: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(places["pack"] / "imagenet.pack", tmp_path)
    reader = dataset().load(tmp_path).readers["train"]
    sent, (index, views) = pickle.dumps(reader), plan_of(dataset().load(tmp_path))[0]
    assert torch.equal(pickle.loads(sent).read(index, views), reader.read(index, views))

    (tmp_path / "imagenet.pack").write_bytes(b"x")
    assert "was changed while it was used" in refused(lambda: pickle.loads(sent))


class SmallImagenet(Imagenet):
    all_classes, all_train_images, test_images = 3, 3 * (3 + len(kinds())), 18


def test_imagenet_is_read_from_a_pack_and_counted(places: dict[str, Path], tmp_path: Path) -> None:
    expected = SmallImagenet(size=16, validation=0.2).load(places["folder"])
    for kind in ("pack", "tar"):
        data = SmallImagenet(size=16, validation=0.2).load(places[kind])
        assert alike(pixels(expected), pixels(data)) and data.fingerprint == expected.fingerprint
    put(tmp_path, "other", ("ant", *WNIDS[1:]), only=("grey.JPEG",))
    _pack.packed(tmp_path / "other", tmp_path / "imagenet.pack")
    assert "imagenet.pack/train/ant: ImageNet's folders must be named by WordNet id" in refused(
        lambda: type("Any", (SmallImagenet,), {"all_train_images": None})().load(tmp_path)
    )


def test_a_folder_beside_its_pack_is_read_and_the_notes_say_so(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "imagenet")
    _pack.packed(home, tmp_path / "imagenet.pack")
    assert dataset().load(tmp_path).notes[0] == "imagenet.pack is not read, since the folder imagenet lies beside it"
    shutil.rmtree(tmp_path / "imagenet")
    assert dataset().load(tmp_path).notes[0] == "images are read from imagenet.pack"


def test_folders_inside_classes_are_refused_or_read_in_a_pack_as_in_a_folder(tmp_path: Path) -> None:
    home = put(tmp_path / "data", only=("grey.JPEG",))
    (home / "train" / WNIDS[0] / "more").mkdir()
    (home / "train" / WNIDS[0] / "more" / "x.jpg").write_bytes(encoded(picture(77)))
    _pack.packed(home, tmp_path / "imagenet.pack")

    assert f"imagenet.pack/train/{WNIDS[0]}/more is a folder with images inside" in refused(lambda: dataset().load(tmp_path))
    one, other = (dataset(subfolders="read").load(folder) for folder in (home.parent, tmp_path))
    assert one.fingerprint == other.fingerprint and alike(pixels(one), pixels(other))


# Damage


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999999])
def test_a_pack_that_was_cut_is_refused(places: dict[str, Path], tmp_path: Path, share: float) -> None:
    whole = (places["pack"] / "imagenet.pack").read_bytes()
    (tmp_path / "imagenet.pack").write_bytes(whole[: int(share * len(whole))])

    text = refused(lambda: dataset().load(tmp_path))
    assert str(tmp_path / "imagenet.pack") in text and "truncated" in text


def test_an_image_in_a_pack_that_was_changed_is_named(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "imagenet.pack"
    archive = _pack.opened(places["pack"] / "imagenet.pack")
    middle = len(archive.paths) // 2
    content = bytearray((places["pack"] / "imagenet.pack").read_bytes())
    content[int(archive.offsets[middle]) + 5] ^= 1
    path.write_bytes(content)
    name = os.fsdecode(archive.paths[middle])

    assert refused(lambda: dataset().load(tmp_path)) == f"{path}/{name} was changed since it was packed"
    # Of larger packs some are compared: the first and the last are among them.
    monkeypatch.setattr(_pack, "CHECKED", 2)
    dataset().load(tmp_path)
    told = CliRunner().invoke(main, ["pack", "--verify", str(path)])
    assert told.exit_code == 2 and f"{name} was changed since it was packed" in told.output


def test_a_changed_index_or_header_is_refused(places: dict[str, Path], tmp_path: Path) -> None:
    whole = (places["pack"] / "imagenet.pack").read_bytes()
    for place, words in ((-1, "its index was changed"), (-40 * 30, "its index was changed"), (30, "truncated or damaged")):
        content = bytearray(whole)
        content[place] ^= 2
        (tmp_path / "imagenet.pack").write_bytes(content)
        assert words in refused(lambda: dataset().load(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "no end", "compressed", "link", "text"])
def test_a_tar_file_that_is_not_whole_or_plain_is_refused(places: dict[str, Path], tmp_path: Path, damage: str) -> None:
    whole = (places["tar"] / "imagenet.tar").read_bytes()
    path = tmp_path / "imagenet.tar"
    match damage:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2 + 700])
        case "no end":
            with tarfile.open(places["tar"] / "imagenet.tar") as tar:
                path.write_bytes(whole[: tar.getmembers()[40].offset])
        case "compressed":
            with tarfile.open(path, "w:gz") as tar:
                tar.add(places["folder"] / "imagenet", ".")
        case "link":
            with tarfile.open(path, "w") as tar:
                member = tarfile.TarInfo("train/ant/0.jpg")
                member.type, member.linkname = tarfile.SYMTYPE, "elsewhere"
                tar.addfile(member)
        case "text":
            path.write_text("no tar file")

    text = refused(lambda: dataset().load(tmp_path))
    assert str(path) in text and "truncated, or no plain tar file" in text


# Writing


def test_what_cannot_be_used_is_named_all_together_and_no_file_is_left(tmp_path: Path) -> None:
    home = put(tmp_path, only=("grey.JPEG",))
    (home / "train" / WNIDS[0] / "empty.jpg").write_bytes(b"")
    (home / "train" / WNIDS[1] / "page.jpg").write_bytes(DAMAGED["text.jpg"])

    text = refused(lambda: _pack.packed(home, tmp_path / "out.pack"))
    assert text.startswith("2 images cannot be used: ") and "empty.jpg cannot be read" in text and "page.jpg cannot be read" in text
    assert sorted(os.listdir(tmp_path)) == ["imagenet"]


def test_a_pack_that_was_interrupted_leaves_no_wrong_file_and_is_written_again(
    home: Path, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "imagenet.pack"

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _pack.packed(home, out, progress=interrupted)
    assert os.listdir(tmp_path) == []
    # What a process leaves that was killed is no pack, and is overwritten.
    (tmp_path / ".imagenet.pack.partial").write_bytes((places["pack"] / "imagenet.pack").read_bytes() + b"more")
    _pack.packed(home, out)
    assert out.read_bytes() == (places["pack"] / "imagenet.pack").read_bytes() and os.listdir(tmp_path) == ["imagenet.pack"]
    assert "exists: remove it" in refused(lambda: _pack.packed(home, out))


def test_a_header_has_room_for_any_number_of_other_files(tmp_path: Path) -> None:
    home = put(tmp_path, only=("grey.JPEG",))
    for number in range(600):
        (home / "train" / f"x.stray{number}").touch()
    _pack.packed(home, tmp_path / "out.pack")

    archive = _pack.opened(tmp_path / "out.pack")
    assert archive.passed is not None and archive.passed.total() == 600 + 7 and archive.passed["other endings"] > 400
    assert _pack.verified(tmp_path / "out.pack").endswith("all 24 images are as they were packed")


def test_two_processes_do_not_write_one_pack(home: Path, tmp_path: Path) -> None:
    def second(_: float) -> None:
        assert "another process is writing" in refused(lambda: _pack.packed(home, tmp_path / "imagenet.pack"))

    _pack.packed(home, tmp_path / "imagenet.pack", progress=second)
    assert dataset().load(tmp_path).size("test") == 18


def test_the_command_packs_and_verifies(home: Path, tmp_path: Path) -> None:
    def told(*arguments: Any) -> str:
        found = CliRunner().invoke(main, ["pack", *map(str, arguments)])
        return f"{found.exit_code} {found.output}"

    out = tmp_path / "imagenet.pack"
    count = 3 * (3 + len(kinds())) + 18
    assert told(home, out).startswith(f"0 wrote {out}: {count} images; passed over (7 in all): hidden 6, .txt 1")
    assert told("--verify", out) == f"0 {out}: all {count} images are as they were packed\n"
    assert "exists: remove it" in told(home, out)
    assert told(home).startswith("2") and told("--verify", out, out).startswith("2")
    assert "there is no folder" in told(tmp_path / "none", tmp_path / "x.pack")


# Resized


def test_resized_images_are_another_dataset_and_the_suite_says_so(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "imagenet")
    _pack.packed(home, tmp_path / "imagenet-32.pack", resize=32)
    own, resized = dataset().load(tmp_path), dataset(resized=32).load(tmp_path)
    assert own.fingerprint != resized.fingerprint and own.files["train"].paths.tolist() == resized.files["train"].paths.tolist()

    kept = 0
    for split in ("train", "test"):
        for place in range(resized.size(split)):
            before, after = own.files[split].path(place), resized.files[split].path(place)
            sizes = [read_rgb(one, Decoding("exif", "white")).size for one in (before, after)]
            kept += after.getvalue() == before.read_bytes()
            assert min(sizes[1]) == min(32, *sizes[0]) and abs(sizes[0][0] / sizes[0][1] - sizes[1][0] / sizes[1][1]) < 0.1
            # Colours, turns and transparency stay about as they were.
            shown = [
                np.asarray(read_rgb(one, Decoding("exif", "white")).resize((4, 4), Image.Resampling.BOX), dtype=float)
                for one in (before, after)
            ]
            assert np.abs(shown[0] - shown[1]).mean() < 12
    assert 0 < kept < resized.size("train")

    loaded = parts.load("dataset", "folder")
    options = {"folder": "imagenet", "classes": 3}
    assert "resized" not in loaded.options(options) and loaded.options({**options, "resized": 32})["resized"] == 32
    assert "imagenet-16.pack is missing: the option `resized: 16` needs" in refused(lambda: dataset(resized=16).load(tmp_path))
    shutil.rmtree(tmp_path / "imagenet")
    shutil.copy(tmp_path / "imagenet-32.pack", tmp_path / "imagenet.pack")
    assert "has images resized to a shorter side of 32: write `resized: 32`" in refused(lambda: dataset().load(tmp_path))
    with pytest.raises(ValueError, match="resized is a number of pixels"):
        dataset(resized=0)
