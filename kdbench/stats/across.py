"""Across blocks: what a difference between two objectives is worth beyond the blocks where it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kdbench.stats.attainable import speaks
from kdbench.stats.clusters import Clusters, clusters
from kdbench.stats.generalise import Interval, new_blocks, these_blocks
from kdbench.stats.holm import holm
from kdbench.stats.ranks import ENUMERATED, rounded, sign_flip_p, wilcoxon_p
from kdbench.stats.repeats import BLOCK

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Block = tuple[str, str | None, str]


def across(
    values: pd.DataFrame,
    comparisons: pd.DataFrame,
    alpha: float = 0.05,
    blocks: pd.DataFrame | None = None,
    verdicts: pd.DataFrame | None = None,
    higher_is_better: bool = True,
) -> pd.DataFrame:
    """Each objective with each baseline over all blocks where both have a value.

    Args:
        values: dataset, teacher, student, objective, repeat, value (NaN: incomplete), as `repeats.repeat_means` returns. Runs without a
            teacher stand in each of their blocks.
        comparisons: dataset, teacher, student, baseline, objective: the whole family that the suite fixed, never a filtered part.
        alpha: intervals have the confidence 1 - alpha.
        blocks: dataset, teacher, student; the claim is about these only (None: all of `comparisons`).
        verdicts: dataset, teacher, student, baseline, objective, verdict.
        higher_is_better: whether a positive difference is a win.

    Returns:
        One row a (baseline, objective), in the order of `comparisons`; differences are objective minus baseline in the unit of `value`.
        baseline, objective, n_blocks (where both have a value), n_blocks_asked, n_clusters, unit, scope, clusters (the sentence),
        difference (mean over blocks).
        These blocks: these (its centre: over complete repeats), these_low, these_high, these_df, these_by ("repeats", "Satterthwaite" or
        ""), these_why.
        New blocks: new (its centre), new_low, new_high, new_df (the least of its sources), new_by (its sources), new_why.
        sign_flip_p, sign_flip_p_holm, sign_flip_why, wilcoxon_p, wilcoxon_p_holm, wilcoxon_why: over the means of independent clusters,
        Holm over all rows; NaN with the reason where they may not or cannot speak.
        wilcoxon_blocks_p: exact, as if blocks were independent: a description.
        wins, ties, losses: blocks by the sign of their difference; with `verdicts` also wins_shown, losses_shown: blocks whose verdict is
        better or worse (by the margin or below it).
        A `_why` beside an interval or p says what it takes for granted.

    Raises:
        ValueError: a value stands there twice, or alpha lies outside (0, 1).
    """
    import pandas as pd

    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    asked = _asked(comparisons, blocks)
    runs = _by_objective(values)
    m = len(asked)
    rows = [_row(pair, places, runs, m, alpha, higher_is_better) for pair, places in asked.items()]
    table = pd.DataFrame(rows, columns=[*COLUMNS])
    for name in ("sign_flip_p", "wilcoxon_p"):
        table.insert(list(table.columns).index(name) + 1, f"{name}_holm", holm(table[name].tolist(), m))
    return table if verdicts is None else _with_verdicts(table, verdicts, asked)


COLUMNS = {
    "baseline": "", "objective": "", "n_blocks": 0, "n_blocks_asked": 0, "n_clusters": 0, "unit": "", "scope": "", "clusters": "",
    "difference": float("nan"),
    "these": float("nan"), "these_low": float("nan"), "these_high": float("nan"), "these_df": float("nan"), "these_by": "", "these_why": "",
    "new": float("nan"), "new_low": float("nan"), "new_high": float("nan"), "new_df": float("nan"), "new_by": "", "new_why": "",
    "sign_flip_p": float("nan"), "sign_flip_why": "", "wilcoxon_p": float("nan"), "wilcoxon_why": "", "wilcoxon_blocks_p": float("nan"),
    "wins": 0, "ties": 0, "losses": 0,
}  # fmt: skip
"""The columns of a row before Holm, with what stands there where no block has both values."""


def _key(block: Sequence[Any]) -> Block:
    # A null teacher is None or NaN, by way of where the frame comes from.
    return str(block[0]), block[1] if isinstance(block[1], str) else None, str(block[2])


def _keys(frame: pd.DataFrame) -> list[Block]:
    return [_key(block) for block in zip(*(frame[name] for name in BLOCK), strict=True)]


def _asked(comparisons: pd.DataFrame, blocks: pd.DataFrame | None) -> dict[tuple[str, str], list[Block]]:
    """The blocks of each (baseline, objective), in an order that does not depend on that of the rows."""
    wanted = None if blocks is None else set(_keys(blocks))
    asked: dict[tuple[str, str], list[Block]] = {}
    for block, *pair in zip(_keys(comparisons), comparisons["baseline"], comparisons["objective"], strict=True):
        places = asked.setdefault((pair[0], pair[1]), [])
        if (wanted is None or block in wanted) and block not in places:
            places.append(block)
    return {pair: sorted(places, key=lambda block: (block[0], block[1] or "", block[2])) for pair, places in asked.items()}


def _by_objective(values: pd.DataFrame) -> dict[str, dict[Block, dict[Any, float]]]:
    """The finite values of each objective by block and repeat."""
    import numpy as np

    found: dict[str, dict[Block, dict[Any, float]]] = {}
    seen = set()
    for block, objective, repeat, value in zip(_keys(values), values["objective"], values["repeat"], values["value"], strict=True):
        if (block, objective, repeat) in seen:
            raise ValueError(f"the value of {objective} in {block}, repeat {repeat} stands there twice: average over teacher seeds first")
        seen.add((block, objective, repeat))
        if np.isfinite(value):
            found.setdefault(objective, {}).setdefault(block, {})[repeat] = float(value)
    return found


def _row(
    pair: tuple[str, str],
    asked: list[Block],
    runs: dict[str, dict[Block, dict[Any, float]]],
    m: int,
    alpha: float,
    higher_is_better: bool,
) -> dict[str, Any]:
    import numpy as np

    baseline, objective = (runs.get(name, {}) for name in pair)
    used = [block for block in asked if block in baseline and block in objective]
    row: dict[str, Any] = {**COLUMNS, "baseline": pair[0], "objective": pair[1], "n_blocks": len(used), "n_blocks_asked": len(asked)}
    if not used:
        nothing = "no block has a value of both"
        return {**row, **{name: nothing for name in COLUMNS if name.endswith("_why")}}
    differences, means = _differences([objective[block] for block in used], [baseline[block] for block in used])
    shared, sides, students = _layout(tuple(used))
    these = these_blocks(differences, students, np.full(len(used), 1 / len(used)), alpha)
    new = new_blocks(means, shared, sides, differences, students, alpha)
    better = means if higher_is_better else -means
    row |= {"n_clusters": shared.n, "unit": shared.unit, "scope": shared.scope, "clusters": shared.sentence, "difference": means.mean()}
    row |= {**_interval("these", these), **_interval("new", new), **_tests(means, shared, m, alpha)}
    row |= {"wins": int((better > 0).sum()), "ties": int((better == 0).sum()), "losses": int((better < 0).sum())}
    return row


@lru_cache(maxsize=256)
def _layout(blocks: tuple[Block, ...]) -> tuple[Clusters, np.ndarray, np.ndarray]:
    """Clusters; student and teacher [2, block] and the students of each data set [block], as numbers."""
    import numpy as np
    import pandas as pd

    sides = [_numbers([block[2] for block in blocks]), _numbers([block[1] for block in blocks])]
    students = _numbers([(block[0], block[2]) for block in blocks])
    return clusters(pd.DataFrame(blocks, columns=list(BLOCK))), np.array(sides), np.array(students)


def _numbers(names: Sequence[Any]) -> list[int]:
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return [places[name] for name in names]


def _differences(one: list[dict[Any, float]], other: list[dict[Any, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Objective minus baseline: [block, repeat] (NaN where one lacks the repeat), and the mean of each block: over its pairs, or where
    no repeat pairs the difference of the two means."""
    import numpy as np

    largest = max(abs(value) for side in (one, other) for values in side for value in values.values())
    repeats = {repeat: place for place, repeat in enumerate(dict.fromkeys(repeat for values in one for repeat in values))}
    paired = np.full((len(one), len(repeats)), np.nan)
    means = np.empty(len(one))
    for block, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        pairs = {repeat: value - theirs[repeat] for repeat, value in mine.items() if repeat in theirs}
        for repeat, difference in pairs.items():
            paired[block, repeats[repeat]] = difference
        apart = sum(mine.values()) / len(mine) - sum(theirs.values()) / len(theirs)
        means[block] = sum(pairs.values()) / len(pairs) if pairs else apart
    return rounded(paired, largest), rounded(means, largest)


