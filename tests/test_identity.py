"""A cell's id: what is in it, what is not, and that it never changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench import Loss, parts
from kdbench.cell import Cell, identify
from kdbench.parts import Part
from kdbench.plan.matrix import Plan
from kdbench.recipes._base import Recipe

PAIRS = json.loads((Path(__file__).parent / "golden" / "ids.json").read_text())["pairs"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["id"])
def test_the_id_of_a_configuration_never_changes(pair: dict[str, Any]) -> None:
    assert identify(pair["config"]) == pair["id"]


class LossOfTheFirstRelease(Loss):
    presets: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, margin: float = 1.0):
        super().__init__()
        self.margin = margin


class LossWithLaterOptions(LossOfTheFirstRelease):
    added: ClassVar[dict[str, Any]] = {"form": "plain", "least": None, "rows": False}

    def __init__(self, *, margin: float = 1.0, form: str = "plain", least: int | None = 3, rows: bool = True):
        super().__init__(margin=margin)
        self.form, self.least, self.rows = form, least, rows


def options_of(loss: type, **given: Any) -> dict[str, Any]:
    return Part("loss", "mine", loss, 1).options(given)


def test_an_option_that_a_part_adds_later_is_left_out_of_the_id_while_it_has_its_neutral_value() -> None:
    old = options_of(LossOfTheFirstRelease)
    neutral = {"form": "plain", "least": None, "rows": False}
    assert options_of(LossWithLaterOptions, **neutral) == old
    for changed in ({"form": "squared"}, {"least": 0}, {"least": 3}, {"rows": True}):
        assert options_of(LossWithLaterOptions, **{**neutral, **changed}) == {**old, **changed}


def test_a_part_that_is_built_without_an_added_option_has_its_neutral_value_and_not_its_default() -> None:
    loss = Part("loss", "mine", LossWithLaterOptions, 1).build({"margin": 2.0})

    assert (loss.margin, loss.form, loss.least, loss.rows) == (2.0, "plain", None, False)


def test_a_recipe_is_complete_whatever_its_configuration_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "added", {"class_uniform": 0})
    plan = parts.load("recipe", "short")
    config = plan.options()

    assert "class_uniform" not in config
    assert Recipe.complete(config)["class_uniform"] == 0
    assert plan.options({"class_uniform": 2})["class_uniform"] == 2


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda leaf: st.dictionaries(st.text(), leaf),
    )
)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    def turned(node: Any) -> Any:
        return {key: turned(node[key]) for key in reversed(list(node))} if isinstance(node, dict) else node

    assert identify({"x": value}) == identify(turned({"x": value}))


def test_a_number_that_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        identify({"lr": float("nan")})


def test_names_paths_and_the_wish_around_a_training_are_not_in_its_id(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plain = plan_of()
    other = plan_of(
        name="renamed",
        students="{little: {model: small_mobile, widths: [4, 6]}}",
        teachers="{large: {model: small_mobile, widths: [8, 12], min_top1: 0.5}}",
        objectives="{ce: , hinton: {loss: kd}}",
        assumed="[something]",
        baselines="[hinton]",
    )

    assert list(plain.cells) == list(other.cells)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "{name: digits, per_class: 5}"},
        {"recipe": "{name: short, epochs: 4}"},
        {"students": "{small: {model: small_mobile, widths: [4, 8]}}"},
        {"teachers": "{big: {model: small_mobile, widths: [8, 16]}}"},
        {"objectives": "{kd: {temperature: 5}}"},
        {"objectives": "{kd: {pairing: shuffled}}"},
        {"numerics": "fast"},
        {"seed": "1"},
    ],
    ids=str,
)
def test_everything_that_is_science_is_in_it(plan_of: Callable[..., Plan], change: dict[str, str]) -> None:
    before = {row.cell.id for row in plan_of().rows if row.objective == "kd"}
    after = {row.cell.id for row in plan_of(**change).rows if row.objective == "kd"}

    assert not before & after


def test_suites_share_the_cells_that_they_have_in_common(plan_of: Callable[..., Plan]) -> None:
    few, more = plan_of(name="few"), plan_of(name="more", objectives="[ce, kd, sp]", repeats="3")

    assert set(few.cells) < set(more.cells)


def test_a_users_own_part_counts_by_the_hash_of_its_source_and_not_by_where_it_lies(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    source = "from kdbench.losses.kd import KD\nclass Mine(KD): presets = {}\n"
    ids = []
    for folder, text in (("a", source), ("b", source), ("c", source + "# changed\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(text)
        ids.append(list(plan_of(objectives=f"{{mine: {{loss: {folder}/mine.py:Mine, weight: 1}}}}").cells))

    assert ids[0] == ids[1]
    assert ids[0][1:] != ids[2][1:]


def test_a_cell_survives_json() -> None:
    cell = Cell(PAIRS[0]["config"], min_teacher_metric=0.5, declared_teacher_metric=(0.7, 0.005), sources={"a.py:A": "folder"})

    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_anything_that_is_not_a_cell_is_refused_with_what_is_wrong() -> None:
    good = json.loads(json.dumps(Cell(PAIRS[0]["config"]).to_json()))

    def changed(name: str, value: Any) -> dict[str, Any]:
        return {**good, "config": {**good["config"], name: value}}

    for data, message in (
        (None, "the file: None: expected a mapping"),
        ([], "the file: expected a mapping"),
        ({}, "is missing"),
        ({**good, "config": 3}, "config: 3: expected a mapping"),
        ({**good, "min_teacher_metric": "high"}, "min_teacher_metric: 'high': expected a number"),
        ({**good, "min_teacher_metric": True}, "min_teacher_metric: True: expected a number"),
        ({**good, "declared_teacher_metric": [0.7]}, "declared_teacher_metric"),
        ({**good, "sources": {"a": 3}}, "sources"),
        ({**good, "id": "0" * 12}, "has the id"),
        (changed("schema", 99), "config.schema: 99: expected a number of at most 1 (another version"),
        (changed("role", "pupil"), "config.role: 'pupil': expected 'teacher', 'student' or 'trial'"),
        (changed("repeat", -1), "config.repeat: -1: expected a number of at least 0"),
        (changed("repeat", True), "config.repeat: True: expected a whole number"),
        (changed("seed", "0"), "config.seed: '0': expected a whole number"),
        (changed("recipe", None), "config.recipe: None: expected a mapping"),
        (
            {**good, "config": {key: value for key, value in good["config"].items() if key != "depends"}},
            "config: the key 'depends' is missing",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Cell.from_json(data)
