"""Measured beside published: set apart, and subtracted only where both are numbers of the same thing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.report.manifest import Manifest, labels
from kdbench.report.published import OTHER, UNKNOWN, counterparts, lines, plain, table, variant_of
from kdbench.report.table import ABSENT, EMPTY, Column, Entry, Group, Table

if TYPE_CHECKING:
    import pandas as pd

DIFFERS = "§"
MEASURED_SELECTION = "last epoch"
"""The rule by which kdbench takes a value, where the frame does not name another (`selection`)."""
BASELINE_POINTS = 0.5
"""Where cross-entropy alone is off by more, the two studies have different baselines, and levels do not compare."""

Line = Mapping[str, Any]
Block = tuple[str, str, str]


@dataclass(frozen=True)
class Measured:
    """One objective in one block: `mean` and `sd` as stored (fractions; None: no complete repeat); `n_train` and `n_test` as the
    finished runs have them (None: not known, or not the same in all); `selection` is the rule, or the rules, that their values were
    taken by."""

    objective: str
    label: str
    variant: str
    loss: str
    mean: float | None
    sd: float | None
    n: int
    n_asked: int
    standing: str
    n_train: int | None
    n_test: int | None
    selection: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """One row: what was measured, what was published, or both; `why` is why there is no difference (empty: there is one)."""

    measured: Measured | None
    published: Line | None
    why: str


def beside(
    published_name: str, summaries: pd.DataFrame, students: pd.DataFrame, manifest: Manifest, terms: pd.DataFrame | None = None
) -> Table:
    """A table of measured beside published accuracies, a group a block of the suite, and one of what was not measured.

    A difference stands only where variant, selection rule, n_train and n_test agree; otherwise a note says what differs. Blocks are
    matched by dataset and by the names of student and teacher (without case, `_` and `-`; other names by `published/_names.csv`).

    Args:
        published_name: a name of `published.tables()`.
        summaries: dataset, teacher, student, objective, n, n_asked, mean (a fraction), sd, and standing where it is known.
        students: as `comparison.student_runs` makes it.
        terms: as `history.terms` makes it: the exact variant of each objective; None: by the objective's name.

    Raises:
        KdbenchError: there is no such table, it holds no accuracies, or the suite's primary metric is not top-1 as a fraction.
    """
    cells = table(published_name)
    if "top1" not in cells:
        raise KdbenchError(f"the published table '{published_name}' holds no top-1 accuracies")
    if manifest["metrics"][0]["name"] != "top1":
        raise KdbenchError(f"published tables hold top-1 accuracies, and the suite's primary metric is {manifest['metrics'][0]['label']}")
    if not manifest["metrics"][0]["percent"]:
        raise KdbenchError(
            "published tables hold top-1 in per cent, and by its manifest this suite's top1 is no fraction that is printed so "
            "(percent is false): the two cannot stand beside each other"
        )
    measured = _measured(summaries, students, manifest, terms)
    by_block = _published(cells, published_name)
    alone = {(line["dataset"], _ours(published_name, line["student"])): line for line in lines(cells) if line["role"] == "alone"}
    taught = {(line["dataset"], _ours(published_name, line["teacher"])): line for line in lines(cells) if line["role"] == "teacher"}
    groups = []
    for block in manifest["blocks"]:
        key = (block["dataset"], plain(block["teacher"] or ""), plain(block["student"]))
        found = by_block.pop(key, [])
        if found and (own := alone.get((key[0], key[2]))):
            found = [own, *found]
        teacher = taught.get((key[0], key[1])) if found else None
        name = (block["dataset"], block["teacher"] or "", block["student"])
        groups.append(_group(name, measured.get(name, []), found, teacher, published_name))
    gains = any(group.title.endswith(GAINS_ONLY) for group in groups)
    if by_block:
        groups.append(_unmeasured(by_block, published_name))
    width = len(_columns(True))
    return Table(
        title=f"Measured beside {published_name}",
        columns=tuple(_columns(gains)),
        groups=tuple(groups) if gains else tuple(_without_gains(group, width) for group in groups),
        caption=_caption(cells, published_name, manifest),
        name="beside",
    )


GAINS_ONLY = "different baseline: gains only"


def _columns(gains: bool) -> list[Column]:
    columns = [Column("objective", numeric=False), Column("variant", numeric=False), Column("measured, %"), Column("n")]
    columns += [Column("published as", numeric=False), Column("published, %"), Column("n published"), Column("difference, points")]
    return [*columns, Column("measured gain, points"), Column("published gain, points")] if gains else columns


def _without_gains(group: Group, width: int) -> Group:
    return Group(group.title, tuple(row[: width - 2] for row in group.rows), group.facts, group.notes)


def _caption(cells: pd.DataFrame, name: str, manifest: Manifest) -> tuple[str, ...]:
    sources = "; ".join(dict.fromkeys(cells["source"]))
    return (
        f"Published numbers (typeset apart) as printed in: {sources}.",
        f"A difference (measured minus published) stands only where the variant of the loss, the selection rule, the training images "
        f"and the test images of both agree; {DIFFERS} marks where they do not, and a note says what differs. Nothing here is tested.",
        "Variants are named by the presets of kdbench; none: a loss that kdbench does not have; other: documented, and no preset; "
        "unknown: the source does not say.",
        f"± is the standard deviation, where it was printed; n published is empty where {name} does not say it.",
        "Blocks are matched by the names of dataset, student and teacher: that the nets and recipes are the same is not checked.",
        *(f"Assumed: {line}" for line in manifest.get("assumed", [])),
    )


def _ours(name: str, model: str) -> str:
    ours = counterparts(name).get(model, model)
    return plain(ours) if ours else f"{model} of {name}"  # a net that is none of ours matches no name of ours


def _published(cells: pd.DataFrame, name: str) -> dict[Block, list[Line]]:
    found: dict[Block, list[Line]] = defaultdict(list)
    for line in lines(cells[cells["role"] == "distilled"]):
        found[line["dataset"], _ours(name, line["teacher"]), _ours(name, line["student"])].append(line)
    return dict(found)


def _measured(
    summaries: pd.DataFrame, students: pd.DataFrame, manifest: Manifest, terms: pd.DataFrame | None
) -> dict[Block, list[Measured]]:
    runs: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for run in lines(students):
        runs[run["dataset"], run["teacher"] or "", run["student"], run["objective"]].append(run)
    names = labels(manifest)
    order = {name: place for place, name in enumerate(names)}
    known = {name: variant_of(name, terms) for name in names}
    found: dict[Block, list[Measured]] = defaultdict(list)
    for line in sorted((line for line in lines(summaries) if line["objective"] in order), key=lambda line: order[line["objective"]]):
        block, name = (line["dataset"], line["teacher"] or "", line["student"]), line["objective"]
        mine = runs[(*block, name)]
        finished = [run for run in mine if run["state"] == "finished"]
        variant, loss = known[name]
        named = {"objective": name, "label": names[name], "variant": variant, "loss": loss}
        numbers = {key: line[key] for key in ("mean", "sd", "n", "n_asked")}
        images: dict[str, Any] = {column: _shared(finished, column) for column in ("n_train", "n_test")}
        kept: dict[str, Any] = {
            "selection": _selection(finished),
            "standing": line.get("standing") or "",
            "runs": tuple(run["id"] for run in mine),
        }
        found[block].append(Measured(**named, **numbers, **images, **kept))
    return found


def _selection(runs: list[Line]) -> str:
    """The rule that the frame names for these runs; more than one is no rule that any table has."""
    rules = {run.get("selection") or MEASURED_SELECTION for run in runs}
    return " and ".join(sorted(rules)) or MEASURED_SELECTION


def _shared(runs: list[Line], column: str) -> int | None:
    values = {run[column] for run in runs}
    return int(value) if len(values) == 1 and (value := values.pop()) is not None else None


def _group(block: Block, measured: list[Measured], found: list[Line], teacher: Line | None, name: str) -> Group:
    title = " · ".join([block[0], f"student {block[2]}", *([f"teacher {block[1]}"] if block[1] else [])])
    if not found:
        rows = [_row(Pair(one, None, "")) for one in measured]
        return Group(title, tuple(rows), (f"{name} has no numbers for this student and teacher.",))
    ours = next((one.mean for one in measured if one.variant == "ce" and one.mean is not None), None)
    theirs = next((line["top1"] / 100 for line in found if line["role"] == "alone"), None)
    facts = [] if teacher is None else [f"Published teacher: {teacher['top1']:.2f} %."]
    gains_only = False
    if ours is None or theirs is None:
        lacking = " and ".join(who for who, value in (("this suite", ours), (name, theirs)) if value is None)
        facts.append(f"No number of cross-entropy alone in {lacking}: whether the baselines agree cannot be seen.")
    else:
        off = 100 * abs(ours - theirs)
        gains_only = off > BASELINE_POINTS + 1e-9
        facts.append(f"Cross-entropy alone: {off:.2f} points apart.")
    pairs = _pairs(measured, found)
    rows = [_row(pair, gains_only, ours, theirs) for pair in pairs]
    return Group(f"{title} · {GAINS_ONLY}" if gains_only else title, tuple(rows), tuple(facts), _notes(pairs))


def _pairs(measured: list[Measured], found: list[Line]) -> list[Pair]:
    """Each objective with the published numbers of its variant, else with those of its loss that no objective is a variant of."""
    exact = {one.objective: [line for line in found if line["variant"] == one.variant != OTHER] for one in measured}
    taken = [line for several in exact.values() for line in several]
    pairs: list[Pair] = []
    for one in measured:
        free = [line for line in found if line["loss"] == one.loss and not any(line is other for other in taken)]
        chosen = exact[one.objective] or free
        pairs += [Pair(one, line, differing(one, line)) for line in chosen] or [Pair(one, None, "")]
    shown = [pair.published for pair in pairs]
    return pairs + [Pair(None, line, "") for line in found if not any(line is other for other in shown)]


def differing(measured: Measured, published: Line) -> str:
    """What the two numbers differ in, or may differ in; empty where variant, selection rule, n_train and n_test agree."""
    said = []
    theirs = published["variant"]
    if theirs == UNKNOWN or measured.variant == UNKNOWN:
        said.append("variant unknown")
    elif theirs != measured.variant or theirs == OTHER:
        said.append(f"variant {_named(measured.variant)} against {_named(theirs)}")
    if UNKNOWN in (published["selection"], measured.selection):
        said.append("selection rule unknown")
    elif published["selection"] != measured.selection:
        said.append(f"{measured.selection} against {published['selection']}")
    for column in ("n_train", "n_test"):
        ours, other = getattr(measured, column), published[column]
        if other is None or ours is None:
            said.append(f"{column} unknown")
        elif ours != other:
            said.append(f"{column} {ours:,} against {other:,}")
    return "; ".join(said)


def _named(variant: str) -> str:
    return "another one" if variant == OTHER else variant


def _notes(pairs: list[Pair]) -> tuple[str, ...]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        if pair.measured and pair.why:
            by_reason[pair.why].append(pair.measured.label)
    return tuple(f"{DIFFERS} {', '.join(dict.fromkeys(names))}: {why}" for why, names in by_reason.items())


def _row(pair: Pair, gains_only: bool = False, ours: float | None = None, theirs: float | None = None) -> tuple[Entry, ...]:
    one, line = pair.measured, pair.published
    mean = None if one is None else one.mean
    printed = None if line is None else line["top1"] / 100
    return (
        Entry(one.label, runs=one.runs) if one else Entry(ABSENT),
        Entry(one.variant) if one else Entry(line["variant"] if line else ABSENT, apart=True),
        Entry(
            mean,
            spread=one.sd if one and mean is not None and one.n > 1 else None,
            format=".2f",
            scale=100.0,
            emphasis=one.standing if one else "",
            runs=one.runs if one else (),
        ),
        Entry(f"{one.n}/{one.n_asked}", runs=one.runs) if one else Entry(ABSENT),
        Entry(line["method"] if line else ABSENT, apart=line is not None),
        Entry(printed, spread=line["std"] / 100 if line and line["std"] is not None else None, format=".2f", scale=100.0, apart=True),
        Entry(line["n_runs"] if line else None, format=".0f", apart=True),
        _difference(pair, gains_only),
        *(_gains(pair, ours, theirs) if gains_only else (EMPTY, EMPTY)),
    )


def _difference(pair: Pair, gains_only: bool) -> Entry:
    if pair.measured is None or pair.published is None:
        return Entry(None)
    if pair.why:
        return Entry(None, marks=(DIFFERS,))
    if gains_only:
        return EMPTY
    if pair.measured.mean is None:
        return Entry(None)
    return Entry(pair.measured.mean - pair.published["top1"] / 100, format="+z.2f", scale=100.0, runs=pair.measured.runs)


def _gains(pair: Pair, ours: float | None, theirs: float | None) -> tuple[Entry, Entry]:
    """What each gained over its own cross-entropy alone (`ours`, `theirs`: fractions)."""
    one, line = pair.measured, pair.published
    if (one and one.variant == "ce") or (line and line["role"] == "alone"):
        return EMPTY, EMPTY
    measured = None if one is None or one.mean is None or ours is None else one.mean - ours
    printed = None if line is None or theirs is None else line["top1"] / 100 - theirs
    return (
        Entry(measured, format="+z.2f", scale=100.0, runs=one.runs if one else ()),
        Entry(printed, format="+z.2f", scale=100.0, apart=True),
    )


def _unmeasured(by_block: Mapping[Block, list[Line]], name: str) -> Group:
    """Pairs of models that only the published table has: a row each, with the methods that it has there."""
    rows = []
    for (dataset, _, _), cells in by_block.items():
        student, teacher = cells[0]["student"], cells[0]["teacher"]
        methods = ", ".join(line["method"] for line in cells)
        named = Entry(f"{dataset} · student {student} · teacher {teacher}", apart=True)
        absent = (EMPTY, Entry(None), Entry(ABSENT), Entry(methods, apart=True))
        rows.append((named, *absent, *[EMPTY] * (len(_columns(True)) - 5)))
    return Group(f"published in {name}, not measured here", tuple(rows))
