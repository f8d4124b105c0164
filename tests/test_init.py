"""`kdbench init`: new suites that plan as they are, and copies of what ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdbench.cli import main
from kdbench.plan.shipped import shipped
from kdbench.plan.suite import read
from kdbench.slurm import cluster


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def kdbench(line: str) -> Result:
    return CliRunner().invoke(main, line.split())


def test_without_options_it_writes_a_suite_with_comments_that_plans(tmp_path: Path) -> None:
    told = kdbench("init first")

    assert (told.exit_code, told.stdout) == (0, "wrote first.yaml: 26 trainings (cells)\nnext: kdbench plan first.yaml\n")
    assert kdbench("plan first.yaml").stdout.startswith("first: 26 cells")
    text = (tmp_path / "first.yaml").read_text()
    assert "\n# min_top1:" in text and text.count("#") > 15
    # Every key that is shown as a comment is one that a suite has.
    shown = text.replace("\n# pairs:", "\npairs:").replace("\n#   small_mobile", "\n  small_mobile")
    for key in ("min_top1", "+kd", "teacher_seeds", "seed", "margin", "numerics"):
        shown = shown.replace(f"\n# {key}:", f"\n{key}:")
    (tmp_path / "shown.yaml").write_text(shown)
    assert read(tmp_path / "shown.yaml").pairs == [("small_mobile", "cifar_resnet20")]


def test_it_takes_nets_dataset_and_objectives_and_marks_weights_that_nobody_published(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from kdbench.losses.kd import KD\n\n\nclass Own(KD):\n    presets = {}\n")
    options = "--student resnet18 --student cifar_resnet20 --teacher resnet50 --teacher resnet18 --dataset cifar100"
    told = kdbench(f"init second.yaml {options} --objective cka --objective kd --objective rkd:official_cls --objective own.py:Own")

    assert told.exit_code == 0, told.stderr
    suite = read(tmp_path / "second.yaml")
    assert (list(suite.students), list(suite.teachers)) == (["resnet18", "cifar_resnet20"], ["resnet50", "resnet18"])
    assert suite.students["resnet18"].model["options"]["stem"] == "small"
    assert {name: one.weight_from for name, one in suite.objectives.items()} == {
        "ce": "published",
        "cka": "assumed",
        "kd": "published",
        "rkd:official_cls": "published",
        "own.py:Own": "assumed",
    }
    assert [one.split()[3] for one in suite.assumed] == ["cka,", "own.py:Own,"] and suite.baselines == ["ce", "kd"]


def test_wrong_names_are_answered_with_the_nearest_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    answers = {
        "init x --student resnt18": "students.resnt18.model: neither kdbench nor timm has a model 'resnt18'; did you mean 'resnet18'?",
        "init x --teacher small_mobil": "teachers.small_mobil.model: neither kdbench nor timm has a model 'small_mobil'; did you mean 'small_mobile'?",
        "init x --dataset cifr10": "dataset: there is no dataset 'cifr10'; did you mean 'cifar10'?",
        "init x --objective rdk": "objectives.rdk: there is no loss 'rdk'; did you mean 'rkd'?",
        "init x --student 5": "students.5.model: neither kdbench nor timm has a model '5'",
        "init x --from cifar_table1": "kdbench ships no file 'cifar_table1'; did you mean 'cifar100_table1'?",
        "init x --from quickstart --objective kd": "--from copies a file as it is",
        "init x --from quickstart --dataset digits": "--from copies a file as it is",
        "init ../x": "it is written into the current folder",
        "init mine": "mine.yaml exists, and is not overwritten: choose another name",
        "init mine.yaml --from quickstart": "mine.yaml exists, and is not overwritten: choose another name",
        "plan quickstart": "`kdbench init NAME --from quickstart` writes a copy of the shipped suite",
        "plan suites/cifar100_crd.yaml": "`kdbench init NAME --from cifar100_crd` writes a copy of the shipped suite",
    }
    for line, answer in answers.items():
        told = kdbench(line)
        assert told.exit_code == 2 and answer in told.stderr, (line, told.stderr)
        assert "Traceback" not in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"] and (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.open

    def refuse(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "x":
            raise OSError(30, "Read-only file system")
        return whole(path, mode, **options)

    monkeypatch.setattr(Path, "open", refuse)
    told = kdbench("init x")
    assert told.exit_code == 2 and told.stderr == "error: x.yaml cannot be written: Read-only file system\n"


def test_every_shipped_suite_and_cluster_file_is_copied_under_the_new_name(tmp_path: Path) -> None:
    for name in shipped("suite"):
        assert kdbench(f"init my_{name} --from {name}").stdout == f"wrote my_{name}.yaml\nnext: kdbench plan my_{name}.yaml\n"
        assert read(tmp_path / f"my_{name}.yaml").name == f"my_{name}"
    for name in shipped("cluster file"):
        assert "next: kdbench run SUITE --on" in kdbench(f"init my_{name} --from {name}").stdout
        assert cluster.read(tmp_path / f"my_{name}.yaml").request["timeout_min"] > 0
    assert {"quickstart", "cifar100_table1"} < set(shipped("suite")) and {"default", "h100"} < set(shipped("cluster file"))


def test_for_a_dataset_of_detection_it_writes_detectors_their_losses_and_the_metric_of_their_task(tmp_path: Path) -> None:
    for dataset, student, recipe in (("digit_scenes", "faster_rcnn_lcnet_035", "small_detector"), ("coco", "faster_rcnn_r50", "coco24")):
        told = kdbench(f"init {dataset}_mine --dataset {dataset}")
        assert told.exit_code == 0, told.stderr
        text, suite = (tmp_path / f"{dataset}_mine.yaml").read_text(), read(tmp_path / f"{dataset}_mine.yaml")
        assert list(suite.students) == [student] and f"\nrecipe: {recipe}\n" in text and "\n# min_ap:" in text
        assert list(suite.objectives) == ["detection", "mimic", "pkd:faster_rcnn", "cwd", "fgd:faster_rcnn", "pcka:fpn_faster_rcnn"]
        assert suite.baselines == ["detection"] and suite.task["name"] == "detection"
        for word in ("top1", "+kd", "`ce`"):
            assert word not in text
    assert suite.students["faster_rcnn_r50"].model["weights"]["into"] == "body"
    told = kdbench("init own --dataset digit_scenes --student fcos_test_resnet --teacher fcos_test_resnet --objective mimic")
    assert told.exit_code == 0 and list(read(tmp_path / "own.yaml").objectives) == ["detection", "mimic"], told.stderr
