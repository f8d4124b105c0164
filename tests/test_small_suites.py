"""Small copies of suites: `init --small`, and every suite of ImageNet from end to end on images that are made here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kdbench.cli import main
from kdbench.datasets.imagenet100 import CLASSES
from kdbench.plan import matrix, probe
from kdbench.plan.matrix import Plan
from kdbench.plan.shipped import shipped
from kdbench.plan.small_suite import EPOCHS
from kdbench.plan.suite import read
from kdbench.store import Store, cell_state
from kdbench.tasks.classification import SMALL_PER_CLASS as PER_CLASS
from kdbench.tasks.classification import SMALL_SIZE as SIZE
from kdbench.tasks.classification import Classification

IMAGENET = sorted(name for name in shipped("suite") if name.startswith("imagenet"))


def small_copy(original: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    told = CliRunner().invoke(main, ["init", "copy", "--from", original, "--small"])
    assert told.exit_code == 0, told.output
    assert told.output == "wrote copy.yaml\nnext: kdbench plan copy.yaml\n"
    return folder / "copy.yaml"


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 1000 classes in ImageNet's layout, three of them with images of their own, the others with a link to one image."""
    home = tmp_path_factory.mktemp("data")
    names = sorted([*CLASSES.split(), *(f"n99{number:06}" for number in range(900))])
    random = np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("val", 4)):
        for place, name in enumerate(names):
            (home / "imagenet" / split / name).mkdir(parents=True)
            for number in range(count if place < 3 else 1):
                path = home / "imagenet" / split / name / f"{name}_{number}.JPEG"
                if place >= 3:
                    os.link(home / "imagenet" / split / names[0] / f"{names[0]}_0.JPEG", path)
                    continue
                pixels = random.normal(60 * (place + 1), 40, (40, 48, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGENET)
def test_every_suite_of_imagenet_runs_from_end_to_end_with_three_classes_at_32_pixels(
    name: str, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = small_copy(name, tmp_path, monkeypatch)
    plan = matrix.expand(read(suite))
    told = CliRunner().invoke(
        main, ["run", str(suite), "--data", str(imagenet), "--results", "results", "--device", "cpu", "--jobs", "1", "--no-profile"]
    )

    assert told.exit_code == 0, told.output
    store = Store(tmp_path / "results")
    assert {cell_state.of(store, cell_id).name for cell_id in plan.cells} == {"finished"}
    record = store.record(plan.rows[-1].cell.id)
    assert record is not None and record.result["n_train"] == 3 * PER_CLASS
    whole = matrix.expand(read(Path(str(shipped("suite")[name]))))
    assert [(row.student, row.teacher, row.objective) for row in plan.rows] == list(
        dict.fromkeys((row.student, row.teacher, row.objective) for row in whole.rows)
    ), "nothing of the suite is left out but repeats"
    for objective in plan.suite.objectives.values():
        assert objective.label in told.output


def test_a_small_copy_has_few_images_and_epochs_and_trains_teachers_that_the_suite_takes_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = matrix.expand(read(small_copy("imagenet160", tmp_path, monkeypatch)))

    options = plan.suite.dataset["options"]
    assert options["size"] == SIZE and options["subset"] == {"classes": 3, "per_class": PER_CLASS} and len(plan.cells) == 9
    for net in (*plan.suite.students.values(), *plan.suite.teachers.values()):
        assert (net.recipe["epochs"], net.recipe["batch_size"], net.recipe["bn_groups"]) == (EPOCHS, Classification.small_batch, 8)
        assert net.recipe["weight_decay"] == 1e-4 and "weights" not in net.model and "inputs" not in net.model
    assert [net.min_teacher_metric for net in plan.suite.teachers.values()] == [0.0]


def test_a_suite_of_ones_own_is_made_small_with_the_options_that_it_has(
    write_suite: Callable[..., Path], plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan_of(
        recipe="{name: deit_small_data, warmup_epochs: 5, epochs: 50, lr: 0.01}",
        students="{small: {model: small_mobile, widths: [4, 6], recipe: {lr: 0.02}}}",
        teachers="{big: {model: small_mobile, recipe: {epochs: 80, lr: 0.03}, min_top1: 0.9}}",
    )
    plan = matrix.expand(read(small_copy("tiny.yaml", tmp_path, monkeypatch)))

    assert plan.suite.dataset["options"] == {**whole.suite.dataset["options"], "per_class": PER_CLASS}
    student, teacher = plan.suite.students["small"], plan.suite.teachers["big"]
    assert student.model == whole.suite.students["small"].model
    assert [(net.recipe["lr"], net.recipe["epochs"], net.recipe["warmup_epochs"]) for net in (student, teacher)] == [
        (0.02, 2, 1),
        (0.03, 2, 1),
    ]


def test_what_cannot_be_made_small_is_refused(write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_suite(file="searched.yaml", tune="{trials: 3}")
    write_suite(file="wrong.yaml", repeat="3")
    for line, answer in (
        ("init x --small", "--small needs --from"),
        ("init x --from searched --small", "--small does not shorten the search of `tune`"),
        ("init x --from wrong --small", "repeat: unknown key; did you mean 'repeats'?"),
        (
            "init x --from imagenet16 --small",
            "there is no suite 'imagenet16' in the current folder, and kdbench ships none; did you mean 'imagenet160'?",
        ),
        ("init x --from ../tiny --small", "there is no suite '../tiny' in the current folder"),
    ):
        told = CliRunner().invoke(main, line.split())
        assert told.exit_code == 2 and answer in told.stderr, (line, told.stderr)
    assert not (tmp_path / "x.yaml").exists()


@pytest.mark.parametrize("name", ["bccd_pcka", "coco_table3_fcos"])
def test_a_suite_of_detectors_is_made_small_with_few_images_that_keep_the_size_of_its_anchors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = matrix.expand(read(Path(str(shipped("suite")[name]))))
    plan = matrix.expand(read(small_copy(name, tmp_path, monkeypatch)))
    probe.probe(plan)
    options = plan.suite.dataset["options"]
    assert options["subset"] == {"images": 12} and options["size"] == whole.suite.dataset["options"]["size"]
    assert (options["min_size"] == 128) == (options["size"] is None)
    assert [one.label for one in plan.suite.objectives.values()] == [one.label for one in whole.suite.objectives.values()]
    for net in (*plan.suite.students.values(), *plan.suite.teachers.values()):
        assert (net.recipe["epochs"], net.recipe["batch_size"]) == (EPOCHS, 8) and "weights" not in net.model
    assert [net.min_teacher_metric for net in plan.suite.teachers.values()] == [0.0]


@pytest.mark.slow
def test_the_smoke_suite_of_detection_runs_from_end_to_end_to_ap_and_its_interval_over_images(tmp_path: Path) -> None:
    suite = Path(str(shipped("suite")["digit_scenes"]))
    told = CliRunner().invoke(
        main, ["run", str(suite), "--results", str(tmp_path / "results"), "--device", "cpu", "--jobs", "1", "--no-profile"]
    )
    assert told.exit_code == 0, told.output
    plan, store = matrix.expand(read(suite)), Store(tmp_path / "results")
    assert {cell_state.of(store, cell_id).name for cell_id in plan.cells} == {"finished"}
    report = (store.suite_folder("digit_scenes") / "report" / "report.md").read_text()
    assert "AP compared with detection" in report and "Differences on new images" in report and "top-1" not in report
    told = CliRunner().invoke(main, ["report", "digit_scenes", "--results", str(tmp_path / "results"), "--beside", "coco"])
    assert told.exit_code == 0 and "Measured beside coco" in told.output and "measured pairs are new pairs" in " ".join(told.output.split())
