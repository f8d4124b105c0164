"""The warnings of a report: each with a code for machines, and what the reader can do."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from kdbench.report.controls import zero_differs
from kdbench.report.document import ReportWarning
from kdbench.report.notes import grouped, lacks
from kdbench.report.study import Line, Study, plural, some
from kdbench.report.tuning_table import tuning_warnings
from kdbench.stats.repeats import BLOCK, repeat_means

CODES = (
    *("incomplete", "unstable", "few-repeats", "unpaired", "tuned-for-some", "tuned-at-edge", "zero-differs", "selected-on-test"),
    *("no-spread", "duplicated", "ceiling", "unequal-spread", "mixed-devices", "mixed-versions", "mixed-code", "changed-code"),
    *("source-changed", "mixed-data", "idle-term", "no-kd", "derived-family", "teacher", "shared-node"),
)
"""Every code, in the order in which they are printed."""
RETIRED = ("best-of-many", "pairing", "shared-blocks", "survivors", "unequal-repeats")
"""Codes of former versions, which `--accept` still takes."""

CIRCUMSTANCES = {
    "device": ("mixed-devices", "devices"),
    **{name: ("mixed-versions", f"versions of {name}") for name in ("torch", "timm", "torchvision", "pillow")},
    "code_version": ("mixed-code", "versions of the code"),
}
IDLE = 0.01
"""A term whose gradient never reaches this share of the task's has no effect."""
UNEQUAL = 3.0
"""Standard deviations that differ by more than this factor."""
CEILING = 0.995
LEAST_REPEATS = 3
BUSY = 0.2
"""The share of the processors that others may keep busy while costs are measured."""

Found = Iterator[tuple[str, str]]
"""Codes and messages."""


def warnings(study: Study, sources_now: Mapping[str, str | None] | None = None) -> tuple[ReportWarning, ...]:
    """Every warning of a suite, in the order of `CODES`.

    Args:
        sources_now: the digest of each part's source as it is now, by `<kind> <name>` (as `parts.sources_of` names them); None where
            the part no longer exists.
    """
    found = [*(warning for rule in RULES for warning in rule(study)), *_changed_sources(study, sources_now or {})]
    return tuple(ReportWarning(*one) for one in sorted(dict.fromkeys(found), key=lambda one: CODES.index(one[0])))


def _in_pairs(study: Study, count: int) -> str:
    return "" if len(study.pairs) == 1 else f" in {count} of {len(study.pairs)} pairs"


