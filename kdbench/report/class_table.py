"""The accuracy of each class (of detectors: AP), where the classes are few; `images_per_class.csv` has them all."""

from __future__ import annotations

from kdbench.report.study import Study, by_key
from kdbench.report.table import Column, Entry, Group, Table

MOST_CLASSES = 20
OVER = "at the last epoch: mean ± standard deviation over repeats, and over the trainings of a teacher. The mean over the classes is"
CAPTION = f"Share of a class's test images that are right (its recall, %) {OVER} the balanced accuracy."
OF_DETECTORS = f"AP of a class, in points, {OVER} AP."


def class_table(study: Study) -> Table | None:
    """Rows are classes, columns the teacher and the losses, one group a pair; None without predictions or with many classes."""
    table = None if study.images is None else study.images.per_class
    if table is None or not 0 < len(table["class"].unique()) <= MOST_CLASSES:
        return None
    manifest, known = study.manifest, {key: {line["class"]: line for line in mine} for key, mine in by_key(table, 4).items()}
    labels = {"teacher": "teacher"} if (table["objective"] == "teacher").any() else {}
    labels |= {objective.name: objective.label for objective in manifest.compared}
    groups = []
    for (dataset, teacher, student), place in study.pairs.items():
        teachers = tuple(run["id"] for run in study.teachers_of(place))
        sides = {name: ((dataset, teacher, student, name), place.ids(name)) for name in labels}
        sides |= {"teacher": ((dataset, "", teacher, "teacher"), teachers)} if "teacher" in labels else {}
        rows = []
        for number in sorted({number for key, _ in sides.values() for number in known.get(key, ())}):
            found = [(known.get(key, {}).get(number, {}), runs) for key, runs in sides.values()]
            images = next((line.get("n_images") for line, _ in found if line), None)
            means = [Entry(line.get("mean"), line.get("sd"), format=".2f", scale=100.0, runs=runs) for line, runs in found]
            rows.append((Entry(number, format=".0f"), Entry(images, format=".0f"), *means))
        groups += [Group(place.title, tuple(rows))] if rows else []
    detectors = any(metric.per_image == "hits" for metric in manifest.metrics)
    columns = [Column("class"), Column("objects" if detectors else "images", essential=False), *map(Column, labels.values())]
    title, caption = ("AP of each class", OF_DETECTORS) if detectors else ("Accuracy of each class", CAPTION)
    return Table(title, tuple(columns), tuple(groups), (caption,), name="classes")
