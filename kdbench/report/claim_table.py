"""The table of claims: what the suite checks, and whether its runs support it."""

from __future__ import annotations

from kdbench.report import entries
from kdbench.report.notes import UNTESTED, untested_notes
from kdbench.report.study import ROLES, Line, Study, lines, plural
from kdbench.report.table import ABSENT, Column, Entry, Group, Table, row

WORDS = {"equal": "{} equal to {}", "time": "{} faster than {}", "memory": "{} with less memory than {}"}
UNITS = {"time": ("ms", 1.0), "memory": ("MiB", 1024.0)}

COSTS = (
    "Costs are not tested. Such a comparison is supported if the cost is less in every pair, and contradicted if it is more in every pair; "
    "the quartiles of the steps must not overlap."
)


def claim_table(study: Study) -> Table | None:
    """A group a claim, in it a row a comparison; None where the suite has no claims."""
    manifest, table = study.manifest, study.claims
    if table is None:
        return None
    columns = (
        Column("comparison", numeric=False),
        Column(f"Δ{entries.points(manifest)} [{entries.confidence(manifest)} CI]"),
        *(Column(f"p, {verb} (corrected)", essential=False) for verb in ("supports", "contradicts")),
        Column("verdict", numeric=False),
    )
    groups = []
    for claim, (_, mine) in zip(manifest.claims, table.groupby("claim"), strict=True):
        found = [study.named(line) for line in lines(mine)]
        facts = (f"Source: {claim.source.removesuffix('.')}.",) if claim.source else ()
        title = f"{found[0]['claim_verdict'].capitalize()}: {claim.claim}"
        named = {_comparison(study, line): line for line in found}
        whole = [{**line, "objective": text, "baseline": ""} for text, line in named.items()]
        groups.append(
            Group(title, tuple(_row(study, line) for line in found), facts, tuple(untested_notes(whole, {name: name for name in named})))
        )
    return Table("Claims", columns, tuple(groups), _caption(study), name="claims")


def _comparison(study: Study, line: Line) -> str:
    return WORDS.get(line["relation"], f"{{}} {line['relation']} than {{}}").format(*(study.manifest.labels[line[role]] for role in ROLES))


def _row(study: Study, line: Line) -> tuple[Entry, ...]:
    manifest = study.manifest
    unit, scale = UNITS.get(line["relation"], ("", 1.0))
    known = line["difference"] == line["difference"]
    delta = Entry(f"{scale * line['difference']:+.2f} {unit}" if known else None) if unit else entries.difference(manifest, line)
    absent = Entry(ABSENT, marks=(UNTESTED,) if line["why"] else ())
    p = (absent if line["why"] else entries.p(manifest, line[f"p_{verb}"]) for verb in ("supports", "contradicts"))
    below = max(line["p_supports"], line["p_contradicts"]) < manifest.alpha and line["verdict"] != "undecided"
    verdict = Entry(f"{line['verdict']}{' (below the margin)' * below}")
    return row(study.all_pairs.ids(*(line[role] for role in ROLES)), Entry(_comparison(study, line)), delta, *p, verdict)


def _caption(study: Study) -> tuple[str, ...]:
    manifest = study.manifest
    costs = sum(one["relation"] in UNITS for one in manifest.claimed)
    margins = " or ".join(dict.fromkeys(entries.difference_text(manifest, claim.margin) for claim in manifest.claims if claim.margin))
    # Δ is as printed: below 0 is better where the metric is one of errors.
    above, under, plus, minus = ("above", "below", "", "minus ") if manifest.primary.higher_is_better else ("below", "above", "minus ", "")
    least = f"{plus}the margin ({margins})" if margins else "0, since there is no margin"
    return (
        f"Over all pairs, paired by repeat. The tests of {plural(len(manifest.claimed) - costs, 'comparison')} are corrected together: the "
        f"probability of any wrong supported or contradicted is at most {100 * manifest.alpha:g} %. Undecided does not mean wrong.",
        f"better: supported if Δ is shown to be {above} 0, contradicted if it is shown to be {under} {least}. not worse: if it is shown "
        f"to be {above} {minus}the margin, or {under}. equal: if it is shown to be within the margin, or outside. A claim is supported if "
        "each of its comparisons is, and contradicted if any is.",
        *([COSTS] if costs else []),
    )
