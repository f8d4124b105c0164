"""Runs that collapse: far from the other runs of their objective, so that no t test on them is valid."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdbench.stats.repeats import BLOCK

FAR = 5.2
"""A run collapses when it lies further than so many robust standard deviations from the median of its objective in its pair. This limit
and the next two are set by simulation: fewer than 1 in 1,000 suites of 240 normal runs are marked, and nearly no collapse is missed."""
INSIDE = 5.5
"""An objective's own spread is that of its runs within so many standard deviations of all objectives."""
OWN, NATURAL = 0.8, 3.0
"""This share of the own spread is an objective's scale, up to so many times the spread of all objectives."""
ENOUGH = 10
"""With fewer runs off their medians than this, an objective's own spread is not known well enough."""
ROUNDING = 1e-12
"""What differs by less than this share of the value differs by the rounding of floating point only."""


def collapsed_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs that lie far from the median of their objective in their pair, or belong to an objective that spreads too much.

    The scale of a deviation is the robust standard deviation of all objectives of the dataset together. Where an objective spreads more
    and has enough runs, a share of its own spread is used. So a loss that varies somewhat more than others does not count as collapsed,
    a collapsed run does not widen the scale that it is measured by, and the runs of a loss that spreads many times more than the others
    are far. docs/error_rates.md has the simulated rates.

    Args:
        runs: dataset, teacher, student, objective, repeat, value, and `state` where there is one: only finished runs count.

    Returns:
        dataset, teacher, student, objective, repeat, value, centre (the median of the objective in its pair), deviation (value minus
        centre, in robust standard deviations), one row a run, in the order of `runs`. An objective with any row collapses.
    """
    usable = np.isfinite(runs["value"].astype(float))
    if "state" in runs:
        usable &= runs["state"] == "finished"
    found = runs[usable].reset_index(drop=True)
    value = found["value"].to_numpy(dtype=float)
    centre = found.groupby([*BLOCK, "objective"], dropna=False)["value"].transform("median").to_numpy(dtype=float)
    dataset = found.groupby("dataset").ngroup().to_numpy()
    objective = found.groupby(["dataset", "objective"]).ngroup().to_numpy()
    off = np.where(np.abs(value - centre) <= ROUNDING * np.abs(centre), 0.0, value - centre)
    found = found.assign(value=value, centre=centre, deviation=deviations(off, objective, dataset))
    return found.loc[found["deviation"].abs() > FAR, [*BLOCK, "objective", "repeat", "value", "centre", "deviation"]]


def deviations(off: np.ndarray, objective: np.ndarray, dataset: np.ndarray) -> np.ndarray:
    """The distances `off` from the medians in robust standard deviations, [run].

    Args:
        off: [run], value minus median.
        objective, dataset: [run], numbers from 0; an objective belongs to one dataset.
    """
    pooled = np.array([_pooled(off[dataset == one]) for one in range(dataset.max(initial=-1) + 1)])[dataset]
    inside = (off != 0) & (np.abs(off) <= INSIDE * pooled)
    count, squares = np.bincount(objective, inside), np.bincount(objective, np.where(inside, off**2, 0.0))
    own = OWN * np.sqrt(np.where(count >= ENOUGH, squares / np.maximum(count, 1), 0.0))[objective]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(off == 0, 0.0, off / np.clip(own, pooled, NATURAL * pooled))


def _pooled(off: np.ndarray) -> float:
    """The standard deviation from the distances to the medians, without those beyond three by the median distance.

    Distances of zero are left out: the median of an odd number of runs is one of them, and rounded accuracies have ties.
    """
    away = np.sort(np.abs(off[off != 0]))
    if not len(away):
        return 0.0
    kept = away[away <= 3 * 1.4826 * away[(len(away) - 1) // 2]]
    return float(np.sqrt(np.mean(kept**2)))
