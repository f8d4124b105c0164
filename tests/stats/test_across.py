"""Across blocks: against worked examples, SciPy and the published tables that the claims are about; and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import kdbench
from kdbench.stats.across import across
from kdbench.stats.clusters import clusters
from kdbench.stats.paired import family
from kdbench.stats.ranks import friedman, mean_ranks, sign_flip_p, wilcoxon_p
from kdbench.stats.repeats import spread_over_blocks

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


def compared(values: pd.DataFrame, baseline: str = "sp", objective: str = "cka", **options) -> pd.Series:
    """The one row of a family of one comparison in every block of `values`."""
    asked = family(values[BLOCK].drop_duplicates(), [baseline, objective], [baseline])
    return across(values, asked, **options).iloc[0]


def frame(differences: dict[tuple, list[float]], at: float = 0.7) -> pd.DataFrame:
    """Values of `kd` and `ce` whose difference in a (dataset, teacher, student) is as given, one number a repeat."""
    rows = []
    for block, values in differences.items():
        for repeat, value in enumerate(values):
            rows += [(*block, "ce", repeat, at), (*block, "kd", repeat, at + value)]
    return pd.DataFrame(rows, columns=[*BLOCK, "objective", "repeat", "value"])


def pairs(*names: str) -> pd.DataFrame:
    """Blocks from "teacher>student"."""
    return pd.DataFrame([("d", *name.split(">")) for name in names], columns=BLOCK)


def disjoint(n: int, values: list[list[float]] | None = None) -> pd.DataFrame:
    return frame({("d", f"t{i}", f"s{i}"): values[i] if values else [0.01 * (i + 1)] for i in range(n)})


def test_table_1_of_saha_is_no_eight_independent_blocks():
    values = saha()
    apart = values.assign(teacher=values["teacher"] + values["student"], student=values["teacher"] + values["student"])
    row = compared(apart)
    assert (row["unit"], row["n_clusters"], row["n_blocks"]) == ("block", 8, 8)
    assert row["difference"] == pytest.approx(1.3525)
    assert row["new_high"] - row["new"] == pytest.approx(0.34, abs=0.005)
    row = compared(values.assign(teacher=values["teacher"] + values["student"]))
    assert (row["unit"], row["n_clusters"]) == ("component", 2)
    assert row["new_high"] - row["new"] == pytest.approx(4.8, abs=0.05)
    row = compared(values)
    assert (row["unit"], row["n_clusters"], row["new_by"]) == ("crossed", 1, "students, teachers")
    assert row["new"] == pytest.approx(1.3525) and row["new_high"] - row["new"] == pytest.approx(4.8, abs=0.05)
    assert row["new_low"] < 0 and row["wins"] == 8
    assert row["sign_flip_why"] == row["wilcoxon_why"] == "students and teachers are crossed (2 x 4): there are no independent clusters"
    assert np.isnan(row["sign_flip_p"]) and np.isnan(row["wilcoxon_p"])


def test_the_interval_of_a_crossed_layout_adds_the_squares_of_that_over_students_and_that_over_teachers():
    d = np.array(SAHA["resnet18", "cka"] + SAHA["mobilenetv2", "cka"]) - np.array(SAHA["resnet18", "sp"] + SAHA["mobilenetv2", "sp"])
    halves = []
    for axis in (1, 0):
        levels = d.reshape(2, 4).mean(axis=axis)
        halves.append(stats.t.ppf(0.975, len(levels) - 1) * levels.std(ddof=1) / np.sqrt(len(levels)))
    row = compared(saha())
    assert row["new_high"] - row["new"] == pytest.approx(np.hypot(*halves), rel=1e-6)


CRD = Path(kdbench.__file__).parent / "published" / "crd.csv"
TEN = ["CRD", "KD", "PKT", "SP", "VID", "NST", "AT", "FitNet", "RKD", "CC"]
TO_KD = {
    "CRD": (1.08, 0.0002),
    "PKT": (-0.31, 0.014),
    "SP": (-0.50, 0.010),
    "VID": (-0.95, 0.0005),
    "NST": (-1.63, 0.008),
    "AT": (-2.20, 0.0007),
    "FitNet": (-1.74, 0.0005),
    "RKD": (-1.79, 0.0002),
    "CC": (-2.05, 0.0002),
}
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


def test_the_13_published_pairs_give_the_differences_and_exact_p_values_that_were_recomputed_from_them(crd):
    blocks = crd[BLOCK].drop_duplicates()
    table = across(crd, family(blocks, ["ce", *TEN], ["ce", "KD"])).set_index(["baseline", "objective"])
    assert len(blocks) == 13
    for name, (difference, p) in TO_KD.items():
        row = table.loc[("KD", name)]
        assert row["difference"] == pytest.approx(difference, abs=0.0051)
        assert float(f"{row['wilcoxon_blocks_p']:.{1 if p < 0.001 else 2}g}") == pytest.approx(p, rel=0.06)
    for name, (difference, losses) in TO_STUDENT.items():
        row = table.loc[("ce", name)]
        assert (round(row["difference"], 2), row["losses"]) == (difference, losses)
    assert (table["n_clusters"] == 3).all() and (table["unit"] == "component").all()


def test_two_more_pairs_of_losses_cannot_be_separated_even_as_if_the_pairs_were_independent(crd):
    table = across(crd, family(crd[BLOCK].drop_duplicates(), TEN, ["CC", "SP"])).set_index(["baseline", "objective"])
    assert table.loc[("CC", "RKD"), "difference"] == pytest.approx(0.26, abs=0.005)
    assert table.loc[("CC", "RKD"), "wilcoxon_blocks_p"] == pytest.approx(0.42, abs=0.005)
    assert table.loc[("SP", "PKT"), "wilcoxon_blocks_p"] == pytest.approx(0.19, abs=0.005)


def test_the_published_pairs_have_three_clusters_and_no_repeats_and_that_forbids_what_the_literature_says_of_them(crd):
    table = across(crd, family(crd[BLOCK].drop_duplicates(), ["ce", *TEN], ["ce", "KD"]))
    assert table["these_low"].isna().all()
    assert set(table["these_why"]) == {"one repeat: nothing shows how a repeat differs from the next"}
    assert table[["sign_flip_p", "wilcoxon_p", "sign_flip_p_holm", "wilcoxon_p_holm"]].isna().all(axis=None)
    assert table["wilcoxon_why"].str.startswith("Wilcoxon's test over 3 independent clusters cannot give p < 0.05: the least p").all()
    assert table["new_why"].str.contains("left out: one repeat").all()
    sp = table[(table["baseline"] == "KD") & (table["objective"] == "SP")].iloc[0]
    assert sp["wilcoxon_blocks_p"] < 0.05 and sp["new_low"] < 0 < sp["new_high"]


def test_the_published_mean_ranks_and_friedmans_p_are_those_recomputed_and_three_clusters_say_less(crd):
    ten = crd[crd["objective"] != "ce"]
    ranks = mean_ranks(ten)
    assert ranks["objective"].tolist() == list(RANKS) and (ranks["n_blocks"] == 13).all()
    assert ranks["mean_rank"].tolist() == pytest.approx(list(RANKS.values()), abs=0.0051)
    found = friedman(ten)
    assert found.p_blocks == pytest.approx(4e-13, rel=0.02) and found.n_blocks == 13
    assert found.n == 3 and 1e-3 < found.p < 0.05


def test_connected_components_of_students_and_teachers_are_the_clusters():
    found = clusters(pairs("a>x", "b>y", "c>x", "b>z"))
    assert (found.label, found.unit, found.n, found.scope) == ((0, 1, 0, 1), "component", 2, "a new pair")
    assert found.sentence == "4 blocks of 3 students and 3 teachers share some of them: 2 independent clusters"


def test_blocks_that_share_nothing_are_their_own_clusters():
    found = clusters(pairs("a>x", "b>y", "c>z"))
    assert (found.label, found.unit, found.n, found.refusal) == ((0, 1, 2), "block", 3, "")


def test_a_student_and_a_teacher_of_one_name_are_two_nets():
    assert clusters(pairs("a>x", "x>y", "b>z")).unit == "block"


def test_with_one_teacher_the_students_are_the_clusters_and_the_claim_names_the_teacher():
    found = clusters(pairs("a>x", "a>y", "a>z"))
    assert (found.unit, found.n, found.scope, found.refusal) == ("student", 3, "a new student, for this teacher (a)", "")


def test_with_one_student_the_teachers_are_the_clusters_and_no_rank_test_is_made():
    found = clusters(pairs("a>x", "b>x"))
    assert (found.unit, found.n, found.scope) == ("teacher", 2, "a new teacher, for this student (x)")
    assert found.refusal.startswith("one student: all blocks share its initial weights")


def test_one_bridge_makes_everything_hang_together():
    found = clusters(pairs("a>x", "a>y", "b>y"))
    assert (found.unit, found.n) == ("crossed", 1)
    assert found.sentence == "students and teachers are partly crossed (2 x 2): there are no independent clusters"


def test_names_on_several_data_sets_count_as_shared():
    blocks = pd.DataFrame([("c", "a", "x"), ("d", "b", "x"), ("d", "e", "y")], columns=BLOCK)
    found = clusters(blocks)
    assert (found.label, found.scope) == ((0, 0, 1), "a new pair, on these 2 data sets")


def test_one_pair_on_several_data_sets_speaks_of_data_sets():
    found = clusters(pd.DataFrame([("c", "a", "x"), ("d", "a", "x")], columns=BLOCK))
    assert (found.unit, found.n, found.scope) == ("dataset", 2, "a new data set, for this pair")


@pytest.mark.parametrize("null", [None, float("nan")])
def test_no_teacher_is_a_label_of_its_own(null):
    found = clusters(pd.DataFrame([("d", null, "x"), ("d", null, "y"), ("d", "a", "z")], columns=BLOCK))
    assert (found.label, found.n_teachers) == ((0, 0, 1), 2)
    assert (
        clusters(pd.DataFrame([("d", null, "x"), ("d", null, "y")], columns=BLOCK)).scope == "a new student, for students without a teacher"
    )


def test_no_block_and_a_block_that_stands_there_twice_are_refused():
    with pytest.raises(ValueError, match="no blocks"):
        clusters(pairs().reindex(columns=BLOCK))
    with pytest.raises(ValueError, match="stands there twice.*'x'"):
        clusters(pairs("a>x", "b>y", "a>x"))


def test_these_blocks_are_a_t_interval_over_the_repeats_mean_over_blocks():
    rng = np.random.default_rng(1)
    d = rng.normal(0.01, 0.003, (4, 5))
    row = compared(disjoint(4, d.tolist()), "ce", "kd")
    low, high = stats.t.interval(0.95, 4, d.mean(), stats.sem(d.mean(axis=0)))
    assert (row["these"], row["these_low"], row["these_high"]) == pytest.approx((d.mean(), low, high))
    assert (row["these_df"], row["these_by"], row["these_why"]) == (4, "repeats", "")


def test_a_new_block_is_a_t_interval_over_independent_blocks_widened_by_what_their_repeats_share():
    rng = np.random.default_rng(2)
    d = rng.normal(0.01, 0.003, (6, 3))
    row = compared(disjoint(6, d.tolist()), "ce", "kd", alpha=0.1)
    means = d.mean(axis=1)
    between = stats.t.ppf(0.95, 5) * stats.sem(means)
    shared = stats.t.ppf(0.95, 2) * stats.sem(d.mean(axis=0))
    assert row["new_high"] - row["new"] == pytest.approx(np.hypot(between, shared))
    assert (row["new"], row["new_by"], row["new_df"]) == (pytest.approx(means.mean()), "blocks, repeats", 2)


def test_where_components_are_small_the_interval_is_over_their_means_and_its_centre_is_their_mean():
    rows = {("d", "a", "x"): [0.01], ("d", "a", "y"): [0.03], ("d", "b", "z"): [0.05], ("d", "c", "w"): [0.03]}
    row = compared(frame(rows), "ce", "kd")
    assert (row["unit"], row["new_by"], row["n_clusters"]) == ("component", "components", 3)
    assert row["new"] == pytest.approx(np.mean([0.02, 0.05, 0.03]))
    assert row["new_high"] - row["new"] == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem([0.02, 0.05, 0.03]))


def test_with_gaps_the_repeats_that_are_complete_everywhere_are_used_if_there_are_three():
    d = np.random.default_rng(3).normal(0.01, 0.003, (3, 5))
    d[0, 1] = d[2, 4] = np.nan
    row = compared(disjoint(3, d.tolist()), "ce", "kd")
    kept = d[:, [0, 2, 3]]
    assert (row["these"], row["these_df"], row["these_by"]) == (pytest.approx(kept.mean()), 2, "repeats")
    assert row["difference"] == pytest.approx(np.nanmean(d, axis=1).mean())


def test_with_more_gaps_students_are_taken_apart_by_satterthwaite_and_it_says_so():
    d = np.random.default_rng(4).normal(0.01, 0.003, (2, 4))
    d[0, 0] = d[1, 3] = np.nan
    row = compared(disjoint(2, d.tolist()), "ce", "kd")
    variances = np.nanvar(d, axis=1, ddof=1) / 3 / 4
    df = variances.sum() ** 2 / (variances**2 / 2).sum()
    assert row["these_high"] - row["these"] == pytest.approx(stats.t.ppf(0.975, df) * np.sqrt(variances.sum()))
    assert (row["these_by"], row["these_df"]) == ("Satterthwaite", pytest.approx(df))
    assert row["these_why"].startswith("only 2 repeats are complete in all blocks: students taken as independent")


def test_the_blocks_of_one_student_are_never_taken_apart():
    d = np.random.default_rng(5).normal(0.01, 0.003, (2, 4))
    values = frame({("d", "a", "x"): d[0].tolist(), ("d", "b", "x"): [np.nan, *d[1, 1:3], np.nan]})
    row = compared(values, "ce", "kd")
    both = d[:, 1:3].mean(axis=0)
    assert row["these_high"] - row["these"] == pytest.approx(stats.t.ppf(0.975, 1) * stats.sem(both))


def test_too_many_gaps_leave_no_interval_for_these_blocks():
    row = compared(frame({("d", "a", "x"): [0.1, np.nan], ("d", "b", "x"): [np.nan, 0.2]}), "ce", "kd")
    assert np.isnan(row["these_low"]) and row["these_why"] == "gaps: fewer than two repeats are complete in all blocks of a student"
    assert row["difference"] == pytest.approx(0.15)


def test_values_whose_repeats_do_not_pair_are_compared_by_their_means_without_an_interval_for_these_blocks():
    values = disjoint(2, [[0.1, 0.2], [0.3, 0.4]])
    values.loc[values["objective"] == "kd", "repeat"] += 10
    row = compared(values, "ce", "kd")
    assert row["difference"] == pytest.approx(0.25) and np.isfinite(row["new_low"])
    assert np.isnan(row["these"]) and row["these_why"] == "the repeats of 2 of 2 blocks do not pair"


def test_one_block_says_nothing_of_others_and_its_own_interval_is_the_paired_t():
    row = compared(disjoint(1, [[0.01, 0.02, 0.04]]), "ce", "kd")
    assert (row["unit"], row["n_clusters"], row["new_why"]) == ("one", 1, "one block: nothing shows how blocks differ")
    assert np.isnan(row[["new", "new_low", "sign_flip_p", "wilcoxon_p"]].astype(float)).all()
    assert row["these_low"] == pytest.approx(stats.t.interval(0.95, 2, 0.07 / 3, stats.sem([0.01, 0.02, 0.04]))[0])


def test_two_blocks_give_an_interval_of_one_degree_of_freedom_and_no_rank_test():
    row = compared(disjoint(2), "ce", "kd")
    assert row["new_high"] - row["new"] == pytest.approx(12.706 * 0.005, rel=1e-3)
    assert "over 2 independent clusters cannot give p < 0.05: the least p that any data can give is 0.5" in row["sign_flip_why"]


def test_one_student_and_one_repeat_hide_the_error_that_all_its_blocks_share():
    row = compared(frame({("d", "a", "x"): [0.1], ("d", "b", "x"): [0.2]}), "ce", "kd")
    assert np.isnan(row["new_low"]) and row["new_why"].startswith("one student, and the error that its blocks share")
    row = compared(frame({("d", "a", "x"): [0.1, 0.2], ("d", "b", "x"): [0.2, 0.4]}), "ce", "kd")
    assert np.isfinite(row["new_low"]) and row["new_by"] == "teachers, repeats"


def test_differences_that_do_not_vary_give_no_interval_and_zeros_no_p():
    row = compared(disjoint(6, [[0.0] * 3] * 6), "ce", "kd")
    assert np.isnan(row[["these_low", "new_low", "sign_flip_p", "wilcoxon_p", "wilcoxon_blocks_p"]].astype(float)).all()
    assert (row["these_why"], row["new_why"]) == ("the same difference in all 3 repeats", "the same difference in all 6 clusters")
    assert (row["sign_flip_why"], row["ties"], row["difference"]) == ("no cluster differs from zero", 6, 0)


def test_only_blocks_where_both_have_a_value_count_and_the_clusters_are_theirs():
    values = frame({("d", "a", "x"): [0.1, 0.2], ("d", "a", "y"): [np.nan, np.nan], ("d", "b", "y"): [0.3, 0.1]})
    row = compared(values, "ce", "kd")
    assert (row["n_blocks"], row["n_blocks_asked"], row["unit"], row["n_clusters"]) == (2, 3, "block", 2)


def test_a_comparison_without_any_value_stays_in_the_family_and_says_why():
    values = disjoint(7)
    asked = family(values[BLOCK].drop_duplicates(), ["ce", "kd", "never"], ["ce"])
    table = across(values, asked).set_index("objective")
    assert table.loc["never", "n_blocks"] == 0 and table.loc["never", "new_why"] == "no block has a value of both"
    assert table.loc["kd", "sign_flip_p"] == 2 / 2**7 and table.loc["kd", "sign_flip_p_holm"] == 4 / 2**7


def test_a_rank_test_speaks_only_where_its_least_p_passes_holms_first_step():
    values = disjoint(6)
    row = compared(values, "ce", "kd")
    assert (row["sign_flip_p"], row["wilcoxon_p"], row["sign_flip_why"]) == (2 / 64, 2 / 64, "")
    asked = family(values[BLOCK].drop_duplicates(), ["ce", "kd", "sp"], ["ce"])
    row = across(values, asked).iloc[0]
    assert np.isnan(row["sign_flip_p"])
    assert row["sign_flip_why"] == (
        "the sign-flip test over 6 independent clusters cannot give p < 0.05: the least p that any data can give is 0.0625 "
        "(after Holm over m = 2)"
    )


def test_row_order_and_the_names_of_nets_and_repeats_do_not_matter():
    rng = np.random.default_rng(6)
    blocks = [("d", f"t{t}", f"s{s}") for s, t in [(0, 0), (0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (5, 4)]]
    d = rng.normal(0.01, 0.01, (8, 4))
    d[0, 0] = d[4, 1] = np.nan
    values = frame(dict(zip(blocks, d.tolist(), strict=True)))
    first = across(values, family(values[BLOCK].drop_duplicates(), ["ce", "kd"], ["ce"]))
    names = {name: f"n{place}" for place, name in enumerate(rng.permutation(sorted({*values["teacher"], *values["student"]})))}
    other = values.assign(teacher=values["teacher"].map(names), student=values["student"].map(names), repeat=7 - values["repeat"])
    other = other.sample(frac=1, random_state=1)
    second = across(other, family(other[BLOCK].drop_duplicates(), ["ce", "kd"], ["ce"]))
    pd.testing.assert_frame_equal(first, second, rtol=1e-9)
    assert first.loc[0, "these_by"] == "Satterthwaite"


def test_choosing_rows_of_the_table_afterwards_is_the_filter_that_changes_no_p_value():
    rng = np.random.default_rng(7)
    values = disjoint(9, rng.normal(0.01, 0.01, (9, 3)).tolist())
    other = values[values["objective"] == "kd"].assign(objective="sp", value=lambda rows: rows["value"] - 0.004)
    values = pd.concat([values, other])
    asked = family(values[BLOCK].drop_duplicates(), ["ce", "kd", "sp"], ["ce"])
    table = across(values, asked)
    without = across(values[values["objective"] != "sp"], asked)
    kd = table["objective"] == "kd"
    assert table[kd].iloc[0]["sign_flip_p"] == without[kd].iloc[0]["sign_flip_p"]
    assert table[kd].iloc[0]["sign_flip_p_holm"] <= without[kd].iloc[0]["sign_flip_p_holm"]


def test_only_the_given_blocks_count():
    values = disjoint(4)
    asked = family(values[BLOCK].drop_duplicates(), ["ce", "kd"], ["ce"])
    row = across(values, asked, blocks=values[BLOCK].iloc[[0, 2]]).iloc[0]
    assert (row["n_blocks"], row["n_blocks_asked"], row["difference"]) == (2, 2, pytest.approx(0.015))


def test_wins_ties_and_losses_are_counted_by_sign_and_by_what_was_shown():
    values = disjoint(4, [[0.1], [0.0], [-0.1], [0.2]])
    asked = family(values[BLOCK].drop_duplicates(), ["ce", "kd"], ["ce"])
    verdicts = asked.assign(verdict=["better but below the margin", "equal", "worse", "undecided"])
    row = across(values, asked, verdicts=verdicts).iloc[0]
    assert (row["wins"], row["ties"], row["losses"], row["wins_shown"], row["losses_shown"]) == (2, 1, 1, 1, 1)
    row = across(values, asked, higher_is_better=False).iloc[0]
    assert (row["wins"], row["ties"], row["losses"]) == (1, 1, 2)


def test_a_value_that_stands_there_twice_and_an_impossible_alpha_are_refused():
    values = disjoint(2)
    asked = family(values[BLOCK].drop_duplicates(), ["ce", "kd"], ["ce"])
    with pytest.raises(ValueError, match="stands there twice: average over teacher seeds first"):
        across(pd.concat([values, values.iloc[:1]]), asked)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, not 5"):
        across(values, asked, alpha=5)


def test_an_empty_family_is_an_empty_table_with_all_columns():
    values = disjoint(2)
    table = across(values, family(values[BLOCK].drop_duplicates(), ["kd"], ["ce"]))
    assert len(table) == 0 and {"new_low", "sign_flip_p_holm", "losses"} <= set(table.columns)


@pytest.mark.parametrize("n", [1, 2, 5, 9, 12])
def test_sign_flip_counts_what_scipys_permutation_test_counts(n):
    x = np.random.default_rng(n).normal(0.5, 1, n)
    found = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue if n > 1 else 1.0
    assert sign_flip_p(x) == pytest.approx(found)


def test_sign_flip_enumerates_thirty_two_signs_and_no_more():
    assert sign_flip_p(np.arange(1, 33)) == pytest.approx(2 / 2**32)
    assert np.isnan(sign_flip_p(np.arange(1, 34))) and np.isnan(sign_flip_p([0.0, 0.0])) and np.isnan(sign_flip_p([]))


@pytest.mark.parametrize("n", [3, 6, 13, 25])
def test_wilcoxon_is_scipys_exact_one_where_nothing_is_tied(n):
    x = np.random.default_rng(n).normal(0.3, 1, n)
    assert wilcoxon_p(x) == pytest.approx(stats.wilcoxon(x, method="exact").pvalue)


def test_wilcoxon_with_ties_and_zeros_is_exact_over_all_signs_of_its_ranks():
    x = np.array([1.0, -1.0, 2.0, 2.0, 3.0, 0.0, 2.0, -0.5])
    kept = x[x != 0]
    ranks = stats.rankdata(np.abs(kept))
    sums = np.array([ranks @ signs for signs in itertools.product([-1, 1], repeat=len(kept))])
    assert wilcoxon_p(x) == pytest.approx(np.mean(np.abs(sums) >= abs(ranks @ np.sign(kept)) - 1e-9))


def test_the_rounding_of_floating_point_breaks_no_tie():
    values = frame({("d", f"t{i}", f"s{i}"): [d] for i, d in enumerate([0.01, 0.01, 0.01, -0.01, 0.01, 0.01])})
    values["value"] += np.repeat([0.1, 0.2, 0.3, 0.13, 0.07, 0.41], 2)
    assert compared(values, "ce", "kd")["wilcoxon_blocks_p"] == pytest.approx(14 / 64)


def test_mean_ranks_share_ties_and_leave_out_blocks_where_an_objective_has_no_value():
    rows = [("d", None, "x", "a", 0, 0.5), ("d", None, "x", "b", 0, 0.5), ("d", None, "x", "c", 0, 0.4)]
    rows += [("d", "t", "y", "a", 0, 0.9), ("d", "t", "y", "b", 0, 0.5), ("d", "t", "y", "c", 0, np.nan)]
    values = pd.DataFrame(rows, columns=[*BLOCK, "objective", "repeat", "value"])
    ranks = mean_ranks(values)
    assert ranks["mean_rank"].tolist() == [1.5, 1.5, 3.0] and (ranks["n_blocks"] == 1).all()
    assert mean_ranks(values, higher_is_better=False)["objective"].tolist() == ["c", "a", "b"]
    assert mean_ranks(values[values["student"] == "y"])["mean_rank"].isna().all()


def ranked(table: np.ndarray, blocks: pd.DataFrame) -> pd.DataFrame:
    """Values whose objective `o<j>` has table[i, j] in block i."""
    found = blocks.loc[blocks.index.repeat(table.shape[1])].reset_index(drop=True)
    return found.assign(objective=[f"o{j}" for _ in table for j in range(table.shape[1])], repeat=0, value=table.ravel())


def test_friedman_over_independent_blocks_is_scipys_and_exact_for_three_objectives():
    rng = np.random.default_rng(8)
    blocks = pairs(*(f"t{i}>s{i}" for i in range(6)))
    table = rng.normal(size=(6, 5))
    found, known = friedman(ranked(table, blocks)), stats.friedmanchisquare(*table.T)
    assert (found.statistic, found.p, found.p_blocks, found.n, found.why) == (
        pytest.approx(known.statistic), pytest.approx(known.pvalue), pytest.approx(known.pvalue), 6, "",
    )  # fmt: skip
    table = np.array([[1, 2, 3], [1, 3, 2], [1, 2, 3], [2, 1, 3.0]])
    orders = list(itertools.permutations([1, 2, 3]))
    squares = [(np.sum(rows, axis=0) ** 2).sum() for rows in itertools.product(orders, repeat=4)]
    found = friedman(ranked(table, blocks.iloc[:4]))
    assert found.p == pytest.approx(np.mean(np.array(squares) >= (table.sum(axis=0) ** 2).sum()))
    assert found.p_blocks == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)


def test_friedman_takes_the_means_of_clusters():
    rng = np.random.default_rng(9)
    blocks = pairs("a>x", "a>y", "b>z", "b>w", "c>v")
    table = rng.normal(size=(5, 6))
    means = np.array([table[:2].mean(axis=0), table[2:4].mean(axis=0), table[4]])
    found = friedman(ranked(table, blocks))
    assert (found.n, found.p) == (3, pytest.approx(stats.friedmanchisquare(*means.T).pvalue))


@pytest.mark.parametrize(
    ("blocks", "k", "why"),
    [
        (pairs("a>x", "a>y", "b>x", "b>y"), 4, "students and teachers are crossed (2 x 2): there are no independent clusters"),
        (pairs("a>x", "b>x", "c>x"), 4, "one student: all blocks share its initial weights and its runs without a teacher, so no clusters"),
        (pairs("a>x", "b>y"), 4, "2 independent clusters: Friedman's test needs three"),
        (pairs("a>x", "b>y", "c>z"), 2, "2 objectives: Friedman's test needs three"),
    ],
)
def test_friedman_refuses_and_says_why(blocks, k, why):
    table = np.random.default_rng(10).normal(size=(len(blocks), k))
    found = friedman(ranked(table, blocks))
    assert np.isnan(found.p) and found.why.startswith(why)
    assert np.isfinite(found.p_blocks) == (k > 2)


def test_friedman_says_when_even_one_order_in_all_clusters_would_not_do_and_when_all_are_tied():
    blocks = pairs("a>x", "b>y", "c>z")
    found = friedman(ranked(np.tile([1.0, 2.0, 3.0], (3, 1)), blocks), alpha=0.02)
    assert np.isnan(found.p) and found.why == "3 independent clusters and 3 objectives: even the same order in all gives p = 0.028"
    found = friedman(ranked(np.ones((3, 3)), blocks))
    assert np.isnan(found.p) and found.why == "all objectives are tied in every cluster"
