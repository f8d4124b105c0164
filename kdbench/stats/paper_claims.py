"""Claims that a suite checks, such as those of a paper: supported, contradicted or undecided, over all pairs of the suite.

A claim is made of comparisons of two objectives. Each has two hypotheses, of which at most one is true: one that must be rejected for the
claim to be supported, and one that must be rejected for it to be contradicted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from kdbench.stats.overall import overall
from kdbench.stats.repeats import BLOCK, FAILED, block_keys

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
OF_METRIC = ("better", "not worse", "equal")
"""Relations of the metric; the others are of a measured cost."""
COST_COLUMNS = {"time": ("step_ms", "step_ms_q1", "step_ms_q3"), "memory": ("peak_mem_gib",) * 3}
"""The median and the quartiles of each measured cost; peak memory has one value."""
SIDES = ("objective", "baseline")
ASKED = ("claim", "relation", *SIDES, "margin")
FROM_OVERALL = (
    *("n_pairs", "n_pairs_asked", "n_asked", "n_objective", "n_baseline", "n", "difference", "sd", "low", "high", "df", "test", "why"),
    *("failed_objective", "runs_objective", "failed_baseline", "runs_baseline"),
)
COLUMNS = (*FROM_OVERALL, "p_supports", "p_contradicts", "verdict", "verdict_why")
TEXTS = ("test", "why", "verdict", "verdict_why")
NOWHERE = "no pair of the suite has both"


def paper_claims(
    runs: pd.DataFrame,
    costs: pd.DataFrame,
    claims: pd.DataFrame,
    alpha: float = 0.05,
    higher_is_better: bool = True,
    collapsed: Collection[str] = frozenset(),
) -> pd.DataFrame:
    """The verdict on each comparison of each claim, and on each claim.

    The comparisons of the metric are tested as `overall.overall` does it: the mean over the pairs, paired by repeat. With d the true
    difference (positive: the objective is better) and m the margin, the hypotheses are

    - better: supported where d <= 0 is rejected (two-sided t test), contradicted where d >= m is (one-sided). Where both are, the
      objective is better by less than the margin, which contradicts the claim. Without a margin m is 0 and both are two-sided.
    - not worse: supported where d < -m is rejected, contradicted where d >= -m is (one-sided t tests). Without a margin neither is tested.
    - equal: supported where |d| > m is rejected (two one-sided t tests), contradicted where |d| <= m is: where the t interval of d, at the
      corrected level, lies outside of the margin. Without a margin neither is tested.

    The p values of all these comparisons are corrected together (`corrected`): the chance of any wrong "supported" or "contradicted" is at
    most alpha. Wrong is what was rejected although it is true.

    A comparison of costs is not tested: it is supported where the objective costs less in every pair (the quartiles of its step lie below
    those of the other), contradicted where it costs more in every pair.

    A claim is supported where each of its comparisons is, contradicted where any is, and else undecided.

    Args:
        runs: as for `overall.overall`, with `state`: where a run of either side is neither finished nor failed, nothing is decided.
        costs: dataset, teacher, student, objective, device and the columns of COST_COLUMNS, a row a profile and pair
            (`repeats.spread_over_blocks`).
        claims: ASKED and any others, one row a comparison; `claim` is a number, `relation` better, not worse, equal, time
            or memory (the objective takes less).
        collapsed: objectives with runs that collapse: nothing is decided about them.

    Returns:
        The rows of `claims` with COLUMNS: those of `overall.overall`, p_supports and p_contradicts (corrected; NaN: not tested), verdict
        and verdict_why of the comparison (`why`: not tested at all); and with claim_verdict. The difference of a cost is the mean over
        the pairs, in the unit of its column.
    """
    found = claims.reset_index(drop=True)
    of_metric = found["relation"].isin(OF_METRIC)
    tested = _tested(runs, found[of_metric], alpha, higher_is_better, collapsed)
    places = _places(runs)
    measured = pd.DataFrame([_cost(line, places, costs) for line in found[~of_metric].to_dict(orient="records")])
    every = pd.concat([part for part in (tested, measured.set_axis(found.index[~of_metric])) if len(part)]).sort_index()
    found = found.join(every.reindex(columns=COLUMNS).astype({name: object if name in TEXTS else "float64" for name in COLUMNS}))
    whole = found.groupby("claim")["verdict"].agg(lambda verdicts: _whole({*verdicts}))
    return found.fillna(dict.fromkeys(TEXTS, "")).assign(claim_verdict=found["claim"].map(whole))


def p_values(
    relation: np.ndarray, difference: np.ndarray, error: np.ndarray, df: np.ndarray, margin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The p values that support and contradict each comparison, not corrected; NaN where the difference has no error, or there is no margin
    and the relation needs one.

    Args:
        relation: [comparison], one of OF_METRIC.
        difference: the objective minus the baseline, positive where it is better; `error` its standard error.
        margin: NaN: there is none.
    """
    none, cases = np.isnan(margin), [relation == one for one in OF_METRIC]

    def below(value: np.ndarray) -> np.ndarray:
        """The chance that a t of mean 0 is less than `value`, in standard errors."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(special.stdtr(df, value / error))

    least, outside = np.where(none, 0.0, margin), np.abs(difference) - margin
    supports = np.select(cases, [2 * below(-difference), below(-difference - margin), below(outside)])
    contradicts = np.select(cases, [below(difference - least) * (1 + none), below(difference + margin), 2 * below(-outside)])
    return np.minimum(supports, 1.0), np.minimum(contradicts, 1.0)


def corrected(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P values of pairs of hypotheses, of which at most one is true, corrected for the number of pairs.

    Holm's method as Shaffer (1986, Journal of the American Statistical Association 81:826) sharpens it where not all hypotheses can be
    true at once: in the order of the p values, each is multiplied by the number of pairs that have a hypothesis not yet rejected.
    Proof: while no true one is rejected, at least as many pairs are left as there are true hypotheses, of which each pair has at most one.
    So the first true one is rejected at a level of at most alpha over the number of true ones, and the chances add up to alpha.

    Args:
        one, other: [pair], NaN (not tested) counts as 1.
    """
    p, m = np.concatenate([np.asarray(one, dtype=float), np.asarray(other, dtype=float)]), len(one)
    left, least, found = np.full(m, 2), 0.0, np.full(2 * m, np.nan)
    for place in np.argsort(np.where(np.isnan(p), 1.0, p), kind="stable"):
        least = max(least, min(1.0, p[place] * np.count_nonzero(left))) if p[place] == p[place] else least
        found[place] = least if p[place] == p[place] else np.nan
        left[place % m] -= 1
    return found[:m], found[m:]


