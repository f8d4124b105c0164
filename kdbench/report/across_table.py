"""The table across pairs: mean ranks, wins and losses, and what can be expected of new pairs."""

from __future__ import annotations

from kdbench.report import entries
from kdbench.report.notes import untested_notes
from kdbench.report.study import Line, Study
from kdbench.report.table import Column, Entry, Group, Table, row


def across_table(study: Study) -> Table | None:
    """One row a baseline and objective, over all pairs; None with one pair or nothing to compare."""
    manifest, place = study.manifest, study.all_pairs
    if place.block is not None or not place.tests:
        return None
    new = any(line["new_low"] == line["new_low"] for line in place.tests.values())
    points, level = entries.points(manifest), entries.confidence(manifest)
    columns = [Column("loss", numeric=False), Column("pairs", essential=False), Column("better / same / worse"), Column("mean rank")]
    if new:
        columns += [Column(f"Δ{points} [{level} CI, mean of new pairs]"), Column(f"{level} prediction, one new pair")]
    ranks = {} if study.ranks is None else dict(zip(study.ranks["objective"], study.ranks["mean_rank"], strict=True))
    groups = []
    for baseline in place.baselines:
        rows = tuple(_row(line, study, ranks, new) for line in place.against(baseline))
        own = (f"Mean rank of {manifest.labels[baseline]}: {ranks[baseline]:.2f}.",) if baseline in ranks else ()
        notes = tuple(note for note in untested_notes(place.against(baseline), manifest.labels) if note.startswith("! "))
        groups.append(Group(f"compared with {manifest.labels[baseline]}", rows, own, notes))
    return Table(f"{manifest.primary.label} across pairs", tuple(columns), tuple(groups), _caption(study, new), name="across")


def _row(line: Line, study: Study, ranks: dict[str, float], new: bool) -> tuple[Entry, ...]:
    manifest = study.manifest
    beyond = [entries.difference(manifest, line, "new", "new_"), entries.interval(manifest, line["pair_low"], line["pair_high"])]
    return row(
        study.all_pairs.ids(line["objective"], line["baseline"]),
        Entry(manifest.labels[line["objective"]]),
        Entry(f"{line['n_pairs']}/{len(study.pairs)}"),
        Entry(f"{line['wins']} / {line['ties']} / {line['losses']}"),
        Entry(ranks.get(line["objective"]), format=".2f"),
        *(beyond if new else []),
    )


def _caption(study: Study, new: bool) -> tuple[str, ...]:
    tests = study.all_pairs.tests.values()
    scope = next((line["new_scope"] for line in tests if line["new_scope"]), "")
    first = "Over new pairs" if new else "No interval"
    return (
        "better / same / worse: in how many pairs the mean is better than that of the baseline, the same, or worse (tested or not).",
        "Mean ranks: among the losses that have a value in every pair; 1 is the best.",
        *((f"First interval: mean difference over many new pairs ({scope}). Second: difference in one new pair.",) if new else ()),
        *(f"{first}: {why}." for why in dict.fromkeys(line["new_why"] for line in tests if line["new_why"])),
    )
