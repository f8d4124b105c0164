"""Every variant and preset: against loops, on the reference batch as `kdbench show` prints it, and told apart from its namesakes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench import catalogue, parts
from kdbench.cell import canonical
from kdbench.errors import SuiteError
from kdbench.losses import _reference
from kdbench.losses._base import Loss, Pair, Taps
from kdbench.plan.suite import read

from . import by_loops, toys
from .toys import each

LOSSES = sorted(by_loops.LOOPS)
CASES = [case for case in toys.cases() if case[0] in by_loops.LOOPS]
PRESETS = [(name, preset) for name in LOSSES for preset in parts.load("loss", name).make.presets]
PAIRS = json.loads((Path(__file__).parents[1] / "golden" / "ids.json").read_text())["pairs"]


def built(name: str, **options: Any) -> Loss:
    part = parts.load("loss", name)
    return part.build(part.options(options))


@each(CASES)
def test_value_is_what_loops_compute_from_the_options(name: str, case: str) -> None:
    loss, pair = toys.bound(name, case)
    got = toys.value(loss, pair.student, pair.teacher, toys.batch(6)).item()
    torch.manual_seed(1)  # as toys.value does
    assert toys.near(got, by_loops.LOOPS[name](loss, pair.student, pair.teacher), 1e-10)


PUBLISHED = {
    ("kd", "crd"): 2.82381371193,
    ("kd", "simkd"): 2.82381371193,
    ("kd", "zoo"): 2.82381371193,
    ("kd", "mdistiller_imagenet"): 1.59563010065,
    ("kd", "rkd_official"): 0.176488356996,
    ("kd", "lskd"): 0.775824866942,
    ("cc", "zoo"): 0.153808375121,
    ("cc", "rbf"): 0.181541193692,
    ("rkd", "crd"): 25 * 0.216653662202 + 50 * 0.0769951631743,
    ("rkd", "mmrazor"): 25 * 0.216855069823 + 50 * 0.0773903252759,
    ("rkd", "official_cls"): 25 * 0.216855069823 + 50 * 0.0773903252759,
    ("rcka", "lcka"): -15 * (0.0369753470331 + 0.838700328235),
}
"""On the same sines and cosines, twelve digits: computed with the released code (cc, rkd, lcka) or from the definition, before and
apart from this package. The presets that look at maps have none: the reference maps came with the package."""


@each(PRESETS)
def test_the_value_that_show_prints_is_the_published_one_or_that_of_loops(name: str, preset: str) -> None:
    text = catalogue.shown(name, Path("nowhere"))
    entry = text.split(f"  {name}:{preset}  ")[1].split(f"  {name}:")[0]
    assert re.search(r"Source: .{11}", entry)
    printed = re.search(r"value on the reference batch: (\S+)$", entry, re.MULTILINE)
    assert printed and len(printed[1].partition("e")[0].lstrip("-0.").replace(".", "")) <= 10
    wanted = PUBLISHED.get((name, preset))
    if wanted is None:
        loss, pair = _reference.bound(lambda: toys.made(name, preset))
        wanted = by_loops.LOOPS[name](loss, pair.student, pair.teacher)
    assert math.isclose(float(printed[1]), wanted, rel_tol=5.1e-10)


WEIGHTS: dict[tuple[str, str], tuple[float, float, list[tuple[str, float]]]] = {
    ("kd", "crd"): (0.1, 0.9, []),
    ("kd", "mdistiller_imagenet"): (0.5, 0.5, []),
    ("kd", "simkd"): (1, 1, []),
    ("kd", "rkd_official"): (1, 16, []),
    ("kd", "zoo"): (1, 0.1, []),
    ("kd", "lskd"): (0.1, 9, []),
    ("kd", "dot"): (0.1, 0.9, []),
    ("kd", "dot_imagenet"): (0.5, 0.5, []),
    ("sp", "crd"): (1, 3000, []),
    ("sp", "torchdistill"): (1, 1, []),
    ("cc", "zoo"): (1, 100, []),
    ("cc", "crd"): (1, 0.02, []),
    ("cc", "torchdistill"): (0, 0.003, [("kd", 1)]),
    ("rkd", "crd"): (1, 1, []),
    ("rkd", "mmrazor"): (1, 1, []),
    ("rkd", "torchdistill"): (1, 1, []),
    ("rkd", "official_cls"): (1, 1, [("kd", 16)]),
    ("rkd", "official_metric"): (0, 1, []),
    ("rcka", "released"): (1, 1, []),
    ("rcka", "lcka"): (1, 1, []),
    ("rcka", "fcka"): (1, 1, []),
}
"""The task's weight, the loss's own, and those of further terms: every one that is cited, and no other."""


def test_presets_have_the_weights_of_their_sources_and_others_none() -> None:
    presets = {(name, preset): parts.load("loss", name).make.presets[preset] for name, preset in PRESETS}
    cited = {key: (one.task, one.weight, [(loss, weight) for loss, weight, *_ in one.terms]) for key, one in presets.items() if one.weight}
    assert cited == WEIGHTS


def test_the_reference_batch_is_what_its_page_says() -> None:
    pair = _reference.pair()
    s, t = pair.student, pair.teacher
    assert s.pooled[1, 2] == math.sin(6) and t.pooled[1, 2] == math.cos(7)
    assert math.isclose(s.logits[1, 0], 2 * math.sin(0.7 * 7)) and math.isclose(t.logits[4, 5], 3 * math.cos(0.9 * 30))
    assert math.isclose(s.stages[0][0, 1, 0, 0], math.sin(0.37 * 17)) and math.isclose(t.stages[0][0, 0, 1, 0], math.cos(0.53 * 5))
    wave = [math.cos(0.53 * k) for k in (1, 2, 3, 4)]
    assert math.isclose(t.last[0, 0, 0, 1], wave[1] - math.fsum(wave) / 4 + math.cos(1))
    for one in (s, t):
        assert (one.last.mean((2, 3)) - one.pooled).abs().max() < 1e-15 and torch.equal(one.last, one.stages[-1])


def test_a_loss_that_refuses_two_widths_is_shown_on_the_teachers_first_three_channels() -> None:
    # Of RepDistiller's Correlation on these.
    assert math.isclose(_reference.value(lambda: built("cc", kernel="lag1", l2=False)), 3.87331221274, rel_tol=1e-11)


def test_a_reference_value_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert _reference.value(lambda: toys.made("cc", "crd")) == _reference.value(lambda: toys.made("cc", "crd"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_users_own_loss_that_cannot_be_computed_is_shown_all_the_same(tmp_path: Path) -> None:
    text = (
        "from kdbench.losses._base import Loss, Preset\n"
        "class Mine(Loss):\n"
        "    presets = {'a': Preset('nobody said this', 1.0)}\n"
        "    needs = frozenset()\n"
        "    def forward(self, student, teacher, batch):\n        raise KeyError('not yet written')\n"
    )
    (tmp_path / "mine.py").write_text(text)
    shown = catalogue.shown(f"{tmp_path / 'mine.py'}:Mine", tmp_path)
    assert "nobody said this" in shown and "value on the reference batch: none ('not yet written')" in shown


@each((pair["id"], pair) for pair in PAIRS)
def test_a_term_of_an_older_cell_with_todays_options_written_out_is_the_same_term(cell_id: str, pair: dict[str, Any]) -> None:
    def today(term: dict[str, Any]) -> dict[str, Any]:
        part = parts.load("loss", term["loss"])
        assert term["version"] <= part.version  # a raised version gives new ids on purpose
        return {**term, "options": part.options(term["options"])}

    objective = pair["config"]["objective"]
    later = {**objective, "terms": [today(term) for term in objective["terms"]]}
    assert canonical({"objective": later}) == canonical({"objective": objective})


def test_no_two_different_losses_are_the_same_without_their_neutral_options() -> None:
    texts, options = set(), set()
    for name, case in CASES:
        part = parts.load("loss", name)
        default, given = part.options(), part.options(toys.options_of(name, case))
        # Every case, and every case with one of its options at the default, which for one of `added` is none.
        for one in (given, *({**given, key: default[key]} if key in default else without(given, key) for key in given)):
            options.add((name, json.dumps(one)))
            texts.add(canonical({"objective": {"terms": [{"loss": name, "options": one}]}}))
    assert len(texts) == len(options) > len(CASES)


def without(options: dict[str, Any], key: str) -> dict[str, Any]:
    return {other: value for other, value in options.items() if other != key}


def test_a_preset_without_a_published_weight_is_refused_until_the_suite_says_one(write_suite: Callable[..., Path]) -> None:
    unpublished = [f"{name}:{preset}" for name, preset in PRESETS if parts.load("loss", name).make.presets[preset].weight is None]
    assert {"sp:frobenius", "cc:torchdistill_bilinear", "cka:saha", "cka:uncentred"} < set(unpublished)
    with pytest.raises(SuiteError) as caught:
        read(write_suite(objectives=f"[ce, {', '.join(map(repr, unpublished))}]"))
    told = [line.partition(": objectives.")[2] for line in caught.value.errors]
    assert [line.split("'")[1] for line in told] == unpublished

    said = ", ".join(f"'{one}': {{weight: 2, weight_from: assumed}}" for one in unpublished)
    suite = read(write_suite(objectives=f"{{ce: , kd: , {said}}}"))
    assert all(suite.objectives[one].config["terms"][0]["weight"] == 2 for one in unpublished)


def features() -> tuple[Taps, Taps]:
    """Uniform numbers, of the pooled width of ResNet-18 and ResNet-34."""
    draw = torch.Generator().manual_seed(0)
    return tuple(Taps(pooled=torch.rand(64, width, generator=draw, dtype=torch.float64)) for width in (512, 512))


RELEASED_CC = {
    "crd": 20.66,  # 0.413 with its weight
    "zoo": 5.9e-5,
    "torchdistill": 0.167,
    "torchdistill_bilinear": 0.053,
}
"""The four released losses of the name on one batch of 64, as others measured them on features that they do not describe (those of
torchdistill move by a factor of 3 with the draw of the trained maps)."""


def cc_of(preset: str, order: torch.Tensor | None = None) -> float:
    student, teacher = (one if order is None else one.map(lambda x: x[order]) for one in features())
    loss = toys.made("cc", preset)
    torch.manual_seed(0)
    loss.bind(Pair(student, teacher))
    return loss.double()(student, teacher).item()


@each((preset,) for preset in RELEASED_CC)
def test_the_four_released_ccs_are_orders_of_magnitude_apart_as_measured(preset: str) -> None:
    assert 1 / 2 < cc_of(preset) / RELEASED_CC[preset] < 2


def test_of_the_four_released_ccs_lag1_alone_depends_on_the_order_of_the_batch() -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    for preset in RELEASED_CC:
        plain, permuted = cc_of(preset), cc_of(preset, order)
        # Measured: 20.66 and 20.59.
        assert 1e-3 < abs(permuted / plain - 1) < 1e-1 if preset == "crd" else math.isclose(permuted, plain, rel_tol=1e-10)


def test_normalised_the_torchdistill_form_is_the_root_of_the_zoos_over_n() -> None:
    student, teacher = features()
    zoo = built("cc")(student, teacher).item()
    normalised = built("cc", reduction="fro_over_n2")(student, teacher).item()
    assert math.isclose(normalised, zoo**0.5 / 64, rel_tol=1e-10)
    assert 1 / 1.5 < normalised / 1.2e-4 < 1.5


def test_the_list_of_losses_has_year_kind_size_needs_and_source_of_each():
    head, *lines = catalogue.losses().split("\n\n")[0].splitlines()
    assert head.split() == ["name", "year", "compares", "parameters", "needs", "source"]
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == parts.names("loss")
    for name, line in rows.items():
        _, year, compares, parameters, *_ = line.split()
        assert 2010 <= int(year) <= 2030 and compares in ("logits", "features", "relations") and line[head.index("source") :].strip(), name
        assert parameters == "-" or int(parameters.replace(",", "")) >= 0
    count = {name: line.split()[3] for name, line in rows.items()}
    # An embedding of 256 to 128 with biases for each side; a convolution of 256 to 256 channels in each of two layers of 3 x 3.
    assert count["crd"] == f"{2 * (256 * 128 + 128):,}" and count["mgd"] == f"{2 * (256 * 256 * 9 + 256):,}" and count["kd"] == "0"
