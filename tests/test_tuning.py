"""Tuning: every loss gets the same search, its trials are cells like any other, and nothing of them reaches the final numbers."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench import choice, parts
from kdbench.cell import Cell
from kdbench.errors import DataError, SuiteError
from kdbench.plan import tuning
from kdbench.plan.bundle import bundles
from kdbench.plan.matrix import Plan
from kdbench.plan.schema import Search
from kdbench.record import Record
from kdbench.report.figures import tuning as figures
from kdbench.report.figures.figure_data import FigureData
from kdbench.report.study import study
from kdbench.report.tuning_table import tuning_table
from kdbench.report.warnings import warnings
from kdbench.report.write import ReportOptions, compose, from_store
from kdbench.store import Store
from kdbench.store.trials import trials
from kdbench.train.build import Setup, point_of
from kdbench.train.seeds import Streams
from tests.conftest import After
from tests.losses.toys import for_classifiers

STUDENTS = "{small: {model: small_mobile, widths: [4, 6]}, other: {model: small_mobile, widths: [6, 6]}}"
TUNED = {"dataset": "{name: digits, per_class: 8}", "tune": "{trials: 4}"}


def tried(score: float | None, point: dict[str, float], metric: str = "top1") -> Record:
    """A trial's record; None: it diverged."""
    result = {"tuned": point, "history": [{"epoch": 0, "terms": {}, "val": {metric: score}}]}
    return Record("0" * 12, {}, "diverged" if score is None else "finished", result, {})


def pick(what: Any, records: list[Record], **words: Any) -> choice.Point:
    return choice.picked({"pick": what, "metric": "top1", "higher_is_better": True, **words}, records)


def weights(*scores: float | None) -> list[Record]:
    """Trials at the factors 1, 4, 16, ..."""
    return [tried(score, {"weight": 4.0**place}) for place, score in enumerate(scores)]


def test_the_further_trial_is_beyond_an_end_and_else_beside_the_best():
    assert pick("further", weights(0.9, 0.5, 0.4)) == {"weight": 0.25}
    assert pick("further", weights(0.4, 0.5, 0.9)) == {"weight": 64.0}
    assert pick("further", weights(0.4, 0.9, 0.5)) == {"weight": 8.0}
    assert pick("further", weights(0.5, 0.9, 0.4)) == {"weight": 2.0}
    # The other dimensions stay with the best.
    two = [tried(score, {"weight": weight, "temperature": weight + 1}) for score, weight in ((0.1, 1.0), (0.3, 10.0), (0.2, 100.0))]
    assert pick("further", two) == {"weight": 31.62, "temperature": 11.0}
    # In whatever order the trials are.
    assert pick("further", two[::-1]) == pick("further", two)


def test_ranks_are_by_the_mean_over_repeats_and_the_first_of_equals_is_before_the_others():
    records = [*weights(0.5, 0.5, 0.7), tried(0.9, {"weight": 1.0})]
    assert [pick(place, records)["weight"] for place in range(3)] == [1.0, 16.0, 4.0]
    assert pick(0, weights(0.5, 0.5, 0.5)) == {"weight": 1.0}
    lower = [tried(value, {"weight": float(place)}, "nll") for place, value in enumerate((2.0, 1.0, 3.0), 1)]
    assert choice.picked({"pick": 0, "metric": "nll", "higher_is_better": False}, lower) == {"weight": 2.0}


def test_the_best_is_among_those_that_were_tried_most_often():
    records = weights(0.5, 0.9, 0.99)
    again = [tried(0.6, {"weight": 1.0}), tried(0.4, {"weight": 4.0})]
    assert pick("best", [*records, *again]) == {"weight": 4.0}
    assert pick("best", records) == {"weight": 16.0}


def test_a_trial_that_diverged_is_the_worst_and_none_that_is_left_is_said():
    records = weights(None, 0.2, None)
    assert pick("best", records) == {"weight": 4.0} and pick("further", records) == {"weight": 2.0}
    with pytest.raises(DataError, match="every trial that was repeated diverged"):
        pick("best", weights(None, None, None))
    with pytest.raises(DataError, match="has no top1 on images held out"):
        pick("best", [tried(0.5, {"weight": 1.0}, "top5")])
    # A metric that is not finite is stored as null.
    assert pick(
        0, [*weights(0.1, 0.2), Record("0" * 12, {}, "finished", {"tuned": {"weight": 9.0}, "history": [{"val": {"top1": None}}]}, {})]
    ) == {"weight": 4.0}
    with pytest.raises(DataError, match="does not say which point"):
        pick("best", [Record("0" * 12, {}, "finished", {"history": []}, {})])


