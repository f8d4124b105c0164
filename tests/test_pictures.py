"""`kdbench pictures`: pages of test images with what is true, and what the teacher and its students say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kdbench.cli import main
from kdbench.plan.matrix import Plan
from kdbench.store import Store
from kdbench.train.pictures import COLOURS, GAP, GREY, LINE, SIDE

SCENES = {
    "dataset": "{name: digit_scenes, images: 8, test_images: 6}",
    "recipe": "{name: small_detector, epochs: 2, batch_size: 4}",
    "teachers": "{big: {model: fcos_test_resnet, min_ap: 0}}",
    "students": "{small: {model: fcos_test_resnet}}",
    "objectives": "{detection: , mimic: }",
    "repeats": "1",
    "min_top1": None,
    "baselines": None,
}


def drawn(folder: Path, *options: str) -> tuple[int, str, np.ndarray | None]:
    """The exit status, the output, and the page of the pair."""
    asked = ["pictures", str(folder / "tiny.yaml"), "--results", str(folder / "results"), "--data", str(folder), *options]
    said = CliRunner().invoke(main, asked)
    path = Path(said.output.splitlines()[0]) if said.exit_code == 0 else None
    return said.exit_code, said.output, np.asarray(Image.open(path)) if path else None


def has(page: np.ndarray, colour: tuple[int, ...] | str) -> np.ndarray:
    rgb = tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5)) if isinstance(colour, str) else colour
    return (page == np.array(rgb, np.uint8)).all(2)


def test_a_page_shows_the_true_boxes_and_those_of_the_teacher_and_of_every_student_that_is_trained(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
) -> None:
    plan = plan_of(**SCENES)
    wanted = [row.cell.id for row in plan.rows if row.objective != "mimic"]
    assert train(plan, wanted) == 0

    status, said, page = drawn(tmp_path, "--images", "3", "--score", "0", "--without-images")
    assert status == 0 and page is not None and said.endswith("1-small-big-without-images.png\n")
    width = SIDE + GAP
    assert page.shape[1] == GAP + 4 * width, "true boxes, the teacher, two objectives"
    columns = [page[:, GAP + number * width : GAP + number * width + SIDE] for number in range(4)]
    boxes = [sum(has(column, colour).sum() for colour in COLOURS[:3]) for column in columns]
    assert boxes[0] > 0 and boxes[1] > 0 and boxes[2] > 0 == boxes[3], "the last objective is not trained"
    # The first test image: each true box has its corners where the table says.
    with np.load(store.file(wanted[0], "predictions.npz")) as table:
        truth = {name: table[f"true_{name}"] for name in ("image", "label", "box", "sizes")}
    factor = SIDE / truth["sizes"][0].max()
    for label, box in zip(truth["label"][truth["image"] == 0], truth["box"][truth["image"] == 0], strict=True):
        left, top, right, bottom = box * factor
        for x, y in ((left, bottom - 1), (right - 1, bottom - 1)):
            assert has(columns[0], COLOURS[label])[round(GAP + 2 * LINE + y), round(x)]

    _, _, strict = drawn(tmp_path, "--images", "3", "--score", "1", "--without-images")
    assert strict is not None and not any(has(strict[:, GAP + width :], colour).any() for colour in COLOURS[:3])
    _, said, whole = drawn(tmp_path, "--images", "3")
    assert said.endswith("/1-small-big.png\n"), "a page without the images is not replaced by one with them"
    assert whole is not None and has(page, GREY).mean() > 0.3 > 0.1 > has(whole, GREY).mean(), "with the images themselves"


def test_pairs_whose_names_join_to_the_same_text_have_pages_of_their_own(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    own = "{model: small_mobile, widths: [4, 4]}"
    plan = plan_of(students=f"{{a: {own}, a-b: {own}, of/c: {own}}}", teachers=f"{{c: {own}, b-c: {own}}}", repeats="1", min_top1="0")
    assert train(plan, [row.cell.id for row in plan.rows if row.objective == "ce"]) == 0
    _, said, _ = drawn(tmp_path, "--images", "1")
    names = [Path(one).name for one in said.splitlines()]
    assert names == ["1-a-c.png", "2-a-b-c.png", "3-a-b-c.png", "4-a-b-b-c.png", "5-of_c-c.png", "6-of_c-b-c.png"]
    assert {one.name for one in (tmp_path / "results/suites/tiny/pictures").iterdir()} == set(names)


def test_a_page_of_classes_says_the_true_class_and_the_predicted_ones(
    plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path
) -> None:
    assert train(plan_of(repeats="1")) == 0
    status, _, page = drawn(tmp_path, "--images", "2")
    assert status == 0 and page is not None
    assert page.shape[0] == GAP + 2 * LINE + 2 * (SIDE + LINE) + 2 * GAP
    below = page[GAP + 2 * LINE + SIDE :][:LINE]
    assert all((below[:, GAP + number * (SIDE + GAP) :][:, :SIDE] < 100).any() for number in range(4)), "a text below each image"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ([], "nothing of tiny is trained in repeat 0: run `kdbench run` first"),
        (["--images", "0"], "--images"),
        (["--repeat", "5"], "tiny has the repeats 0 to 0, and no repeat 5"),
    ],
)
def test_what_cannot_be_drawn_is_said(options: list[str], answer: str, plan_of: Callable[..., Plan], store: Store, tmp_path: Path) -> None:
    plan_of(repeats="1")
    status, said, page = drawn(tmp_path, *options)
    assert status != 0 and answer in said and page is None
