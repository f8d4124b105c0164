"""Simulated suites for the error rates of the statistics. `python tests/stats/simulation.py` prints the tables of docs/error_rates.md."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kdbench.stats.collapse import FAR, deviations
from kdbench.stats.new_pairs import new_pairs
from kdbench.stats.paired import family
from kdbench.stats.paper_claims import CONTRADICTED, OF_METRIC, SUPPORTED, UNDECIDED, corrected, p_values

ALPHA = 0.05
SEED = 2026
BASELINES = 2
"""The first two objectives are the baselines ce and kd."""


@dataclass(frozen=True)
class Suite:
    """What a suite is drawn from. Every run has the standard deviation 1 by itself; effects are in this unit."""

    students: int = 2
    teachers: int = 4
    losses: int = 6
    n: int = 5
    noise: str = "normal"
    spread: tuple[float, ...] = ()
    """Of the last objectives, relative to the others."""
    effects: tuple[float, ...] = ()
    """Of the last objectives."""
    shared: float = 0.0
    """The sd that all runs of one repeat share, and again the runs of one student, repeat and objective."""
    crossed: float = 0.0
    """The sd of each objective's own effects of students, of teachers and of pairs; they are centred over the suite's pairs."""
    one_ce: bool = False
    """Whether the first objective is trained without a teacher: one run a student and repeat."""
    step: float = 0.0
    """Values are rounded to it."""
    missing: float = 0.0
    """The share of runs without a value."""
    collapse: float = 0.0
    """The share of runs of the objective `who` that are shifted down by 10."""
    who: int = 2

    @property
    def pairs(self) -> int:
        return self.students * self.teachers


NOISES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
}


def ends(values: tuple[float, ...], losses: int, rest: float) -> np.ndarray:
    return np.array([rest] * (losses - len(values)) + list(values))


def draw(rng: np.random.Generator, suite: Suite, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [suite, pair, objective, repeat], the true means [suite, pair, objective], and which runs collapse (as the values)."""
    s, t, k, n = suite.students, suite.teachers, suite.losses, suite.n
    noise = NOISES[suite.noise](rng, (count, s, t, k, n))
    if suite.one_ce:
        noise[:, :, :, 0] = noise[:, :, :1, 0]
    noise = noise * ends(suite.spread, k, 1.0)[:, None]
    noise += suite.shared * (rng.standard_normal((count, 1, 1, 1, n)) + rng.standard_normal((count, s, 1, k, n)))
    effect = rng.standard_normal((count, s, 1, k)) + rng.standard_normal((count, 1, t, k)) + rng.standard_normal((count, s, t, k))
    effect = suite.crossed * (effect - effect.mean(axis=(1, 2), keepdims=True)) + ends(suite.effects, k, 0.0)
    values = (effect[..., None] + noise).reshape(count, s * t, k, n)
    hit = np.zeros(values.shape, dtype=bool)
    hit[:, :, min(suite.who, k - 1)] = rng.random((count, s * t, n)) < suite.collapse
    values = values - 10 * hit
    if suite.step:
        values = np.round(values / suite.step) * suite.step
    values[rng.random(values.shape) < suite.missing] = np.nan
    return values, effect.reshape(count, s * t, k), hit


def comparisons(losses: int) -> tuple[np.ndarray, np.ndarray]:
    """Baseline and objective of each comparison."""
    asked = [(one, other) for one in range(BASELINES) for other in range(one + 1, losses)]
    return np.array(asked).T


def holm(p: np.ndarray) -> np.ndarray:
    """Holm over the last axis; NaN counts as 1."""
    p = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(p, axis=-1)
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) * (p.shape[-1] - np.arange(p.shape[-1])), axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1), -1)
    return adjusted


@dataclass(frozen=True)
class Tested:
    """A family of each suite, [suite, comparison]."""

    difference: np.ndarray
    error: np.ndarray
    df: np.ndarray
    p: np.ndarray

    @property
    def claimed(self) -> np.ndarray:
        return holm(self.p) < ALPHA

    def half(self, comparisons: int = 1) -> np.ndarray:
        return stats.t.isf(ALPHA / 2 / comparisons, self.df) * self.error