def test_a_point_multiplies_weights_schedules_and_options_of_the_tuned_terms_alone():
    def term(weight: Any, **options: Any) -> dict[str, Any]:
        return {"loss": "x", "weight": weight, "options": options}

    terms = [term(2.0, temperature=4.0, mode="a"), term([[0, 1.0], [5, 3.0]], temperature=0, k=3), term(0.9, temperature=4.0)]
    objective = {"task": 1.0, "terms": terms, "tuned": {"pick": "best", "terms": 2}, "dot": 0.1}
    found = choice.applied(objective, {"weight": 10.0, "temperature": 0.5, "k": 1.5})
    changed = [term(20.0, temperature=2.0, mode="a"), term([[0, 10.0], [5, 30.0]], temperature=0, k=4), terms[2]]
    assert found == {"task": 1.0, "terms": changed, "dot": 0.1} and objective["terms"] == terms


def test_points_of_one_dimension_are_a_grid_and_of_several_each_value_of_the_weight_once():
    values = tuning.grid(0.1, 10.0, 6)
    assert values == pytest.approx(np.geomspace(0.1, 10.0, 6), rel=1e-3)
    assert tuning.points(Search({"weight": values}, 1)) == [{"weight": value} for value in values]
    points = tuning.points(Search({"weight": values, "temperature": [0.5, 1.0, 2.0], "k": [1.0, 2.0]}, 1))
    assert [point["weight"] for point in points] == values
    for name in ("temperature", "k"):  # spread evenly
        counts = Counter(point[name] for point in points)
        assert len(counts) > 1 and max(counts.values()) - min(counts.values()) <= 1
    assert len({tuple(point.values()) for point in points}) == 6


def every_loss() -> str:
    """All losses of the shelf, each with its first preset; those without a weight are searched by the size of their gradient."""
    return json.dumps(["ce", *filter(for_classifiers, parts.names("loss"))])


@pytest.fixture(scope="module")
def all_tuned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    from kdbench.plan import matrix
    from kdbench.plan.suite import read

    path = tmp_path_factory.mktemp("all") / "all.yaml"
    path.write_text(
        f"""
dataset: {{name: digits, per_class: 20}}
recipe: {{name: short, epochs: 3, batch_size: 64, lr: 0.02, milestones: [2]}}
teachers: {{big: {{model: cifar_resnet, depth: 14}}}}
students: {{small: {{model: cifar_resnet, depth: 8}}}}
objectives: {every_loss()}
tune: {{trials: 6}}
repeats: 3
"""
    )
    return matrix.expand(read(path))


def searched(plan: Plan, measure: Callable[[Cell, choice.Point], float], gradient: float = 0.7) -> dict[str, Record]:
    """Every trial and tuned student of a plan, as training would leave them: `measure` gives the metric of a cell at a point. A weight
    that is searched by its gradient has a gradient of `gradient` times the task's."""
    records: dict[str, Record] = {}
    for row in plan.rows:
        tuned = row.cell.config["objective"].get("tuned")
        if tuned is None:
            continue
        point = choice.picked(tuned, [records[other] for role, other in sorted(row.cell.depends.items()) if role.startswith(choice.WORD)])
        if "gradient" in point:
            point = {"weight": choice.rounded(point["gradient"] / gradient)}
        history = [{"epoch": 0, "terms": {}, "val": {"top1": measure(row.cell, point)}}]
        records[row.cell.id] = Record(row.cell.id, row.cell.config, "finished", {"tuned": point, "history": history}, {})
    return records


def test_on_a_known_surface_the_best_weight_is_found_within_one_step_of_the_grid_for_every_loss(all_tuned: Plan):
    losses = {row.objective for row in all_tuned.rows if row.role == "trial" and row.objective}
    assert losses == {*filter(for_classifiers, parts.names("loss"))}
    draws = np.random.default_rng(0)
    best = {name: 10 ** draws.uniform(-0.9, 0.9) for name in losses}

    def surface(cell: Cell, point: choice.Point) -> float:
        name = cell.config["objective"]["terms"][0]["loss"]
        return 0.7 - 0.05 * math.log10(point["weight"] / best[name]) ** 2

    records = searched(all_tuned, surface)
    for row in all_tuned.rows:
        if row.role == "student" and row.objective in losses:
            first = [
                records[one.cell.id] for one in all_tuned.rows if (one.objective, one.role) == (row.objective, "trial") and one.trial <= 6
            ]
            values = sorted(one.result["tuned"]["weight"] for one in first)
            step = values[1] / values[0]
            factor = records[row.cell.id].result["tuned"]["weight"] / best[row.objective]
            assert 1 / step < factor < step, (row.objective, factor, step)


