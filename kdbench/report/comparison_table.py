"""The table of comparisons: everything that was tested in both families, and what these repeats could have found."""

from __future__ import annotations

from kdbench.report import entries
from kdbench.report.notes import untested_notes
from kdbench.report.study import Line, Place, Study
from kdbench.report.table import Column, Entry, Group, Table, row
from kdbench.stats.power import detectable_difference, repeats_needed

MANY, LEAST_EFFECT = 1000, 0.08
"""Repeats beyond which their number is not printed; effects (in sd) that are less than this need more."""


def comparison_table(study: Study) -> Table | None:
    """One row a comparison of each family, all pairs first; None where the suite compares nothing."""
    manifest = study.manifest
    points, level = entries.points(manifest), entries.confidence(manifest)
    details = ("d_z", "p", "p (Holm)", "p equal (Holm)", "ρ", f"detectable{points}", "n needed")
    columns = (
        Column("comparison", numeric=False),
        Column("test", numeric=False, essential=False),
        Column("n", essential=False),
        Column(f"Δ{points} [{level} CI]"),
        Column(f"simultaneous {level} CI", essential=False),
        *(Column(title, essential=title == "p (Holm)") for title in details),
        Column("verdict", numeric=False),
    )
    groups = tuple(
        Group(
            place.title,
            tuple(_row(line, study, place) for line in place.tests.values()),
            notes=tuple(untested_notes(place.tests.values(), manifest.labels)),
        )
        for place in study.places
        if place.tests
    )
    return Table(f"Comparisons of {manifest.primary.label}", columns, groups, _caption(study), name="comparisons") if groups else None


def _row(line: Line, study: Study, place: Place) -> tuple[Entry, ...]:
    manifest = study.manifest
    paired = line["test"] == "paired t"
    least = line["sd"] * detectable_difference(int(line["n"]), manifest.alpha, place.m) if paired else None
    return row(
        place.ids(line["objective"], line["baseline"]),
        Entry(f"{manifest.labels[line['objective']]} - {manifest.labels[line['baseline']]}"),
        Entry(line["test"] or "–"),
        Entry(float(line["n"]), format=".0f"),
        entries.difference(manifest, line),
        entries.interval(manifest, line["low_all"], line["high_all"]),
        Entry(line["d_z"], format="+.2f"),
        *(entries.p(manifest, line[name]) for name in ("p", "p_holm", "p_equal_holm")),
        Entry(line["correlation"], format="+.2f"),
        entries.number(manifest, least),
        _needed((manifest.margin or 0) / line["sd"], manifest.alpha, place.m) if paired and line["sd"] > 0 else Entry(),
        entries.verdict(line),
    )


def _needed(effect: float, alpha: float, m: int) -> Entry:
    """How many repeats find an effect (the margin, in sd) with 80 % power at Holm's strictest step; nothing without a margin."""
    if not effect:
        return Entry()
    n = MANY + 1 if effect < LEAST_EFFECT else repeats_needed(round(effect, 3), alpha, m)
    return Entry(f">{MANY}" if n > MANY else float(n), format=".0f")


def _caption(study: Study) -> tuple[str, ...]:
    margin = study.manifest.margin
    least = "" if margin is None else f" of {entries.difference_text(study.manifest, margin)}"
    families = f"m = {len(study.comparisons)}" + (f" (pair by pair), m = {len(study.overall)} (all pairs)" if len(study.pairs) > 1 else "")
    needed = f"; n needed: repeats that find a difference{least} with the same power" if least else ""
    equal = (
        f" p equal: p of the hypothesis that Δ lies outside the margin{least} (two one-sided t tests), Holm over the same family."
        if least
        else ""
    )
    return (
        f"n: repeats that both losses have. CI: of this comparison alone; simultaneous: all of a family together (Bonferroni), {families}.",
        f"d_z: Δ over the standard deviation of the paired differences. ρ: correlation of the paired runs.{equal}",
        f"detectable: difference found with 80 % power at the observed spread, at the strictest step of Holm{needed}.",
    )
