"""How long the rest of a suite takes: measured steps, the order in which `run` trains, and what was trained already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from kdbench.cli import main
from kdbench.plan.bundle import SIDE_BY_SIDE, Bundle
from kdbench.plan.matrix import Plan
from kdbench.run import local
from kdbench.run.estimate import Costs, duration_s, in_words, students_side_by_side
from kdbench.store import Store
from kdbench.store.step_times import StepTimes, stream_of, student_of

STUDENT = {"step_s": 1.0, "first_s": 3.0, "last_s": 0.5, "predict_s": 0.01, "build_s": 2.0, "weights_mib": 10.0, "saved_mib": 100.0}


def costs_of(plan: Plan, store: Store, forward_s: float = 4.0, **student: float) -> Costs:
    """As if every student had the same times."""
    times = StepTimes(store, {"device": "cpu"})
    for cell in plan.cells.values():
        stream, teacher = stream_of(cell.config), plan.cells[cell.depends["teacher"]].config["student"] if cell.depends else None
        times.put("student", stream, student_of(cell.config, teacher), **{**STUDENT, **student})
        times.put("teacher", stream, teacher, forward_s=forward_s)
        times.put("data", stream, data_s=0.25, load_s=5.0, from_files=0.0, pool=40, test=100)
    return Costs(plan, times)


def cells(plan: Plan, objective: str | None) -> list[Any]:
    return [row.cell for row in plan.rows if row.objective == objective]


def test_a_bundle_takes_the_steps_of_its_students_one_teacher_and_the_evaluations(plan_of: Callable[..., Plan], store: Store) -> None:
    """Forty images in batches of 16 are two steps and a smaller one; three epochs, evaluated after the second and the last."""
    plan = plan_of(recipe="{name: short, epochs: 3, batch_size: 16, milestones: [2], evaluate_every: 2}", objectives="[ce, kd, sp]")
    costs = costs_of(plan, store)
    kd, sp = cells(plan, "kd")[0], cells(plan, "sp")[0]
    own = 3 * (2 * 1.0 + 0.5 + (3.0 - 1.0)) + 2 * 100 * 0.01

    assert costs.own_and_shared_s(kd) == pytest.approx((own, 3 * 3 * (0.25 + 4.0)))
    assert costs.own_and_shared_s(cells(plan, "ce")[0]) == pytest.approx((own, 3 * 3 * 0.25))
    assert costs.training_s(Bundle((kd, sp))) == pytest.approx(2 * own + 3 * 3 * 4.25)
    assert costs.own_and_shared_s(kd, begun=2) == pytest.approx((own / 3 + 100 * 0.01 * (1 - 2 / 3), 3 * 4.25))
    assert costs.preparation_s(Bundle((kd, sp))) == pytest.approx(5.0 + 4.0 * 100 / 16 + 2 * 2.0)
    assert costs.preparation_s(Bundle((kd, sp))) == pytest.approx(5.0 + 2 * 2.0), "a teacher is tested once"


def test_a_table_of_the_teacher_saves_its_share_of_forward_passes(plan_of: Callable[..., Plan], store: Store) -> None:
    plan = plan_of(recipe="{name: short, epochs: 3, batch_size: 16, milestones: [2]}", objectives="[ce, kd]")
    live, (kd, ce) = costs_of(plan, store), (cells(plan, name)[0] for name in ("kd", "ce"))
    table = replace(live, saved={kd.depends["teacher"]: 0.75}, found={})

    assert table.own_and_shared_s(kd) == pytest.approx((live.own_and_shared_s(kd)[0], 3 * 3 * (0.25 + 1.0)))
    assert table.own_and_shared_s(ce) == live.own_and_shared_s(ce)


def test_trials_have_fewer_images_and_the_step_times_of_final_trainings(plan_of: Callable[..., Plan], store: Store) -> None:
    plan = plan_of(objectives="[ce, kd]", repeats="1", tune="{trials: 3, validation: 0.5}")
    times = costs_of(plan, store)
    (final,) = [row.cell for row in plan.rows if row.role == "student" and row.objective == "kd"]
    trial = next(row.cell for row in plan.rows if row.role == "trial" and row.objective == "kd")

    assert times.of(trial) == times.of(final)
    assert times.own_and_shared_s(trial)[1] == pytest.approx(3 * 2 * 4.25), "two steps instead of three"


def test_the_estimate_trains_in_the_order_of_run_with_as_many_processes(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(objectives="[ce, kd]", repeats="2")
    left, began = list(plan.cells.values()), []

    def seconds(bundle: Bundle) -> float:
        began.append(bundle.cells[0].id)
        return 10.0

    assert duration_s(plan, left, 1, SIDE_BY_SIDE, seconds) == 50.0
    assert began[0] == plan.teachers[0].cell.id, "first what others wait for"
    assert duration_s(plan, left, 2, SIDE_BY_SIDE, seconds) == 30.0
    assert duration_s(plan, left, 9, SIDE_BY_SIDE, seconds) == 20.0, "students wait for their teacher"
    students = [cell for cell in left if cell.id != plan.teachers[0].cell.id]
    assert duration_s(plan, students, 9, SIDE_BY_SIDE, seconds) == 10.0
    tuned = plan_of(objectives="[ce, kd]", repeats="1", tune="{trials: 3}")
    assert duration_s(tuned, list(tuned.cells.values()), 99, SIDE_BY_SIDE, seconds) == 50.0, "teacher, trials, one more, again, final"


def test_more_students_side_by_side_are_trained_where_the_teacher_is_most_of_a_step_and_memory_allows(
    plan_of: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(objectives="[ce, kd]", repeats="1")

    def free(mib: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=mib * 2**20))

    free(1e6)
    assert students_side_by_side(costs_of(plan, store, forward_s=0.1), 1) == SIDE_BY_SIDE
    many = students_side_by_side(costs_of(plan, store, forward_s=10.0), 1)
    assert many == 256  # from 128 to 256 each saves 3.6 % of 1 + 10 / 128 seconds, and from there to 512 1.9 %
    free(1000.0)
    assert students_side_by_side(costs_of(plan, store, forward_s=10.0), 1) == 70
    assert students_side_by_side(costs_of(plan, store, forward_s=10.0), 2) == 30, "two processes share the memory"
    assert students_side_by_side(Costs(plan, StepTimes(store, {"device": "other"})), 1) == SIDE_BY_SIDE


def test_times_are_kept_for_one_device_and_a_damaged_file_is_as_none(store: Store) -> None:
    times = StepTimes(store, {"device": "a"})
    times.put("student", {"x": 1}, step_s=1.5)
    times.save()
    other = StepTimes(store, {"device": "b"})
    other.put("student", {"x": 1}, step_s=2.5)
    other.save()

    assert StepTimes(store, {"device": "a"}).get("student", {"x": 1}) == {"step_s": 1.5}
    assert StepTimes(store, {"device": "b"}).get("student", {"x": 1}) == {"step_s": 2.5}
    assert StepTimes(store, {"device": "c"}).get("student", {"x": 1}) is None
    for text in ("{", "[]", '{"a": 1}', '{"a": {"step_s": -1}}', '{"a": {"step_s": "x"}}'):
        times.path.write_text(text)
        assert StepTimes(store, {"device": "a"}).known == {}


def test_plan_says_how_long_it_takes_after_check_and_again_after_a_part_was_trained(
    write_suite: Callable[..., Path], plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    suite = str(write_suite())

    def said(verb: str, *more: str) -> str:
        result = CliRunner().invoke(main, [verb, suite, "--results", str(store.root), "--device", "cpu", *more])
        assert result.exit_code == 0, result.output
        return result.output

    assert "left (`kdbench check` measures step times)" in said("plan")
    said("check")
    assert "with 1 process (measured step times)" in said("plan", "--jobs", "1")
    jobs = local.Machine.here(store.root, device="cpu").jobs
    assert f"with {jobs} process" in said("plan")
    plan = plan_of()
    train(plan, [row.cell.id for row in plan.rows if row.objective != "kd"])
    assert "with 1 process (measured step times, corrected by 3 trainings)" in said("plan", "--jobs", "1")
    store.remove(store.root / "profiles" / "step_times.json")
    assert "with 1 process (at the speed so far)" in said("plan", "--jobs", "1")
    train(plan)
    assert "0 left\n" in said("plan")


def test_durations_are_printed_in_a_unit_that_fits() -> None:
    said = [in_words(seconds) for seconds in (4.26, 40, 99.9, 100, 3600, 6000, 36000, 86400, 864000)]
    assert said == ["4.3 s", "40 s", "100 s", "1.7 min", "60 min", "1.7 h", "10 h", "24 h", "10 days"]