def test_an_optimum_beyond_the_range_is_followed_by_one_step(all_tuned: Plan):
    for sign, end in ((1, 10.0), (-1, 0.1)):
        records = searched(all_tuned, lambda cell, point, sign=sign: 0.5 + 0.01 * sign * math.log10(point["weight"]))
        final = next(row.cell for row in all_tuned.rows if row.role == "student" and row.objective == "kd")
        step = tuning.grid(0.1, 10.0, 6)[1] / 0.1
        assert records[final.id].result["tuned"]["weight"] == pytest.approx(end * step**sign, rel=1e-2)


def test_the_luck_of_the_validation_is_not_in_the_final_numbers(all_tuned: Plan):
    """All weights are equally good, so whatever looks better has had luck: the validation shows it, and the final runs do not."""
    draws = np.random.default_rng(1)
    lucky, final = [], []
    for _ in range(60):
        records = searched(all_tuned, lambda cell, point: 0.6 + 0.01 * draws.standard_normal())
        for row in all_tuned.rows:
            if row.role == "student" and row.objective in ("kd", "sp", "rkd"):
                mine = [records[other] for role, other in row.cell.depends.items() if role.startswith(choice.WORD)]
                lucky.append(choice.best(choice.candidates(mine, "top1")).mean)
                final.append(records[row.cell.id].result["history"][-1]["val"]["top1"])
    assert np.mean(lucky) > 0.604
    assert abs(np.mean(final) - 0.6) < 4 * 0.01 / len(final) ** 0.5


def test_every_tuned_loss_has_the_same_number_of_trials_and_the_finals_share_no_run_with_them(all_tuned: Plan):
    rows = all_tuned.rows
    counts = Counter(row.objective for row in rows if row.role == "trial" and row.objective)
    assert set(counts.values()) == {6 + 1 + 3 * 2} and set(counts) == {*filter(for_classifiers, parts.names("loss"))}
    held_out = {row.cell.config["dataset"]["options"]["validation"] for row in rows if row.role == "trial"}
    assert held_out == {0.2} and {row.cell.config["dataset"]["options"]["validation"] for row in rows if row.role != "trial"} == {0.0}
    teachers = {row.cell.id: row for row in rows if row.cell.role == "teacher"}
    assert len(teachers) == 2
    for row in rows:
        if row.objective not in (None, "ce"):
            assert teachers[row.cell.depends["teacher"]].role == ("trial" if row.role == "trial" else "teacher")
    manifest = all_tuned.manifest()
    assert manifest.tuning and manifest.tuning.trainings == 13
    assert {one.weight_from for one in manifest.objectives if one.name != "ce"} == {"tuned"}
    assert type(manifest).from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_the_id_of_a_tuned_cell_holds_the_search_and_no_result(plan_of: Callable[..., Plan]):
    def final(**changes: str) -> str:
        rows = plan_of(**{**TUNED, "objectives": "[ce, kd]", **changes}).rows
        return next(row.cell.id for row in rows if row.objective == "kd" and row.role == "student")

    ids = [
        final(),
        final(tune="{trials: 5}"),
        final(tune="{trials: 4, weight: {from: 0.5, to: 2}}"),
        final(tune="{trials: 4, validation: 0.3}"),
    ]
    ids += [final(tune="{trials: 4, repeats: 2}"), final(objectives="[ce, {kd: {tune: false}}, sp]")]
    assert len(set(ids)) == len(ids) and final() == ids[0]
    # Another loss beside changes nothing.
    assert final(objectives="[ce, kd, sp]") == ids[0]


def test_trials_of_one_pair_are_trained_side_by_side_round_by_round(plan_of: Callable[..., Plan]):
    plan = plan_of(**{**TUNED, "objectives": "[ce, kd, sp, cka]"})
    names = {row.cell.id: (row.objective, row.trial, row.repeat) for row in plan.rows if row.role == "trial"}
    grouped = [{names[cell_id] for cell_id in bundle.ids} for bundle in bundles(plan.cells.values()) if bundle.ids[0] in names]
    assert {(name, trial, 0) for name in ("kd", "sp", "cka") for trial in (1, 2, 3, 4)} in grouped
    assert {(name, 5, 0) for name in ("kd", "sp", "cka")} in grouped
    assert {(name, trial, 2) for name in ("kd", "sp", "cka") for trial in (6, 7, 8)} in grouped
    # The final runs of all losses, too, whatever they were tuned on.
    finals = [bundle for bundle in bundles(plan.cells.values()) if bundle.cells[0].role == "student" and bundle.teacher]
    assert [len(bundle.cells) for bundle in finals] == [3, 3]