def _known(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows with a value in a column, which a frame file may lack."""
    return table[table[column].notna()] if column in table else table.iloc[:0]


SUMMARIES: dict[str, tuple[str, Callable[[Line], Any]]] = {
    "incomplete": ("not all repeats are complete for {}: run the suite again, or see the notes marked †", lambda one: bool(lacks(one))),
    "no-spread": (
        "all repeats have the same {metric}: {}; check that the repeats use different seeds, and that the nets learn at all",
        lambda one: one["n"] > 1 and one["sd"] == 0,
    ),
    "ceiling": (
        "{metric} is almost perfect for {}: use a harder dataset to see differences",
        lambda one: one["n"] and one["mean"] >= CEILING,
    ),
}
"""What is seen in a mean and its spread: the message, and when."""


def _repeats(study: Study) -> Found:
    metric = study.manifest.primary
    every = [line for pair in study.pairs.values() for line in pair.summaries.values()]
    least = min((line["n_asked"] for line in every), default=LEAST_REPEATS)
    if least < LEAST_REPEATS:
        yield "few-repeats", f"{plural(least, 'repeat')}: a test needs at least three, and five or more to find most differences"
    runs, labels = study.students, study.manifest.labels
    lacking = runs[runs["value"].isna() & ~runs["mixed_data"]]
    again = {*lacking.loc[lacking["state"] != "finished", "objective"]}
    if old := {name: label for name, label in labels.items() if name in {*lacking["objective"]} - again}:
        why = "they are older than it, or the test images have nothing that it measures"
        text = f"records of {some(old.values())} have no {metric.label} ({why}), nor do their predictions give it"
        yield "incomplete", f"{text}: compare another metric, leave out --no-images, or remove these records and run the suite again"
    for code, (words, holds) in SUMMARIES.items():
        counts = Counter(line["objective"] for line in every if holds(line) and (code != "incomplete" or line["objective"] not in old))
        by_count = grouped((label, counts[name]) for name, label in labels.items() if counts[name])
        if by_count and (metric.percent or code != "ceiling"):
            where = "; ".join(f"{some(who)}{_in_pairs(study, count)}" for count, who in by_count.items())
            yield code, words.format(where, metric=metric.label)


def _unstable(study: Study) -> Found:
    found = []
    for name, mine in study.collapsed.groupby("objective", sort=False):
        runs = mine.drop_duplicates(["dataset", "student", "repeat", "value"])
        repeats = [str(one) for one in sorted(runs["repeat"].dropna().unique())]
        where, at = _in_pairs(study, len(mine.drop_duplicates(list(BLOCK)))), f", repeat{'s' * (len(repeats) > 1)} {some(repeats)}"
        found.append(f"{study.manifest.labels[str(name)]} ({plural(len(runs), 'run')}{where}{at if repeats else ''})")
    if found:
        text = f"some runs are far from the others of their loss, or spread far more than other losses: {some(found)}; no verdict on these"
        yield "unstable", f"{text}; look at their curves (--figures), lower their weight or learning rate, and run them again"


def _tests(study: Study) -> Found:
    tests = [line for pair in study.pairs.values() for line in pair.tests.values() if line["test"] == "Welch t"]
    if names := some(study.manifest.labels[line["objective"]] for line in tests):
        text = f"{names}: no repeats in common with the baseline, so the test is Welch's, which is approximate"
        yield "unpaired", f"{text}: train them in the same"
    if study.manifest.derived and len(study.comparisons):
        text = "the comparisons that are corrected together follow from the rows of this file, so removing rows changes every p"
        yield "derived-family", f"{text}: put manifest.json beside the file to fix them"


def _unequal_spread(study: Study) -> Found:
    from scipy.stats import bartlett

    found, labels, level = [], study.manifest.labels, study.manifest.alpha / len(study.pairs)
    values = repeat_means(study.students).dropna(subset=["value"])
    for _, pair in values[~values["objective"].isin(study.collapsed["objective"])].groupby(list(BLOCK), dropna=False):
        samples = {str(name): mine.to_numpy() for name, mine in pair.groupby("objective")["value"]}
        sd = {name: values.std(ddof=1) for name, values in samples.items() if len(values) >= LEAST_REPEATS and len(set(values)) > 1}
        one, other = (choose(sd, key=sd.__getitem__, default="") for choose in (max, min))
        if one and sd[one] > UNEQUAL * sd[other] and bartlett(*map(samples.__getitem__, sd)).pvalue < level:
            found.append((sd[one] / sd[other], labels[one], labels[other]))
    if found:
        ratio, one, other = max(found)
        text = f"losses vary by different amounts{_in_pairs(study, len(found))}: the sd of {one} is up to {ratio:.3g} times that of {other}"
        yield "unequal-spread", f"{text}; check the runs of {one} for outliers"


def _mixed(study: Study) -> Found:
    for column, (code, words) in CIRCUMSTANCES.items():
        known = _known(study.students, column)
        if len(known) and known.groupby(list(BLOCK), dropna=False)[column].nunique().max() > 1:
            yield code, f"runs that are compared mix {words}: {some(sorted(map(str, known[column].unique())))}; run all of them on one"
    if dirty := some(sorted(one for one in map(str, _known(study.runs, "code_version")["code_version"]) if one.endswith("-dirty"))):
        yield "changed-code", f"runs were made by code with uncommitted changes: {dirty}; commit before you run"
    rules = study.checkpoint_rules
    if bad := some(rule for rule in rules if re.search(r"\btest\b", rule)):
        yield "selected-on-test", f"checkpoints were chosen on the test set ({bad}), so these numbers are too good: use the last epoch"
    if len(rules) > 1:
        yield "selected-on-test", f"the runs use different rules to choose the checkpoint: {some(rules)}; use one rule"


def _losses(study: Study) -> Found:
    """What is wrong with the losses of a suite: idle terms, weights tuned for some of them, no plain KD."""
    labels, known = study.manifest.labels, _known(study.students, "least_gradient")
    zero = {one.name for one in study.manifest.objectives if one.control == "zero"}
    for name, least in known.groupby("objective", sort=False)["least_gradient"].min().items() if len(known) else ():
        if least < IDLE and name not in zero:
            text = f"a term of {labels[str(name)]} has no effect: its gradient never exceeds {100 * least:.2g} % of the task's"
            left_out = "the loss leaves a part out for these nets, as `kdbench plan` then says, or is at fault"
            yield "idle-term", f"{text}; {'raise its weight' if least else left_out}"
    # The task's loss alone, which no teacher takes part in, has no weight that could be tuned.
    alone = set(study.runs.loc[(study.runs["role"] == "student") & study.runs["teacher"].isna(), "objective"])
    sources = grouped((one.label, one.weight_from == "tuned") for one in study.manifest.objectives if one.name not in alone)
    tuned, others = sources.get(True), sources.get(False)
    if tuned and others:
        yield "tuned-for-some", f"weights were tuned for {some(tuned)} and not for {some(others)}: tune all of them, or none"
    yield from tuning_warnings(study)
    yield from (("zero-differs", text) for text in zero_differs(study))
    of_boxes = any(metric.per_image == "hits" for metric in study.manifest.metrics)  # plain KD is of the class scores of an image
    if not of_boxes and not any(re.match("kd(:|$)", name, re.IGNORECASE) for name in labels):
        yield "no-kd", "there is no row of plain KD: add it, since it beats most losses on common benchmarks"


def _duplicated(study: Study) -> Found:
    controls = {one.name for one in study.manifest.objectives if one.control}
    known = _known(study.runs, "weights_digest").drop_duplicates("id")
    known = known[~known["objective"].isin(controls)]
    for _, same in known[known.duplicated("weights_digest", keep=False)].groupby("weights_digest", sort=False)["id"] if len(known) else ():
        if len(same) > 1:
            yield "duplicated", f"these runs have exactly the same weights: {some(same)}; one may be a copy of the other"
    equal: Counter[tuple[str, str]] = Counter()
    for pair in study.pairs.values():
        values = {
            name: [(run["repeat"], run["value"]) for run in runs if run["value"] == run["value"]]
            for name, runs in pair.runs.items()
            if name not in controls
        }
        for held, names in grouped((study.manifest.labels[name], tuple(found)) for name, found in values.items()).items():
            if len({repeat for repeat, _ in held}) >= LEAST_REPEATS:
                equal.update((names[0], other) for other in names[1:])
    for (one, other), count in equal.items():
        text = f"{one} and {other} have equal values in all repeats{_in_pairs(study, count)}"
        yield "duplicated", f"{text}: they may be the same runs under two names, or an added term has no effect"


def _mixed_data(study: Study) -> Found:
    for dataset, mine in study.students[study.students["mixed_data"]].drop_duplicates("id").groupby("dataset", sort=False):
        prints = some(sorted(set(mine["data_fingerprint"])))
        text = f"{plural(len(mine), 'run')} on {dataset} with other data than most ({prints}), left out of all numbers: {some(mine['id'])}"
        yield "mixed-data", f"{text}; run {'it' if len(mine) == 1 else 'them'} again on the data of the others"


def _teachers(study: Study) -> Found:
    for line in study.teachers:
        if text := line["state"] if line["state"] != "finished" else study.manifest.shortfall(line["id"], line):
            yield "teacher", f"teacher {line['student']} (run {line['id']}): {text}"


def _costs(study: Study) -> Found:
    measured = study.costs[study.costs["state"] == "measured"]
    devices = sorted(measured["device"].dropna().unique())
    if len(devices) > 1:
        yield "shared-node", f"costs were measured on different devices ({some(devices)}): do not compare them"
    busy = _known(measured, "others_at_work")
    if count := sum(busy["others_at_work"] > BUSY) if len(busy) else 0:
        text = f"other processes used over {100 * BUSY:.0f} % of the processors when {count} of {len(measured)} costs were measured"
        yield "shared-node", f"{text}: measure again on an idle machine"


def _changed_sources(study: Study, now: Mapping[str, str | None]) -> Found:
    was: dict[str, set[str]] = defaultdict(set)
    texts: Iterable[Any] = _known(study.runs, "sources")["sources"].unique() if "sources" in study.runs else ()
    for name, _, digest in (entry.rpartition(" ") for text in texts for entry in str(text).split("; ") if entry):
        was[name].add(digest)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in sorted(was):
        if len(was[name]) > 1:
            kinds["the source changed between these runs, and the version did not: {}; run the older ones again"].append(name)
        elif name in now and now[name] is None:
            kinds["no longer in this kdbench: {}; these runs cannot be repeated with it"].append(name)
        elif name in now and {now[name]} != was[name]:
            kinds["the source changed since these runs: {}; new runs may give other values"].append(name)
    yield from (("source-changed", words.format(some(names))) for words, names in kinds.items())


RULES: tuple[Callable[[Study], Found], ...] = (
    *(_repeats, _unstable, _tests, _unequal_spread, _mixed, _losses, _duplicated, _mixed_data, _teachers, _costs),
)
