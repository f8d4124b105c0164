"""Which blocks are independent of each other: blocks that share a student or a teacher are not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.stats.repeats import BLOCK

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Clusters:
    """How the blocks of a comparison hang together.

    label: the cluster of each block, counted from 0 in the order in which the clusters appear.
    unit: what a cluster is: "block" (nothing is shared), "component" (what hangs together by shared students and teachers), "student",
        "teacher", "dataset" (one pair on several data sets), "crossed" (everything hangs together) or "one" (one block).
    n: the number of clusters; 1 where everything hangs together.
    n_students, n_teachers: how many names there are.
    scope: what a claim over new clusters is about.
    sentence: the clusters in words.
    refusal: why no test that takes the clusters as independent may be made; empty where it may.
    """

    label: tuple[int, ...]
    unit: str
    n: int
    n_students: int
    n_teachers: int
    scope: str
    sentence: str
    refusal: str


def clusters(blocks: pd.DataFrame) -> Clusters:
    """The independent clusters of `blocks`.

    Blocks are edges between students and teachers; those that no path joins share nothing, so connected components are independent.
    Where there is one student (or teacher) only, the claim is for this one and the teachers (students) are the clusters. A teacher or a
    student with one name on several data sets counts as shared. Blocks without a teacher share the label "no teacher".

    Args:
        blocks: dataset, teacher, student, one row a block.

    Raises:
        ValueError: there is no block, or one stands there twice.
    """
    if not len(blocks):
        raise ValueError("no blocks: there is nothing to cluster")
    twice = blocks.duplicated(list(BLOCK))
    if twice.any():
        raise ValueError(f"a block stands there twice: {blocks.loc[twice, list(BLOCK)].iloc[0].to_dict()}")
    datasets = _codes(blocks["dataset"].tolist())
    teachers = _codes([name if isinstance(name, str) else None for name in blocks["teacher"]])
    students = _codes(blocks["student"].tolist())
    label, unit = _label(datasets, teachers, students)
    numbers = len(blocks), len(set(label)), len(set(students)), len(set(teachers)), len(set(datasets))
    one_student, one_teacher = str(blocks["student"].iloc[0]), blocks["teacher"].iloc[0]
    scope, sentence, refusal = _words(unit, numbers, one_student, one_teacher if isinstance(one_teacher, str) else "")
    return Clusters(tuple(label), unit, numbers[1], numbers[2], numbers[3], scope, sentence, refusal)


def _codes(names: Sequence[Hashable]) -> list[int]:
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return [places[name] for name in names]


def _label(datasets: list[int], teachers: list[int], students: list[int]) -> tuple[list[int], str]:
    n_students, n_teachers = len(set(students)), len(set(teachers))
    if len(students) == 1:
        return [0], "one"
    if n_students == n_teachers == 1:
        return datasets, "dataset"
    if n_students == 1:
        return teachers, "teacher"
    if n_teachers == 1:
        return students, "student"
    label = _components(teachers, students)
    n = len(set(label))
    return label, "crossed" if n == 1 else "block" if n == len(label) else "component"


def _components(teachers: list[int], students: list[int]) -> list[int]:
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = max(students) + 1 + max(teachers) + 1
    edges = coo_array((np.ones(len(students)), (students, np.add(teachers, max(students) + 1))), shape=(size, size))
    found = connected_components(edges, directed=False)[1]
    return _codes([int(found[student]) for student in students])


def _words(unit: str, numbers: tuple[int, int, int, int, int], student: str, teacher: str) -> tuple[str, str, str]:
    """Scope, sentence and refusal."""
    n_blocks, n, n_students, n_teachers, n_datasets = numbers
    here = f", on these {n_datasets} data sets" if n_datasets > 1 else ""
    whose = f"this teacher ({teacher})" if teacher else "students without a teacher"
    shared = f"{n_blocks} blocks of {n_students} students and {n_teachers} teachers"
    partly = "" if n_blocks >= n_students * n_teachers else "partly "
    crossed = f"students and teachers are {partly}crossed ({n_students} x {n_teachers}): there are no independent clusters"
    if unit == "block":
        return f"a new pair{here}", f"the {n} blocks share no student and no teacher: {n} independent clusters", ""
    if unit == "component":
        return f"a new pair{here}", f"{shared} share some of them: {n} independent clusters", ""
    if unit == "crossed":
        return f"a new pair{here}", crossed, crossed
    if unit == "student":
        return f"a new student, for {whose}{here}", f"one teacher: the {n} students are the clusters, and the claim is for {whose} only", ""
    if unit == "teacher":
        sentence = f"one student: the {n} teachers are the clusters, and the claim is for this student ({student}) only"
        # The luck of one student's initial weights, or of its runs without a teacher, moves all its blocks together: over 8 teachers
        # that differ in nothing a sign-flip test against cross-entropy says p <= .05 in 45 % of all cases.
        refusal = "one student: all blocks share its initial weights and its runs without a teacher, so no clusters are independent"
        return f"a new teacher, for this student ({student}){here}", sentence, refusal
    if unit == "dataset":
        return "a new data set, for this pair", f"one pair: the {n} data sets are the clusters, and the claim is for this pair only", ""
    return "", "one block: nothing shows how blocks differ", "one block: nothing shows how blocks differ"