def test_one_pair_may_be_tuned_for_all(plan_of: Callable[..., Plan]):
    students = "{small: {model: small_mobile, widths: [4, 6]}, other: {model: small_mobile, widths: [6, 6]}}"
    shared = plan_of(**{**TUNED, "students": students, "objectives": "[ce, kd]", "tune": "{trials: 4, share: {pair: [small, big]}}"})
    own = plan_of(**{**TUNED, "students": students, "objectives": "[ce, kd]"})

    def searches(plan: Plan) -> dict[str, frozenset[str]]:
        chosen = defaultdict(set)
        for row in plan.rows:
            if row.role == "student" and row.objective == "kd":
                chosen[row.student] |= {other for role, other in row.cell.depends.items() if role.startswith(choice.WORD)}
        return {student: frozenset(ids) for student, ids in chosen.items()}

    assert searches(shared)["small"] == searches(shared)["other"] == searches(own)["small"] != searches(own)["other"]
    assert Counter(row.student for row in shared.rows if row.role == "trial" and row.objective) == {"small": 4 + 1 + 6}


def test_kd_beside_a_loss_is_not_tuned_with_it(plan_of: Callable[..., Plan]):
    plan = plan_of(**{**TUNED, "objectives": "[ce, {sp: {weight: 3, +kd: true}}]"})
    row = next(row for row in plan.rows if row.objective == "sp+kd" and row.trial == 1)
    found = choice.applied(row.cell.config["objective"], row.cell.config["objective"]["tuned"]["point"])
    assert [(term["loss"], term["weight"]) for term in found["terms"]] == [("sp", pytest.approx(0.3)), ("kd", 1.0)]


def test_what_is_wrong_with_a_search_is_said_in_the_suite(refusal: Callable[..., str]):
    cases = {
        "{trials: 2}": "tune.trials: 2: expected a number of at least 3",
        "{weight: {from: 3, to: 1}}": "tune.weight: `from` is not below `to`: 3 and 1",
        "{weight: [1, 2]}": "2 values for 6 trials",
        "{weight: [2, 1, 3, 4, 5, 6]}": "increasing",
        "{temprature: {from: 1, to: 2}}": "no loss that is tuned has an option 'temprature' that is a number above 0; did you mean 'temperature'",
        "{wieght: {from: 1, to: 2}}": "no loss that is tuned has an option 'wieght' that is a number above 0; did you mean 'weight'",
        "{trails: [1, 2]}": "did you mean 'trials'",
        "{share: {pair: [smal, big]}}": "'smal' is not among the suite's students; did you mean 'small'",
        "{share: {pair: [small]}}": "tune.share.pair",
        "{validation: 1.5}": "tune.validation",
        "3": "tune: 3: expected a mapping",
    }
    for given, message in cases.items():
        assert message in refusal(**{**TUNED, "tune": given}), given
    others = [
        ({"objectives": "[ce]"}, "no objective is tuned"),
        ({"objectives": "[ce, {kd: {tune: false}}]"}, "no objective is tuned"),
        ({"objectives": "[ce, {kd: {tune: {tau: [1, 2]}}}]"}, "'kd' has no option 'tau' that is a number above 0"),
        ({"objectives": "[ce, {kd: {tune: {wieght: [1, 2]}}}]"}, "did you mean 'weight'"),
        ({"objectives": "[ce, {kd: {tune: {weight: [1, 2, 3, 4], gradient: [1, 2, 3, 4]}}}]"}, "give one of them"),
        ({"dataset": "{name: digits, per_class: 8, validation: 0.1}"}, "the final trainings use all images"),
        ({"tune": None, "objectives": "[ce, {kd: {tune: {weight: [1, 2, 3]}}}]"}, "the suite has no `tune`"),
        ({"tune": None, "objectives": "[ce, cka]"}, "'cka' has no published weight"),
        ({"objectives": "[ce, {cka: {tune: false}}]"}, "'cka' has no published weight"),
        ({"objectives": "[ce, {mine: {terms: [{loss: kd, tune: false}]}}]"}, "'tune' belongs to the objective"),
        ({"tune": "{trials: 200}", "repeats": "20000"}, "the limit is 20,000"),
        ({"tune": "{trials: 100, repeats: 100}"}, "each search would have 10,100 trainings, and the limit is 1,000"),
        ({"tune": "{trials: 4, weight: {from: 1, to: 1.0001}}"}, "differ by less than 1 %"),
        ({"tune": "{trials: 4, weight: [1, 1.001, 2, 3]}"}, "differ by less than 1 %"),
        ({"tune": "{trials: 4, weight: {from: 1.0e-300, to: 1.0e300}}"}, "tune.weight"),
        ({"tune": "{trials: 4, gradient: {from: 0.1, to: 1}}"}, "no loss that is tuned has an option 'gradient'"),
        ({"objectives": "[ce, {kd: {weight: 0}}]"}, "a weight of 0 is not searched around"),
        (
            {"objectives": "[ce, kd]", "pairs": "{small: [big]}", "students": STUDENTS, "tune": "{share: {pair: [other, big]}}"},
            "is not among",
        ),
    ]
    for changes, message in others:
        assert message in refusal(**{**TUNED, **changes}), changes


