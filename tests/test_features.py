"""The command `features`: measured once, made again where a file is damaged or stale, the same bits however it is divided or stopped."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdbench.cli import main
from kdbench.errors import SuiteError
from kdbench.failure import STOPPED
from kdbench.plan.matrix import Plan
from kdbench.plan.reading import given_part
from kdbench.report.write import ReportOptions, from_store, report, report_file, report_tables
from kdbench.store import Store
from kdbench.store.features import asked, path_of, stored
from kdbench.store.from_file import read
from kdbench.train import features

OBJECTIVES = "{ce: , kd: {controls: [untrained]}}"


@pytest.fixture
def probe(tmp_path: Path) -> dict[str, Any]:
    dataset, sources, title = given_part("dataset", "--probe", "{name: digits, per_class: 10}", tmp_path)
    return {"dataset": dataset, "sources": sources, "title": title}


def measure(store: Store, probe: dict[str, Any] | None, *options: str, suite: str = "tiny") -> int:
    more = ["--probe", json.dumps(probe)] if probe else []
    return features.main([str(store.root), suite, "--device", "cpu", *more, *options])


def results(store: Store) -> dict[str, Any]:
    """What every file holds but its circumstance."""
    return {path.name: {**json.loads(path.read_text()), "circumstance": None} for path in sorted((store.root / "features").glob("*.json"))}


def test_every_pair_and_every_network_is_measured_once_and_the_same_bits_come_from_shares_and_after_a_stop(
    plan_of: Callable[..., Plan],
    train: Callable[..., int],
    store: Store,
    probe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(plan_of(objectives=OBJECTIVES)) == 0
    assert measure(store, probe, "--cka") == 0
    manifest, first = store.manifest("tiny"), results(store)
    (teacher,) = (cell.id for cell in manifest.cells if cell.role == "teacher")
    students = [cell.id for cell in manifest.cells if cell.role == "student"]
    assert {name[:16] for name in first if name.startswith("cka")} == {f"cka-{one}" for one in students} and len(students) == 6
    assert {name[6:18] for name in first if name.startswith("probe")} == {teacher, *students}
    for held in first.values():
        assert held["weights"] == {one: store.record(one).result["weights_digest"] for one in held["setting"]["cells"]}
        if held["setting"]["kind"] == "cka":
            # Also the student of the untrained teacher is compared with the trained one.
            assert held["setting"]["cells"][1] == teacher and held["result"]["n_images"] == 899
            assert held["result"]["teacher_layers"] == ["stage 1", "stage 2", "pooled", "logits"] and len(held["result"]["cka"]) == 4
        else:
            assert 0.1 < held["result"]["accuracy"] < 1 and held["result"]["n_train"] == 100

    made = features.Work.measured
    monkeypatch.setattr(features.Work, "_cka", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(features.Work, "_probe", lambda *_: pytest.fail("measured again"))
    assert measure(store, probe, "--cka") == 0
    monkeypatch.undo()

    for path in (store.root / "features").iterdir():
        path.unlink()
    assert measure(store, probe, "--cka", "--share", "1", "2") == 0
    some = results(store)
    assert 0 < len(some) < len(first) and some.items() <= first.items()

    calls = []

    def stopping(work: features.Work, setting: Any) -> bool:
        calls.append(setting)
        features_stop[0].asked = len(calls) == 3
        return made(work, setting)

    features_stop: list[Any] = []
    monkeypatch.setattr(features, "Stop", lambda: features_stop.append(type("Asked", (), {"asked": False})()) or features_stop[-1])
    monkeypatch.setattr(features.Work, "measured", stopping)
    for path in (store.root / "features").iterdir():
        path.unlink()
    assert measure(store, probe, "--cka") == STOPPED and len(results(store)) == 3
    monkeypatch.undo()
    assert measure(store, probe, "--cka") == 0 and results(store) == first
    # Without room for the teacher's Gram matrices, they are computed again for each student.
    monkeypatch.setattr(features, "MOST_HELD_BYTES", 0)
    (store.root / "features").rename(store.root / "before")
    assert measure(store, None, "--cka") == 0
    assert results(store) == {name: held for name, held in first.items() if name.startswith("cka")}


def test_a_damaged_or_stale_file_is_made_again_and_a_cell_without_a_record_is_skipped_with_a_message(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, probe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(repeats="1")
    train(plan)
    assert measure(store, probe, "--cka") == 0
    first = results(store)
    settings = asked(store.manifest("tiny"), True, [probe["dataset"]])
    assert {path_of(store, one).name for one in settings} == set(first)
    cka, ours = next(path_of(store, one) for one in settings), path_of(store, settings[-1])
    text = cka.read_text()
    (digit,) = re.findall(r"0\.\d{6}", text)[:1]
    for damaged in (text[:100], "null", text.replace(digit, "0.123456"), ours.read_text()):
        store.write_text(cka, damaged)
        capsys.readouterr()
        assert measure(store, probe, "--cka") == 0
        assert f"{cka.name} is damaged" in capsys.readouterr().out and results(store) == first
    # Other weights, and another content of the probe's dataset under the same name.
    held = stored(store, ours)
    assert held is not None
    for stale in (
        replace(held, weights={name: "0" * 16 for name in held.weights}),
        replace(held, result={**held.result, "data_fingerprint": "f00d"}),
    ):
        store.write_json(ours, stale.to_json())
        whole = from_store(store, store.manifest("tiny"), ReportOptions())
        assert held.setting["cells"][0] not in set(whole.features["probe"]["id"])
        assert measure(store, probe, "--cka") == 0 and results(store) == first

    (student,) = (row.cell.id for row in plan.rows if row.objective == "kd")
    store.file(student, "record.json").unlink()
    for path in (store.root / "features").glob("*.json"):
        path.unlink()
    capsys.readouterr()
    assert measure(store, probe, "--cka") == 1
    told = capsys.readouterr().out
    assert f"skipped: probe of {student}: cell {student} is not trained" in told and f"skipped: cka of {student} and" in told
    assert set(results(store)) == {name for name in first if student not in name}


def test_the_report_has_tables_of_features_and_its_files_give_the_same_ones(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, probe: dict[str, Any]
) -> None:
    train(plan_of(objectives=OBJECTIVES, repeats="3"))
    assert not {"cka", "probe_0_vs_ce"} & {table.name for table in tables(store)}
    assert measure(store, probe, "--cka") == 0
    found = {table.name: table for table in tables(store)}
    (group,) = found["cka"].groups
    assert [column.title for column in found["cka"].columns] == ["loss", "stage 1", "stage 2", "pooled", "logits"]
    assert [row[0].text() for row in group.rows] == ["ce", "kd", "kd, untrained teacher"]
    assert group.facts == ("899 test images in batches of 256.",) and group.notes == ()
    assert all(re.fullmatch(r"-?\d\.\d{3} ± \d\.\d{3}", entry.text()) and len(entry.runs) == 3 for row in group.rows for entry in row[1:])
    probed = found["probe_0_vs_ce"]
    assert probed.title == "probe accuracy compared with ce (linear probe on digits {per_class: 10})"
    assert probed.groups[0].facts[0].startswith("Teacher big: probe accuracy ")
    assert [row[0].text() for row in probed.groups[0].rows] == ["ce", "kd"] and "[" in probed.groups[0].rows[1][2].text()
    assert probed.notes == ("digits {per_class: 10}: 100 training and 899 test images.",)

    first, second = io.StringIO(), io.StringIO()
    options = ReportOptions(full=True, images=False)
    report(store, ["tiny"], first, options=options)
    report_file(read(store.suite_folder("tiny") / "report" / "frame.csv"), None, second, options=options)
    assert [line for line in first.getvalue().splitlines() if "are in " not in line] == second.getvalue().splitlines()
    assert "Similarity to the teacher by layer (CKA)" in second.getvalue()
    folder = store.suite_folder("tiny") / "report"
    assert (folder / "tables" / "cka.tex").is_file() and "CKA" in (folder / "report.md").read_text()

    # What is missing is marked, and the rest stays.
    manifest = store.manifest("tiny")
    gone = next(cell.id for cell in manifest.cells if cell.objective == "kd")
    for path in (store.root / "features").glob(f"*-{gone}-*.json"):
        path.unlink()
    found = {table.name: table for table in tables(store)}
    assert found["cka"].groups[0].notes == ("† kd: 2 of 3 repeats were measured; `kdbench features` measures the others",)
    assert "†" in found["cka"].groups[0].rows[1][1].text() and "†" not in found["cka"].groups[0].rows[0][1].text()
    assert any("2 of 3 repeats complete" in note for note in found["probe_0_vs_ce"].groups[0].notes)


def tables(store: Store) -> list[Any]:
    return report_tables(from_store(store, store.manifest("tiny"), ReportOptions()))


def test_a_figure_of_similarities_has_a_panel_for_each_loss(plan_of: Callable[..., Plan], train: Callable[..., int], store: Store) -> None:
    from kdbench.report.figures.draw import FigureData, figures

    train(plan_of(repeats="1"))
    assert measure(store, None, "--cka") == 0
    whole = from_store(store, store.manifest("tiny"), ReportOptions())
    data = FigureData(whole.manifest, whole.students, whole.summaries, whole.comparisons, cka=whole.features["cka"])
    (figure,) = (one for one in figures(data) if one.name == "cka")
    assert figure.png.startswith(b"\x89PNG") and figure.pdf.startswith(b"%PDF")
    shown = re.findall(r">([^<>]+)</text>", figure.svg)
    assert {"stage 1", "logits"} <= set(shown), shown
    assert {one.rsplit(": ", 1)[-1] for one in shown} >= {"ce", "kd"}, shown
    numbers = whole.features["cka"]
    for value in numbers[numbers["objective"] == "kd"]["cka"]:
        assert f"{value:.2f}" in shown


@pytest.mark.slow
def test_a_network_that_a_loss_deploys_with_more_than_the_student_is_measured_too(
    plan_of: Callable[..., Plan], train: Callable[..., int], store: Store, probe: dict[str, Any]
) -> None:
    plan = plan_of(objectives="[ce, simkd]", repeats="1")
    assert train(plan) == 0 and measure(store, probe, "--cka") == 0
    (simkd,) = (row.cell.id for row in plan.rows if row.objective == "simkd")
    assert len(list((store.root / "features").glob(f"*-{simkd}-*.json"))) == 2
    whole = from_store(store, store.manifest("tiny"), ReportOptions())
    (group,) = next(table for table in report_tables(whole) if table.name == "cka").groups
    # It deploys no stages of a student's, and what is not there is not marked as missing.
    assert [entry.text() for entry in group.rows[1]][1:3] == ["–", "–"] and group.notes == ()


@pytest.mark.slow
def test_the_command_measures_in_processes_and_prints_what_it_did(
    write_suite: Callable[..., Path], plan_of: Callable[..., Plan], train: Callable[..., int], store: Store
) -> None:
    train(plan_of(repeats="1"))
    arguments = ["features", str(write_suite(repeats="1")), "--results", str(store.root), "--device", "cpu", "--jobs", "2"]
    done = CliRunner().invoke(main, [*arguments, "--probe", "digits"])
    assert done.exit_code == 0, done.output
    assert "tiny: 5 measurements of features, 2 at a time" in done.output and "5 measured, 0 were there" in done.output
    again = CliRunner().invoke(main, arguments)
    assert "2 measurements of features" in again.output and "0 measured, 2 were there" in again.output


def test_what_cannot_be_measured_is_refused_before_anything_is(write_suite: Callable[..., Path], store: Store, tmp_path: Path) -> None:
    def told(*options: str, **changes: str) -> str:
        done = CliRunner().invoke(main, ["features", str(write_suite(**changes)), "--results", str(store.root), *options])
        assert done.exit_code == 2
        return done.output

    assert "no network has finished training: run `kdbench run" in told()
    assert "--no-cka, or give --probe" in told("--no-cka")
    assert "did you mean 'cifar10'?" in told("--probe", "cifar1O")
    shapes = "images have the shape 3 x 32 x 32, and the networks of tiny are for 1 x 8 x 8 (channels x height x breadth)"
    assert f"--probe cifar100 {{subset: {{classes: 5}}}}: its {shapes}" in told("--probe", "{name: cifar100, subset: {classes: 5}}")
    assert "has no option 'per_clas'; did you mean 'per_class'?" in told("--probe", "{name: digits, per_clas: 3}")
    for text in ("[1, 2]", "{per_class: 3}", "{name: digits"):
        assert "--probe:" in told("--probe", text)
    assert not (store.root / "features").exists()


def test_a_dataset_is_named_with_the_options_that_are_not_its_defaults(tmp_path: Path) -> None:
    assert given_part("dataset", "--probe", "digits", tmp_path)[2] == "digits"
    assert given_part("dataset", "--probe", "{name: digits, padding: 1}", tmp_path)[2] == "digits"
    assert given_part("dataset", "--probe", "{name: cifar10, subset: {classes: 3, per_class: 5}}", tmp_path)[2] == (
        "cifar10 {subset: {classes: 3, per_class: 5}}"
    )
    with pytest.raises(SuiteError, match="--probe:1"):
        given_part("dataset", "--probe", "nowhere", tmp_path)
