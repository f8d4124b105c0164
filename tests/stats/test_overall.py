"""The comparison over all pairs, and what it says about new pairs: against one pair's tests, worked examples and published tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import kdbench
from kdbench.stats.compare import compare
from kdbench.stats.new_pairs import new_pairs
from kdbench.stats.overall import overall, overall_summaries
from kdbench.stats.paired import family
from kdbench.stats.ranks import mean_ranks
from kdbench.stats.repeats import repeat_means, spread_over_blocks, summarise

BLOCK = ["dataset", "teacher", "student"]
TEACHERS = ["resnet18", "resnet34", "resnet50", "resnet101"]
SAHA = {
    ("resnet18", "sp"): [78.22, 78.41, 78.15, 78.27],
    ("resnet18", "cka"): [79.14, 79.35, 79.15, 79.32],
    ("mobilenetv2", "sp"): [73.75, 73.47, 73.39, 73.32],
    ("mobilenetv2", "cka"): [75.30, 75.24, 75.19, 75.11],
}
"""Table 1 of Saha, Bialkowski, Khalifa (BMVC 2022): top-1 for the four teachers."""


def saha() -> pd.DataFrame:
    rows = [
        ("cifar100", teacher, student, objective, 0, value)
        for (student, objective), values in SAHA.items()
        for teacher, value in zip(TEACHERS, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=[*BLOCK, "objective", "repeat", "value"])


def draws(seed=0, students=2, teachers=2, losses=("ce", "kd", "cc"), n=5, seeds=1, gain=0.0):
    """Runs of a suite whose last loss is better by `gain`."""
    rng = np.random.default_rng(seed)
    rows = [
        ("d", f"t{t}", f"s{s}", name, repeat, seed, rng.normal() + gain * (name == losses[-1]), "finished")
        for s in range(students)
        for t in range(teachers)
        for name in losses
        for repeat in range(n)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=[*BLOCK, "objective", "repeat", "teacher_seed", "value", "state"])


def asked_of(runs, *baselines):
    return family(runs[BLOCK].drop_duplicates(), list(dict.fromkeys(runs["objective"])), baselines or ("ce",))


def row_of(table, objective="kd", baseline="ce"):
    return table[(table["objective"] == objective) & (table["baseline"] == baseline)].iloc[0]


def joined(runs):
    """The mean over the pairs by hand, as the runs of one pair."""
    means = repeat_means(runs).pivot_table(index=["objective", "repeat"], values="value", aggfunc="mean").reset_index()
    return means.assign(dataset="d", teacher="all", student="all", teacher_seed=0, state="finished")


SHARED = [
    "n",
    "difference",
    "sd",
    "df",
    "low",
    "high",
    "low_all",
    "high_all",
    "p",
    "p_holm",
    "p_equal",
    "p_equal_holm",
    "test",
    "why",
    "verdict",
]


@pytest.mark.parametrize("seeds", [1, 3])
def test_over_several_pairs_the_test_is_that_of_the_means_over_the_pairs_repeat_by_repeat(seeds):
    runs = draws(3, seeds=seeds, gain=2)
    found = overall(runs, asked_of(runs, "ce", "kd"), margin=1.0)
    by_hand = joined(runs)
    expected = compare(by_hand, found[["baseline", "objective"]].assign(dataset="d", teacher="all", student="all"), margin=1.0)
    pd.testing.assert_frame_equal(found[SHARED], expected[SHARED])
    assert len(found) == 3 and (found["n_pairs"] == 4).all() and (found["n_pairs_asked"] == 4).all()
    assert "better" in set(found["verdict"])
    delta = by_hand[by_hand["objective"] == "kd"]["value"].to_numpy() - by_hand[by_hand["objective"] == "ce"]["value"].to_numpy()
    assert row_of(found)["p"] == pytest.approx(stats.ttest_1samp(delta, 0).pvalue)
    assert (row_of(found)["runs_objective"], row_of(found)["failed_objective"]) == (20 * seeds, 0)


def test_with_one_pair_the_rows_are_those_of_the_pair():
    paired = draws(1, 1, 1, gain=3, seeds=2)
    apart = paired.assign(repeat=paired["repeat"] + 100 * (paired["objective"] == "kd"))
    unnamed = draws(2, 1, 1).assign(repeat=None)
    failed = paired.copy()
    failed.loc[3, ["state", "value"]] = ["diverged", np.nan]
    for runs in (paired, apart, unnamed, failed, paired[paired["repeat"] < 1], paired.assign(teacher=None)):
        asked = asked_of(runs, "ce", "kd")
        expected = compare(runs, asked, 0.1, 0.5, collapsed={"cc"} if runs is apart else ())
        found = overall(runs, asked, 0.1, 0.5, collapsed={"cc"} if runs is apart else ())
        names = [name for name in expected.columns if name not in BLOCK]
        pd.testing.assert_frame_equal(found[names], expected[names])
        summary = overall_summaries(runs, asked[BLOCK].drop_duplicates()).set_index("objective")
        expected = summarise(runs).set_index("objective").loc[summary.index]
        pd.testing.assert_frame_equal(summary[["n", "n_asked", "mean", "sd"]], expected[["n", "n_asked", "mean", "sd"]], check_dtype=False)


def test_a_repeat_counts_where_every_pair_has_it_complete_in_both():
    runs = draws(4, n=6)
    gaps = (runs["teacher"] == "t0") & (runs["objective"] == "kd") & (runs["repeat"] == 1)
    gaps |= (runs["student"] == "s1") & (runs["objective"] == "ce") & (runs["repeat"] == 4)
    found = overall(runs[~gaps], asked_of(runs))
    expected = overall(runs[~runs["repeat"].isin([1, 4])], asked_of(runs))
    assert row_of(found)[["n", "n_objective", "n_baseline", "n_asked"]].tolist() == [4, 5, 5, 6]
    assert row_of(found)[["difference", "p"]].tolist() == pytest.approx(row_of(expected)[["difference", "p"]].tolist())
    assert row_of(found, "cc")["n"] == 5
    summary = overall_summaries(runs[~gaps], runs[BLOCK].drop_duplicates()).set_index("objective")
    assert summary["n"].to_dict() == {"ce": 5, "kd": 5, "cc": 6} and (summary["n_asked"] == 6).all()
    means = joined(runs[~runs["repeat"].eq(1)]).query("objective == 'kd'")["value"]
    assert summary.loc["kd", ["mean", "sd"]].tolist() == pytest.approx([means.mean(), means.std(ddof=1)])


def test_a_pair_without_any_complete_repeat_leaves_the_comparison_untested_and_in_the_family():
    runs = draws(5, gain=5)
    lost = (runs["teacher"] == "t1") & (runs["student"] == "s0") & (runs["objective"] == "kd")
    found = overall(runs[~lost], asked_of(runs))
    row = row_of(found)
    assert np.isnan(row["p"]) and (row["n_pairs"], row["n_pairs_asked"], row["verdict"]) == (3, 4, "undecided")
    assert row["why"] == row["verdict_why"] == "in 1 of 4 pairs one of the two has no complete repeat"
    # The other comparison is still one of two.
    assert row_of(found, "cc")["p_holm"] == pytest.approx(2 * row_of(found, "cc")["p"])
    # What the suite excludes in a pair was not asked there: the mean is over the other pairs, and is tested.
    asked = asked_of(runs)
    kept = asked[~((asked["teacher"] == "t1") & (asked["student"] == "s0") & (asked["objective"] == "kd"))]
    excluded = row_of(overall(runs[~lost], kept))
    assert np.isfinite(excluded["p"]) and (excluded["n_pairs"], excluded["n_pairs_asked"]) == (3, 3)


def test_repeats_that_do_not_match_are_tested_by_welch_over_their_means_over_the_pairs():
    runs = draws(6)
    apart = runs.assign(repeat=runs["repeat"] + 100 * (runs["objective"] == "kd"))
    row = row_of(overall(apart, asked_of(runs)))
    means = joined(runs).pivot(index="repeat", columns="objective", values="value")
    assert (row["test"], row["n"]) == ("Welch t", 5)
    assert row["p"] == pytest.approx(stats.ttest_ind(means["kd"], means["ce"], equal_var=False).pvalue)


def test_runs_without_a_repeat_number_cannot_be_joined_over_pairs():
    runs = draws(7).assign(repeat=None)
    row = row_of(overall(runs, asked_of(runs)))
    assert np.isnan(row["p"]) and row["why"] == "runs without a repeat number cannot be joined over pairs"
    half = draws(7)
    half["repeat"] = half["repeat"].astype(object).where(half["objective"] != "kd", None)
    assert row_of(overall(half, asked_of(half)))["why"] == "runs without a repeat number cannot be joined over pairs"


def test_no_repeat_that_all_pairs_have_and_too_few_of_them_say_so():
    runs = draws(8, 2, 1, n=4)
    gaps = ((runs["student"] == "s0") & (runs["repeat"] < 2)) | ((runs["student"] == "s1") & (runs["repeat"] >= 2))
    assert row_of(overall(runs[~gaps], asked_of(runs)))["why"] == "no repeat is complete in all 2 pairs"
    gaps &= runs["repeat"] != 3
    assert row_of(overall(runs[~gaps], asked_of(runs)))["why"] == "only 1 repeat is complete in all 2 pairs"
    none = row_of(overall(runs.assign(value=runs["value"].where(runs["objective"] != "kd")), asked_of(runs)))
    assert (none["wins"], none["ties"], none["losses"]) == (0, 0, 0)
    two = row_of(overall(runs[runs["repeat"] < 2], asked_of(runs)))
    assert two["why"] == "there are only two repeats, and a test needs three" and np.isfinite(two["difference"])


@pytest.mark.parametrize("state", ["failed", "diverged", "damaged", "finished"])
def test_an_objective_with_a_failed_run_in_any_pair_is_not_better_over_all_pairs(state):
    runs = draws(9, losses=("ce", "kd"), gain=9)
    runs.loc[runs["objective"] == "kd", "value"] += 1
    assert row_of(overall(runs, asked_of(runs)))["verdict"] == "better"
    runs.loc[runs.index[-1], ["value", "state"]] = [np.nan, state]
    row = row_of(overall(runs, asked_of(runs)))
    assert (row["verdict"], row["verdict_why"]) == ("undecided", "1 of 20 runs failed: the mean is over survivors")
    assert row["p_holm"] < 0.05 and row["n"] == 4


def test_nothing_is_claimed_over_all_pairs_where_a_side_collapses():
    runs = draws(10, gain=9)
    found = overall(runs, asked_of(runs, "ce", "kd"), collapsed={"kd"})
    assert (found["verdict"] == "unstable").tolist() == [True, False, True]
    assert row_of(found, "cc")["verdict"] == "better"


def test_pairs_are_counted_by_the_sign_of_their_difference():
    runs = draws(11, losses=("ce", "kd"), n=3)
    gains = {("s0", "t0"): 0.1, ("s0", "t1"): -0.1, ("s1", "t0"): 0.2, ("s1", "t1"): 0.0}
    base = np.array([0.1, 0.2, 0.3])
    for (student, teacher), gain in gains.items():
        here = (runs["student"] == student) & (runs["teacher"] == teacher)
        runs.loc[here & (runs["objective"] == "ce"), "value"] = base
        runs.loc[here & (runs["objective"] == "kd"), "value"] = base + gain + (0.1 - 0.3 + 0.2)  # with the rounding of floating point
    for higher, expected in ((True, [2, 1, 1]), (False, [1, 1, 2])):
        row = row_of(overall(runs, asked_of(runs), higher_is_better=higher))
        assert row[["wins", "ties", "losses"]].tolist() == expected


def test_neither_the_order_of_rows_nor_names_nor_labels_reach_a_number():
    runs = draws(12, 3, 3, seeds=2)
    found = overall(runs, asked_of(runs), margin=0.5)
    shuffled = runs.sample(frac=1, random_state=1).assign(repeat=lambda table: 50 - 3 * table["repeat"])
    pd.testing.assert_frame_equal(
        overall(
            shuffled, asked_of(runs).sample(frac=1, random_state=2).sort_values("objective", ascending=False, kind="stable"), margin=0.5
        ),
        found,
        rtol=1e-9,
    )
    renamed = runs.assign(student="x" + runs["student"].str[::-1], teacher="y" + runs["teacher"].str[::-1])
    numbers = found.select_dtypes("number").columns
    pd.testing.assert_frame_equal(overall(renamed, asked_of(renamed), margin=0.5)[numbers], found[numbers], rtol=1e-9)


def test_an_empty_family_is_an_empty_table_with_all_columns():
    runs = draws(13)
    found = overall(runs, asked_of(runs).iloc[:0])
    full = overall(runs, asked_of(runs))
    assert len(found) == 0 and list(found.columns) == list(full.columns)


def test_what_occurs_twice_and_an_impossible_alpha_are_refused():
    runs = draws(14)
    with pytest.raises(ValueError, match="1 runs occur twice"):
        overall(pd.concat([runs, runs.iloc[:1]]), asked_of(runs))
    with pytest.raises(ValueError, match="alpha is 5"):
        overall(runs, asked_of(runs), alpha=5)


def pairs(*names, differences=None):
    """Pairs from "teacher>student" with their differences."""
    table = pd.DataFrame([("d", *name.split(">")) for name in names], columns=BLOCK)
    return table.assign(difference=np.arange(1.0, len(table) + 1) if differences is None else differences)


def test_the_interval_of_a_crossed_layout_adds_the_squares_of_that_over_students_and_that_over_teachers():
    values = saha()
    found = row_of(overall(values.assign(teacher_seed=0), asked_of(values, "sp")), "cka", "sp")
    d = np.array(SAHA["resnet18", "cka"] + SAHA["mobilenetv2", "cka"]) - np.array(SAHA["resnet18", "sp"] + SAHA["mobilenetv2", "sp"])
    halves = []
    for axis in (1, 0):
        levels = d.reshape(2, 4).mean(axis=axis)
        halves.append(stats.t.ppf(0.975, len(levels) - 1) * levels.std(ddof=1) / np.sqrt(len(levels)))
    assert found["new_high"] - found["new"] == pytest.approx(np.hypot(*halves), rel=1e-6) == pytest.approx(4.8, abs=0.05)
    assert (found["new"], found["wins"], found["new_scope"]) == (pytest.approx(1.3525), 8, "a new pair")
    assert found["new_why"] == "the error that pairs share through their repeats is left out"
    assert found["why"] == "one repeat only: no spread to test against"


def test_pairs_that_share_nothing_give_the_t_interval_and_the_prediction_interval_of_one_sample():
    for names in ([f"t{k}>s{k}" for k in range(6)], [f"t>s{k}" for k in range(6)]):
        d = np.random.default_rng(1).normal(size=6)
        found = new_pairs(pairs(*names, differences=d), 0.0, 0.1)
        half = stats.t.ppf(0.95, 5) * stats.sem(d)
        assert [found.new, found.new_low, found.new_high] == pytest.approx([d.mean(), d.mean() - half, d.mean() + half])
        assert found.pair_high - found.new == pytest.approx(half * np.sqrt(7))
        # What the repeats do to all pairs at once is added in squares.
        wide = new_pairs(pairs(*names, differences=d), 0.5, 0.1)
        assert wide.new_high - wide.new == pytest.approx(np.hypot(half, 0.5))


def test_where_each_student_has_one_teacher_the_teachers_are_the_independent_groups():
    d = np.array([1.0, 2.0, 5.0, 6.0, 3.0, 5.0])
    found = new_pairs(pairs("a>u", "a>v", "b>w", "b>x", "c>y", "c>z", differences=d), 0.0, 0.05)
    assert found.new_high - found.new == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem([1.5, 5.5, 4.0]))


def test_an_interval_for_new_pairs_needs_three_students_or_three_teachers_and_names_what_is_new():
    few = new_pairs(pairs("a>x", "a>y", "b>x", "b>y"), 0.1, 0.05)
    assert np.isnan([few.new, few.new_low, few.pair_low]).all()
    assert few.new_why == "an interval for new pairs needs 3 students or 3 teachers"
    scopes = {
        "a new teacher, for the student x": pairs("a>x", "b>x", "c>x"),
        "a new student, for the teacher a": pairs("a>x", "a>y", "a>z"),
        "a new student, without a teacher": pairs("a>x", "a>y", "a>z").assign(teacher=None),
        "a new pair": pairs("a>x", "b>y", "c>y"),
        "a new pair, on these 2 datasets": pairs("a>x", "b>y", "c>y").assign(dataset=["c", "d", "d"]),
    }
    for scope, table in scopes.items():
        found = new_pairs(table, 0.1, 0.05)
        assert (found.new_scope, found.new_why) == (scope, "") and found.pair_low < found.new_low < found.new < found.new_high


def test_one_student_without_repeats_hides_the_error_that_its_pairs_share():
    found = new_pairs(pairs("a>x", "b>x", "c>x"), float("nan"), 0.05)
    assert np.isnan(found.new_low) and found.new_why.startswith("one student: the error that its pairs share")


def test_differences_that_do_not_vary_give_no_interval():
    found = new_pairs(pairs("a>x", "b>y", "c>z", differences=0.1), 0.1, 0.05)
    assert np.isnan(found.new_low) and found.new_why == "the same difference in all 3 pairs"


CRD = Path(kdbench.__file__).parent / "published" / "crd.csv"
TEN = ["CRD", "KD", "PKT", "SP", "VID", "NST", "AT", "FitNet", "RKD", "CC"]
TO_KD = {"CRD": 1.08, "PKT": -0.31, "SP": -0.50, "VID": -0.95, "NST": -1.63, "AT": -2.20, "FitNet": -1.74, "RKD": -1.79, "CC": -2.05}
TO_STUDENT = {
    "CRD": (3.49, 0),
    "KD": (2.41, 0),
    "PKT": (2.10, 0),
    "SP": (1.91, 0),
    "VID": (1.46, 1),
    "NST": (0.78, 1),
    "AT": (0.20, 2),
    "FitNet": (0.67, 4),
    "RKD": (0.62, 3),
    "CC": (0.36, 2),
}
RANKS = {
    "CRD": 1.00, "KD": 2.85, "PKT": 3.50, "SP": 4.85, "VID": 5.73, "NST": 6.12, "AT": 6.46, "FitNet": 7.65, "RKD": 8.15, "CC": 8.69,
}  # fmt: skip


@pytest.fixture(scope="module")
def crd() -> pd.DataFrame:
    """The 13 pairs of the CRD protocol, the student alone (`ce`) standing in each block of its student."""
    table = pd.read_csv(CRD).rename(columns={"method": "objective", "top1": "value"}).assign(repeat=0, teacher_seed=0)
    alone = table[table["objective"] == "Student (CE)"].assign(objective="ce")
    taught = table[table["objective"].isin(TEN)]
    blocks = taught[BLOCK].drop_duplicates()
    return spread_over_blocks(pd.concat([taught, alone])[[*BLOCK, "objective", "repeat", "value"]], blocks)


def test_the_13_published_pairs_give_the_differences_that_were_recomputed_from_them(crd):
    table = overall(crd.assign(teacher_seed=0), family(crd[BLOCK].drop_duplicates(), ["ce", *TEN], ["ce", "KD"])).set_index(
        ["baseline", "objective"]
    )
    assert (table["n_pairs"] == 13).all()
    for name, difference in TO_KD.items():
        assert table.loc[("KD", name), "difference"] == pytest.approx(difference, abs=0.0051)
    for name, (difference, losses) in TO_STUDENT.items():
        row = table.loc[("ce", name)]
        assert (round(row["difference"], 2), row["losses"]) == (difference, losses)
    # One run a pair: nothing is tested, and SP may be better than KD over new pairs.
    assert table["p"].isna().all() and set(table["why"]) == {"one repeat only: no spread to test against"}
    sp = table.loc[("KD", "SP")]
    assert sp["new_low"] < 0 < sp["new_high"]


def test_the_published_mean_ranks_are_those_recomputed(crd):
    ten = crd[crd["objective"] != "ce"]
    ranks = mean_ranks(ten)
    assert ranks["objective"].tolist() == list(RANKS) and (ranks["n_blocks"] == 13).all()
    assert ranks["mean_rank"].tolist() == pytest.approx(list(RANKS.values()), abs=0.0051)


def test_mean_ranks_share_ties_and_leave_out_blocks_where_an_objective_has_no_value():
    rows = [("d", None, "x", "a", 0, 0.5), ("d", None, "x", "b", 0, 0.5), ("d", None, "x", "c", 0, 0.4)]
    rows += [("d", "t", "y", "a", 0, 0.9), ("d", "t", "y", "b", 0, 0.5), ("d", "t", "y", "c", 0, np.nan)]
    values = pd.DataFrame(rows, columns=[*BLOCK, "objective", "repeat", "value"])
    ranks = mean_ranks(values)
    assert ranks["mean_rank"].tolist() == [1.5, 1.5, 3.0] and (ranks["n_blocks"] == 1).all()
    assert mean_ranks(values, higher_is_better=False)["objective"].tolist() == ["c", "a", "b"]
    assert mean_ranks(values[values["student"] == "y"])["mean_rank"].isna().all()


def test_the_rounding_of_floating_point_breaks_no_tie_of_ranks():
    rows = [("d", None, "x", name, 0, value) for name, value in (("a", 0.1 + 0.2), ("b", 0.3), ("c", 0.2))]
    assert mean_ranks(pd.DataFrame(rows, columns=[*BLOCK, "objective", "repeat", "value"]))["mean_rank"].tolist() == [1.5, 1.5, 3.0]


def test_an_objective_may_have_the_name_of_any_column():
    names = [*BLOCK, "objective", "repeat", "value", "mean_rank", "n_blocks", "level_0", "index", "n", ""]
    rows = [("d", "t", f"s{place}", name, 0, float(rank)) for place in range(3) for rank, name in enumerate(names)]
    ranks = mean_ranks(pd.DataFrame(rows, columns=[*BLOCK, "objective", "repeat", "value"]))
    assert ranks["objective"].tolist() == names[::-1] and (ranks["n_blocks"] == 3).all()