def tested(values: np.ndarray) -> Tested:
    """Paired t tests of `values` [suite, ..., objective, repeat], the comparisons of all places in one family."""
    baseline, objective = comparisons(values.shape[-2])
    d = values[..., objective, :] - values[..., baseline, :]
    d = d.reshape(len(d), -1, d.shape[-1])
    n = np.isfinite(d).sum(axis=-1)
    total = np.where(n > 0, np.nansum(d, axis=-1), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        sd = np.sqrt(np.nansum((d - mean[..., None]) ** 2, axis=-1) / (n - 1))
        usable = (n >= 3) & (sd > 1e-12)
        error, df = np.where(usable, sd / np.sqrt(n), np.nan), np.where(usable, n - 1.0, np.nan)
        return Tested(mean, error, df, 2 * stats.t.sf(np.abs(mean / error), df))


def families(values: np.ndarray) -> tuple[Tested, Tested]:
    """The primary family (all pairs), and that of each pair by itself."""
    return tested(values.mean(axis=1)), tested(values)


def collapsed(values: np.ndarray) -> np.ndarray:
    """Which objectives collapse, [suite, objective]."""
    off = values - np.nanmedian(values, axis=-1, keepdims=True)
    objective = np.broadcast_to(np.arange(off.shape[2])[:, None], off.shape[1:])
    found = np.empty((len(off), off.shape[2]), dtype=bool)
    for place, one in enumerate(off):
        kept = np.isfinite(one)
        far = np.abs(deviations(one[kept], objective[kept], np.zeros(kept.sum(), dtype=int))) > FAR
        found[place] = np.isin(np.arange(off.shape[2]), objective[kept][far])
    return found


def guarded(found: Tested, unstable: np.ndarray) -> np.ndarray:
    """The claims that stand where neither side collapses, [suite, comparison]."""
    baseline, objective = comparisons(unstable.shape[1])
    blocked = unstable[:, baseline] | unstable[:, objective]
    return found.claimed & ~np.tile(blocked, found.p.shape[1] // blocked.shape[1])


def truths(effect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true differences of both families, from the true means [suite, pair, objective]."""
    baseline, objective = comparisons(effect.shape[-1])
    d = effect[..., objective] - effect[..., baseline]
    return d.mean(axis=1), d.reshape(len(d), -1)


def wrong(claimed: np.ndarray, found: Tested, truth: np.ndarray) -> float:
    """The share of suites with any claim of a difference that is none, or of the wrong direction."""
    null = np.abs(truth) < 1e-9
    return float((claimed & (null | (np.sign(found.difference) != np.sign(truth)))).any(axis=1).mean())


def error_rates(suite: Suite, count: int, seed: int = SEED) -> dict[str, float]:
    """Family-wise error of both families, without and with the guard against collapse, and the share of suites that it marks."""
    values, effect, _ = draw(np.random.default_rng(seed), suite, count)
    unstable = collapsed(values)
    found: dict[str, float] = {}
    for name, one, truth in zip(("overall", "pairs"), families(values), truths(effect), strict=True):
        found[name] = wrong(one.claimed, one, truth)
        found[f"{name}, guarded"] = wrong(guarded(one, unstable), one, truth)
    return {**found, "marked": float(unstable.any(axis=1).mean())}


def coverage(suite: Suite, count: int, seed: int = SEED) -> dict[str, float]:
    """The share of intervals that hold the truth, and of families all of whose Bonferroni intervals do."""
    values, effect, _ = draw(np.random.default_rng(seed), suite, count)
    found: dict[str, float] = {}
    for name, one, truth in zip(("overall", "pairs"), families(values), truths(effect), strict=True):
        known, off = np.isfinite(one.p), np.abs(one.difference - truth)
        found[name] = float((off <= one.half())[known].mean())
        found[f"{name}, all at once"] = float(((off <= one.half(one.p.shape[1])) | ~known).all(axis=1).mean())
    return found


def collapses(suite: Suite, count: int, seed: int = SEED) -> dict[str, float]:
    """What is claimed of the objective that collapses, or against it, where its data show it and where by chance they do not.

    The data show it where in some pair some of the runs collapse and not all.
    """
    values, _, hit = draw(np.random.default_rng(seed), suite, count)
    some = hit[:, :, suite.who]
    shows = (some.any(axis=2) & ~some.all(axis=2)).any(axis=1)
    unstable = collapsed(values)
    baseline, objective = comparisons(suite.losses)
    found: dict[str, float] = {"shown": float(shows.mean()), "marked": float(unstable[shows, suite.who].mean())}
    for name, one in zip(("overall", "pairs"), families(values), strict=True):
        mine = np.tile((baseline == suite.who) | (objective == suite.who), one.p.shape[1] // len(baseline))
        for label, claimed in ((name, one.claimed), (f"{name}, guarded", guarded(one, unstable))):
            claims = (claimed & mine).any(axis=1)
            found[label] = float(claims[shows].mean())
            found[f"{label}, not shown"] = float(claims[~shows].mean()) if (~shows).any() else float("nan")
    return found


def power(suite: Suite, count: int, seed: int = SEED) -> dict[str, float]:
    """How often the last objective, which has the only effect, is found better than each baseline: the least of them."""
    values, _, _ = draw(np.random.default_rng(seed), suite, count)
    unstable = collapsed(values)
    _, objective = comparisons(suite.losses)
    found = {}
    for name, one in zip(("overall", "pairs"), families(values), strict=True):
        mine = np.tile(objective == suite.losses - 1, one.p.shape[1] // len(objective))
        better = guarded(one, unstable) & (one.difference > 0)
        found[name] = float(better[:, mine].mean(axis=0).min())
    return found


LAYOUTS = {
    "2 students x 4 teachers": [(s, t) for s in range(2) for t in range(4)],
    "3 students x 3 teachers": [(s, t) for s in range(3) for t in range(3)],
    "4 students x 4 teachers": [(s, t) for s in range(4) for t in range(4)],
    "1 student x 4 teachers": [(0, t) for t in range(4)],
    "6 pairs that share nothing": [(k, k) for k in range(6)],
    "the 13 pairs of CRD": list(zip([0, 1, 2, 2, 3, 4, 5, 6, 6, 5, 7, 8, 7], [0, 0, 1, 2, 2, 3, 4, 4, 5, 5, 3, 3, 0], strict=True)),
    "a student in 10 of 15 pairs": [*((0, t) for t in range(10)), *((s, 0) for s in range(1, 6))],
}  # fmt: skip
"""(student, teacher) of each pair."""
PAIR_EFFECTS = [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0.3, 0), (0.3, 1, 0.5), (1, 1, 1), (0, 0, 1)]
"""Standard deviations of the student's, the teacher's and the pair's own effect on the difference."""
REPEAT_NOISE = [(0, 0, 0.5), (0.3, 0.3, 0.3), (0, 0.5, 0.2), (2, 0, 0.5)]
"""Standard deviations of a repeat's error: common to all pairs, to a student's pairs, of the pair alone."""


def new_pairs_coverage(layout: str, effects: tuple[float, ...], noise: tuple[float, ...], n: int, count: int, seed: int = SEED) -> Any:
    """The share of suites whose interval holds the mean of all pairs (zero), and the true difference of one new pair."""
    rng = np.random.default_rng(seed)
    students, teachers = np.array(LAYOUTS[layout]).T
    sizes = students.max() + 1, teachers.max() + 1
    student, teacher, own = effects if sizes[0] > 1 else (0, *effects[1:])
    true = student * rng.standard_normal((count, sizes[0]))[:, students] + teacher * rng.standard_normal((count, sizes[1]))[:, teachers]
    true = true + own * rng.standard_normal(true.shape)
    new = rng.standard_normal(count) * np.sqrt(student**2 + teacher**2 + own**2)
    error = noise[0] * rng.standard_normal((count, 1, n)) + noise[2] * rng.standard_normal((count, len(students), n))
    values = true[..., None] + error + noise[1] * rng.standard_normal((count, sizes[0], n))[:, students]
    means = values.mean(axis=1)
    half = stats.t.isf(ALPHA / 2, n - 1) * means.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.full(count, np.nan)
    names = pd.DataFrame({"dataset": "d", "teacher": [f"t{t}" for t in teachers], "student": [f"s{s}" for s in students]})
    found = [new_pairs(names.assign(difference=one.mean(axis=1)), own_half, ALPHA) for one, own_half in zip(values, half, strict=True)]
    mean = np.mean([one.new_low <= 0 <= one.new_high for one in found])
    return float(mean), float(np.mean([one.pair_low <= at <= one.pair_high for one, at in zip(found, new, strict=True)]))


CLAIM_TRUTHS = {
    "no difference, margin 0.5": ((0, 0, 0, 0, 0, 0), 0.5),
    "all differ by the margin of 1": ((1, 1, 1, 1, 1, 1), 1.0),
    "half do not differ, half by the margin of 8": ((0, 0, 0, 8, 8, 8), 8.0),
    "by 1, 1, 1, -1, 5, 0; margin 1": ((1, 1, 1, -1, 5, 0), 1.0),
    "by -1, -1, -1, 0, 0, -1; margin 1": ((-1, -1, -1, 0, 0, -1), 1.0),
}
"""The true differences of six comparisons in standard deviations of a run, and the margin."""
CLAIM_RELATIONS = {**{one: (one,) for one in OF_METRIC}, "each of them twice": OF_METRIC}


def claim_errors(differences: tuple[float, ...], margin: float, relations: tuple[str, ...], count: int, seed: int = SEED) -> float:
    """The share of suites with any wrong verdict on a comparison with the one baseline that all share, so that the tests depend on each
    other; n = 5."""
    d = np.array(differences, dtype=float)
    # Where `equal` is wrong just beyond the margin.
    d = np.where(np.abs(d) == margin, d * (1 + 1e-9), d)
    relation = np.resize(np.array(relations), len(d))
    supported = np.select([relation == one for one in OF_METRIC], [d > 0, d > -margin, np.abs(d) <= margin])
    contradicted = np.select([relation == one for one in OF_METRIC], [d < margin, d < -margin, np.abs(d) > margin])
    rng, n = np.random.default_rng(seed), 5
    values = d[:, None] + rng.standard_normal((count, len(d), n)) - rng.standard_normal((count, 1, n))
    df, least, errors = np.full(len(d), n - 1.0), np.full(len(d), margin), 0
    for mean, error in zip(values.mean(axis=2), values.std(axis=2, ddof=1) / n**0.5, strict=True):
        supports, contradicts = corrected(*p_values(relation, mean, error, df, least))
        verdict = np.select([contradicts < ALPHA, supports < ALPHA], [CONTRADICTED, SUPPORTED], UNDECIDED)
        errors += bool(((verdict == SUPPORTED) & (supported == 0) | (verdict == CONTRADICTED) & (contradicted == 0)).any())
    return errors / count


def frames(values: np.ndarray, suite: Suite) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One suite's values [pair, objective, repeat] as the runs and the family that the public functions take."""
    pair, objective, repeat = (axis.ravel() for axis in np.indices(values.shape))
    names = np.array([f"o{one}" for one in range(suite.losses)])
    columns = {
        "student": np.char.add("s", (pair // suite.teachers).astype(str)),
        "teacher": np.char.add("t", (pair % suite.teachers).astype(str)),
    }
    runs = pd.DataFrame(
        {"dataset": "d", **columns, "objective": names[objective], "repeat": repeat, "teacher_seed": 0, "value": values.ravel()}
    )
    return runs, family(runs[["dataset", "teacher", "student"]].drop_duplicates(), list(names), list(names[:BASELINES]))


NORMAL = Suite()
ERROR_SCENARIOS = {
    "normal": NORMAL,
    "normal, n = 3": replace(NORMAL, n=3),
    "normal, n = 10": replace(NORMAL, n=10),
    **{f"normal, n = {n}, 1 pair, {k} losses": replace(NORMAL, n=n, students=1, teachers=1, losses=k) for k in (2, 3, 4) for n in (3, 5)},
    "half the losses differ": replace(NORMAL, effects=(5, -5, 5)),
    "t with 3 degrees of freedom": replace(NORMAL, noise="t3"),
    "spreads from 1 to 3": replace(NORMAL, spread=(1.4, 1.8, 2.2, 2.6, 3)),
    "one loss with spread 3": replace(NORMAL, spread=(3,)),
    "one loss with spread 3, 1 pair, 3 losses": replace(NORMAL, spread=(3,), students=1, teachers=1, losses=3),
    "one loss with spread 10": replace(NORMAL, spread=(10,)),
    "ties: values rounded to one sd": replace(NORMAL, step=1),
    "gaps: 2 % of the runs are missing": replace(NORMAL, missing=0.02),
    "gaps: 3 % of the runs are missing, n = 10": replace(NORMAL, missing=0.03, n=10),
    "errors shared by repeats and students": replace(NORMAL, shared=1),
    "crossed effects, errors shared": replace(NORMAL, crossed=1, shared=1),
    "ce trained once for all teachers": replace(NORMAL, one_ce=True),
    "exponential": replace(NORMAL, noise="exponential"),
    "exponential, one loss with spread 3": replace(NORMAL, noise="exponential", spread=(3,)),
    "exponential, one loss with spread 10": replace(NORMAL, noise="exponential", spread=(10,)),
    "exponential, one loss with spread 10, 1 pair": replace(NORMAL, noise="exponential", spread=(10,), students=1, teachers=1),
    "exponential, one loss with spread 10, 1 pair, 3 losses": replace(NORMAL, noise="exponential", spread=(10,), students=1, teachers=1, losses=3),
    "exponential, one loss with spread 10, n = 10": replace(NORMAL, noise="exponential", spread=(10,), n=10),
}  # fmt: skip


COVERED = ("normal", "normal, n = 3", "normal, n = 10", "spreads from 1 to 3", "gaps: 3 % of the runs are missing, n = 10",
           "errors shared by repeats and students", "crossed effects, errors shared", "ce trained once for all teachers")  # fmt: skip
ONE_POINT = replace(NORMAL, effects=(1 / 0.3,))
POWER_SCENARIOS = {
    "n = 5": ONE_POINT,
    "n = 5, ce trained once for all teachers": replace(ONE_POINT, one_ce=True),
    "n = 5, errors shared by repeats and students": replace(ONE_POINT, shared=1),
    "n = 5, t with 3 degrees of freedom": replace(ONE_POINT, noise="t3"),
    "n = 3": replace(ONE_POINT, n=3),
    "n = 10": replace(ONE_POINT, n=10),
    "n = 5, 1 pair": replace(ONE_POINT, students=1, teachers=1),
}
COLLAPSES = {
    f"{title}, {'ce' if who == 0 else 'a loss'} collapses, effect {effect}": replace(
        suite, who=who, collapse=0.1, effects=tuple(effect * (place == who) for place in range(suite.losses))
    )
    for title, suite in {
        "8 pairs, 6 losses, n = 5": NORMAL,
        "8 pairs, 6 losses, n = 3": replace(NORMAL, n=3),
        "1 pair, 3 losses, n = 3": replace(NORMAL, students=1, teachers=1, losses=3, n=3),
        "1 pair, 3 losses, n = 5": replace(NORMAL, students=1, teachers=1, losses=3),
    }.items()
    for who in (0, 2)
    for effect in (0, 3, 10)
}


def markdown(head: str, rows: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    heads = [
        name.replace("pairs", "pair by pair").replace("overall", "all pairs").replace("guarded", "unstable left out") for name in names
    ]
    print(f"\n| {' | '.join([head, *heads])} |\n|---{'|---:' * len(names)}|")
    for title, row in rows.items():
        print(f"| {title} | {' | '.join('-' if np.isnan(row[name]) else f'{100 * row[name]:.2f}' for name in names)} |")


if __name__ == "__main__":
    counts = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    markdown("scenario", {title: error_rates(suite, counts) for title, suite in ERROR_SCENARIOS.items()})
    markdown("scenario", {title: coverage(ERROR_SCENARIOS[title], counts) for title in COVERED})
    markdown("scenario", {title: power(suite, counts) for title, suite in POWER_SCENARIOS.items()})
    markdown("suite", {title: collapses(suite, counts) for title, suite in COLLAPSES.items()})
    rates = {
        truth: {name: claim_errors(*CLAIM_TRUTHS[truth], of, counts) for name, of in CLAIM_RELATIONS.items()} for truth in CLAIM_TRUTHS
    }
    markdown("true differences", rates)
    ranges = {}
    for layout in LAYOUTS:
        grid = [(one, noise) for one in PAIR_EFFECTS for noise in REPEAT_NOISE if any(one[1:]) or not layout.startswith("1 student")]
        rates = [new_pairs_coverage(layout, one, noise, 5, counts // 8) for one, noise in grid]
        ends_of = zip(*((min(rate), max(rate)) for rate in zip(*rates, strict=True)), strict=True)
        (mean_low, pair_low), (mean_high, pair_high) = ends_of
        ranges[layout] = {"mean, least": mean_low, "mean, most": mean_high, "one pair, least": pair_low, "one pair, most": pair_high}
    markdown("pairs", ranges)