def test_what_a_trial_could_not_be_trained_with_is_said_when_planning(write_suite: Callable[..., Path]):
    from kdbench.plan import matrix, probe
    from kdbench.plan.suite import read

    cases = [
        (
            {"objectives": "[ce, {crd: {tune: {momentum: [0.5, 1, 2]}}}]"},
            "momentum times 2: the loss 'crd' cannot be built with these options: momentum must be at least 0",
        ),
        ({"objectives": "[ce, kd]", "tune": "{validation: 0.0001}"}, "`validation` holds out no image of 80"),
    ]
    for changes, message in cases:
        with pytest.raises(SuiteError) as error:
            probe.probe(matrix.expand(read(write_suite(**{**TUNED, **changes}))))
        assert message in str(error.value), (changes, str(error.value))
    probe.probe(matrix.expand(read(write_suite(**TUNED))))


def test_trials_of_a_search_share_all_draws_and_the_finals_share_none_with_them(plan_of: Callable[..., Plan]):
    plan = plan_of(**{**TUNED, "objectives": "[ce, {crd: {weight: 0.8}}]"})
    streams = {(row.role, row.trial, row.repeat): Streams.of(row.cell.config) for row in plan.rows if row.objective == "crd"}
    first = [streams["trial", trial, 0] for trial in (1, 2, 3, 4, 5)]
    assert all(one == first[0] for one in first)
    again = {streams["trial", trial, repeat] for trial in (6, 7, 8) for repeat in (1, 2)}
    finals = {streams["student", None, repeat] for repeat in (0, 1)}
    every = [value for one in ({first[0]} | again | finals) for value in vars(one).values()]
    assert len(again) == len(finals) == 2 and len(set(every)) == len(every)


def test_a_teacher_whose_weights_may_know_the_images_held_out_is_said(plan_of: Callable[..., Plan], tmp_path: Path):
    import torch

    from kdbench.train.build import make_dataset, make_model, make_task

    plain = plan_of(**TUNED)
    cell = plain.teachers[0].cell
    torch.save(make_model(cell, make_dataset(cell), make_task(cell)).state_dict(), tmp_path / "big.pt")
    teachers = "{big: {model: small_mobile, widths: [8, 12], min_top1: 0.0, weights: big.pt, train: false}}"
    said = " ".join(plan_of(**{**TUNED, "teachers": teachers}).manifest().assumed)
    assert "may have been trained on the images held out for validation" in said
    assert not plain.manifest().assumed


def test_a_cluster_asks_for_trials_what_it_asks_for_students_and_for_their_teacher_what_it_asks_for_teachers(
    plan_of: Callable[..., Plan], tmp_path: Path
):
    from kdbench.slurm.cluster import read

    path = tmp_path / "cluster.yaml"
    path.write_text("timeout_min: 60\nmem_gb: 4\noverrides: [{role: teacher, timeout_min: 600}, {role: student, timeout_min: 30}]\n")
    plan = plan_of(**{**TUNED, "objectives": "{ce: , kd: {controls: [untrained]}}"})
    asked = {(row.role, row.objective): read(path).request_of(row)["timeout_min"] for row in plan.manifest().cells}
    assert {minutes for (_, objective), minutes in asked.items() if objective is None} == {600}
    assert {minutes for (_, objective), minutes in asked.items() if objective} == {30}


MINE = '''
"""A loss with learnable parts and a memory of what it saw."""

import torch
from torch import nn

from kdbench import Loss


class Mine(Loss):
    """Distance of a map of the student's features to the teacher's, with a running scale."""

    needs = frozenset({"pooled"})
    laws = frozenset()

    def __init__(self, *, power: float = 2.0):
        super().__init__()
        self.power = power

    def bind(self, pair):
        self.map = nn.Linear(pair.student.pooled.shape[1], pair.teacher.pooled.shape[1])
        self.register_buffer("scale", torch.ones(()))

    def forward(self, student, teacher, batch):
        self.scale.mul_(0.9).add_(0.1 * teacher.pooled.norm(dim=1).mean())
        return ((self.map(student.pooled) - teacher.pooled) / self.scale).abs().pow(self.power).mean()
'''
"""Its weight is not known, so that it is searched by its gradient."""


@pytest.fixture
def tuned(tmp_path: Path, plan_of: Callable[..., Plan]) -> Plan:
    (tmp_path / "mine.py").write_text(MINE)
    mine = "{mine: {loss: 'mine.py:Mine', tune: {power: [0.5, 1]}}}"
    return plan_of(**{**TUNED, "objectives": f"[ce, kd, {mine}]", "tune": "{trials: 3, repeats: 2, temperature: [0.5, 1]}", "repeats": "1"})


