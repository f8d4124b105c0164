"""Everything that a report says of a suite, computed once: renderers, figures and warnings read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.report.comparison import comparisons, student_runs
from kdbench.report.images import Images
from kdbench.report.manifest import Manifest, block_frame
from kdbench.stats.across import across
from kdbench.stats.best import standings
from kdbench.stats.clusters import Clusters, clusters
from kdbench.stats.ranks import Friedman, friedman, mean_ranks
from kdbench.stats.repeats import repeat_means, summarise

if TYPE_CHECKING:
    import pandas as pd

Line = dict[str, Any]

LEAST_BLOCKS = 2
"""With one block there is nothing to say across blocks."""


@dataclass(frozen=True)
class Study:
    """Frames by what they are of.

    `runs`: a row a cell, as `frame.frame` makes it. `students`: the students' runs with the primary metric as `value`, standing in
    every block that they belong to. `summaries`: a row a block and objective (n, n_asked, mean, sd, standing). `comparisons`: a row
    a comparison of the suite's family, tested, with verdict. `across`: a row a baseline and objective, over blocks; None with fewer
    than two blocks. `costs`, `histories`, `terms`, `images`: as `frame.costs`, `history.histories`, `history.terms` and
    `images.load_images` make them; None where they were not read or are not there.
    """

    manifest: Manifest
    runs: pd.DataFrame
    students: pd.DataFrame
    summaries: pd.DataFrame
    comparisons: pd.DataFrame
    clusters: Clusters | None
    across: pd.DataFrame | None
    ranks: pd.DataFrame | None
    friedman: Friedman | None
    costs: pd.DataFrame
    histories: pd.DataFrame | None = None
    terms: pd.DataFrame | None = None
    images: Images | None = None


def study(runs: pd.DataFrame, costs: pd.DataFrame, manifest: Manifest) -> Study:
    """The statistics of a suite.

    Args:
        runs: as `frame.frame` makes it; the order of its rows does not matter.
        costs: as `frame.costs` makes it.
    """
    students = student_runs(runs, manifest)
    higher, alpha = manifest["metrics"][0]["higher_is_better"], manifest["alpha"]
    compared = comparisons(students, manifest)
    keys = ["dataset", "teacher", "student", "objective"]
    summaries = summarise(students).merge(standings(students, alpha, higher)[[*keys, "standing"]], on=keys, how="left")
    blocks = block_frame(manifest)
    several = len(blocks) >= LEAST_BLOCKS
    values = _labelled(repeat_means(students))
    return Study(
        manifest=manifest,
        runs=runs,
        students=students,
        summaries=summaries.assign(standing=summaries["standing"].fillna("")),
        comparisons=compared,
        clusters=clusters(blocks) if several else None,
        across=across(values, compared, alpha, blocks, compared, higher) if several else None,
        ranks=mean_ranks(_everywhere(values, blocks), higher) if several else None,
        friedman=friedman(_everywhere(values, blocks), blocks, alpha) if several else None,
        costs=costs,
    )


def _labelled(values: pd.DataFrame) -> pd.DataFrame:
    """Runs whose repeat is null, each as a repeat of its own that no other run has: over blocks they pair with nothing."""
    unknown = values["repeat"].isna()
    if not unknown.any():
        return values
    repeats = values["repeat"].astype(object).where(~unknown, [f"unknown {place}" for place in range(len(values))])
    return values.assign(repeat=repeats)


def _everywhere(values: pd.DataFrame, blocks: pd.DataFrame) -> pd.DataFrame:
    """The objectives that have a value in every block: ranks are among those that can be ranked everywhere."""
    known = values[values["value"].notna()]
    places = known.drop_duplicates(["objective", "dataset", "teacher", "student"])["objective"].value_counts()
    return values[values["objective"].isin(places[places == len(blocks)].index)]


def block_name(dataset: object, teacher: object, student: object) -> str:
    """`cifar100 · student resnet8 · teacher resnet20`."""
    taught = [f"teacher {teacher}"] if isinstance(teacher, str) and teacher else []
    return " · ".join([str(dataset), f"student {student}", *taught])


def lines(table: pd.DataFrame) -> list[Line]:
    """The rows of a frame as dictionaries, pandas' missing value as None."""
    import pandas as pd

    return [{str(name): None if value is pd.NA else value for name, value in line.items()} for line in table.to_dict(orient="records")]