def _interval(name: str, found: Interval) -> dict[str, Any]:
    """The columns of an interval; one without width is none."""
    half = found.half if found.half > 0 else float("nan")
    ends = {f"{name}_low": found.centre - half, f"{name}_high": found.centre + half}
    return {name: found.centre, **ends, f"{name}_df": found.df, f"{name}_by": found.by, f"{name}_why": found.why}


def _tests(means: np.ndarray, shared: Clusters, m: int, alpha: float) -> dict[str, Any]:
    """Sign-flip and Wilcoxon over the means of independent clusters, or why not; Wilcoxon over blocks as a description."""
    import numpy as np

    label = np.array(shared.label)
    by_cluster = rounded(np.bincount(label, means) / np.bincount(label), float(np.abs(means).max()))
    tied = "" if np.any(by_cluster) else "no cluster differs from zero"
    flip, wilcoxon = (
        shared.refusal or speaks(test, shared.n, alpha, m, "independent clusters") or tied for test in ("sign-flip", "wilcoxon")
    )
    many = f"more than {ENUMERATED} clusters: their signs are not enumerated" if shared.n > ENUMERATED else ""
    nothing = float("nan")
    return {
        "sign_flip_p": nothing if flip else sign_flip_p(by_cluster),
        "sign_flip_why": flip or many,
        "wilcoxon_p": nothing if wilcoxon else wilcoxon_p(by_cluster),
        "wilcoxon_why": wilcoxon,
        "wilcoxon_blocks_p": wilcoxon_p(means),
    }


def _with_verdicts(table: pd.DataFrame, verdicts: pd.DataFrame, asked: dict[tuple[str, str], list[Block]]) -> pd.DataFrame:
    counts = {pair: {"better": 0, "worse": 0} for pair in asked}
    for block, baseline, objective, verdict in zip(
        _keys(verdicts), verdicts["baseline"], verdicts["objective"], verdicts["verdict"], strict=True
    ):
        first = str(verdict).split(" ")[0]
        if first in ("better", "worse") and block in asked.get((baseline, objective), []):
            counts[baseline, objective][first] += 1
    shown = [counts[pair] for pair in zip(table["baseline"], table["objective"], strict=True)]
    return table.assign(wins_shown=[one["better"] for one in shown], losses_shown=[one["worse"] for one in shown])