def _tested(runs: pd.DataFrame, claims: pd.DataFrame, alpha: float, higher_is_better: bool, collapsed: Collection[str]) -> pd.DataFrame:
    """The comparisons of the metric, with the index of `claims`."""
    blocks, places = runs[list(BLOCK)].drop_duplicates(), _places(runs)
    asked = blocks.merge(claims[["baseline", "objective"]].drop_duplicates(), how="cross")
    sides = [block_keys(asked, side) for side in ("objective", "baseline")]
    planned = [key[:-1] in places.get(key[-1], ()) for side in sides for key in side]
    asked = asked[np.logical_and(*np.reshape(np.array(planned, dtype=bool), (2, -1)))]
    tests = overall(runs, asked, alpha, None, higher_is_better, collapsed)[["baseline", "objective", *FROM_OVERALL]]
    found = claims.merge(tests, on=["baseline", "objective"], how="left").set_axis(claims.index)
    found = found.astype({"test": object, "why": object}).fillna({"test": "", "why": NOWHERE})
    unstable = found["objective"].isin(collapsed) | found["baseline"].isin(collapsed)
    found.loc[unstable, ["low", "high"]] = np.nan
    sign = 1.0 if higher_is_better else -1.0
    numbers = {name: found[name].to_numpy(dtype=float) for name in ("difference", "sd", "n", "df", "margin")}
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where((found["test"] != "") & ~unstable, numbers["sd"] / np.sqrt(numbers["n"]), np.nan)
    both = p_values(found["relation"].to_numpy(), sign * numbers["difference"], error, numbers["df"], numbers["margin"])
    supports, contradicts = corrected(*both)
    found = found.assign(p_supports=supports, p_contradicts=contradicts)
    going = Counter(runs["objective"][~runs["state"].isin(("finished", *FAILED))]) if "state" in runs else Counter[str]()
    judged = [_verdict(line, alpha, sign, collapsed, going) for line in found.to_dict(orient="records")]
    return found.assign(verdict=[one for one, _ in judged], verdict_why=[why for _, why in judged])