def results(store: Store, plan: Plan) -> dict[str, Any]:
    return {cell_id: record.result for cell_id in plan.cells if (record := store.record(cell_id))}


@pytest.mark.slow
def test_a_search_trained_for_real_is_the_same_in_a_bundle_alone_and_killed(
    tuned: Plan, train: Callable[..., int], store: Store, tmp_path: Path
):
    assert train(tuned) == 0
    expected = results(store, tuned)
    assert len(expected) == len(tuned.cells)
    by_objective = defaultdict(list)
    for row in tuned.rows:
        if row.role == "trial" and row.objective:
            by_objective[row.objective].append(expected[row.cell.id])
    assert {name: len(found) for name, found in by_objective.items()} == {"kd": 14, "mine": 14}
    for row in tuned.rows:
        if row.role == "student" and row.objective in by_objective:
            point = expected[row.cell.id]["tuned"]
            ids = [other for role, other in sorted(row.cell.depends.items()) if role.startswith(choice.WORD)]
            assert point == choice.best(choice.candidates(filter(None, map(store.record, ids)), "top1")).point
            assert point == point_of(store, row.cell) and set(point) == {"weight", "temperature" if row.objective == "kd" else "power"}
    # What a gradient asks for became a weight, the same on both repeats.
    first = [result["tuned"]["weight"] for result in by_objective["mine"][:6]]
    assert first[0::2] == first[1::2] == sorted(first[1::2])

    alone = Store(tmp_path / "alone")
    for cell in sorted(tuned.cells.values(), key=lambda cell: len(cell.depends)):
        assert train(tuned, [cell.id], alone) == 0
    assert results(alone, tuned) == expected

    from kdbench.errors import StoppedError
    from kdbench.failure import STOPPED

    killed, stops = Store(tmp_path / "killed"), 0
    while len(results(killed, tuned)) < len(tuned.cells):
        left = [cell_id for cell_id in tuned.cells if not killed.is_done(cell_id)]
        least = min(len(tuned.cells[cell_id].depends) for cell_id in left)
        try:
            status = train(tuned, [cell_id for cell_id in left if len(tuned.cells[cell_id].depends) == least], killed, stop=After(5))
        except StoppedError:
            status = STOPPED
        stops += status == STOPPED
    assert results(killed, tuned) == expected and stops > 4


def test_the_weight_of_a_gradient_leaves_the_first_step_as_it_was(tuned: Plan, train: Callable[..., int], store: Store):
    """A trial by its gradient is, bit for bit, the training at the weight that it found."""
    assert train(tuned, [row.cell.id for row in tuned.rows if row.cell.role == "teacher"]) == 0
    from kdbench.losses._base import Batch
    from kdbench.train.stream import BatchPlan

    row = next(row for row in tuned.rows if row.objective == "mine" and row.trial == 2 and row.repeat == 0)
    setup = Setup.of(row.cell, store.root, __import__("torch").device("cpu")).with_teacher(store, row.cell)
    import torch

    def stepped(point: choice.Point) -> Any:
        member = setup.member(row.cell, point)
        plan = BatchPlan.of(row.cell.config, setup.data)
        index, _ = next(plan.epoch(0))
        inputs, targets = next(setup.data.batches("train", [next(plan.epoch(0))]))
        assert setup.teacher
        member.step(inputs, targets, Batch(targets, torch.as_tensor(index), 0, 0), setup.teacher.taps(inputs), True)
        return member

    asked = point_of(store, row.cell)
    assert asked and "gradient" in asked
    found = stepped(asked)
    again = stepped(dict(found.point))
    for name, value in again.trained.state_dict().items():
        assert torch.equal(value, found.trained.state_dict()[name]), name
    assert next(iter(found.gradients.values())) == pytest.approx(asked["gradient"], rel=1e-3)


def test_a_loss_without_gradient_fails_its_trial_with_advice_and_blocks_the_final_runs(
    tmp_path: Path, plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
):
    still = MINE.replace("return (", "return 0 * (").replace("class Mine", "class Still")
    (tmp_path / "still.py").write_text(still)
    plan = plan_of(**{**TUNED, "objectives": "[ce, kd, {still: {loss: 'still.py:Still'}}]", "tune": "{trials: 3}", "repeats": "1"})
    assert train(plan) == 1
    found = {row.cell.id: store.failure(row.cell.id) for row in plan.rows if row.objective == "still"}
    messages = [failure.message for failure in found.values() if failure]
    assert len(messages) == len(found) and any("give a `weight` to search around" in message for message in messages)
    assert all(store.is_done(row.cell.id) for row in plan.rows if row.objective != "still")


