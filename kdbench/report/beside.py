"""Measured beside published numbers: a difference only between numbers of the same thing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from math import nan

from kdbench.errors import KdbenchError
from kdbench.manifest import Block, Manifest
from kdbench.published import MEASURES, OTHER, UNKNOWN, Measure, counterparts, lines, plain, table, variant_of
from kdbench.report.study import Line, Study
from kdbench.report.table import ABSENT, EMPTY, Column, Entry, Group, Table, row

DIFFERS = "§"
MEASURED_SELECTION = "last epoch"
"""The rule by which kdbench takes a value, where the frame does not name another (`selection`)."""
BASELINE_POINTS = 0.5
"""Where cross-entropy alone differs by more, the two studies have different baselines, and levels do not compare."""
GAINS_ONLY = "different baseline: gains only"
COLUMNS = (
    Column("loss", numeric=False),
    Column("variant", numeric=False, essential=False),
    Column("measured, %"),
    Column("n", essential=False),
    Column("published as", numeric=False),
    Column("published, %"),
    Column("n published", essential=False),
    Column("difference, points"),
)
GAINS = (Column("measured gain, points"), Column("published gain, points"))
DETAILS = (Column("schedule", numeric=False), Column("inherits", numeric=False), Column("source", numeric=False, essential=False))
"""Of tables of detection, in which every published number stands in a row of its own."""


def beside(published_name: str, study: Study) -> Table:
    """A table of measured beside published numbers of the suite's primary metric, a group a pair of the suite, and what was not measured.

    A difference stands only where variant (by the study's terms; without them by the loss's name), selection rule, n_train and n_test
    agree; otherwise a note says what differs. Pairs are matched by dataset and by the names of student and teacher (without case, `_`
    and `-`; other names by `published/_names.csv`).

    Raises:
        KdbenchError: there is no such table, or it holds no values of the suite's primary metric, or this is no fraction.
    """
    manifest, cells = study.manifest, lines(table(published_name))
    primary = manifest.primary
    if (measure := MEASURES.get(primary.name)) is None:
        held = " or ".join(one.values for one in MEASURES.values())
        raise KdbenchError(f"published tables hold {held}, and the suite's primary metric is {primary.label}")
    if measure.column not in cells[0]:
        raise KdbenchError(f"the published table '{published_name}' holds no {measure.values}")
    if not primary.percent:
        raise KdbenchError(
            f"published tables hold {measure.label} in per cent, and this suite's {primary.name} is no fraction (`percent: false`)"
        )
    cells = [{**cell, "value": cell[measure.column], "variant": _shown(cell["variant"], measure)} for cell in cells]
    detailed = "schedule" in cells[0]
    names = counterparts(published_name)
    trained: dict[tuple[str, ...], Line] = {}  # teachers, and students alone
    distilled: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for cell in cells:
        # A net that is none of ours matches no name of ours.
        teacher, student = (
            plain(ours) if (ours := names.get(model, model)) else f"{model} of {published_name}"
            for model in (cell["teacher"] or "", cell["student"])
        )
        if cell["role"] == "distilled":
            distilled[cell["dataset"], teacher, student].append(cell)
        else:
            trained[cell["dataset"], cell["role"], teacher if cell["role"] == "teacher" else student] = cell
    named = {name: variant_of(name, study.terms) for name in manifest.labels}
    kinds = {name: {"variant": _shown(variant, measure), "loss": loss} for name, (variant, loss) in named.items()}
    groups = []
    for (dataset, teacher, student), place in study.pairs.items():
        known = {name: {"label": manifest.labels[name], **kinds[name]} for name in place.runs}
        measured = [{**known[name], **place.summaries[name], **_circumstance(runs)} for name, runs in place.runs.items()]
        found = distilled.pop((dataset, plain(teacher), plain(student)), [])
        alone, taught = (trained.get((dataset, *key)) for key in (("alone", plain(student)), ("teacher", plain(teacher))))
        groups.append(_group(place.title, measured, [*([alone] if alone and found else []), *found], taught, published_name, measure))
    if distilled and detailed:
        groups += [_apart(pair, cells, measure, published_name) for pair in distilled.values()]
    elif distilled:
        groups.append(_unmeasured(list(distilled.values()), published_name))
    width = len(COLUMNS) + any(group.title.endswith(GAINS_ONLY) for group in groups) * len(GAINS)
    details = slice(len(COLUMNS) + len(GAINS), None if detailed else 0)
    cut = tuple(replace(group, rows=tuple(boxes[:width] + boxes[details] for boxes in group.rows)) for group in groups)
    sources = "; ".join(dict.fromkeys(cell["source"] for cell in cells))
    caption, notes = _caption(sources, published_name, manifest)
    if detailed and all(names.get(cell["student"]) == "" for cell in cells):
        notes += (f"No detector of {published_name} is one of kdbench: measured pairs are new pairs, and reproduce no published number.",)
    if detailed:
        notes += (
            "Schedule: 1x is 12 epochs, 2x 24, ms several sizes. Inherits: which parts of its teacher the student begins with. "
            "Compare numbers of one source, schedule and inheritance.",
        )
    columns = (*COLUMNS, *GAINS)[:width] + DETAILS * detailed
    return Table(f"Measured beside {published_name}", columns, cut, caption, notes, name="beside")


def _shown(variant: str, measure: Measure) -> str:
    return measure.alone if variant == "ce" else variant


def _caption(sources: str, name: str, manifest: Manifest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The caption, and the notes below the table."""
    caption = (
        f"Published numbers (in italics) as printed in: {sources}.",
        "Difference: measured minus published, where variant of the loss, selection rule, training images and test images agree; "
        f"{DIFFERS}: they do not. No difference here is tested.",
        *(f"Assumed: {line}" for line in manifest.assumed),
    )
    notes = (
        "Variants have the names of kdbench's presets. none: a loss that kdbench does not have; other: documented, but no preset; "
        "unknown: the source does not say.",
        f"± is the standard deviation, where it was printed; n published is empty where {name} does not say it.",
        "Pairs are matched by the names of dataset, student and teacher; whether networks and recipes are the same is not checked.",
    )
    return caption, notes


