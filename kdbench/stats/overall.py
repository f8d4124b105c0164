"""The mean over all pairs of a suite: the comparison that a suite is made for, its primary family.

A pair is a student with a teacher on a dataset (in code a block). The verdicts are about these pairs; `new_pairs`
estimates how far the same differences hold for others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kdbench.stats.compare import judge
from kdbench.stats.new_pairs import NewPairs, new_pairs
from kdbench.stats.paired import LEAST, paired_differences
from kdbench.stats.repeats import BLOCK, block_key, block_keys, repeat_means, run_counts, summarise

Key = tuple[str, ...]
Value = tuple[Any, float]
"""A repeat and its value; a null repeat has no number."""


def overall(
    runs: pd.DataFrame,
    asked: pd.DataFrame,
    alpha: float = 0.05,
    margin: float | None = None,
    higher_is_better: bool = True,
    collapsed: Collection[str] = frozenset(),
) -> pd.DataFrame:
    """Each objective with each baseline over all pairs in which both are asked, as `compare.compare` tests it in one pair.

    What is compared is the mean over the pairs of each repeat's value. A repeat counts where both have it complete in all these pairs.
    Where their repeats do not match, it is Welch's t, over the repeats that each side has complete in all pairs. Runs without a repeat's
    number cannot be joined over pairs. With one pair the rows are those of `compare.compare`.

    Args:
        runs, asked, alpha, margin, higher_is_better, collapsed: as for `compare.compare`.

    Returns:
        One row a (baseline, objective), in the order of `asked`: baseline, objective, n_pairs_asked (pairs in which the suite asks the
        comparison), n_pairs (those in which both have a complete repeat; where it is less, nothing is tested), the columns of
        `compare.compare` from n_asked on (runs and failed runs are counted over all these pairs), wins, ties, losses (pairs by the sign
        of their difference; a win is better) and the fields of `new_pairs.NewPairs`.

    Raises:
        ValueError: as `compare.compare`.
    """
    within = paired_differences(runs, asked, alpha)
    for role in ("objective", "baseline"):
        within[f"failed_{role}"], within[f"runs_{role}"] = run_counts(runs, within, role)
    values = _values(repeat_means(runs))
    # The groups in the order in which `asked` names them, the pairs of each in an order that does not depend on that of the rows.
    groups: dict[Any, pd.DataFrame] = dict(iter(within.groupby(["baseline", "objective"], sort=False)))
    places = {pair: _places(part) for pair, part in groups.items()}
    names: list[dict[str, Any]] = [
        {"dataset": "", "teacher": "", "student": str(at), "baseline": one, "objective": two} for at, (one, two) in enumerate(groups)
    ]
    means = [
        {**row, "objective": name, "repeat": repeat, "teacher_seed": None, "value": value}
        for row, pair in zip(names, groups, strict=True)
        for name in pair
        for repeat, value in _over_pairs([values.get((*place, name), []) for place in places[pair]])
    ]
    frame = pd.DataFrame(means, columns=[*BLOCK, "objective", "repeat", "teacher_seed", "value"])
    comparisons = pd.DataFrame(names, columns=[*BLOCK, "baseline", "objective"], dtype=object)
    found = paired_differences(frame.astype({"value": float}), comparisons, alpha).drop(columns=list(BLOCK))
    for name in ("failed_objective", "runs_objective", "failed_baseline", "runs_baseline"):
        found[name] = [int(part[name].sum()) for part in groups.values()]
    found.insert(2, "n_pairs_asked", [len(part) for part in groups.values()])
    found.insert(2, "n_pairs", [int(((part["n_objective"] > 0) & (part["n_baseline"] > 0)).sum()) for part in groups.values()])
    unnamed = set(runs.loc[runs["repeat"].isna(), "objective"])
    found["why"] = [_why(row, part, unnamed) for row, part in zip(found.to_dict(orient="records"), groups.values(), strict=True)]
    found = judge(found, alpha, margin, higher_is_better, collapsed)
    sign = 1 if higher_is_better else -1
    for name, wanted in (("wins", sign), ("ties", 0), ("losses", -sign)):
        found[name] = [int((np.sign(part["difference"]) == wanted).sum()) for part in groups.values()]
    half = (found["high"] - found["low"]) / 2
    beyond = [new_pairs(part[part["difference"].notna()], at, alpha) for part, at in zip(groups.values(), half, strict=True)]
    return found.join(pd.DataFrame(beyond, columns=NewPairs._fields))


def overall_summaries(runs: pd.DataFrame, blocks: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of each objective's mean over the pairs, repeat by repeat.

    Args:
        runs: as for `repeats.repeat_means`.
        blocks: dataset, teacher, student: all pairs.

    Returns:
        objective, n_pairs (those for which it has runs), n (repeats complete in all of these), n_asked (repeats), mean, sd (over the
        repeats, ddof = 1), in the order in which `runs` names the objectives.
    """
    values = _values(repeat_means(runs))
    known = _places(blocks.drop_duplicates(list(BLOCK)))
    rows, frames = [], []
    for objective in dict.fromkeys(runs["objective"]):
        mine = [values[(*place, objective)] for place in known if (*place, objective) in values]
        if mine:
            rows.append({"objective": objective, "n_pairs": len(mine)})
            frames += [{"objective": objective, "repeat": repeat, "value": value} for repeat, value in _over_pairs(mine)]
    whole = pd.DataFrame(frames, columns=["objective", "repeat", "value"]).assign(dataset="", teacher="", student="", teacher_seed=None)
    summary = summarise(whole.astype({"value": float})).drop(columns=list(BLOCK))
    return pd.DataFrame(rows, columns=["objective", "n_pairs"]).merge(summary, on="objective", how="left").fillna({"n": 0, "n_asked": 0})