def test_the_report_shows_what_was_chosen_from_what(tuned: Plan, train: Callable[..., int], store: Store):
    assert train(tuned) == 0
    manifest = store.manifest("tiny")
    found = trials(store, manifest)
    assert found is not None and len(found) == 28 and set(found["objective"]) == {"kd", "mine"}
    whole = from_store(store, manifest, ReportOptions(figures=True, images=False))
    assert set(whole.runs["role"]) == {"teacher", "student"} and len(whole.runs) == 4
    table = tuning_table(whole)
    assert table is not None
    rows = {row[0].text(): [entry.text() for entry in row] for row in table.groups[0].rows}
    for row in tuned.rows:
        if row.role == "student" and row.objective in rows:
            record = store.record(row.cell.id)
            assert record
            objective = choice.applied(row.cell.config["objective"], record.result["tuned"])
            assert rows[row.objective][1] == f"{objective['terms'][0]['weight']:.3g}" and rows[row.objective][5] == "14 of 14"
    assert rows["mine"][2] == "–" and "temperature" in rows["kd"][3] and "power" in rows["mine"][3]
    document = compose(whole, ReportOptions())
    data = FigureData(manifest, whole.students, whole.summaries, whole.comparisons, trials=whole.trials)
    title, caption, pages = figures.tuning(data) or ("", "", iter(()))
    panels = [axes for page in pages for axes in page.axes]
    assert title == "Tuning" and [axes.get_title(loc="left") or axes.get_title() for axes in panels] == ["kd", "mine"] and "ring" in caption
    for axes in panels:
        ring = axes.lines[1].get_xydata()
        assert any(np.allclose(ring[0], point) for point in axes.lines[0].get_xydata())
    edges = {line.label for line in found.itertuples() if line.edge}
    told = [one.message for one in document.warnings if one.code == "tuned-at-edge"]
    assert bool(told) == bool(edges) and all(label in told[0] for label in edges)
    # Terms are those of the final runs.
    assert whole.terms is not None and list(whole.terms["weight"].isna()) == [True, False, False]


def test_final_runs_at_another_point_than_the_trials_choose_are_warned_of(tuned: Plan, train: Callable[..., int], store: Store):
    """Trials that are trained again, after some final runs, on another machine may choose another point."""
    assert train(tuned) == 0
    row = next(row for row in tuned.rows if row.role == "student" and row.objective == "kd")
    record = store.record(row.cell.id)
    assert record
    other = {**record.result["tuned"], "weight": 0.5}
    store.put_record(replace(record, result={**record.result, "tuned": other}))
    whole = from_store(store, store.manifest("tiny"), ReportOptions(images=False))
    # With one final run, the point of that run is what the table is about, and no trial was there.
    assert tuning_table(whole) is not None and {row[0].text() for row in tuning_table(whole).groups[0].rows} == {"mine"}
    manifest = store.manifest("tiny")
    again = replace(
        manifest, cells=(*manifest.cells, replace(next(c for c in manifest.cells if c.id == row.cell.id), id="f" * 12, repeat=1))
    )
    store.put_record(replace(record, id="f" * 12))
    told = [one for one in warnings(from_store(store, again, ReportOptions(images=False))) if "points of the search" in one.message]
    assert [one.code for one in told] == ["tuned-at-edge"] and told[0].message.startswith(
        "kd, small <- big: the final runs are at 2 points"
    )


def test_a_trial_that_is_gone_is_warned_of_and_the_choice_stays_in_the_table(tuned: Plan, train: Callable[..., int], store: Store):
    assert train(tuned) == 0
    gone = next(row.cell.id for row in tuned.rows if row.objective == "kd" and row.trial == 1)
    store.file(gone, "record.json").unlink()
    whole = from_store(store, store.manifest("tiny"), ReportOptions(images=False))
    told = [one.message for one in warnings(whole) if one.code == "incomplete"]
    assert [text for text in told if "1 of 14 trials of the search have no record" in text]
    table = tuning_table(whole)
    assert table is not None and {row[0].text(): row[5].text() for row in table.groups[0].rows} in (
        {"kd": "13 of 14", "mine": "14 of 14"},
        {"mine": "14 of 14"},  # the chosen point may have been tried by that training alone
    )


def test_a_report_without_any_of_its_trials_has_no_table_of_them(tuned: Plan, train: Callable[..., int], store: Store):
    assert train(tuned) == 0
    for row in tuned.rows:
        if row.role == "trial" and row.objective:
            store.file(row.cell.id, "record.json").unlink()
    whole = from_store(store, store.manifest("tiny"), ReportOptions(images=False))
    assert tuning_table(whole) is None and (whole.runs["state"] == "finished").all()


