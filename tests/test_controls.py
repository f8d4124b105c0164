"""Controls: what of a loss's gain is not due to what the teacher knows of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kdbench import parts
from kdbench.errors import SuiteError
from kdbench.losses._base import Batch, Taps
from kdbench.plan.matrix import Plan
from kdbench.report.class_table import class_table
from kdbench.report.controls import control_notes, control_table, zero_differs
from kdbench.report.main_table import main_tables
from kdbench.report.study import Study, study
from kdbench.report.warnings import warnings
from kdbench.report.write import ReportOptions, from_store
from kdbench.store import Store
from kdbench.train.build import Setup
from kdbench.train.objective import Objective
from kdbench.train.seeds import Streams
from kdbench.train.stream import BatchPlan
from tests.losses.toys import for_classifiers

ALL = "[zero, untrained, shuffled, shuffled_globally, shuffled_in_class]"


def test_a_loss_at_weight_zero_is_the_loss_of_the_task_alone_at_the_same_weight_for_every_loss(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
):
    names = [
        name for name in filter(for_classifiers, parts.names("loss")) if name not in ("mlkd", "pcka")
    ]  # a second view stays without its loss
    lines = []
    for name in names:
        known = next(iter(parts.load("loss", name).make.presets.values())).weight is not None
        lines.append(f"{name}: {{controls: [zero], {'' if known else 'weight: 1, weight_from: assumed'}}}")
    plan = plan_of(
        dataset="{name: digits, per_class: 6}",
        teachers="{big: {model: cifar_resnet, depth: 14, widths: [4, 4, 8, 8], min_top1: 0.0}}",
        students="{small: {model: cifar_resnet, depth: 8, widths: [4, 4, 8, 8]}}",
        objectives="ce:\n" + "\n".join(lines),
        recipe="{name: short, epochs: 2, batch_size: 16, lr: 0.02, milestones: [1]}",
        repeats="1",
    )
    wanted = [
        row.cell.id for row in plan.rows if row.role == "teacher" or plan.suite.objectives[row.objective].control or row.objective == "ce"
    ]
    assert train(plan, wanted) == 0
    digest = {
        row.objective: store.record(row.cell.id).result["weights_digest"] for row in plan.rows if row.cell.id in wanted and row.objective
    }
    references = {one.name: one.reference for one in plan.suite.objectives.values() if one.reference}
    assert len(references) == len(names) and {"ce", "task-0.1"} <= set(references.values())
    # What a method deploys is more than the student where it brings its own classifier.
    other = [name for name, reference in references.items() if digest[name] != digest[reference]]
    assert other == ["simkd-zero"]


def test_controls_change_the_pairing_or_the_teacher_and_nothing_else(plan_of: Callable[..., Plan]):
    plan = plan_of(objectives=f"{{ce: , kd: {{controls: {ALL}}}}}")
    objectives = plan.suite.objectives
    kd = objectives["kd"].config
    for pairing in ("shuffled", "shuffled_globally", "shuffled_in_class"):
        assert objectives[f"kd-{pairing}"].config == {**kd, "terms": [{**kd["terms"][0], "pairing": pairing}]}
    assert objectives["kd-untrained"].config == kd
    rows = {row.objective: row.cell for row in plan.rows if row.role == "student" and row.repeat == 0}
    trained, untrained = rows["kd"].depends["teacher"], rows["kd-untrained"].depends["teacher"]
    assert {name for name, cell in rows.items() if cell.depends.get("teacher") == untrained} == {"kd-untrained"}
    one, other = plan.cells[trained].config, plan.cells[untrained].config
    assert other["recipe"]["epochs"] == 0 and {**one, "recipe": None} == {**other, "recipe": None}
    # Same draws, so that all are paired; and no control is in the family of the suite.
    assert (
        len({Streams.of(cell.config).init for cell in rows.values()}) == len({Streams.of(cell.config).order for cell in rows.values()}) == 1
    )
    assert {(baseline, name) for _, _, baseline, name in plan.comparisons} == {("ce", "kd")}
    assert [one.name for one in plan.manifest().compared] == ["ce", "kd"]
    # kd of the CRD protocol weighs the loss of the task by 0.1.
    assert objectives["kd-zero"].reference == "task-0.1" and objectives["task-0.1"].config == {"task": 0.1, "terms": []}


def test_partners_are_a_permutation_of_all_images_or_of_each_class(plan_of: Callable[..., Plan], tmp_path: Path):
    plan = plan_of(dataset="{name: digits, per_class: 5}")
    cell = next(row.cell for row in plan.rows if row.objective == "kd")
    data = Setup.of(cell, tmp_path, torch.device("cpu")).data
    batches, labels = BatchPlan.of(cell.config, data), data.targets("train").numpy()
    own = np.concatenate([index for index, _ in batches.epoch(0)])
    for pairing in ("shuffled_globally", "shuffled_in_class"):
        (one, views), again, later = (
            [np.concatenate(part) for part in zip(*batches.epoch(epoch, pairing), strict=True)] for epoch in (0, 0, 1)
        )
        assert sorted(one) == sorted(own) and (one == again[0]).all() and (one != later[0]).any()
        same = labels[one] == labels[own]
        assert same.all() if pairing == "shuffled_in_class" else same.mean() < 0.4
        assert (one != own).mean() > 0.5
        # A partner is seen in the view that it has in its own place of this epoch.
        known = dict(zip(own, np.concatenate([views for _, views in batches.epoch(0)]), strict=True))
        assert [known[index] for index in one] == list(views)


def test_the_teacher_rows_of_other_images_reach_the_loss():
    term = {"loss": "kd", "version": parts.load("loss", "kd").version, "weight": 1.0, "options": parts.load("loss", "kd").options()}
    draw = torch.Generator().manual_seed(0)
    student, teacher, other = (Taps(logits=torch.randn(6, 4, generator=draw)) for _ in range(3))
    batch = Batch(torch.arange(6) % 4, torch.arange(6), others={"shuffled_globally": other})

    def value(pairing: str, teacher: Taps, batch: Batch = batch) -> float:
        objective = Objective({"task": 1.0, "terms": [{**term, "pairing": pairing}]}, {})
        assert objective.elsewhere == ({pairing} if pairing in ("shuffled_globally", "shuffled_in_class") else set())
        return objective({"task": torch.zeros(())}, student, teacher, batch)["kd"][0].item()

    assert value("shuffled_globally", teacher) == value("matched", other) != value("matched", teacher)
    # Where a step is only tried, the rows are those of the batch.
    assert value("shuffled_globally", teacher, Batch(batch.target, batch.index)) == value("shuffled", teacher)
    with pytest.raises(KeyError):
        value("shuffled_in_class", teacher)


def test_controls_are_the_same_in_a_bundle_and_alone_and_change_no_other_row(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
):
    plan = plan_of(objectives=f"{{ce: , smoothed: {{loss: ce, label_smoothing: 0.1}}, kd: {{controls: {ALL}}}}}", repeats="1")
    assert train(plan) == 0
    alone, without = Store(tmp_path / "alone"), Store(tmp_path / "without")
    for cell in sorted(plan.cells.values(), key=lambda cell: len(cell.depends)):
        assert train(plan, [cell.id], alone) == 0
    records = {row.objective: store.record(row.cell.id) for row in plan.rows if row.role == "student"}
    for row in plan.rows:
        assert store.record(row.cell.id).result == alone.record(row.cell.id).result, row
    plain = plan_of(objectives="[ce, kd]", repeats="1")
    assert train(plain, store=without) == 0
    for row in plain.rows:
        assert without.record(row.cell.id).result == store.record(row.cell.id).result
    digests = [records[name].result["weights_digest"] for name in ("ce", "smoothed", "kd", "kd-untrained", "kd-shuffled")]
    digests += [records[name].result["weights_digest"] for name in ("kd-shuffled_globally", "kd-shuffled_in_class", "task-0.1")]
    assert len(set(digests)) == len(digests)
    assert records["kd-zero"].result["weights_digest"] == records["task-0.1"].result["weights_digest"]
    # The smoothing is in the loss that is minimised, not in the metrics.
    history = records["smoothed"].result["history"][0]["terms"]["task"]["raw"]
    assert history != records["ce"].result["history"][0]["terms"]["task"]["raw"]


def test_controls_share_the_weights_that_were_tuned_for_their_loss(plan_of: Callable[..., Plan]):
    plan = plan_of(dataset="{name: digits, per_class: 8}", objectives=f"{{ce: , kd: {{controls: {ALL}}}}}", tune="{trials: 3}")
    trials = {row.objective for row in plan.rows if row.role == "trial" and row.objective}
    assert trials == {"kd"}
    chosen = {}
    for row in plan.rows:
        if row.role == "student" and row.objective.startswith("kd"):
            chosen[row.objective] = {other for role, other in row.cell.depends.items() if role.startswith("choose")}
    assert chosen.pop("kd-zero") == set() and len(chosen["kd"]) == 3 + 1 + 6
    assert all(ids == chosen["kd"] for ids in chosen.values())


def test_what_is_wrong_with_a_control_is_said_in_the_suite(write_suite: Callable[..., Path], refusal: Callable[..., str]):
    from kdbench.plan import matrix, probe
    from kdbench.plan.suite import read

    cases = {
        "{ce: , kd: {controls: [shufled]}}": "did you mean 'shuffled'",
        "{ce: , kd: {controls: [zero, zero]}}": "'zero' is given twice",
        "{ce: {controls: [zero]}, kd: }": "'controls' has no effect here, since the objective has no distillation term",
        "{ce: , kd: {controls: [shuffled]}, kd-shuffled: {loss: kd}}": "`controls` adds an objective 'kd-shuffled', and the suite has one",
        "{ce: , kd: {label_smoothing: 0.1}}": "the recipe has `label_smoothing` for all",
        "{ce: {label_smoothing: 1.5}, kd: }": "label_smoothing",
        "{ce: , mine: {terms: [{loss: kd, controls: [zero]}]}}": "'controls' belongs to the objective",
    }
    for objectives, message in cases.items():
        assert message in refusal(objectives=objectives), objectives
    mixed = "{name: short, epochs: 3, batch_size: 16, lr: 0.02, milestones: [2], mixup: 0.2}"
    with pytest.raises(SuiteError, match="outputs for images that are not mixed"):
        probe.probe(matrix.expand(read(write_suite(objectives="{ce: , kd: {controls: [shuffled_globally]}}", recipe=mixed))))


def made(plan: Plan, gain: dict[str, float], spread: float = 0.004) -> Study:
    """A study of made-up runs: accuracy .6 plus a gain by objective."""
    draws = np.random.default_rng(3)
    manifest = plan.manifest()
    rows = []
    for cell in manifest.cells:
        if cell.role in ("student", "teacher"):
            value = 0.6 + gain.get(cell.objective or "", 0.0) + spread * draws.standard_normal()
            metrics = {f"{metric.name}_last": value for metric in manifest.metrics}
            names = {
                name: getattr(cell, name) for name in ("role", "dataset", "teacher", "student", "objective", "repeat", "teacher_seed", "id")
            }
            rows.append({**names, "label": cell.objective, "state": "finished", "why": "", "data_fingerprint": "f", **metrics})
    runs = pd.DataFrame(rows).assign(n_train=40, n_test=900, suite="tiny", weights_digest=[row["id"] for row in rows], code_version="0")
    from kdbench.store.frame import cost_frame

    return study(runs, cost_frame(), manifest)


def test_a_row_that_gains_no_more_than_its_control_is_said_so_beside_the_verdicts(plan_of: Callable[..., Plan]):
    plan = plan_of(objectives="{ce: , kd: {controls: [untrained, shuffled]}, sp: {weight: 1, controls: [untrained]}}", repeats="8")
    gains = {"kd": 0.05, "kd-untrained": 0.05, "kd-shuffled": 0.0, "sp": 0.05, "sp-untrained": 0.0}
    whole = made(plan, gains)
    (note,) = control_notes(whole)
    assert note.startswith("kd is not shown to be better than its controls: untrained teacher (") and "shuffled" not in note
    first = main_tables(whole)[0]
    assert note in first.groups[0].notes
    assert [row[0].text() for row in first.groups[0].rows] == ["ce", "kd", "sp"]
    table = control_table(whole)
    assert table is not None
    assert [(row[0].text(), row[1].text(), row[4].text()) for row in table.groups[0].rows] == [
        ("kd", "untrained teacher", ""),
        ("kd", "shuffled in the batch", "▲ better"),
        ("sp", "untrained teacher", "▲ better"),
    ]
    # The family of the suite is what it is without controls.
    plain = made(plan_of(objectives="{ce: , kd: , sp: {weight: 1}}", repeats="8"), gains)
    assert whole.overall[["baseline", "objective"]].equals(plain.overall[["baseline", "objective"]])
    assert control_table(plain) is None and control_notes(plain) == []
    # No control is ever the best.
    best = made(plan, {**gains, "kd-untrained": 0.2})
    assert not set(best.summaries.query("among_best != ''")["objective"]) & {"kd-untrained", "kd-shuffled", "sp-untrained"}


def test_a_loss_that_inherits_parts_of_the_teacher_is_compared_with_the_tasks_loss_that_inherits_them(plan_of: Callable[..., Plan]):
    own = plan_of(objectives="{ce: , kd: , kd-given: {loss: kd, inherits: [head]}}", repeats="8")
    stated = plan_of(objectives="{ce: , kd: , kd-given: {loss: kd, inherits: [head]}, given: {loss: ce, inherits: [head]}}", repeats="8")
    for plan, name, label in ((own, "ce-inherits-head", "ce, inherits head"), (stated, "given", "given, inherits head")):
        whole = made(plan, {"kd": 0.05, "kd-given": 0.05, name: 0.05})
        (note,) = control_notes(whole)
        assert note.startswith(f"kd-given, inherits head is not shown to be better than its controls: {label} (")
        assert not list(zero_differs(whole)), "it need not equal its control"
        table = control_table(made(plan, {"kd-given": 0.05}))
        assert [[row[place].text() for place in (0, 1, 4)] for row in table.groups[0].rows] == [
            ["kd-given, inherits head", label, "▲ better"]
        ]


def test_a_loss_that_acts_at_weight_zero_is_warned_of(plan_of: Callable[..., Plan]):
    plan = plan_of(objectives="{ce: , sp: {weight: 1, controls: [zero]}}", repeats="3")
    whole = made(plan, {})
    (text,) = zero_differs(whole)
    assert text.startswith("sp, weight 0 differs from ce in 3 of 3 runs")
    assert [one.message for one in warnings(whole) if one.code == "zero-differs"] == [text]
    alone = whole.runs.set_index(["objective", "repeat"])["weights_digest"]
    same = whole.runs.assign(
        weights_digest=[alone["ce", row.repeat] if row.objective == "sp-zero" else row.weights_digest for row in whole.runs.itertuples()]
    )
    assert list(zero_differs(replace(whole, runs=same))) == []
    assert not [one for one in warnings(replace(whole, runs=same)) if one.code in ("zero-differs", "duplicated", "idle-term")]


def test_controls_are_reported_from_a_real_run(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store):
    plan = plan_of(objectives=f"{{ce: , kd: {{controls: {ALL}}}}}", repeats="3")
    assert train(plan) == 0
    whole = from_store(store, store.manifest("tiny"), ReportOptions())
    assert set(whole.runs["role"]) == {"student", "teacher"} and (whole.runs["state"] == "finished").all()
    table = control_table(whole)
    assert table is not None and len(table.groups[0].rows) == 5
    # The untrained teacher is no teacher of the pair: students agree, or not, with the trained one.
    assert whole.images is not None and whole.images.predictions["agreement_block"].notna().all()
    untrained = [row.cell.id for row in plan.rows if row.objective == "kd-untrained"]
    assert all(whole.teacher_ids[cell_id] == frozenset() for cell_id in untrained)
    assert not any("kd, " in column.title for column in (class_table(whole) or table).columns)
    assert list(zero_differs(whole)) == []

    import io

    from kdbench.report.write import report, report_file
    from kdbench.store.from_file import read

    first, second = io.StringIO(), io.StringIO()
    options = ReportOptions(images=False, full=True)
    report(store, ["tiny"], first, options=options)
    report_file(read(store.suite_folder("tiny") / "report" / "frame.csv"), None, second, options=options)
    assert [line for line in first.getvalue().splitlines() if "are in " not in line] == second.getvalue().splitlines()
