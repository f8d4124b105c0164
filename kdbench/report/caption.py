"""What is claimed, by which test, over which family, with how many repeats, teachers and images: the words of the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from kdbench.report.frame import printed, shortfall
from kdbench.report.manifest import Block, Manifest, labels
from kdbench.stats.power import detectable_difference

Line = Mapping[str, Any]

WEIGHTS = {"assumed": "assumed, not published", "tuned": "tuned for this suite"}


def accuracy_caption(manifest: Manifest, tests: Sequence[Line]) -> tuple[str, ...]:
    """The sentences that hold for every block of the table."""
    metric = manifest["metrics"][0]
    better = "higher" if metric["higher_is_better"] else "lower"
    return (
        f"{metric['label']} on the test set at the last epoch ({better} is better); ± is the sample standard deviation (ddof = 1) "
        f"over the repeats, n how many of the asked repeats are complete. Runs that diverged, failed or are missing are in no "
        "number and are marked †: a mean over survivors may flatter.",
        *_test_sentences(manifest, tests),
        _teacher_sentence(manifest),
        *_weight_sentences(manifest),
        *(f"Assumed: {line}" for line in manifest.get("assumed", [])),
    )


def _test_sentences(manifest: Manifest, tests: Sequence[Line]) -> list[str]:
    names = labels(manifest)
    absent = [name for name in manifest["baselines"] if name not in names]
    said = [f"The baseline {name} is not among the objectives of this suite: nothing is compared with it." for name in absent]
    if not tests:
        return [*said, "The suite compares nothing: no baseline is among its objectives beside another objective."]
    alpha, m = manifest["alpha"], len(tests)
    known = " and ".join(names[name] for name in manifest["baselines"] if name in names)
    return [
        "Δ is objective minus baseline, paired by repeat: the same initial weights and the same images in the same order. "
        f"In brackets the {100 * (1 - alpha):g} % paired-t interval of each comparison alone, not adjusted. The t distribution "
        "takes the differences to be normal, which few repeats cannot check.",
        f"p: two-sided paired t, by Holm over the family of m = {m} comparisons that the suite fixes (every objective with {known} "
        f"in every block; two baselines count once; what cannot be tested counts as p = 1). * marks p < {alpha:g}. Holm holds "
        "however the comparisons depend on each other.",
        *said,
    ]


def _teacher_sentence(manifest: Manifest) -> str:
    teachers = manifest["teacher_seeds"]
    if teachers == 1:
        return "For these teachers: one trained teacher per pair, so the luck of its training is in no interval."
    return (
        f"For these teachers: each repeat is the mean over {teachers} trained teachers per pair; the intervals are over repeats, "
        "so the choice of teachers is in none of them."
    )


def _weight_sentences(manifest: Manifest) -> list[str]:
    said = []
    for source, words in WEIGHTS.items():
        named = [objective["label"] for objective in manifest["objectives"] if objective.get("weight_from") == source]
        if named:
            said.append(f"Weights {words}: {', '.join(named)}.")
    return said


def accuracy_facts(
    manifest: Manifest, block: Block, runs: Sequence[Line], teachers: Sequence[Line], tests: Sequence[Line], m: int
) -> tuple[str, ...]:
    """The sentences under a block's title: its teachers, its images, and what its comparisons can see."""
    facts = []
    if teachers:
        shown = [_teacher(manifest, teacher) for teacher in teachers]
        facts.append(f"Teacher {block['teacher']}: {'; '.join(shown)}.")
    finished = [run for run in runs if run["state"] == "finished"]
    if any(run.get("mixed_data") for run in finished):
        facts.append("These runs saw different data (see data_fingerprint in the frame): they are neither averaged nor compared.")
    if finished:
        facts.append(f"{_counts(finished, 'n_train')} training images, {_counts(finished, 'n_test')} test images.")
    if tests:
        facts.append(_sensitivity(manifest, tests, m))
    return tuple(facts)


def _teacher(manifest: Manifest, teacher: Line) -> str:
    if teacher["state"] != "finished":
        return teacher["state"]
    metric = manifest["metrics"][0]
    value = teacher[f"{metric['name']}_last"]
    own = f"{metric['label']} {printed(metric, value)}" if value == value else f"no {metric['label']}"
    below = shortfall(manifest, teacher["id"], teacher)
    return below if below.startswith(own) else ", ".join(part for part in (own, below) if part)


def _counts(runs: Sequence[Line], name: str) -> str:
    found = sorted({int(run[name]) for run in runs if run[name] is not None})
    return " or ".join(str(count) for count in found) or "an unknown number of"


def _sensitivity(manifest: Manifest, tests: Sequence[Line], m: int) -> str:
    """What difference this many repeats can see, at the spread that was observed."""
    tested = [test for test in tests if not test["why"]]
    if not tested:
        return "No comparison of this block can be tested: see ‡."
    metric, alpha = manifest["metrics"][0], manifest["alpha"]
    n = Counter(test["n"] for test in tested).most_common(1)[0][0]
    spread = median(test["sd"] for test in tested)
    scale, unit, form = (100, " points", ".2f") if metric["percent"] else (1, "", ".4g")
    alone, adjusted = (scale * spread * detectable_difference(n, alpha, size) for size in (1, m))
    correlations = [test["correlation"] for test in tested if test["correlation"] == test["correlation"]]
    shared = f"; correlation of paired runs {median(correlations):.2f}" if correlations else ""
    return (
        f"With n = {n} and the observed sd of differences (median {scale * spread:{form}}{unit}{shared}), the least difference "
        f"found with 80 % power is {alone:{form}}{unit} in one comparison, {adjusted:{form}}{unit} at Holm's first step."
    )