def test_a_state_of_another_point_is_not_resumed(tuned: Plan, train: Callable[..., int], store: Store):
    assert train(tuned, [row.cell.id for row in tuned.rows if row.cell.role == "teacher"]) == 0
    import torch

    row = next(row for row in tuned.rows if row.objective == "kd" and row.trial == 2)
    setup = Setup.of(row.cell, store.root, torch.device("cpu")).with_teacher(store, row.cell)
    saved = setup.member(row.cell, {"weight": 1.0, "temperature": 1.0}).state()
    setup.member(row.cell, {"weight": 1.0, "temperature": 1.0}).restore(saved, 0)
    with pytest.raises(ValueError, match="its trials now choose"):
        setup.member(row.cell, {"weight": 2.0, "temperature": 1.0}).restore(saved, 0)


def test_the_gradient_that_is_asked_for_is_that_of_the_tuned_terms_without_schedule(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
):
    import torch

    from kdbench.losses._base import Batch
    from kdbench.train.stream import BatchPlan

    objectives = """
        ce:
        cka: {+kd: {weight: 100}}
        sp: {weight: {0: 0, 2: 5}, tune: {gradient: [0.1, 1, 2]}}
        """
    plan = plan_of(**{**TUNED, "objectives": objectives, "tune": "{trials: 3}"})
    assert train(plan, [row.cell.id for row in plan.rows if row.cell.role == "teacher"]) == 0
    for name, epoch in (("cka+kd", 0), ("sp", 2)):
        row = next(row for row in plan.rows if row.objective == name and row.trial == 2)
        setup = Setup.of(row.cell, store.root, torch.device("cpu")).with_teacher(store, row.cell)
        asked = point_of(store, row.cell)
        member = setup.member(row.cell, asked)
        wanted = next(BatchPlan.of(row.cell.config, setup.data).epoch(0))
        inputs, targets = next(setup.data.batches("train", [wanted]))
        assert setup.teacher and asked
        member.step(inputs, targets, Batch(targets, torch.as_tensor(wanted[0]), epoch, 0), setup.teacher.taps(inputs), True)
        assert member.gradients[name.partition("+")[0]] == pytest.approx(asked["gradient"], rel=1e-3), name


def test_a_search_with_a_trial_that_diverged_is_complete(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
):
    from kdbench.store import cell_state

    (tmp_path / "bang.py").write_text(
        MINE.replace("class Mine", "class Bang").replace("return (", "return float('nan' if self.power > 9 else 1) * (")
    )
    bang = "{bang: {loss: 'bang.py:Bang', weight: 0.1, tune: {power: [0.5, 1, 9]}}}"
    plan = plan_of(**{**TUNED, "objectives": f"[ce, {bang}]", "tune": "{trials: 3}", "repeats": "1"})
    assert train(plan) == 0
    records = [store.record(cell_id) for cell_id in plan.cells]
    diverged = [record.result["tuned"] for record in records if record and record.outcome == "diverged"]
    assert diverged and all(point["power"] == 9 for point in diverged)
    assert cell_state.why_missing(store, store.manifest("tiny")) == ""
    final = next(row.cell.id for row in plan.rows if row.role == "student" and row.objective == "bang")
    record = store.record(final)
    assert record and record.outcome == "finished" and record.result["tuned"]["power"] < 9


def test_a_report_is_made_again_from_its_files(tuned: Plan, train: Callable[..., int], store: Store, tmp_path: Path):
    import io

    from kdbench.report.write import report, report_file
    from kdbench.store.from_file import read as read_frame

    assert train(tuned) == 0
    first, second = io.StringIO(), io.StringIO()
    options = ReportOptions(histories=True, images=False, full=True)
    assert not report(store, ["tiny"], first, options=options).problems
    frame = store.suite_folder("tiny") / "report" / "frame.csv"
    assert (frame.parent / "trials.csv").exists()
    report_file(read_frame(frame), None, second, options=options)
    lines = first.getvalue().splitlines()
    assert [line for line in lines if not line.startswith("All tables, with notes")] == second.getvalue().splitlines()
    assert "Tuning" in lines and "runs finished" not in first.getvalue()


def test_a_search_that_is_not_complete_chooses_nothing_in_the_report(tuned: Plan, train: Callable[..., int], store: Store):
    first = [row.cell.id for row in tuned.rows if row.cell.role == "teacher" or (row.trial or 9) <= 3]
    assert train(tuned, first) == 0
    found = trials(store, store.manifest("tiny"))
    assert found is not None and len(found) == 12 and not found["chosen"].any()
    whole = from_store(store, store.manifest("tiny"), ReportOptions(images=False))
    assert tuning_table(whole) is None and not [one for one in warnings(whole) if one.code == "tuned-at-edge"]
    assert study(whole.runs, whole.costs, whole.manifest).trials is None
