"""The benchmarks compare what has the same value, measure in turns, and say what they did."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from benchmarks import equivalence, growth, losses, output, peers, plain, scale, scale_verb, side_by_side, timing, training
from benchmarks.__main__ import main
from benchmarks.timing import QUICK, Arm
from kdbench import parts
from kdbench.errors import KdbenchError, UsageError
from kdbench.store import Store, cell_state
from kdbench.store.frame import frame
from kdbench.store.predictions import read_predictions

CPU = torch.device("cpu")
NETS = training.Nets("{model: small_mobile, widths: [8, 12]}", "{model: small_mobile, widths: [4, 6]}", 12, 3)

FAKE_ZOO = """
import torch, torch.nn as nn, torch.nn.functional as F


class {name}(nn.Module):
    def __init__(self, T=4.0):
        super().__init__()
        self.T = T

    def forward(self, x, y):
        {body}
"""
BODIES = {
    "DistillKL": "return F.kl_div(F.log_softmax(x / self.T, 1), F.softmax(y / self.T, 1), reduction='batchmean') * self.T**2",
    "Similarity": "return [x[0].mean() - y[0].mean()]",
}
FAKE_LOOP = """
import torch


def train_distill(epoch, loader, modules, criteria, optimizer, opt):
    print("a line of the peer")
    for inputs, targets, index in loader:
        features, logits = modules[0](inputs, is_feat=True)
        with torch.no_grad():
            known = modules[-1](inputs)
        loss = criteria[0](logits, targets) + opt.alpha * criteria[1](logits, known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files by which RepDistiller is recognised."""
    folder = tmp_path / "some_checkout"
    for name in ("distiller_zoo", "helper"):
        (folder / name).mkdir(parents=True)
    for file, name in peers._ZOO.items():
        text = FAKE_ZOO.format(name=name, body=BODIES.get(name, "raise NotImplementedError"))
        (folder / "distiller_zoo" / f"{file}.py").write_text(text)
    (folder / "helper" / "loops.py").write_text(FAKE_LOOP)
    return folder


def test_each_plain_formula_has_the_value_and_the_gradient_of_its_loss() -> None:
    peer = peers.plain_peer()
    for case in plain.FORMULAS:
        for shape in losses._served(case, losses.shapes(losses.built(case)._needs(), quick=True)):
            assert losses.same_value(losses.Call(case, shape, CPU), peer, case).startswith("yes"), case


def test_every_loss_is_measured_and_one_without_a_peer_says_why() -> None:
    table, turns = losses.run(peers.plain_peer(), [], CPU, [1], QUICK, quick=True)

    assert set(table["loss"]) == {*parts.names("loss"), *plain.FORMULAS}
    assert table["median_ms"].notna().all()
    compared = table["peer"] != ""
    assert set(table["loss"][compared]) == set(plain.FORMULAS)
    assert table.loc[compared, ["ratio", "peer_median_ms", "peer_threads", "same_value"]].notna().all(axis=None)
    assert (table.loc[~compared, "note"].str.len() > 0).all() and table.loc[~compared, "ratio"].isna().all()
    for (loss, _), own in turns.groupby(["loss", "shape"]):
        assert len(own) == QUICK.most * (2 if loss in plain.FORMULAS else 1), loss


def test_arms_take_turns_and_the_order_is_recorded() -> None:
    called: list[str] = []
    arms = [Arm(name, lambda name=name: (called.append(name), torch.get_num_threads()), threads=1) for name in "ab"]
    turns = timing.interleaved(arms, timing.Budget(0.0, 3, 5), CPU)

    assert turns["arm"].tolist() == ["a", "b"] * 3
    assert turns["place"].tolist() == list(range(6)) and turns["round"].tolist() == [0, 0, 1, 1, 2, 2]
    assert "".join(called).count("ab") > 0 and (turns["calls"] >= 1).all()


def test_a_ratio_is_of_times_of_the_same_round_with_the_best_number_of_threads() -> None:
    seconds = {("ours", 1): (2.0, 4.0, 6.0), ("peer", 1): (40.0, 40.0, 40.0), ("peer", 2): (4.0, 4.0, 24.0)}
    turns = pd.DataFrame(
        {"round": turn, "arm": arm, "threads": threads, "seconds": times[turn]}
        for turn in range(3)
        for (arm, threads), times in seconds.items()
    )
    own, other = timing.best(turns, "ours"), timing.best(turns, "peer")

    assert other["threads"].unique().tolist() == [2]
    assert timing.ratio(own, other)["ratio"] == 0.5  # of 0.5, 1 and 0.25


def test_an_exponent_is_the_slope_on_logarithmic_axes() -> None:
    sizes = [1, 2, 4, 8]
    assert timing.exponent(sizes, [3 * size**2 for size in sizes]) == pytest.approx(2)
    assert timing.exponent(sizes, [math.sqrt(size) for size in sizes]) == pytest.approx(0.5)


def test_a_checkout_is_recognised_by_its_files_and_its_code_is_used(checkout: Path) -> None:
    peer = peers.peer_at(checkout)
    table, _ = losses.run(peer, ["kd", "sp", "cka"], CPU, [1], QUICK, quick=True)
    rows = table.set_index("loss")

    assert peer.name == "RepDistiller" and rows.loc[["kd", "sp"], "peer"].tolist() == ["RepDistiller"] * 2
    assert rows.loc["kd", "same_value"].startswith("yes")
    assert rows.loc["sp", "same_value"].startswith("no") and "different things" in rows.loc["sp", "same_value"]
    assert rows.loc[["kd", "sp"], "ratio"].notna().all()
    assert "RepDistiller has no loss 'cka'" in rows.loc["cka", "note"]


def test_a_folder_that_is_no_known_checkout_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "is a checkout of none"), (tmp_path / "none", "is not a folder")):
        found = CliRunner().invoke(main, ["losses", "--quick", "--peer", str(path), "--out", str(tmp_path / "out")])
        assert found.exit_code == 2 and reason in found.output and not (tmp_path / "out").exists()
        for name, (signs, _) in peers.KNOWN.items():
            assert name in found.output and all(sign in found.output for sign in signs)
    with pytest.raises(UsageError, match="no loss 'ks'; available: ab, .*kd"):
        losses.built("ks")


def test_a_table_is_written_whole_with_the_machine_and_the_command_above_it(tmp_path: Path) -> None:
    arguments = ["losses", "--quick", "--loss", "kd", "--loss", "wsld", "--out", str(tmp_path)]
    (tmp_path / "losses.csv").write_text("an older table\n" * 100)
    found = CliRunner().invoke(main, arguments, catch_exceptions=False)

    text = (tmp_path / "losses.csv").read_text()
    assert found.exit_code == 0 and "an older table" not in text
    for name in ("command: python -m benchmarks", "machine: cpu", "cores", "versions: torch", "python", "kdbench", "repetitions:"):
        assert name in text
    table = pd.read_csv(tmp_path / "losses.csv", comment="#")
    assert table["loss"].tolist() == ["kd", "wsld"] and table["peer"].fillna("").tolist() == [peers.PLAIN, ""]
    assert (tmp_path / "losses.md").read_text().strip() == found.stdout.strip()
    assert pd.read_csv(tmp_path / "losses_turns.csv", comment="#")["arm"].tolist()[:2] == ["kdbench", peers.PLAIN]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.csv", "losses.md", "losses_turns.csv"]


def test_a_header_names_no_folder_of_the_machine() -> None:
    assert output._without_folders("/home/somebody/RepDistiller") == "RepDistiller" and output._without_folders("kd") == "kd"


def test_a_step_is_measured_by_each_loop_and_the_peers_loop_is_used(checkout: Path) -> None:
    table, turns = training.step(NETS, ["kd"], peers.peer_at(checkout), CPU, [(1, 0)], QUICK)
    rows = table.set_index("loop")

    tables = {f"kdbench, {numerics}, filled table" for numerics in ("exact", "fast")}  # not where bits depend on the place in a batch
    always = {"bare loop", "kdbench, exact, live teacher", "kdbench, fast, live teacher", "loop of RepDistiller, 0 workers"}
    assert always <= set(rows.index) <= always | tables
    assert rows.loc["bare loop", "to_bare_loop"] == rows.loc["loop of RepDistiller, 0 workers", "ratio"] == 1
    assert turns["arm"].tolist()[: len(rows)] == table["loop"].tolist()
    of_maps, _ = training.step(NETS, ["at"], peers.plain_peer(), CPU, [(1, 0)], QUICK)
    assert not of_maps["loop"].str.contains("table").any() and of_maps["note"].str.contains("no table holds the stages").all()
    related, _ = training.step(NETS, ["sp"], peers.plain_peer(), CPU, [(1, 0)], QUICK)
    assert always - {"loop of RepDistiller, 0 workers"} <= set(related["loop"]) <= always | tables | {"loop of plain formula, 0 workers"}


LIKE_A_PEER = {
    "recipe": "{name: short, epochs: 2, batch_size: 16, lr: 0.01, milestones: []}",
    "objectives": "{kd: , rkd: {weight: 1, weight_from: assumed}}",
    "repeats": "3",
    "baselines": "[kd]",
}


def accuracies(**shift: float) -> pd.DataFrame:
    """Of 20 repeats whose accuracies vary by ten points, and of two ways by a tenth of a point."""
    draws = np.random.default_rng(0)
    both = {(name, repeat): 50 + 10 * draws.normal() for name in ("kd", "rkd") for repeat in range(20)}
    return pd.DataFrame(
        [
            {"way": way, "objective": name, "repeat": repeat, "top1": value + by + 0.1 * draws.normal()}
            for way, by in shift.items()
            for (name, repeat), value in both.items()
        ]
    )


def test_ways_are_equal_if_the_interval_of_paired_differences_lies_within_the_margin() -> None:
    table = equivalence.tests(accuracies(ours=0.0, theirs=0.2), [("ours", "theirs")], margin=0.5)
    assert table["objective"].tolist() == ["kd", "rkd", "mean over all"] and table["n"].tolist() == [20] * 3
    assert table["difference"].between(-0.3, -0.1).all() and (table["equal"] == "yes").all()
    apart = equivalence.tests(accuracies(ours=0.0, theirs=0.6), [("ours", "theirs")], margin=0.5)
    assert (apart["equal"] == "not shown").all() and (apart["p"] > 0.5).all()
    for row in [*table.to_dict("records"), *apart.to_dict("records")]:
        assert (row["p"] < 0.05) == (row["low"] > -0.5 and row["high"] < 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numerics": "fast"}, "leave `numerics` out"),
        ({"recipe": "{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: []}"}, "needs lr: 0.01"),
        ({"objectives": "[kd, nkd]"}, "plain formula trains with one of"),
        ({"objectives": "{kd: {weight: 0.5, weight_from: assumed}}"}, "has the weight 0.9 here, and 0.1 for the task's loss"),
        ({"objectives": "{kd: {controls: [shuffled]}}"}, "without `tune`, controls and two stages"),
    ],
)
def test_a_suite_that_a_peer_would_train_otherwise_is_refused(
    change: dict[str, str], message: str, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(KdbenchError, match=message):
        equivalence.run(write_suite(**{**LIKE_A_PEER, **change}), tmp_path / "work", tmp_path, peers.plain_peer(), None, 1, 1.0)


@pytest.mark.slow
def test_students_of_both_numerics_and_of_a_peers_loop_are_compared_and_not_trained_again(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    given = write_suite(**LIKE_A_PEER), tmp_path / "work", tmp_path, peers.plain_peer(), None, 2
    table, found = equivalence.run(*given, 100.0)
    assert (table["equal"] == "yes").all() and len(table) == 6 and set(table["n"]) == {3}
    assert found.groupby("way").size().to_dict() == {"kdbench, exact": 6, "kdbench, fast": 6, "loop of plain formula": 6}
    written = (tmp_path / "work" / "plain_formula.csv").stat().st_mtime_ns
    again, _ = equivalence.run(*given, 1e-3)
    assert again["difference"].tolist() == table["difference"].tolist() and (again["equal"] == "not shown").any()
    assert (tmp_path / "work" / "plain_formula.csv").stat().st_mtime_ns == written


def test_the_bundles_of_a_suite_are_measured_beside_their_prediction(write_suite: Callable[..., Path]) -> None:
    suite = write_suite(objectives="[ce, kd, sp]", repeats="2")
    table, _ = training.of_suite(suite, CPU, QUICK, 1)

    assert table["teacher"].tolist() == ["big", "sum over all pairs"] and table["k"].tolist() == [2, 2]
    pair = table.iloc[0]
    assert pair["predicted_ratio"] == pytest.approx((pair["T_s"] + 2 * pair["S_s"]) / (2 * (pair["T_s"] + pair["S_s"])))
    assert pair["ratio"] == pytest.approx(pair["bundled_s"] / pair["separate_s"])


def test_a_matrix_is_compared_round_by_round_and_says_when_a_table_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ours:
        fill_s = 3.0

        def __init__(self, *_: object):
            pass

        def run(self, provider: str) -> tuple[float, float]:
            return (10.0, 4.0) if provider == "live" else (8.0, 3.0)

    fast, slow = side_by_side.Way(2, 1, 0), side_by_side.Way(1, 2, 0)
    monkeypatch.setattr(side_by_side, "Ours", Ours)
    monkeypatch.setattr(side_by_side, "theirs", lambda nets, names, path, way: (20.0, 8.0) if way == fast else (30.0, 9.0))

    def matrix(*names: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        return side_by_side.matrix(NETS, names, peers.plain_peer(), None, "cpu", 2, [slow, fast], 2, ["exact"])

    table, turns = matrix("kd", "rkd")

    assert table["wall_ratio"].tolist() == [0.5, 0.4, 1.0, 1.5] and table["epoch_ratio"].tolist() == [0.5, 0.375, 1.0, 1.125]
    assert table["processes"].tolist() == [2, 2, fast.processes, slow.processes] and table["break_even_runs"].tolist()[1] == 1.5
    assert table["threads"].tolist() == [1, 1, fast.threads, slow.threads]
    assert turns["arm"].tolist()[-4:] == ["exact", "exact", peers.PLAIN, f"{peers.PLAIN}, one loss at a time"]
    assert matrix("kd", "at")[0]["teacher"].tolist() == ["live", "live", "live"]  # the maps of at are in no table
    with pytest.raises(UsageError, match="cannot train with crd"):
        matrix("crd")
    fast, slow = slow, fast
    assert len(matrix("kd", "rkd")[0]) == 3, "the fastest way trains one loss at a time"


def test_growth_has_an_exponent_for_each_loss_and_a_figure() -> None:
    table, fits, (pdf, png) = growth.run(NETS, CPU, QUICK, True, ["n", "cells"])

    assert set(fits["what"]) == {*growth.LOSSES[:2], "kdbench plan"} and fits["exponent"].notna().all()
    assert table.groupby("what").size().eq(2).all()
    assert pdf.startswith(b"%PDF") and png.startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_command_runs_from_start_to_end(tmp_path: Path) -> None:
    for command in ("matrix", "overhead", "growth"):
        found = CliRunner().invoke(main, [command, "--quick", "--out", str(tmp_path)], catch_exceptions=False)
        assert found.exit_code == 0 and (tmp_path / f"{command}.csv").is_file(), found.output


def test_simulated_results_are_trusted_by_the_store_and_are_not_made_again(tmp_path: Path) -> None:
    suite, results = tmp_path / "scale_pairs_100.yaml", tmp_path / "results"
    suite.write_text(scale.suite_of(100, "pairs"))
    found = scale.simulate(suite, results)
    store = Store(results)
    manifest = store.manifest("scale_pairs_100")
    assert found["cells"] == len(manifest.cells) and found["files"] == 5 * found["cells"]
    assert {cell_state.of(store, cell.id).name for cell in manifest.cells} == {"finished"}
    runs, read = read_predictions(store, manifest, frame(store, manifest))
    assert (runs["state"] == "finished").all() and not any(isinstance(one, str) for one in read.values())

    paths = [store.file(cell.id, "record.json") for cell in manifest.cells]
    before = [path.stat().st_mtime_ns for path in paths]
    assert scale.simulate(suite, results) == found and [path.stat().st_mtime_ns for path in paths] == before


def test_exponents_of_scale_are_of_the_largest_sizes_and_of_nothing_that_is_too_small() -> None:
    sizes = (100, 1000, 2000, 4000)
    rows = [
        {"by": "pairs", "verb": "plan", "part": "", "cells": n, "cpu_s": 1.0 if n == 100 else n**1.5, "wall_s": 0.01, "opened": 3 * n}
        for n in sizes
    ]
    (line,) = scale.fitted(pd.DataFrame(rows).reindex(columns=["by", "verb", "part", "cells", *scale_verb.NUMBERS])).to_dict("records")
    assert line["cpu_s"] == pytest.approx(1.5) and line["opened"] == pytest.approx(1.0)
    assert line["wall_s"] is None and line["points"] == len(sizes)
