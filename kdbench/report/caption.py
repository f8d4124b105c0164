"""What is claimed, by which test, over which family, with how many repeats, teachers and images: the words of the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from kdbench.report.frame import printed, shortfall
from kdbench.report.manifest import Block, Manifest, labels
from kdbench.stats.power import detectable_difference

if TYPE_CHECKING:
    from kdbench.report.study import Study

Line = Mapping[str, Any]

WEIGHTS = {"assumed": "assumed, not published", "tuned": "tuned for this suite"}


def accuracy_caption(study: Study) -> tuple[str, ...]:
    """The sentences that hold for every block of the table."""
    manifest = study.manifest
    return (
        *_number_sentences(study),
        *_test_sentences(study),
        *teacher_sentence(manifest),
        _images_sentence(study),
        *weight_sentences(manifest),
        *(f"Assumed: {line}" for line in manifest.get("assumed", [])),
    )


def _number_sentences(study: Study) -> list[str]:
    manifest = study.manifest
    metric, level = manifest["metrics"][0], _level(manifest)
    better = "higher" if metric["higher_is_better"] else "lower"
    said = [
        f"{metric['label']} on the test set {selection(study)} ({better} is better); ± is the sample standard deviation (ddof = 1) "
        f"over the repeats, n how many of the asked repeats are complete. Runs that diverged, failed or are missing are in no "
        "number and are marked †: a mean over survivors may flatter."
    ]
    standings = set(study.summaries["standing"])
    if "best" in standings:
        tied = (
            "; underlined: not distinguishable from the best (a loss is struck out where a one-sided paired t finds a rival better at "
            f"{manifest['alpha']:g} / (objectives - 1), so that the truly best of a block is bold or underlined with {level})"
            if "tied" in standings
            else ""
        )
        said.append(f"Bold: the best mean of a block, of objectives none of whose runs failed{tied}.")
    return said


def selection(study: Study) -> str:
    """Which checkpoint the numbers are of."""
    rules = sorted({str(rule) for rule in study.runs["selection"].dropna()}) if "selection" in study.runs else []
    if rules:
        return f"(checkpoint: {', '.join(rules)})"
    return "(which checkpoint, these rows do not say)" if study.manifest.get("derived") else "at the last epoch"


def _level(manifest: Manifest) -> str:
    return f"{100 * (1 - manifest['alpha']):g} %"


def _test_sentences(study: Study) -> list[str]:
    manifest, tests = study.manifest, study.comparisons
    names = labels(manifest)
    absent = [name for name in manifest["baselines"] if name not in names]
    said = [f"The baseline {name} is not among the objectives of this suite: nothing is compared with it." for name in absent]
    if not len(tests):
        return [*said, "The suite compares nothing: no baseline is among its objectives beside another objective."]
    alpha, m, level = manifest["alpha"], len(tests), _level(manifest)
    known = " and ".join(names[name] for name in manifest["baselines"] if name in names)
    kinds = set(tests["test"]) - {""}
    test = "Welch's t" if kinds == {"Welch t"} else "paired t"
    welch = " Where repeats do not pair, Welch's t stands for it: see the table of comparisons." if len(kinds) > 1 else ""
    fixed = "that these rows make up, which nobody fixed beforehand" if manifest.get("derived") else "that the suite fixes"
    return [
        _pairing_sentence(study),
        f"p: two-sided {test}, by Holm in each direction at {alpha / 2:g} over the family of m = {m} comparisons {fixed} "
        f"(every objective with {known} in every block; two baselines count once; what cannot be tested counts as p = 1): no less than "
        "Holm's two-sided p, and the same where all differences have one sign. It holds however the comparisons depend on each other; the "
        f"t distribution takes values to be normal, which few repeats cannot check.{welch}",
        f"In brackets {level} simultaneous intervals: all of the family hold together, and one contains 0 where and only where "
        f"p (Holm) is {alpha:g} or more. A nearer bound of 0 beside a ▲ or ▼ says that the sign is established, and no more.",
        mark_sentence(manifest),
        *said,
    ]


def _pairing_sentence(study: Study) -> str:
    """What pairs: our own runs share weights and images; of others' nobody here knows."""
    kinds = set(study.comparisons["test"])
    if "paired t" not in kinds:
        return "Δ is objective minus baseline."
    if study.manifest.get("derived"):
        return "Δ is objective minus baseline, paired by repeat: rows with the same repeat are taken to belong together."
    return "Δ is objective minus baseline, paired by repeat: the same initial weights and the same images in the same order."


def mark_sentence(manifest: Manifest) -> str:
    alpha, margin = manifest["alpha"], manifest.get("margin")
    if margin is None:
        return f"▲ better, ▼ worse (p < {alpha:g}); no mark: undecided. The suite names no margin, so nothing is called equal."
    metric = manifest["metrics"][0]
    said = f"{100 * margin:g} points" if metric["percent"] else f"{margin:g}"
    return (
        f"▲ better, ▼ worse (p < {alpha:g}); △, ▽ the same, and shown to be less than the margin of {said}; = equal within that margin "
        f"(two one-sided t tests, by Holm over the same family, p < {alpha:g}); no mark: undecided, which is not equal. A loss with a "
        "failed or diverged run is never called better."
    )


def _images_sentence(study: Study) -> str:
    if study.images is not None and study.images.intervals["low_images"].notna().any():
        return "All claims are for this test set; the table of predictions has intervals over new images, too."
    return "All claims are for this test set: the luck of its images is in no interval."


def teacher_sentence(manifest: Manifest) -> tuple[str, ...]:
    """For which teachers the intervals are; nothing where there is none."""
    if not any(block["teacher"] for block in manifest["blocks"]):
        return ()
    teachers = manifest["teacher_seeds"]
    if teachers > 1:
        return (
            f"For these teachers: each repeat is the mean over {teachers} trained teachers per pair; the intervals are over repeats, "
            "so the choice of teachers is in none of them.",
        )
    if manifest.get("derived"):
        return ("How many teachers were trained per pair, these rows do not say: their luck may be in no interval.",)
    return ("For these teachers: one trained teacher per pair, so the luck of its training is in no interval.",)


def weight_sentences(manifest: Manifest) -> list[str]:
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
    tested = [test for test in tested if test["test"] == "paired t"]
    if not tested:
        return "Repeats do not pair here: what Welch's test could have shown is not said."
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
