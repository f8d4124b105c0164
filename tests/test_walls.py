"""Which module may import which, which library and the disk have one door, and that a broken wall is noticed.

Floors are listed from low to high: a module imports from its own floor or a lower one, and there is no circle.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import kdbench

PACKAGE = Path(kdbench.__file__).parent

FLOORS: list[tuple[str, str]] = [
    ("errors", "errors version words validation process process_log"),
    ("nouns", "cell record manifest failure choice"),
    ("parts", "isolation local_imports parts"),
    (
        "statistics",
        "stats.average_precision stats.calibration stats.collapse stats.compare stats.new_pairs stats.overall stats.paired stats.paper_claims stats.per_image stats.power "
        "stats.predictions stats.ranks stats.repeats stats.selection stats.similarity",
    ),
    # A new part is a new file: parts have a row for each folder.
    (
        "contracts and parts",
        "losses.* recipes.* datasets.* models.* tasks.* published.* scenes timm_adapter timm_arguments timm_stems submitit_adapter",
    ),
    (
        "disk",
        "store.cell_state store.claims store.derived_manifest store.features store.files store.folders store.frame store.frame_files store.from_file store.histories store.predictions store.rows store.step_times store.store store.tables store.trials store.whole_folder",
    ),
    (
        "plan",
        "plan.bundle plan.groups plan.matrix plan.needs plan.nets plan.new_suite plan.objectives plan.paper_claims plan.probe plan.provider plan.reading plan.recipe_limits plan.schema plan.shipped plan.small_suite "
        "plan.stages plan.suite plan.summary plan.tuning plan.yaml",
    ),
    (
        "training",
        "train.average train.build train.check train.checkpoint train.checkpoint_files train.circumstance train.dot train.evaluate train.export train.features train.feed train.given train.grouped train.linear_probe train.loop train.meeting "
        "train.member train.mix "
        "train.nursery train.numerics train.objective train.pictures train.profile train.ranks train.result train.seeds train.similarity train.start train.stream train.teacher train.teacher_table train.timing "
        "train.worker",
    ),
    (
        "report",
        "report.across_table report.beside report.claim_table report.class_table report.comparison report.comparison_table report.controls report.cost_table "
        "report.document report.entries report.feature_tables report.figures.differences report.figures.draw report.figures.epochs "
        "report.figures.figure_data report.figures.panels report.figures.similarity report.figures.tuning report.figures.values report.sentences "
        "report.latex report.latex_text report.main_table report.metric_table report.notes report.page.page "
        "report.page.runs report.paper report.predictions_table report.report_command report.study report.table report.text report.tuning_table "
        "report.warnings report.write tensorboard_adapter",
    ),
    ("run", "run.estimate run.local run.progress run.status run.step_parts run.verbs run.workers"),
    (
        "slurm",
        "slurm.cluster slurm.follow slurm.job slurm.launch slurm.queue_status slurm.reconcile slurm.scheduler slurm.submissions "
        "slurm.submit slurm.cluster_verbs",
    ),
    ("command line", "catalogue cli __init__ __main__"),
]
"""Every module of the package (an `__init__` has the floor of its folder), from low to high."""

WITH_TORCH = "losses.* datasets.* models.* tasks.* scenes train.* timm_adapter timm_arguments timm_stems"
"""The modules that may load torch when they are imported."""
HEAVY = ("torch", "timm", "torchvision")

DOORS = {
    "timm": "timm_adapter",
    "submitit": "submitit_adapter",
    "tensorboard": "tensorboard_adapter",
    "datasets": "datasets._huggingface",
    "torchvision": "datasets._archive datasets._decode models._torchvision",
    "torchcodec": "datasets._decode",
    "faster_coco_eval": "tasks._ap",
    "torch.distributed": "train.ranks",
}
"""Each library, and the only modules that may import it."""

ONLY = {
    "losses.*": "errors losses.* scenes",
    "stats.*": "errors stats.*",
    "recipes.*": "errors recipes.*",
    "models.*": "errors losses._base models.* scenes timm_adapter timm_arguments",
    "datasets.*": "errors datasets.* scenes timm_adapter",
    "tasks.*": "errors manifest tasks.* losses._base datasets._base scenes",
    "report.figures.*": "errors manifest report.* stats.* store.frame",
}
"""Modules that may import even less than their floor allows."""

DISK = {
    "store.*": "all files under the results folder",
    "process": "the kernel's files about this process, and the version of the code",
    "parts": "the source files of parts",
    "local_imports": "the files that a part's file imports from its own folder",
    "plan.yaml": "suites and cluster files",
    "plan.new_suite": "a new suite file",
    "plan.shipped": "suites and cluster files in the package",
    "plan.nets": "checkpoints that a suite names",
    "train.checkpoint_files": "checkpoints that a suite names",
    "train.start": "checkpoints that a suite names",
    "train.nursery": "the logs of workers",
    "datasets.*": "the data folder",
    "published.*": "published tables in the package",
    "slurm.launch": "the package's own source, for snapshots",
    "submitit_adapter": "what submitit writes into a submission's folder",
}
"""The modules that may open, write, list or remove files, and which."""
DISK_MODULES = {"tempfile", "glob", "tarfile", "mmap", "fcntl"}
DISK_CALLS = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "rmdir", "rename", "touch", "iterdir", "glob"),
    *("rglob", "symlink_to", "hardlink_to", "stat", "lstat", "exists", "is_file", "is_dir", "walk", "scandir", "listdir", "makedirs"),
    *("utime", "rmtree", "copytree", "copy2", "copyfile", "fsync", "chmod", "readlink", "move"),
}


def matches(module: str, patterns: str) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns.split())


def name_of(path: Path, package: Path) -> str:
    """`plan.suite` for plan/suite.py; a folder's `__init__` has the folder's name with `__init__`."""
    return ".".join(path.relative_to(package).with_suffix("").parts)


def floor_of(module: str) -> int | None:
    for place, (_, patterns) in enumerate(FLOORS):
        if matches(module, patterns):
            return place
    folder = module.removesuffix(".__init__")
    if folder != module:  # the lowest floor of what lies in the folder
        return min((place for place, (_, patterns) in enumerate(FLOORS) if f" {folder}." in f" {patterns}"), default=None)
    return None


def imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Everything that a module imports, at its top or later: our own modules by their name here, others by their dotted name."""
    for node in ast.walk(tree):
        found = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            found = [f"{node.module}.{one.name}" for one in node.names]
        for name in found:
            if name != "kdbench" and not name.startswith("kdbench."):
                yield name
                continue
            own = name.removeprefix("kdbench.").removeprefix("kdbench")
            while own and own not in modules and f"{own}.__init__" not in modules:
                own = own.rpartition(".")[0]
            yield "kdbench." + (own if own in modules else f"{own}.__init__".lstrip("."))


