"""The sentences of a report: its first facts, and the caption and the notes of the main tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median

from kdbench.manifest import Manifest
from kdbench.report.entries import confidence, difference_text
from kdbench.report.notes import STATES, fewer_pairs, grouped, lacks
from kdbench.report.study import Line, Place, Study, plural, some
from kdbench.stats.power import detectable_difference

WEIGHTS = {"assumed": "assumed, not published", "tuned": "tuned for this suite"}
CLAIMS = {
    "better": "better than {}",
    "better but below the margin": "better than {} by less than the margin",
    "equal": "equal to {}",
    "worse but below the margin": "worse than {} by less than the margin",
    "worse": "worse than {}",
}
"""What a fact calls each verdict."""


def findings(study: Study) -> tuple[str, ...]:
    """Three facts: what was compared, what was found, what cannot be concluded; and one on progress where some runs are not finished."""
    place, manifest = study.all_pairs, study.manifest
    on = "" if place.block else f" on {some(block.dataset for block in manifest.blocks)}"
    compared = f"Compared: {plural(len(manifest.compared), 'loss')}{on}, {place.title}, {repeats(study)}."
    counts = study.runs["state"].value_counts()
    rest = ", ".join(f"{counts[state]} {state}" for state in STATES if counts.get(state, 0))
    progress = f"{counts.get('finished', 0)} of {len(study.runs)} runs finished; {rest}." if rest else ""
    return tuple(fact for fact in (compared, _found(study), _open(study), progress) if fact)


def _found(study: Study) -> str:
    """What is shown against each baseline, over all pairs and in single pairs only; or why nothing can be tested."""
    place, labels = study.all_pairs, study.manifest.labels
    if not place.tests:
        return ""
    if not place.tested:
        unstable = some(label for name, label in labels.items() if name in study.unstable)
        reasons = some(line["why"] or f"some runs of {unstable} collapse" for line in place.tests.values())
        what = "This pair" if place.block else "The mean over all pairs"
        more = " The results are pair by pair." if any(pair.tested for pair in study.pairs.values()) else ""
        return f"{what} cannot be tested: {reasons}.{more}"
    claims, parts, nothing = _claims(place), [], []
    for baseline in place.baselines:
        rows, label = place.against(baseline), labels[baseline]
        lacking = grouped((labels[line["objective"]], line["why"]) for line in rows if line["why"])
        parts += _worded(study, {key: of for key, of in claims.items() if key[0] == baseline})
        parts += [f"not tested against {label}: {'; '.join(f'{some(who)} ({why})' for why, who in lacking.items())}"] if lacking else []
        if all(line["verdict"] == "unstable" for line in rows):
            parts.append(f"no verdict against {label}: {some(line['verdict_why'] for line in rows)}")
        elif all(line["verdict"] in ("undecided", "unstable") and not line["why"] + line["verdict_why"] for line in rows):
            nothing.append(label)
    parts += [f"no difference from {' or '.join(nothing)} is shown"] if nothing else []
    counts = Counter(key for pair in study.pairs.values() for key in _claims(pair) if key[1] in ("better", "worse") and key not in claims)
    single = _worded(study, {key: f"{count} of {len(study.pairs)} pairs" for key, count in sorted(counts.items())})
    more = f" In single pairs: {'; '.join(single)}." if single else ""
    return f"Found {'for this pair' if place.block else 'over all pairs'}, {'; '.join(parts) or 'nothing'}.{more}"


def _claims(place: Place) -> dict[tuple[str, str, str], str]:
    """Baseline, verdict and objective of all that is shown, with the pairs that it is over (empty: all)."""
    rows = [(baseline, verdict, line) for baseline in place.baselines for verdict in CLAIMS for line in place.against(baseline)]
    return {(baseline, verdict, line["objective"]): fewer_pairs(line) for baseline, verdict, line in rows if line["verdict"] == verdict}


def _worded(study: Study, claims: Mapping[tuple[str, str, str], str]) -> list[str]:
    """`better than kd: sp, cc (2 of 4 pairs)`."""
    labels = study.manifest.labels
    named = grouped((labels[name] + (f" ({of})" if of else ""), (baseline, verdict)) for (baseline, verdict, name), of in claims.items())
    return [f"{CLAIMS[verdict].format(labels[baseline])}: {some(who)}" for (baseline, verdict), who in named.items()]


def _open(study: Study) -> str:
    """What the runs leave open, and for whom the results hold."""
    place, labels = study.all_pairs, study.manifest.labels
    rows = {labels[baseline]: place.against(baseline) for baseline in place.baselines}
    undecided = {
        name: sum(bool(line["test"]) and line["verdict"] == "undecided" and not line["verdict_why"] for line in rows[name]) for name in rows
    }
    counts = [f"{count} of {len(rows[name])} losses compared with {name}" for name, count in undecided.items() if count]
    parts = [f"Undecided, which does not mean equal: {some(counts)}."] if counts else []
    withheld = some(line["verdict_why"] for lines in rows.values() for line in lines if line["test"] and line["verdict_why"])
    parts += [f"No verdict for some comparisons, since {withheld}."] if withheld else []
    short = {name for pair in study.pairs.values() for name, summary in pair.summaries.items() if lacks(summary)}
    for words, names in {"No verdict, since some runs collapse": study.unstable, "Incomplete": short}.items():
        parts += [f"{words}: {some(label for name, label in labels.items() if name in names)}."] if names else []
    return " ".join([*parts, f"The results hold for {_whom(study)} only."])


def caption(study: Study) -> tuple[str, ...]:
    """At most eight lines that hold for every main table."""
    metric = study.manifest.primary
    spread = any(line["sd"] == line["sd"] for place in study.places for line in place.summaries.values())
    first = f"{metric.label} on the test set {_selection(study)}, mean{' ± standard deviation' if spread else ''} over {repeats(study)}."
    first += _averaged(study.manifest)
    tested = any(place.tested for place in study.places)
    last = (_power(study), _emphasis(study), _trained(study), "Intervals do not include test-set sampling error." if tested else "")
    delta, *tests = _test_sentences(study, tested)
    return tuple(line for line in (f"{first} {delta}", *tests, " ".join(filter(None, last))) if line)


def _averaged(manifest: Manifest) -> str:
    """Whose evaluated weights are a moving average."""
    decays = grouped((name, f"decay {decay:g}") for name, decay in manifest.averaged.items())
    everyone = len(decays) == 1 and all(block.student in manifest.averaged for block in manifest.blocks)
    parts = [decay if everyone else f"{some(who)}: {decay}" for decay, who in decays.items()]
    return f" Weights: exponential moving average ({'; '.join(parts)})." if parts else ""


def repeats(study: Study) -> str:
    """`5 repeats`."""
    counts = sorted({int(line["n_asked"]) for pair in study.pairs.values() for line in pair.summaries.values()} or {study.manifest.repeats})
    return plural(counts[0], "repeat") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} repeats"


def _selection(study: Study) -> str:
    """Which checkpoint the numbers are of, and which numbers are good."""
    better = f"{'higher' if study.manifest.primary.higher_is_better else 'lower'} is better"
    if rules := study.checkpoint_rules:
        return f"({better}; checkpoint: {', '.join(rules)})"
    return f"({better}; epoch not stated)" if study.manifest.derived else f"at the last epoch ({better})"


def _whom(study: Study) -> str:
    """`these students and this teacher`, and `on these datasets` where there are several."""
    students, teachers = ({getattr(block, side) for block in study.manifest.blocks} for side in ("student", "teacher"))
    words = "these students" if len(students) > 1 else "this student"
    words += "" if teachers <= {None} else f" and {'these teachers' if len(teachers) > 1 else 'this teacher'}"
    return words + (" on these datasets" if len({block.dataset for block in study.manifest.blocks}) > 1 else "")


def _test_sentences(study: Study, tested: bool) -> list[str]:
    manifest = study.manifest
    if not len(study.comparisons):
        return ["Nothing is compared: the suite has no baseline with another loss beside it."]
    if not tested:
        return ["Δ: loss minus baseline. Nothing could be tested, so there are no intervals, p values and verdicts."]
    kinds = set(study.comparisons["test"]) | set(study.overall["test"])
    paired = ", paired by repeat" if "paired t" in kinds else ""
    paired += " (same initial weights, images, order)" if paired and not manifest.derived and not study.checkpoint_rules else ""
    test = " or ".join(words for kind, words in (("paired t", "paired"), ("Welch t", "Welch's")) if kind in kinds)
    m = len(study.comparisons)
    family = f"{m} comparisons" if study.all_pairs.block else f"{len(study.overall)} comparisons (all pairs), {m} (pair by pair)"
    return [
        f"Δ: loss minus baseline{paired}; CI: {confidence(manifest)} confidence interval.",
        f"p: two-sided {test} t test, Holm-corrected for {family}, {'from these rows' if manifest.derived else 'fixed by the suite'}. "
        f"{_marks(study)}",
    ]


def _marks(study: Study) -> str:
    """What the marks mean, without those that stand nowhere."""
    manifest, below = study.manifest, "but below the margin"
    found = {line["verdict"] for place in study.places for line in place.tests.values()}
    parts = [f"▲ better, ▼ worse (p < {manifest.alpha:g})"]
    parts += ["△ better, ▽ worse, but by less than the margin"] if any(below in one for one in found) else []
    least = "" if manifest.margin is None else f"= equal within {difference_text(manifest, manifest.margin)} (margin)"
    parts += [least or "nothing is called equal, since there is no margin"]
    parts += ["! unstable: some runs collapse"] if "unstable" in found else []
    return f"{'; '.join(parts)}; no mark: undecided, not equal."


def _power(study: Study) -> str:
    """The least difference that a test finds with 80 % power at the spread of these runs, over all pairs and in one pair."""
    one = [line for pair in study.pairs.values() for line in pair.tests.values()]
    families = {"": one} if study.all_pairs.block else {" (all pairs)": list(study.all_pairs.tests.values()), " (one pair)": one}
    found = []
    for where, tests in families.items():
        tested = [test for test in tests if test["test"] == "paired t"]
        if tested:
            n = Counter(test["n"] for test in tested).most_common(1)[0][0]
            least = median(test["sd"] for test in tested) * detectable_difference(int(n), study.manifest.alpha, len(tests))
            found.append(f"{difference_text(study.manifest, least)}{where}")
    text = f"A true difference of about {' or '.join(found)} is found with a probability of 80 %."
    return text if found else ""


def _emphasis(study: Study) -> str:
    kinds = set(study.summaries["among_best"])
    where = "" if study.all_pairs.block else " (pair by pair)"
    tied = f"; underlined{where}: not distinguishable from it" if "tied" in kinds else ""
    return f"Bold: best mean of complete rows{tied}." if "best" in kinds else ""


def _trained(study: Study) -> str:
    """How often the teachers were trained; empty where there are none, or the file does not state it."""
    known = study.students[study.students["teacher_seed"].notna()]
    if all(block.teacher is None for block in study.manifest.blocks) or (study.manifest.derived and not len(known)):
        return ""
    seeds = known.groupby(["dataset", "teacher", "student"], dropna=False)["teacher_seed"].nunique()
    fewer = known[known["short"]].groupby(["dataset", "teacher", "student", "objective", "repeat"], dropna=False)["teacher_seed"].nunique()
    counts = sorted({*seeds, *fewer}) or [study.manifest.teacher_seeds]
    if counts[-1] == 1:
        return "" if study.manifest.derived else "Each teacher was trained once."
    return (
        f"Each teacher was trained {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} times; a repeat is the mean over these."
    )


def table_notes(study: Study) -> tuple[str, ...]:
    """Details below the main tables: images, weights, what is assumed."""
    manifest = study.manifest
    finished = study.students[study.students["state"] == "finished"]
    counts = [" or ".join(f"{int(count):,}" for count in sorted(finished[name].dropna().unique())) for name in ("n_train", "n_test")]
    notes = [f"Images: {counts[0] or 'unknown'} for training, {counts[1] or 'unknown'} for testing."] if any(counts) else []
    for source, words in WEIGHTS.items():
        named = [objective.label for objective in manifest.compared if objective.weight_from == source]
        how = manifest.tuning if source == "tuned" else None
        budget = f", each by {how.trainings} trainings on held-out images (table Tuning)" if how else ""
        notes += [f"Weights {words}{budget}: {', '.join(named)}."] if named else []
    notes += [f"Assumed: {line.rstrip('.')}." for line in manifest.assumed]
    if any(place.tested for place in study.places):
        notes.append(
            "Tests assume nearly normal differences. The probability of 80 % holds for the median spread and the strictest step of Holm."
        )
    if (study.summaries["n"] < study.summaries["n_asked"]).any():
        notes.append("Runs that diverged, failed or are missing are in no number, so a mean marked † may be too good.")
    if study.images is not None and study.images.intervals["low_images"].notna().any():
        notes.append("The table of predictions has intervals that include test-set sampling error.")
    return tuple(notes)


def teacher_fact(study: Study, place: Place) -> tuple[str, ...]:
    """`Teacher big: top-1 96.10 %.` Nothing for all pairs."""
    found = [_teacher(study.manifest, line) for line in study.teachers_of(place)]
    return (f"Teacher {place.block.teacher}: {'; '.join(found)}.",) if found and place.block else ()


def _teacher(manifest: Manifest, teacher: Line) -> str:
    if teacher["state"] != "finished":
        return str(teacher["state"])
    metric = manifest.primary
    value = teacher[f"{metric.name}_last"]
    own = f"{metric.label} {metric.printed(value)}" if value == value else f"no {metric.label}"
    below = manifest.shortfall(teacher["id"], teacher)
    return below if below.startswith(own) else ", ".join(part for part in (own, below) if part)
