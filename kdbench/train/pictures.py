"""Pages of test images with what is true of them, and what a teacher and its students say: for `kdbench pictures`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdbench.errors import KdbenchError, UsageError
from kdbench.plan.matrix import Plan, Row
from kdbench.store import Store
from kdbench.tasks._base import Mark
from kdbench.train.build import Setup

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F", "#BCBD22", "#000000")
"""Of the classes, in turn: colours that are told apart also with colour blindness."""
SIDE, GAP, LINE = 256, 8, 16
"""Pixels: the longer side of an image on the page, the space between two, and the height of a line of text."""
GREY = (225, 225, 225)


@dataclass(frozen=True)
class Asked:
    """Which images are drawn: so many, evenly over the test set; with detections of at least this score; of this repeat; `pixels`: with the
    images themselves, else with boxes on grey."""

    images: int = 8
    score: float = 0.5
    repeat: int = 0
    pixels: bool = True


@dataclass(frozen=True)
class _Column:
    title: str
    table: Mapping[str, np.ndarray] | None
    true: bool = False


def pictures(plan: Plan, store: Store, data_folder: Path, asked: Asked) -> list[Path]:
    """Write a page (PNG) for each pair into the suite's folder. Returns their paths. Raises UsageError: nothing of the suite is trained;
    DataError: the data are missing."""
    first = next(row for row in plan.rows if row.role == "student").cell
    setup = Setup.of(first, data_folder, torch.device("cpu"))
    repeats = {row.repeat for row in plan.rows if row.role == "student"}
    if asked.repeat not in repeats:
        raise UsageError(f"{plan.suite.name} has the repeats 0 to {max(repeats)}, and no repeat {asked.repeat}")
    size = setup.data.size("test")
    index = np.unique(np.linspace(0, size - 1, min(asked.images, size)).astype(np.int64))
    inputs, _ = setup.data.batch("test", index)
    seen = [_pixels(setup, inputs, place) for place in range(len(index))]
    written = []
    for number, (student, teacher) in enumerate(plan.suite.pairs, 1):
        columns = list(_columns(plan, store, student, teacher, asked.repeat))
        held = [column for column in columns if column.table is not None]
        if not held:
            continue
        # What is true is beside the predictions of every run alike.
        whole = [_Column("true", held[0].table, true=True), *columns]
        page = _page(setup, f"{plan.suite.name}: {student} <- {teacher}, repeat {asked.repeat}", whole, index, seen, asked)
        # With a number: a-b <- c and a <- b-c would have one file.
        name = f"{number}-{student}-{teacher}{f'-repeat-{asked.repeat}' * (asked.repeat > 0)}{'-without-images' * (not asked.pixels)}"
        path = store.suite_folder(plan.suite.name) / "pictures" / f"{name}.png".replace("/", "_")
        buffer = io.BytesIO()
        page.save(buffer, "PNG")
        store.write_bytes(path, buffer.getvalue())
        written.append(path)
    if not written:
        raise UsageError(f"nothing of {plan.suite.name} is trained in repeat {asked.repeat}: run `kdbench run` first")
    return written


def _columns(plan: Plan, store: Store, student: str, teacher: str, repeat: int) -> Iterator[_Column]:
    """The teacher, then every objective of the pair."""
    rows = [row for row in plan.rows if row.role == "teacher" and row.student == teacher]
    yield _Column(f"teacher {teacher}", _table(store, rows[0]) if rows else None)
    for name, objective in plan.suite.objectives.items():
        mine = [
            row
            for row in plan.rows
            if (row.role, row.student, row.objective, row.repeat) == ("student", student, name, repeat) and row.teacher in (None, teacher)
        ]
        if mine:
            yield _Column(objective.label, _table(store, mine[0]))


def _table(store: Store, row: Row) -> Mapping[str, np.ndarray] | None:
    """The predictions of a run; None where it has none."""
    raw = store.read_bytes(store.file(row.cell.id, "predictions.npz")) if store.is_done(row.cell.id) else None
    if raw is None:
        return None
    with np.load(io.BytesIO(raw)) as held:
        return dict(held)


def _pixels(setup: Setup, inputs: object, place: int) -> Image.Image:
    """An image as the nets see it, enlarged or reduced for the page."""
    pixels = inputs[place : place + 1] if isinstance(inputs, Tensor) else inputs.pixels[place : place + 1]  # type: ignore[attr-defined]
    if pixels.dim() != 4:
        raise KdbenchError(f"the inputs of this dataset are no images, but of shape {tuple(pixels.shape)}")
    if not isinstance(inputs, Tensor):
        height, breadth = inputs.sizes[place]  # type: ignore[attr-defined]
        pixels = pixels[..., :height, :breadth]
    (image,) = pixels.cpu()
    if setup.dataset.normalisation:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in setup.dataset.normalisation)
        image = image * std + mean
    else:
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    shown = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array[..., :3]).convert("RGB")
    factor = SIDE / max(shown.size)
    kind = Image.Resampling.NEAREST if factor > 3 else Image.Resampling.BILINEAR
    return shown.resize((round(shown.width * factor), round(shown.height * factor)), kind)


def _page(
    setup: Setup, title: str, columns: Sequence[_Column], index: np.ndarray, seen: Sequence[Image.Image], asked: Asked
) -> Image.Image:
    heights = [one.height + LINE for one in seen]
    canvas = Image.new("RGB", (GAP + (SIDE + GAP) * len(columns), GAP + 2 * LINE + sum(heights) + GAP * len(seen)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    draw.text((GAP, GAP // 2), f"{title}; detections with a score of at least {asked.score:g}", "black", font)
    for number, column in enumerate(columns):
        left = GAP + (SIDE + GAP) * number
        draw.text((left, GAP + LINE), column.title, "black", font)
        top = GAP + 2 * LINE
        for place, image, height in zip(index.tolist(), seen, heights, strict=True):
            cell = image.copy() if asked.pixels else Image.new("RGB", image.size, GREY)
            marks = [] if column.table is None else setup.task.marks(column.table, place, column.true)
            words = (
                "not trained"
                if column.table is None
                else _drawn(cell, [mark for mark in marks if mark.score is None or mark.box is None or mark.score >= asked.score], setup)
            )
            canvas.paste(cell, (left, top))
            draw.text((left, top + image.height), words, "black", font)
            top += height + GAP
    return canvas


def _drawn(cell: Image.Image, marks: Sequence[Mark], setup: Setup) -> str:
    """Draw the boxes of marks into an image. Returns the text below it: that of marks without a box, else how many there are."""
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(10)
    names, words = getattr(setup.data, "class_names", ()), []
    for mark in reversed(marks):  # the highest score on top
        name = names[mark.label] if names else str(mark.label)
        text = name if mark.score is None else f"{name} {mark.score:.2f}"
        if mark.box is None or mark.size is None:
            words.append(text)
            continue
        colour, (height, breadth) = COLOURS[mark.label % len(COLOURS)], mark.size
        scale = (cell.width / breadth, cell.height / height) * 2
        left, top, right, bottom = (one * side for one, side in zip(mark.box, scale, strict=True))
        draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour, width=2)
        draw.text((left + 2, top + 1), text, colour, font, stroke_width=1, stroke_fill="white")
    return ", ".join(words) or f"{len(marks) or 'no'} object{'s' * (len(marks) != 1)}"
