"""Predictions image by image: what the finite test set adds to each interval, and how the runs predict beside their accuracy.

Only for a task whose primary metric is the share of images that are right (`per_image: correct` in the manifest).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from kdbench.errors import DamagedError
from kdbench.report.kept import Kept, columns, digest_of, read_all
from kdbench.report.manifest import Block, Manifest, labels
from kdbench.report.notes import INCOMPLETE, UNTESTED, untested_notes
from kdbench.report.table import EMPTY, Column, Entry, Group, Table
from kdbench.stats.calibration import BINS, agreement
from kdbench.stats.images import mcnemar, repeat_values, seed_by_image
from kdbench.stats.repeats import BLOCK, block_key, summarise

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from kdbench.store import Store

RUN = (*BLOCK, "objective", "repeat", "teacher_seed", "id")
SAID = ("nll", "ece", "confidence", "agreement", "agreement_block", "why")
SUMMARISED = ("nll", "ece", "agreement_block")
FRAMES = ("intervals", "predictions", "checkpoints", "per_class")
CLASS = (*BLOCK, "objective", "class", "mean", "sd", "n")

Key = tuple[str, ...]
Line = dict[Any, Any]


@dataclass(frozen=True)
class Images:
    """What the runs' predictions say, image by image; accuracies, agreement, confidence and ECE are fractions.

    intervals: as `stats.images.seed_by_image` makes it, one row a comparison: dataset, teacher, student, baseline, objective, n,
        n_images, difference, se_seeds, se_images, low_images, high_images, df, why.
    predictions: one row a run and block: dataset, teacher, student, objective, repeat, teacher_seed, id, nll (nats, mean over the
        images), ece (15 bins), confidence (mean), agreement (with the run's own teacher; NaN without one), agreement_block (the same;
        for a run without a teacher the mean over the block's teachers), why (what could not be read, else empty).
    checkpoints: as `stats.images.mcnemar` makes it, one row a pair of checkpoints.
    per_class: dataset, teacher, student, objective, class (from 0), mean and sd (ddof = 1) of its accuracy over repeats, n (repeats).
    """

    intervals: pd.DataFrame
    predictions: pd.DataFrame
    checkpoints: pd.DataFrame
    per_class: pd.DataFrame


@dataclass(frozen=True)
class Lines:
    """Rows of the frames: `runs` by block and objective, `summaries` also by column, `intervals` and the p values of `checkpoints` also
    by baseline."""

    runs: dict[Key, list[Line]]
    summaries: dict[tuple[Key, str], Line]
    intervals: dict[tuple[Key, str], Line]
    checkpoints: dict[tuple[Key, str], list[float]]


def load_images(store: Store, manifest: Manifest, students: pd.DataFrame, comparisons: pd.DataFrame) -> Images | None:
    """Read the predictions of every finished run, once each, and compare them image by image.

    Nothing that is wrong with a file is fatal: the run counts as one without predictions, and `predictions["why"]` says what it is.

    Args:
        students: as `comparison.student_runs` makes it.
        comparisons: as `comparison.comparisons` makes it.

    Returns:
        None when no run has usable columns of one number an image: another kind of task, or cells of an earlier version.
    """
    import pandas as pd

    if manifest["metrics"][0].get("per_image") != "correct":
        return None
    asked, runs = comparisons.reset_index(drop=True), students.reset_index(drop=True)
    parts = [_of_dataset(store, manifest, mine, asked[asked["dataset"] == name]) for name, mine in runs.groupby("dataset", sort=False)]
    if not any(part.predictions["nll"].notna().any() for part in parts):
        return None
    # An empty frame has no types to join.
    joined = {name: [held for part in parts if len(held := getattr(part, name))] or [getattr(parts[0], name)] for name in FRAMES}
    whole = {name: pd.concat(frames) for name, frames in joined.items()}
    in_order = {name: whole[name].sort_index() for name in ("intervals", "predictions")}
    return Images(**{name: held.reset_index(drop=True) for name, held in {**whole, **in_order}.items()})


def _of_dataset(store: Store, manifest: Manifest, runs: pd.DataFrame, asked: pd.DataFrame) -> Images:
    """The frames of one dataset: all of its runs predict the same images. Intervals keep the index of `asked`, predictions of `runs`."""
    import numpy as np

    kept, why = read_all(store, runs)
    places = {cell_id: place for place, cell_id in enumerate(kept)}
    rows = runs.assign(row=[places.get(cell_id, -1) for cell_id in runs["id"]])
    held = list(kept.values())
    scores = np.array([one.correct for one in held]) if held else np.zeros((0, 0), dtype=bool)
    intervals = seed_by_image(scores, rows, asked, manifest["alpha"]).set_index(asked.index)
    if "test" in asked:  # only repeats that pair have differences image by image
        unpaired = (asked["test"] == "Welch t").to_numpy()
        intervals.loc[unpaired, ["se_seeds", "se_images", "low_images", "high_images", "df"]] = np.nan
        intervals.loc[unpaired, "why"] = "its repeats do not pair, so there is no difference image by image"
    by_class = np.array([one.by_class for one in held]) if held else np.zeros((0, 0))
    return Images(
        intervals,
        _predictions(store, manifest, runs, kept, why),
        mcnemar(scores, rows, asked),
        _per_class(repeat_values(by_class, rows)),
    )


def _predictions(store: Store, manifest: Manifest, runs: pd.DataFrame, kept: Mapping[str, Kept], why: Mapping[str, str]) -> pd.DataFrame:
    """One row a run and block, with the index of `runs`."""
    import pandas as pd

    own = {cell["id"]: cell["depends"]["teacher"] for cell in manifest["cells"] if "teacher" in cell["depends"]}
    of_block: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for *block, cell_id in zip(*(runs[name] for name in (*BLOCK, "id")), strict=True):
        of_block[tuple(block)] |= {own[cell_id]} if cell_id in own else set()
    teachers: dict[str, np.ndarray | str] = {}
    digest = next((one.digest for one in kept.values()), b"")
    rows = []
    for run in runs[list(RUN)].to_dict(orient="records"):
        row: dict[Any, Any] = {**run, **dict.fromkeys(SAID, float("nan")), "why": why.get(run["id"], "")}
        if one := kept.get(run["id"]):
            asked = [own[run["id"]]] if run["id"] in own else sorted(of_block[tuple(run[name] for name in BLOCK)])
            for teacher in asked:
                if teacher not in teachers:
                    teachers[teacher] = _teacher(store, teacher, digest)
            row |= {"nll": one.nll, "ece": one.ece, "confidence": one.confidence} | _agreements(
                one, {name: teachers[name] for name in asked}
            )
            row["agreement"] = row["agreement_block"] if run["id"] in own else float("nan")
        rows.append(row)
    kinds = {"repeat": "Int64", "teacher_seed": "Int64", **dict.fromkeys(SAID[:-1], "float64")}
    return pd.DataFrame(rows, columns=[*RUN, *SAID], index=runs.index).astype(kinds)


def _teacher(store: Store, cell_id: str, digest: bytes) -> np.ndarray | str:
    """The classes that a teacher predicts [images], or why they are not known."""
    try:
        found = columns(store, cell_id, ("target", "predicted"))
    except DamagedError as error:
        return f"its teacher (run {cell_id}): {error}"
    return found["predicted"] if digest_of(found["target"]) == digest else f"its teacher (run {cell_id}) predicts other images"


def _agreements(one: Kept, teachers: Mapping[str, np.ndarray | str]) -> dict[str, Any]:
    """The mean agreement with the teachers: with all of them, or NaN and the reason."""
    unknown = [found for found in teachers.values() if isinstance(found, str)]
    if unknown:
        return {"why": unknown[0]}
    shares = [agreement(one.predicted, found) for found in teachers.values() if not isinstance(found, str)]
    return {"agreement_block": sum(shares) / len(shares)} if shares else {}


def _per_class(values: Mapping[tuple[str, ...], Mapping[Any, np.ndarray]]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    parts = []
    for (dataset, teacher, student, objective), repeats in values.items():
        table = np.array([repeats[repeat] for repeat in sorted(repeats)])
        n, classes = table.shape
        sd = table.std(axis=0, ddof=1) if n > 1 else np.full(classes, np.nan)
        named = {"dataset": dataset, "teacher": teacher or None, "student": student, "objective": objective}
        parts.append(pd.DataFrame({**named, "class": np.arange(classes), "mean": table.mean(axis=0), "sd": sd, "n": n}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(CLASS))


def predictions_table(images: Images, manifest: Manifest, shown: Collection[str] | None = None) -> Table:
    """The table of predictions, one group a block: calibration, agreement, and the differences with their intervals over new images.

    Args:
        shown: names of the objectives to print (None: all); which are printed changes no number.
    """
    names = labels(manifest)
    baselines = [name for name in manifest["baselines"] if name in names]
    level, alpha = f"{100 * (1 - manifest['alpha']):g} %", manifest["alpha"]
    columns = [Column("objective", numeric=False), Column("NLL"), Column("ECE, %"), Column("agreement with the teacher, %")]
    for baseline in baselines:
        columns += [Column(f"Δ to {names[baseline]} on new images, points [{level}]"), Column(f"checkpoints that differ, p < {alpha:g}")]
    lines = _gather(images)
    kept = [name for name in names if shown is None or name in shown]
    groups = tuple(_group(block, lines, kept, baselines, manifest) for block in manifest["blocks"])
    return Table(
        "Predictions, and differences on new images",
        tuple(columns),
        tuple(group for group in groups if group.rows),
        _caption(manifest, bool(baselines)),
        name="predictions",
    )


def _gather(images: Images) -> Lines:
    """Rows of the frames by block and objective, so that no block searches a whole frame."""
    lines = Lines(defaultdict(list), {}, {}, defaultdict(list))
    for run in images.predictions.to_dict(orient="records"):
        lines.runs[_key(run, run["objective"])].append(run)
    for name in SUMMARISED:
        for line in summarise(images.predictions.assign(value=images.predictions[name])).to_dict(orient="records"):
            lines.summaries[_key(line, line["objective"]), name] = line
    for line in images.intervals.to_dict(orient="records"):
        lines.intervals[_key(line, line["objective"]), line["baseline"]] = line
    for line in images.checkpoints.to_dict(orient="records"):
        lines.checkpoints[_key(line, line["objective"]), line["baseline"]].append(line["p"])
    return lines


def _key(line: Mapping[Any, Any] | Block, objective: str) -> tuple[str, ...]:
    return block_key([line["dataset"], line["teacher"], line["student"]], objective)


def _group(block: Block, lines: Lines, kept: Collection[str], baselines: Collection[str], manifest: Manifest) -> Group:
    names = labels(manifest)
    kept = [name for name in kept if _key(block, name) in lines.runs]
    asked = [line for name in names for baseline in baselines if (line := lines.intervals.get((_key(block, name), baseline)))]
    untested = [line for line in asked if line["objective"] in kept or line["baseline"] in kept]
    return Group(
        title=" · ".join([block["dataset"], f"student {block['student']}", *([f"teacher {block['teacher']}"] if block["teacher"] else [])]),
        rows=tuple(_row(block, name, lines, baselines, manifest) for name in kept),
        facts=_facts(asked),
        notes=(*_lacking(block, kept, lines, names), *untested_notes(untested, names)),
    )


def _facts(asked: Collection[Mapping[Any, Any]]) -> tuple[str, ...]:
    tested = [line for line in asked if not line["why"]]
    if not tested:
        return ()
    seeds, images = (100 * median(line[name] for line in tested) for name in ("se_seeds", "se_images"))
    return (
        f"{tested[0]['n_images']} test images. Standard error of a difference (median of this block's): {seeds:.2f} points by new seeds "
        f"on these images; new images add {images:.2f} points to it (as squares).",
    )


def _lacking(block: Block, kept: Collection[str], lines: Lines, names: Mapping[str, str]) -> list[str]:
    """One note for each reason why something of some run's predictions is not known."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for name in kept:
        for run in lines.runs[_key(block, name)]:
            if run["why"]:
                said[run["why"]][names[name]] += 1
    counted = {why: ", ".join(f"{label} ({count})" for label, count in who.items()) for why, who in said.items()}
    return [f"{INCOMPLETE} runs of {who}: {why}" for why, who in counted.items()]


def _row(block: Block, name: str, lines: Lines, baselines: Collection[str], manifest: Manifest) -> tuple[Entry, ...]:
    key = _key(block, name)
    runs = tuple(run["id"] for run in lines.runs[key])
    entries = [Entry(labels(manifest)[name], runs=runs)]
    for column, form, scale in (("nll", ".3f", 1.0), ("ece", ".2f", 100.0), ("agreement_block", ".2f", 100.0)):
        line = lines.summaries[key, column]
        n, marks = line["n"], () if line["n"] == line["n_asked"] else (INCOMPLETE,)
        spread = line["sd"] if n > 1 else None
        entries.append(Entry(line["mean"] if n else None, spread=spread, format=form, scale=scale, marks=marks, runs=runs))
    for baseline in baselines:
        entries += _difference(block, name, baseline, lines, manifest["alpha"])
    return tuple(entries)


def _difference(block: Block, name: str, baseline: str, lines: Lines, alpha: float) -> tuple[Entry, Entry]:
    """Δ with its interval, and how many checkpoints differ: of two baselines, compared once, also the mirrored comparison."""
    key, other = _key(block, name), _key(block, baseline)
    sign = 1 if (key, baseline) in lines.intervals else -1
    place = (key, baseline) if sign == 1 else (other, name)
    if place not in lines.intervals:  # the baseline beside itself, or a comparison that the suite never asked
        return EMPTY, EMPTY
    found, p = lines.intervals[place], lines.checkpoints.get(place, [])
    runs = tuple(run["id"] for one in (key, other) for run in lines.runs.get(one, []))
    low, high = sorted((sign * found["low_images"], sign * found["high_images"]))
    delta = Entry(
        sign * found["difference"] if found["n"] else None,
        interval=None if found["why"] else (low, high),
        format="+z.2f",
        scale=100.0,
        marks=(UNTESTED,) if found["why"] else (),
        runs=runs,
    )
    differ = f"{sum(one < alpha for one in p)} of {len(p)}"
    return delta, Entry(differ if p else None, runs=runs)


def _caption(manifest: Manifest, compared: bool) -> tuple[str, ...]:
    said = [
        "Of the networks at the last epoch, on the test set; ± is the sample standard deviation (ddof = 1) over the repeats.",
        "NLL: negative log-likelihood of the true class, nats per image. ECE: expected calibration error, the gap between confidence and "
        f"accuracy in {BINS} bins of equal width (Guo et al. 2017). agreement: the share of images to which student and teacher give the "
        "same class, right or wrong; a student that had no teacher is set beside the block's. "
        f"{INCOMPLETE} marks what lacks some repeats.",
    ]
    if compared:
        said += [
            "Δ on new images: objective minus baseline, paired by repeat, with the interval for new seeds and new test images of the "
            "same kind (pigeonhole bootstrap of seeds and images, Owen 2007; t quantiles by the number of seeds), each comparison "
            "alone, not adjusted. Without this interval, claims hold on this test set only. The teachers and the training images stay "
            "the same.",
            "checkpoints that differ: McNemar's exact test of each pair of trained networks, not adjusted. It says whether these two "
            "networks differ on these images, not whether the two losses differ: two seeds of one loss often differ too.",
        ]
    return tuple(said)