def disk_accesses(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.partition(".")[0] in DISK_MODULES)
        if isinstance(node, ast.Call):
            function = node.func
            called = function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
            if called in DISK_CALLS and not (isinstance(function, ast.Attribute) and _is_store(function.value)):
                yield f"{called}()"


def _is_store(node: ast.AST) -> bool:
    """Whether a call goes to the store itself: `store.files.exists(...)`, `self.store.…`."""
    return (isinstance(node, ast.Name) and node.id in ("store", "files")) or (
        isinstance(node, ast.Attribute) and node.attr in ("store", "files")
    )


def breaches(package: Path) -> list[str]:
    """Everything that a wall forbids, in words."""
    trees = {name_of(path, package): ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    found, graph = [], {}
    for module, tree in trees.items():
        floor = floor_of(module)
        if floor is None:
            found.append(f"{module} has no row in FLOORS")
            continue
        own = set()
        for name in imports(tree, set(trees)):
            if not name.startswith("kdbench."):
                found += [
                    f"{module} imports {name}, whose door is {door or 'not built yet'}"
                    for library, door in DOORS.items()
                    if (name == library or name.startswith(f"{library}.")) and not matches(module, door)
                ]
                continue
            target = name.removeprefix("kdbench.")
            own.add(target)
            above = floor_of(target)
            if above is not None and above > floor:
                found.append(f"{module} imports {target}, which is on a higher floor")
            found += [
                f"{module} imports {target}, which is not among {allowed}"
                for pattern, allowed in ONLY.items()
                if matches(module, pattern) and not matches(target.removesuffix(".__init__"), f"{allowed} {pattern.removesuffix('.*')}")
            ]
        graph[module] = own - {module}
        if not any(matches(module, pattern) for pattern in DISK):
            found += [f"{module} goes to the disk: {access}" for access in disk_accesses(tree)]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("a circle: " + " -> ".join(reversed(error.args[1])))
    return found


def heavy_after(modules: list[str]) -> str:
    """The heavy libraries that importing these modules loads."""
    code = "import sys, importlib\n" + "\n".join(f"importlib.import_module('{module}')" for module in modules)
    code += f"\nprint(*[one for one in {HEAVY!r} if one in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_module_keeps_to_the_walls() -> None:
    assert breaches(PACKAGE) == []


def test_only_training_parts_and_their_adapters_load_torch() -> None:
    names = [name_of(path, PACKAGE) for path in PACKAGE.rglob("*.py")]
    without = [name for name in names if not matches(name, WITH_TORCH) and name != "__main__"]

    assert len(without) > 80
    assert heavy_after([f"kdbench.{name}".removesuffix(".__init__") for name in without]) == ""
    assert heavy_after(["kdbench.train.loop"]) != ""


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("plan/stray.py", "", "has no row"),
        ("cell.py", "from kdbench.store import Store", "higher floor"),
        ("cell.py", "def late():\n    import kdbench.store.store", "higher floor"),
        ("run/status.py", "from kdbench.slurm import reconcile", "higher floor"),
        ("train/loop.py", "from kdbench.report import write", "higher floor"),
        ("losses/mine.py", "from kdbench.train.loop import train", "higher floor"),
        ("losses/mine.py", "from kdbench import parts", "not among"),
        ("stats/power.py", "from kdbench.cell import Cell", "not among"),
        ("models/mine.py", "import timm.models", "whose door is timm_adapter"),
        ("slurm/launch.py", "def late():\n    from submitit import AutoExecutor", "whose door is submitit_adapter"),
        ("datasets/mine.py", "import torchvision", "whose door is datasets._archive"),
        ("datasets/mine.py", "def late():\n    from datasets import load_dataset", "whose door is datasets._huggingface"),
        ("losses/mine.py", "import torch.distributed as dist", "whose door is train.ranks"),
        ("losses/mine.py", "from torch import distributed", "whose door is train.ranks"),
        ("losses/mine.py", "def late():\n    open('x')", "goes to the disk: open()"),
        ("run/local.py", "def late(path):\n    path.write_text('x')", "goes to the disk: write_text()"),
        ("report/write.py", "import shutil\nshutil.rmtree('x')", "goes to the disk: rmtree()"),
        ("slurm/reconcile.py", "from os import replace\nimport os\nos.makedirs('x')", "goes to the disk: makedirs()"),
        ("stats/ranks.py", "import kdbench.stats.power", "a circle: stats.power -> stats.ranks -> stats.power"),
    ],
)
def test_each_wall_that_is_broken_is_noticed(tmp_path: Path, module: str, source: str, message: str) -> None:
    others = {
        **dict.fromkeys(("store/__init__.py", "store/store.py", "slurm/reconcile.py", "report/write.py", "train/loop.py", "parts.py"), ""),
        **{"cell.py": "", "stats/power.py": "import kdbench.stats.ranks", "stats/ranks.py": ""},
    }
    for name, text in {**others, module: source}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert any(message in breach for breach in breaches(tmp_path))
    (tmp_path / module).write_text("")
    (tmp_path / "stats/power.py").write_text("")
    assert [breach for breach in breaches(tmp_path) if "no row" not in breach] == []
