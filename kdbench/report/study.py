"""Everything that a report states about a suite, computed once and indexed once: tables, warnings and figures read it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas.api.extensions import ExtensionDtype

from kdbench.manifest import Block, Manifest
from kdbench.report.comparison import asked, claims, comparisons, controlled, student_runs
from kdbench.stats.collapse import collapsed_runs
from kdbench.stats.overall import overall, overall_summaries
from kdbench.stats.ranks import mean_ranks
from kdbench.stats.repeats import repeat_means, summarise
from kdbench.stats.selection import indistinguishable_from_best
from kdbench.store.frame import block_frame, line_key

if TYPE_CHECKING:
    from kdbench.stats.predictions import ImageStatistics

Line = dict[str, Any]

ROLES = ("objective", "baseline")
OPPOSITE = {"better": "worse", "worse": "better"}
ENDS = (("low", "high"), ("low_all", "high_all"), ("new_low", "new_high"), ("pair_low", "pair_high"))
SIDES = (ROLES, ("wins", "losses"), *((f"{kind}_objective", f"{kind}_baseline") for kind in ("n", "failed", "runs")))
UNSTABLE = {"test": "", "why": "", **dict.fromkeys(("p", "p_holm", "p_equal_holm", *(end for ends in ENDS for end in ends)), math.nan)}
"""What a comparison holds where runs collapse, since no t test and none of its intervals is valid there."""


@dataclass(frozen=True)
class Place:
    """Where losses are compared: all pairs (`block` is None), or one pair; `m` is the size of the family there.

    `runs` (by repeat and teacher seed) and `summaries` are by objective in the order of the suite, without those that it excludes from the
    pair; `tests` by objective and baseline, each comparison once: without test, p and intervals where a side is unstable.
    """

    title: str
    block: Block | None
    runs: dict[str, list[Line]]
    summaries: dict[str, Line]
    tests: dict[tuple[str, str], Line]
    m: int

    def compared(self, objective: str, baseline: str) -> Line | None:
        """A comparison, mirrored where the family holds the reverse; None where it holds neither."""
        return self.tests.get((objective, baseline)) or mirrored(self.tests.get((baseline, objective)))

    def ids(self, *objectives: str) -> tuple[str, ...]:
        return tuple(run["id"] for name in objectives for run in self.runs.get(name, ()))

    @property
    def baselines(self) -> list[str]:
        return list(dict.fromkeys(baseline for _, baseline in self.tests))

    @property
    def tested(self) -> bool:
        """Whether any comparison has a p value."""
        return any(line["test"] for line in self.tests.values())

    def against(self, baseline: str) -> list[Line]:
        """The comparisons with a baseline: the rows of its table."""
        return [line for name in self.runs if name != baseline and (line := self.compared(name, baseline))]


@dataclass(frozen=True)
class Study:
    """Frames, and their rows as places: all pairs, and each pair.

    `runs`: a row a cell, as `frame.frame` makes it. `students`: the students' runs with the primary metric as `value`, standing in
    every block that they belong to; `short`: whether its repeat has fewer trained teachers than others of the block. `summaries`: a row
    a block and objective (n, n_asked, mean, sd, among_best). `comparisons`: a row
    a comparison in one pair (the second family), `overall`: a row a baseline and objective over all pairs (the primary family).
    `overall_summaries`: a row an objective (of the mean over its pairs: n_pairs, n_pairs_asked, n, n_asked, mean, sd, among_best).
    `collapsed`: the runs that collapse. `ranks`: mean ranks; None with one pair. `costs`, `histories`, `terms`, `trials`, `images`: as
    `frame.costs`, `histories.histories`, `histories.terms`, `store.trials.trials` and `stats.predictions.image_statistics` make them;
    None: not read or not there. `controls`: as `overall`, each objective with each of its controls as the baseline. `features`: as
    `store.features.frames` makes them, `claims`: as `stats.paper_claims` makes it.
    """

    manifest: Manifest
    runs: pd.DataFrame
    students: pd.DataFrame
    summaries: pd.DataFrame
    comparisons: pd.DataFrame
    overall: pd.DataFrame
    overall_summaries: pd.DataFrame
    collapsed: pd.DataFrame
    ranks: pd.DataFrame | None
    costs: pd.DataFrame
    histories: pd.DataFrame | None = None
    terms: pd.DataFrame | None = None
    images: ImageStatistics | None = None
    trials: pd.DataFrame | None = None
    controls: pd.DataFrame | None = None
    features: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    claims: pd.DataFrame | None = None

    @cached_property
    def pairs(self) -> dict[tuple[str, str, str], Place]:
        """The pairs by dataset, teacher ("" without one) and student, in the order of the suite."""
        parts = [by_key(table, 3) for table in (self._sorted, self.summaries, self.comparisons)]
        blocks = self.manifest.blocks
        return {block.key: self._place(block.title, block, *(part[block.key] for part in parts)) for block in blocks}

    @cached_property
    def all_pairs(self) -> Place:
        """All pairs together; with one pair, that pair."""
        if len(self.pairs) == 1:
            return next(iter(self.pairs.values()))
        tables = (self._sorted.drop_duplicates("id"), self.overall_summaries, self.overall)
        return self._place(self._title, None, *map(lines, tables))

    def _place(self, title: str, block: Block | None, runs: list[Line], summaries: list[Line], tests: list[Line]) -> Place:
        found = {line["objective"]: line for line in summaries}
        mine: dict[str, list[Line]] = {name: [] for name in self.manifest.labels if name in found}
        for run in runs:
            mine[run["objective"]].append(run)
        for name, several in mine.items():
            short = {run["repeat"]: False for run in several} | {run["repeat"]: True for run in several if run["short"]}
            found[name] |= {"n_taught": len(short) - sum(short.values()), "n_taught_asked": len(short)}
        by_names = {(line["objective"], line["baseline"]): self.named(line) for line in tests}
        return Place(title, block, mine, {name: found[name] for name in mine}, by_names, len(self.comparisons if block else self.overall))

    def named(self, line: Line) -> Line:
        """A comparison whose reasons name the losses; without test, p and intervals where a side is unstable."""
        one, other = names = [self.manifest.labels[line[role]] for role in ROLES]
        if line["verdict"] == "unstable":
            unstable = [self.manifest.labels[line[role]] for role in ROLES if line[role] in self.unstable]
            return line | UNSTABLE | {"verdict_why": collapse(unstable)}
        empty = [name for name, role in zip(names, ROLES, strict=True) if not line[f"n_{role}"]]
        words = {": the mean is over survivors": "", "runs of the baseline failed": f"runs of {other} failed"}
        words |= {"runs failed": f"runs of {one} failed", "one of the two": empty[0] if len(empty) == 1 else f"{one} or {other}"}
        words |= {"the objective": one, "the baseline": other}
        named = {why: re.sub("|".join(words), lambda found: words[found[0]], line[why]) for why in ("why", "verdict_why")}
        return line | named | {"pairs": len(self.manifest.blocks)}

    @cached_property
    def unstable(self) -> frozenset[str]:
        """The objectives of which some runs collapse."""
        return frozenset(self.collapsed["objective"])

    @property
    def _sorted(self) -> pd.DataFrame:
        return self.students.sort_values(["repeat", "teacher_seed", "id"])

    @property
    def _title(self) -> str:
        """`all pairs (2 students x 4 teachers)`, or `all 7 pairs`."""
        blocks = self.manifest.blocks
        datasets, students, teachers = ({getattr(block, side) for block in blocks} for side in ("dataset", "student", "teacher"))
        if len(datasets) > 1 or len(blocks) != len(students) * len(teachers):
            return f"all {len(blocks)} pairs"
        sides = [plural(len(students), "student"), *([] if teachers == {None} else [plural(len(teachers), "teacher")])]
        return f"all pairs ({' x '.join(sides)})"

    @property
    def places(self) -> list[Place]:
        """All pairs first, then pair by pair."""
        return [*([self.all_pairs] if len(self.pairs) != 1 else []), *self.pairs.values()]

    @cached_property
    def teachers(self) -> list[Line]:
        """The teachers' runs in the order of the suite."""
        found = {line["id"]: line for line in lines(self.runs[self.runs["role"] != "student"])}
        return [found[cell.id] for cell in self.manifest.cells if cell.id in found]

    @cached_property
    def teacher_ids(self) -> dict[str, frozenset[str]]:
        """The trained teachers that each run depends on."""
        trained = {cell.id for cell in self.manifest.cells if cell.role == "teacher"}
        return {cell.id: frozenset(trained.intersection(cell.depends.values())) for cell in self.manifest.cells}

    def teachers_of(self, place: Place) -> list[Line]:
        """The runs of a pair's teacher, one a training."""
        key = (place.block.dataset, place.block.teacher) if place.block else None
        return [line for line in self.teachers if (line["dataset"], line["student"]) == key]

    @property
    def checkpoint_rules(self) -> list[str]:
        """How the checkpoints were chosen, where the runs state it."""
        return sorted({str(rule) for rule in self.runs["selection"].dropna()}) if "selection" in self.runs else []


