"""The table of predictions: calibration, agreement, and losses compared image by image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import replace
from math import nan
from statistics import median
from typing import Any

from kdbench.manifest import Manifest
from kdbench.report import entries
from kdbench.report.notes import INCOMPLETE, UNTESTED, untested_notes
from kdbench.report.study import ROLES, Line, Place, collapse, lines
from kdbench.report.table import EMPTY, Column, Entry, Group, Table, row
from kdbench.stats.calibration import BINS
from kdbench.stats.predictions import KL, ImageStatistics
from kdbench.stats.repeats import summarise
from kdbench.store.frame import Key, line_key

PRINTED = {
    "nll": (".3f", 1.0, "NLL"),
    "ece": (".2f", 100.0, "ECE, %"),
    "agreement_block": (".2f", 100.0, "agreement with the teacher, %"),
    "kl_block": (".3f", 1.0, "KL from the teacher, nats"),
}


def predictions_table(images: ImageStatistics, manifest: Manifest, unstable: Collection[str] = ()) -> Table | None:
    """The table of predictions, one group a pair: calibration, agreement, and the differences with their intervals over new images; None
    for detections if the compared metric is not the one that follows from them."""
    if not len(images.intervals):  # the compared metric does not follow from the predictions
        manifest = replace(manifest, baselines=())
    known = {name for name in images.predictions if images.predictions[name].notna().any()}
    shown = [name for name in PRINTED if "nll" in known and (name not in KL or name in known)]  # detections have no class of an image
    columns = [Column("loss", numeric=False), *(Column(PRINTED[name][2]) for name in shown)]
    if not (shown or manifest.baselines):
        return None
    for label in (manifest.labels[name] for name in manifest.baselines):
        columns.append(Column(f"Δ to {label} on new images{entries.points(manifest)} [{entries.confidence(manifest)} CI]"))
        columns += [Column(f"checkpoints that differ from {label}, p < {manifest.alpha:g}", essential=False)] if shown else []
    summaries: dict[Key, dict[str, Line]] = defaultdict(dict)
    for name in shown:
        for line in lines(summarise(images.predictions.assign(value=images.predictions[name]))):
            summaries[line_key(line)][name] = line
    groups = tuple(_group(place, summaries, manifest) for place in _places(images, manifest, unstable) if place.runs)
    title = "Predictions, and differences on new images" if manifest.baselines else "Predictions"
    return Table(title if shown else "Differences on new images", tuple(columns), groups, *_caption(manifest, shown), name="predictions")


def _places(images: ImageStatistics, manifest: Manifest, unstable: Collection[str]) -> list[Place]:
    """The pairs: the runs, and the intervals as comparisons, each with the p values of its checkpoints."""
    runs: dict[Key, list[Line]] = defaultdict(list)
    for run in lines(images.predictions):
        runs[line_key(run)].append(run)
    tests: dict[tuple[str, ...], dict[tuple[str, str], Line]] = defaultdict(dict)
    for line in lines(images.intervals.assign(low=images.intervals["low_images"], high=images.intervals["high_images"])):
        names = [manifest.labels[line[role]] for role in ROLES if line[role] in unstable]
        known = {"verdict": "unstable", "verdict_why": collapse(names), "low": nan, "high": nan} if names else {"verdict": ""}
        tests[line_key(line)[:3]][line["objective"], line["baseline"]] = {**line, **known, "checkpoints": []}
    for line in lines(images.checkpoints):
        if test := tests[line_key(line)[:3]].get((line["objective"], line["baseline"])):
            test["checkpoints"].append(line["p"])
    found = []
    for block in manifest.blocks:
        mine = {name: runs[key] for name in manifest.labels if (key := (*block.key, name)) in runs}
        found.append(Place(block.title, block, mine, {}, tests[block.key], len(images.intervals)))
    return found


def _group(place: Place, summaries: dict[Key, dict[str, Line]], manifest: Manifest) -> Group:
    labels = manifest.labels
    asked = [line for name in place.runs for baseline in manifest.baselines if (line := place.tests.get((name, baseline)))]
    tested = [line for line in asked if not line["why"]]
    facts, lacking = [], defaultdict(list)
    if tested:
        seeds, images = (100 * median(line[name] for line in tested) for name in ("se_seeds", "se_images"))
        errors = f"{seeds:.2f} points by seeds, {images:.2f} points by test images"
        facts.append(f"{tested[0]['n_images']:.0f} test images. Median standard error of a difference: {errors}.")
    for name, runs in place.runs.items():
        for why, count in Counter(run["why"] for run in runs if run["why"]).items():
            lacking[why].append(f"{labels[name]} ({count})")
    rows = []
    for name in place.runs:
        boxes = [Entry(labels[name])]
        for column, line in summaries[*place.block.key, name].items() if place.block else ():
            form, scale, _ = PRINTED[column]
            marks = () if line["n"] == line["n_asked"] else (INCOMPLETE,)
            boxes.append(Entry(line["mean"], line["sd"], format=form, scale=scale, marks=marks))
        differences = [
            box for one in manifest.baselines for box in _difference(place, name, one, manifest)[: 2 if any(summaries.values()) else 1]
        ]
        rows.append((*row(place.ids(name), *boxes), *differences))
    notes = [f"{INCOMPLETE} runs of {', '.join(who)}: {why}" for why, who in lacking.items()]
    return Group(place.title, tuple(rows), tuple(facts), (*notes, *untested_notes(asked, labels)))


def _difference(place: Place, name: str, baseline: str, manifest: Manifest) -> tuple[Entry, ...]:
    """Δ with its interval, and how many checkpoints differ."""
    line = place.compared(name, baseline)
    if line is None:  # the baseline beside itself, or a comparison that the suite does not ask
        return EMPTY, EMPTY
    p: Any = line["checkpoints"]
    delta = replace(entries.difference(manifest, line), marks=(UNTESTED,) if line["why"] else ())
    counted = Entry(f"{sum(one < manifest.alpha for one in p)} of {len(p)}" if p else None)
    return row(place.ids(name, baseline), delta, counted)


def _caption(manifest: Manifest, shown: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The caption, and the notes below the table."""
    kl = " KL: mean of KL(teacher || student) of the predicted probabilities at temperature 1." if "kl_block" in shown else ""
    caption = (
        "Predictions on the test set at the last epoch; ± is the standard deviation over repeats.",
        f"NLL: negative log-likelihood of the true class, nats per image. ECE: expected calibration error, {BINS} bins of equal width "
        "(Guo et al. 2017). Agreement: share of images for which student and teacher predict the same class, right or wrong."
        f"{kl}",
    )
    notes = ("A student without a teacher is compared with the teachers of the pair.",)
    if not manifest.baselines:
        return caption, notes
    on_new = (
        "Δ on new images: loss minus baseline, paired by repeat. Its interval covers new seeds and new test images, for these teachers "
        "and training images; it is not adjusted for the number of comparisons."
    )
    interval = "Interval on new images: pigeonhole bootstrap of seeds and images (Owen 2007) with t quantiles by the number of seeds."
    if not shown:
        return (on_new,), (f"{interval} An image counts by how much {manifest.primary.label} changes if it is left out (jackknife).",)
    return (*caption, on_new, "Checkpoints that differ: pairs of trained networks with a small p in McNemar's exact test, not adjusted."), (
        *notes,
        interval,
        "McNemar's test compares two trained networks, not two losses: two seeds of one loss often differ too.",
    )