def _circumstance(runs: list[Line]) -> Line:
    """By which rules the values of an objective's runs were taken, and on how many images."""
    finished = [run for run in runs if run["state"] == "finished"]
    named = [run.get("selection") for run in finished]
    rules = sorted({rule if isinstance(rule, str) else MEASURED_SELECTION for rule in named or [None]})
    images = {column: {run[column] for run in finished} for column in ("n_train", "n_test")}
    counts = {column: values.pop() if len(values) == 1 else None for column, values in images.items()}
    return {**counts, "selection": " and ".join(rules), "runs": tuple(run["id"] for run in runs)}


def _group(title: str, measured: list[Line], found: list[Line], teacher: Line | None, name: str, measure: Measure) -> Group:
    if not found:
        alone = tuple(_row(one, None, measure) for one in measured)
        return Group(title, alone, (f"{name} has no numbers for this student and teacher.",))
    ours = next((one["mean"] for one in measured if one["variant"] == measure.alone and one["mean"] == one["mean"]), None)
    theirs = next((line["value"] / 100 for line in found if line["role"] == "alone"), None)
    facts = [f"Published teacher: {teacher['value']:.{measure.decimals}f} %."] if teacher else []
    gains = None
    if ours is None or theirs is None:
        lacking = " and ".join(who for who, value in (("this suite", ours), (name, theirs)) if value is None)
        facts.append(f"No number of {measure.loss} alone in {lacking}: it is unknown whether the baselines agree.")
    else:
        off = 100 * abs(ours - theirs)
        gains = (ours, theirs) if off > BASELINE_POINTS + 1e-9 else None
        facts.append(f"{measure.loss[0].upper()}{measure.loss[1:]} alone: {off:.2f} points apart.")
    rows = []
    notes: dict[str, list[str]] = defaultdict(list)
    for one, line in _pairs(measured, found):
        why = differing(one, line) if one and line else ""
        rows.append(_row(one, line, measure, why, gains))
        if one and why and one["label"] not in notes[why]:
            notes[why].append(one["label"])
    title = f"{title} · {GAINS_ONLY}" if gains else title
    return Group(title, tuple(rows), tuple(facts), tuple(f"{DIFFERS} {', '.join(labels)}: {why}" for why, labels in notes.items()))


def _pairs(measured: list[Line], found: list[Line]) -> list[tuple[Line | None, Line | None]]:
    """Each objective with the published numbers of its variant, else with those of its loss that no objective is a variant of."""
    exact = [[line for line in found if line["variant"] == one["variant"] != OTHER] for one in measured]
    free = [line for line in found if not any(line is other for several in exact for other in several)]
    pairs: list[tuple[Line | None, Line | None]] = []
    for one, same in zip(measured, exact, strict=True):
        pairs += [(one, line) for line in same or [line for line in free if line["loss"] == one["loss"]]] or [(one, None)]
    return pairs + [(None, line) for line in found if not any(line is other for _, other in pairs)]