def study(runs: pd.DataFrame, costs: pd.DataFrame, manifest: Manifest) -> Study:
    """The statistics of a suite.

    Args:
        runs: as `frame.frame` makes it; the order of its rows does not matter.
        costs: as `frame.costs` makes it.
    """
    students = student_runs(runs, manifest)
    higher, alpha, blocks = manifest.primary.higher_is_better, manifest.alpha, block_frame(manifest)
    collapsed = collapsed_runs(students)
    names = frozenset(collapsed["objective"])
    keys = ["dataset", "teacher", "student", "objective"]
    seeds = students.groupby([*keys, "repeat"], dropna=False)["teacher_seed"].transform("nunique")
    most = seeds.groupby([students[key] for key in keys[:-1]], dropna=False).transform("max")
    students = students.assign(short=(seeds > 0) & (seeds < most))
    # Only an objective with all of its runs, none of which collapses, is ever the best.
    there = students["value"].notna() & (students["state"] == "finished") & ~students["short"]
    controls = {objective.name for objective in manifest.objectives if objective.control}
    referred = controls or any(objective.reference for objective in manifest.objectives)
    all_there = there.groupby([students[key] for key in keys], dropna=False).transform("all") & ~students["objective"].isin(
        names | controls
    )
    best = indistinguishable_from_best(students.assign(value=students["value"].where(all_there)), alpha, higher)
    whole = overall_summaries(students, blocks).assign(n_pairs_asked=len(blocks))
    complete = (whole["n"] == whole["n_asked"]) & (whole["n_pairs"] == whole["n_pairs_asked"])
    complete &= ~whole["objective"].isin(names.union(students.loc[students["short"], "objective"], controls))
    score = whole["mean"].where(complete) * (1 if higher else -1)
    values = repeat_means(students)
    places = values[values["value"].notna()].drop_duplicates(keys)["objective"].value_counts()
    everywhere = values["objective"].isin(places[places == len(blocks)].index)
    return Study(
        manifest=manifest,
        runs=runs,
        students=students,
        summaries=summarise(students).assign(among_best=best["among_best"]),
        comparisons=comparisons(students, manifest, names),
        overall=overall(students, asked(students, manifest), alpha, manifest.margin, higher, names),
        overall_summaries=whole.assign(among_best=["best" if best else "" for best in score == score.max()]),
        collapsed=collapsed,
        controls=overall(students, controlled(students, manifest), alpha, manifest.margin, higher, names) if referred else None,
        claims=claims(students, costs, manifest, names) if manifest.claims else None,
        ranks=mean_ranks(values[everywhere], higher) if len(blocks) > 1 else None,
        costs=costs,
    )