def _verdict(line: Mapping[Any, Any], alpha: float, sign: float, collapsed: Collection[str], going: Mapping[str, int]) -> tuple[str, str]:
    """The verdict on a comparison and, where it was tested and is undecided, why.

    A mean over the runs that did not fail is too good, so failed runs of a side are in favour of it: then nothing is said in its favour,
    and nothing is equal.
    """
    for words, count in (
        ("some runs of {} collapse", {side: line[side] in collapsed for side in SIDES}),
        ("not all runs of {} are finished", {side: going.get(line[side], 0) for side in SIDES}),
    ):
        if any(count.values()):
            return UNDECIDED, words.format(" and of ".join(f"the {side}" for side in SIDES if count[side]))
    if line["why"]:
        return UNDECIDED, ""
    if line["relation"] != "better" and line["margin"] != line["margin"]:
        return UNDECIDED, "the suite has no margin for this metric"
    supports, contradicts = line["p_supports"] < alpha, line["p_contradicts"] < alpha
    if not (supports or contradicts):
        return UNDECIDED, "the tests show neither"
    verdict = CONTRADICTED if contradicts else SUPPORTED
    ahead = "objective" if sign * line["difference"] > 0 else "baseline"
    if line["relation"] == "equal":
        favoured: tuple[str, ...] = SIDES if verdict == SUPPORTED else (ahead,)
    else:
        favoured = SIDES[:1] if verdict == SUPPORTED else SIDES[1:]
    lost = [side for side in favoured if line[f"failed_{side}"]]
    if lost:
        texts = [f"{line[f'failed_{side}']:.0f} of {line[f'runs_{side}']:.0f} runs of the {side} failed" for side in lost]
        return UNDECIDED, f"{' and '.join(texts)}, and a mean over the others is too good"
    return verdict, ""


def _places(runs: pd.DataFrame) -> dict[str, set[tuple[str, ...]]]:
    """The pairs in which each objective is planned."""
    found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for *block, objective in block_keys(runs, "objective"):
        found[objective].add(tuple(block))
    return found


def _cost(line: Mapping[Any, Any], places: Mapping[str, set[tuple[str, ...]]], costs: pd.DataFrame) -> dict[str, Any]:
    """A comparison of measured costs, pair by pair."""
    asked = sorted(places.get(line["objective"], set()) & places.get(line["baseline"], set()))
    known = dict(zip(block_keys(costs, "objective"), costs.to_dict(orient="records"), strict=True))
    apart, differences = Counter[int](), []
    for block in asked:
        one, other = (known.get((*block, line[side]), {}) for side in SIDES)
        middles, lows, highs = zip(*([side.get(name) for name in COST_COLUMNS[line["relation"]]] for side in (one, other)), strict=True)
        if any(value is None or value != value for value in middles) or one.get("device") != other.get("device"):
            continue
        differences.append(middles[0] - middles[1])
        apart[-1 if highs[0] < lows[1] else 1 if lows[0] > highs[1] else 0] += 1
    found: dict[str, Any] = {"n_pairs": len(differences), "n_pairs_asked": len(asked)}
    if len(differences) < len(asked) or not asked:
        where = f"in {len(asked) - len(differences)} of {len(asked)} pairs"
        why = f"{where} the {line['relation']} of both was not measured on one device (`kdbench profile`)" if asked else NOWHERE
        return {**found, "verdict": UNDECIDED, "why": why}
    found["difference"] = np.mean(differences)
    for direction, verdict in ((-1, SUPPORTED), (1, CONTRADICTED)):
        if apart[direction] == len(asked):
            return {**found, "verdict": verdict}
    return {**found, "verdict": UNDECIDED, "verdict_why": f"less in {apart[-1]} and more in {apart[1]} of {len(asked)} pairs"}


def _whole(verdicts: set[str]) -> str:
    """Of a claim, from its comparisons."""
    return CONTRADICTED if CONTRADICTED in verdicts else SUPPORTED if verdicts == {SUPPORTED} else UNDECIDED
