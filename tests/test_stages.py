"""Two stages: the first is a cell of its own, shared, paired and resumed, and the second starts from what it leaves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from kdbench import choice, parts
from kdbench.errors import DataError, StoppedError, SuiteError
from kdbench.failure import STOPPED
from kdbench.losses._base import Pair, Taps
from kdbench.manifest import Manifest
from kdbench.plan import matrix, probe
from kdbench.plan.bundle import bundles
from kdbench.plan.matrix import Plan, Row
from kdbench.plan.suite import read
from kdbench.report.write import ReportOptions, from_store
from kdbench.run import local
from kdbench.run.progress import ProgressBar
from kdbench.store import Store, cell_state
from kdbench.store.histories import histories, terms
from kdbench.store.trials import trials
from kdbench.train.build import Setup, first_stage_of
from kdbench.train.seeds import Streams
from kdbench.train.start import continue_from
from kdbench.train.teacher import load_weights
from tests.conftest import After

NETS = {
    "teachers": "{big: {model: cifar_resnet, depth: 14, widths: [4, 4, 8, 8], min_top1: 0.0}}",
    "students": "{small: {model: cifar_resnet, depth: 8, widths: [4, 4, 8, 8]}}",
}
AB = "'ab:crd_two_stage': {two_stages: {epochs: 2}}"
FT = "'ft:crd_two_stage': {two_stages: {epochs: 2}}"
MINE = '''
"""A loss whose first stage trains a code of the teacher's features, and whose second has the student follow it."""

import torch
from torch import nn

from kdbench import Loss


class Code(Loss):
    """In the first stage the code gives back the teacher's features; then it is frozen."""

    needs = frozenset({"pooled"})
    laws = frozenset()
    first_stage_options = {"learn": True}

    def __init__(self, *, learn: bool = False, bad: bool = False):
        super().__init__()
        self.learn, self.bad = learn, bad

    @property
    def trains_student(self):
        return not self.learn

    def bind(self, pair):
        self.code = nn.Linear(pair.teacher.pooled.shape[1], 3).requires_grad_(self.learn)
        self.back = nn.Linear(3, pair.teacher.pooled.shape[1])
        self.own = nn.Linear(pair.student.pooled.shape[1], 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student, teacher, batch):
        if self.bad and self.learn:
            raise RuntimeError("a mistake in the first stage")
        code = self.code(teacher.pooled)
        if self.learn:
            self.seen.add_(1)
            return (self.back(code) - teacher.pooled).square().mean()
        return (self.own(student.pooled) - code).square().mean()
