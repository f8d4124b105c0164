"""Where a teacher's outputs come from: chosen by what a table saves and takes, said by `plan`, and forced by `--teacher`."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kdbench.cli import main
from kdbench.models.small_mobile import SmallMobile
from kdbench.plan import probe
from kdbench.plan.matrix import Plan, expand
from kdbench.plan.provider import LEAST_SAVED, Provided, provided, tables_of
from kdbench.plan.suite import read
from kdbench.store import Store
from kdbench.store.rows import SPARE_BYTES
from kdbench.train.teacher import LiveTeacher

ROW = 8 + 10 * 4 + 12 * 4
"""The bytes of a row of the tiny teacher: check, logits, pooled features."""
FULL = 40 * 9 * ROW
MANY = f"{{{', '.join(f's{place}: {{loss: sp, weight: {place}, weight_from: assumed}}' for place in range(1, 18))}}}"
"""More than are trained side by side."""
LONG = {"recipe": "{name: short, epochs: 30, batch_size: 8, lr: 0.02}"}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def choice(plan_of: Callable[..., Plan], store: Store) -> Callable[..., list[Provided]]:
    def choice(on_gpu: bool = False, **changes: str | None) -> list[Provided]:
        plan = plan_of(**{"objectives": "[kd, rkd]", **LONG, **changes})
        return provided(plan, probe.probe(plan), store, on_gpu)

    return choice


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set what tables may take: half of what is free beyond the spare bytes."""
    return lambda room: monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, SPARE_BYTES + 2 * room))


def test_a_table_is_chosen_where_the_views_of_an_image_come_back(choice: Callable[..., list[Provided]]) -> None:
    (one,) = choice()

    assert one.provider == "table" and one.most_bytes == FULL and 0.9 * FULL < one.filled_bytes <= FULL
    assert "its outputs are kept in a table (34.6 kB at most; saves " in one.text and "`--teacher live` runs it at each step" in one.text
    assert 0 < one.of_work < 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"objectives": "[kd, at]"}, "a loss needs stages, which no table holds"),
        ({"objectives": "[kd, sp]"}, "a table would save 0 % of its forward passes"),
        ({"objectives": "{sp: {controls: [shuffled]}}"}, "a loss needs last, which no table holds"),
        ({"recipe": "{name: short, epochs: 30, batch_size: 8, lr: 0.02, mixup: 0.4}"}, "images are mixed"),
        ({"recipe": "{name: short, epochs: 30, batch_size: 8, lr: 0.02, rand_augment: rand-m6}"}, "the views of an image are too many"),
        ({"dataset": "{name: 'own.py:Own'}"}, "or the dataset does not state their number"),
        ({"repeats": "1", "recipe": "{name: short, epochs: 3, batch_size: 8, lr: 0.02}"}, "a table would save 0 % of its forward passes"),
        ({"recipe": "{name: short, epochs: 30, batch_size: 64, lr: 0.02}"}, "a table would save 0 % of its forward passes"),
    ],
)
def test_a_teacher_is_run_at_each_step_where_a_table_cannot_serve_or_saves_little(
    changes: dict[str, str], why: str, choice: Callable[..., list[Provided]], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from kdbench.datasets.digits import Digits\n\n\nclass Own(Digits):\n"
        "    def __init__(self):\n        super().__init__(per_class=4)\n        self.n_views = None\n"
    )
    (one,) = choice(**changes)

    assert one.provider == "live" and one.text.startswith("is run at each step: ") and why in one.text


def test_numerics_that_promise_bits_have_no_table_on_a_gpu(choice: Callable[..., list[Provided]]) -> None:
    (exact,), (fast,) = choice(on_gpu=True), choice(on_gpu=True, numerics="fast")

    assert "`numerics: exact` rules out" in exact.text and fast.provider == "table"
    assert fast.most_bytes == 40 * 9 * (8 + 24 + 48)


