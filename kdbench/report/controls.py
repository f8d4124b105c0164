"""Controls: what of a loss's gain is not due to the teacher's knowledge of the image, as a table, as notes, and as a check."""

from __future__ import annotations

from collections.abc import Iterator

from kdbench.report import entries
from kdbench.report.notes import UNTESTED, untested_notes
from kdbench.report.study import Line, Study, lines
from kdbench.report.table import ABSENT, Column, Entry, Group, Table, row

CAPTION = (
    "Each loss compared with its controls, over all pairs and paired by repeat. A loss that is not better than a control has not shown "
    "that what it takes from the teacher helps. p is two-sided, Holm-corrected for the comparisons of this table.",
    "weight 0: the terms of the loss have no weight, so that the training is that of the task's loss alone (of both views where there is a "
    "second). untrained teacher: the teacher "
    "has its initial weights. shuffled: the teacher's outputs are those of other images of the batch, of any images of the training set "
    "(globally), or of other images of the same class. inherits: the task's loss alone, with the same parts of the teacher as the loss.",
)


def _compared(study: Study) -> list[Line]:
    """Each objective with each of its controls, with its reasons in the labels' words."""
    return [] if study.controls is None else [study.named(line) for line in lines(study.controls)]


def control_table(study: Study) -> Table | None:
    """A row a loss and control; None without controls."""
    found, labels, manifest = _compared(study), study.manifest.labels, study.manifest
    if not found:
        return None
    rows = []
    for line in found:
        p = Entry(ABSENT, marks=(UNTESTED,)) if line["why"] else entries.p(manifest, line["p_holm"])
        control = labels[line["baseline"]].removeprefix(f"{labels[line['objective']]}, ")
        ids, loss = study.all_pairs.ids(line["objective"], line["baseline"]), Entry(labels[line["objective"]])
        rows.append(row(ids, loss, Entry(control), entries.difference(manifest, line), p, entries.verdict(line)))
    columns = (
        Column("loss", numeric=False),
        Column("control", numeric=False),
        Column(f"Δ to the control{entries.points(manifest)} [{entries.confidence(manifest)} CI]"),
        Column("p (Holm)", essential=False),
        Column("verdict", numeric=False),
    )
    group = Group(study.all_pairs.title, tuple(rows), notes=tuple(untested_notes(found, labels)))
    return Table("Controls", columns, (group,), CAPTION, name="controls")


def control_notes(study: Study) -> list[str]:
    """Of each loss, the controls than which it is not shown to be better."""
    labels = study.manifest.labels
    short: dict[str, list[str]] = {}
    for line in _compared(study):
        if (line["test"] or line["difference"] == 0) and not line["verdict"].startswith("better"):
            control = labels[line["baseline"]].removeprefix(f"{labels[line['objective']]}, ")
            short.setdefault(labels[line["objective"]], []).append(f"{control} ({entries.difference(study.manifest, line).text()})")
    return [f"{label} is not shown to be better than its controls: {'; '.join(texts)}" for label, texts in short.items()]


def zero_differs(study: Study) -> Iterator[str]:
    """Where a loss at weight 0 is not, bit for bit, the task's loss alone at the same weight."""
    if "weights_digest" not in study.runs:
        return
    runs = study.runs[study.runs["weights_digest"].notna()]
    for zero in (one for one in study.manifest.objectives if one.control == "zero"):
        one, other = runs[runs["objective"] == zero.name], runs[runs["objective"] == zero.reference]
        both = one.merge(other, on=["dataset", "student", "repeat"], suffixes=("", "_alone"))
        if count := int((both["weights_digest"] != both["weights_digest_alone"]).sum()):
            text = f"{zero.label} differs from {study.manifest.labels[zero.reference or '']} in {count} of {len(both)} runs"
            yield f"{text}: the loss acts by something else than its gradient, or deploys another model"