def mirrored(line: Line | None) -> Line | None:
    """The same comparison with objective and baseline exchanged; None of None."""
    if line is None:
        return None
    found = dict(line)
    for one, other in (*((name, name) for name in ("difference", "t", "d_z", "new")), *ENDS):
        found |= {one: -line[other], other: -line[one]} if one in line else {}
    for one, other in SIDES:
        found |= {one: line[other], other: line[one]} if one in line else {}
    word, *rest = line["verdict"].split(" ")
    return found | {"verdict": " ".join([OPPOSITE.get(word, word), *rest])}


def lines(table: pd.DataFrame) -> list[Line]:
    """The rows of a frame as dictionaries, pandas' missing value as None. For its own kinds of columns pandas needs ten times as long."""
    own = {name for name, kind in table.dtypes.items() if isinstance(kind, ExtensionDtype)}
    columns = [(table[name].to_numpy(object, na_value=None) if name in own else table[name]).tolist() for name in table]  # type: ignore[call-overload]
    return [dict(zip(map(str, table), line, strict=True)) for line in zip(*columns, strict=True)]


def by_key(table: pd.DataFrame, parts: int) -> dict[tuple[str, ...], list[Line]]:
    """The rows by dataset, teacher and student (3 parts), or also by objective (4)."""
    found: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines(table):
        found[line_key(line)[:parts]].append(line)
    return found


def collapse(labels: Iterable[str]) -> str:
    return f"some runs of {' and of '.join(labels)} collapse"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def some(names: Iterable[str], most: int = 4) -> str:
    """`kd, cka, sp, cc and 3 more`."""
    every = list(dict.fromkeys(names))
    if len(every) <= most + 1:
        return ", ".join(every)
    return f"{', '.join(every[:most])} and {len(every) - most} more"