def test_a_table_must_fit_the_disk_with_what_it_holds_already_and_with_the_other_tables(
    choice: Callable[..., list[Provided]], free: Callable[[int], None], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(FULL - 1)
    (one,) = choice()
    assert "a table takes up to 34.6 kB, and tables may take 34.6 kB, 50 % of what is free on the disk" in one.text
    monkeypatch.setattr(Store, "table_bytes", lambda self, teacher: 1)
    assert [one.provider for one in choice()] == ["table"]
    monkeypatch.undo()

    free(FULL * 3 // 2)
    assert [one.provider for one in choice(teacher_seeds="2")] == ["table", "live"]
    free(FULL * 2)
    assert [one.provider for one in choice(teacher_seeds="2")] == ["table", "table"]


def test_teachers_of_trials_have_tables_of_their_own(choice: Callable[..., list[Provided]], plan_of: Callable[..., Plan]) -> None:
    changes = {"tune": "{trials: 3}", "dataset": "{name: digits, per_class: 8}", "objectives": "[kd, rkd]"}
    found = choice(**changes)
    taught = {row.cell.depends["teacher"] for row in plan_of(**LONG, **changes).rows if row.cell.depends}

    assert {one.teacher for one in found} == taught and len(found) == 2
    assert [one.most_bytes for one in found] == [64 * 9 * ROW, 80 * 9 * ROW]


def test_the_untrained_control_of_a_teacher_that_has_weights_is_planned_like_any_other(
    choice: Callable[..., list[Provided]], tmp_path: Path
) -> None:
    net = SmallMobile(widths=(8, 12))
    net.build_for((1, 8, 8), 10, None)
    torch.save(net.plain.state_dict(), tmp_path / "big.pt")
    teachers = "{big: {model: small_mobile, widths: [8, 12], weights: {file: big.pt}, train: false, min_top1: 0.0}}"
    trained, untrained = choice(teachers=teachers, objectives="{kd: {controls: [untrained]}}")

    assert (trained.text, trained.of_work) == (untrained.text, untrained.of_work) and trained.teacher != untrained.teacher


@pytest.mark.parametrize(
    "changes",
    [
        {"repeats": "1"},
        {"repeats": "3"},
        {"repeats": "1", "objectives": "{kd: {controls: [shuffled_globally]}}"},
        {"repeats": "1", "students": "{small: {model: small_mobile, widths: [4, 6]}, other: {model: small_mobile, widths: [4, 8]}}"},
        {"repeats": "1", "objectives": MANY, "recipe": "{name: short, epochs: 3, batch_size: 8, lr: 0.02}"},
    ],
    ids=["alone", "repeats", "pairings", "students", "relations"],
)
def test_a_table_saves_what_the_plan_says(
    changes: dict[str, str], plan_of: Callable[..., Plan], train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in forward passes: 15 batches an epoch."""
    shape = {"dataset": "{name: digits, per_class: 12}", "recipe": "{name: short, epochs: 8, batch_size: 8, lr: 0.02}"}
    plan = plan_of(**{"objectives": "[kd]", **shape, **changes})
    seen: list[int] = []
    real = LiveTeacher.taps
    monkeypatch.setattr(LiveTeacher, "taps", lambda self, *given: seen.append(1) or real(self, *given))
    counts: dict[str, int] = {}
    stores = {name: Store(tmp_path / name) for name in ("live", "table")}
    for name, store in stores.items():
        seen.clear()
        assert train(plan, store=store, provider=name) == 0
        counts[name] = len(seen)
    (one,) = provided(plan, probe.probe(plan), Store(tmp_path / "new"), on_gpu=False)

    assert abs(1 - counts["table"] / counts["live"] - one.saved) < 0.05 and one.saved > LEAST_SAVED
    results = [{cell: record.result for cell in plan.cells if (record := store.record(cell))} for store in stores.values()]
    assert results[0] == results[1] and len(results[0]) == len(plan.cells)


def test_a_provider_that_is_forced_is_that_of_every_teacher(plan_of: Callable[..., Plan], store: Store) -> None:
    plan = plan_of(objectives="[kd, sp]", teacher_seeds="2", **LONG)
    asked = {name: tables_of(name, plan, probe.probe(plan), store, on_gpu=False) for name in ("auto", "live", "table")}

    assert asked == {"auto": frozenset(), "live": frozenset(), "table": {row.cell.id for row in plan.teachers}}


def invoked(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_has_the_provider_that_the_plan_shows_and_the_bits_of_a_live_teacher(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = "{name: short, epochs: 8, batch_size: 8, lr: 0.02}"
    path = str(write_suite(repeats="1", recipe=recipe, objectives="[ce, kd]", teacher_seeds="2"))
    stores = {name: Store(tmp_path / name) for name in ("auto", "live")}
    text = invoked("plan", path, "--results", str(stores["auto"].root))
    planned = json.loads(invoked("plan", path, "--results", str(stores["auto"].root), "--json"))
    assert "  teacher big: its outputs are kept in a table (34.6 kB at most" in text and "(each of 2 seeds)" in text
    assert [one["provider"] for one in planned["teacher_outputs"]] == ["table", "table"]

    common = ("--data", str(tmp_path), "--no-profile", "--jobs", "2", "--device", "cpu")
    invoked("run", path, "--results", str(stores["auto"].root), *common)
    invoked("run", path, "--results", str(stores["live"].root), *common, "--teacher", "live")
    records: dict[str, Any] = {name: {one["id"]: store.record(one["id"]) for one in planned["cells"]} for name, store in stores.items()}
    assert {id_: one.result for id_, one in records["auto"].items()} == {id_: one.result for id_, one in records["live"].items()}
    taught = [one["id"] for one in planned["cells"] if "teacher" in one["depends"]]
    assert [[records[name][one].circumstance["teacher"] for one in taught] for name in stores] == [["table"] * 2, ["live"] * 2]


def test_every_dataset_in_memory_states_the_views_that_its_data_have(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    from kdbench import parts

    for options in ("padding: 0", "padding: 2", "per_class: 4"):
        suite = expand(read(write_suite(dataset=f"{{name: digits, {options}}}"))).suite
        dataset = parts.from_config("dataset", suite.dataset, suite.sources)
        assert dataset.n_views == dataset.load(tmp_path).n_views
