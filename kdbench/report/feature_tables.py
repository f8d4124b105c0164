"""The tables of features: similarity to the teacher by layer, and linear probes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from kdbench.manifest import Metric
from kdbench.report.main_table import main_tables
from kdbench.report.notes import INCOMPLETE, grouped
from kdbench.report.study import Line, Place, Study, lines, study
from kdbench.report.table import EMPTY, Column, Entry, Group, Table, row
from kdbench.stats.similarity import by_layer, layer_order
from kdbench.store.frame import line_key

CKA = (
    "Centred kernel alignment (CKA) of the features of student and teacher on the test images: 1 for features that are equal but for "
    "rotation and scale, about 0 for unrelated ones; mean ± standard deviation over repeats. Linear kernel, maps flattened, unbiased HSIC "
    "summed over batches (Nguyen et al. 2021).",
    "Networks that never saw the teacher are similar to it, too, since they learn from the same images: compare with the row of a student "
    "without a teacher and, where there is one, of the untrained teacher.",
)
PROBE = (
    "Logistic regression with L2 on the frozen, standardised pooled features of each trained network; the strength of L2 is chosen on "
    "20 % of the training images."
)


def cka_table(whole: Study) -> Table | None:
    """A row a loss, a column a layer of the student with that of the teacher it is paired with, a group a pair; None if not measured."""
    cka = whole.features.get("cka")
    if cka is None:
        return None
    known: dict[tuple[str, ...], Line] = {(*line_key(line), line["layer"]): line for line in lines(by_layer(cka, whole.students))}
    layers = layer_order(key[-1] for key in known)
    facts: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for line in lines(cka[cka["paired"] > 0].drop_duplicates(["dataset", "teacher", "student", "student_layer", "n_images", "n_skipped"])):
        mine = facts[line_key(line)[:3]]
        left = f"; {line['n_skipped']:.0f} images of a last batch that is too small are left out" if line["n_skipped"] else ""
        mine[f"{line['n_images']:.0f} test images in batches of {line['batch_size']:.0f}{left}."] = None
        if line["teacher_layer"] != line["student_layer"]:
            mine[f"The student's {line['student_layer']} is compared with the teacher's {line['teacher_layer']}."] = None
    groups = [_group(whole, place, known, layers, tuple(facts[key])) for key, place in whole.pairs.items() if key in facts]
    columns = (Column("loss", numeric=False), *map(Column, layers))
    return Table("Similarity to the teacher by layer (CKA)", columns, tuple(groups), CKA, name="cka")


def _group(whole: Study, place: Place, known: dict[tuple[str, ...], Line], layers: list[str], facts: tuple[str, ...]) -> Group:
    assert place.block is not None
    labels, rows, lacking = whole.manifest.labels, [], []
    its_layers = {key[-1] for key in known if key[:3] == place.block.key}
    for name in place.runs:
        boxes = []
        for layer in layers:
            line = known.get((*place.block.key, name, layer))
            short = line is not None and line["n"] < line["n_asked"]
            lacking += [(labels[name], f"{line['n']} of {line['n_asked']} repeats were measured")] if line and short else []
            there = Entry(line["mean"], line["sd"], format=".3f", marks=(INCOMPLETE,) * short) if line else EMPTY
            boxes.append(there if line or layer not in its_layers else Entry())
        rows.append(row(place.ids(name), Entry(labels[name]), *boxes))
    notes = [f"{INCOMPLETE} {', '.join(who)}: {what}; `kdbench features` measures the others" for what, who in grouped(lacking).items()]
    return Group(place.title, tuple(rows), facts, tuple(notes))


def probe_tables(whole: Study) -> list[Table]:
    """The main tables, with the accuracy of a linear probe in place of the metric: its comparisons are families of their own."""
    found: list[Table] = []
    for title, mine in whole.features["probe"].groupby("probe", sort=False) if "probe" in whole.features else ():
        # Whole images, of which a file holds six digits.
        values = dict(zip(mine["id"], (mine["accuracy"] * mine["n_test"]).round() / mine["n_test"], strict=True))
        metric = Metric("probe", "probe accuracy")
        manifest = replace(whole.manifest, metrics=(metric, *whole.manifest.metrics), margin=None)
        tables = main_tables(study(whole.runs.assign(probe_last=whole.runs["id"].map(values)), whole.costs, manifest))
        images = {f"{line['n_train']:.0f} training and {line['n_test']:.0f} test images" for line in lines(mine)}
        notes = (f"{title}: {', '.join(sorted(images))}.",)
        for table in tables:
            text, name = f"{table.title} (linear probe on {title})", f"probe_{len(found)}_{table.name}"
            found.append(replace(table, title=text, name=name, caption=(PROBE, *table.caption), notes=notes))
    return found