def differing(measured: Line, published: Line) -> str:
    """What the two numbers differ in, or may differ in; empty where variant, selection rule, n_train and n_test agree."""
    differences = []
    ours, theirs = measured["variant"], published["variant"]
    if UNKNOWN in (ours, theirs):
        differences.append("variant unknown")
    elif theirs != ours or theirs == OTHER:
        one, other = ("another one" if variant == OTHER else variant for variant in (ours, theirs))
        differences.append(f"variant {one} against {other}")
    for column, words, form in (("selection", "", ""), ("n_train", "n_train ", ","), ("n_test", "n_test ", ",")):
        ours, theirs = measured[column], published[column]
        if {ours, theirs} & {None, UNKNOWN}:
            differences.append(f"{words or 'selection rule '}unknown")
        elif ours != theirs:
            differences.append(f"{words}{ours:{form}} against {theirs:{form}}")
    return "; ".join(differences)


def _row(
    one: Line | None, line: Line | None, measure: Measure, why: str = "", gains: tuple[float, float] | None = None
) -> tuple[Entry, ...]:
    """What was measured, published, or both. `gains`: the values of the task's loss alone, measured and published, where only gains over
    them compare."""
    ours, theirs = one or {"label": ABSENT, "mean": nan, "sd": nan, "runs": ()}, line or {"method": ABSENT, "value": nan}
    percent, points = partial(Entry, format=".2f", scale=100.0), partial(Entry, format="+z.2f", scale=100.0)
    mean, (value, sd) = ours["mean"], (nan if theirs.get(name) is None else theirs[name] / 100 for name in ("value", "std"))
    difference, mine, its = Entry(None, marks=(DIFFERS,) if why else ()), EMPTY, EMPTY
    if gains and ours.get("variant") != measure.alone and theirs.get("role") != "alone":
        mine, its = points(mean - gains[0]), points(value - gains[1], apart=True)
    if one and line and not why:
        difference = EMPTY if gains else points(mean - value)
    return (
        *row(
            ours["runs"],
            Entry(ours["label"]),
            Entry((one or theirs)["variant"], apart=not one),
            percent(mean, ours["sd"], emphasis=ours.get("among_best") or ""),
            Entry(f"{ours['n']}/{ours['n_asked']}" if one else ABSENT),
        ),
        Entry(theirs["method"], apart=line is not None),
        percent(value, sd, format=f".{measure.decimals}f", apart=True),
        Entry(theirs.get("n_runs"), format=".0f", apart=True),
        *row(ours["runs"], difference, mine),
        its,
        *(Entry(theirs.get(name) or ABSENT, apart=line is not None) for name in ("schedule", "inherits")),
        Entry(theirs.get("source", ABSENT).partition(" (")[0], apart=line is not None),
    )


def _apart(pair: list[Line], cells: list[Line], measure: Measure, name: str) -> Group:
    """The published numbers of a pair that was not measured, each in a row, with those of its student alone in the same sources."""
    first, sources = pair[0], {cell["source"] for cell in pair}
    of_pair = [cell for cell in cells if cell["source"] in sources and cell["dataset"] == first["dataset"]]
    alone = [cell for cell in of_pair if cell["role"] == "alone" and cell["student"] == first["student"]]
    taught = [cell["value"] for cell in of_pair if cell["role"] == "teacher" and cell["teacher"] == first["teacher"]]
    facts = (f"Published teacher: {' and '.join(f'{one:.{measure.decimals}f}' for one in dict.fromkeys(taught))} %.",) if taught else ()
    title = Block(first["dataset"], first["teacher"], first["student"]).title
    rows = tuple(_row(None, cell, measure) for cell in (*alone, *pair))
    return Group(
        f"{title} · published in {name}, not measured here",
        rows,
        facts,
        tuple(dict.fromkeys(f"{cell['method']} ({cell['source'].partition(' (')[0]}): {cell['flag']}." for cell in pair if cell["flag"])),
    )


def _unmeasured(pairs: list[list[Line]], name: str) -> Group:
    """Pairs of models that only the published table has: a row each, with the methods that it has there."""
    rows = []
    for cells in pairs:
        title = Block(cells[0]["dataset"], cells[0]["teacher"], cells[0]["student"]).title
        methods = Entry(", ".join(cell["method"] for cell in cells), apart=True)
        rows.append((Entry(title, apart=True), EMPTY, Entry(None), Entry(ABSENT), methods, *[EMPTY] * 5))
    return Group(f"published in {name}, not measured here", tuple(rows))
