"""The table across blocks: what holds over pairs of student and teacher, and for whom."""

from __future__ import annotations

from typing import Any

from kdbench.report.accuracy import LEAST_P, confidence
from kdbench.report.manifest import labels
from kdbench.report.study import Study, lines
from kdbench.report.table import ABSENT, Column, Entry, Group, Table


def across_blocks(study: Study) -> Table | None:
    """One row a baseline and objective, over all blocks; None with fewer than two blocks or nothing to compare."""
    if study.across is None or not len(study.across):
        return None
    manifest = study.manifest
    metric = manifest["metrics"][0]
    points = ", points" if metric["percent"] else ""
    level = confidence(manifest)
    columns = (
        Column("objective", numeric=False),
        Column("blocks"),
        Column(f"Δ{points} [{level} these blocks]"),
        Column(f"Δ{points} [{level} a new block]"),
        Column("win / tie / loss"),
        Column("shown better / worse"),
        Column("p sign-flip"),
        Column("p Wilcoxon"),
        Column("p Wilcoxon, blocks as if independent"),
        Column("mean rank"),
    )
    ranks = {} if study.ranks is None else {line["objective"]: line for line in lines(study.ranks)}
    names = labels(manifest)
    runs: dict[str, tuple[str, ...]] = {}
    for name, mine in study.students.groupby("objective", sort=False):
        runs[str(name)] = tuple(dict.fromkeys(mine["id"]))
    groups = []
    rows = lines(study.across)
    for baseline in dict.fromkeys(line["baseline"] for line in rows):
        of_it = [line for line in rows if line["baseline"] == baseline]
        own = ranks.get(baseline)
        facts = () if own is None else (f"Mean rank of {names[baseline]}: {own['mean_rank']:.2f} over {own['n_blocks']} blocks.",)
        entries = tuple(_row(line, study, ranks, runs, names) for line in of_it)
        groups.append(Group(f"Δ to {names[baseline]}", entries, facts, _notes(of_it)))
    return Table(f"{metric['label']} across blocks", columns, tuple(groups), _caption(study), name="across")


def _row(
    line: dict[str, Any], study: Study, ranks: dict[str, Any], runs: dict[str, tuple[str, ...]], names: dict[str, str]
) -> tuple[Entry, ...]:
    percent = study.manifest["metrics"][0]["percent"]
    scale, form = (100.0, "+z.2f") if percent else (1.0, "+z.4f")
    ids = (*runs.get(line["objective"], ()), *runs.get(line["baseline"], ()))

    def delta(centre: str, low: str, high: str) -> Entry:
        known = line[low] == line[low]
        return Entry(_known(line[centre]), format=form, scale=scale, interval=(line[low], line[high]) if known else None, runs=ids)

    def p(name: str) -> Entry:
        return Entry(_known(line[name]), format=".3f", least=LEAST_P, runs=ids)

    rank = ranks.get(line["objective"])
    mine = (study.comparisons["baseline"] == line["baseline"]) & (study.comparisons["objective"] == line["objective"])
    tested = (study.comparisons.loc[mine, "why"] == "").any()
    shown = f"{line['wins_shown']:.0f} / {line['losses_shown']:.0f}" if tested else ABSENT
    return (
        Entry(names[line["objective"]], runs=ids),
        Entry(f"{line['n_blocks']}/{line['n_blocks_asked']}", runs=ids),
        delta("difference" if line["these"] != line["these"] else "these", "these_low", "these_high"),
        delta("new", "new_low", "new_high"),
        Entry(f"{line['wins']} / {line['ties']} / {line['losses']}", runs=ids),
        Entry(shown, runs=ids),
        p("sign_flip_p_holm"),
        p("wilcoxon_p_holm"),
        Entry(_known(line["wilcoxon_blocks_p"]), format=".4f", least=0.0001, runs=ids),
        Entry(None if rank is None else rank["mean_rank"], format=".2f", runs=ids),
    )


def _known(value: float) -> float | None:
    return value if value == value else None


def _notes(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    said = []
    for name, words in (
        ("these_why", "these blocks"),
        ("new_why", "a new block"),
        ("sign_flip_why", "sign-flip"),
        ("wilcoxon_why", "Wilcoxon"),
    ):
        said += [f"– {words}: {why}" for why in dict.fromkeys(line[name] for line in rows if line[name])]
    return tuple(dict.fromkeys(said))


def _caption(study: Study) -> tuple[str, ...]:
    assert study.across is not None and study.clusters is not None
    first = lines(study.across)[0]
    said = [
        "Δ is the mean over blocks of objective minus baseline. these blocks: for exactly these students and teachers, over new repeats"
        + (" (by repeat, since repeats share images and order in all blocks)" if first["these_by"] == "repeats" else "")
        + f". a new block: for {study.clusters.scope}. Each interval is of its own row "
        "alone.",
        study.clusters.sentence,
        "win / tie / loss: blocks by the sign of the mean difference, shown or not; shown: blocks whose verdict is better, or worse. "
        "p sign-flip and p Wilcoxon: exact, over independent clusters, by Holm over the rows of this table. The last p takes every block "
        "as independent, as the literature does, which they are not: it is printed to compare with papers. Mean ranks are among the "
        "objectives that have a value in every block.",
    ]
    told = study.friedman
    if told is not None:
        known = told.p == told.p
        said.append(f"Friedman's test over {told.n} independent clusters: {f'p = {told.p:.2g}' if known else told.why}.")
        if told.p_blocks == told.p_blocks:
            said.append(f"Friedman's test with all {told.n_blocks} blocks as if independent: p = {told.p_blocks:.2g}.")
    return tuple(sentence for sentence in said if sentence)
