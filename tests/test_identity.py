"""A cell's id: what is in it, what is not, and that it never changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench import cell as cells
from kdbench.cell import Cell, canonical, identify
from kdbench.plan.matrix import Plan

PAIRS = json.loads((Path(__file__).parent / "golden" / "ids.json").read_text())["pairs"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["id"])
def test_the_id_of_a_configuration_never_changes(pair: dict[str, Any]) -> None:
    assert identify(pair["config"]) == pair["id"]


def test_a_field_at_its_neutral_value_is_as_good_as_absent_and_at_another_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PAIRS[0]["config"]
    later = {**config, "student": {**config["student"], "stem": "as_is"}}
    assert identify(later) != identify(config)

    monkeypatch.setattr(cells, "NEUTRAL", (*cells.NEUTRAL, (("student", "stem"), "as_is")))
    assert identify(later) == identify(config)
    assert identify({**later, "student": {**later["student"], "stem": "small"}}) != identify(config)


def test_a_users_option_of_the_name_of_a_later_one_of_ours_stays_in_the_id() -> None:
    def id_of(loss: str, **options: Any) -> str:
        term = {"loss": loss, "version": "source 0", "options": options, "weight": 1.0, "pairing": "matched"}
        return identify({"objective": {"task": 1.0, "terms": [term]}, "student": {"name": "own", "options": {"stem": "own"}}})

    assert id_of("cka", kernel="linear") == id_of("cka")
    assert id_of("mine.py:CKA", kernel="linear") != id_of("mine.py:CKA")
    net = {"name": "own", "options": {"stem": "own"}}
    assert identify({"student": net}) != identify({"student": {**net, "options": {}}})
    assert identify({"student": {**net, "name": "timm"}}) == identify({"student": {"name": "timm", "options": {}}})


def test_a_neutral_none_does_not_swallow_zero_or_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "NEUTRAL", ((("recipe", "clip"), None),))

    assert canonical({"recipe": {"clip": None}}) == canonical({"recipe": {}})
    assert len({canonical({"recipe": {"clip": value}}) for value in (None, 0, False, 0.5)}) == 4


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
    cell = Cell(PAIRS[0]["config"], gate=0.5, sources={"a.py:A": "folder"})

    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
