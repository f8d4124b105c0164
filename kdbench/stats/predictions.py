"""What runs predict for the images of the test set: each run by itself, and two losses compared image by image."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from kdbench.stats.average_precision import Matches
from kdbench.stats.calibration import agreement, class_accuracy, expected_calibration_error, means_over_classes
from kdbench.stats.per_image import mcnemar, repeat_values, seed_by_image
from kdbench.stats.repeats import BLOCK, block_key

INTERVAL = ("difference", "se_seeds", "se_images", "low_images", "high_images")
OF_A_RUN = ("nll", "ece", "confidence", "agreement", "agreement_block")
KL = ("kl", "kl_block")
FRAMES = {
    "intervals": (*BLOCK, "baseline", "objective", "n", "n_images", *INTERVAL, "why"),
    "predictions": (*BLOCK, "objective", "repeat", "teacher_seed", "id", *OF_A_RUN, "why"),
    "checkpoints": (*BLOCK, "baseline", "objective", "p"),
    "per_class": (*BLOCK, "objective", "class", "mean", "sd", "n"),
}
"""The frames, and the columns that a reader of them needs (`n_images` of a class and `KL` of a run came later)."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of one run, as far as they are needed.

    digest: of the targets; correct: [images], bool; predicted: [images], in as few bytes as its classes need; by_class: [classes],
    accuracies; images: [classes], how many there are; nll (nats), ece and confidence: over all images; over_classes: metrics that are means
    over classes, by name; kl: the mean of KL(teacher || this run) at temperature 1, in nats, by the id of the teacher; kl_why: why it
    could not be computed.
    """

    digest: bytes
    correct: np.ndarray
    predicted: np.ndarray
    by_class: np.ndarray
    images: np.ndarray
    nll: float
    ece: float
    confidence: float
    over_classes: Mapping[str, float]
    kl: Mapping[str, float] = field(default_factory=dict)
    kl_why: str = ""

    columns: ClassVar = ("target", "correct", "nll", "predicted", "confidence")

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray]) -> Predictions:
        """Predictions from their `columns`, all [images]. Raises ValueError where they cannot be predictions."""
        target, correct, nll, predicted, confidence = (columns[name] for name in cls.columns)
        if len({column.shape for column in columns.values()}) != 1 or target.ndim != 1:
            raise ValueError("the columns do not have one number an image")
        if len(target) < 2:
            raise ValueError("they are of fewer than two images")
        if not all(np.issubdtype(column.dtype, np.integer) for column in (target, predicted)) or min(target.min(), predicted.min()) < 0:
            raise ValueError("target and predicted are no classes")
        if correct.dtype != np.bool_ or not (np.isfinite(nll).all() and np.isfinite(confidence).all()):
            raise ValueError("correct is not true or false, or nll or confidence is not finite")
        target = target.astype(np.int64)
        return cls(
            hashlib.sha256(target.tobytes()).digest(),
            correct,
            predicted.astype(np.min_scalar_type(int(predicted.max()))),
            class_accuracy(correct, target, int(target.max()) + 1),
            np.bincount(target),
            float(nll.mean(dtype=np.float64)),
            expected_calibration_error(confidence, correct),
            float(confidence.mean(dtype=np.float64)),
            means_over_classes(correct, predicted, target),
        )

    @property
    def n_images(self) -> int:
        return len(self.correct)

    @property
    def over_images(self) -> np.ndarray:
        """[images], numbers whose mean is the metric."""
        return self.correct

    @property
    def metrics(self) -> Mapping[str, float]:
        """What follows from these predictions, by the metric's name or its `per_image`."""
        return {**self.over_classes, "correct": self.correct.mean(), "nll": self.nll}

    def contradiction(self, value: float, column: str) -> str:
        """Why a record's accuracy is not what its predictions show; empty where it is."""
        right = self.correct.mean()
        # Half an image: the mean of float32 is rounded.
        wrong = abs(right - value) >= 0.5 / self.n_images
        return f"{column} is {value:.6g}, and {right:.6g} of the images are right" if wrong else ""


Kept = Predictions | Matches
KINDS: Mapping[str | None, type[Predictions] | type[Matches]] = {"correct": Predictions, "hits": Matches}
"""What the files of predictions hold, by `per_image` of the metric that follows from them."""
Read = Mapping[str, Kept | str]
"""The predictions of each run, or why it has none, by id."""