def _places(blocks: pd.DataFrame) -> list[Key]:
    """The pairs, in an order that does not depend on that of the rows."""
    return sorted(block_key(block, "")[:-1] for block in blocks[list(BLOCK)].itertuples(index=False, name=None))


def _values(means: pd.DataFrame) -> Mapping[Key, list[Value]]:
    """The repeats of each pair and objective with their values (NaN: incomplete)."""
    found: dict[Key, list[Value]] = {}
    for key, repeat, value in zip(block_keys(means, "objective"), means["repeat"], means["value"], strict=True):
        found.setdefault(key, []).append((repeat, value))
    return found


def _over_pairs(pairs: Sequence[list[Value]]) -> list[Value]:
    """The mean over the pairs of each repeat that any of them has, NaN where it is not complete in all of them."""
    if len(pairs) == 1:
        return pairs[0]
    named = [{repeat: value for repeat, value in pair if not pd.isna(repeat)} for pair in pairs]
    repeats = dict.fromkeys(repeat for pair in named for repeat in pair)
    return [(repeat, sum(pair.get(repeat, float("nan")) for pair in named) / len(pairs)) for repeat in repeats]


def _why(row: dict[Any, Any], part: pd.DataFrame, unnamed: set[str]) -> str:
    """The reason why a comparison over several pairs is not tested: `paired_differences` gives it for one.

    unnamed: the objectives that have runs without a repeat's number.
    """
    if len(part) == 1 or row["n"] >= LEAST or row["n"] == row["n_asked"] > 0:
        return str(row["why"])
    lacking = len(part) - row["n_pairs"]
    if lacking:
        return f"in {lacking} of {len(part)} pairs one of the two has no complete repeat"
    if unnamed & {row["objective"], row["baseline"]}:
        return "runs without a repeat number cannot be joined over pairs"
    complete = ("no repeat is", "only 1 repeat is", "only 2 repeats are")[row["n"]]
    return f"{complete} complete in all {len(part)} pairs"
