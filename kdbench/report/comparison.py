"""From runs to the suite's fixed family of comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.report.manifest import Manifest, block_frame
from kdbench.stats.compare import compare
from kdbench.stats.paired import family
from kdbench.stats.repeats import spread_over_blocks

if TYPE_CHECKING:
    import pandas as pd

KEPT = ("dataset", "teacher", "student", "objective", "repeat", "teacher_seed", "id", "state", "why", "n_train", "n_test")
CARRIED = ("device", "torch", "timm", "torchvision", "pillow", "code_version", "host", "least_gradient", "idle_term", "selection")
"""Circumstances that warnings ask for, where the frame has them."""


def student_runs(table: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """The students' runs with the primary metric, each standing in every block that it belongs to.

    Where the runs of one dataset saw different data, their values are taken away: such runs are never compared or averaged.

    Args:
        table: as `frame.frame` makes it.

    Returns:
        dataset, teacher, student, objective, repeat, teacher_seed, id, state, why, n_train, n_test, data_fingerprint, value (the
        primary metric at the last epoch, as stored), mixed_data (whether its value was taken away), and the circumstances that the
        table has.
    """
    students = table[table["role"] == "student"]
    runs = students[[*KEPT, "data_fingerprint", *(name for name in CARRIED if name in table)]].copy()
    runs["value"] = students[f"{manifest['metrics'][0]['name']}_last"]
    mixed = runs.groupby("dataset")["data_fingerprint"].transform("nunique") > 1
    runs = runs.assign(value=runs["value"].mask(mixed), mixed_data=mixed)
    return spread_over_blocks(runs, block_frame(manifest))


def comparisons(runs: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Every comparison of the suite, tested, adjusted over the whole family, and judged.

    Args:
        runs: as `student_runs` makes it.

    Returns:
        The columns of `stats.compare.compare`; one row for each comparison that the suite fixed, run or not, so that choosing rows
        afterwards changes no p value.
    """
    objectives = [objective["name"] for objective in manifest["objectives"]]
    asked = family(block_frame(manifest), objectives, manifest["baselines"])
    # What the suite excludes was never asked; what is missing or failed was, and stays in the family.
    places = ["dataset", "teacher", "student"]
    planned = set(runs[[*places, "objective"]].itertuples(index=False, name=None))
    sides = [asked[[*places, side]].itertuples(index=False, name=None) for side in ("objective", "baseline")]
    kept = [place for place, (one, other) in enumerate(zip(*sides, strict=True)) if one in planned and other in planned]
    return compare(runs, asked.iloc[kept], manifest["alpha"], manifest.get("margin"), manifest["metrics"][0]["higher_is_better"])
