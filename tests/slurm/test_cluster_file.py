"""Cluster files: submitit's words and ours, and errors that name their line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.errors import SuiteError
from kdbench.manifest import ManifestCell
from kdbench.slurm.cluster import read

SHIPPED = sorted((Path(__file__).parents[2] / "slurm").glob("*.yaml"))
ROW = ManifestCell("0123456789ab", "student", "digits", "resnet18", "resnet50", "kd", 0, 0, {})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_file_that_ships_is_right_and_its_request_is_one_that_submitit_takes(path: Path, tmp_path: Path) -> None:
    from submitit import SlurmExecutor
    from submitit.auto.auto import AutoExecutor

    request = read(path).request_of(ROW)

    class Anywhere(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = AutoExecutor(tmp_path, cluster="debug")
    executor.cluster, executor._executor = "slurm", Anywhere(tmp_path)
    executor.update_parameters(**request)
    assert executor._executor.parameters["time"] == request["timeout_min"]


def test_there_is_one_for_any_cluster_for_two_gpus_and_for_none() -> None:
    assert [path.stem for path in SHIPPED] == ["a100", "cpu", "default", "h100", "single_node"]
    assert {path.stem: read(path).device_of(read(path).request_of(ROW)) for path in SHIPPED} == {
        "a100": "cuda",
        "cpu": "cpu",
        "default": "cuda",
        "h100": "cuda",
        "single_node": "cpu",
    }


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("timout_min: 3", ":1: timout_min: unknown key; did you mean 'timeout_min'?"),
        ("mem_gb: 3", ":1: the key 'timeout_min' is missing"),
        ("timeout_min: 5\nmem_gb: lots", ":2: mem_gb: 'lots'"),
        ("timeout_min: 0", "smallest limit is 1 minute"),
        ("timeout_min: 5\ngpus_per_node: 4", ":2: gpus_per_node: at most 1"),
        ("timeout_min: 5\nslurm_use_srun: false", ":2: slurm_use_srun: kdbench needs srun"),
        ("timeout_min: 5\nslurm_dependency: afterok:1", ":2: slurm_dependency: kdbench sets this itself"),
        ("timeout_min: 5\nslurm_time: 10:30", ":2: slurm_time: write 'timeout_min' instead"),
        ("timeout_min: 5\nslurm_additional_parameters: {signal: USR1@30}", "slurm_additional_parameters.signal: kdbench sets this itself"),
        (
            "timeout_min: 5\nslurm_additional_parameters: {ntasks_per_node: 8}",
            "slurm_additional_parameters.ntasks_per_node: kdbench sets this itself",
        ),
        ("timeout_min: 5\ntasks_per_node: 8", ":2: tasks_per_node: kdbench sets this itself: write `ranks`"),
        ("timeout_min: 5\nretry: {lots: 3}", ":2: retry.lots: unknown class of failure"),
        ("timeout_min: 5\nretry:\n  killed: -1", ":3: retry.killed"),
        ("timeout_min: 5\noverrides:\n  - {mem_gb: 3}", ":3: overrides.0: it selects no cells"),
        ("timeout_min: 5\noverrides:\n  - {teacher: big}", ":3: overrides.0: it changes nothing"),
        ("timeout_min: 5\nbigger:\n  - {mem: 3}", ":3: bigger.0.mem: unknown key"),
        ("timeout_min: 5\nstudents_side_by_side: 0", ":2: students_side_by_side"),
        ("- a list", "a cluster file is a mapping"),
        ("dataset: digits\nobjectives: {ce: }", "is a suite, not a cluster file; slurm/default.yaml explains the keys of a cluster file"),
    ],
)
def test_a_mistake_is_reported_with_its_line(tmp_path: Path, text: str, output: str) -> None:
    with pytest.raises(SuiteError) as caught:
        read(written(tmp_path, text))

    assert output in "\n".join(caught.value.errors)


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        read(written(tmp_path, "timout_min: 5\nmem_gb: x\nretry: {y: 1}"))

    assert len(caught.value.errors) == 4


def test_an_override_holds_for_the_cells_that_it_names_and_the_later_one_wins(tmp_path: Path) -> None:
    text = """
    timeout_min: 100
    mem_gb: 8
    overrides:
      - {student: "resnet*", mem_gb: 16}
      - {role: teacher, timeout_min: 500}
      - {student: resnet18, objective: kd, mem_gb: 24}
    """
    cluster = read(written(tmp_path, text))

    def asked(**changed: str | None) -> tuple[int, float]:
        request = cluster.request_of(replace(ROW, **changed))
        return request["timeout_min"], request["mem_gb"]

    assert asked() == (100, 24)
    assert asked(objective="sp") == (100, 16)
    assert asked(student="vgg8") == (100, 8)
    assert asked(role="teacher", student="resnet50", teacher=None, objective="teacher") == (500, 16)


def test_the_last_of_the_bigger_requests_is_repeated_and_memory_is_asked_for_in_one_way(tmp_path: Path) -> None:
    text = "timeout_min: 5\nslurm_mem_per_cpu: 4G\nbigger:\n  - {mem_gb: 16}\n  - {slurm_mem: 64G, slurm_constraint: fat}\n"
    cluster = read(written(tmp_path, text))
    failed: list[dict[str, object]] = []
    asked = []
    for _ in range(4):
        assert cluster.is_spent(ROW, failed) == (len(failed) == 3)
        request = cluster.request_of(ROW, failed)
        asked.append({word: value for word, value in request.items() if "mem" in word})
        failed.append(request)

    assert asked == [{"slurm_mem_per_cpu": "4G"}, {"mem_gb": 16.0}, {"slurm_mem": "64G"}, {"slurm_mem": "64G"}]


def test_no_request_asks_for_less_than_what_failed(tmp_path: Path) -> None:
    text = "timeout_min: 5\nmem_gb: 24\nbigger: [{mem_gb: 48}, {mem_gb: 192}]\noverrides: [{student: 'resnet*', mem_gb: 96}]\n"
    cluster = read(written(tmp_path, text))

    assert cluster.request_of(ROW, [cluster.request_of(ROW)])["mem_gb"] == 192
    # After the file was given more, it is that which is asked for.
    assert cluster.request_of(replace(ROW, student="vgg8"), [{"mem_gb": 16}])["mem_gb"] == 24
    # What failed on another kind of node does not count here.
    assert cluster.request_of(ROW, [{"mem_gb": 500, "slurm_partition": "small"}])["mem_gb"] == 96


@pytest.mark.parametrize(
    ("changed", "device", "readers"),
    [
        ("cpus_per_task: 8, gpus_per_node: 1", "cuda", 7),
        ("slurm_additional_parameters: {gpus-per-node: 1}", "cuda", 1),
        ("slurm_gres: 'gpu:a100:1'", "cuda", 1),
        ("mem_gb: 3", "cpu", 1),
    ],
)
def test_the_device_and_the_readers_are_those_of_what_is_asked_for_a_cell(tmp_path: Path, changed: str, device: str, readers: int) -> None:
    cluster = read(written(tmp_path, f"timeout_min: 5\noverrides:\n  - {{student: '*', {changed}}}\n"))
    request = cluster.request_of(ROW)

    assert (cluster.device_of(request), cluster.readers_of(request)) == (device, readers)


def test_options_of_srun_are_a_list_that_can_be_written_down(tmp_path: Path) -> None:
    import json

    request = read(written(tmp_path, "timeout_min: 5\nslurm_srun_args: [--cpu-bind=none]\n")).request_of(ROW)
    assert json.loads(json.dumps(request))["slurm_srun_args"] == ["--cpu-bind=none"]


def test_a_short_limit_leaves_most_of_its_time_to_training(tmp_path: Path) -> None:
    def delay(text: str) -> int:
        return read(written(tmp_path, text)).request_of(ROW)["slurm_signal_delay_s"]

    assert [delay(f"timeout_min: {minutes}") for minutes in (1, 4, 6, 600)] == [15, 60, 90, 90]
    assert delay("timeout_min: 600\nslurm_signal_delay_s: 300\noverrides: [{student: '*', timeout_min: 1}]") == 300