'''


def objectives(*lines: str) -> str:
    return "\n".join(["ce:", *lines])


def only(plan: Plan, role: str, objective: str, **names: Any) -> list[Row]:
    return [
        row
        for row in plan.rows
        if (row.role, row.objective) == (role, objective) and all(getattr(row, name) == value for name, value in names.items())
    ]


def results(store: Store, plan: Plan) -> dict[str, Any]:
    return {cell_id: record.result for cell_id in plan.cells if (record := store.record(cell_id))}


def progress_of(plan: Plan) -> ProgressBar:
    return ProgressBar(Console(quiet=True), {row.id: row.title for row in plan.manifest().cells}, len(plan.cells))


def test_a_first_stage_is_a_cell_of_the_terms_alone_from_which_the_second_starts(plan_of: Callable[..., Plan]):
    plan = plan_of(
        **NETS, objectives=objectives("kd:", AB, FT, "fitnet: {two_stages: {epochs: 2, lr: 0.1, then: [{loss: kd, weight: 2}]}}")
    )
    for name, then in (("ab:crd_two_stage", []), ("ft:crd_two_stage", [("ft", 200.0)]), ("fitnet", [("kd", 2.0)])):
        first, second = (only(plan, role, name, repeat=1)[0].cell for role in ("first_stage", "student"))
        assert second.depends == {"teacher": first.depends["teacher"], "start": first.id} and set(first.depends) == {"teacher"}
        assert (first.config["objective"]["task"], first.config["objective"]["stage"]) == (0.0, "first")
        assert [(term["loss"], term["weight"]) for term in second.config["objective"]["terms"]] == then
        assert first.config["recipe"]["epochs"] == first.config["recipe"]["evaluate_every"] == 2 and second.config["recipe"]["epochs"] == 3
        # The same draws of images and weights, so that the second is paired with all other objectives.
        other = only(plan, "student", "kd", repeat=1)[0].cell
        for stream in ("order", "augment", "init", "dropout"):
            assert len({getattr(Streams.of(cell.config), stream) for cell in (first, second, other)}) == 1
    terms_of = {name: only(plan, "first_stage", name)[0].cell.config["objective"]["terms"][0] for name in ("ab:crd_two_stage", "fitnet")}
    assert terms_of["ab:crd_two_stage"]["weight"] == 0.003 and terms_of["fitnet"]["weight"] == 100.0
    (fitnet,) = {json.dumps(row.cell.config["recipe"]) for row in only(plan, "first_stage", "fitnet")}
    assert json.loads(fitnet)["lr"] == 0.1 and json.loads(fitnet)["milestones"] == [2 * 2 / 3]  # as they lie in the second
    assert Manifest.from_json(json.loads(json.dumps(plan.manifest().to_json()))) == plan.manifest()
    assert any("ab:crd_two_stage" in text and "2 epochs more" in text for text in plan.manifest().assumed)
    probe.probe(plan)


def test_the_first_stage_of_ft_is_the_reconstruction_that_the_stored_values_hold():
    from tests.losses.values import ft

    (stored,) = (one for one in ft.GOLDEN if one.key == "ft_paraphraser")
    part = parts.load("loss", "ft")
    assert part.make.first_stage_options == stored.options
    assert not part.build(dict(stored.options)).trains_student and part.build({}).trains_student
    # The authors' own reconstruction is by L1.
    draw = torch.Generator().manual_seed(0)
    student, teacher = (Taps(last=torch.randn(4, width, 3, 3, generator=draw)) for width in (2, 4))
    loss = part.build({**part.options(dict(part.make.presets["official_two_stage"].options)), **stored.options})
    loss.prepare(Pair(student, teacher))
    back = loss.decoder(loss.paraphraser(teacher.last))
    assert loss(student, teacher).item() == pytest.approx((back - teacher.last).abs().mean().item())
    epochs = {name: preset.two_stages["epochs"] for name, preset in part.make.presets.items() if preset.two_stages}
    assert epochs == {"crd_two_stage": 30, "official_two_stage": 6}


def test_the_id_of_the_second_stage_holds_that_of_the_first_and_nothing_else_changes(plan_of: Callable[..., Plan]):
    def ids(ab: str, role: str = "student") -> list[str]:
        plan = plan_of(**NETS, objectives=objectives("kd:", f"mine: {{loss: 'ab:crd_two_stage', two_stages: {ab}}}"))
        return [row.cell.id for row in only(plan, role, "mine")]

    given = ["{epochs: 2}", "{epochs: 1}", "{epochs: 2, lr: 0.3}", "{epochs: 2, weight: 1}", "{epochs: 2, then: [{loss: kd, weight: 1}]}"]
    every = [cell_id for one in given for cell_id in ids(one)]
    assert len(set(every)) == len(every) == 10 and ids(given[0]) == every[:2]
    assert ids(given[0], "first_stage") == ids(given[4], "first_stage") != ids(given[1], "first_stage")
    plain, staged = plan_of(**NETS, objectives="[ce, kd]"), plan_of(**NETS, objectives=objectives("kd:", AB))
    assert set(plain.cells) <= set(staged.cells)
    # A preset of two stages, in one.
    one = plan_of(**NETS, objectives=objectives("kd:", "'ab:crd_two_stage': {two_stages: false}"))
    assert not only(one, "first_stage", "ab:crd_two_stage")
    assert [term["loss"] for term in only(one, "student", "ab:crd_two_stage")[0].cell.config["objective"]["terms"]] == ["ab"]


def test_one_first_stage_serves_all_that_need_the_same(plan_of: Callable[..., Plan]):
    more = "{two_stages: {epochs: 2}, +kd: true}"
    plan = plan_of(
        **NETS, objectives=objectives("kd:", f"'ft:crd_two_stage': {more}", f"other: {{loss: 'ft:crd_two_stage', weight: 3, {FT[21:]}")
    )
    firsts = [row for row in plan.rows if row.role == "first_stage"]
    assert len(firsts) == 2 == len({row.cell.id for row in firsts})
    starts = {row.objective: row.cell.depends["start"] for row in plan.rows if "start" in row.cell.depends and row.repeat == 0}
    assert set(starts) == {"ft:crd_two_stage", "ft:crd_two_stage+kd", "other"} and set(starts.values()) == {firsts[0].cell.id}
    # KD beside is of the second stage.
    both = only(plan, "student", "ft:crd_two_stage+kd")[0].cell.config["objective"]["terms"]
    assert [term["loss"] for term in both] == ["ft", "kd"]
    assert [term["loss"] for term in firsts[0].cell.config["objective"]["terms"]] == ["ft"]


@pytest.fixture
def staged(tmp_path: Path, plan_of: Callable[..., Plan]) -> Plan:
    (tmp_path / "code.py").write_text(MINE)
    code = "code: {loss: 'code.py:Code', weight: 0.5, two_stages: {epochs: 2, weight: 1}}"
    again = "at: {two_stages: {epochs: 2}}"
    return plan_of(**NETS, objectives=objectives(AB, FT, code, again, "fitnet: {two_stages: {epochs: 2}}"), repeats="1")


def test_both_stages_are_the_same_in_a_bundle_alone_and_killed(staged: Plan, train: Callable[..., int], store: Store, tmp_path: Path):
    assert train(staged) == 0
    expected = results(store, staged)
    assert len(expected) == len(staged.cells) == 1 + 1 + 5 * 2
    assert {len(bundle.cells) for bundle in bundles(staged.cells.values())} == {1, 5}
    alone = Store(tmp_path / "alone")
    for cell in sorted(staged.cells.values(), key=lambda cell: len(cell.depends)):
        assert train(staged, [cell.id], alone) == 0
    assert results(alone, staged) == expected
    killed, stops = Store(tmp_path / "killed"), Counter[int]()
    while len(results(killed, staged)) < len(staged.cells):
        left = [cell_id for cell_id in staged.cells if not killed.is_done(cell_id)]
        least = min(len(staged.cells[cell_id].depends) for cell_id in left)
        try:
            status = train(staged, [cell_id for cell_id in left if len(staged.cells[cell_id].depends) == least], killed, stop=After(2))
        except StoppedError:
            status = STOPPED
        stops[least] += status == STOPPED
    assert results(killed, staged) == expected and stops[1] > 1 and stops[2] > 1


def test_the_second_stage_starts_from_what_the_first_left(staged: Plan, train: Callable[..., int], store: Store):
    assert train(staged) == 0
    device = torch.device("cpu")
    setup = Setup.of(staged.teachers[0].cell, store.root, device)
    initial = setup.student(only(staged, "student", "ce")[0].cell).state_dict()
    for name in ("ab:crd_two_stage", "ft:crd_two_stage", "code", "at", "fitnet"):
        cell, first = (only(staged, role, name)[0].cell for role in ("student", "first_stage"))
        record = first_stage_of(store, cell)
        assert record and record.id == first.id
        left = load_weights(store, record)
        taught = setup.with_teacher(store, cell)
        member = taught.member(cell, None, record, store)
        own = {name: value for name, value in member.trained.state_dict().items() if name.startswith("student.")}
        assert all(torch.equal(value, left[key]) for key, value in own.items())
        changed = [key for key in initial if not torch.equal(initial[key], left[f"student.{key}"])]
        if name in ("ft:crd_two_stage", "code"):  # the student takes no part, and its statistics do not either
            assert not changed, name
        else:  # nothing moves the head: no term sees it, and the loss of the task is not there to decay it
            assert changed and not [key for key in changed if key.startswith("fc")], name
        losses = {name: value for name, value in member.objective.losses.state_dict().items() if f"objective.losses.{name}" in left}
        assert all(torch.equal(value, left[f"objective.losses.{name}"]) for name, value in losses.items())
        shared = {name for name in losses if not name.endswith("num_batches_tracked")}
        assert bool(shared) == (name not in ("ab:crd_two_stage", "at")), name
        frozen = {name for name, weight in member.objective.losses.named_parameters() if not weight.requires_grad}
        assert {name.split(".")[1] for name in frozen} == {"ft:crd_two_stage": {"paraphraser"}, "code": {"code"}}.get(name, set())
        if name == "code":  # learned in the first stage, counted there, and kept in the second
            assert left["objective.losses.0.seen"] == 2 * 3
            fresh = taught.member(cell).objective.losses.state_dict()
            assert not torch.equal(fresh["0.code.weight"], losses["0.code.weight"])


def test_a_paraphraser_learns_to_give_back_the_map_of_the_teacher(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store):
    ft = "'ft:crd_two_stage': {two_stages: {epochs: 12, lr: 0.1}}"
    plan = plan_of(**NETS, dataset="{name: digits, per_class: 8}", objectives=objectives(ft), repeats="1")
    first = only(plan, "first_stage", "ft:crd_two_stage")[0].cell
    assert train(plan, [plan.teachers[0].cell.id, first.id]) == 0
    history = store.record(first.id).result["history"]
    values = [entry["terms"]["ft.reconstruction"]["raw"] for entry in history]
    assert values[-1] < 0.9 * values[0] and len(history) == 12
    # It is evaluated once, since no classifier is trained.
    assert ["test" in entry for entry in history] == [False] * 11 + [True]


def test_the_second_of_two_terms_with_one_loss_starts_from_the_second(tmp_path: Path, plan_of: Callable[..., Plan], train, store: Store):
    two = "two: {terms: [{loss: fitnet, hint: 1, weight: 1}, {loss: fitnet, hint: 2, weight: 1}], two_stages: {epochs: 1}}"
    plan = plan_of(**NETS, objectives=objectives(two), repeats="1")
    assert train(plan) == 0
    cell, first = (only(plan, role, "two")[0].cell for role in ("student", "first_stage"))
    setup = Setup.of(cell, store.root, torch.device("cpu")).with_teacher(store, cell)
    left = load_weights(store, store.record(first.id))
    member = setup.member(cell, None, store.record(first.id), store)
    for place in (0, 1):
        assert torch.equal(member.objective.losses[place].conv.weight, left[f"objective.losses.{place}.conv.weight"])
    swapped = first.config["objective"]["terms"][::-1]
    with pytest.raises(DataError, match=r"the loss 'fitnet' has other shapes in its first stage: conv.weight \(8, 8, 3, 3\) for"):
        wrong = {**left, "objective.losses.0.conv.weight": torch.zeros(8, 8, 3, 3)}
        continue_from(setup.student(cell), setup.objective(cell), wrong, swapped)


def test_a_first_stage_that_diverges_makes_the_second_diverge(plan_of: Callable[..., Plan], store: Store, train: Callable[..., int]):
    plan = plan_of(**NETS, objectives=objectives("far: {loss: at, two_stages: {epochs: 2, lr: 1.0e+30}}", AB), repeats="1")
    assert train(plan) == 0
    first, second = (cell_state.of(store, only(plan, role, "far")[0].cell.id) for role in ("first_stage", "student"))
    assert first.name == second.name == "diverged" and second.why == f"{first.why} of its first stage"
    manifest = store.manifest("tiny")
    runs = from_store(store, manifest, ReportOptions(images=False)).runs.set_index("objective")
    assert list(runs.loc[["ce", "far", "ab:crd_two_stage"], "state"]) == ["finished", "diverged", "finished"]
    assert "of its first stage" in runs.loc["far", "why"]
    # Of two trainings that are one method, both are paid.
    spent = [store.record(only(plan, role, "ab:crd_two_stage")[0].cell.id).circumstance["train_s"] for role in ("first_stage", "student")]
    assert runs.loc["ab:crd_two_stage", "train_s"] == pytest.approx(sum(spent))
    assert "small <- big, far, first stage, repeat 0" in cell_state.why_missing(store, manifest)


@pytest.mark.slow
def test_a_first_stage_that_fails_blocks_the_second(tmp_path: Path, plan_of: Callable[..., Plan], store: Store):
    (tmp_path / "code.py").write_text(MINE)
    bad = "bad: {loss: 'code.py:Code', weight: 1, bad: true, two_stages: {epochs: 2}}"
    plan = plan_of(**NETS, objectives=objectives(bad, AB), repeats="1")
    local.prepare(plan, store)
    local.train(plan, store, local.Machine(store.root, tmp_path, "cpu"), progress_of(plan))
    states = {(row.role, row.objective): cell_state.of(store, row.cell.id) for row in plan.rows}
    first, second = states["first_stage", "bad"], states["student", "bad"]
    assert first.name == "failed" and "a mistake in the first stage" in first.why
    assert second.name == "blocked" and f"blocked by first stage {only(plan, 'first_stage', 'bad')[0].cell.id}: it failed" in second.why
    assert states["student", "ab:crd_two_stage"].name == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("shared", [AB, "at: {two_stages: {epochs: 1}, +kd: true}"], ids=["one second stage", "two second stages"])
def test_a_first_stage_whose_weights_rot_unnoticed_is_trained_again_in_the_same_run(
    shared: str, plan_of: Callable[..., Plan], store: Store, tmp_path: Path
):
    import os

    plan = plan_of(**NETS, objectives=objectives(shared), repeats="1")
    local.prepare(plan, store)
    machine = local.Machine(store.root, tmp_path, "cpu")
    local.train(plan, store, machine, progress_of(plan))
    before = results(store, plan)
    seconds = [cell for cell in plan.cells.values() if "start" in cell.depends]
    for second in seconds:
        store.remove(store.file(second.id, "record.json"))
    path = store.file(seconds[0].depends["start"], "weights.bin")
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    local.train(plan, store, machine, progress_of(plan))
    assert results(store, plan) == before and len(before) == len(plan.cells)


def test_trials_have_first_stages_of_their_own_which_see_no_image_that_is_held_out(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
):
    ft = "'ft:crd_two_stage': {two_stages: {epochs: 1}, +kd: true}"
    tuned = {"dataset": "{name: digits, per_class: 8}", "tune": "{trials: 3}", "repeats": "1"}
    plan = plan_of(**NETS, **tuned, objectives=objectives(ft, "'ab:crd_two_stage': {two_stages: {epochs: 1}, tune: false}"))
    firsts = only(plan, "first_stage", "ft:crd_two_stage")
    assert Counter(row.trial for row in firsts) == {0: 3, None: 1}
    held_out = {row.cell.id: row.cell.config["dataset"]["options"]["validation"] for row in plan.rows}
    for row in plan.rows:
        if "start" in row.cell.depends:
            earlier = plan.cells[row.cell.depends["start"]]
            one, other = earlier.config, row.cell.config
            for name in ("role", "dataset", "repeat", "seed", "student"):
                assert one[name] == other[name]
            assert one["depends"] == {"teacher": other["depends"]["teacher"]}
            assert held_out[row.cell.id] == held_out[earlier.id] == (0.2 if row.role == "trial" else 0.0)
    final = only(plan, "student", "ft:crd_two_stage")[0].cell
    assert sum(role.startswith("choose.") for role in final.depends) == 3 + 1 + 6
    assert final.config["objective"]["tuned"]["terms"] == 1 and "tuned" not in firsts[0].cell.config["objective"]

    wanted = [row.cell.id for row in plan.rows if not (row.objective or "").endswith("+kd")]
    assert train(plan, wanted) == 0
    assert all(store.record(cell_id).outcome == "finished" for cell_id in wanted)
    sizes = {row.trial: store.record(row.cell.id).result["n_train"] for row in firsts}
    assert sizes[0] < sizes[None] == store.record(final.id).result["n_train"]
    found = trials(store, store.manifest("tiny"))
    assert len(found) == 10 and set(found["objective"]) == {"ft:crd_two_stage"}


def test_a_search_whose_first_stages_all_diverge_says_so(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store):
    tuned = {"dataset": "{name: digits, per_class: 8}", "tune": "{trials: 3}", "repeats": "1"}
    plan = plan_of(**NETS, **tuned, objectives=objectives("at: {two_stages: {epochs: 1, lr: 1.0e+30}}"))
    train(plan)
    first, further = only(plan, "trial", "at")[:3], only(plan, "trial", "at")[3]
    assert {store.record(row.cell.id).outcome for row in first} == {"diverged"}
    # Nothing tells points apart: the next trial says so, and none waits for ever.
    assert "the first stage of every trial diverged: give `two_stages` a smaller" in store.failure(further.cell.id).message
    assert "first stage of trials" not in cell_state.why_missing(store, store.manifest("tiny"))


def test_controls_are_controlled_in_both_stages(plan_of: Callable[..., Plan]):
    plan = plan_of(**NETS, objectives=objectives("'ft:crd_two_stage': {two_stages: {epochs: 2}, controls: [untrained, shuffled]}"))
    mine, untrained, shuffled = (
        tuple(only(plan, role, f"ft:crd_two_stage{name}")[0].cell for role in ("first_stage", "student"))
        for name in ("", "-untrained", "-shuffled")
    )
    assert all(second.depends["start"] == first.id for first, second in (mine, untrained, shuffled))
    assert len({one.id for pair in (mine, untrained, shuffled) for one in pair}) == 6
    assert untrained[0].depends["teacher"] == untrained[1].depends["teacher"] != mine[0].depends["teacher"]
    for one in shuffled:
        assert {term["pairing"] for term in one.config["objective"]["terms"]} == {"shuffled"}
    assert sum("epochs more" in text for text in plan.manifest().assumed) == 1


def test_what_is_wrong_with_two_stages_is_said_in_the_suite(refusal: Callable[..., str], write_suite: Callable[..., Path]):
    cases = {
        "at: {two_stages: {lr: 0.1}}": "objectives.at.two_stages: the first stage needs `epochs`",
        "at: {two_stages: {epochs: 2, momentm: 0.1}}": "did you mean 'momentum'",
        "at: {two_stages: {epochs: 0}}": "epochs must be at least 1",
        "at: {two_stages: {epochs: 2, milestones: [5]}}": "does not reach its milestones at 5",
        "at: {two_stages: {epochs: 2, ema: 0.9}}": "the second stage starts from the last weights of the first",
        "at: {two_stages: {epochs: 2, weight: 0}}": "two_stages.weight",
        "at: {two_stages: {epochs: 2, then: kd}}": "two_stages.then",
        "at: {two_stages: {epochs: 2, then: [{weight: 1}]}}": "two_stages.then.0: the key 'loss' is missing",
        "at: {two_stages: {epochs: 2, then: [{loss: kdd, weight: 1}]}}": "did you mean 'kd'",
        "at: {two_stages: {epochs: 2, then: [{loss: kd, two_stages: {epochs: 1}}]}}": "'two_stages' belongs to the objective",
        "at: {two_stages: {epochs: 2, then: [{loss: 'ab:crd_two_stage'}]}}": "this preset has two stages: take another preset",
        "at: {two_stages: true}": "two_stages",
        "at: {controls: [zero], two_stages: {epochs: 2}}": "a first stage at weight 0 trains nothing",
        "mine: {terms: [{loss: 'ab:crd_two_stage'}]}": "this preset has two stages: take another preset",
        "ce: {two_stages: {epochs: 2}}": "'two_stages' has no effect here, since the objective has no distillation term",
    }
    for line, message in cases.items():
        given = objectives(line) if not line.startswith("ce:") else f"{line}\nkd:"
        assert message in refusal(**NETS, objectives=given), line
    tuned = {
        f"{AB}": "no term is left in the second stage, so there is no weight to search for: write `tune: false`",
        "cka: {two_stages: {epochs: 2}}": "write `weight` here",
        "'ab:crd_two_stage': {two_stages: {epochs: 2}, +kd: true}": "no term is left in the second stage",
        "'ft:crd_two_stage': {tune: {rate: [0.5, 1]}}": "has two stages, and only the weight of the second is searched for, not 'rate'",
    }
    for line, message in tuned.items():
        assert message in refusal(**NETS, objectives=objectives(line), tune="{trials: 3}", dataset="{name: digits, per_class: 8}"), line
    accumulates = "{name: short, epochs: 3, batch_size: 16, lr: 0.02, milestones: [2], accumulate: 2}"
    with pytest.raises(SuiteError, match="the loss 'sp' compares the images of a batch"):
        lines = objectives("sp: {two_stages: {epochs: 2, then: [{loss: kd, weight: 1}]}}")
        probe.probe(matrix.expand(read(write_suite(**NETS, objectives=lines, recipe=accumulates))))


def test_a_loss_of_a_user_with_a_wrong_first_stage_is_told_so(
    refusal: Callable[..., str], plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
):
    mine = objectives("code: {loss: 'code.py:Code', weight: 1, two_stages: {epochs: 2}}")
    for options, message in (
        ('{"lern": True}', "has no option 'lern'; did you mean 'learn'"),
        ('"learn"', "has `first_stage_options` that are no mapping of its options"),
        ('{"learn": "x"}', "two_stages.learn"),
    ):
        (tmp_path / "code.py").write_text(MINE.replace('{"learn": True}', options))
        assert message in refusal(**NETS, objectives=mine), options
    # Nothing learns: neither the student nor a parameter of the loss.
    (tmp_path / "code.py").write_text(MINE.replace("self.learn, self.bad = learn, bad", "self.learn = self.bad = False").replace(
        "return not self.learn", "return False").replace("nn.Linear(", "FROZEN(").replace(
        "class Code", "def FROZEN(*sizes):\n    return nn.Linear(*sizes).requires_grad_(False)\n\n\nclass Code"))  # fmt: skip
    plan = plan_of(**NETS, objectives=mine, repeats="1")
    assert train(plan) == 1
    first, second = (only(plan, role, "code")[0].cell.id for role in ("first_stage", "student"))
    assert "nothing is trained in this first stage" in store.failure(first).message
    assert f"its first stage {first} is not trained" in store.failure(second).message
    assert store.is_done(only(plan, "student", "ce")[0].cell.id)


def test_a_first_stage_is_not_exported_and_its_rates_are_printed(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, tmp_path: Path
):
    from kdbench.errors import KdbenchError
    from kdbench.plan.summary import as_text
    from kdbench.train.export import export

    plan = plan_of(**NETS, objectives=objectives(FT), repeats="1")
    first, second = (only(plan, role, "ft:crd_two_stage")[0].cell.id for role in ("first_stage", "student"))
    text = as_text(tmp_path / "tiny.yaml", store.root)
    assert "2 students, 1 first stage " in text and "small, first stage of ft:crd_two_stage: " in text and " 0.01 at 0" in text
    assert train(plan) == 0
    assert export(store, second, tmp_path / "out")
    with pytest.raises(KdbenchError, match="is a first stage"):
        export(store, first, tmp_path / "out")


def test_reports_have_no_row_of_a_first_stage_and_say_what_it_is(staged: Plan, train: Callable[..., int], store: Store):
    assert train(staged) == 0
    manifest = store.manifest("tiny")
    whole = from_store(store, manifest, ReportOptions(images=False))
    assert set(whole.runs["role"]) == {"teacher", "student"} and len(whole.runs) == 1 + 6
    assert set(histories(store, manifest)["role"]) == {"teacher", "student"}
    found = terms(store, manifest)
    ft = found[found["objective"] == "ft:crd_two_stage"]
    assert list(ft["weight"]) == [200.0, 1.0] and [json.loads(one).get("two_stages") for one in ft["options"]] == [None, {"epochs": 2}]
    from kdbench.published import variant_of

    assert variant_of("ab:crd_two_stage", found) == ("other", "ab")  # its first stage has 30 epochs there
    assert [variant_of("ce", found)[0], variant_of("fitnet", found)[0]] == ["ce", "other"]


def test_a_check_tries_first_stages_too(staged: Plan, store: Store, tmp_path: Path):
    from kdbench.train.check import check

    found = {one.objective: one for one in check(staged, store, tmp_path, torch.device("cpu"), lambda text: None)}
    assert {name for name in found if name.endswith(", first stage")} == {
        f"{name}, first stage" for name in ("ab:crd_two_stage", "ft:crd_two_stage", "code", "at", "fitnet")
    }
    assert not [one.wrong for one in found.values() if one.wrong]


def test_a_trial_whose_first_stage_diverged_says_nothing_of_its_point():
    """It has not found the weight for its gradient, and a weight of the second stage cannot be the reason."""
    tuned = {"metric": "top1", "higher_is_better": True}

    def trial(point: dict[str, float], score: float | None) -> SimpleNamespace:
        history = [{"val": {"top1": score}}]
        result = {"tuned": point, "history": history} | ({} if score is not None else {"diverged_in": "first stage"})
        return SimpleNamespace(id="1", result=result, outcome="diverged" if score is None else "finished")

    lost = [trial({"gradient": one}, None) for one in (0.1, 1.0)]
    found = [trial({"weight": weight}, score) for weight, score in ((2.0, 0.5), (20.0, 0.7), (200.0, 0.6))]
    for pick, value in (("best", 20.0), (0, 20.0), (1, 200.0), ("further", round((20 * 200) ** 0.5, 2))):
        assert choice.picked({**tuned, "pick": pick}, [*lost, *found]) == {"weight": value}  # type: ignore[list-item]
    with pytest.raises(DataError, match="the first stage of every trial diverged"):
        choice.picked({**tuned, "pick": "further"}, lost)  # type: ignore[arg-type]


def test_a_loss_at_weight_zero_is_compared_with_a_training_in_one_stage(plan_of: Callable[..., Plan]):
    plan = plan_of(**NETS, objectives=objectives(AB, "sp: {controls: [zero]}", "mlkd: {controls: [zero]}"))
    references = {one.name: one.reference for one in plan.suite.objectives.values()}
    assert references["sp-zero"] == "ce"
    assert references["mlkd-zero"] is None and not any(name.startswith("task-") for name in references)


def test_dot_without_a_term_to_distil_in_the_second_stage_is_refused(refusal: Callable[..., str]):
    text = refusal(objectives="{ab: {weight: 1, weight_from: assumed, dot: 0.05, two_stages: {epochs: 1, then: []}}}")
    assert "objectives.ab.two_stages.then: `dot` needs a distillation term" in text


@pytest.mark.parametrize(
    "options",
    ["batch_size: 8", "batch_size: 24, drop_last: true", "rand_augment: rand-m5, mixup: 0.5", "class_uniform: 2", "accumulate: 4"],
)
def test_a_check_has_the_images_and_batches_of_a_first_stage(options: str, plan_of: Callable[..., Plan], store: Store, tmp_path: Path):
    from kdbench.train import check, stream

    lines = [f"{name}: {{two_stages: {{epochs: 1, {options}}}}}" for name in ("mlkd", "at")]
    plan = plan_of(**NETS, objectives=objectives("kd:", *lines), repeats="1")
    device, given = torch.device("cpu"), list[tuple[str, torch.Tensor, Any]]()
    step = check.Member.step

    def spied(self: Any, inputs: Any, targets: Any, batch: Any, *more: Any, **options: Any) -> None:
        given.append((self.cell.id, inputs, batch))
        step(self, inputs, targets, batch, *more, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(check.Member, "step", spied)
        found = {one.objective: one for one in check.check(plan, store, tmp_path, device, lambda text: None)}
    assert len(found) == 6 and not [one.wrong for one in found.values() if one.wrong]
    for role, name in (("first_stage", "mlkd"), ("first_stage", "at"), ("student", "mlkd"), ("student", "kd")):
        cell = only(plan, role, name)[0].cell
        setup = Setup.of(cell, tmp_path, device)
        batches = stream.BatchPlan.of(cell.config, setup.data)
        places = list(batches.epoch(0))
        tried = [(inputs, batch) for cell_id, inputs, batch in given if cell_id == cell.id]
        for (inputs, batch), place, number in zip(tried[:2], (places[0], places[-1]), (0, 1), strict=True):
            expected, _ = batches.mixed(*setup.data.batch("train", *place), setup.task, number)
            assert torch.equal(inputs, expected) and batch.index.tolist() == place[0].tolist(), (role, name)


@pytest.mark.parametrize("words", ["schedule: cosine, warmup_epochs: 1", "warmup_epochs: 1", "schedule: cosine", "mixup: 0.5", "lr: 0.1"])
@pytest.mark.parametrize(
    ("suite", "own"),
    [
        ("", ""),
        ("schedule: cosine", ""),
        ("warmup_epochs: 1", ""),
        ("schedule: cosine, warmup_epochs: 1", ""),
        ("schedule: cosine, warmup_epochs: 1", "cosine_after_warmup: false"),
        ("schedule: cosine, warmup_epochs: 1, cosine_after_warmup: false", ""),
        ("mixup: 0.2, label_smoothing: 0.1", "label_smoothing: 0.0"),
    ],
)
def test_words_of_a_first_stage_mean_what_they_mean_in_the_recipe(words: str, suite: str, own: str, write_suite: Callable[..., Path]):
    stated = dict(entry.split(": ") for entry in f"batch_size: 16, lr: 0.02, {suite}".strip(", ").split(", "))
    students = f"{{small: {{model: cifar_resnet, depth: 8, widths: [4, 4, 8, 8], recipe: {{{own}}}}}}}"

    def recipe(options: dict[str, str]) -> str:
        return f"{{name: short, {', '.join(f'{name}: {value}' for name, value in options.items())}}}"

    def students_of(options: dict[str, str], objectives: str) -> Any:
        return read(write_suite(**{**NETS, "students": students}, objectives=objectives, recipe=recipe(options)))

    expected = students_of({**stated, **dict(one.split(": ") for one in words.split(", "))}, "[kd]").students["small"].recipe
    staged = students_of(stated, f"{{kd: , at: {{two_stages: {{epochs: 40, {words}}}}}}}")
    first = staged.objectives["at"].first
    assert first and {**first.recipes["small"], "evaluate_every": 1} == expected


def test_a_first_stage_keeps_what_a_suite_says_against_the_recipes_own_file(write_suite: Callable[..., Path], tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom kdbench.recipes.short import Short\n\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Short):\n    label_smoothing: float = 0.1\n    loss_lr_scale: float = 2.0\n"
    )
    for students in (NETS["students"], NETS["students"].replace("]}}", "], recipe: {loss_lr_scale: 1.0}}}")):
        suite = read(
            write_suite(
                **{**NETS, "students": students},
                recipe="{name: 'mine.py:Mine', label_smoothing: 0.0}",
                objectives=objectives("at: {two_stages: {epochs: 2}}"),
            )
        )
        first, net = suite.objectives["at"].first, suite.students["small"]
        for name in ("label_smoothing", "loss_lr_scale"):
            assert first and first.recipes["small"].get(name) == net.recipe.get(name)
