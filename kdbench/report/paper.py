"""The layout of a paper: a row a pair, a column an objective, as in Table 1 of Saha et al. (BMVC 2022)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from kdbench.report import caption
from kdbench.report.accuracy import EMPHASIS, MARKS, MIRRORED
from kdbench.report.frame import shortfall
from kdbench.report.manifest import Block, Manifest, Metric, labels
from kdbench.report.notes import INCOMPLETE, UNTESTED, incomplete_notes
from kdbench.report.study import lines
from kdbench.report.table import EMPTY, Column, Entry, Group, Table

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "kd"
"""The baseline that the marks are against, where it is one."""

Line = dict[str, Any]
Key = tuple[str, str, str, str]
"""Dataset, teacher (empty: none), student, objective."""


@dataclass(frozen=True)
class Found:
    """Everything the table is made of. `columns`: the objectives, those trained without a teacher first; `alone`: the latter."""

    manifest: Manifest
    columns: tuple[str, ...]
    alone: frozenset[str]
    reference: str | None
    summaries: dict[Key, Line]
    runs: dict[Key, list[Line]]
    comparisons: dict[tuple[Key, str], Line]
    teachers: dict[tuple[str, str], list[Line]]

    @property
    def metric(self) -> Metric:
        return self.manifest["metrics"][0]

    def number(self) -> dict[str, Any]:
        return {"format": ".2f", "scale": 100.0} if self.metric["percent"] else {"format": ".4f"}


def paper_table(
    summaries: pd.DataFrame, students: pd.DataFrame, comparisons: pd.DataFrame, manifest: Manifest, teachers: pd.DataFrame
) -> Table:
    """One row a teacher, grouped by student: the student alone, each distillation objective, the teacher alone.

    Args:
        summaries: dataset, teacher, student, objective, n, n_asked, mean, sd, standing; one row a block and objective.
        students: the students' runs in every block that they belong to, as `comparison.student_runs` makes them.
        comparisons: the suite's family as `comparison.comparisons` makes it (baseline, objective, n, why, verdict, verdict_why, test).
        teachers: the rows of `frame.frame` with the role teacher.
    """
    found = _gather(summaries, students, comparisons, manifest, teachers)
    metric, names = found.metric, labels(manifest)
    datasets = list(dict.fromkeys(block["dataset"] for block in manifest["blocks"]))
    titles = [f"Student alone ({names[name]})" if name in found.alone else names[name] for name in found.columns]
    by_student: dict[tuple[str, str], list[Block]] = defaultdict(list)
    for block in manifest["blocks"]:
        by_student[block["dataset"], block["student"]].append(block)
    unit = " in %" if metric["percent"] else ""
    return Table(
        title=f"{metric['label']}{unit} of students{f' on {datasets[0]}' if len(datasets) == 1 else ''}, by teacher and objective",
        columns=(Column("teacher", numeric=False), *map(Column, titles), Column("Teacher alone")),
        groups=tuple(_group(blocks, found, len(datasets) > 1) for blocks in by_student.values()),
        caption=_caption(found, students, comparisons),
        name="paper",
    )


def _gather(
    summaries: pd.DataFrame, students: pd.DataFrame, comparisons: pd.DataFrame, manifest: Manifest, teachers: pd.DataFrame
) -> Found:
    cells = [cell for cell in manifest["cells"] if cell["role"] == "student"]
    taught = {cell["objective"] for cell in cells if cell["teacher"] is not None}
    names = list(labels(manifest))
    alone = frozenset(name for name in names if name not in taught and any(cell["objective"] == name for cell in cells))
    known = [name for name in manifest["baselines"] if name in names]
    runs: dict[Key, list[Line]] = defaultdict(list)
    for run in lines(students.sort_values(["repeat", "teacher_seed", "id"])):
        runs[_key(run)].append(run)
    by_name: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines(teachers.sort_values(["teacher_seed", "id"])):
        by_name[line["dataset"], line["student"]].append(line)
    return Found(
        manifest,
        columns=tuple(sorted(names, key=lambda name: name not in alone)),
        alone=alone,
        reference=REFERENCE if REFERENCE in known else next(iter(known), None),
        summaries={_key(line): line for line in lines(summaries)},
        runs=runs,
        comparisons={(_key(line), line["baseline"]): line for line in lines(comparisons)},
        teachers=by_name,
    )


def _key(line: Mapping[str, Any], objective: str | None = None) -> Key:
    teacher = line["teacher"] if isinstance(line["teacher"], str) else ""
    return line["dataset"], teacher, line["student"], objective or line["objective"]


def _group(blocks: Sequence[Block], found: Found, with_dataset: bool) -> Group:
    first = blocks[0]
    return Group(
        title=f"{first['dataset']} · student {first['student']}" if with_dataset else f"student {first['student']}",
        rows=tuple(_row(block, found) for block in blocks),
        facts=_facts(blocks, found),
        notes=(*_incomplete(blocks, found), *_untested(blocks, found), *_teacher_notes(blocks, found)),
    )


def _row(block: Block, found: Found) -> tuple[Entry, ...]:
    entries = [Entry(block["teacher"] if block["teacher"] else None)]
    return (*entries, *(_student(block, name, found) for name in found.columns), _teacher(block, found))


def _student(block: Block, name: str, found: Found) -> Entry:
    key = _key(block, name)
    if key not in found.runs:  # what the suite excludes was never asked
        return EMPTY
    summary = found.summaries[key]
    n = summary["n"]
    marks = (_verdict(block, name, found), INCOMPLETE if n < summary["n_asked"] else "")
    return Entry(
        summary["mean"] if n else None,
        spread=summary["sd"] if n > 1 else None,
        **found.number(),
        marks=tuple(filter(None, marks)),
        emphasis=EMPHASIS.get(summary["standing"], ""),
        runs=tuple(run["id"] for run in found.runs[key]),
    )


def _verdict(block: Block, name: str, found: Found) -> str:
    """The mark of an objective against the reference: of two baselines the comparison stands once, so it may be the mirrored one."""
    line, mirrored = _compared(block, name, found)
    if line is None:
        return ""
    if line["why"]:
        return UNTESTED
    mark = MARKS[line["verdict"]]
    return MIRRORED.get(mark, mark) if mirrored else mark


def _compared(block: Block, name: str, found: Found) -> tuple[Line | None, bool]:
    if found.reference is None or name == found.reference:
        return None, False
    straight = found.comparisons.get((_key(block, name), found.reference))
    return (straight, False) if straight else (found.comparisons.get((_key(block, found.reference), name)), True)


def _teacher(block: Block, found: Found) -> Entry:
    """The teacher by itself, as a mean over its trainings."""
    if not block["teacher"]:
        return EMPTY
    trained = found.teachers.get((block["dataset"], block["teacher"]), [])
    values = _values(trained, found)
    return Entry(
        mean(values) if values else None,
        spread=stdev(values) if len(values) > 1 else None,
        **found.number(),
        marks=() if trained and len(values) == len(trained) else (INCOMPLETE,),
        runs=tuple(line["id"] for line in trained),
    )


def _values(trained: Sequence[Line], found: Found) -> list[float]:
    values = [line[f"{found.metric['name']}_last"] for line in trained if line["state"] == "finished"]
    return [value for value in values if value is not None and value == value]


def _with(label: str, name: str, block: Block, found: Found) -> str:
    """What a note calls an objective of a row: those trained without a teacher are the same in every row."""
    return label if name in found.alone or not block["teacher"] else f"{label} from {block['teacher']}"


def _incomplete(blocks: Sequence[Block], found: Found) -> list[str]:
    runs: dict[str, list[Line]] = {}
    complete: dict[str, int] = {}
    for name, label in labels(found.manifest).items():
        for block in blocks:
            key, shown = _key(block, name), _with(label, name, block, found)
            if key in found.runs:
                runs[shown], complete[shown] = found.runs[key], found.summaries[key]["n"]
    return incomplete_notes(runs, complete)


def _untested(blocks: Sequence[Block], found: Found) -> list[str]:
    """One note for each reason why marks are lacking, with whom it holds for, unless it is everybody."""
    names = labels(found.manifest)
    said: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    asked = 0
    for block in blocks:
        for name, label in names.items():
            line, _ = _compared(block, name, found)
            asked += line is not None
            if line is not None and line["why"]:
                said[line["why"]][block["teacher"] or ""].append(label)
    notes = []
    for why, by_teacher in said.items():
        everybody = sum(map(len, by_teacher.values())) == asked
        who = "; ".join(", ".join(those) + (f" from {teacher}" if teacher else "") for teacher, those in by_teacher.items())
        notes.append(f"{UNTESTED} {'all' if everybody else who}: not compared with {names[found.reference or '']}, {why}")
    return notes


def _teacher_notes(blocks: Sequence[Block], found: Found) -> list[str]:
    notes = []
    for block in blocks:
        if not block["teacher"]:
            continue
        trained = found.teachers.get((block["dataset"], block["teacher"]), [])
        complete = len(_values(trained, found))
        if trained and complete == len(trained):
            continue
        reasons = [
            f"run {line['id']} {line['state']}{', ' + line['why'] if line['why'] else ''}" for line in trained if not _values([line], found)
        ]
        lacking = (
            f"{complete} of {len(trained)} trainings have a value; {'; '.join(reasons)}" if trained else "it was not trained in this suite"
        )
        notes.append(f"{INCOMPLETE} teacher {block['teacher']}: {lacking}")
    return notes


def _facts(blocks: Sequence[Block], found: Found) -> tuple[str, ...]:
    every = [run for block in blocks for name in found.columns for run in found.runs.get(_key(block, name), [])]
    finished = [run for run in every if run["state"] == "finished"]
    facts = []
    if any(run.get("mixed_data") for run in finished):
        facts.append("These runs saw different data (see data_fingerprint in the frame): they are neither averaged nor compared.")
    if finished:
        facts.append(f"{_counts(finished, 'n_train')} training images, {_counts(finished, 'n_test')} test images.")
    trained = [line for block in blocks for line in found.teachers.get((block["dataset"], block["teacher"] or ""), [])]
    below = [(line["student"], shortfall(found.manifest, line["id"], line)) for line in trained if line["state"] == "finished"]
    return (*facts, *(f"Teacher {name}: {what}." for name, what in below if what))


def _counts(runs: Sequence[Line], name: str) -> str:
    known = sorted({int(run[name]) for run in runs if run[name] is not None and run[name] == run[name]})
    return " or ".join(map(str, known)) or "an unknown number of"


def _caption(found: Found, students: pd.DataFrame, comparisons: pd.DataFrame) -> tuple[str, ...]:
    manifest, metric = found.manifest, found.metric
    rules = sorted({str(rule) for rule in students["selection"].dropna()}) if "selection" in students else []
    chosen = f"(checkpoint: {', '.join(rules)})" if rules else "at the last epoch"
    better = "higher" if metric["higher_is_better"] else "lower"
    counts = sorted({line["n_asked"] for line in found.summaries.values()})
    repeats = " or ".join(map(str, counts)) if counts else str(manifest["repeats"])
    return (
        f"{metric['label']} on the test set {chosen} ({better} is better): mean ± sample standard deviation (ddof = 1) over n = {repeats} "
        "repeats. Runs that diverged, failed or are missing are in no number and are marked †: a mean over survivors may flatter.",
        *_standing_sentence(found),
        *_verdict_sentences(found, comparisons),
        *caption.teacher_sentence(manifest),
        "Teacher alone: the teacher's own test result. All claims are for this test set.",
        *caption.weight_sentences(manifest),
        *(f"Assumed: {line}" for line in manifest.get("assumed", [])),
    )


def _standing_sentence(found: Found) -> list[str]:
    standings = {line["standing"] for line in found.summaries.values()}
    if "best" not in standings:
        return []
    tied = "; underlined: not distinguishable from the best, its selection counted" if "tied" in standings else ""
    return [f"Bold: the best mean of a row, of objectives none of whose runs failed{tied}."]


def _verdict_sentences(found: Found, comparisons: pd.DataFrame) -> list[str]:
    names = labels(found.manifest)
    if found.reference is None or not len(comparisons):
        return ["The suite compares nothing: no baseline is among its objectives beside another objective."]
    m = len(comparisons)
    tests = [name for name in dict.fromkeys(comparisons["test"]) if name] or ["paired t"]
    known = " and ".join(names[name] for name in found.manifest["baselines"] if name in names)
    others = [names[name] for name in found.manifest["baselines"] if name in names and name != found.reference]
    beside = f"; those against {' and '.join(others)} stand in the table of comparisons" if others else ""
    return [
        f"Marks are verdicts against {names[found.reference]} with the same teacher{beside}. {caption.mark_sentence(found.manifest)}",
        f"p: two-sided {' or '.join(tests)}{', by repeat' if 'paired t' in tests else ''}, by Holm in each direction over the family of "
        f"m = {m} comparisons that the suite fixes (every objective with {known} in every block; two baselines count once; what cannot be "
        "tested counts as p = 1).",
    ]
