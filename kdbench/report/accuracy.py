"""The table of accuracies: what each objective reached in each block, and by how much it differs from the baselines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from kdbench.report.caption import accuracy_caption, accuracy_facts
from kdbench.report.manifest import Block, Manifest, Metric, labels
from kdbench.report.notes import INCOMPLETE, UNTESTED, incomplete_notes, untested_notes
from kdbench.report.study import Line, Study, block_name, lines
from kdbench.report.table import ABSENT, BEST, EMPTY, TIED, Column, Entry, Group, Table

MARKS = {
    "better": "▲",
    "better but below the margin": "△",
    "equal": "=",
    "worse but below the margin": "▽",
    "worse": "▼",
    "undecided": "",
}
MIRRORED = {"▲": "▼", "△": "▽", "▽": "△", "▼": "▲"}
EMPHASIS = {"best": BEST, "tied": TIED}
LEAST_P = 0.001

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Gathered:
    """Everything the table is made of, by block and objective, so that no block searches the whole frame."""

    manifest: Manifest
    summaries: dict[Key, Line]
    runs: dict[Key, list[Line]]
    differences: dict[tuple[Key, str], Line]
    teachers: dict[str, Line]
    teachers_of: dict[str, tuple[str, ...]]

    @property
    def metric(self) -> Metric:
        return self.manifest["metrics"][0]

    @property
    def scale(self) -> float:
        return 100.0 if self.metric["percent"] else 1.0

    @property
    def decimals(self) -> int:
        return 2 if self.metric["percent"] else 4

    @property
    def baselines(self) -> list[str]:
        known = labels(self.manifest)
        return [name for name in self.manifest["baselines"] if name in known]


def accuracy(study: Study, shown: Collection[str] | None = None, gathered: Gathered | None = None) -> Table:
    """The table of accuracies and differences, one group a block.

    Args:
        shown: names of the objectives to print (None: all); which are printed changes no number.
        gathered: of the study, where it was gathered already.
    """
    manifest = study.manifest
    gathered = gathered or gather(study)
    names = labels(manifest)
    metric = gathered.metric
    unit, points = (", %", ", points") if metric["percent"] else ("", "")
    columns = [Column("objective", numeric=False), Column(f"{metric['label']}{unit}"), Column("n")]
    for baseline in gathered.baselines:
        columns += [Column(f"Δ to {names[baseline]}{points} [{confidence(manifest)}]"), Column("p (Holm)")]
    return Table(
        title=f"{metric['label']} of the students",
        columns=tuple(columns),
        groups=tuple(_group(block, gathered, names if shown is None else shown) for block in manifest["blocks"]),
        caption=accuracy_caption(study),
        name="accuracy",
    )


def confidence(manifest: Manifest) -> str:
    return f"{100 * (1 - manifest['alpha']):g} %"


def gather(study: Study) -> Gathered:
    by_objective: dict[Key, list[Line]] = defaultdict(list)
    for run in lines(study.students.sort_values(["repeat", "teacher_seed", "id"])):
        by_objective[_key(run)].append(run)
    place = {cell["id"]: place for place, cell in enumerate(study.manifest["cells"])}
    teachers = lines(study.runs[study.runs["role"] != "student"])
    return Gathered(
        study.manifest,
        summaries={_key(line): line for line in lines(study.summaries)},
        runs=by_objective,
        differences={(_key(line), line["baseline"]): line for line in lines(study.comparisons)},
        teachers={line["id"]: {**line, "place": place[line["id"]]} for line in teachers},
        teachers_of={
            cell["id"]: tuple(other for role, other in cell["depends"].items() if role == "teacher") for cell in study.manifest["cells"]
        },
    )


def _key(line: Any, objective: str | None = None) -> Key:
    teacher = line["teacher"] if isinstance(line["teacher"], str) else ""
    return line["dataset"], teacher, line["student"], objective or line["objective"]


def _group(block: Block, gathered: Gathered, shown: Collection[str]) -> Group:
    names = labels(gathered.manifest)
    # What the suite excludes from this block is no row of it.
    kept = [name for name in names if name in shown and _key(block, name) in gathered.runs]
    keys = [_key(block, name) for name in kept]
    runs = {names[key[3]]: gathered.runs.get(key, []) for key in keys}
    every = [line for name in names for line in gathered.runs.get(_key(block, name), [])]
    tests = [
        found for name in names for baseline in gathered.baselines if (found := gathered.differences.get((_key(block, name), baseline)))
    ]
    complete = {names[key[3]]: gathered.summaries[key]["n"] for key in keys if key in gathered.summaries}
    printed_tests = [test for test in tests if test["objective"] in shown or test["baseline"] in shown]
    return Group(
        title=block_name(block["dataset"], block["teacher"], block["student"]),
        rows=tuple(_row(block, name, gathered) for name in kept),
        facts=accuracy_facts(gathered.manifest, block, every, _teachers(every, gathered), tests, len(gathered.differences)),
        notes=(*incomplete_notes(runs, complete), *untested_notes(printed_tests, names)),
    )


def _teachers(runs: Iterable[Line], gathered: Gathered) -> list[Line]:
    """The teachers that the runs of a block depend on, in the order of the manifest."""
    used = {teacher for run in runs for teacher in gathered.teachers_of[run["id"]]}
    return sorted((gathered.teachers[cell_id] for cell_id in used if cell_id in gathered.teachers), key=lambda line: line["place"])


def _row(block: Block, name: str, gathered: Gathered) -> tuple[Entry, ...]:
    key = _key(block, name)
    runs = gathered.runs.get(key, [])
    ids = tuple(run["id"] for run in runs)
    summary = gathered.summaries.get(key, {"n": 0, "n_asked": 0, "mean": None, "sd": None, "standing": ""})
    n, asked = summary["n"], summary["n_asked"]
    mean = Entry(
        summary["mean"] if n else None,
        spread=summary["sd"] if n > 1 else None,
        format=f".{gathered.decimals}f",
        scale=gathered.scale,
        emphasis=EMPHASIS.get(summary["standing"], ""),
        runs=ids,
    )
    entries = [
        Entry(labels(gathered.manifest)[name], runs=ids),
        mean,
        Entry(f"{n}/{asked}", marks=() if n == asked and asked else (INCOMPLETE,), runs=ids),
    ]
    for baseline in gathered.baselines:
        entries += _difference(block, name, baseline, gathered)
    return tuple(entries)


def _difference(block: Block, name: str, baseline: str, gathered: Gathered) -> tuple[Entry, Entry]:
    """Δ with its interval, and p: of two baselines, whose comparison stands once in the family, also the mirrored one."""
    if name == baseline:
        return EMPTY, EMPTY
    key, other = _key(block, name), _key(block, baseline)
    sign = 1 if (key, baseline) in gathered.differences else -1
    found = gathered.differences.get((key, baseline) if sign == 1 else (other, name))
    if found is None:  # the suite excludes one of the two, so it never asked
        return EMPTY, EMPTY
    runs = tuple(run["id"] for one in (key, other) for run in gathered.runs.get(one, []))
    if not found["n"]:
        return Entry(None, runs=runs), Entry(ABSENT, marks=(UNTESTED,), runs=runs)
    tested = not found["why"]
    low, high = sorted((sign * found["low_all"], sign * found["high_all"])) if tested else (0.0, 0.0)
    mark = MARKS[found["verdict"]]
    delta = Entry(
        sign * found["difference"],
        interval=(low, high) if tested else None,
        format=f"+z.{gathered.decimals}f",
        scale=gathered.scale,
        marks=tuple(filter(None, (mark if sign == 1 else MIRRORED.get(mark, mark),))),
        runs=runs,
    )
    p = Entry(found["p_holm"], format=".3f", least=LEAST_P, runs=runs) if tested else Entry(ABSENT, marks=(UNTESTED,), runs=runs)
    return delta, p
