"""What an installation without the repository has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kdbench

REPOSITORY = Path(__file__).parents[1]


def test_the_wheel_carries_every_module_the_shipped_suites_and_the_cluster_files(tmp_path: Path) -> None:
    if importlib.util.find_spec("setuptools") is None and not os.environ.get("KDBENCH_NO_SKIP"):
        pytest.skip("setuptools builds the wheel, and is not installed")
    source = tmp_path / "source"
    # A copy, since building writes into the folder.
    shutil.copytree(REPOSITORY / "kdbench", source / "kdbench", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("suites", "slurm"):
        shutil.copytree(REPOSITORY / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"kdbench-{kdbench.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "kdbench").rglob("*.py")}
    expected |= {f"kdbench/suites/{path.name}" for path in (REPOSITORY / "suites").glob("*.yaml")}
    expected |= {f"kdbench/clusters/{path.name}" for path in (REPOSITORY / "slurm").glob("*.yaml")}
    expected |= {f"kdbench/published/{path.name}" for path in (REPOSITORY / "kdbench" / "published").glob("*.csv")}
    assert expected - names == set()
    assert not {name for name in names if not name.startswith("kdbench/")}