@dataclass(frozen=True)
class ImageStatistics:
    """Accuracies, agreement, confidence and ECE are fractions.

    intervals: as `seed_by_image` makes it, one row a comparison: dataset, teacher, student, baseline, objective, n, n_images,
        difference, se_seeds, se_images, low_images, high_images, df, why.
    predictions: one row a run and block: dataset, teacher, student, objective, repeat, teacher_seed, id, nll (nats, mean over the
        images), ece (15 bins), confidence (mean), agreement (with the run's own teacher; NaN without one), agreement_block (the same;
        for a run without a teacher the mean over the block's teachers), kl and kl_block (nats, the mean of KL(teacher || student) over the
        images; the same teachers), why (what could not be read, else empty).
    checkpoints: as `mcnemar` makes it, one row a pair of checkpoints.
    per_class: dataset, teacher, student, objective, class (from 0), mean and sd (ddof = 1) of its accuracy (its recall) over repeats, n
        (repeats), n_images. Of a teacher, which is the `student` here, with the objective `teacher`: over its trainings.
    """

    intervals: pd.DataFrame
    predictions: pd.DataFrame
    checkpoints: pd.DataFrame
    per_class: pd.DataFrame


def image_statistics(
    students: pd.DataFrame, comparisons: pd.DataFrame, read: Read, teacher_ids: Mapping[str, frozenset[str]], alpha: float
) -> ImageStatistics | None:
    """Compare the predictions of the finished runs image by image.

    Args:
        students: dataset, teacher, student, objective, repeat, teacher_seed, id, state, value, mixed_data: a row a run and block.
        comparisons: dataset, teacher, student, baseline, objective, test: a row a comparison.
        teacher_ids: the teachers of each run, by id.

    Returns:
        None when no run has usable predictions, as with another kind of task.
    """
    asked, runs = comparisons.reset_index(drop=True), students.reset_index(drop=True)
    rows = runs.assign(why=[_why(run, read) for run in runs[["id", "state", "mixed_data"]].itertuples()])
    if not (rows["why"] == "").any():
        return None
    by_dataset = rows.groupby("dataset", sort=False)
    parts = [_of_dataset(mine, asked[asked["dataset"] == name], read, teacher_ids, alpha) for name, mine in by_dataset]
    intervals, checkpoints, per_class = (pd.concat(frames) for frames in zip(*parts, strict=True))
    intervals = intervals.sort_index()
    return ImageStatistics(intervals, _of_runs(rows, read, teacher_ids), *(one.reset_index(drop=True) for one in (checkpoints, per_class)))


def _why(run: Any, read: Read) -> str:
    """Why the predictions of a student's run are not used; empty where they are."""
    if run.mixed_data:
        return "the run is on different data"
    if run.state != "finished":
        return f"the run is {run.state}"
    one = read.get(run.id, "its predictions were not read")
    return one if isinstance(one, str) else ""


def _of_dataset(
    runs: pd.DataFrame, asked: pd.DataFrame, read: Read, teacher_ids: Mapping[str, frozenset[str]], alpha: float
) -> tuple[pd.DataFrame, ...]:
    """Intervals, with the index of `asked`, checkpoints and classes of one dataset: all of its runs predict the same images."""
    kept = {run: one for run in runs.loc[runs["why"] == "", "id"].unique() if isinstance(one := read[run], Kept)}
    places = {cell_id: place for place, cell_id in enumerate(kept)}
    rows = runs.assign(row=[places.get(cell_id, -1) for cell_id in runs["id"]])
    by_class = np.array([one.by_class for one in kept.values()]) if kept else np.zeros((0, 0))
    scores = np.array([one.over_images for one in kept.values()]) if kept else np.zeros((0, 0), dtype=bool)
    intervals = seed_by_image(scores, rows, asked, alpha).set_index(asked.index)
    unpaired = (asked["test"] == "Welch t").to_numpy()  # only repeats that pair have differences image by image
    intervals.loc[unpaired, [*INTERVAL[1:], "df"]] = np.nan
    intervals.loc[unpaired, "why"] = "its repeats do not pair, so there is no difference image by image"
    known = next(iter(kept.values()), None)
    classes = {} if known is None else {**_teachers(runs, read, teacher_ids, known.digest), **repeat_values(by_class, rows)}
    right_or_wrong = scores.dtype == np.bool_
    checkpoints = mcnemar(scores.astype(bool, copy=False), rows if right_or_wrong else rows[:0], asked)
    return intervals, checkpoints, _per_class(classes, np.zeros(0) if known is None else known.images)


