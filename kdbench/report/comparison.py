"""From runs to the suite's fixed family of comparisons."""

from __future__ import annotations

import pandas as pd

from kdbench.manifest import Manifest
from kdbench.record import same_images
from kdbench.stats.compare import compare
from kdbench.stats.paired import family
from kdbench.stats.paper_claims import paper_claims
from kdbench.stats.repeats import block_keys, spread_over_blocks
from kdbench.store.frame import block_frame

KEPT = ("dataset", "teacher", "student", "objective", "repeat", "teacher_seed", "id", "state", "why", "n_train", "n_test")
CARRIED = ("device", "torch", "timm", "torchvision", "pillow", "code_version", "least_gradient", "selection")
"""Circumstances that warnings need, where the frame has them."""


def student_runs(table: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """The students' runs with the primary metric, each standing in every block that it belongs to.

    Of the runs of one dataset only those on the same data count: those whose data fingerprint is not that of most runs lose their value
    and have the state "excluded"; where no fingerprint has more runs than the next, all of them do.

    Args:
        table: as `frame.frame` makes it.

    Returns:
        KEPT, data_fingerprint, value (the primary metric at the last epoch, as stored), mixed_data (whether the value was taken away),
        and CARRIED where the table has them.
    """
    students = table[table["role"] == "student"]
    runs = students[[*KEPT, "data_fingerprint", *(name for name in CARRIED if name in table)]]
    strays = _strays(runs)
    value = students[f"{manifest.primary.name}_last"].mask(strays)
    runs = runs.assign(state=runs["state"].mask(strays, "excluded"), value=value, mixed_data=strays)
    return spread_over_blocks(runs, block_frame(manifest))


def _strays(runs: pd.DataFrame) -> pd.Series:
    """Which runs are on other data than most runs of their dataset."""
    strays = pd.Series(False, index=runs.index)
    for _, prints in runs.groupby("dataset", sort=False)["data_fingerprint"]:
        counts = prints.value_counts()
        # A fingerprint without the content's half counts as the commonest one that it can be.
        alike = {one: [other for other in counts.index if same_images(str(one), str(other))] for one in counts.index}
        whole = {one: max(others, key=lambda other: (len(str(other)), counts[other])) for one, others in alike.items()}
        prints = prints.map(whole)
        counts = prints.value_counts()
        if len(counts) > 1:
            usual = counts.index[0] if counts.iloc[0] > counts.iloc[1] else ""
            strays |= (prints.notna() & (prints != usual)).reindex(runs.index, fill_value=False)
    return strays


def asked(runs: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Every comparison that the suite fixes: dataset, teacher, student, baseline, objective.

    What the suite excludes from a block is in no comparison; what is missing or failed is, and stays in the family.

    Args:
        runs: as `student_runs` makes it.
    """
    return _planned(runs, family(block_frame(manifest), [objective.name for objective in manifest.compared], manifest.baselines))


def controlled(runs: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Each objective with each of its controls, as `asked` gives comparisons: the control is the baseline."""
    pairs = [(one.control_of, one.name) for one in manifest.objectives if one.control_of]
    pairs += [(one.name, one.reference) for one in manifest.objectives if one.reference and not one.control]
    every = block_frame(manifest).merge(pd.DataFrame(pairs, columns=["objective", "baseline"]), how="cross")
    return _planned(runs, every)


def claims(runs: pd.DataFrame, costs: pd.DataFrame, manifest: Manifest, collapsed: frozenset[str]) -> pd.DataFrame:
    """The verdicts on the suite's claims, as `stats.paper_claims` makes them."""
    measured = spread_over_blocks(costs[costs["state"] == "measured"], block_frame(manifest))
    asked = pd.DataFrame(manifest.claimed).astype({"margin": float})
    return paper_claims(runs, measured, asked, manifest.alpha, manifest.primary.higher_is_better, collapsed)


def _planned(runs: pd.DataFrame, every: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of which the suite plans both sides."""
    planned = set(block_keys(runs, "objective"))
    sides = [block_keys(every, side) for side in ("objective", "baseline")]
    return every.iloc[[place for place, (one, other) in enumerate(zip(*sides, strict=True)) if one in planned and other in planned]]


def comparisons(runs: pd.DataFrame, manifest: Manifest, collapsed: frozenset[str] = frozenset()) -> pd.DataFrame:
    """Every comparison of the suite, tested, adjusted over the whole family, and judged, as `stats.compare.compare` returns them.

    One row for each comparison that the suite fixed, run or not, so that choosing rows afterwards changes no p value.

    Args:
        runs: as `student_runs` makes it.
        collapsed: the objectives whose runs collapse: they get no verdict.
    """
    metric = manifest.primary
    return compare(runs, asked(runs, manifest), manifest.alpha, manifest.margin, metric.higher_is_better, collapsed)