def _teachers(
    runs: pd.DataFrame, read: Read, teacher_ids: Mapping[str, frozenset[str]], digest: bytes
) -> Mapping[tuple[str, ...], Mapping[Any, np.ndarray]]:
    """Accuracies by class of the teachers of these runs, as `repeat_values` has those of students; of the images with this digest."""
    found: dict[tuple[str, ...], dict[Any, np.ndarray]] = defaultdict(dict)
    for dataset, teacher, cell_id in zip(runs["dataset"], runs["teacher"], runs["id"], strict=True):
        for other in teacher_ids.get(cell_id, ()):
            if isinstance(one := read.get(other), Kept) and one.digest == digest:
                found[dataset, "", teacher, "teacher"][other] = one.by_class
    return found


def _of_runs(runs: pd.DataFrame, read: Read, teacher_ids: Mapping[str, frozenset[str]]) -> pd.DataFrame:
    """One row a run and block, in the order of `runs`."""
    keys = [block_key(block, "") for block in zip(*(runs[name] for name in BLOCK), strict=True)]
    of_block: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for key, run_id in zip(keys, runs["id"], strict=True):
        of_block[key] |= teacher_ids.get(run_id, frozenset())
    columns = FRAMES["predictions"]
    rows: list[dict[Any, Any]] = runs[[*columns[:7], "why"]].to_dict(orient="records")
    for key, run in zip(keys, rows, strict=True):
        one = read.get(run["id"])
        if not run["why"] and isinstance(one, Predictions):
            own = teacher_ids.get(run["id"])
            run |= {"nll": one.nll, "ece": one.ece, "confidence": one.confidence}
            teachers = sorted(own or of_block[key])
            run |= _agreement(one, teachers, read)
            if teachers and all(teacher in one.kl for teacher in teachers):
                run["kl_block"] = sum(one.kl[teacher] for teacher in teachers) / len(teachers)
            run["why"] = run["why"] or one.kl_why
            run |= {name: run.get(f"{name}_block") if own else None for name in ("agreement", "kl")}
    kinds = {"repeat": "Int64", "teacher_seed": "Int64", **dict.fromkeys((*OF_A_RUN, *KL), "float64")}
    return pd.DataFrame(rows, columns=[*columns, *KL]).astype(kinds)


def _agreement(one: Predictions, teachers: list[str], read: Read) -> dict[str, Any]:
    """The mean agreement with the teachers: with all of them, or the reason why there is none."""
    shares = []
    for teacher in teachers:
        other = read.get(teacher, "its predictions are not there")
        if isinstance(other, str):
            return {"why": f"its teacher (run {teacher}): {other}"}
        if not isinstance(other, Predictions) or other.digest != one.digest:
            return {"why": f"its teacher (run {teacher}) predicts other images"}
        shares.append(agreement(one.predicted, other.predicted))
    return {"agreement_block": sum(shares) / len(shares)} if shares else {}


def _per_class(values: Mapping[tuple[str, ...], Mapping[Any, np.ndarray]], images: np.ndarray) -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for (dataset, teacher, *names), repeats in values.items():
        table = np.array([repeats[repeat] for repeat in sorted(repeats)])  # [repeats, classes]
        sd = table.std(axis=0, ddof=1) if len(table) > 1 else np.full(table.shape[1], np.nan)
        numbers = enumerate(zip(table.mean(axis=0), sd, images, strict=True))
        rows += [(dataset, teacher or None, *names, number, mean, spread, len(table), count) for number, (mean, spread, count) in numbers]
    kinds = {"class": "int64", "mean": "float64", "sd": "float64", "n": "int64", "n_images": "int64"}
    return pd.DataFrame(rows, columns=[*FRAMES["per_class"], "n_images"]).astype(kinds)
